"""What the project wants to reach, as numbers of one run: mostly ratios, since those hardly depend on the machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from benchmarks import burden, latency, rates, tls
from benchmarks.measure import PER_CPU, Key, Results, Spread

SMOOTH: Final = 0.9
"""What counts as independent of something: this share of the rate without it, at least."""


@dataclass(frozen=True, slots=True)
class Goal:
    """``values`` are those of the rounds; ``bound`` is what their median must reach, or not exceed."""

    what: str
    bound: float
    sense: Literal["at least", "at most"]
    values: Callable[[Results], Sequence[float]]


@dataclass(frozen=True, slots=True)
class Verdict:
    """A goal, and what was measured."""

    goal: Goal
    spread: Spread

    @property
    def met(self) -> bool:
        """Whether the median is on the right side of the bound."""
        at_least = self.goal.sense == "at least"
        return self.spread.median >= self.goal.bound if at_least else self.spread.median <= self.goal.bound


def verdicts(results: Results) -> Iterator[Verdict]:
    """Judge the goals that were measured."""
    for goal in GOALS:
        values = goal.values(results)
        if values:
            yield Verdict(goal, Spread.of(values))


def _ratio(what: str, bound: float, above: Key, below: Key) -> Goal:
    return Goal(what, bound, "at least", lambda results: results.ratio(above, below))


def _value(what: str, bound: float, key: Key) -> Goal:
    return Goal(what, bound, "at most", lambda results: results.values.get(key, ()))


def _waiting(what: str, bound: float, metric: str) -> Goal:
    """A time counts only where the client has kept pace: otherwise the server was less busy than it was to be."""

    def values(results: Results) -> list[float]:
        times, begun, wanted = (
            results.values.get(Key("latency", "guerrilla", each), ()) for each in (metric, latency.RATE, latency.WANTED)
        )
        return [time for time, had, due in zip(times, begun, wanted, strict=False) if had >= SMOOTH * due]

    return Goal(what, bound, "at most", values)


def _beside(other: str, bounds: tuple[float, float, float]) -> list[Goal]:
    names = {"kept": "2 kB, kept", "each": "2 kB, a connection each", "large": "100 kB, kept"}
    return [
        _ratio(f"guerrilla / {other}: {title}", bound, Key(name, "guerrilla", PER_CPU), Key(name, other, PER_CPU))
        for (name, title), bound in zip(names.items(), bounds, strict=True)
    ]


def _growth(before: int, after: int) -> Goal:
    above, below = (Key("store", f"SQLite, {connections}", PER_CPU) for connections in (after, before))
    return _ratio(f"SQLite: {after} / {before} connections", 1.0, above, below)


def _tls() -> list[Goal]:
    return [
        _ratio(
            f"guerrilla / aiosmtpd: {metric.removesuffix(' per CPU-second')}, {kind}",
            1.0,
            Key("tls", f"guerrilla, {kind}", metric),
            Key("tls", f"aiosmtpd, {kind}", metric),
        )
        for kind in ("starttls", "implicit")
        for metric in (tls.HANDSHAKES, PER_CPU)
    ]


def _two_processes() -> list[Goal]:
    return [
        _ratio(
            f"two processes / one: {title}",
            1.8,
            Key("processes", f"{name}, 2", rates.CAPACITY),
            Key("processes", f"{name}, 1", rates.CAPACITY),
        )
        for name, title in (("kept", "2 kB, kept"), ("each", "2 kB, a connection each"))
    ]


def _linear(verb: str) -> Goal:
    large, small = (Key("octets", f"{size} MB by {verb}", burden.COST) for size in (100, 1))
    return Goal(
        f"cost of a MB by {verb}: 100 MB / 1 MB", 1 / SMOOTH, "at most", lambda results: results.ratio(large, small)
    )


def _beside_idle(connections: int) -> Goal:
    above, below = (Key("beside idle", f"{number:,} idle", PER_CPU) for number in (connections, 0))
    return _ratio(f"rate beside {connections:,} idle / beside none", SMOOTH, above, below)


GOALS: Final[Sequence[Goal]] = (
    *_beside(rates.LOGGING, (8.0, 7.0, 25.0)),
    *_beside("aiosmtpd", (8.0, 7.0, 25.0)),
    *_beside("limit", (0.50, 0.50, 0.35)),
    _ratio(
        "SQLite / no store: 20 connections",
        0.6,
        Key("store", "SQLite, 20", PER_CPU),
        Key("store", "no store, 20", PER_CPU),
    ),
    *(_growth(*pair) for pair in zip(rates.CONNECTION_COUNTS, rates.CONNECTION_COUNTS[1:], strict=False)),
    _ratio(
        "pipelined / one command at a time",
        1.3,
        Key("pipelining", "MAIL, RCPT, DATA in one segment", PER_CPU),
        Key("pipelining", "one command at a time", PER_CPU),
    ),
    *_two_processes(),
    _value("octets of memory an idle connection", 4_000, Key("idle", "guerrilla", burden.OCTETS_EACH)),
    _value("MB resident with all uploads at once", 300, Key("uploads", "guerrilla", burden.RESIDENT)),
    _waiting("ms from the final dot to 250: median", 1.0, latency.MEDIAN),
    _waiting("ms from the final dot to 250: 99th percentile", 5.0, latency.TAIL),
    *_tls(),
    _linear("DATA"),
    _linear("BDAT"),
    _beside_idle(1_000),
    _beside_idle(burden.IDLE),
)
