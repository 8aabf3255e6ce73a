"""How many messages a second of processor time is good for: beside other servers, with a store, with pipelining."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Final

from benchmarks.clients import CONNECTIONS, by_load, by_smtp_source, embedded
from benchmarks.load import Job
from benchmarks.measure import PER_CPU, Case, Extent, Scenario
from benchmarks.processes import on_one_core
from benchmarks.servers import CHAIN, STORE, Server, aiosmtpd, guerrilla, limit, smtp_sink

BATCH: Final = "messages per commit"
CAPACITY: Final = "messages per CPU-second of the busiest process"
SHARE: Final = "messages of the busiest process / all"
LOGGING: Final = "aiosmtpd, log"
"""With its log at level info in a file, as guerrilla has it."""
CONNECTION_COUNTS: Final = (1, 5, 20, 100)

_Start = Callable[[], AbstractContextManager[Server]]

SERVERS: Final[Mapping[str, _Start]] = {
    "guerrilla": guerrilla,
    LOGGING: partial(aiosmtpd, log=True),
    "aiosmtpd": aiosmtpd,
    "smtp-sink": smtp_sink,
    "limit": limit,
}

# How many messages each takes in about two seconds, so that a third of it is more than the grain of the processor's
# clock.
_COUNTS: Final[Mapping[str, Mapping[str, int]]] = {
    "kept": {"guerrilla": 40_000, LOGGING: 5_000, "aiosmtpd": 10_000, "smtp-sink": 60_000, "limit": 80_000},
    "each": {"guerrilla": 20_000, LOGGING: 2_500, "aiosmtpd": 5_000, "smtp-sink": 16_000, "limit": 24_000},
    "large": {"guerrilla": 20_000, LOGGING: 1_000, "aiosmtpd": 1_000, "smtp-sink": 5_000, "limit": 40_000},
}


def scenarios() -> list[Scenario]:
    """Return what is measured here."""
    return [
        _beside_others("kept", "2 kB, connections kept"),
        _beside_others("each", "2 kB, a connection each", kept=False),
        _beside_others("large", "100 kB, connections kept", size=102_400),
        Scenario(
            "store",
            "2 kB, connections kept, into the embedded store",
            [
                Case(f"{name}, {connections}", partial(_with_store, chain, connections))
                for connections in CONNECTION_COUNTS
                for name, chain in (("no store", CHAIN), ("SQLite", STORE))
            ]
            + [Case(f"SQLite alone, {CONNECTIONS} a commit", _alone)],
            parts=2,
        ),
        Scenario(
            "pipelining",
            "2 kB, connections kept, client load.py",
            [
                Case("one command at a time", partial(_pipelining, False)),
                Case("MAIL, RCPT, DATA in one segment", partial(_pipelining, True)),
            ],
            parts=2,
        ),
        Scenario(
            "processes",
            "2 kB, one process and two on the same socket",
            [
                Case(f"{title}, {processes}", partial(_in_processes, processes, kept))
                for title, kept in (("kept", True), ("each", False))
                for processes in (1, 2)
            ],
            parts=2,
        ),
    ]


def _beside_others(name: str, title: str, *, size: int = 2048, kept: bool = True) -> Scenario:
    def run(server: str, extent: Extent) -> Mapping[str, float]:
        with SERVERS[server]() as running:
            return by_smtp_source(running, extent.count(_COUNTS[name][server]), size=size, kept=kept).rates

    return Scenario(name, title, [Case(server, partial(run, server)) for server in SERVERS], parts=3)


def _with_store(chain: str, connections: int, extent: Extent) -> Mapping[str, float]:
    messages = extent.count(2_000 if connections == 1 else 10_000)
    with guerrilla(chain, server={"max_clients": 2 * max(CONNECTION_COUNTS)}) as server:
        before = server.commits()
        figure = by_smtp_source(server, messages, connections=connections)
        commits = server.commits() - before
        return figure.rates | ({BATCH: server.kept() / commits} if commits else {})


def _alone(extent: Extent) -> Mapping[str, float]:
    return embedded(extent.count(10_000), CONNECTIONS).rates


def _pipelining(pipelined: bool, extent: Extent) -> Mapping[str, float]:
    with guerrilla() as server:
        by_load(server, Job(server.port, 200))
        return by_load(server, Job(server.port, extent.count(20_000), pipelined=pipelined)).rates


def _in_processes(processes: int, kept: bool, extent: Extent) -> Mapping[str, float]:
    """Measure with as many connections for each process, on one core: so each of them is as busy as on its own."""
    messages = extent.count(24_000 if kept else 12_000)
    with on_one_core(), guerrilla(settings={"processes": processes}) as server:
        figure = by_smtp_source(server, messages, connections=CONNECTIONS * processes, kept=kept)
        return {PER_CPU: figure.rates[PER_CPU], CAPACITY: figure.capacity, SHARE: server.busiest_share()}
