"""The supervisor of several processes in the middle of a reload, and at the end: it goes on with all of its duties."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from tests.e2e.observed import PATIENCE_SECONDS, children, sockets, until
from tests.e2e.production import SOON, Client, config
from tests.e2e.test_production_processes import events, halt, serves

from guerrilla.control import ask

if TYPE_CHECKING:
    from tests.e2e.conftest import KeyPair, Launch, RunningDaemon

GATE: Final = '''
import asyncio, os, pathlib
from guerrilla import Processor, ProcessorConfig
class Gate(Processor[ProcessorConfig]):
    """Lets nobody begin until there is a file: one for all, or one for the number of the process."""
    async def initialize(self):
        pathlib.Path(f"waits-{os.getpid()}").touch()
        number = len([*pathlib.Path().glob("waits-*")])
        while not os.path.exists("open") and not os.path.exists(f"open-{number}"):
            await asyncio.sleep(0.01)
'''

PROGRAM: Final = """
import json, os, sys
from guerrilla import Daemon
from guerrilla.events import Event
def note(event):
    with open("events", "a") as file:
        file.write(f"{os.getpid()} {event.topic}\\n")
daemon = Daemon()
daemon.set_config(daemon.load_config("conf.json"))
daemon.subscribe(Event, note)
daemon.run(lambda daemon: print(daemon.addresses[0][1][1], flush=True), control=True)
"""


def gated(**changes: Any) -> dict[str, Any]:
    """Return one whose processes cannot begin before there is a file."""
    return config(processes=2, backend_config={"save_process": "gate:Gate|HeadersParser|Debugger"}, **changes)


def launch_with_gate(launch: Launch, folder: Path) -> RunningDaemon:
    (folder / "gate.py").write_text(GATE)
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    return launch(folder, config(processes=2), prefix=["env", f"PYTHONPATH={path}"])


def begin(folder: Path, values: dict[str, Any]) -> asyncio.Task[dict[str, Any]]:
    """Ask for a reload, and return what will have the answer."""
    (folder / "conf.json").write_text(json.dumps(values))
    return asyncio.create_task(asyncio.to_thread(ask, folder / "control", "reload", PATIENCE_SECONDS))


async def so_many_wait(folder: Path, count: int) -> None:
    await until(lambda: len([*folder.glob("waits-*")]) == count, f"{count} new processes are about to begin")


def takes_mail_for(port: int, host: bytes) -> bool:
    """Tell whether a new client may send there; not one that a process has taken which then leaves."""
    with Client(port) as client:
        client.send(b"HELO a\r\nMAIL FROM:<>\r\nRCPT TO:<a@" + host + b">\r\n")
        return [client.code() for _ in range(4)] == ["220", "250", "250", "250"]


async def test_while_a_reload_waits_processes_that_die_are_replaced_and_the_control_socket_answers(
    launch: Launch, tmp_path: Path
) -> None:
    daemon = launch_with_gate(launch, tmp_path)
    supervisor, [port] = daemon.process.pid, daemon.ports
    reloading = begin(tmp_path, gated())
    await so_many_wait(tmp_path, 1)
    one, other, trial = children(supervisor)
    for pid in (one, other):
        os.kill(pid, signal.SIGKILL)
    await until(lambda: len(set(children(supervisor)) - {one, other, trial}) == 2, "both are replaced")
    fresh = set(children(supervisor)) - {trial}
    await until(lambda: all(serves(pid, port) for pid in fresh), "both accept")
    answer = await asyncio.to_thread(ask, tmp_path / "control", "stats", SOON)
    assert answer["ok"]
    assert not reloading.done()
    (tmp_path / "open").touch()
    assert (await reloading)["ok"]
    await until(lambda: fresh.isdisjoint(children(supervisor)), "those of before have gone")
    assert len(children(supervisor)) == 2
    assert trial in children(supervisor)
    assert daemon.stop() == 0, daemon.errors


async def test_one_that_dies_when_the_half_is_replaced_is_replaced_by_a_new_one_and_there_are_as_many_at_the_end(
    launch: Launch, tmp_path: Path
) -> None:
    daemon = launch_with_gate(launch, tmp_path)
    supervisor = daemon.process.pid
    _, other = children(supervisor)
    reloading = begin(tmp_path, gated())
    await so_many_wait(tmp_path, 1)
    (tmp_path / "open-1").touch()
    await so_many_wait(tmp_path, 2)
    os.kill(other, signal.SIGKILL)
    await so_many_wait(tmp_path, 3)
    (tmp_path / "open").touch()
    assert (await reloading)["ok"]
    await until(lambda: len(children(supervisor)) == 2, "there are two")
    assert {f"waits-{pid}" for pid in children(supervisor)} < {path.name for path in tmp_path.glob("waits-*")}
    assert daemon.stop() == 0, daemon.errors


async def test_a_reload_that_is_asked_for_during_another_one_comes_after_it(launch: Launch, tmp_path: Path) -> None:
    daemon = launch_with_gate(launch, tmp_path)
    first = begin(tmp_path, gated())
    await so_many_wait(tmp_path, 1)
    later = [begin(tmp_path, config(processes=2, allowed_hosts=["other.example"])) for _ in range(2)]
    daemon.process.send_signal(signal.SIGHUP)
    assert (await asyncio.to_thread(ask, tmp_path / "control", "stats", SOON))["ok"]
    assert not any(each.done() for each in (first, *later))
    (tmp_path / "open").touch()
    assert [(await each)["ok"] for each in (first, *later)] == [True] * 3
    await until(lambda: takes_mail_for(daemon.ports[0], b"other.example"), "the last one holds")
    assert daemon.stop() == 0, daemon.errors


async def test_sigterm_while_a_reload_waits_ends_all_and_says_so_to_who_asked(launch: Launch, tmp_path: Path) -> None:
    daemon = launch_with_gate(launch, tmp_path)
    reloading = begin(tmp_path, gated())
    await so_many_wait(tmp_path, 1)
    connections = sockets(daemon.process.pid)
    later = begin(tmp_path, gated())
    await until(lambda: not sockets(daemon.process.pid) <= connections, "the other one is heard")
    assert (await asyncio.to_thread(ask, tmp_path / "control", "stats", SOON))["ok"]
    daemon.process.terminate()
    ended = {"ok": False, "problems": ["guerrillad is shutting down"]}
    assert await reloading == ended
    assert await later == ended
    (tmp_path / "open").touch()
    assert daemon.process.wait(SOON) == 0, daemon.errors


async def test_a_reload_that_fails_leaves_processes_and_events_as_they_were(launch: Launch, tmp_path: Path) -> None:
    daemon = launch(tmp_path, config(processes=2))
    before = children(daemon.process.pid)
    answer = await begin(tmp_path, config(processes=2, spool_path="/nowhere"))
    assert not answer["ok"]
    assert "spool_path" in answer["problems"][0]
    await until(lambda: children(daemon.process.pid) == before, "they are as before")
    assert (await begin(tmp_path, config(processes=2)))["ok"]
    assert daemon.stop() == 0, daemon.errors


@pytest.mark.parametrize("change", [{"processes": 40}, {"processes": 1}, {"user": "nobody"}])
async def test_what_only_a_start_can_change_is_said_in_the_log_and_does_not_take_effect(
    launch: Launch, tmp_path: Path, change: dict[str, Any]
) -> None:
    daemon = launch(tmp_path, config(processes=2))
    supervisor, old = daemon.process.pid, set(children(daemon.process.pid))
    assert (await begin(tmp_path, config() | {"processes": 2} | change))["ok"]
    await until(lambda: old.isdisjoint(children(supervisor)), "the old ones have gone")
    assert len(children(supervisor)) == 2
    owners = {os.stat(f"/proc/{pid}").st_uid for pid in children(supervisor)}
    assert owners == {os.geteuid()}
    assert [each["key"] for each in events(tmp_path, "takes effect at the next start only")] == list(change)
    assert daemon.stop() == 0, daemon.errors


async def test_each_new_process_publishes_once_what_a_reload_has_changed_and_no_other_does(
    tmp_path: Path, key_pair: KeyPair
) -> None:
    certificate, key = tmp_path / "c.pem", tmp_path / "k.pem"
    certificate.write_text(Path(key_pair.certificate).read_text())
    key.write_text(Path(key_pair.key).read_text())
    tls = {"start_tls_on": True, "public_key_file": str(certificate), "private_key_file": str(key)}
    values = config(processes=2, servers=[{"listen_interface": "127.0.0.1:0", "tls": tls}])
    (tmp_path / "conf.json").write_text(json.dumps(values))
    told = tmp_path / "events"

    def topics(pids: list[int]) -> list[list[str]]:
        lines = told.read_text().splitlines()
        return [[line.partition(" ")[2] for line in lines if line.startswith(f"{pid} ")] for pid in pids]

    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline()
            old = children(process.pid)
            process.send_signal(signal.SIGUSR1)
            await until(lambda: told.exists() and len(told.read_text().splitlines()) == 2, "both have told of the logs")
            certificate.touch()
            assert (await begin(tmp_path, values | {"allowed_hosts": ["b.example"]}))["ok"]
            await until(lambda: set(old).isdisjoint(children(process.pid)), "the old ones have gone")
            new = children(process.pid)
            await until(lambda: len(told.read_text().splitlines()) == 8, "both new ones have told")
            os.kill(new[0], signal.SIGKILL)
            await until(lambda: not set(children(process.pid)) <= set(new), "there is another one")
            [replacement] = set(children(process.pid)) - set(new)
            process.terminate()
            assert process.wait(SOON) == 0
        finally:
            process.kill()
    changes = ["config_change:new_config", "config_change:allowed_hosts", "server_change:tls_config"]
    assert topics(old) == [["config_change:reopen_log_file"]] * 2
    assert topics(new) == [changes, changes]
    assert topics([replacement]) == [[]]


async def test_at_the_end_who_waits_to_be_accepted_is_told_421_and_not_reset(launch: Launch, tmp_path: Path) -> None:
    daemon = launch(tmp_path, config(processes=2))
    pids = children(daemon.process.pid)
    for pid in pids:
        await halt(pid)
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(daemon.ports[0])) for _ in range(40)]
        daemon.process.terminate()
        await until(lambda: not sockets(daemon.process.pid) & sockets(pids[0]), "the supervisor has let go")
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        for client in clients:
            codes = [client.code(), client.code()]
            assert codes in (["421", ""], ["220", "421"])
    assert daemon.process.wait(SOON) == 0, daemon.errors
