"""Clients that send all the time, and come back whenever they were let go, until they are asked to stop.

What may happen to them is for the test to say: whatever is not a message and its answer is noted.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import AsyncIterator
from typing import Final

from tests.e2e.messages import Connection, content_of, envelope_of, recipients_of, stuffed
from tests.e2e.observed import until
from tests.e2e.test_kill import Load

DIALOGUE: Final = {220, 221, 250, 354}
"""The codes that these clients are answered with when all is well."""

_CLOSING: Final = 421
_RETRY_SECONDS: Final = 0.01


class Steady(Load):
    """A load over so many connections at a time; ``pause`` is how many seconds a client rests between two messages."""

    def __init__(self, port: int, connections: int, *, pause: float = 0.0) -> None:
        super().__init__(port)
        self.accepted = 0
        """Messages that were answered 250."""
        self.codes: Counter[int] = Counter()
        """How often each code came, in answer to anything, greetings included."""
        self.farewells = 0
        """Connections that the server ended with a 421."""
        self.cut: list[int] = []
        """The client's port of each connection that ended without a word."""
        self.refused: list[str] = []
        """What happened where there should have been a connection, or a greeting."""
        self._connections = connections
        self._counts = [0] * connections
        self._pause = pause
        self._stopping = False

    @contextlib.asynccontextmanager
    async def running(self, seconds: float) -> AsyncIterator[None]:
        """Send while the block lasts, but so long at most; at its end each client ends its message and says QUIT."""
        async with asyncio.timeout(seconds), asyncio.TaskGroup() as group:
            for number in range(self._connections):
                group.create_task(self._keep_sending(number))
            try:
                await self.more(self._connections)
                yield
            finally:
                self._stopping = True

    async def more(self, messages: int) -> None:
        """Return when so many more messages were accepted. Raises AssertionError if that does not come."""
        wanted = self.accepted + messages
        await until(lambda: self.accepted >= wanted, f"{messages} more messages are accepted")

    async def _keep_sending(self, number: int) -> None:
        while not self._stopping:
            with socket.socket() as connected:
                connected.setblocking(False)
                try:
                    await asyncio.get_running_loop().sock_connect(connected, ("127.0.0.1", self._port))
                except OSError as error:
                    self.refused.append(str(error))
                    await asyncio.sleep(_RETRY_SECONDS)
                    continue
                client = _Client(connected, self.codes)
                try:
                    await self._talk(client, number)
                except ConnectionError:
                    self.cut.append(connected.getsockname()[1])
                self.farewells += client.last == _CLOSING

    async def _talk(self, client: _Client, number: int) -> None:
        """Send until the server does not want any more. Raises ConnectionError when it has gone without a word."""
        if await client.code() != 220:
            self.refused.append(f"greeted with {client.last}")
            return
        await client.say(b"EHLO client.test\r\n")
        good = await client.code() == 250
        while good and not self._stopping:
            self._counts[number] += 1
            good = await self._deliver(client, f"{number}-{self._counts[number]}")
            await asyncio.sleep(self._pause)
        if client.last != _CLOSING:
            await client.say(b"QUIT\r\n")
            await client.code()

    async def _deliver(self, client: _Client, message_id: str) -> bool:
        """Send a message, its commands in one burst; return whether it was answered 250."""
        self.answers[message_id] = 0
        await client.say(envelope_of(message_id) + b"DATA\r\n")
        for _ in range(len(recipients_of(message_id)) + 2):
            if (answer := await client.code()) >= 400:
                self.answers[message_id] = answer
                return False
        await client.say(stuffed(content_of(message_id)))
        self.answers[message_id] = await client.code()
        self.accepted += client.last == 250
        return client.last == 250


class _Client(Connection):
    """A connection that knows what it was told last."""

    def __init__(self, connected: socket.socket, codes: Counter[int]) -> None:
        super().__init__(connected)
        self._codes = codes
        self.last = 0
        """The code of the last reply; 0 while one is waited for."""

    async def say(self, octets: bytes) -> None:
        """Send; whether anybody was there to hear it, the replies will tell."""
        with contextlib.suppress(ConnectionError):
            await self.send(octets)

    async def code(self) -> int:
        """Return the code of the next reply."""
        self.last = 0
        self.last = await super().code()
        self._codes[self.last] += 1
        return self.last
