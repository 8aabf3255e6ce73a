"""The numbers of a daemon, gathered; and how one of several processes lets the others know its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from guerrilla.backends.gateway import Gateway
from guerrilla.counters import Counters
from guerrilla.event_bus import EventBus
from guerrilla.loop_lag import LoopLag
from guerrilla.processes import Share
from guerrilla.server.limits import Memory
from guerrilla.stats import Stats

PUBLISH_EVERY: Final = 1.0
"""Seconds after which the other processes know of what happened in this one."""


class OwnStats:
    """Gathers the numbers from those who have them; ``gateway`` returns the one that holds by now, if there is one."""

    def __init__(
        self,
        counters: Counters,
        memory: Memory,
        lag: LoopLag,
        events: EventBus,
        gateway: Callable[[], Gateway | None],
    ) -> None:
        self._counters = counters
        self._memory = memory
        self._lag = lag
        self._events = events
        self._gateway = gateway
        self._share: Share | None = None
        self._publishing: asyncio.TimerHandle | None = None

    def total(self) -> Stats:
        """Return the numbers of all processes."""
        if self._share is None:
            return self._own()
        self._write(self._share)
        return self._share.stats.total() or self._own()

    def publish(self, share: Share) -> None:
        """Let the other processes know this one's numbers, now and again and again."""
        self._share = share
        self._write(share)
        self._publishing = asyncio.get_running_loop().call_later(PUBLISH_EVERY, self.publish, share)

    def stop(self) -> None:
        """Let them know for the last time."""
        if self._publishing is not None:
            self._publishing.cancel()
        if self._share is not None:
            self._write(self._share)

    def _write(self, share: Share) -> None:
        share.stats.write(share.slot, self._own())

    def _own(self) -> Stats:
        gateway = self._gateway()
        return Stats.of(
            self._counters,
            queue_depth=gateway.queue_depth if gateway is not None else 0,
            workers=gateway.workers if gateway is not None else 0,
            workers_busy=gateway.workers_busy if gateway is not None else 0,
            memory_in_flight=self._memory.held,
            loop_lag=self._lag.last,
            loop_lag_max=self._lag.largest,
            events_dropped=self._events.dropped,
        )
