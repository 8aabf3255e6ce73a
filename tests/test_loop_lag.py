"""How late the loop is gets measured while it runs, and is forgotten after a minute."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import pytest

from guerrilla.loop_lag import INTERVAL, LoopLag


class Loop:
    """A loop whose time is set by the test; it has room for one timer, since that is all that is needed."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.calls: list[tuple[float, Callable[..., None], tuple[object, ...]]] = []

    def call_later(self, delay: float, callback: Callable[..., None], *args: object) -> asyncio.TimerHandle:
        call = (self.now + delay, callback, args)
        self.calls.append(call)

        class Handle:
            def cancel(handle) -> None:
                self.calls.remove(call)

        return cast(asyncio.TimerHandle, Handle())

    def pass_by(self, late: float) -> None:
        """Run the timer, so many seconds late."""
        ((due, callback, args),) = self.calls
        self.calls.clear()
        self.now = due + late
        callback(*args)


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Loop:
    loop = Loop()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: loop)
    return loop


@pytest.fixture
def lag(loop: Loop) -> LoopLag:
    return LoopLag(lambda: loop.now)


def test_before_the_first_measurement_the_loop_is_not_late(lag: LoopLag) -> None:
    assert (lag.last, lag.largest) == (0.0, 0.0)


def test_the_last_and_the_largest_lag_are_kept(lag: LoopLag, loop: Loop) -> None:
    lag.start()
    for late in (0.25, 2.0, 0.125):
        loop.pass_by(late)
    assert (lag.last, lag.largest) == (0.125, 2.0)


def test_a_timer_that_comes_early_is_not_late(lag: LoopLag, loop: Loop) -> None:
    lag.start()
    loop.pass_by(-0.25)
    assert (lag.last, lag.largest) == (0.0, 0.0)


def test_what_was_a_minute_ago_does_not_count(lag: LoopLag, loop: Loop) -> None:
    lag.start()
    loop.pass_by(2.0)
    loop.pass_by(0.25)
    loop.now += 60 - INTERVAL
    assert lag.largest == 0.25
    loop.now += 1
    assert (lag.last, lag.largest) == (0.25, 0.0)


def test_what_is_kept_is_bounded(lag: LoopLag, loop: Loop) -> None:
    lag.start()
    loop.pass_by(2.0)
    for _ in range(1000):
        loop.pass_by(0.0)
    assert len(lag._measured) == 120
    assert lag.largest == 0.0


def test_after_the_stop_nothing_is_measured(lag: LoopLag, loop: Loop) -> None:
    lag.stop()
    lag.start()
    lag.stop()
    lag.stop()
    assert not loop.calls


def test_a_second_start_begins_anew(lag: LoopLag, loop: Loop) -> None:
    lag.start()
    loop.pass_by(2.0)
    lag.start()
    assert (lag.last, lag.largest, len(loop.calls)) == (0.0, 0.0, 1)


async def test_on_a_real_loop_it_measures() -> None:
    measured = asyncio.Event()
    times = iter([0.0, 3.0])

    def clock() -> float:
        now = next(times, None)
        if now is None:
            measured.set()
            return 3.0
        return now

    lag = LoopLag(clock)
    lag.start()
    async with asyncio.timeout(20):
        await measured.wait()
    lag.stop()
    assert lag.last == 3.0 - INTERVAL
