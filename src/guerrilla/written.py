"""The text of an address or a reply, which is asked for several times a message, and mostly known when it was made."""

from __future__ import annotations

from typing import Any


def written(value: Any) -> str:
    """Return ``str(value)``, in less time where the value holds its text.

    It may be whatever a processor has put there, also what has an attribute of every name.
    """
    text: object = getattr(value, "_written", None)
    return text if isinstance(text, str) else str(value)
