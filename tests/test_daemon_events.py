"""What happens to the daemon and to its mail is told to who has subscribed, and counted."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from guerrilla import NO_SUCH_USER, Daemon, Envelope, Reply, processor
from guerrilla.events import Connected, Disconnected, Event, Failed, MailEvent, NewConfig, Queued, Rejected


@processor
async def chooses(envelope: Envelope) -> Reply | None:
    user = envelope.rcpt_to[-1].user
    if user == "nobody":
        return NO_SUCH_USER
    if b"later" in envelope.data[:]:
        return Reply(451, "4.3.0", "Later")
    return Reply(554, "5.7.1", "No") if b"spam" in envelope.data[:] else None


def config(**keys: Any) -> dict[str, Any]:
    return {
        "servers": [{"listen_interface": "127.0.0.1:0", "host_name": "mx.test", "max_clients": 1}],
        "allowed_hosts": ["example.com"],
        "log_file": "off",
        "backend_config": {"save_process": "HeadersParser|Chooses", "validate_process": "Chooses"},
        **keys,
    }


@contextlib.asynccontextmanager
async def running(settings: dict[str, Any]) -> AsyncIterator[tuple[Daemon, list[Event]]]:
    seen: list[Event] = []

    async def see(event: Event) -> None:
        seen.append(event)

    daemon = Daemon(settings)
    daemon.add_processor("Chooses", chooses)
    daemon.subscribe(Event, see)  # before the start
    async with daemon:
        yield daemon, seen


async def until(seen: list[Event], kind: type[Event], count: int = 1) -> list[Any]:
    async with asyncio.timeout(20):
        while len(found := [event for event in seen if isinstance(event, kind)]) < count:
            await asyncio.sleep(0)
    return found


async def dialogue(daemon: Daemon, *lines: str) -> list[str]:
    """Say each line, and return the last line of each answer."""
    reader, writer = await asyncio.open_connection(*daemon.addresses[0][1])
    answers = []
    async with asyncio.timeout(20):
        for line in ("", *lines):
            if line:
                writer.write(line.encode() + b"\r\n")
            while (answer := (await reader.readline()).decode())[3:4] == "-":
                pass
            answers.append(answer)
    writer.close()
    await writer.wait_closed()
    return answers


MESSAGE = ("EHLO a.test", "MAIL FROM:<a@a.test>", "RCPT TO:<b@example.com>", "DATA")


async def test_a_message_is_told_from_the_connection_to_its_end() -> None:
    async with running(config()) as (daemon, seen):
        answers = await dialogue(daemon, *MESSAGE, "Subject: x\r\n\r\nhello\r\n.", "QUIT")
        await until(seen, Disconnected)
        connected, queued, gone = (event for event in seen if isinstance(event, MailEvent))
    assert isinstance(connected, Connected)
    assert connected.remote_ip == "127.0.0.1"
    assert isinstance(queued, Queued)
    assert queued.queued_id in answers[-2]
    assert (str(queued.sender), [str(each) for each in queued.recipients]) == ("a@a.test", ["b@example.com"])
    assert (queued.helo, queued.size, queued.reply.code) == ("a.test", 21, 250)
    assert isinstance(gone, Disconnected)
    assert (gone.messages, gone.remote_port) == (1, connected.remote_port)


@pytest.mark.parametrize(
    ("lines", "what", "code"),
    [
        (["GIBBERISH"], "command", 500),
        (["EHLO a", "MAIL FROM:<>", "RCPT TO:<b@other.test>"], "command", 550),
        (["EHLO a", "MAIL FROM:<>", "RCPT TO:<nobody@example.com>"], "recipient", 550),
        ([*MESSAGE, "spam\r\n."], "message", 554),
    ],
)
async def test_who_is_told_no_is_told_of(lines: list[str], what: str, code: int) -> None:
    async with running(config()) as (daemon, seen):
        await dialogue(daemon, *lines)
        (event,) = await until(seen, Rejected)
    assert (event.what, event.reply.code) == (what, code)


async def test_what_is_deferred_is_told_of() -> None:
    async with running(config()) as (daemon, seen):
        await dialogue(daemon, *MESSAGE, "later\r\n.")
        (event,) = await until(seen, Failed)
    assert event.reply.code == 451


async def test_one_client_too_many_is_told_of() -> None:
    async with running(config()) as (daemon, seen):
        reader, writer = await asyncio.open_connection(*daemon.addresses[0][1])
        await reader.readline()
        await dialogue(daemon)
        (event,) = await until(seen, Rejected)
        assert (event.what, event.reply.code) == ("connection", 421)
        assert daemon.stats().connections_refused == 1
        writer.close()
        await writer.wait_closed()


def behind_a_proxy(**keys: Any) -> dict[str, Any]:
    server = {"listen_interface": "127.0.0.1:0", "xclient_on": True, "trusted_proxies": ["127.0.0.1"], **keys}
    return config(servers=[server])


async def test_a_proxy_that_names_its_client_goes_and_the_client_comes() -> None:
    async with running(behind_a_proxy()) as (daemon, seen):
        message = (*MESSAGE, "hello\r\n.")
        await dialogue(daemon, *message, "XCLIENT ADDR=192.0.2.7 PORT=4711", *message, *message[1:], "QUIT")
        await until(seen, Disconnected, 2)
        told = [event for event in seen if isinstance(event, MailEvent)]
    assert [type(event) for event in told] == [
        Connected, Queued, Disconnected, Connected, Queued, Queued, Disconnected,
    ]  # fmt: skip
    places = [(event.remote_ip, event.remote_port) for event in told]
    assert places[0] == places[1] == places[2] == ("127.0.0.1", places[0][1])
    assert places[3:] == [("192.0.2.7", 4711)] * 4
    assert [event.messages for event in told if isinstance(event, Disconnected)] == [1, 2]


async def test_a_client_that_xclient_names_and_that_is_refused_has_not_come() -> None:
    async with running(behind_a_proxy(max_clients_per_address=1)) as (daemon, seen):
        _, writer = await asyncio.open_connection(*daemon.addresses[0][1])
        writer.write(b"XCLIENT ADDR=192.0.2.7\r\n")
        await until(seen, Connected, 2)
        await dialogue(daemon, "XCLIENT ADDR=192.0.2.7")
        await until(seen, Rejected)
        writer.close()
        await writer.wait_closed()
        await until(seen, Disconnected, 3)
        told = [event for event in seen if isinstance(event, MailEvent)]
    proxies, client = [Connected, Disconnected], "192.0.2.7"
    assert [type(event) for event in told if event.remote_ip != client] == proxies * 2
    assert [type(event) for event in told if event.remote_ip == client] == [Connected, Rejected, Disconnected]


async def test_a_reload_tells_what_has_changed_and_reopening_tells_of_the_logs(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    async with running(config()) as (daemon, seen):
        await daemon.reload_config(config(allowed_hosts=["."], log_file=log))
        (new,) = await until(seen, NewConfig)
        assert new.new is daemon.config
        daemon.reopen_logs()
        async with asyncio.timeout(20):
            while "config_change:reopen_log_file" not in [event.topic for event in seen]:
                await asyncio.sleep(0)
    topics = [event.topic for event in seen if event.topic.startswith("config_change")]
    assert topics == [
        "config_change:new_config",
        "config_change:allowed_hosts",
        "config_change:log_file",
        "config_change:reopen_log_file",
    ]


async def test_one_may_publish_and_end_a_subscription() -> None:
    async with running(config()) as (daemon, seen):
        event = Connected(server="x", remote_ip="192.0.2.1")
        daemon.publish(event)
        await until(seen, Connected)

        async def other(event: Event) -> None:
            raise AssertionError

        daemon.subscribe("mail:connected", other)
        daemon.unsubscribe("mail:connected", other)
        daemon.publish(event)
        await until(seen, Connected, 2)


async def test_the_numbers_say_what_was_received() -> None:
    async with running(config()) as (daemon, _):
        await dialogue(daemon, *MESSAGE, "Subject: x\r\n\r\nhello\r\n.", *MESSAGE[1:], "spam\r\n.", "QUIT")
        stats = daemon.stats()
    assert (stats.messages_kept, stats.messages_refused, stats.messages_deferred) == (1, 1, 0)
    assert (stats.recipients, stats.octets_kept) == (1, 21)
    assert stats.replies["250 2.0.0"] == 1
    assert stats.replies["354"] == 2
    assert stats.processors["Chooses"].count == 4
    assert stats.answers.count == 2
    assert (stats.workers, stats.queue_depth, stats.processes) == (128, 0, 1)
