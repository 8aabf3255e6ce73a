"""One turn of the event loop: what has come is read from all clients, then worked off, then all of them are answered.

In one turn many clients are served, and each of the three costs less where it is done for one after the other: the code
of one step stays in the processor's cache, where that of all three has no room; a client on this machine is not
woken by each reply, to go to sleep again before the next; and the log is written once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from guerrilla.log_records import Lines


class Turn:
    """Holds what was read and what was written in this turn of the loop, in its order.

    ``lines`` of the log, about what is worked off, are written together, and no reply is ahead of its own.
    """

    __slots__ = ("_letters", "_lines", "_loop", "_tasks", "_working")

    def __init__(self, loop: asyncio.AbstractEventLoop, lines: Lines) -> None:
        self._loop = loop
        self._tasks: list[Callable[[], None]] = []
        self._letters: list[tuple[asyncio.Transport, bytes]] = []
        self._working = False
        self._lines = lines

    def do(self, task: Callable[[], None]) -> None:
        """Have the task done when all that is there has been read."""
        if not self._tasks:
            self._loop.call_soon(self.work)
        self._tasks.append(task)

    def work(self) -> None:
        """Do all of it now: also to be called before it is looked at who was silent."""
        tasks, self._tasks = self._tasks, []
        self._working = self._lines.held = True
        try:
            for number, task in enumerate(tasks):
                try:
                    task()
                except (KeyboardInterrupt, SystemExit):
                    # The others have their turn if the loop is run again, to shut down.
                    self._tasks[:0] = tasks[number + 1 :]
                    self._loop.call_soon(self.work)
                    raise
                except BaseException as error:  # as the loop does with what it calls: the others have their turn
                    self._loop.call_exception_handler({"message": "a task of this turn failed", "exception": error})
        finally:
            self._working = self._lines.held = False
            self._lines.write()
        self.send()

    def put(self, transport: asyncio.Transport, data: bytes) -> None:
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
