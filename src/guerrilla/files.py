"""How a file is opened that somebody else has named."""

from __future__ import annotations

import os


def without_waiting(path: str, flags: int) -> int:
    """Open a file, as an ``opener`` of ``open``: a pipe that has no other end yet, or a device, holds up nobody."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY, 0o666)
