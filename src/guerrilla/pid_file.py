"""The file that says which process the daemon is."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from structlog.typing import FilteringBoundLogger


class PidFile:
    """Is there as long as mail is received, when there is to be one."""

    def __init__(self) -> None:
        self._path = ""

    def write(self, path: str, log: FilteringBoundLogger) -> None:
        """Write the number of this process to the file; an empty path is none. The log learns why it cannot be."""
        if not path:
            return
        try:
            Path(path).write_bytes(b"%d\n" % os.getpid())
        except OSError as error:
            log.warning("cannot write the pid file", pid_file=path, cause=error.strerror)
            return
        self._path = path

    def move(self, path: str, log: FilteringBoundLogger) -> None:
        """Have the file at another path from now on; where it is already, it stays."""
        if path != self._path:
            self.remove()
            self.write(path, log)

    def remove(self) -> None:
        """Remove the file, unless it has become another's. May be called in any state."""
        path, self._path = self._path, ""
        if not path:
            return
        with contextlib.suppress(OSError):
            if Path(path).read_bytes().strip() == b"%d" % os.getpid():
                Path(path).unlink()
