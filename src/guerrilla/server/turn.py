"""One turn of the event loop: what has come is read from all clients, then worked off, then all of them are answered.

In one turn many clients are served, and each of the three costs less where it is done for one after the other: the code
of one step stays in the processor's cache, where that of all three has no room; a client on this machine is not
woken by each reply, to go to sleep again before the next; and the log is written once.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from guerrilla.log_records import Lines
from guerrilla.server.wire import Wire


class Job(Protocol):
    """Something to be done in a turn."""

    def go_on(self) -> None:
        """Do it."""


class Turn:
    """Holds what was read and what was written in this turn of the loop, in its order.

    ``lines`` of the log, about what is worked off, are written together, and no reply is ahead of its own.
    """

    __slots__ = ("_jobs", "_letters", "_lines", "_loop", "_working")

    def __init__(self, loop: asyncio.AbstractEventLoop, lines: Lines) -> None:
        self._loop = loop
        self._jobs: list[Job] = []
        self._letters: list[tuple[Wire | asyncio.Transport, bytes]] = []
        self._working = False
        self._lines = lines

    def do(self, job: Job) -> None:
        """Have the job done when all that is there has been read."""
        if not self._jobs:
            self._loop.call_soon(self.work)
        self._jobs.append(job)

    def work(self) -> None:
        """Do all of it now: also to be called before it is looked at who was silent."""
        jobs, self._jobs = self._jobs, []
        self._working = self._lines.held = True
        try:
            for number, job in enumerate(jobs):
                try:
                    job.go_on()
                except (KeyboardInterrupt, SystemExit):
                    # The others have their turn if the loop is run again, to shut down.
                    self._jobs[:0] = jobs[number + 1 :]
                    self._loop.call_soon(self.work)
                    raise
                except BaseException as error:  # as the loop does with what it calls: the others have their turn
                    self._loop.call_exception_handler({"message": "a job of this turn failed", "exception": error})
        finally:
            self._working = self._lines.held = False
            self._lines.write()
        self.send()

    def put(self, transport: Wire | asyncio.Transport, data: bytes) -> None:
        """Have the octets sent at the end of this turn, behind all that was put here before."""
        if not self._letters and not self._working:
            self._loop.call_soon(self.send)
        self._letters.append((transport, data))

    def send(self) -> None:
        """Send all of it now: also to be called before a transport is closed, or given to TLS."""
        self._lines.write()
        letters, self._letters = self._letters, []
        for transport, data in letters:
            if not transport.is_closing():
                transport.write(data)
