"""A FastCGI server that does what a test says, also what no server should: written apart from the client it tests."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

BEGIN_REQUEST, ABORT_REQUEST, END_REQUEST, PARAMS, STDIN, STDOUT, STDERR = range(1, 8)


def record(record_type: int, content: bytes = b"", *, version: int = 1, request_id: int = 1, padding: int = 0) -> bytes:
    """Return one record, with nothing checked."""
    head = struct.pack(">BBHHBB", version, record_type, request_id, len(content), padding, 0)
    return head + content + b"\xaa" * padding


def end(exit_status: int = 0, protocol_status: int = 0) -> bytes:
    """Return the record that ends an answer."""
    return record(END_REQUEST, struct.pack(">IB3x", exit_status, protocol_status))


def page(body: bytes, header: bytes = b"Content-type: text/html; charset=UTF-8") -> bytes:
    """Return the whole answer of a script, as php-fpm sends it."""
    return record(STDOUT, header + b"\r\n\r\n" + body, padding=3) + end()


@dataclass(frozen=True)
class Received:
    """A request as the server has read it."""

    params: dict[str, str]
    stdin: bytes
    keep: bool
    pairs: int
    """How many parameters were sent, repeated ones included."""


def read_pairs(content: bytes) -> list[tuple[bytes, bytes]]:
    """Read the content of PARAMS (section 3.4)."""
    pairs = []
    position = 0
    while position < len(content):
        sizes = []
        for _ in range(2):
            if content[position] < 128:
                sizes.append(content[position])
                position += 1
            else:
                sizes.append(int.from_bytes(content[position : position + 4], "big") - (1 << 31))
                position += 4
        value = position + sizes[0]
        pairs.append((content[position:value], content[value : value + sizes[1]]))
        position = value + sizes[1]
    assert position == len(content)
    return pairs


class Caller:
    """A connection as the server sees it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def read_record(self) -> tuple[int, bytes]:
        version, record_type, request_id, length, padding, _ = struct.unpack(
            ">BBHHBB", await self.reader.readexactly(8)
        )
        assert (version, request_id) == (1, 1)
        return record_type, (await self.reader.readexactly(length + padding))[:length]

    async def read_request(self) -> Received:
        """Read a request; raises IncompleteReadError when the client has gone."""
        record_type, begin = await self.read_record()
        assert record_type == BEGIN_REQUEST
        role, flags = struct.unpack(">HB5x", begin)
        assert role == 1
        streams = {PARAMS: b"", STDIN: b""}
        for stream in streams:
            pieces = []
            while True:
                record_type, content = await self.read_record()
                assert record_type == stream
                if not content:
                    break
                pieces.append(content)
            streams[stream] = b"".join(pieces)
        pairs = read_pairs(streams[PARAMS])
        params = {name.decode(): value.decode() for name, value in pairs}
        return Received(params, streams[STDIN], flags == 1, len(pairs))

    async def write(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()


Handler: TypeAlias = Callable[[Caller], Awaitable[None]]


class FakeFastCGI:
    """Serves each connection with ``handler``, and closes it when that returns.

    Without a handler it answers every request with ``answer``, for as long as the client keeps the connection.
    """

    def __init__(self, path: Path, answer: bytes = b"") -> None:
        self.path = path
        self.answer = answer
        self.handler: Handler = self.serve
        self.requests: list[Received] = []
        self.accepted = 0
        self.ended: asyncio.Queue[None] = asyncio.Queue()
        """Has one for each connection that is over."""
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, caller: Caller) -> None:
        while True:
            self.requests.append(await caller.read_request())
            await caller.write(self.answer)

    async def once(self, caller: Caller) -> None:
        """Be a handler that answers one request and closes."""
        self.requests.append(await caller.read_request())
        await caller.write(self.answer)

    async def hang_up(self, caller: Caller) -> None:
        """Be a handler that reads a request and closes without an answer."""
        self.requests.append(await caller.read_request())

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._accept, self.path)

    async def stop(self) -> None:
        """Close everything, as a server that is killed."""
        if self._server is not None:
            self._server.close()
            self._server = None
            self.path.unlink(missing_ok=True)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.accepted += 1
        try:
            await self.handler(Caller(reader, writer))
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()
            self._tasks.discard(task)
            self.ended.put_nowait(None)
