"""What a load is made of: messages, and a client's end of a connection.

A message follows from its id alone, so that it can be told afterwards what must be there.
"""

from __future__ import annotations

import asyncio
import random
import re
import socket
from collections.abc import Iterable

_ID = re.compile(rb"\r\nX-Id: ([0-9]+-[0-9]+)\r\n")
_DELIVERY_HEADER = re.compile(rb"Delivered-To: [^\r\n]+\r\nReceived: from [^\r\n]+(?:\r\n\t[^\r\n]+)+\r\n")


def recipients_of(message_id: str) -> list[str]:
    """Name one to five recipients."""
    return [f"r{number}@example.com" for number in range(random.Random(message_id).randint(1, 5))]


def content_of(message_id: str) -> bytes:
    """Write a message: one to six kilobytes of any octets but CR and LF, and now and then one that is spooled."""
    lot = random.Random(message_id)
    lines = [b"From: <sender@example.org>", b"X-Id: " + message_id.encode(), b"Subject: load", b""]
    for _ in range(5000 if lot.random() < 0.01 else lot.randint(10, 80)):
        line = lot.randbytes(lot.randint(0, 80)).translate(None, b"\r\n")
        lines.append(b"." * lot.randint(0, 2) + line)
    return b"\r\n".join([*lines, b""])


def envelope_of(message_id: str) -> bytes:
    """Write the commands before the content."""
    recipients = "".join(f"RCPT TO:<{recipient}>\r\n" for recipient in recipients_of(message_id))
    return f"MAIL FROM:<sender@example.org> BODY=8BITMIME\r\n{recipients}".encode()


def stuffed(content: bytes) -> bytes:
    """Write the content as it follows DATA, the dot at its end included (RFC 5321 section 4.5.2)."""
    return content.replace(b"\r\n.", b"\r\n..") + b".\r\n"


def id_of(mail: bytes) -> str:
    """Return which message this is, after a look at every octet of it, and at the trace header in front."""
    match = _ID.search(mail)
    assert match, f"this is no message: {mail[:200]!r}"
    message_id = match[1].decode()
    content = content_of(message_id)
    assert mail.endswith(content), f"{message_id} is not what was sent"
    assert _DELIVERY_HEADER.fullmatch(mail[: -len(content)]), f"{message_id}: its front"
    return message_id


def some(items: Iterable[object]) -> str:
    """Write the first few."""
    listed = [str(item) for item in items]
    return ", ".join(listed[:10]) + (", …" if len(listed) > 10 else "")


class Connection:
    """One client's socket, and what it has read of the replies. Raises ConnectionError when the server has gone."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._loop = asyncio.get_running_loop()
        self._lines: list[bytes] = []
        self._rest = b""

    async def send(self, octets: bytes) -> None:
        """Send all of it."""
        await self._loop.sock_sendall(self._socket, octets)

    async def code(self) -> int:
        """Return the code of the next reply."""
        return int((await self.reply())[:3])

    async def reply(self) -> str:
        """Return the last line of the next reply."""
        while True:
            while not self._lines:
                octets = await self._loop.sock_recv(self._socket, 65536)
                if not octets:
                    raise ConnectionResetError
                *lines, self._rest = (self._rest + octets).split(b"\r\n")
                self._lines = lines[::-1]
            line = self._lines.pop()
            if line[3:4] != b"-":
                return line.decode()
