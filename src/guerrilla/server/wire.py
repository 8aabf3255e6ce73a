"""Connections in clear: read and written here, and not by transports of the loop.

The loop knows of one descriptor for all of them, that of epoll. What its own transports do for a connection beside
reading and writing (a task or a waiter, both ends' names, options set one by one, a weak dictionary) costs as much as
the dialogue of a short one. TLS is left to the loop: a connection that begins it is handed over.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from typing import Final, Protocol

from guerrilla.server.readiness import READABLE, WRITABLE, Readiness
from guerrilla.server.sockets import socket_of
from guerrilla.server.system_calls import receive, send

READ_SIZE: Final = 262144
"""Octets that are read at once from one client at most."""
READ_BURST: Final = 256
"""Clients that are read from at one time, so that all else of the loop has its turn."""
MAX_UNSENT: Final = 65536
"""Octets that a client may leave unread, beside what the system holds for it, before it is to be told no more."""
FEW_UNSENT: Final = 16384
"""Octets of them that may be left when it is told again."""


class Talker(Protocol):
    """Who uses a wire, and is called by it as an ``asyncio.Protocol`` is by its transport."""

    def data_received(self, data: bytes) -> None:
        """Octets have come."""

    def eof_received(self) -> bool:
        """No more will come. Return whether the wire is to be kept, for what is still to be said."""

    def pause_writing(self) -> None:
        """More than ``MAX_UNSENT`` octets wait to be taken."""

    def resume_writing(self) -> None:
        """No more than ``FEW_UNSENT`` of them are left."""

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over: called once, and never while a method of the wire runs."""


class Wires:
    """All connections in clear of one server, and the buffer that all of them are read into."""

    def __init__(self, loop: asyncio.AbstractEventLoop, make: Callable[[], Readiness]) -> None:
        self.loop = loop
        self.buffer = bytearray(READ_SIZE)
        self._make = make
        self._ready: Readiness | None = None
        self._wires: dict[int, Wire] = {}

    def start(self) -> None:
        """See that wires are looked after from now on. May be called more than once.

        Raises OSError if the system has no descriptor for it.
        """
        if self._ready is None:
            self._ready = self._make()
            self.loop.add_reader(self._ready.fileno(), self._work)

    def close(self) -> None:
        """Look after them no more: there are none. May be called more than once, and without a start."""
        if self._ready is not None:
            self.loop.remove_reader(self._ready.fileno())
            self._ready.close()
            self._ready = None

    def watch(self, number: int, wire: Wire, before: int, wanted: int) -> None:
        """Have ``wire.on_ready`` called for other events of its descriptor than before. Raises OSError."""
        assert self._ready is not None
        if not wanted:
            del self._wires[number]
            self._ready.unregister(number)
        elif before:
            self._ready.modify(number, wanted)
        else:
            self._ready.register(number, wanted)
            self._wires[number] = wire

    def _work(self) -> None:
        assert self._ready is not None
        for number, _ in self._ready.poll(0, READ_BURST):
            wire = self._wires.get(number)
            if wire is not None:  # else another one of this burst has had it closed
                wire.on_ready()


