"""Who is ready to be read from, or to be written to: epoll, or what a system has in its place, used as that."""

from __future__ import annotations

import select
import selectors
from typing import Final, Protocol

READABLE: Final = 1
WRITABLE: Final = 4
"""As epoll and poll(2) have them."""


class Readiness(Protocol):
    """What of ``select.epoll`` is used here."""

    def fileno(self) -> int:
        """Return the descriptor that is readable when one of those that are watched is ready."""

    def register(self, descriptor: int, events: int, /) -> None:
        """Watch a descriptor for these events. Raises OSError."""

    def modify(self, descriptor: int, events: int, /) -> None:
        """Watch it for others. Raises OSError."""

    def unregister(self, descriptor: int, /) -> None:
        """Watch it no more."""

    def poll(self, seconds: float, most: int, /) -> list[tuple[int, int]]:
        """Return at most so many of those that are ready, after so many seconds at most.

        For what they are ready is beside each in the system's own numbers, and of no use: a connection that is broken
        may be told of as either, or as neither.
        """

    def close(self) -> None:
        """Watch none of them any more."""


class OfSelector:
    """The same by the best selector that Python has for this system, such as kqueue."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    def fileno(self) -> int:
        """Return the selector's own descriptor."""
        return self._selector.fileno()

    def register(self, descriptor: int, events: int, /) -> None:
        """Watch a descriptor."""
        self._selector.register(descriptor, _asked(events))

    def modify(self, descriptor: int, events: int, /) -> None:
        """Watch it for other events."""
        self._selector.modify(descriptor, _asked(events))

    def unregister(self, descriptor: int, /) -> None:
        """Watch it no more."""
        self._selector.unregister(descriptor)

    def poll(self, seconds: float, most: int, /) -> list[tuple[int, int]]:
        """Return who is ready: all of them, since a selector has no limit."""
        return [(key.fd, events) for key, events in self._selector.select(seconds)]

    def close(self) -> None:
        """Close the selector."""
        self._selector.close()


def readiness() -> Readiness:
    """Return what this system has for it."""
    return select.epoll() if hasattr(select, "epoll") else OfSelector()


def _asked(events: int) -> int:
    readable, writable = events & READABLE, events & WRITABLE
    return (selectors.EVENT_READ if readable else 0) | (selectors.EVENT_WRITE if writable else 0)
