"""What a run says: a table for people, and JSON for programs."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.goals import Verdict
from benchmarks.measure import Extent, Results, Scenario, Spread


def machine(extent: Extent) -> dict[str, Any]:
    """Describe where and how the numbers came about."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "rounds": extent.rounds,
        "quick": extent.quick,
        "python": platform.python_version(),
        "uvloop": version("uvloop"),
        "guerrilla": version("guerrilla"),
        "aiosmtpd": version("aiosmtpd"),
        "system": f"{platform.system()} {platform.release()}",
        "processor": processor(Path("/proc/cpuinfo").read_text()),
        "processors": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
    }


def processor(cpuinfo: str) -> str:
    """Read the name of the processor from /proc/cpuinfo."""
    names = (line.partition(":")[2].strip() for line in cpuinfo.splitlines() if line.startswith("model name"))
    return next(names, platform.machine())


def table(described: dict[str, Any], scenarios: Iterable[Scenario], results: Results, judged: Sequence[Verdict]) -> str:
    """Write everything that was measured, one line for each metric of each case."""
    return "\n".join([*_head(described), *_measured(scenarios, results), *_goals(judged)])


def _head(described: dict[str, Any]) -> Iterator[str]:
    extent = "quick, one round" if described["quick"] else f"rounds: {described['rounds']}"
    yield (
        f"{described['date']}, {extent}, Python {described['python']}, aiosmtpd {described['aiosmtpd']}, "
        f"{described['processors']} processors ({described['processor']}), load before: {described['load']:.1f}"
    )


def _measured(scenarios: Iterable[Scenario], results: Results) -> Iterator[str]:
    for scenario in scenarios:
        yield ""
        yield f"{scenario.name}: {scenario.title}"
        for key, values in results.values.items():
            if key.scenario == scenario.name:
                yield f"  {key.subject:<33}{key.metric:<45}{spread(Spread.of(values))}"


def _goals(judged: Sequence[Verdict]) -> Iterator[str]:
    if judged:
        yield ""
        yield "goals"
    for verdict in judged:
        goal = verdict.goal
        wanted = f"{goal.sense} {number(goal.bound)}"
        yield f"  {goal.what:<52}{wanted:<16}{'met' if verdict.met else 'NOT MET':<12}{spread(verdict.spread)}"


def spread(values: Spread) -> str:
    """Write the median, and in brackets the least and the most."""
    return f"{number(values.median):>9} ({number(values.least)}–{number(values.most)})"


def number(value: float) -> str:
    """Write a number with three digits that say something; whole ones from a hundred on."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def as_json(described: dict[str, Any], results: Results, judged: Sequence[Verdict]) -> str:
    """Write everything with the values of all rounds."""
    return json.dumps(
        {
            "machine": described,
            "results": [
                {**key._asdict(), "median": Spread.of(values).median, "values": values}
                for key, values in results.values.items()
            ],
            "goals": [
                {
                    "what": verdict.goal.what,
                    "sense": verdict.goal.sense,
                    "bound": verdict.goal.bound,
                    "median": verdict.spread.median,
                    "least": verdict.spread.least,
                    "most": verdict.spread.most,
                    "met": verdict.met,
                }
                for verdict in judged
            ],
        },
        indent=1,
        ensure_ascii=False,
    )
