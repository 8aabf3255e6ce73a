"""What weighs on a server: idle connections, large messages, and many of them at once."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Final

from benchmarks.clients import by_load, by_smtp_source, idle, load
from benchmarks.load import Job
from benchmarks.measure import Case, Extent, Scenario
from benchmarks.servers import BenchmarkError, Server, aiosmtpd, guerrilla

IDLE: Final = 10_000
OCTETS_EACH: Final = "octets of memory a connection"
RESIDENT: Final = "MB resident at most"
COST: Final = "CPU-ms a MB"
UPLOAD: Final = 20_000_000
MEGABYTE: Final = 1_000_000
PATIENT: Final[Mapping[str, Any]] = {"max_clients": IDLE + 100, "timeout": 600}
"""Keys of a server that lets idle connections be: by default it would send them away after half a minute."""


def scenarios() -> list[Scenario]:
    """Return what is measured here."""
    return [
        Scenario(
            "idle",
            f"{IDLE:,} connections that have said EHLO",
            [
                Case("guerrilla", partial(_idle_memory, partial(guerrilla, server=PATIENT))),
                Case("aiosmtpd", partial(_idle_memory, aiosmtpd)),
            ],
            most_rounds=2,
        ),
        Scenario(
            "beside idle",
            "2 kB, connections kept, beside idle ones",
            [Case(f"{connections:,} idle", partial(_beside_idle, connections)) for connections in (0, 1_000, IDLE)],
        ),
        Scenario("uploads", "messages of 20 MB, all at once", [Case("guerrilla", _uploads)], most_rounds=1),
        Scenario(
            "octets",
            "large messages, one after the other",
            [
                Case(f"{size // MEGABYTE} MB by {verb}", partial(_octets, size, chunk))
                for size in (MEGABYTE, 10 * MEGABYTE, 100 * MEGABYTE)
                for verb, chunk in (("DATA", 0), ("BDAT", MEGABYTE))
            ],
            most_rounds=3,
        ),
    ]


def _idle_memory(start: Callable[[], AbstractContextManager[Server]], extent: Extent) -> Mapping[str, float]:
    with start() as server:
        load(Job(server.port, 200))
        before = server.resident()
        with idle(server, IDLE):
            return {OCTETS_EACH: (server.resident() - before) / IDLE}


def _beside_idle(connections: int, extent: Extent) -> Mapping[str, float]:
    with guerrilla(server=PATIENT) as server, idle(server, connections):
        return by_smtp_source(server, extent.count(20_000)).rates


def _uploads(extent: Extent) -> Mapping[str, float]:
    uploads = extent.count(500)
    folder = tempfile.gettempdir()
    if shutil.disk_usage(folder).free < 2 * uploads * UPLOAD:
        raise BenchmarkError(f"{folder} has no room for {2 * uploads * UPLOAD:,} octets; meant: --folder")
    with guerrilla(
        server={"max_clients": 600, "max_size": 2 * UPLOAD, "timeout": 300}, settings={"spool_path": folder}
    ) as server:
        load(Job(server.port, uploads, connections=uploads, size=UPLOAD))
        return {RESIDENT: server.resident(peak=True) / MEGABYTE}


def _octets(size: int, chunk: int, extent: Extent) -> Mapping[str, float]:
    messages = max(extent.count(500 * MEGABYTE) // size, 1)
    with guerrilla(
        server={"max_size": 2 * size, "timeout": 300}, settings={"spool_path": tempfile.gettempdir()}
    ) as server:
        load(Job(server.port, 20))
        figure = by_load(server, Job(server.port, messages, connections=1, size=size, chunk=chunk))
        return {COST: figure.cpu_seconds * 1000 / (messages * size / MEGABYTE)}
