"""Clients that do not give up: what is answered 4yz is sent again, until every message has been answered 250.

Nothing else is let pass: a 5yz, a refusal of anything but the message, a connection that ends without a 421, and a
message that is accepted twice fail the test.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final, TypeAlias

from tests.e2e.messages import Connection, content_of, envelope_of, recipients_of, stuffed

from guerrilla.smtp.replies import SAVE_TIMEOUT

Send: TypeAlias = Callable[[Connection, str], Awaitable[str]]
"""Sends one message, and returns what it was answered."""

RETRY_SECONDS: Final = 0.05
"""How long a client that was refused waits before it sends again (RFC 5321 section 4.5.4.1, in a hurry)."""

PATIENCE_SECONDS: Final = 90.0
"""After so long, what is waited for is taken to never come."""

_CLOSING: Final = "421"


class Outbox:
    """So many messages, and the clients that send them over so many connections at a time, every other with BDAT."""

    def __init__(self, port: int, messages: int, connections: int) -> None:
        self.ids = [f"{number % connections}-{number}" for number in range(messages)]
        self.accepted: set[str] = set()
        self.refusals: Counter[str] = Counter()
        """How often each reply came that was not 250."""
        self.connections = connections
        self._port = port
        self._waiting = deque(self.ids)
        self._answered = asyncio.Condition()

    @property
    def refused(self) -> int:
        """How many attempts were answered 4yz."""
        return self.refusals.total()

    @property
    def timed_out(self) -> int:
        """How many attempts were answered only that the time is over."""
        return self.refusals[str(SAVE_TIMEOUT)]

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        """Return when an answer has made the condition true. Raises AssertionError, with the text, if none does."""
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_SECONDS), self._answered:
                await self._answered.wait_for(lambda: condition() or len(self.accepted) == len(self.ids))
        assert condition(), f"never: {what}; {len(self.accepted)} are accepted, refused: {self.refusals}"

    async def accepts(self, messages: int) -> None:
        """Return when so many are accepted. Raises AssertionError if that does not come."""
        await self.until(lambda: len(self.accepted) >= messages, f"{messages} are accepted")

    async def empty(self) -> None:
        """Send everything; return when all of it is accepted."""
        async with asyncio.TaskGroup() as group:
            for number in range(self.connections):
                group.create_task(self._client((_with_data, _with_bdat)[number % 2]))

    async def _client(self, send: Send) -> None:
        """Send what waits; after a 421, over a new connection."""
        while self._waiting:
            with socket.socket() as connected:
                connected.setblocking(False)
                await asyncio.get_running_loop().sock_connect(connected, ("127.0.0.1", self._port))
                client = Connection(connected)
                assert await client.code() == 220
                await client.send(b"EHLO client.test\r\n")
                code = await client.code()
                if code == 421:  # a process that drains; another one accepts
                    continue
                assert code == 250
                await self._talk(client, send)

    async def _talk(self, client: Connection, send: Send) -> None:
        """Send what waits, until nothing does or the server ends the connection in good order."""
        while self._waiting:
            message_id = self._waiting.popleft()
            reply = await send(client, message_id)
            await self._note(message_id, reply)
            if reply.startswith(_CLOSING):
                return
            if not reply.startswith("250"):
                await asyncio.sleep(RETRY_SECONDS)

    async def _note(self, message_id: str, reply: str) -> None:
        async with self._answered:
            if reply.startswith("250"):
                assert message_id not in self.accepted, f"{message_id} is accepted a second time"
                self.accepted.add(message_id)
            else:
                assert reply.startswith("4"), f"{message_id} is answered {reply}"
                self.refusals[reply] += 1
                self._waiting.append(message_id)
            self._answered.notify_all()


async def _with_data(client: Connection, message_id: str) -> str:
    """Send the commands in one burst (RFC 2920), then the content; return the reply to it, or the 421 before it."""
    await client.send(envelope_of(message_id) + b"DATA\r\n")
    if closing := await _passed(client, [*_commands(message_id), "354"]):
        return closing
    await client.send(stuffed(content_of(message_id)))
    return await client.reply()


async def _with_bdat(client: Connection, message_id: str) -> str:
    """Send the whole message in one burst (RFC 3030); return the reply to it, or the 421 before it."""
    content = content_of(message_id)
    await client.send(envelope_of(message_id) + b"BDAT %d LAST\r\n" % len(content) + content)
    return await _passed(client, _commands(message_id)) or await client.reply()


def _commands(message_id: str) -> list[str]:
    """Return the codes that the commands before the content are answered."""
    return ["250"] * (1 + len(recipients_of(message_id)))


async def _passed(client: Connection, expected: Sequence[str]) -> str:
    """Read so many replies; return the 421 that came instead of one, or nothing."""
    for code in expected:
        reply = await client.reply()
        if reply.startswith(_CLOSING):
            return reply
        assert reply.startswith(code), f"{code} is meant, {reply} came"
    return ""
