"""Where the octets of a message go while they come: memory, and beyond a threshold an unlinked temporary file.

The file has no name, so nothing of it is left behind whatever happens to the process. A processor sees a read-only
memory map of it, with the interface that ``bytes`` has; the memory is the kernel's to give and take.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from pathlib import Path
from typing import IO

from guerrilla.envelope import Body
from guerrilla.server.limits import Memory
from guerrilla.smtp.data import BodyError, MemoryBody
from guerrilla.smtp.replies import INSUFFICIENT_STORAGE


def default_folder() -> str:
    """Return the folder for temporary files that is on a disk: /tmp may be memory, which would defeat the purpose."""
    return "/var/tmp" if os.access("/var/tmp", os.W_OK) else tempfile.gettempdir()  # noqa: S108 - they have no name


class Spool:
    """Opens a body for each message. ``threshold`` is in octets; ``folder`` empty means the default.

    Raises OSError if no file can be made in the folder.
    """

    def __init__(self, memory: Memory, threshold: int, folder: str = "") -> None:
        self.memory = memory
        self.threshold = threshold
        self.folder = Path(folder or default_folder())
        self.open_file().close()

    def open_body(self) -> SpooledBody:
        """Return the place for the octets of one message."""
        return SpooledBody(self)

    def open_file(self) -> IO[bytes]:
        """Open a temporary file without a name."""
        return tempfile.TemporaryFile(dir=self.folder, buffering=0)


class SpooledBody:
    """The octets of one message: in memory as long as it is small and there is room, else in a file."""

    __slots__ = ("_file", "_held", "_pieces", "_spool")

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._pieces = MemoryBody()
        self._held = 0
        self._file: IO[bytes] | None = None

    def write(self, octets: bytes) -> None:
        """Take more. Raises BodyError when the disk is full or broken: 452, so that the client tries again."""
        size = len(octets)
        if self._file is None:
            if self._held + size <= self._spool.threshold and self._spool.memory.take(size):
                self._held += size
                self._pieces.write(octets)
                return
            self._pieces.write(octets)
            octets = self._pieces.finish()
        try:
            if self._file is None:
                self._file = self._spool.open_file()
                self._forget()
            _write_all(self._file, octets)
        except OSError as error:
            raise BodyError(INSUFFICIENT_STORAGE) from error

    def finish(self) -> Body:
        """Return all that was written. Raises BodyError when there is no descriptor or no room for the map."""
        if self._file is None:
            return self._pieces.finish()
        try:
            with self._file:  # the map has a descriptor of its own
                return mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise BodyError(INSUFFICIENT_STORAGE) from error

    def discard(self) -> None:
        """Give back the memory and the file. A map of it that a processor still holds stays valid."""
        self._forget()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _forget(self) -> None:
        self._spool.memory.give_back(self._held)
        self._held = 0
        self._pieces.discard()


def _write_all(file: IO[bytes], octets: bytes) -> None:
    rest = memoryview(octets)
    while rest:
        written = file.write(rest)
        rest = rest[written:]  # in two steps: mypyc would call write twice
