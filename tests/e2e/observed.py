"""What can be seen of a process from outside, by proc(5), and how to wait for it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from benchmarks.processes import stat_fields

PATIENCE_SECONDS: Final = 30.0
"""After so long, what is waited for is taken to never come."""

_LOOK_AGAIN: Final = 0.005
"""Seconds between two looks."""


async def until(condition: Callable[[], bool], what: str) -> None:
    """Return when the condition is true. Raises AssertionError, with the text, if it does not become so."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < end, f"never: {what}"
        await asyncio.sleep(_LOOK_AGAIN)


def children(pid: int) -> list[int]:
    """Return the processes that a process has started and that live, the oldest first."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_halted(pid: int) -> bool:
    """Tell whether SIGSTOP has reached a process."""
    return stat_fields(pid)[:1] == ["T"]


def descriptors(pid: int) -> list[str]:
    """Return what the open descriptors of a process are: paths, ``socket:[inode]`` and the like."""
    found = []
    for number in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/{pid}/fd/{number}"))
    return found


def sockets(pid: int) -> set[str]:
    """Return the sockets that a process has open."""
    return {each for each in descriptors(pid) if each.startswith("socket:")}


def client_ports(pid: int, port: int) -> set[int]:
    """Return the ports of the clients whose connections to this port a process holds."""
    mine = {each[8:-1] for each in sockets(pid)}
    found = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, *rest = line.split()
        if int(local.partition(":")[2], 16) == port and rest[6] in mine:
            found.add(int(remote.partition(":")[2], 16))
    return found - {0}
