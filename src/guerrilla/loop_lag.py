"""How late an event loop is: the time that a callback waits for whatever else the loop does."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Final

INTERVAL: Final = 0.5
"""Seconds between two measurements."""
WINDOW: Final = 60.0
"""Seconds that a measurement counts for ``largest``."""


class LoopLag:
    """Measures the loop that it is started on, twice a second, until it is stopped."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        # uvloop's own clock stands still while a callback runs, and that is what is to be measured.
        self._clock = clock
        self._measured: deque[tuple[float, float]] = deque(maxlen=int(WINDOW / INTERVAL))
        self._timer: asyncio.TimerHandle | None = None

    @property
    def last(self) -> float:
        """Seconds that the loop was late the last time; 0 before the first."""
        return self._measured[-1][1] if self._measured else 0.0

    @property
    def largest(self) -> float:
        """The most seconds that the loop was late in the last minute."""
        since = self._clock() - WINDOW
        return max((lag for when, lag in self._measured if when >= since), default=0.0)

    def start(self) -> None:
        """Begin to measure the running loop; what was measured before is forgotten."""
        self.stop()
        self._measured.clear()
        self._schedule(asyncio.get_running_loop())

    def stop(self) -> None:
        """Measure no more. May be called in any state."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = loop.call_later(INTERVAL, self._measure, loop, self._clock() + INTERVAL)

    def _measure(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        now = self._clock()
        self._measured.append((now, max(0.0, now - due)))
        self._schedule(loop)
