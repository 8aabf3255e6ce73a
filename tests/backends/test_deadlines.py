"""Deadlines: one timer tells in time of all that was not removed in time."""

from __future__ import annotations

import asyncio

from guerrilla.backends.deadlines import Deadlines

LIMIT = 0.01


class Expiry:
    """Notes what has expired; ``until`` waits for one of them."""

    def __init__(self) -> None:
        self.things: list[str] = []
        self._changed = asyncio.Event()

    def __call__(self, thing: str) -> None:
        self.things.append(thing)
        self._changed.set()

    async def until(self, thing: str) -> None:
        while thing not in self.things:
            self._changed.clear()
            await self._changed.wait()


async def test_expire_in_order() -> None:
    """What was not removed expires, in the order in which it was added."""
    expiry = Expiry()
    deadlines = Deadlines(LIMIT, expiry, asyncio.get_running_loop())
    for thing in "abc":
        deadlines.add(thing)
    deadlines.remove("b")
    await expiry.until("c")
    assert expiry.things == ["a", "c"]


async def test_each_has_its_own_time() -> None:
    """What was added later does not expire with what was added before it, but after a limit of its own."""
    expiry = Expiry()
    deadlines = Deadlines(0.04, expiry, asyncio.get_running_loop())
    deadlines.add("early")
    asyncio.get_running_loop().call_later(0.02, deadlines.add, "late")
    await expiry.until("early")
    assert expiry.things == ["early"]
    await expiry.until("late")


async def test_removed_before_a_later_one() -> None:
    """The timer that was set for a thing that has gone still serves the one that came after it."""
    expiry = Expiry()
    deadlines = Deadlines(LIMIT, expiry, asyncio.get_running_loop())
    deadlines.add("gone")
    deadlines.remove("gone")
    deadlines.add("there")
    await expiry.until("there")
    assert expiry.things == ["there"]


async def test_used_again_when_all_is_over() -> None:
    """After all has expired, a new thing has its time again."""
    expiry = Expiry()
    deadlines = Deadlines(LIMIT, expiry, asyncio.get_running_loop())
    deadlines.add("a")
    await expiry.until("a")
    deadlines.add("b")
    await expiry.until("b")


async def test_removing_what_is_not_there() -> None:
    """What has expired, or was never added, may be removed."""
    expiry = Expiry()
    deadlines = Deadlines(LIMIT, expiry, asyncio.get_running_loop())
    deadlines.add("a")
    await expiry.until("a")
    deadlines.remove("a")
    deadlines.remove("b")
    deadlines.add("c")
    await expiry.until("c")
    assert expiry.things == ["a", "c"]


async def test_all_can_be_over_at_once() -> None:
    """What is expired before its time expires once, in its order; what comes later has a time of its own."""
    expiry = Expiry()
    deadlines = Deadlines(LIMIT, expiry, asyncio.get_running_loop())
    for thing in "abc":
        deadlines.add(thing)
    deadlines.expire_all()
    assert expiry.things == ["a", "b", "c"]
    deadlines.add("d")
    await expiry.until("d")
    assert expiry.things == ["a", "b", "c", "d"]
