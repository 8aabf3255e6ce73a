"""Batcher: one commit for many, told to each only when it is done; and nothing is kept that nobody was told of."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guerrilla.backends.batch import Batcher, BatchRefusedError


class Call:
    """One commit or undo under way; the test says how it ends, by ``answer``."""

    def __init__(self, items: Sequence[int]) -> None:
        self.items = list(items)
        self.answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def done(self) -> None:
        self.answer.set_result(None)


class Store:
    """A store whose every call is answered by the test."""

    def __init__(self, max_items: int = 256, max_size: int | None = None) -> None:
        self.commits: asyncio.Queue[Call] = asyncio.Queue()
        self.undos: asyncio.Queue[Call] = asyncio.Queue()
        self.errors: list[Exception] = []
        self.batcher = Batcher(
            self.commit,
            self.undo,
            on_error=self.errors.append,
            max_items=max_items,
            size=None if max_size is None else abs,
            max_size=max_size or 0,
        )

    async def commit(self, items: Sequence[int]) -> None:
        await self._call(self.commits, items)

    async def undo(self, items: Sequence[int]) -> None:
        await self._call(self.undos, items)

    async def _call(self, calls: asyncio.Queue[Call], items: Sequence[int]) -> None:
        call = Call(items)
        calls.put_nowait(call)
        await call.answer

    def add(self, *items: int) -> list[asyncio.Task[None]]:
        return [asyncio.create_task(self.batcher.add(item)) for item in items]

    async def close(self) -> None:
        """Close, and see that nothing is asked of the store any more."""
        await self.batcher.close()
        assert self.commits.empty()
        assert self.undos.empty()


class Undone:
    """An undo that notes what it is given."""

    def __init__(self) -> None:
        self.items: list[int] = []

    async def __call__(self, items: Sequence[int]) -> None:
        self.items += items


def unexpected(error: Exception) -> None:
    raise AssertionError(f"an undo failed: {error!r}")


async def ended(*tasks: asyncio.Task[None]) -> list[BaseException | None]:
    """Wait for the tasks; return what each has raised."""
    return list(await asyncio.gather(*tasks, return_exceptions=True))


# Batches


async def test_returns_after_the_commit() -> None:
    """An add returns when its commit has ended, and not before."""
    store = Store()
    [adding] = store.add(1)
    commit = await store.commits.get()
    assert commit.items == [1]
    assert not adding.done()
    commit.done()
    await adding
    await store.close()


async def test_next_batch_fills_while_one_commits() -> None:
    """What comes while a batch commits is committed together, in its order."""
    store = Store()
    tasks = store.add(1)
    first = await store.commits.get()
    tasks += store.add(2, 3, 4)
    first.done()
    second = await store.commits.get()
    assert second.items == [2, 3, 4]
    assert [task.done() for task in tasks] == [True, False, False, False]
    second.done()
    await asyncio.gather(*tasks)
    await store.close()


async def test_who_is_waited_for_in_vain_is_waited_for_half_as_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that waits to no purpose halves what the next one may wait; one that has all gives it back."""
    seconds = itertools.count(0.0, 0.008)  # of a clock that is read at the begin and the end of a commit
    monkeypatch.setattr("guerrilla.backends.batch.time", SimpleNamespace(monotonic=seconds.__next__))
    store = Store()
    patience = []
    for items in ((1, 2), (3,), (4, 5), (6,), (7,)):
        tasks = store.add(*items)
        (await store.commits.get()).done()
        await asyncio.gather(*tasks)
        await asyncio.sleep(0)
        patience.append(round(store.batcher._patience, 6))
    assert patience == [0.008, 0.004, 0.008, 0.004, 0.008]
    await store.close()


async def test_max_items() -> None:
    """A batch holds no more than max_items; the rest follows in the next one."""
    store = Store(max_items=2)
    tasks = store.add(1, 2, 3, 4, 5)
    batches = []
    for _ in range(3):
        commit = await store.commits.get()
        batches.append(commit.items)
        commit.done()
    assert batches == [[1, 2], [3, 4], [5]]
    await asyncio.gather(*tasks)
    await store.close()