class Wire:
    """One connection in clear: what its ``Talker`` uses as it would an ``asyncio.Transport``.

    ``number`` is the descriptor of its socket, which does not block; the wire closes it. Raises OSError if the system
    cannot watch it; then it is still open.
    """

    __slots__ = (
        "_closing", "_ending", "_events", "_full", "_number", "_reading", "_talker", "_unsent", "_wires",
    )  # fmt: skip

    def __init__(self, wires: Wires, number: int, talker: Talker) -> None:
        self._wires = wires
        self._number = number
        self._talker: Talker | None = talker
        """None when it is over."""
        self._events = READABLE
        """What it is watched for."""
        self._unsent = b""
        self._reading = True
        self._full = False
        self._ending = False
        self._closing = False
        wires.watch(number, self, 0, READABLE)

    # What the system has to say.

    def on_ready(self) -> None:
        """Read and write, as far as it is wanted and possible. A broken connection is found by the attempt."""
        try:
            if self._reading:
                self._receive()
            if self._unsent:
                self._send_on()
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # as the loops do with what a protocol raises: the others have their turn
            self._wires.loop.call_exception_handler({"message": "a connection failed", "exception": error})
            self.abort()

    def _receive(self) -> None:
        talker = self._talker
        assert talker is not None
        try:
            data = receive(self._number, self._wires.buffer)
        except OSError as error:
            self._end(error)
            return
        if data:
            talker.data_received(data)
        elif data is not None:
            if talker.eof_received():
                self.pause_reading()
            else:
                self.close()

    def _send_on(self) -> None:
        try:
            sent = send(self._number, self._unsent)
        except OSError as error:
            self._end(error)
            return
        self._unsent = self._unsent[sent:]
        if not self._unsent:
            if self._closing:
                self._end(None)
                return
            self._watch()
            if self._ending:
                self._shut_down()
        talker = self._talker
        if self._full and talker is not None and len(self._unsent) <= FEW_UNSENT:
            self._full = False
            talker.resume_writing()

    # What the talker asks for.

    def write(self, data: bytes) -> None:
        """Send the octets, as soon as the client takes them; nothing if it is closed."""
        if self._closing or self._talker is None:
            return
        if not self._unsent:
            try:
                sent = send(self._number, data)
            except OSError as error:
                self._end(error)
                return
            if sent == len(data):
                return
            data = data[sent:]
        self._unsent += data
        self._watch()  # which may end it, and then nothing is left
        if len(self._unsent) > MAX_UNSENT and not self._full:
            self._full = True
            self._talker.pause_writing()

    def write_eof(self) -> None:
        """Say that nothing follows, after what is to be sent. What comes is still read."""
        self._ending = True
        if not self._unsent:
            self._shut_down()

    def is_closing(self) -> bool:
        """Tell whether it is closed, or will be when all is sent."""
        return self._closing or self._talker is None

    def get_write_buffer_size(self) -> int:
        """Return how many octets the system has not taken yet."""
        return len(self._unsent)

    def close(self) -> None:
        """Read no more, and close it when all is sent."""
        self._closing = True
        self._reading = False
        if self._unsent:
            self._watch()
        else:
            self._end(None)

    def abort(self) -> None:
        """Close it now."""
        self._end(None)

    def pause_reading(self) -> None:
        """Read no more."""
        self._reading = False
        self._watch()

    def resume_reading(self) -> None:
        """Read on."""
        self._reading = not self._closing
        self._watch()

    def detach(self) -> tuple[socket.socket, bytes]:
        """Give its socket away, and what is still to be sent. It is over then, and nobody is told.

        Raises OSError if the system makes no socket of it; then nothing has changed.
        """
        connected = socket_of(self._number)
        unsent, self._unsent = self._unsent, b""
        self._leave()
        return connected, unsent

    # Its inside.

    def _watch(self) -> None:
        """Be told what we want to know, and nothing else: it would be told again in each turn."""
        wanted = (READABLE if self._reading else 0) | (WRITABLE if self._unsent else 0)
        if wanted != self._events and self._talker is not None:
            try:
                self._wires.watch(self._number, self, self._events, wanted)
            except OSError as error:  # it has no memory for it
                self._end(error)
            else:
                self._events = wanted

    def _leave(self) -> None:
        self._talker = None
        if self._events:
            self._wires.watch(self._number, self, self._events, 0)
            self._events = 0

    def _shut_down(self) -> None:
        if self._talker is not None:
            with contextlib.suppress(OSError):  # it is broken, which is found by reading
                connected = socket_of(self._number)
                try:
                    connected.shutdown(socket.SHUT_WR)
                finally:
                    connected.detach()

    def _end(self, error: Exception | None) -> None:
        talker = self._talker
        if talker is None:
            return
        self._unsent = b""
        self._leave()
        os.close(self._number)
        self._wires.loop.call_soon(talker.connection_lost, error)
