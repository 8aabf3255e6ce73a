"""250 means kept: the daemon is killed under load, at moments drawn by lot, and the database is held to its answers."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import socket
import sqlite3
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.e2e.messages import Connection, content_of, envelope_of, id_of, recipients_of, some, stuffed

if TYPE_CHECKING:
    from tests.e2e.conftest import Launch, RunningDaemon

KILLS = 20
CONNECTIONS = 20
IN_ONE_GO = 4
"""Messages that a client with CHUNKING sends before it reads an answer."""

_LOT = random.Random(20261124)
KILL_MOMENTS = [round(_LOT.uniform(0.0, 0.6), 4) for _ in range(KILLS)]
"""Seconds from the first 250 to the SIGKILL."""
TERM_MOMENTS = [round(_LOT.uniform(0.0, 0.6), 4) for _ in range(3)]

CONFIG: dict[str, Any] = {
    "servers": [{"listen_interface": "127.0.0.1:0"}],
    "allowed_hosts": ["example.com"],
    "pid_file": "guerrillad.pid",
    "log_level": "warning",
    "backend_config": {"save_process": "HeadersParser|Hasher|Header|Sql"},
}


class Load:
    """Many clients that send until they are cut off, and note what each message was answered."""

    def __init__(self, port: int) -> None:
        self.answers: dict[str, int] = {}
        """The codes; 0 for a message that was sent, or begun to be, and not answered."""
        self.first_kept = asyncio.Event()
        self._port = port

    def answered(self, code: int) -> set[str]:
        """Return the ids that were answered so; 4 stands for all of 4yz."""
        return {message_id for message_id, answer in self.answers.items() if code in (answer, answer // 100)}

    async def run(self, clients: int) -> None:
        """Send, over so many connections at a time, until the server has gone. Half of the clients use BDAT."""
        async with asyncio.TaskGroup() as group:
            for number in range(clients):
                group.create_task(self._send(number, (self._with_data, self._with_bdat)[number % 2]))

    async def _send(self, number: int, dialogue: Callable[[Connection, int], Awaitable[None]]) -> None:
        with socket.socket() as connection, contextlib.suppress(ConnectionError):
            connection.setblocking(False)
            await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", self._port))
            client = Connection(connection)
            await client.code()
            await client.send(b"EHLO client.test\r\n")
            await client.code()
            await dialogue(client, number)

    async def _with_data(self, client: Connection, number: int) -> None:
        """Send the commands of the next message in one burst with the content before them (RFC 2920)."""
        octets, before = b"", ""
        for count in range(1_000_000):
            message_id = f"{number}-{count}"
            self.answers[message_id] = 0
            await client.send(octets + envelope_of(message_id) + b"DATA\r\n")
            if before:
                self._note(before, await client.code())
            for _ in range(len(recipients_of(message_id)) + 2):
                if (code := await client.code()) >= 400:
                    self._note(message_id, code)
                    return
            octets, before = stuffed(content_of(message_id)), message_id

    async def _with_bdat(self, client: Connection, number: int) -> None:
        """Send whole messages, several in one burst, before any answer is read (RFC 3030 section 4.3)."""
        for start in range(0, 1_000_000, IN_ONE_GO):
            burst = [f"{number}-{count}" for count in range(start, start + IN_ONE_GO)]
            self.answers |= dict.fromkeys(burst, 0)
            octets = b""
            for message_id in burst:
                content = content_of(message_id)
                octets += envelope_of(message_id) + b"BDAT %d LAST\r\n" % len(content) + content
            await client.send(octets)
            for message_id in burst:
                codes = [await client.code() for _ in range(len(recipients_of(message_id)) + 2)]
                self._note(message_id, max(codes))

    def _note(self, message_id: str, code: int) -> None:
        self.answers[message_id] = code
        if code == 250:
            self.first_kept.set()


# What is there afterwards.


def kept(folder: Path) -> dict[str, Counter[str]]:
    """Return the recipients of each message in the database, after looking at the database and at every octet."""
    with contextlib.closing(sqlite3.connect(folder / "guerrilla.db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        found: dict[str, Counter[str]] = {}
        for recipient, mail in database.execute("SELECT recipient, mail FROM new_mail"):
            found.setdefault(id_of(mail), Counter())[recipient] += 1
    return found


def hold_to_its_answers(load: Load, folder: Path) -> None:
    """Check that what was answered 250 is there, what was answered otherwise is not, and nothing is there in part."""
    found = kept(folder)
    in_part = {
        message_id: dict(rows) for message_id, rows in found.items() if rows != Counter(recipients_of(message_id))
    }
    assert not in_part, f"not once per recipient: {some(in_part.items())}"
    accepted = load.answered(250)
    lost = accepted - found.keys()
    assert not lost, f"LOST: {len(lost)} of {len(accepted)} messages that were answered 250: {some(sorted(lost))}"
    returned = (load.answered(4) | load.answered(5)) & found.keys()
    assert not returned, f"kept, though their sender was told that they are not: {some(sorted(returned))}"
    unknown = found.keys() - load.answers.keys()
    assert not unknown, f"never sent: {some(sorted(unknown))}"


async def load_until(daemon: RunningDaemon, moment: float, number: signal.Signals) -> Load:
    """Load the daemon, and send it the signal so many seconds after the first message was kept."""
    [port] = daemon.ports
    load = Load(port)

    async def strike() -> None:
        await load.first_kept.wait()
        asyncio.get_running_loop().call_later(moment, daemon.process.send_signal, number)

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        group.create_task(strike())
        group.create_task(load.run(CONNECTIONS))
    return load


@pytest.mark.parametrize("moment", KILL_MOMENTS)
async def test_what_was_answered_250_is_there_after_kill_9(launch: Launch, tmp_path: Path, moment: float) -> None:
    daemon = launch(tmp_path, CONFIG)
    load = await load_until(daemon, moment, signal.SIGKILL)
    assert daemon.process.wait() == -signal.SIGKILL
    hold_to_its_answers(load, tmp_path)
    assert not load.answered(4) | load.answered(5), f"refused: {daemon.errors}"


@pytest.mark.parametrize("moment", TERM_MOMENTS)
async def test_sigterm_under_load_ends_in_order_and_nothing_is_lost(
    launch: Launch, tmp_path: Path, moment: float
) -> None:
    daemon = launch(tmp_path, CONFIG)
    load = await load_until(daemon, moment, signal.SIGTERM)
    assert daemon.process.wait() == 0, daemon.errors
    hold_to_its_answers(load, tmp_path)
    assert not (tmp_path / "guerrillad.pid").exists()


async def test_a_killed_daemon_starts_again_on_what_it_left(launch: Launch, tmp_path: Path) -> None:
    daemon = launch(tmp_path, CONFIG)
    before = await load_until(daemon, 0.1, signal.SIGKILL)
    daemon.process.wait()
    again = launch(tmp_path, CONFIG)
    load = Load(again.ports[0])
    load.answers = before.answers
    with socket.create_connection(("127.0.0.1", again.ports[0])) as client, client.makefile("rb") as replies:
        content = content_of("99-0")
        client.sendall(b"EHLO x\r\n" + envelope_of("99-0") + b"BDAT %d LAST\r\n" % len(content) + content + b"QUIT\r\n")
        assert b"queued as" in replies.read()
    load.answers["99-0"] = 250
    assert again.stop() == 0
    hold_to_its_answers(load, tmp_path)
