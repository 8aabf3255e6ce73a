"""The commands that speak to a running daemon: ``status`` and ``top`` show its numbers, ``reload`` renews its settings.

What comes from the daemon is escaped before it is printed: a name must not be able to move the cursor.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import sys
import termios
import tty
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Final, TextIO

import typer

from guerrilla.cli_config import ConfigOption, default_file
from guerrilla.config import AppConfig, ConfigError, load
from guerrilla.control import ControlError, ask, control_path, default_path
from guerrilla.stats import Histogram, Stats

STATS_TIMEOUT: Final = 10.0
"""Seconds that the daemon may take to tell its numbers: several processes can be in the middle of a reload."""

RELOAD_TIMEOUT: Final = 300.0
"""Seconds that a reload may take."""

SocketOption = Annotated[
    Path | None,
    typer.Option(
        "--socket",
        help="The control socket. Default: control_socket of the configuration, else the one in the run folder that is "
        "named after the configuration file.",
        show_default=False,
    ),
]


def status(
    config: ConfigOption = None,
    socket: SocketOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with all numbers.")] = False,
) -> None:
    """Print what the running daemon has counted since its start, over all its processes."""
    with _told():
        stats = _stats(_path(config, socket))
    if as_json:
        typer.echo(json.dumps(stats.as_dict(), indent=2))
        return
    typer.echo("\n".join(report(stats)))


def top(
    config: ConfigOption = None,
    socket: SocketOption = None,
    count: Annotated[int, typer.Option(min=0, help="End after so many refreshes; 0: never.", show_default=False)] = 0,
    interval: Annotated[float, typer.Option(min=0.1, max=3600, help="Seconds between two refreshes.")] = 1.0,
) -> None:
    """Show the numbers of the running daemon live, with rates; q or Ctrl-C ends it."""
    with _told(), contextlib.suppress(KeyboardInterrupt):
        show = _show_live if sys.stdout.isatty() else _show_each
        show(_path(config, socket), count, interval)


def reload(config: ConfigOption = None, socket: SocketOption = None) -> None:
    """Have the running daemon read its configuration anew, wait for it, and say what is wrong."""
    with _told():
        _asked(_path(config, socket), "reload", RELOAD_TIMEOUT)
    typer.echo("reloaded")


# Asking


def _path(config: Path | None, socket: Path | None) -> Path:
    """Return the path of the socket. Raises ControlError or ConfigError if there is none."""
    if socket is not None:
        return socket
    file = config or default_file()
    try:
        settings = load(file) if file is not None else AppConfig.embedded()
    except ConfigError:
        # A file that is just being edited does not hide the daemon that runs with what it was before.
        path = default_path(file)
        if path.exists():
            return path
        raise
    found = control_path(settings)
    if found is None:
        raise ControlError('control_socket is "off" in the configuration; meant: a path, or no such key')
    return found


def _stats(path: Path) -> Stats:
    try:
        return Stats.from_dict(_asked(path, "stats", STATS_TIMEOUT).get("stats", {}))
    except ValueError as error:
        raise ControlError(f"what came from {path}: {error}") from error


def _asked(path: Path, command: str, timeout: float) -> dict[str, Any]:
    """Return the answer, if it is a good one. Raises ControlError if it is not, with one problem a line."""
    answer = ask(path, command, timeout)
    if answer.get("ok") is not True:
        problems = answer.get("problems")
        given = problems if isinstance(problems, list) and problems else ["it was refused, and no reason was given"]
        raise ControlError("\n".join(map(str, given)))
    return answer


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Tell the user what went wrong, and end with exit code 1."""
    try:
        yield
    except (ControlError, ConfigError) as error:
        for line in str(error).split("\n"):
            typer.echo(_plain(line), err=True)
        raise typer.Exit(1) from None


# Live


def _reports(path: Path, count: int, ends: Callable[[], bool]) -> Iterator[list[str]]:
    """Ask again and again, ``count`` times or for ever if that is 0; ``ends`` waits in between, and decides."""
    before: Stats | None = None
    for number in itertools.count(1):
        stats = _stats(path)
        yield report(stats, before or stats)
        if number == count or ends():
            return
        before = stats


def _show_each(path: Path, count: int, interval: float) -> None:
    """Print one report below the other."""
    for number, lines in enumerate(_reports(path, count, lambda: _key([], interval) is not None)):
        typer.echo("\n".join(["", *lines] if number else lines))


def _show_live(path: Path, count: int, interval: float) -> None:
    """Show each report in the place of the one before, on the whole terminal, until q is pressed."""
    from rich.console import Console  # the other commands start without it
    from rich.live import Live
    from rich.text import Text

    console = Console(file=sys.stdout)
    with _single_keys(sys.stdin) as keys, Live(console=console, screen=True, auto_refresh=False) as live:
        for lines in _reports(path, count, lambda: _key(keys, interval) in (b"q", b"Q", b"")):
            # Text, since a str would be searched for markup.
            live.update(Text("\n".join([*lines, "", "q ends"]), no_wrap=True), refresh=True)


