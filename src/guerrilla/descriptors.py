"""How many file descriptors the process may have: as many as its clients can need."""

from __future__ import annotations

import resource
from typing import Final

from structlog.typing import FilteringBoundLogger

from guerrilla.config import AppConfig
from guerrilla.generation import places

PER_CLIENT: Final = 2
"""Its socket, and the file of a large message."""
APART: Final = 64
"""File descriptors that are needed beside those of the clients: stores, logs, the loop itself."""


def raise_descriptor_limit(config: AppConfig, log: FilteringBoundLogger) -> None:
    """Ask the system for as many file descriptors as there can be clients."""
    needed = sum(server.max_clients for server in places(config).values()) * PER_CLIENT + APART
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= needed or soft == resource.RLIM_INFINITY:
        return
    most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < needed:
        log.warning("max_clients is more than the system allows", needed=needed, limit=most)
