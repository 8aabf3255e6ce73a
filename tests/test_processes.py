"""The processes of a supervisor, with work that is nothing but to wait: rows, slots, and what ends them."""

from __future__ import annotations

import os
import selectors
import signal
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from structlog.testing import CapturingLogger
from structlog.typing import FilteringBoundLogger

from guerrilla.config import AppConfig, as_config
from guerrilla.generation import StartError, places
from guerrilla.processes import DRAIN, HURRY, Processes, Share

DEADLINE = 20.0


def configuration(*interfaces: str, **keys: Any) -> AppConfig:
    return as_config({"servers": [{"listen_interface": each} for each in interfaces], **keys})


class Multiplied:
    """The least of a daemon that can be multiplied."""

    def __init__(self, config: AppConfig) -> None:
        self.config = config
        self.told = CapturingLogger()
        self.log: FilteringBoundLogger = structlog.wrap_logger(
            self.told, wrapper_class=structlog.make_filtering_bound_logger(0), processors=[lambda *args: args[2]]
        )

    def open_sockets(self, config: AppConfig) -> None:
        """Have none."""

    def close_sockets(self, config: AppConfig | None) -> None:
        """Have none."""

    def reopen_logs(self) -> None:
        """Have none."""

    def watch(self) -> None:
        """Have nothing to watch."""

    def check(self, config: AppConfig) -> None:
        """Find nothing wrong."""


def obedient(share: Share, channel: socket.socket) -> int:
    """End when the supervisor says so."""
    channel.sendall(b'{"ready": true}\n')
    while (word := channel.recv(4096)) and DRAIN not in word:
        pass
    return 0


def stubborn(share: Share, channel: socket.socket) -> int:
    """End for nobody."""
    channel.sendall(b'{"ready": true}\n')
    while True:
        signal.pause()


