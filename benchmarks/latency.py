"""How long a client waits for its 250, at half of what the server can take.

Messages are begun by the clock and not by the answers, so a slow answer does not keep the next message away. What the
server can take is what a full second of its processor is good for, measured just before. One client does not begin
as many, so there are two; the waiting times are those of the one that has waited longer.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from benchmarks.clients import CONNECTIONS, by_load, load
from benchmarks.load import Job
from benchmarks.measure import PER_CPU, Case, Extent, Scenario
from benchmarks.servers import guerrilla

MEDIAN: Final = "ms from the final dot to 250, median"
TAIL: Final = "ms from the final dot to 250, 99th percentile"
RATE: Final = "messages per second that were begun"
WANTED: Final = "messages per second that were to be begun"
SECONDS: Final = 10
CLIENTS: Final = 2


def scenarios() -> list[Scenario]:
    """Return what is measured here."""
    return [
        Scenario(
            "latency", "2 kB, connections kept, at half of the rate that fills a core", [Case("guerrilla", _latency)]
        )
    ]


def _latency(extent: Extent) -> Mapping[str, float]:
    with guerrilla() as server:
        by_load(server, Job(server.port, 500, pipelined=True))
        full = by_load(server, Job(server.port, extent.count(20_000), pipelined=True)).rates[PER_CPU]
        messages = max(int(full / 2 / CLIENTS * extent.count(SECONDS)), 100)
        job = Job(server.port, messages, connections=CONNECTIONS // CLIENTS, pipelined=True, rate=full / 2 / CLIENTS)
        with ThreadPoolExecutor(CLIENTS) as clients:
            outcomes = list(clients.map(load, [job] * CLIENTS))
        return {
            MEDIAN: max(each.median for each in outcomes) * 1000,
            TAIL: max(each.tail for each in outcomes) * 1000,
            WANTED: full / 2,
            RATE: sum(messages / each.seconds for each in outcomes),
        }
