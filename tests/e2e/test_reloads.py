"""The configuration changes again and again while mail flows: nobody is refused, and nothing accepted is lost."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sqlite3
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from tests.e2e.messages import id_of, recipients_of
from tests.e2e.outbox import PATIENCE_SECONDS, Outbox
from tests.private_servers.process import free_port

from guerrilla.control import ask
from guerrilla.smtp.replies import SHUTTING_DOWN

if TYPE_CHECKING:
    from tests.e2e.conftest import Launch, RunningDaemon

MESSAGES: Final = 1500
RELOADS: Final = 12


def configuration(folder: Path, port: int, *, processes: int, other: bool = False) -> dict[str, Any]:
    """Return one of two configurations that differ in whatever the clients need not notice."""
    more = [{"listen_interface": f"127.0.0.1:{free_port()}"}] if other else []
    return {
        "servers": [
            {
                "listen_interface": f"127.0.0.1:{port}",
                "host_name": "two.test" if other else "one.test",
                "timeout": 20 if other else 30,
                "max_size": 2_000_000 if other else 5_000_000,
                "max_clients": 90 if other else 100,
                "log_file": str(folder / "own.log") if other else "",
            },
            *more,
        ],
        "allowed_hosts": ["example.com", "other.test"] if other else ["example.com"],
        "log_file": str(folder / ("two.log" if other else "one.log")),
        "log_level": "info" if other else "warning",
        "pid_file": str(folder / ("two.pid" if other else "one.pid")),
        "control_socket": str(folder / "control"),
        "spool_threshold": 10_000 if other else 100_000,
        "processes": processes,
        "backend_config": {
            "save_process": "HeadersParser|Hasher|Header|Debugger|Sql" if other else "HeadersParser|Hasher|Header|Sql",
            "sql_driver": "sqlite",
            "sql_dsn": str(folder / "mail.db"),
            "save_workers_size": 40 if other else 64,
        },
    }


def kept(folder: Path) -> Counter[tuple[str, str]]:
    with contextlib.closing(sqlite3.connect(folder / "mail.db")) as database:
        rows = database.execute("SELECT recipient, mail FROM new_mail").fetchall()
    return Counter((id_of(mail), recipient) for recipient, mail in rows)


def wanted(outbox: Outbox) -> Counter[tuple[str, str]]:
    return Counter((each, recipient) for each in outbox.ids for recipient in recipients_of(each))


async def reload(daemon: RunningDaemon) -> None:
    """Have it read its configuration, and return when it has."""
    answer = await asyncio.to_thread(ask, daemon.folder / "control", "reload", PATIENCE_SECONDS)
    assert answer["ok"], answer


@pytest.mark.parametrize("processes", [1, 2])
async def test_reloads_under_load_lose_nothing_and_leave_nothing(
    launch: Launch, tmp_path: Path, processes: int
) -> None:
    port = free_port()
    daemon = launch(tmp_path, configuration(tmp_path, port, processes=processes))
    descriptors = len(os.listdir(f"/proc/{daemon.process.pid}/fd"))
    outbox = Outbox(port, MESSAGES, 20)

    async def change() -> None:
        for number in range(RELOADS):
            await outbox.accepts(MESSAGES * number // (RELOADS + 2))
            settings = configuration(tmp_path, port, processes=processes, other=number % 2 == 0)
            (tmp_path / "conf.json").write_text(json.dumps(settings))
            await reload(daemon)

    async with asyncio.timeout(PATIENCE_SECONDS), asyncio.TaskGroup() as group:
        group.create_task(change())
        group.create_task(outbox.empty())
    # The database's own files came with the first message; a reload that left one behind would make it a dozen.
    await until(lambda: len(os.listdir(f"/proc/{daemon.process.pid}/fd")) < descriptors + RELOADS)
    daemon.process.terminate()
    assert await asyncio.to_thread(daemon.process.wait, PATIENCE_SECONDS) == 0, daemon.errors
    assert kept(tmp_path) == wanted(outbox)
    assert outbox.refusals.keys() <= ({str(SHUTTING_DOWN)} if processes > 1 else set())
    assert "Traceback" not in daemon.errors


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"save_process": "HeadersParser|Sgl"}, "did you mean Sql"),
        ({"save_process": "Redis", "redis_interface": "nowhere"}, "redis_interface"),
    ],
)
async def test_a_broken_configuration_is_told_and_mail_goes_on(
    launch: Launch, tmp_path: Path, keys: dict[str, str], why: str
) -> None:
    port = free_port()
    settings = configuration(tmp_path, port, processes=1)
    daemon = launch(tmp_path, settings)
    settings["backend_config"] = {**settings["backend_config"], **keys}
    (tmp_path / "conf.json").write_text(json.dumps(settings))
    answer = await asyncio.to_thread(ask, tmp_path / "control", "reload", PATIENCE_SECONDS)
    assert not answer["ok"]
    assert why in "\n".join(answer["problems"])
    assert why in (tmp_path / "one.log").read_text()
    outbox = Outbox(port, 20, 5)
    await outbox.empty()
    assert kept(tmp_path) == wanted(outbox)
    assert await asyncio.to_thread(daemon.stop) == 0
