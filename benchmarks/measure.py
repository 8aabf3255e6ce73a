"""Measurements of several rounds: what one round gives, and medians, spreads and ratios of all of them.

A ratio is made in each round, of two measurements that stood side by side, so that what disturbs a round disturbs both.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

GRAIN: Final = 0.01
"""Seconds: that of the processor's clock. Less cannot be told from nothing."""

PER_CPU: Final = "messages per CPU-second"
PER_SECOND: Final = "messages per second"


@dataclass(frozen=True, slots=True)
class Figure:
    """The outcome of one round."""

    messages: int
    seconds: float
    cpu_seconds: float
    """Of all processes of the server together."""
    busiest: float
    """CPU-seconds of the process that has used most."""

    @property
    def capacity(self) -> float:
        """Messages per second that the server can take where each of its processes has a core of its own.

        The messages being spread over the processes as they were; the busiest one is what the others wait for.
        """
        return self.messages / max(self.busiest, GRAIN)

    @property
    def rates(self) -> dict[str, float]:
        """Messages per second of the clock, and of the server's processor time."""
        return {PER_CPU: self.messages / max(self.cpu_seconds, GRAIN), PER_SECOND: self.messages / self.seconds}


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is measured."""

    rounds: int
    quick: bool = False
    """Whether to do a tenth of it, to see that it works."""
    parts: int = 1
    """Into how many each round is cut; this is one of them."""

    def count(self, full: int) -> int:
        """Return how many there are to be, where a whole round of a full run has so many."""
        return max(full // (10 if self.quick else self.parts), 1)


@dataclass(frozen=True, slots=True)
class Case:
    """One thing that is measured: ``run`` starts what it needs, and returns a number for each metric."""

    subject: str
    run: Callable[[Extent], Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Scenario:
    """Cases that are measured side by side, one after the other in each round."""

    name: str
    title: str
    cases: Sequence[Case]
    most_rounds: int = 100
    """For what takes long and varies little."""
    parts: int = 1
    """Into how many each round is cut, each with its own figures: what disturbs for a moment is in few of them."""


class Key(NamedTuple):
    """What a row of the table is about."""

    scenario: str
    subject: str
    metric: str


@dataclass(slots=True)
class Results:
    """The numbers of all rounds, in their order."""

    values: dict[Key, list[float]] = field(default_factory=dict)

    def add(self, scenario: str, subject: str, sample: Mapping[str, float]) -> None:
        """Take in what one round of one case gave."""
        for metric, value in sample.items():
            self.values.setdefault(Key(scenario, subject, metric), []).append(value)

    def ratio(self, above: Key, below: Key) -> list[float]:
        """Return the ratio in each round; none where one of the two was not measured."""
        pairs = zip(self.values.get(above, ()), self.values.get(below, ()), strict=False)
        return [value / other for value, other in pairs if other]


@dataclass(frozen=True, slots=True)
class Spread:
    """The median, the least and the most of some numbers."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Sum them up; there must be one at least."""
        return cls(statistics.median(values), min(values), max(values))


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return the value that this share (0 to 1) of the sorted values does not exceed."""
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


def measure(scenarios: Iterable[Scenario], extent: Extent, results: Results, say: Callable[[str], None]) -> None:
    """Measure all cases of each scenario in turn, round by round; ``say`` is told what is under way."""
    for scenario in scenarios:
        part = extent if extent.quick else replace(extent, parts=scenario.parts)
        rounds = min(extent.rounds, scenario.most_rounds) * part.parts
        for number in range(rounds):
            for case in scenario.cases:
                say(f"{scenario.name}: {case.subject}, round {number + 1} of {rounds}")
                results.add(scenario.name, case.subject, case.run(part))
