"""Time limits for many things at once, by one timer."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

ThingT = TypeVar("ThingT", bound=Hashable)


class Deadlines(Generic[ThingT]):
    """Calls ``expire`` for each thing that was added and not removed within ``limit`` seconds.

    Since the limit is the same for all, the first that came is the first to go: one timer serves them, and adding and
    removing costs next to nothing.
    """

    def __init__(self, limit: float, expire: Callable[[ThingT], None], loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._limit = limit
        self._expire = expire
        self._due: OrderedDict[ThingT, float] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, thing: ThingT) -> None:
        """Begin the thing's time."""
        due = self._loop.time() + self._limit
        self._due[thing] = due
        if self._timer is None:
            self._timer = self._loop.call_at(due, self._check)

    def remove(self, thing: ThingT) -> None:
        """End the thing's time; it may have ended before."""
        self._due.pop(thing, None)

    def expire_all(self) -> None:
        """End the time of all that are here, as if it were over."""
        while self._due:
            self._expire(self._due.popitem(last=False)[0])

    def _check(self) -> None:
        loop = self._loop
        self._timer = None
        while self._due:
            thing, due = next(iter(self._due.items()))
            if due > loop.time():
                # It was added after the one that the timer was set for.
                self._timer = loop.call_at(due, self._check)
                return
            del self._due[thing]
            self._expire(thing)
