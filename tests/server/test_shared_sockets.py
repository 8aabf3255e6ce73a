"""Processes that accept from the same sockets: who has more than its share leaves the next to the others."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from guerrilla.counters import Counters
from guerrilla.event_bus import EventBus
from guerrilla.server.listener import Server
from guerrilla.server.shared_limits import Board, SharedClients
from guerrilla.server.sockets import open_sockets
from guerrilla.server.witness import Witness

if TYPE_CHECKING:
    from tests.server.conftest import House, HouseMaker

Share = Callable[[], Awaitable["House"]]


@pytest.fixture
def board() -> Board:
    return Board(slots=3, servers=1)


@pytest.fixture
def others(board: Board) -> SharedClients:
    """Another process that accepts, and has no connection yet."""
    clients = board.clients(1, 0, 100, 0)
    clients.accept(True)
    return clients


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    """The shared socket, as the other process has it."""
    (opened,) = open_sockets("127.0.0.1", 0)
    with opened:
        yield opened


@pytest.fixture
def share(serve: HouseMaker, board: Board, listening: socket.socket) -> Share:
    """Start a server on the shared socket, as the process of slot 0."""

    async def start() -> House:
        house = serve()
        await house.server.close()
        house.server = Server(
            house.server.policy,
            [listening.dup()],
            Witness(Counters(), EventBus()),
            clients=board.clients(0, 0, 100, 0),
        )
        house.server.start()
        return house

    return start


async def test_who_has_more_than_its_share_leaves_the_next_to_the_others(
    share: Share, others: SharedClients, listening: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("guerrilla.server.listener.COURTESY", 60.0)
    house = await share()
    first, *_ = [await house.greeted() for _ in range(3)]
    last = await house.connect()
    await first.say("NOOP")  # the loop has looked at all sockets meanwhile
    assert len(house.server.connections) == 3
    loop = asyncio.get_running_loop()
    assert not loop.remove_reader(house.server._sockets[0].fileno()), "it would look again and again meanwhile"
    taken, peer = await loop.sock_accept(listening)
    taken.close()
    assert peer == last.sock.getsockname()


async def test_what_the_others_leave_is_taken_all_the_same(share: Share, others: SharedClients) -> None:
    house = await share()
    for client in [await house.connect() for _ in range(10)]:
        assert (await client.reply()).startswith("220")


async def test_a_process_that_accepts_alone_waits_for_nobody(
    share: Share, others: SharedClients, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("guerrilla.server.listener.COURTESY", 60.0)
    others.accept(False)
    house = await share()
    for client in [await house.connect() for _ in range(10)]:
        assert (await client.reply()).startswith("220")


async def test_a_server_counts_as_one_that_accepts_until_it_stops(share: Share, others: SharedClients) -> None:
    for _ in range(3):
        others.enter("192.0.2.1")
    assert not others.ahead()
    house = await share()
    assert others.ahead()
    house.server.stop_accepting()
    assert not others.ahead()


async def test_the_end_of_a_server_that_has_just_left_one_to_the_others_is_quiet(
    share: Share, others: SharedClients, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("guerrilla.server.listener.COURTESY", 0.01)
    house = await share()
    first, *_ = [await house.greeted() for _ in range(3)]
    await house.connect()
    await first.say("NOOP")
    await house.server.close()
    await asyncio.sleep(0.02)  # until its turn would have come
    assert [record["event"] for record in house.log if record["event"] == "cannot accept connections"] == []


@pytest.mark.parametrize("all_end", [True, False])
async def test_who_was_left_to_the_others_is_told_421_when_they_end_too_and_left_to_them_else(
    share: Share,
    board: Board,
    others: SharedClients,
    listening: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
    all_end: bool,
) -> None:
    monkeypatch.setattr("guerrilla.server.listener.COURTESY", 60.0)
    house = await share()
    first, *_ = [await house.greeted() for _ in range(3)]
    last = await house.connect()
    await first.say("NOOP")  # the loop has looked at all sockets meanwhile
    if all_end:
        board.end(0)
    draining = asyncio.create_task(house.server.drain())
    assert (await first.reply()).startswith("421")
    if all_end:
        assert [(await last.reply())[:3] for _ in range(2)] == ["220", "421"]
    await draining
    with contextlib.ExitStack() as given:
        if all_end:
            given.enter_context(pytest.raises(BlockingIOError))
        listening.accept()[0].close()
