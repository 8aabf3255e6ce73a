"""Several processes that share their sockets: one dies, all are replaced, limits hold over all of them."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import statistics
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.e2e.observed import PATIENCE_SECONDS, children, client_ports, descriptors, is_halted, sockets, until
from tests.e2e.production import Client, config
from tests.e2e.steady import DIALOGUE, Steady
from tests.e2e.test_kill import hold_to_its_answers
from tests.private_servers.process import free_port

from guerrilla.control import ask

if TYPE_CHECKING:
    from tests.e2e.conftest import Launch, RunningDaemon

CONNECTIONS: Final = 20
KILLS: Final = 20
WAITING: Final = 300
"""Clients that no process has accepted: more than one accepts at once."""


def events(folder: Path, event: str) -> list[dict[str, Any]]:
    """Return the records of an event in the log."""
    lines = (folder / "guerrillad.log").read_text().splitlines()
    return [json.loads(line) for line in lines if f'"{event}"' in line]


async def halt(pid: int) -> None:
    """Let a process accept no more, and hold what it has."""
    os.kill(pid, signal.SIGSTOP)
    await until(lambda: is_halted(pid), "the process is halted")


async def reload(daemon: RunningDaemon, values: dict[str, Any]) -> None:
    """Let another configuration hold, as ``guerrillad reload`` does; return when the processes that were have gone."""
    old = set(children(daemon.process.pid))
    (daemon.folder / "conf.json").write_text(json.dumps(values))
    answer = await asyncio.to_thread(ask, daemon.folder / "control", "reload", PATIENCE_SECONDS)
    assert answer["ok"], answer
    await until(lambda: old.isdisjoint(children(daemon.process.pid)), "the old ones have gone")


async def another(daemon: RunningDaemon, before: list[int]) -> int:
    """Return the process that has come to those that were there before."""
    await until(lambda: not set(children(daemon.process.pid)) <= set(before), "there is a new process")
    [new] = set(children(daemon.process.pid)) - set(before)
    return new


def serves(pid: int, port: int) -> bool:
    """Tell whether it is this process that a new client is greeted by."""
    with Client(port) as client:
        client.hears("220")
        mine = client.port in client_ports(pid, port)
        client.says(b"QUIT\r\n", "221", "")
    return mine


async def test_kill_9_of_one_of_four_costs_only_its_own_connections_and_a_new_one_accepts_within_a_second(
    launch: Launch, tmp_path: Path
) -> None:
    daemon = launch(tmp_path, config(processes=4))
    [port] = daemon.ports
    load = Steady(port, CONNECTIONS)
    victims: set[int] = set()
    seconds = []
    async with load.running(4 * PATIENCE_SECONDS):
        for number in range(KILLS):
            before = children(daemon.process.pid)
            pid = before[-(number % 2)]  # by turns the oldest, and the one that has only just begun
            await halt(pid)
            victims |= client_ports(pid, port)
            killed = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            new = await another(daemon, before)
            await until(lambda new=new: serves(new, port), "the new one accepts")  # type: ignore[misc]
            seconds.append(time.monotonic() - killed)
            await load.more(CONNECTIONS)
        assert len(children(daemon.process.pid)) == 4
    assert load.codes.keys() <= DIALOGUE, load.codes
    assert (load.refused, load.farewells) == ([], 0)
    assert set(load.cut) <= victims, "somebody else's connection was cut"
    assert daemon.stop() == 0, daemon.errors
    assert [(each["exit"], each["pause"]) for each in events(tmp_path, "a process has ended")] == (
        [("killed by SIGKILL", 0.0)] * KILLS
    )
    assert statistics.median(seconds) < 1.0, seconds  # what else the machine does may delay some of them
    hold_to_its_answers(load, tmp_path)


async def test_a_process_that_cannot_start_is_tried_again_after_pauses_that_grow(
    launch: Launch, tmp_path: Path
) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    daemon = launch(tmp_path, config(processes=2, spool_path=str(spool)))
    shutil.rmtree(spool)
    old, _ = children(daemon.process.pid)
    os.kill(old, signal.SIGKILL)
    await until(lambda: len(events(tmp_path, "a process has ended")) == 4, "it was tried three times")
    spool.mkdir()
    await until(lambda: len(children(daemon.process.pid)) == 2, "it is replaced")
    await until(lambda: serves(children(daemon.process.pid)[-1], daemon.ports[0]), "the new one accepts")
    assert daemon.stop() == 0, daemon.errors
    killed, *failed = events(tmp_path, "a process has ended")
    assert killed["pause"] == 0.0
    assert [(each["exit"], each["pause"]) for each in failed] == [("exit code 1", pause) for pause in (0.1, 0.2, 0.4)]
    assert "spool_path" in failed[0]["cause"]


async def test_max_clients_holds_over_all_processes_also_across_a_reload_and_a_death(
    launch: Launch, tmp_path: Path
) -> None:
    values = config(processes=2)
    [server] = values["servers"]
    server["max_clients"] = 7
    daemon = launch(tmp_path, values)
    [port] = daemon.ports

    async def codes(stack: ExitStack, turns: dict[int, int]) -> Counter[str]:
        """Let so many clients come while a process is halted, so that the other one takes them."""
        told: Counter[str] = Counter()
        for pid, count in turns.items():
            await halt(pid)
            clients = [stack.enter_context(Client(port)) for _ in range(count)]
            told.update(client.code() for client in clients)
            os.kill(pid, signal.SIGCONT)
        return told

    one, other = children(daemon.process.pid)
    with ExitStack() as stack:
        assert await codes(stack, {one: 3, other: 9}) == {"220": 7, "421": 5}
        os.kill(other, signal.SIGKILL)  # the first three have been its clients
        await another(daemon, [one, other])
        assert await codes(stack, {one: 5}) == {"220": 3, "421": 2}
    server["max_clients"] = 4
    await reload(daemon, values)
    with ExitStack() as stack:
        one, other = children(daemon.process.pid)
        assert await codes(stack, {one: 2, other: 6}) == {"220": 4, "421": 4}
    assert daemon.stop() == 0, daemon.errors


async def test_a_process_has_nothing_of_the_supervisor_but_the_listening_sockets_also_after_a_reload(
    launch: Launch, tmp_path: Path
) -> None:
    daemon = launch(tmp_path, config(processes=2))
    supervisor = daemon.process.pid
    counts = []
    for log in ("guerrillad.log", "b.log"):
        await until(lambda: all(len(sockets(pid) & sockets(supervisor)) == 1 for pid in children(supervisor)), "one")
        counts.append({len(sockets(pid)) for pid in children(supervisor)})
        await reload(daemon, config(processes=2, log_file=log, pid_file="b.pid"))
    assert counts[0] == counts[1], "a reload has left something open"
    assert (tmp_path / "b.pid").read_text() == f"{supervisor}\n"
    assert not (tmp_path / "guerrillad.pid").exists()
    for pid in (supervisor, *children(supervisor)):
        assert str(tmp_path / "guerrillad.log") not in descriptors(pid)
        assert str(tmp_path / "b.log") in descriptors(pid)
    assert daemon.stop() == 0, daemon.errors
    assert not (tmp_path / "b.pid").exists()


async def test_who_waits_at_a_server_that_a_reload_removes_is_told_421_and_not_reset(
    launch: Launch, tmp_path: Path
) -> None:
    removed = ("127.0.0.1", free_port())
    servers = [{"listen_interface": f"127.0.0.1:{port}"} for port in (0, removed[1])]
    daemon = launch(tmp_path, config(processes=2, servers=servers))
    old = children(daemon.process.pid)
    for pid in old:
        await halt(pid)
    with ExitStack() as opened:
        waiting = [opened.enter_context(socket.create_connection(removed, PATIENCE_SECONDS)) for _ in range(WAITING)]
        (tmp_path / "conf.json").write_text(json.dumps(config(processes=2, servers=servers[:1])))
        answer = await asyncio.to_thread(ask, daemon.folder / "control", "reload", PATIENCE_SECONDS)
        assert answer["ok"], answer
        for pid in old:
            os.kill(pid, signal.SIGCONT)
        for client in waiting:
            with client.makefile("rb") as replies:
                said = [line[:3] for line in await asyncio.to_thread(replies.readlines)]
            assert said[-1:] == [b"421"]
    assert daemon.stop() == 0, daemon.errors
