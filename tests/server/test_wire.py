"""A connection in clear: what has come is told of, what is said is sent, and the end is told of once."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field

import pytest

from guerrilla.server.readiness import OfSelector, Readiness, readiness
from guerrilla.server.wire import FEW_UNSENT, MAX_UNSENT, Wire, Wires

MUCH = bytes(range(256)) * 16384
"""More than the system takes at once."""


@dataclass
class Talker:
    """Writes down what it is told. ``on_data`` is what it does with octets, ``keeps`` whether it keeps the wire."""

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


class Counting:
    """Passes all on, and counts how often it was asked who is ready. ``full`` is what the system says to a register."""

    def __init__(self, ready: Readiness) -> None:
        self.polls = 0
        self.full: OSError | None = None
        self._ready = ready
        self.fileno: Callable[[], int] = ready.fileno
        self.modify: Callable[[int, int], None] = ready.modify
        self.unregister: Callable[[int], None] = ready.unregister
        self.close: Callable[[], None] = ready.close

    def register(self, descriptor: int, events: int, /) -> None:
        if self.full is not None:
            raise self.full
        self._ready.register(descriptor, events)

    def poll(self, seconds: float, most: int, /) -> list[tuple[int, int]]:
        self.polls += 1
        return self._ready.poll(seconds, most)


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
def ready(request: pytest.FixtureRequest) -> Counting:
    return Counting(request.param())


@pytest.fixture
async def connect(ready: Counting) -> AsyncIterator[Connect]:
    wires = Wires(asyncio.get_running_loop(), lambda: ready)
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
    waiting = len(end.wire._unsent)
    assert waiting > MAX_UNSENT
    end.wire.write(b"more")
    assert len(end.wire._unsent) == waiting + 4
    assert end.talker.told == ["pause"]
    assert await end.read(len(MUCH) + 4) == MUCH + b"more"
    end.far.send(b"thanks")
    await end.talker.came.wait()
    assert end.talker.told == ["pause", "resume", b"thanks"]
    assert len(end.wire._unsent) == 0


async def test_the_talker_may_talk_again_when_little_is_left(connect: Connect) -> None:
    left: list[int] = []
    talker = Talker()
    talker.resume_writing = lambda: left.append(len(end.wire._unsent))  # type: ignore[method-assign]
    end = connect(talker)
    end.wire.write(MUCH)
    assert await end.read(len(MUCH)) == MUCH
    assert len(left) == 1
    assert left[0] <= FEW_UNSENT


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
    assert len(end.wire._unsent) == 0


@pytest.mark.parametrize("unsent", [b"", MUCH], ids=["all sent", "some left"])
async def test_our_end_comes_after_what_is_to_be_sent_and_the_client_is_still_heard(
    connect: Connect, unsent: bytes
) -> None:
    end = connect(Talker())
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


async def test_who_has_said_all_is_not_asked_about_again(connect: Connect, ready: Counting) -> None:
    end = connect(Talker(keeps=True))
    end.far.shutdown(socket.SHUT_WR)
    await end.talker.came.wait()
    polls = ready.polls
    for _ in range(5):
        await asyncio.sleep(0)
    assert ready.polls == polls


async def test_a_wire_that_is_closed_while_something_is_to_be_sent_reads_no_more(connect: Connect) -> None:
    end = connect(Talker())
    end.wire.write(MUCH)
    end.wire.close()
    end.wire.resume_reading()
    end.far.send(b"too late")
    with contextlib.suppress(ConnectionResetError):  # since it was not read
        await end.read(len(MUCH))
    await end.talker.lost.wait()
    assert end.talker.told == ["pause", type(None)]


async def test_all_who_are_ready_are_read_from_in_one_turn(connect: Connect, ready: Counting) -> None:
    ends = [connect(Talker()) for _ in range(9)]
    for end in ends:
        end.far.send(b"hello")
    for end in ends:
        await end.talker.came.wait()
    assert ready.polls == 1


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


async def test_a_wire_that_cannot_be_watched_any_more_is_lost(connect: Connect, ready: Counting) -> None:
    end, other = connect(Talker()), connect(Talker())
    end.wire.pause_reading()
    ready.full = OSError(errno.ENOMEM, "no memory")
    end.wire.write(MUCH)
    other.wire.write(b"hello")
    assert other.far.recv(100) == b"hello"
    await end.talker.lost.wait()
    assert end.talker.told == [OSError]


async def test_what_is_to_be_sent_when_a_socket_is_given_away_is_not_sent_as_well(connect: Connect) -> None:
    given: list[tuple[socket.socket, bytes]] = []
    end = connect(Talker(on_data=lambda _: given.append(end.wire.detach())))
    end.wire.write(MUCH)
    there = len(MUCH) - len(end.wire._unsent)
    end.far.setblocking(True)
    assert end.far.recv(there, socket.MSG_WAITALL) == MUCH[:there]  # so it can be written to again
    end.far.send(b"hello")
    end.far.setblocking(False)
    await end.talker.came.wait()
    ((connected, unsent),) = given
    connected.close()
    assert unsent == MUCH[there:]
    assert await end.read(1) == b""


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
    loop: asyncio.AbstractEventLoop, ready: Counting
) -> None:
    def interrupt(_: bytes) -> None:
        raise KeyboardInterrupt

    wires = Wires(loop, lambda: ready)
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


def test_a_descriptor_that_cannot_be_watched_is_left_open(loop: asyncio.AbstractEventLoop, ready: Counting) -> None:
    wires = Wires(loop, lambda: ready)
    wires.start()
    number = os.open(__file__, os.O_RDONLY)  # always readable: epoll does not watch files
    with pytest.raises(OSError):
        Wire(wires, number, Talker())
    os.close(number)
    wires.close()


def test_wires_that_had_no_descriptor_are_started_when_there_is_one(
    loop: asyncio.AbstractEventLoop, ready: Counting
) -> None:
    made = iter([None, ready])

    def make() -> Readiness:
        if (found := next(made)) is None:
            raise OSError(errno.EMFILE, "too many open files")
        return found

    wires = Wires(loop, make)
    with pytest.raises(OSError):
        wires.start()
    wires.close()
    wires.start()
    wires.start()
    wires.close()
    assert next(made, "no more") == "no more"
