"""The turn: what is put in it leaves at the end of the turn, or when it is told to."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from guerrilla.log_records import Lines, Output
from guerrilla.server.turn import Turn


@dataclass
class Doing:
    """A job that is a call."""

    go_on: Callable[[], None]


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
    turn = Turn(asyncio.get_running_loop(), Lines())
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
    turn = Turn(asyncio.get_running_loop(), Lines())
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

    turn = Turn(loop, Lines())
    turn.do(Doing(fail))
    turn.do(Doing(done.set))
    await done.wait()
    assert told == [error]


class Looking(asyncio.Transport):
    """Sees what is in a file whenever something is sent."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self.seen: list[bytes] = []

    def is_closing(self) -> bool:
        return False

    def write(self, data: object) -> None:
        self.seen.append(self._path.read_bytes())


async def test_lines_of_the_log_are_written_once_and_no_reply_is_ahead_of_its_own(tmp_path: Path) -> None:
    output = Output(str(tmp_path / "log"))
    transport = Looking(tmp_path / "log")
    lines = Lines()
    turn = Turn(asyncio.get_running_loop(), lines)

    def answer(line: bytes) -> None:
        lines.put(output, line)
        turn.put(transport, b"250 OK\r\n")

    def answer_and_close() -> None:
        answer(b"3\n")
        turn.send()

    answer(b"0\n")  # on a callback of the loop's own
    for line in (b"1\n", b"2\n"):
        turn.do(Doing(partial(answer, line)))
    turn.do(Doing(answer_and_close))
    turn.do(Doing(partial(answer, b"4\n")))
    turn.work()
    assert transport.seen == [b"0\n1\n2\n3\n"] * 4 + [b"0\n1\n2\n3\n4\n"]
    answer(b"5\n")
    assert (tmp_path / "log").read_bytes() == b"0\n1\n2\n3\n4\n5\n"
    output.close()


async def test_an_interrupt_leaves_no_line_of_the_log_behind(tmp_path: Path) -> None:
    output = Output(str(tmp_path / "log"))

    def interrupt() -> None:
        lines.put(output, b"1\n")
        raise KeyboardInterrupt

    lines = Lines()
    turn = Turn(asyncio.get_running_loop(), lines)
    turn.do(Doing(interrupt))
    with pytest.raises(KeyboardInterrupt):
        turn.work()
    assert (tmp_path / "log").read_bytes() == b"1\n"
    output.close()


async def test_an_interrupt_in_a_task_ends_the_program() -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    turn = Turn(asyncio.get_running_loop(), Lines())
    turn.do(Doing(interrupt))
    with pytest.raises(KeyboardInterrupt):
        turn.work()


def test_after_an_interrupt_the_others_have_their_turn_when_the_loop_is_run_again(tmp_path: Path) -> None:
    """As it is to shut down: what was kept by then is told, and what was said is sent."""
    (tmp_path / "log").touch()
    transport = Looking(tmp_path / "log")
    told: list[str] = []

    def interrupt() -> None:
        turn.put(transport, b"250 OK\r\n")
        turn.do(Doing(partial(told.append, "next")))
        raise KeyboardInterrupt

    loop = asyncio.new_event_loop()
    turn = Turn(loop, Lines())
    turn.do(Doing(interrupt))
    turn.do(Doing(partial(told.append, "other")))
    with pytest.raises(KeyboardInterrupt):
        loop.run_forever()
    assert told == []
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()
    assert told == ["other", "next"]
    assert transport.seen == [b""]
