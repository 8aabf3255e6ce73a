"""What is to be sent to the clients, until the end of this turn of the event loop.

In one turn many clients are served. Were each answered at once, a client on this machine would be woken by each reply,
and go to sleep again before the next; when they leave one after the other, it is awake for all of them.
"""

from __future__ import annotations

import asyncio


class Outbox:
    """Holds what was written in this turn of the loop, in its order."""

    __slots__ = ("_letters", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._letters: list[tuple[asyncio.Transport, bytes]] = []

    def put(self, transport: asyncio.Transport, data: bytes) -> None:
        """Have the octets sent at the end of this turn, behind all that was put here before."""
        if not self._letters:
            self._loop.call_soon(self.send)
        self._letters.append((transport, data))

    def send(self) -> None:
        """Send all of it now: also to be called before a transport is closed, or given to TLS."""
        letters, self._letters = self._letters, []
        for transport, data in letters:
            if not transport.is_closing():
                transport.write(data)