class House:
    """A supervisor's end of it: it hears its processes, and nothing else."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.daemon = Multiplied(configuration("127.0.0.1:1"))
        self.processes = self.of(obedient)

    def of(self, work: Any, count: int = 1) -> Processes:
        self.processes = Processes(self.daemon, count, work, self.selector, self.selector.close)
        return self.processes

    def hear_until_ready(self) -> None:
        while not all(each.ready for each in self.processes.living):
            self.hear()

    def hear_until_gone(self) -> None:
        while self.processes.living:
            self.processes.kill_the_late()
            self.hear()

    def hear(self) -> None:
        found = self.selector.select(DEADLINE)
        assert found, "nobody says anything"
        for key, _ in found:
            key.data()


@pytest.fixture
def house() -> Iterator[House]:
    house = House()
    yield house
    for each in house.processes.living:
        os.kill(each.pid, signal.SIGKILL)
    house.hear_until_gone()
    house.selector.close()
    house.processes.stats.close()


def test_a_server_keeps_its_row_as_long_as_a_process_lives_that_has_it(house: House) -> None:
    processes = house.of(obedient)
    first = processes.spawn(configuration("127.0.0.1:1", "127.0.0.1:2"))
    second = processes.spawn(configuration("127.0.0.1:3", "127.0.0.1:2"))
    rows = first.share.numbers | second.share.numbers
    assert first.share.numbers["127.0.0.1:2", 0] == second.share.numbers["127.0.0.1:2", 0]
    assert len(set(rows.values())) == 3


def test_no_two_servers_share_a_row_however_many_come_and_go(house: House) -> None:
    processes = house.of(obedient)
    before = processes.spawn(configuration("127.0.0.1:1000"))
    for port in range(1001, 1001 + processes.board.servers):
        new = processes.spawn(configuration(f"127.0.0.1:{port}"))
        assert not set(new.share.numbers.values()) & set(before.share.numbers.values())
        processes.leave(before)
        while before in processes.living:
            house.hear()
        before = new


def test_more_servers_than_there_are_rows_are_an_error_that_names_the_key(house: House) -> None:
    processes = house.of(obedient)
    many = [f"127.0.0.1:{port}" for port in range(1, processes.board.servers + 1)]
    processes.spawn(configuration(*many))
    with pytest.raises(StartError, match=r"^servers: found 65 listening interfaces"):
        processes.spawn(configuration("127.0.0.1:1000"))
    assert len(processes.living) == 1


def test_there_are_rows_for_twice_the_servers_of_the_first_configuration(house: House) -> None:
    house.daemon.config = configuration(*[f"127.0.0.1:{port}" for port in range(1, 101)])
    assert house.of(obedient).board.servers == 200


def test_when_no_slot_is_free_another_process_is_refused_and_not_waited_for(house: House) -> None:
    processes = house.of(obedient)
    while processes.has_room:
        processes.spawn(house.daemon.config)
    with pytest.raises(StartError, match="8 processes already"):
        processes.spawn(house.daemon.config)


def test_a_process_that_cannot_be_forked_is_a_start_error_and_leaves_nothing_open(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fork() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    before = os.listdir("/proc/self/fd")
    monkeypatch.setattr(os, "fork", fork)
    with pytest.raises(StartError, match="cannot start a process: Resource temporarily unavailable"):
        house.processes.spawn(house.daemon.config)
    assert os.listdir("/proc/self/fd") == before
    assert house.processes.living == []


@pytest.mark.parametrize("hurried", [False, True])
def test_a_process_that_does_not_end_is_killed_after_a_while(
    house: House, monkeypatch: pytest.MonkeyPatch, hurried: bool
) -> None:
    monkeypatch.setattr("guerrilla.processes.PATIENCE", 3600.0 if hurried else 0.0)
    monkeypatch.setattr("guerrilla.processes.HURRIED", 0.0)
    processes = house.of(stubborn)
    process = processes.spawn(configuration("127.0.0.1:1", shutdown_timeout="0s" if not hurried else "60s"))
    house.hear_until_ready()
    if hurried:
        processes.hurry()
    else:
        processes.leave(process)
    house.hear_until_gone()
    told = [call.kwargs for call in house.daemon.told.calls]
    assert [each.get("exit") for each in told] == [None, "killed by SIGKILL"]


def test_one_that_leaves_and_one_that_hurries_is_told_so(house: House) -> None:
    def work(share: Share, channel: socket.socket) -> int:
        channel.sendall(b'{"ready": true}\n')
        heard = b""
        while HURRY not in heard:
            heard += channel.recv(4096)
        return 0 if DRAIN in heard and all(map(share.board.ends, share.numbers.values())) else 1

    processes = house.of(work)
    processes.spawn(house.daemon.config)
    house.hear_until_ready()
    processes.hurry()
    house.hear_until_gone()
    assert house.daemon.told.calls == [], "one that ends with 0 when it is told to is nothing to log"


def test_a_server_that_has_ended_and_begins_again_is_another_one_as_long_as_a_process_drains_the_first(
    house: House,
) -> None:
    processes = house.of(obedient, count=2)
    staying, ending = configuration("127.0.0.1:1"), configuration("127.0.0.1:2")
    board = processes.board
    first = processes.spawn(configuration("127.0.0.1:1", "127.0.0.1:2"))
    one, two = first.share.numbers.values()
    processes.end_servers(places(staying))
    assert (board.ends(one), board.ends(two)) == (False, True)
    [same] = processes.spawn(staying).share.numbers.values()
    [other] = processes.spawn(ending).share.numbers.values()
    assert same == one
    assert other not in (one, two)
    assert [board.ends(row) for row in (one, two, other)] == [False, True, False]
    house.hear_until_ready()
    processes.leave(first)
    while first in processes.living:
        house.hear()
    [again] = processes.spawn(configuration("127.0.0.1:3")).share.numbers.values()
    assert again == two
    assert not board.ends(two), "it is known of who had the row before, and not of who has it now"
