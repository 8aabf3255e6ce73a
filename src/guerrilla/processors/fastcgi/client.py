"""A FastCGI server as its client sees it: kept connections, a bounded number, one request at a time on each.

Two rules of custody decide what stands here. A request that may have been seen by the server is never sent a second
time, unless the caller says that it may be repeated; and a connection whose request was cut short, by whatever, is
closed and never used again. There are no time limits here: who waits too long cancels.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, cast

from guerrilla.processors.fastcgi.protocol import Output, OutputReader, ProtocolError

LIFETIME: Final = 5.0
"""Seconds for which a connection is kept. A process of php-fpm serves one connection at a time and leaves it only when
it is closed: kept for ever, ours would shut out its other clients. Thousands of requests go over one meanwhile."""


class UnansweredError(ConnectionError):
    """The server closed the connection before anything of the answer had come."""


class Connection(asyncio.Protocol):
    """One connection, in ``connections`` while it is open: ``exchange`` while it is ``reusable``, then ``abort``."""

    def __init__(self, connections: set[Connection], lifetime: float) -> None:
        self._connections = connections
        self._lifetime = lifetime
        self._reader = OutputReader()
        self._failure: Exception | None = None
        self._idle = False
        self._retired = False
        self._finished = asyncio.Event()
        """Set when the exchange has come to an answer or a failure."""
        self._writable = asyncio.Event()
        """Set while there is room to write, and when there is no need to."""
        self._writable.set()
        self.lost = asyncio.Event()
        """Set when the socket is closed."""

    @property
    def reusable(self) -> bool:
        """Whether another request may be sent: the last one is over, nothing came after it, the server is there."""
        if not self._idle or self._retired or self._failure is not None:
            return False
        # A server says nothing unasked: whatever is there to read, its farewell above all, ends the connection. The
        # socket itself is asked, since the loop may not yet have come to read it.
        poll = select.poll()
        poll.register(self._transport.get_extra_info("socket").fileno(), select.POLLIN)
        return not poll.poll(0)

    async def exchange(self, request: Iterable[bytes]) -> Output:
        """Send a request and return the answer. If it is cancelled or raises, the connection is to be aborted.

        Raises:
            ProtocolError: if the answer is none.
            ConnectionError: if the connection ended before the answer; UnansweredError if nothing of it had come.
        """
        if self._failure is not None:
            raise self._failure
        self._reader = OutputReader()
        self._idle = False
        self._finished.clear()
        for piece in request:
            if self._finished.is_set():
                raise self._failure or ProtocolError("an answer before the whole request was read")
            self._transport.write(piece)
            await asyncio.sleep(0)  # encoding a large message must not hold the loop
            await self._writable.wait()
        await self._finished.wait()
        output = self._reader.output
        if output is None:
            assert self._failure is not None
            raise self._failure
        self._idle = self._reader.clean
        return output

    def retire(self) -> None:
        """Close as soon as no exchange is under way."""
        self._retired = True
        if self._idle:
            self.abort()

    def abort(self) -> None:
        """Close at once; what was not yet sent is not sent."""
        self._transport.abort()

    def forget(self) -> None:
        """Give it up while it is being made: of such a connection uvloop does not always tell that it is lost."""
        if self in self._connections:
            self.abort()
            self._timer.cancel()
            self._connections.discard(self)
        self.lost.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        self._connections.add(self)
        self._transport = cast(asyncio.Transport, transport)
        self._timer = asyncio.get_running_loop().call_later(self._lifetime, self.retire)

    def data_received(self, data: bytes) -> None:
        """Called by the loop."""
        try:
            if self._idle:
                raise ProtocolError("an answer that nobody asked for")
            self._reader.feed(data)
        except ProtocolError as error:
            self._fail(error)
        if self._reader.output is not None:
            self._finish()

    def eof_received(self) -> None:
        """Called by the loop."""
        kind = ConnectionError if self._reader.started else UnansweredError
        self._fail(kind("the server closed the connection before its answer was whole"))

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop."""
        if exc is not None and not self._reader.started:
            exc = UnansweredError(str(exc))
        self._fail(exc or ConnectionError("the connection was closed"))
        self._timer.cancel()
        self.lost.set()
        self._connections.discard(self)

    def pause_writing(self) -> None:
        """Called by the loop."""
        if not self._finished.is_set():
            self._writable.clear()

    def resume_writing(self) -> None:
        """Called by the loop."""
        self._writable.set()

    def _fail(self, error: Exception) -> None:
        self._failure = self._failure or error
        self._finish()
        self.abort()

    def _finish(self) -> None:
        self._finished.set()
        self._writable.set()


class Client:
    """Sends requests to one server, at most ``maximum`` at a time; the others wait for their turn.

    ``connect`` opens a connection to the server: it is given what makes a protocol, as the loop's ``create_connection``
    and ``create_unix_connection`` are.
    """

    def __init__(
        self,
        connect: Callable[[Callable[[], Connection]], Awaitable[tuple[object, Connection]]],
        *,
        maximum: int,
        lifetime: float = LIFETIME,
    ) -> None:
        self._connect = connect
        self._lifetime = lifetime
        self._turn = asyncio.Semaphore(maximum)
        self._connections: set[Connection] = set()
        self._kept: list[Connection] = []
        self._unproven = 0
        """Requests on new connections, which the server may not have taken up yet."""

    async def probe(self) -> None:
        """Connect, and close again.

        Raises:
            OSError: if the server is not there.
        """
        connection = await self._open()
        connection.abort()
        await connection.lost.wait()

    async def request(self, make_request: Callable[[], Iterable[bytes]], *, repeatable: bool) -> Output:
        """Send a request and return the answer.

        ``make_request`` is called for each attempt. There is a second one only for a repeatable request, when a kept
        connection turns out to be dead.

        Raises:
            ProtocolError: if the answer is none.
            OSError: if the server is not there, or goes before it has answered.
        """
        async with self._turn:
            kept = self._take()
            if kept is not None:
                try:
                    return await self._exchange(kept, make_request())
                except UnansweredError:
                    if not repeatable:
                        raise
            return await self._exchange(None, make_request())

    async def close(self) -> None:
        """Close all connections, also those that wait for an answer. It may be called more than once."""
        connections = list(self._connections)
        for connection in connections:
            connection.abort()
        for connection in connections:
            await connection.lost.wait()

    async def _exchange(self, connection: Connection | None, request: Iterable[bytes]) -> Output:
        new = connection is None
        self._unproven += new
        try:
            connection = connection or await self._open()
            return await connection.exchange(request)
        finally:
            self._unproven -= new
            if connection is not None:
                self._put_back(connection)

    async def _open(self) -> Connection:
        connection = Connection(self._connections, self._lifetime)
        try:
            await self._connect(lambda: connection)
        except BaseException:
            connection.forget()
            raise
        return connection

    def _take(self) -> Connection | None:
        """Return a kept connection that is alive, if there is one; the dead ones are closed."""
        while self._kept:
            connection = self._kept.pop()
            if connection.reusable:
                return connection
            connection.abort()
        return None

    def _put_back(self, connection: Connection) -> None:
        # A new connection may be waiting in the server's queue for a process that is bound to this one. With fewer
        # processes than requests it would wait for ever, if this one were kept.
        if connection.reusable and not self._unproven:
            self._kept.append(connection)
        else:
            connection.abort()
