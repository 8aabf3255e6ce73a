"""What signals mean to a daemon that is in the middle of things, as one process and as several."""

from __future__ import annotations

import signal
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from tests.e2e.messages import content_of, envelope_of, recipients_of, stuffed
from tests.e2e.observed import children, client_ports, descriptors, until
from tests.e2e.production import SOON, Client, config, is_closed
from tests.e2e.steady import Steady
from tests.e2e.test_kill import hold_to_its_answers, kept

if TYPE_CHECKING:
    from tests.e2e.conftest import KeyPair, Launch, RunningDaemon

LIMIT_SECONDS: Final = 10
"""How long a drain may take where all that is under way comes to its end."""

one_and_two = pytest.mark.parametrize("processes", [1, 2])


def with_tls_and_a_slow_line(pair: KeyPair, seconds: int, **changes: Any) -> dict[str, Any]:
    """Return one with a server for STARTTLS, one for TLS from the first octet on, and a processor that sleeps."""
    files = {"private_key_file": pair.key, "public_key_file": pair.certificate}
    switches = ("start_tls_on", "tls_always_on")
    return config(
        servers=[{"listen_interface": "127.0.0.1:0", "tls": {**files, switch: True}} for switch in switches],
        backend_config={"save_process": "HeadersParser|Hasher|Header|Debugger|Sql", "sleep_seconds": seconds},
        **changes,
    )


def processes_of(daemon: RunningDaemon) -> list[int]:
    return [daemon.process.pid, *children(daemon.process.pid)]


@one_and_two
async def test_sigterm_in_every_state_of_the_dialogue_loses_nothing(
    launch: Launch, tmp_path: Path, key_pair: KeyPair, processes: int
) -> None:
    limit = f"{LIMIT_SECONDS}s"
    daemon = launch(tmp_path, with_tls_and_a_slow_line(key_pair, 1, processes=processes, shutdown_timeout=limit))
    starttls, always = daemon.ports
    ids = [f"{number}-0" for number in range(5)]
    contents = [content_of(each) for each in ids]
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(port)) for port in [starttls] * 8 + [always]]
        connected, greeted, after_mail, after_rcpt, in_data, in_bdat, waiting, in_starttls, in_handshake = clients
        connected.hears("220")
        greeted.hears("220")
        greeted.says(b"EHLO client.test\r\n", "250")
        in_starttls.hears("220")
        in_starttls.says(b"EHLO client.test\r\nSTARTTLS\r\n", "250", "220")
        after_mail.hears("220")
        after_mail.says(b"EHLO client.test\r\n", "250")
        mail, _, recipients = envelope_of(ids[0]).partition(b"\r\n")
        after_mail.says(mail + b"\r\n", "250")
        for client, message_id in zip((after_rcpt, in_data, in_bdat, waiting), ids[1:], strict=True):
            client.begins(message_id)
        in_data.says(b"DATA\r\n", "354")
        in_data.send(stuffed(contents[2])[:100])
        in_bdat.says(b"BDAT 50\r\n" + contents[3][:50], "250")
        in_bdat.send(b"BDAT %d LAST\r\n" % (len(contents[3]) - 50) + contents[3][50:100])
        waiting.says(b"DATA\r\n", "354")
        waiting.send(stuffed(contents[4]))
        await until(lambda: '"mail received"' in (tmp_path / "guerrillad.log").read_text(), "a processor sleeps")
        await until(
            lambda: any(in_handshake.port in client_ports(pid, always) for pid in processes_of(daemon)),
            "it is accepted",
        )

        daemon.process.terminate()
        connected.hears("421", "")
        greeted.hears("421", "")
        await until(lambda: is_closed(starttls) and is_closed(always), "new clients are refused")
        in_handshake.secure(key_pair)
        in_handshake.hears("220", "421", "")
        in_starttls.secure(key_pair)
        in_starttls.hears("421", "")
        in_data.send(stuffed(contents[2])[100:])
        in_bdat.send(contents[3][100:])
        after_mail.says(recipients, *["250"] * len(recipients_of(ids[0])))
        for client, content in ((after_mail, contents[0]), (after_rcpt, contents[1])):
            client.says(b"DATA\r\n", "354")
            client.send(stuffed(content))
        for client in (after_mail, after_rcpt, in_data, in_bdat, waiting):
            client.hears("250", "421", "")
    assert daemon.process.wait(LIMIT_SECONDS) == 0, daemon.errors
    assert kept(tmp_path) == {message_id: Counter(recipients_of(message_id)) for message_id in ids}
    assert not (tmp_path / "guerrillad.pid").exists()


@one_and_two
@pytest.mark.parametrize(("limit", "signals"), [("500ms", 1), ("60s", 2)])
async def test_what_does_not_end_is_cut_off_at_the_limit_or_by_a_second_signal_and_not_kept(
    launch: Launch, tmp_path: Path, key_pair: KeyPair, processes: int, limit: str, signals: int
) -> None:
    daemon = launch(tmp_path, with_tls_and_a_slow_line(key_pair, 50, processes=processes, shutdown_timeout=limit))
    starttls, always = daemon.ports
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(port)) for port in [starttls] * 5 + [always]]
        idle, after_rcpt, in_data, waiting, in_starttls, in_handshake = clients
        idle.hears("220")
        in_starttls.hears("220")
        in_starttls.says(b"EHLO client.test\r\nSTARTTLS\r\n", "250", "220")
        for number, client in enumerate((after_rcpt, in_data, waiting)):
            client.begins(f"{number}-0")
        for client in (in_data, waiting):
            client.says(b"DATA\r\n", "354")
        waiting.send(stuffed(content_of("2-0")))
        await until(lambda: '"mail received"' in (tmp_path / "guerrillad.log").read_text(), "a processor sleeps")
        daemon.process.terminate()
        idle.hears("421", "")
        if signals == 2:
            daemon.process.terminate()
        after_rcpt.hears("421", "")
        in_data.hears("421", "")
        waiting.hears("421", "")
        in_starttls.hears("")
        in_handshake.hears("")
    assert daemon.process.wait(SOON) == 0, daemon.errors
    assert kept(tmp_path) == {}


@one_and_two
async def test_a_renamed_log_is_let_go_by_all_processes_at_sigusr1(
    launch: Launch, tmp_path: Path, processes: int
) -> None:
    daemon = launch(tmp_path, config(processes=processes))
    log, old = tmp_path / "guerrillad.log", tmp_path / "guerrillad.log.1"
    log.rename(old)
    daemon.process.send_signal(signal.SIGUSR1)
    everyone = processes_of(daemon)
    assert len(everyone) == (1 if processes == 1 else 3)
    await until(lambda: all(str(log) in descriptors(pid) for pid in everyone), "all have the new log")
    await until(lambda: not any(str(old) in descriptors(pid) for pid in everyone), "nobody has the old one")
    size = old.stat().st_size
    load = Steady(daemon.ports[0], 20)
    async with load.running(SOON):
        await load.more(20)
    assert daemon.stop() == 0, daemon.errors
    assert log.read_text().count('"message"') == load.accepted
    assert old.stat().st_size == size
    hold_to_its_answers(load, tmp_path)
