"""The turn: what is put in it leaves at the end of the turn, or when it is told to."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import pytest

from guerrilla.server.turn import Turn


class Ending(asyncio.Protocol):
    """Tells when its connection is lost."""

    def __init__(self) -> None:
        self.lost = asyncio.Event()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()


@dataclass
class Wire:
    """A connection, with a transport at our end and a socket at the other."""

    transport: asyncio.Transport
    ending: Ending
    far: socket.socket

    async def cut(self) -> None:
        self.transport.abort()
        await self.ending.lost.wait()


@pytest.fixture
async def connected() -> AsyncIterator[Callable[[], Awaitable[Wire]]]:
    wires: list[Wire] = []

    async def connect() -> Wire:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        wires.append(Wire(*await asyncio.get_running_loop().connect_accepted_socket(Ending, ours), theirs))
        return wires[-1]

    yield connect
    for wire in wires:
        await wire.cut()
        wire.far.close()


async def test_what_is_put_leaves_at_the_end_of_the_turn_in_its_order(
    connected: Callable[[], Awaitable[Wire]],
) -> None:
    wire = await connected()
    turn = Turn(asyncio.get_running_loop())
    turn.put(wire.transport, b"one ")
    turn.put(wire.transport, b"two")
    with pytest.raises(BlockingIOError):
        wire.far.recv(100)
    await asyncio.sleep(0)  # the turn
    assert wire.far.recv(100) == b"one two"


async def test_what_is_for_a_connection_that_was_cut_goes_nowhere_and_the_others_are_served(
    connected: Callable[[], Awaitable[Wire]],
) -> None:
    gone, there = await connected(), await connected()
    await gone.cut()
    turn = Turn(asyncio.get_running_loop())
    turn.put(gone.transport, b"nobody reads this")
    turn.put(there.transport, b"hello")
    turn.send()
    assert there.far.recv(100) == b"hello"


async def test_a_task_that_fails_leaves_the_others_their_turn() -> None:
    """The loop is told, as it is of a callback of its own that has failed."""
    loop = asyncio.get_running_loop()
    told: list[object] = []
    loop.set_exception_handler(lambda _, context: told.append(context["exception"]))
    error = asyncio.CancelledError()
    done = asyncio.Event()

    def fail() -> None:
        raise error

    turn = Turn(loop)
    turn.do(fail)
    turn.do(done.set)
    await done.wait()
    assert told == [error]


async def test_an_interrupt_in_a_task_ends_the_program() -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    turn = Turn(asyncio.get_running_loop())
    turn.do(interrupt)
    with pytest.raises(KeyboardInterrupt):
        turn.work()
