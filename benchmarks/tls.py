"""What TLS costs: handshakes, and messages on connections that are kept after one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Final

from benchmarks.clients import by_load
from benchmarks.load import Job
from benchmarks.measure import PER_CPU, Case, Extent, Scenario
from benchmarks.servers import TLS, Server, aiosmtpd, guerrilla

HANDSHAKES: Final = "handshakes per CPU-second"


def scenarios() -> list[Scenario]:
    """Return what is measured here."""
    kinds: tuple[TLS, ...] = ("starttls", "implicit")
    servers: dict[str, Callable[..., AbstractContextManager[Server]]] = {"guerrilla": guerrilla, "aiosmtpd": aiosmtpd}
    return [
        Scenario(
            "tls",
            "TLS 1.3, EC P-256, no session resumed; a handshake with EHLO and QUIT; 2 kB, connections kept",
            [Case(f"{name}, {kind}", partial(_tls, start, kind)) for kind in kinds for name, start in servers.items()],
        )
    ]


def _tls(start: Callable[..., AbstractContextManager[Server]], kind: TLS, extent: Extent) -> Mapping[str, float]:
    with start(tls=kind) as server:
        by_load(server, Job(server.port, 100, size=0, kept=False, tls=kind))
        handshakes = by_load(server, Job(server.port, extent.count(2_000), size=0, kept=False, tls=kind))
        messages = by_load(server, Job(server.port, extent.count(10_000), tls=kind))
        return {HANDSHAKES: handshakes.rates[PER_CPU], PER_CPU: messages.rates[PER_CPU]}
