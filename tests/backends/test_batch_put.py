"""Batcher.put: who does not wait is told, once, and nothing is kept that was withdrawn."""

from __future__ import annotations

import asyncio
import random
import traceback
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guerrilla.backends.batch import Batcher, BatchRefusedError


def unexpected(error: Exception) -> None:
    raise AssertionError(f"an undo failed: {error!r}")


class Store:
    """A store whose commits end when the test says so, and what was told of each item."""

    def __init__(self) -> None:
        self.commits: asyncio.Queue[tuple[list[int], asyncio.Future[None]]] = asyncio.Queue()
        self.undone: list[int] = []
        self.told: list[tuple[int, BaseException | None]] = []
        self.batcher = Batcher(self._commit, self._undo, on_error=unexpected)

    async def _commit(self, items: Sequence[int]) -> None:
        end = asyncio.get_running_loop().create_future()
        self.commits.put_nowait((list(items), end))
        await end

    async def _undo(self, items: Sequence[int]) -> None:
        self.undone += items

    def put(self, item: int) -> object:
        return self.batcher.put(item, lambda error: self.told.append((item, error)))


async def test_each_is_told_when_the_commit_is_done_and_not_before() -> None:
    """Those who wait, and those who do not, share a batch."""
    store = Store()
    store.put(1)
    adding = asyncio.create_task(store.batcher.add(2))
    await asyncio.sleep(0)
    items, end = await store.commits.get()
    assert items == [1, 2]
    assert store.told == []
    end.set_result(None)
    await adding
    assert store.told == [(1, None)]
    await store.batcher.close()


async def test_each_is_told_why_its_batch_has_failed() -> None:
    store = Store()
    for item in (1, 2):
        store.put(item)
    error = OSError("gone")
    (await store.commits.get())[1].set_exception(error)
    await store.batcher.close()
    assert store.told == [(1, error), (2, error)]


async def test_what_is_told_to_many_does_not_grow() -> None:
    """Each may raise it, and log where it came from."""
    lengths: list[int] = []

    def tell(error: BaseException | None) -> None:
        assert error is not None
        try:
            raise error
        except OSError:
            lengths.append(len(traceback.extract_tb(error.__traceback__)))

    store = Store()
    for item in range(5):
        store.batcher.put(item, tell)
    (await store.commits.get())[1].set_exception(OSError("gone"))
    await store.batcher.close()
    assert lengths == [lengths[0]] * 5


@dataclass(frozen=True)
class FrozenError(Exception):
    """One that lets nothing be written on it."""

    why: str


async def test_an_error_that_cannot_be_written_on_is_told_as_well() -> None:
    store = Store()
    store.put(1)
    store.put(2)
    error = FrozenError("full")
    (await store.commits.get())[1].set_exception(error)
    await store.batcher.close()
    assert store.told == [(1, error), (2, error)]


async def test_a_commit_that_is_no_coroutine_may_raise_stop_iteration() -> None:
    """No future takes that for an exception."""

    def commit(items: Sequence[int]) -> Awaitable[None]:
        raise StopIteration

    batcher: Batcher[int] = Batcher(commit, commit, on_error=unexpected)
    with pytest.raises(RuntimeError, match="StopIteration"):
        await batcher.add(1)


def test_an_interrupt_while_it_is_told_ends_the_program() -> None:
    async def commit(items: Sequence[int]) -> None:
        return None

    def tell(error: BaseException | None) -> None:
        raise KeyboardInterrupt

    async def run() -> None:
        batcher: Batcher[int] = Batcher(commit, commit, on_error=unexpected)
        batcher.put(1, tell)
        await asyncio.Event().wait()

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(run())


@pytest.mark.parametrize(
    ("failure", "reported"),
    [
        (ValueError("a bug"), ValueError),
        (StopIteration(), RuntimeError),
        (asyncio.CancelledError(), RuntimeError),
        (SystemExit(3), RuntimeError),
        (GeneratorExit(), RuntimeError),
    ],
)
async def test_a_tell_that_raises_is_nobody_else_s_concern(failure: BaseException, reported: type[Exception]) -> None:
    errors: list[Exception] = []

    async def commit(items: Sequence[int]) -> None:
        return None

    def tell(error: BaseException | None) -> None:
        raise failure

    told: list[BaseException | None] = []
    batcher = Batcher(commit, commit, on_error=errors.append)
    batcher.put(1, tell)
    batcher.put(2, told.append)
    await batcher.add(3)
    await batcher.close()
    assert told == [None]
    assert [type(error) for error in errors] == [reported]