@contextlib.contextmanager
def _single_keys(keyboard: TextIO) -> Iterator[list[int]]:
    """Have each key come at once and unseen; the descriptor to read them from, or none if this is no terminal."""
    if not keyboard.isatty():
        yield []
        return
    number = keyboard.fileno()
    before = termios.tcgetattr(number)
    tty.setcbreak(number)
    try:
        yield [number]
    finally:
        termios.tcsetattr(number, termios.TCSADRAIN, before)


def _key(keys: list[int], seconds: float) -> bytes | None:
    """Return a key if one is pressed within so many seconds; empty if the terminal is gone."""
    ready, _, _ = select.select(keys, [], [], seconds)
    return os.read(ready[0], 1) if ready else None


# What is printed


def report(stats: Stats, before: Stats | None = None) -> list[str]:
    """Return the numbers as lines of text, safe for a terminal; with rates if there are numbers from before."""
    lines = [
        ("up", f"{_span(stats.uptime)}, since {stats.started_at:%Y-%m-%d %H:%M:%S %Z}; {_processes(stats.processes)}"),
        (
            "connections",
            f"{stats.connections_open} open, {stats.connections_accepted} accepted, "
            f"{stats.connections_refused} refused; TLS: {stats.tls_handshakes} made, {stats.tls_failures} failed",
        ),
        (
            "messages",
            f"{stats.messages_kept} kept for {stats.recipients} recipients, {stats.messages_deferred} deferred, "
            f"{stats.messages_refused} refused",
        ),
        ("octets", f"{_size(stats.octets_received)} received, {_size(stats.octets_kept)} kept"),
        *([] if before is None else [("rates", _rates(stats, before))]),
        ("answers", _times(stats.answers)),
        ("queue", f"{stats.queue_depth} waiting"),
        ("workers", f"{stats.workers_busy} of {stats.workers} busy"),
        ("memory", f"{_size(stats.memory_in_flight)} of messages"),
        ("loop lag", f"{_time(stats.loop_lag)}, worst of the last minute {_time(stats.loop_lag_max)}"),
        ("events lost", str(stats.events_dropped)),
    ]
    return [
        *(f"{name:<12} {value}" for name, value in lines),
        *_table(["reply", "count"], ([reply, str(count)] for reply, count in sorted(stats.replies.items()))),
        *_table(
            ["processor", "count", "errors", "median", "p99"],
            (
                [name, str(each.count), str(each.errors), *(_time(each.latencies.quantile(q)) for q in (0.5, 0.99))]
                for name, each in stats.processors.items()
            ),
        ),
    ]


def _rates(stats: Stats, before: Stats) -> str:
    seconds = stats.uptime - before.uptime
    if seconds <= 0:  # the first ones, or a daemon that was started anew
        return "-"
    messages = max(0, _messages(stats) - _messages(before)) / seconds
    octets = max(0, stats.octets_received - before.octets_received) / seconds
    return f"{messages:.1f} messages/s, {_size(octets)}/s received"


def _messages(stats: Stats) -> int:
    return stats.messages_kept + stats.messages_deferred + stats.messages_refused


def _table(head: list[str], rows: Iterable[list[str]]) -> list[str]:
    """Align the rows under their head, names to the left and numbers to the right; nothing if there are none."""
    cells = [[_plain(cell) for cell in row] for row in rows]
    if not cells:
        return []
    cells.insert(0, head)
    first, *others = (max(map(len, column)) for column in zip(*cells, strict=True))
    return [
        "",
        *(
            "  ".join(
                [f"{row[0]:<{first}}", *(f"{cell:>{width}}" for cell, width in zip(row[1:], others, strict=True))]
            )
            for row in cells
        ),
    ]


def _plain(text: str) -> str:
    """Return the text with everything escaped that is not printed as itself."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode("ascii") for each in text)


def _processes(number: int) -> str:
    return "1 process" if number == 1 else f"{number} processes"


def _times(histogram: Histogram) -> str:
    return f"median {_time(histogram.quantile(0.5))}, p99 {_time(histogram.quantile(0.99))}"


def _time(seconds: float) -> str:
    """Write a duration with three digits and the unit that fits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs" if seconds else "0 s"


def _size(octets: float) -> str:
    """Write a number of octets with the unit that fits."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if octets >= size:
            return f"{octets / size:.1f} {unit}"
    return f"{octets:.0f} B"


def _span(seconds: float) -> str:
    """Write how long something has been up: ``3 d 02:01:00``."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return (f"{days} d " if days else "") + f"{hour:02}:{minute:02}:{second:02}"
