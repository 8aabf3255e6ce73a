"""``status``, ``top`` and ``reload``: what they ask, what they print, and with which exit code they end."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import signal
import sys
import termios
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.control_server import Answer, answering, run_folder
from typer.testing import CliRunner, Result

from guerrilla import cli_control
from guerrilla.cli import app
from guerrilla.cli_control import report
from guerrilla.control import default_path
from guerrilla.counters import Counters
from guerrilla.smtp.replies import Reply
from guerrilla.stats import Histogram, ProcessorStats, Stats

__all__ = ["run_folder"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder, and have an own run folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(run_folder))
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def some_stats() -> Stats:
    counters = Counters()
    counters.connections_accepted = 7
    counters.connections_open = 2
    counters.octets_received = 3 * 2**20
    counters.count_message(Reply(250, "2.0.0", "OK"), 3, 5000, 0.004)
    counters.count_message(Reply(451, "4.3.0", "later"), 1, 5000, 0.004)
    counters.count_reply(Reply(250, "2.0.0", "OK"))
    counters.processor("Sql").latencies.add(0.004)
    counters.processor("Sql").errors += 1
    return Stats.of(counters, queue_depth=4, workers=128, workers_busy=5, memory_in_flight=2048, loop_lag=0.0005)


def telling(stats: Stats) -> Answer:
    def answer(request: dict[str, Any]) -> dict[str, Any]:
        assert request == {"command": "stats"}
        return {"ok": True, "stats": stats.as_dict()}

    return answer


# status


def test_status_prints_what_the_daemon_has_counted(run_folder: Path) -> None:
    with answering(default_path(None), telling(some_stats())):
        result = run("status")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    lines = dict(line.split(maxsplit=1) for line in result.stdout.replace("loop lag", "lag").splitlines() if line)
    assert re.fullmatch(r"00:00:0\d, since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC; 1 process", lines["up"])
    assert lines["connections"] == "2 open, 7 accepted, 0 refused; TLS: 0 made, 0 failed"
    assert lines["messages"] == "1 kept for 3 recipients, 1 deferred, 0 refused"
    assert lines["octets"] == "3.0 MiB received, 4.9 KiB kept"
    assert lines["answers"].startswith("median 4 ms, p99 ")
    assert lines["queue"] == "4 waiting"
    assert lines["workers"] == "5 of 128 busy"
    assert lines["memory"] == "2.0 KiB of messages"
    assert lines["lag"].startswith("500 µs, worst of the last minute 0 s")
    assert lines["250"].split() == ["2.0.0", "1"]
    assert lines["Sql"].split()[:4] == ["1", "1", "4", "ms"]
    assert "rates" not in lines


def test_status_finds_the_daemon_of_the_configuration(folder: Path) -> None:
    (folder / "guerrilla.toml").write_text("")
    (folder / "other.toml").write_text("")
    with answering(default_path("other.toml"), telling(some_stats())):
        assert run("status", "-c", "other.toml").exit_code == 0
        assert run("status").exit_code == 1


def test_status_finds_the_socket_that_the_configuration_names(folder: Path, run_folder: Path) -> None:
    path = run_folder / "named.sock"
    (folder / "guerrilla.toml").write_text(f"control_socket = {json.dumps(str(path))}")
    with answering(path, telling(some_stats())):
        assert run("status").exit_code == 0


def test_an_option_names_the_socket_whatever_the_configuration_is(folder: Path, run_folder: Path) -> None:
    (folder / "guerrilla.toml").write_text("=")
    with answering(run_folder / "named.sock", telling(some_stats())):
        assert run("status", "--socket", str(run_folder / "named.sock")).exit_code == 0


def test_a_configuration_that_is_being_edited_does_not_hide_the_daemon(folder: Path) -> None:
    (folder / "guerrilla.toml").write_text("=")
    with answering(default_path("guerrilla.toml"), telling(some_stats())):
        assert run("status").exit_code == 0
    result = run("status")
    assert result.exit_code == 1
    assert result.stderr.startswith("guerrilla.toml: line 1, ")


def test_without_a_socket_there_is_nobody_to_ask(folder: Path) -> None:
    (folder / "guerrilla.toml").write_text('control_socket = "off"')
    result = run("status")
    assert result.exit_code == 1
    assert result.stderr == 'control_socket is "off" in the configuration; meant: a path, or no such key\n'


@pytest.mark.parametrize("command", ["status", "top", "reload"])
def test_no_daemon_is_exit_code_1(command: str) -> None:
    result = run(command)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("there is no socket /")


def test_status_prints_json_that_can_be_read_back() -> None:
    stats = some_stats()
    with answering(default_path(None), telling(stats)):
        result = run("status", "--json")
    assert Stats.from_dict(json.loads(result.stdout)) == stats


@pytest.mark.parametrize("answer", [{"ok": True}, {"ok": True, "stats": 7}, {"ok": True, "stats": {"uptime": "x"}}])
def test_what_are_no_statistics_is_told(answer: dict[str, Any]) -> None:
    with answering(default_path(None), lambda request: answer):
        result = run("status")
    assert result.exit_code == 1
    assert "these are no statistics" in result.stderr


@pytest.mark.parametrize("answer", [{}, {"ok": 1}, {"ok": False}, {"ok": False, "problems": "x"}])
def test_a_refusal_without_a_reason_is_told(answer: dict[str, Any]) -> None:
    with answering(default_path(None), lambda request: answer):
        result = run("status")
    assert (result.exit_code, result.stderr) == (1, "it was refused, and no reason was given\n")


# reload


def test_reload_says_that_it_was_done() -> None:
    asked: list[object] = []

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        asked.append(request)
        return {"ok": True}

    with answering(default_path(None), answer):
        result = run("reload")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "reloaded\n", "")
    assert asked == [{"command": "reload"}]


def test_reload_tells_each_problem_and_ends_with_exit_code_1() -> None:
    with answering(default_path(None), lambda request: {"ok": False, "problems": ["a: [b]x[/b]", "b: \x1b[2J\r"]}):
        result = run("reload")
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", "a: [b]x[/b]\nb: \\x1b[2J\\r\n")


# top


def test_top_prints_one_report_below_the_other_where_there_is_no_terminal() -> None:
    with answering(default_path(None), telling(some_stats())):
        result = run("top", "--count", "2", "--interval", "0.1")
    assert result.exit_code == 0
    blocks = re.split(r"\n\n(?=up )", result.stdout)
    assert len(blocks) == 2
    assert all("\nrates        -\n" in block for block in blocks)


def test_top_ends_with_the_daemon() -> None:
    answers = iter([{"ok": True, "stats": some_stats().as_dict()}])
    with answering(default_path(None), lambda request: next(answers, {"ok": False, "problems": ["gone"]})):
        result = run("top", "--interval", "0.1")
    assert result.exit_code == 1
    assert result.stdout.count("\nrates") == 1
    assert result.stderr == "gone\n"


def test_top_ends_with_ctrl_c() -> None:
    def answer(request: dict[str, Any]) -> dict[str, Any]:
        signal.raise_signal(signal.SIGINT)
        return {"ok": True, "stats": some_stats().as_dict()}

    with answering(default_path(None), answer):
        result = run("top")
    assert (result.exit_code, result.stderr) == (0, "")


class Terminal:
    """A terminal, with what is on it, and keys to press."""

    def __init__(self) -> None:
        self.ours, theirs = pty.openpty()
        self.theirs = io.TextIOWrapper(io.FileIO(theirs, "r+"), write_through=True)
        self.output = b""
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                octets = os.read(self.ours, 65536)
            except OSError:
                return
            with self._changed:
                self.output += octets
                self._changed.notify_all()

    def wait_for(self, octets: bytes) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: octets in self.output, 20), self.output

    def close(self) -> None:
        self.theirs.close()
        self._reader.join(20)
        os.close(self.ours)


@contextlib.contextmanager
def at_a_terminal() -> Iterator[Terminal]:
    """Sit at a terminal. No fixture: between one and its test, pytest sets the streams anew."""
    opened = Terminal()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TERM", "xterm")
        patch.setattr(sys, "stdout", opened.theirs)
        patch.setattr(sys, "stdin", opened.theirs)
        try:
            yield opened
        finally:
            opened.close()


def test_top_shows_it_live_until_q_is_pressed() -> None:
    wild = replace(some_stats(), processors={"[red]x[/red]\x1b[2J": ProcessorStats()})
    asked: list[object] = []

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        asked.append(request)
        if len(asked) == 2:
            os.write(terminal.ours, b"xq")
        return {"ok": True, "stats": wild.as_dict()}

    with at_a_terminal() as terminal, answering(default_path(None), answer):
        before = termios.tcgetattr(terminal.theirs)
        cli_control.top(count=100, interval=0.1)
        assert termios.tcgetattr(terminal.theirs) == before
        terminal.wait_for(b"\x1b[?1049l")
    assert len(asked) < 100
    assert b"[red]x[/red]\\x1b[2J" in terminal.output
    assert b"2 open, 7 accepted" in terminal.output


def test_top_needs_no_keyboard() -> None:
    with at_a_terminal() as terminal, answering(default_path(None), telling(some_stats())), open(os.devnull) as nothing:
        sys.stdin = nothing
        cli_control.top(count=2, interval=0.1)
        terminal.wait_for(b"q ends")


# What is printed


def at(seconds: float, **numbers: Any) -> Stats:
    return Stats(started_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), uptime=seconds, processes=2, **numbers)


def rates(now: Stats, before: Stats) -> str:
    return next(line for line in report(now, before) if line.startswith("rates")).split(maxsplit=1)[1]


def test_rates_are_what_has_come_since_the_report_before() -> None:
    before = at(10, messages_kept=5, octets_received=100)
    now = at(12, messages_kept=10, messages_deferred=2, messages_refused=2, octets_received=2148)
    assert rates(now, before) == "4.5 messages/s, 1.0 KiB/s received"


def test_a_daemon_that_was_started_anew_has_no_rates_yet() -> None:
    assert rates(at(1, messages_kept=1), at(10, messages_kept=5)) == "-"
    assert rates(at(11, messages_kept=1), at(10, messages_kept=5)) == "0.0 messages/s, 0 B/s received"


def test_the_time_up_is_told_in_days_hours_minutes_and_seconds() -> None:
    assert report(at(3 * 86400 + 2 * 3600 + 61))[0] == (
        "up           3 d 02:01:01, since 2026-01-02 03:04:05 UTC; 2 processes"
    )


def test_tables_are_aligned_and_left_out_when_empty() -> None:
    replies = {"250 2.0.0": 1234, "354": 5}
    assert report(at(1, replies=replies))[-3:] == ["reply      count", "250 2.0.0   1234", "354            5"]
    assert report(at(1))[-1].startswith("events lost")


def test_nothing_that_is_told_reaches_the_terminal_unescaped() -> None:
    wild = "a\x1b]0;x\x07\x9b\n\u202e\U000e0041"
    lines = report(at(1, replies={wild: 1}, processors={wild: ProcessorStats(0, Histogram())}))
    assert all(line.isprintable() for line in lines)
    assert sum("a\\x1b]0;x\\x07\\x9b\\n\\u202e\\U000e0041" in line for line in lines) == 2


@pytest.mark.parametrize(
    ("seconds", "told"), [(0, "0 s"), (5e-6, "5 µs"), (0.0042, "4.2 ms"), (1.0, "1 s"), (59.96, "60 s")]
)
def test_a_duration_has_the_unit_that_fits(seconds: float, told: str) -> None:
    assert cli_control._time(seconds) == told


@pytest.mark.parametrize(
    ("octets", "told"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (2**20, "1.0 MiB"), (5 * 2**30, "5.0 GiB")]
)
def test_a_size_has_the_unit_that_fits(octets: float, told: str) -> None:
    assert cli_control._size(octets) == told