async def test_only_the_culprit_is_told_of_a_refusal() -> None:
    told: dict[int, BaseException | None] = {}
    refusal = BatchRefusedError("too odd")

    async def commit(items: Sequence[int]) -> None:
        if 3 in items:
            raise refusal

    batcher: Batcher[int] = Batcher(commit, commit, on_error=unexpected)
    for item in range(5):
        batcher.put(item, lambda error, item=item: told.update({item: error}))  # type: ignore[misc]
    await batcher.close()
    assert told == {0: None, 1: None, 2: None, 3: refusal, 4: None}


async def test_what_is_withdrawn_while_it_waits_is_not_committed() -> None:
    store = Store()
    tickets = [store.batcher.put(item, unexpected_tell) for item in (1, 2)]
    store.put(3)
    for ticket in tickets:
        ticket.withdraw()
    items, end = await store.commits.get()
    assert items == [3]
    end.set_result(None)
    await store.batcher.close()
    assert (store.told, store.undone) == ([(3, None)], [])


def unexpected_tell(error: BaseException | None) -> None:
    raise AssertionError("it was withdrawn")


@pytest.mark.parametrize("error", [None, ConnectionError("cut in the middle of COMMIT")])
async def test_what_is_withdrawn_while_it_commits_is_undone(error: Exception | None) -> None:
    """Also if the commit fails: it may have been done all the same."""
    store = Store()
    ticket = store.batcher.put(1, unexpected_tell)
    store.put(2)
    _, end = await store.commits.get()
    ticket.withdraw()
    if error is None:
        end.set_result(None)
    else:
        end.set_exception(error)
    await store.batcher.close()
    assert (store.told, store.undone) == ([(2, error)], [1])


async def test_a_commit_of_which_all_is_withdrawn_is_cut_short() -> None:
    store = Store()
    tickets = [store.batcher.put(item, unexpected_tell) for item in (1, 2)]
    _, end = await store.commits.get()
    for ticket in tickets:
        ticket.withdraw()
    await store.batcher.close()
    assert end.cancelled()
    assert store.undone == [1, 2]


async def test_what_is_withdrawn_and_refused_need_not_be_undone() -> None:
    """What the store has refused is not there."""
    begun = asyncio.Event()
    undone: list[int] = []

    async def commit(items: Sequence[int]) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise BatchRefusedError from None

    async def undo(items: Sequence[int]) -> None:
        undone.extend(items)

    batcher = Batcher(commit, undo, on_error=unexpected)
    ticket = batcher.put(1, unexpected_tell)
    await begun.wait()
    ticket.withdraw()
    await batcher.close()
    assert undone == []


async def test_a_batch_that_waits_for_the_last_one_leaves_when_it_is_put(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guerrilla.backends.batch._LEAST_PATIENCE", 60.0)
    store = Store()
    for first, second in ((1, 2), (3, 4)):
        store.put(first)
        for _ in range(10 if first > 1 else 0):
            await asyncio.sleep(0)
        assert store.commits.empty()
        store.put(second)
        items, end = await store.commits.get()
        assert items == [first, second]
        end.set_result(None)
    await store.batcher.close()


async def test_nothing_is_put_into_one_that_is_closed() -> None:
    store = Store()
    await store.batcher.close()
    with pytest.raises(RuntimeError, match="closed"):
        store.put(1)


@given(seed=st.integers(0, 2**32), max_items=st.integers(1, 5))
async def test_kept_is_what_was_told(seed: int, max_items: int) -> None:
    """Whatever is refused, fails or is withdrawn at whatever moment: kept is exactly what was told that it is."""
    rng = random.Random(seed)
    kept: set[int] = set()
    told: dict[int, BaseException | None] = {}

    async def ticks(most: int = 3) -> None:
        for _ in range(rng.randrange(most)):
            await asyncio.sleep(0)

    async def commit(items: Sequence[int]) -> None:
        assert 1 <= len(items) <= max_items
        await ticks()
        if any(item % 7 == 0 for item in items):
            raise BatchRefusedError
        if rng.randrange(8) == 0:
            raise OSError
        kept.update(items)
        await ticks()  # cut short here, it is kept all the same

    async def undo(items: Sequence[int]) -> None:
        await ticks()
        kept.difference_update(items)

    def tell(item: int, error: BaseException | None) -> None:
        assert item not in told
        assert item not in withdrawn
        told[item] = error

    batcher: Batcher[int] = Batcher(commit, undo, on_error=unexpected, max_items=max_items)
    withdrawn: set[int] = set()
    tickets = []
    for item in range(1, 13):
        await ticks()
        tickets.append((item, batcher.put(item, lambda error, item=item: tell(item, error))))  # type: ignore[misc]
        if rng.randrange(3) == 0:
            other, ticket = rng.choice(tickets)
            if other not in told and other not in withdrawn:
                withdrawn.add(other)
                ticket.withdraw()
    await batcher.close()
    assert kept == {item for item, error in told.items() if error is None}
    assert {*told} | withdrawn == {*range(1, 13)}
