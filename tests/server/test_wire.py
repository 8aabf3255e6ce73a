"""A connection in clear: what has come is told of, what is said is sent, and the end is told of once."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field

import pytest

from guerrilla.server.readiness import OfSelector, Readiness, readiness
from guerrilla.server.wire import MAX_UNSENT, Wire, Wires

MUCH = bytes(range(256)) * 16384
"""More than the system takes at once."""


@dataclass
class Talker:
    """Writes down what it is told. ``on_data`` is what it does with octets, ``on_end`` whether it keeps the wire."""

    on_data: Callable[[bytes], object] = lambda data: None
    keeps: bool = False
    told: list[object] = field(default_factory=list)
    lost: asyncio.Event = field(default_factory=asyncio.Event)
    came: asyncio.Event = field(default_factory=asyncio.Event)

    def data_received(self, data: bytes) -> None:
        self.told.append(data)
        self.came.set()
        self.on_data(data)

    def eof_received(self) -> bool:
        self.told.append("eof")
        self.came.set()
        return self.keeps

    def pause_writing(self) -> None:
        self.told.append("pause")

    def resume_writing(self) -> None:
        self.told.append("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.told.append(type(exc))
        self.lost.set()


@dataclass
class End:
    """The far end of a wire."""

    wire: Wire
    talker: Talker
    far: socket.socket

    async def read(self, count: int) -> bytes:
        """Read so many octets, or up to the end."""
        loop = asyncio.get_running_loop()
        octets = b""
        while len(octets) < count and (more := await loop.sock_recv(self.far, count - len(octets))):
            octets += more
        return octets


Connect = Callable[[Talker], End]


@pytest.fixture(params=[readiness, OfSelector], ids=["best", "selector"])
def ready(request: pytest.FixtureRequest) -> Readiness:
    made: Readiness = request.param()
    return made


@pytest.fixture
async def connect(ready: Readiness) -> AsyncIterator[Connect]:
    wires = Wires(asyncio.get_running_loop(), ready)
    wires.start()
    ends: list[End] = []

    def connect(talker: Talker) -> End:
        ours, far = socket.socketpair()
        ours.setblocking(False)
        far.setblocking(False)
        ends.append(End(Wire(wires, ours.detach(), talker), talker, far))
        return ends[-1]

    yield connect
    for end in ends:
        end.wire.abort()
        end.far.close()
    wires.close()
    wires.close()


async def test_what_comes_is_told_and_what_is_written_is_sent(connect: Connect) -> None:
    end = connect(Talker())
    end.far.send(b"EHLO there\r\n")
    await end.talker.came.wait()
    end.wire.write(b"250 ")
    end.wire.write(b"OK\r\n")
    assert end.far.recv(100) == b"250 OK\r\n"
    assert end.talker.told == [b"EHLO there\r\n"]


async def test_what_the_client_does_not_take_waits_for_it_and_the_talker_is_told(connect: Connect) -> None:
    end = connect(Talker())
    end.wire.write(MUCH)
    waiting = end.wire.get_write_buffer_size()
    assert waiting > MAX_UNSENT
    end.wire.write(b"more")
    assert end.wire.get_write_buffer_size() == waiting + 4
    assert end.talker.told == ["pause"]
    assert await end.read(len(MUCH) + 4) == MUCH + b"more"
    end.far.send(b"thanks")
    await end.talker.came.wait()
    assert end.talker.told == ["pause", "resume", b"thanks"]
    assert end.wire.get_write_buffer_size() == 0


async def test_a_closed_wire_sends_what_is_left_and_then_it_is_over(connect: Connect) -> None:
    end = connect(Talker())
    end.wire.write(MUCH)
    end.wire.close()
    end.wire.close()
    end.wire.resume_reading()
    end.wire.write(b"never sent")
    assert end.wire.is_closing()
    assert await end.read(len(MUCH) + 1) == MUCH
    await end.talker.lost.wait()
    assert end.talker.told == ["pause", type(None)]


async def test_the_end_is_told_of_once_and_not_while_a_method_runs(connect: Connect) -> None:
    end = connect(Talker())
    end.wire.close()
    end.wire.abort()
    assert end.talker.told == []
    await end.talker.lost.wait()
    end.wire.close()
    end.wire.write_eof()
    end.wire.pause_reading()
    end.wire.write(b"goes nowhere")
    await asyncio.sleep(0)
    assert end.talker.told == [type(None)]
    assert end.far.recv(100) == b""


async def test_an_aborted_wire_sends_nothing_more(connect: Connect) -> None:
    end = connect(Talker())
    end.wire.write(MUCH)
    end.wire.abort()
    await end.talker.lost.wait()
    assert 0 < len(await end.read(len(MUCH))) < len(MUCH)
    assert end.wire.get_write_buffer_size() == 0


@pytest.mark.parametrize("unsent", [b"", MUCH], ids=["all sent", "some left"])
async def test_our_end_comes_after_what_is_to_be_sent_and_the_client_is_still_heard(
    connect: Connect, unsent: bytes
) -> None:
    end = connect(Talker())
    assert end.wire.can_write_eof()
    end.wire.write(unsent)
    end.wire.write_eof()
    assert await end.read(len(unsent) + 1) == unsent
    end.far.send(b"I hear")
    await end.talker.came.wait()
    assert end.talker.told[-1] == b"I hear"


@pytest.mark.parametrize("keeps", [False, True])
async def test_after_the_end_of_its_client_a_wire_is_closed_unless_there_is_something_to_say(
    connect: Connect, keeps: bool
) -> None:
    end = connect(Talker(keeps=keeps))
    end.far.shutdown(socket.SHUT_WR)
    await end.talker.came.wait()
    assert end.wire.is_closing() is not keeps
    end.wire.write(b"421 bye\r\n")
    assert await end.read(9) == (b"421 bye\r\n" if keeps else b"")


async def test_nothing_is_read_while_reading_is_paused(connect: Connect) -> None:
    end, other = connect(Talker()), connect(Talker())
    end.wire.pause_reading()
    for each in (end, other):
        each.far.send(b"hello")
    await other.talker.came.wait()
    assert end.talker.told == []
    end.wire.resume_reading()
    await end.talker.came.wait()
    assert end.talker.told == [b"hello"]


async def test_a_broken_connection_is_found_by_writing(connect: Connect) -> None:
    end = connect(Talker())
    end.wire.pause_reading()
    end.far.close()
    end.wire.write(b"250 OK\r\n")
    assert end.wire.is_closing()
    await end.talker.lost.wait()
    assert end.talker.told == [BrokenPipeError]


@pytest.mark.parametrize("reads", [False, True])
async def test_a_connection_that_breaks_while_something_is_to_be_sent_is_lost(connect: Connect, reads: bool) -> None:
    end = connect(Talker())
    if not reads:
        end.wire.pause_reading()
    end.wire.write(MUCH)
    end.far.close()  # with octets that were not read: a reset
    await end.talker.lost.wait()
    assert end.talker.told[0] == "pause"
    assert issubclass(end.talker.told[-1], ConnectionError)  # type: ignore[arg-type]


async def test_a_talker_that_fails_is_cut_off_and_the_others_are_served(connect: Connect) -> None:
    loop = asyncio.get_running_loop()
    told: list[object] = []
    loop.set_exception_handler(lambda _, context: told.append(context["exception"]))
    error = asyncio.CancelledError()

    def fail(_: bytes) -> None:
        raise error

    ends = [connect(Talker()), connect(Talker(on_data=fail)), connect(Talker())]
    for end in ends:
        end.far.send(b"hello")
    for end in ends:
        await end.talker.came.wait()
    await ends[1].talker.lost.wait()
    assert told == [error]
    assert [end.wire.is_closing() for end in ends] == [False, True, False]


async def test_a_wire_that_another_has_cut_in_the_same_burst_is_not_read(connect: Connect) -> None:
    ends: list[End] = []

    def cut(_: bytes) -> None:
        for end in ends:
            end.wire.abort()

    ends += [connect(Talker(on_data=cut)) for _ in range(3)]
    for end in ends:
        end.far.send(b"hello")
    for end in ends:
        await end.talker.lost.wait()
    assert sorted(str(end.talker.told) for end in ends) == sorted(
        [str([b"hello", type(None)]), str([type(None)]), str([type(None)])]
    )


async def test_a_socket_that_is_given_away_is_open_and_nothing_is_told_any_more(connect: Connect) -> None:
    end = connect(Talker())
    end.wire.write(MUCH)
    connected, unsent = end.wire.detach()
    with connected:
        sent = len(MUCH) - len(unsent)
        assert await end.read(sent) == MUCH[:sent]
        end.far.send(b"hello")
        assert connected.gettimeout() == 0
        assert connected.recv(5) == b"hello"
    end.wire.close()
    end.wire.abort()
    await asyncio.sleep(0)
    assert end.talker.told == ["pause"]


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.close()


def test_an_interrupt_ends_the_program_and_the_others_are_read_when_the_loop_is_run_again(
    loop: asyncio.AbstractEventLoop, ready: Readiness
) -> None:
    def interrupt(_: bytes) -> None:
        raise KeyboardInterrupt

    wires = Wires(loop, ready)
    wires.start()
    talkers = [Talker(on_data=interrupt) for _ in range(3)]
    made = []
    for talker in talkers:
        ours, far = socket.socketpair()
        ours.setblocking(False)
        far.send(b"hello")
        made.append((Wire(wires, ours.detach(), talker), far))
    for _ in talkers:
        with pytest.raises(KeyboardInterrupt):
            loop.run_forever()
    assert [talker.told for talker in talkers] == [[b"hello"]] * 3
    for wire, far in made:
        wire.abort()
        far.close()
    wires.close()


def test_a_descriptor_that_cannot_be_watched_is_left_open(loop: asyncio.AbstractEventLoop, ready: Readiness) -> None:
    wires = Wires(loop, ready)
    number = os.open(__file__, os.O_RDONLY)  # always readable: epoll does not watch files
    with pytest.raises(OSError):
        Wire(wires, number, Talker())
    os.close(number)
    wires.close()
