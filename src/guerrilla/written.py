"""The text of an address or a reply, which is asked for several times a message, and mostly known when it was made."""

from __future__ import annotations

from typing import Any


def written(value: Any) -> str:
    """Return ``str(value)``, in less time where the value holds its text."""
    text: str = getattr(value, "_written", "")
    return text or str(value)
