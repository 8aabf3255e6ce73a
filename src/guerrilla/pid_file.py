"""The file that says which process the daemon is.

It is a regular file: a pipe that nobody reads, or a device, must hold up neither the mail nor the end.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

from structlog.typing import FilteringBoundLogger

from guerrilla.files import without_waiting

_NUMBER = 32
"""More octets than the number of a process has."""


class PidFile:
    """Is there as long as mail is received, when there is to be one."""

    def __init__(self) -> None:
        self._path = ""

    def write(self, path: str, log: FilteringBoundLogger) -> None:
        """Write the number of this process to the file; an empty path is none. The log learns why it cannot be."""
        self._path = path  # also if it fails: a reload that leaves the path as it is does not fail by it
        try:
            _write(path)
        except OSError as error:
            log.warning("cannot write the pid file", pid_file=path, cause=error.strerror)

    def move(self, path: str) -> None:
        """Have the file at another path from now on; where it is already, it stays.

        Raises OSError if it cannot be written there; then it stays where it was.
        """
        if path == self._path:
            return
        _write(path)
        old, self._path = self._path, path
        if not _same(old, path):
            _remove(old)

    def remove(self) -> None:
        """Remove the file, unless it has become another's. May be called in any state."""
        path, self._path = self._path, ""
        _remove(path)


def _write(path: str) -> None:
    if not path:
        return
    with open(path, "ab", opener=without_waiting) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "Not a regular file")
        file.truncate(0)
        file.write(_own_number())


def _remove(path: str) -> None:
    if not path:
        return
    with contextlib.suppress(OSError):
        with open(path, "rb", opener=without_waiting) as file:
            ours = file.read(_NUMBER).strip() == _own_number().strip()
        if ours:
            Path(path).unlink()


def _same(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def _own_number() -> bytes:
    return b"%d\n" % os.getpid()