async def test_max_size() -> None:
    """A batch holds no more than max_size octets; a larger item goes alone, and none overtakes another."""
    store = Store(max_size=10)
    tasks = store.add(4, 6, 1, 30, 2, 8, 0)
    batches = []
    for _ in range(4):
        commit = await store.commits.get()
        batches.append(commit.items)
        commit.done()
    assert batches == [[4, 6], [1], [30], [2, 8, 0]]
    await asyncio.gather(*tasks)
    await store.close()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a batch be held as long as the test may take."""
    monkeypatch.setattr("guerrilla.backends.batch._LEAST_PATIENCE", 60.0)
    monkeypatch.setattr("guerrilla.backends.batch._MOST_PATIENCE", 60.0)


async def test_what_comes_in_one_turn_shares_a_commit() -> None:
    """What comes in the same turn of the loop, or in the next, is committed together, also at the very first."""
    store = Store()
    tasks = store.add(1)
    await asyncio.sleep(0)
    tasks += store.add(2, 3)
    commit = await store.commits.get()
    assert commit.items == [1, 2, 3]
    commit.done()
    assert await ended(*tasks) == [None] * 3
    await store.close()


@pytest.mark.usefixtures("patient")
async def test_halves_join() -> None:
    """Who comes again after it was told, some turns of the loop later, is with those who came in the meantime."""
    sizes: list[int] = []

    async def commit(items: Sequence[int]) -> None:
        sizes.append(len(items))
        for _ in range(20):
            await asyncio.sleep(0)

    async def client(*pauses: int) -> None:
        for pause in pauses:
            for _ in range(pause):
                await asyncio.sleep(0)
            await batcher.add(1)

    batcher = Batcher(commit, Undone(), on_error=unexpected)
    await asyncio.gather(client(2, 1, 90, 3), client(2, 2, 1, 40), client(8, 30, 2), client(9, 1, 60), client(9, 50, 1))
    assert sizes == [2, 5, 5, 5]
    await batcher.close()


@pytest.mark.usefixtures("patient")
async def test_who_is_alone_waits_for_nobody() -> None:
    """A batch is not held when nobody is missing: one client is served at once, however often it comes."""
    store = Store()
    for item in range(3):
        [adding] = store.add(item)
        (await store.commits.get()).done()
        await adding
    await store.close()


async def test_who_does_not_come_is_not_waited_for_long() -> None:
    """A batch goes without those who were in the last one and stay away, and the one after it does not wait at all."""
    store = Store()
    tasks = store.add(1, 2, 3)
    (await store.commits.get()).done()
    await asyncio.gather(*tasks)
    for item in (4, 5):
        [adding] = store.add(item)
        commit = await store.commits.get()
        assert commit.items == [item]
        commit.done()
        await adding
    await store.close()


@pytest.mark.usefixtures("patient")
async def test_close_holds_no_batch() -> None:
    """When the batcher is closed nobody can come any more, so a batch that waits for others is committed."""
    store = Store()
    tasks = store.add(1, 2)
    (await store.commits.get()).done()
    await asyncio.gather(*tasks)
    [adding] = store.add(3)
    for _ in range(10):
        await asyncio.sleep(0)
    assert store.commits.empty(), "it waits for the other one"
    closing = asyncio.create_task(store.batcher.close())
    (await store.commits.get()).done()
    await closing
    await adding


async def test_used_again_after_a_rest() -> None:
    """When all was committed, and nothing runs any more, the next add is committed too."""
    store = Store()
    for item in (1, 2):
        [adding] = store.add(item)
        (await store.commits.get()).done()
        await adding
    await store.close()


# Refusals and errors


@given(
    bad=st.lists(st.booleans(), min_size=1, max_size=20),
    max_items=st.integers(1, 20),
)
async def test_refusal_finds_the_culprits(bad: list[bool], max_items: int) -> None:
    """Whatever items the store refuses, exactly these fail; each other is kept once, and in order."""
    kept: list[int] = []

    async def commit(items: Sequence[int]) -> None:
        for item in items:
            if bad[item]:
                raise BatchRefusedError(f"{item} is bad")
        kept.extend(items)

    undone = Undone()
    batcher = Batcher(commit, undone, on_error=unexpected, max_items=max_items)
    tasks = [asyncio.create_task(batcher.add(item)) for item in range(len(bad))]
    for item, error in enumerate(await ended(*tasks)):
        if bad[item]:
            assert isinstance(error, BatchRefusedError)
            assert str(error) == f"{item} is bad"
        else:
            assert error is None
    assert kept == [item for item in range(len(bad)) if not bad[item]]
    await batcher.close()
    assert undone.items == []


async def test_another_error_fails_the_batch() -> None:
    """Any other error fails all of the batch, and is not tried again; the next batch is committed."""
    store = Store()
    tasks = store.add(1, 2)
    commit = await store.commits.get()
    tasks += store.add(3)
    outage = OSError("the disk is gone")
    commit.answer.set_exception(outage)
    following = await store.commits.get()
    assert following.items == [3]
    following.done()
    assert await ended(*tasks) == [outage, outage, None]
    await store.close()


async def test_an_error_in_one_half() -> None:
    """An outage while a refused batch is tried in halves fails the half that meets it, and only that."""
    store = Store()
    tasks = store.add(1, 2, 3, 4)
    (await store.commits.get()).answer.set_exception(BatchRefusedError())
    outage = OSError()
    first = await store.commits.get()
    assert first.items == [1, 2]
    first.answer.set_exception(outage)
    second = await store.commits.get()
    assert second.items == [3, 4]
    second.done()
    assert await ended(*tasks) == [outage, outage, None, None]
    await store.close()


class Panic(BaseException):
    """What a library that is written in Rust raises."""


@pytest.mark.parametrize("error", [asyncio.CancelledError, SystemExit, Panic])
async def test_a_commit_that_ends_from_within(error: type[BaseException]) -> None:
    """A commit that is cancelled from within, or wants to end the program, has kept nothing: nobody is told yes."""

    async def commit(items: Sequence[int]) -> None:
        raise error

    undone = Undone()
    batcher = Batcher(commit, undone, on_error=unexpected)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=f"ended by {error.__name__}"):
            await batcher.add(1)
    await batcher.close()
    assert undone.items == []


def test_an_interrupt_ends_the_program() -> None:
    """KeyboardInterrupt in the middle of a commit is not swallowed."""

    async def interrupt(items: Sequence[int]) -> None:
        raise KeyboardInterrupt

    async def add() -> None:
        await Batcher(interrupt, interrupt, on_error=unexpected).add(1)

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(add())


# Cancelled


async def test_cut_short_again_and_again() -> None:
    """Commits that nobody waits for any more are cut short, one after the other, and the next one is as any other."""
    store = Store(max_items=1)
    tasks = store.add(1, 2, 3)
    for item in (1, 2):
        assert (await store.commits.get()).items == [item]
        tasks[item - 1].cancel()
        undo = await store.undos.get()
        assert undo.items == [item]
        undo.done()
    commit = await store.commits.get()
    commit.done()
    assert [type(error) for error in await ended(*tasks)] == [asyncio.CancelledError] * 2 + [type(None)]
    await store.close()


def test_end_of_the_event_loop() -> None:
    """When the event loop ends while a batch commits, the commit ends, and nothing is begun any more."""
    ends: list[str] = []

    async def commit(items: Sequence[int]) -> None:
        ends.append(f"commit {list(items)}")
        try:
            await asyncio.Event().wait()
        finally:
            ends.append("end")

    async def main() -> None:
        batcher = Batcher(commit, undone, on_error=unexpected, max_items=1)
        adding.extend(asyncio.create_task(batcher.add(item)) for item in (1, 2))
        while not ends:
            await asyncio.sleep(0)

    adding: list[asyncio.Task[None]] = []
    undone = Undone()
    asyncio.run(main())
    assert (ends, undone.items) == (["commit [1]", "end"], [])
    assert all(task.cancelled() for task in adding)


async def test_cancelled_while_it_waits() -> None:
    """What is cancelled before its commit has begun is never given to the store."""
    store = Store()
    tasks = store.add(1)
    first = await store.commits.get()
    tasks += store.add(2, 3)
    await asyncio.sleep(0)
    tasks[1].cancel()
    first.done()
    second = await store.commits.get()
    assert second.items == [3]
    second.done()
    await ended(*tasks)
    assert [task.cancelled() for task in tasks] == [False, True, False]
    await store.close()


async def test_all_cancelled_while_they_wait() -> None:
    """When all that waited are cancelled, there is no further commit, not even an empty one."""
    store = Store()
    tasks = store.add(1)
    first = await store.commits.get()
    tasks += store.add(2)
    await asyncio.sleep(0)
    tasks[1].cancel()
    first.done()
    await ended(*tasks)
    await store.close()


async def test_cancelled_while_it_commits_with_others() -> None:
    """The commit goes on for the others; then, before the next batch, the one that was cancelled is undone."""
    store = Store()
    tasks = store.add(1, 2)
    commit = await store.commits.get()
    tasks[0].cancel()
    tasks += store.add(3)
    await ended(tasks[0])
    commit.done()
    await tasks[1]
    undo = await store.undos.get()
    assert undo.items == [1]
    assert store.commits.empty()
    undo.done()
    following = await store.commits.get()
    assert following.items == [3]
    following.done()
    await tasks[2]
    await store.close()


async def test_all_cancelled_while_they_commit() -> None:
    """A commit that nobody waits for any more is cancelled; and all is undone, since it may have been done."""
    store = Store()
    tasks = store.add(1, 2)
    commit = await store.commits.get()
    for task in tasks:
        task.cancel()
    await ended(*tasks)
    undo = await store.undos.get()
    assert commit.answer.cancelled()
    assert undo.items == [1, 2]
    undo.done()
    await store.close()


@pytest.mark.parametrize("error", [None, ConnectionError("cut in the middle of COMMIT")])
async def test_a_commit_that_is_done_though_cancelled(error: Exception | None) -> None:
    """A commit that is cancelled too late, or loses its connection by it, is undone as well."""
    begun = asyncio.Event()

    async def commit(items: Sequence[int]) -> None:
        begun.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        if error is not None:
            raise error

    undone = Undone()
    batcher = Batcher(commit, undone, on_error=unexpected)
    task = asyncio.create_task(batcher.add(1))
    await begun.wait()
    task.cancel()
    await ended(task)
    await batcher.close()
    assert undone.items == [1]


async def test_cancelled_in_a_batch_that_is_refused() -> None:
    """What was refused was not kept: there is nothing to undo, and it is not tried again in the halves."""
    store = Store()
    tasks = store.add(1, 2, 3)
    commit = await store.commits.get()
    tasks[0].cancel()
    await ended(tasks[0])
    commit.answer.set_exception(BatchRefusedError())
    halves = await store.commits.get()  # [1] had nothing left of it
    assert halves.items == [2, 3]
    halves.done()
    await ended(*tasks)
    await store.close()


async def test_cancelled_alone_and_refused() -> None:
    """The same for a batch of one: its undo would only strike another that has its key."""
    refusing = asyncio.Event()

    async def commit(items: Sequence[int]) -> None:
        refusing.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise BatchRefusedError from None

    undone = Undone()
    batcher = Batcher(commit, undone, on_error=unexpected)
    task = asyncio.create_task(batcher.add(1))
    await refusing.wait()
    task.cancel()
    await ended(task)
    await batcher.close()
    assert undone.items == []


async def test_cancelled_in_the_moment_of_the_refusal() -> None:
    """What is cancelled when the refusal is there already has not been kept either: there is nothing to undo."""
    store = Store()
    tasks = store.add(1)
    commit = await store.commits.get()
    commit.answer.set_exception(BatchRefusedError())
    tasks[0].cancel()
    assert [type(error) for error in await ended(*tasks)] == [asyncio.CancelledError]
    await store.close()


async def test_cancelled_between_the_halves() -> None:
    """What is cancelled while the other half of its batch is tried is not tried itself."""
    store = Store()
    tasks = store.add(1, 2, 3, 4)
    (await store.commits.get()).answer.set_exception(BatchRefusedError())
    first = await store.commits.get()
    tasks[2].cancel()
    await ended(tasks[2])
    first.done()
    second = await store.commits.get()
    assert second.items == [4]
    second.done()
    await ended(*tasks)
    await store.close()


async def test_cancelled_in_the_moment_after_the_commit() -> None:
    """What is cancelled when it is committed, and has not yet woken up, is undone."""
    store = Store()

    async def first() -> None:
        await store.batcher.add(1)
        second.cancel()  # it is committed with us, and would wake up next

    task = asyncio.create_task(first())
    [second] = store.add(2)
    (await store.commits.get()).done()
    await ended(task, second)
    assert second.cancelled()
    undo = await store.undos.get()
    assert undo.items == [2]
    undo.done()
    await store.close()


async def test_cancelled_when_the_commit_has_failed() -> None:
    """What is cancelled in the moment after a commit that failed was not kept, and is not undone."""
    store = Store()

    async def first() -> None:
        with pytest.raises(OSError):
            await store.batcher.add(1)
        second.cancel()

    task = asyncio.create_task(first())
    [second] = store.add(2)
    (await store.commits.get()).answer.set_exception(OSError())
    await ended(task, second)
    assert second.cancelled()
    await store.close()


async def test_cancelled_before_it_began() -> None:
    """What was cancelled before its add began is not there at all."""
    store = Store()
    [task] = store.add(1)
    task.cancel()
    await ended(task)
    await store.close()


# Undo


@pytest.mark.parametrize("error", [OSError("no"), asyncio.CancelledError()])
async def test_a_failing_undo(error: BaseException) -> None:
    """An undo that fails, or is cancelled from within, is told to on_error; the next batch goes on."""
    committing, undoing, go = asyncio.Event(), asyncio.Event(), asyncio.Event()
    errors: list[Exception] = []

    async def commit(items: Sequence[int]) -> None:
        committing.set()
        if items == [1]:
            await asyncio.Event().wait()

    async def undo(items: Sequence[int]) -> None:
        undoing.set()
        await go.wait()
        raise error

    batcher = Batcher(commit, undo, on_error=errors.append)
    unwanted = asyncio.create_task(batcher.add(1))
    await committing.wait()
    unwanted.cancel()
    await undoing.wait()
    following = asyncio.create_task(batcher.add(2))
    await asyncio.sleep(0)
    go.set()
    assert await ended(following) == [None]
    [told] = errors
    assert told is error or str(told) == "ended by CancelledError"
    await batcher.close()


# Close


async def test_close_drains() -> None:
    """After close nothing more is taken; it returns when all that was added before is committed."""
    store = Store()
    tasks = store.add(1)
    first = await store.commits.get()
    tasks += store.add(2)
    await asyncio.sleep(0)
    closing = asyncio.create_task(store.batcher.close())
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="the batcher is closed"):
        await store.batcher.add(3)
    first.done()
    second = await store.commits.get()
    assert second.items == [2]
    assert not closing.done()
    second.done()
    await closing
    assert [task.done() for task in tasks] == [True, True]
    await store.close()


async def test_close_of_one_that_was_never_used() -> None:
    """It returns at once, and again."""
    store = Store()
    await store.close()
    await store.close()


async def test_close_in_the_moment_after_the_commit() -> None:
    """Close waits for the undo of what is cancelled after its commit and has not even woken up."""
    store = Store()
    undone = False

    async def first() -> None:
        await store.batcher.add(1)
        second.cancel()
        await store.batcher.close()
        assert undone

    task = asyncio.create_task(first())
    [second] = store.add(2)
    (await store.commits.get()).done()
    undo = await store.undos.get()
    assert undo.items == [2]
    undone = True
    undo.done()
    await task
    await store.close()


# All of it


@given(seed=st.integers(0, 2**32), max_items=st.integers(1, 5))
async def test_kept_is_what_was_told(seed: int, max_items: int) -> None:
    """Whatever is refused, fails or is cancelled at whatever moment: kept is exactly what was told that it is."""
    rng = random.Random(seed)
    kept: set[int] = set()
    told: set[int] = set()

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
        await ticks()  # cancelled here, it is kept all the same

    async def undo(items: Sequence[int]) -> None:
        await ticks()
        kept.difference_update(items)

    async def add(item: int) -> None:
        await ticks(12)
        await batcher.add(item)
        told.add(item)

    batcher = Batcher(commit, undo, on_error=unexpected, max_items=max_items)
    tasks = [asyncio.create_task(add(item)) for item in range(1, 13)]
    for task in rng.sample(tasks, rng.randrange(len(tasks) + 1)):
        await ticks()
        task.cancel()
    await ended(*tasks)
    await batcher.close()
    assert kept == told
