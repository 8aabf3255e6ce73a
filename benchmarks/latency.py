"""How long a client waits for its 250, at half of the rate that server and clients come to here.

Messages are begun by the clock and not by the answers, so a slow answer does not keep the next message away. What they
come to is measured just before, with the same clients, which wait for nothing then. One client does not begin as many,
so there are two; the waiting times are those of the one that has waited longer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from benchmarks.clients import CONNECTIONS, by_load, load
from benchmarks.load import Job, Outcome
from benchmarks.measure import Case, Extent, Scenario
from benchmarks.servers import guerrilla

MEDIAN: Final = "ms from the final dot to 250, median"
TAIL: Final = "ms from the final dot to 250, 99th percentile"
RATE: Final = "messages per second that were begun"
WANTED: Final = "messages per second that were to be begun"
SECONDS: Final = 10
CLIENTS: Final = 2
EACH: Final = CONNECTIONS // CLIENTS


def scenarios() -> list[Scenario]:
    """Return what is measured here."""
    return [
        Scenario(
            "latency", "2 kB, connections kept, pipelined, at half of the highest rate", [Case("guerrilla", _latency)]
        )
    ]


def _latency(extent: Extent) -> Mapping[str, float]:
    with guerrilla() as server:
        by_load(server, Job(server.port, 500, pipelined=True))
        most = _rate(_by_all(Job(server.port, extent.count(20_000), connections=EACH, pipelined=True)))
        share = most / 2 / CLIENTS
        messages = max(int(share * extent.count(SECONDS)), 100)
        measured = _by_all(Job(server.port, messages, connections=EACH, pipelined=True, rate=share))
        return {
            MEDIAN: max(each.median for _, each in measured) * 1000,
            TAIL: max(each.tail for _, each in measured) * 1000,
            WANTED: most / 2,
            RATE: _rate(measured),
        }


def _by_all(job: Job) -> list[tuple[Job, Outcome]]:
    """Have all clients do the job at the same time."""
    with ThreadPoolExecutor(CLIENTS) as clients:
        return [(job, outcome) for outcome in clients.map(load, [job] * CLIENTS)]


def _rate(done: Sequence[tuple[Job, Outcome]]) -> float:
    return sum(job.messages / outcome.seconds for job, outcome in done)
