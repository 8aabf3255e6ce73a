"""Group commit: many envelopes, one fsync.

A commit costs a disk write however much it holds. So while one batch commits, the next one fills. Those who were in
the last one may be about to come again, and to leave before they do would split them for good into two halves, each
waiting for the other: so they are waited for, until all are there, and not longer than the last commit took. One who is
alone waits for nobody, and nobody is told yes before the commit. The more come at once, the larger the batches, the
less each one pays.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeAlias, TypeVar

ItemT = TypeVar("ItemT")

_LEAST_PATIENCE = 0.002
"""Seconds that a batch may wait for those who may come, however quick the last commit was. uvloop's timers are of whole
milliseconds, and may end one too soon."""
_MOST_PATIENCE = 0.01
"""The same, however slow it was."""


class BatchRefusedError(Exception):
    """The store has refused what is in the batch (not: the store is away). The batch is split to find the culprit."""


class Ticket(Generic[ItemT]):
    """The place in a batch of an item that was put there; ``tell`` is called with what comes of it."""

    __slots__ = ("_batcher", "item", "tell", "withdrawn")

    def __init__(self, batcher: Batcher[ItemT], item: ItemT, tell: Callable[[BaseException | None], None]) -> None:
        self._batcher = batcher
        self.item = item
        self.tell = tell
        self.withdrawn = False

    def withdraw(self) -> None:
        """Give the item up, as ``Batcher.withdraw`` does."""
        self._batcher.withdraw(self)


class _Waiter(asyncio.Future[None], Generic[ItemT]):
    """The place of an item that somebody waits for: done when it is kept, withdrawn when that is cancelled."""

    __slots__ = ("item", "withdrawn")

    item: ItemT
    withdrawn: bool

    def cancel(self, msg: Any = None) -> bool:
        cancelled = super().cancel(msg)
        self.withdrawn |= cancelled
        return cancelled

    def tell(self, error: BaseException | None) -> None:
        if error is None:
            self.set_result(None)
        else:
            self.set_exception(error)


_Place: TypeAlias = Ticket[ItemT] | _Waiter[ItemT]


class Batcher(Generic[ItemT]):
    """Commits items in batches: ``await batcher.add(item)`` returns when the batch with the item is committed.

    ``commit`` is given the items of one batch and must keep all of them or, if it raises, none. If it raises
    BatchRefusedError, the batch is halved and tried again until the refused item stands alone: it fails, the others are
    kept. Whatever else it raises fails the whole batch. When every ``add`` of a batch has been cancelled, and all that
    was put into it is withdrawn, its commit is cancelled too.

    ``undo`` is given the items that were cancelled or withdrawn when their commit had begun, kept or not: their clients
    have been told to try again, so they must go (RFC 5321 section 4.2.5). What it raises goes to ``on_error``.

    A batch has ``max_items`` at most, and, if ``size`` says how many octets an item has, ``max_size`` octets; an item
    that is larger goes alone.
    """

    def __init__(
        self,
        commit: Callable[[Sequence[ItemT]], Awaitable[None]],
        undo: Callable[[Sequence[ItemT]], Awaitable[None]],
        *,
        on_error: Callable[[Exception], None],
        max_items: int = 256,
        size: Callable[[ItemT], int] | None = None,
        max_size: int = 0,
    ) -> None:
        self._commit = commit
        self._undo = undo
        self._on_error = on_error
        self._max_items = max_items
        self._size = size
        self._max_size = max_size
        self._waiting: deque[_Place[ItemT]] = deque()
        self._committing: Sequence[_Place[ItemT]] = ()
        self._unwanted: list[ItemT] = []
        self._expected = 0
        """How many may come: those of the last batch again, and those who came while it was committed."""
        self._patience = _LEAST_PATIENCE
        """Seconds that these are waited for."""
        self._all_there: asyncio.Future[None] | None = None
        """What the runner waits for while they come."""
        self._loop: asyncio.AbstractEventLoop | None = None
        """Remembered, since to ask for it asks the system for the number of the process."""
        self._runner: asyncio.Task[None] | None = None
        self._cut = False
        """Whether the runner was cancelled by us, to cut a commit short."""
        self._closed = False

    async def add(self, item: ItemT) -> None:
        """Commit the item with others; return when it is kept.

        Raises what ``commit`` raised for it, or RuntimeError if the batcher is closed. When it is cancelled, the
        item is not kept: it leaves the queue, or is undone after its commit.
        """
        entry: _Waiter[ItemT] = _Waiter(loop=self._loop or asyncio.get_running_loop())
        entry.item = item
        entry.withdrawn = False
        self._enter(entry)
        try:
            await entry
        except asyncio.CancelledError:
            if entry.cancelled():
                self._cut_if_unwanted()
            elif entry.exception() is None:
                # Cancelled in the very moment between the commit and our waking up: the runner believes it wanted.
                self._unwanted.append(item)
                self._wake()
            raise

    def put(self, item: ItemT, tell: Callable[[BaseException | None], None]) -> Ticket[ItemT]:
        """Commit the item with others, for one who does not wait: ``tell`` is called when its batch is done.

        It is given None when the item is kept, or what ``add`` would raise; what it raises itself goes to ``on_error``.
        Raises RuntimeError if the batcher is closed.
        """
        ticket = Ticket(self, item, tell)
        self._enter(ticket)
        return ticket

    def withdraw(self, ticket: Ticket[ItemT]) -> None:
        """Give an item up of which nothing was told yet: it is not kept, or undone, and nothing will be told."""
        ticket.withdrawn = True
        self._cut_if_unwanted()

    async def close(self) -> None:
        """Take nothing more, and return when all that was added is committed or undone."""
        self._closed = True
        self._wait_no_longer()
        await asyncio.sleep(0)  # an add that was cancelled in the moment of its commit wakes up first, and says so
        while self._runner is not None:
            await asyncio.wait((self._runner,))

    def _enter(self, entry: _Place[ItemT]) -> None:
        if self._closed:
            raise RuntimeError("the batcher is closed")
        self._waiting.append(entry)
        if self._all_there is None:
            if self._runner is None:
                self._wake()
        elif len(self._waiting) >= self._expected:
            self._wait_no_longer()

    def _wake(self) -> None:
        if self._runner is None:
            self._runner = asyncio.get_running_loop().create_task(self._run())

    def _cut_if_unwanted(self) -> None:
        """Cut the commit short if nobody waits for it any more."""
        committing = self._committing
        if committing and not self._cut and all(entry.withdrawn for entry in committing):
            assert self._runner is not None
            self._cut = True
            self._runner.cancel()

    async def _run(self) -> None:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        try:
            while self._waiting or self._unwanted:
                if self._unwanted:
                    unwanted, self._unwanted = self._unwanted, []
                    error = await self._attempt(self._undo, unwanted)
                    if error is not None:
                        self._on_error(error)
                in_time = await self._let_come()
                batch = self._next_batch()
                began = time.monotonic()
                await self._settle(batch)
                # Who is waited for in vain may be too slow for good: half of it is lost next time, not all.
                patience = time.monotonic() - began if in_time else self._patience / 2
                self._patience = min(max(patience, _LEAST_PATIENCE), _MOST_PATIENCE)
                self._expected = min(len(batch) + len(self._waiting), self._max_items)
        finally:
            self._runner = None

    async def _let_come(self) -> bool:
        """Wait for those who may come, and return whether all were there in time."""
        await asyncio.sleep(0)  # those who come in the same turn of the loop are there then
        if self._closed or len(self._waiting) >= self._expected:
            return True
        assert self._loop is not None
        self._all_there = self._loop.create_future()
        timer = self._loop.call_later(self._patience, self._wait_no_longer)
        try:
            await self._all_there
        finally:
            timer.cancel()
            self._all_there = None
        return len(self._waiting) >= self._expected

    def _wait_no_longer(self) -> None:
        if self._all_there is not None and not self._all_there.done():
            self._all_there.set_result(None)

    def _next_batch(self) -> list[_Place[ItemT]]:
        batch: list[_Place[ItemT]] = []
        size = 0
        while self._waiting and len(batch) < self._max_items:
            entry = self._waiting[0]
            if not entry.withdrawn:
                if self._size is not None:
                    size += self._size(entry.item)
                    if batch and size > self._max_size:
                        break
                batch.append(entry)
            self._waiting.popleft()
        return batch

    async def _settle(self, batch: list[_Place[ItemT]]) -> None:
        """Commit the batch, halving it as long as it is refused, and wake those who wait for it."""
        if not batch:
            return
        self._committing = batch
        try:
            error = await self._attempt(self._commit, [entry.item for entry in batch])
        finally:
            self._committing = ()
        refused = isinstance(error, BatchRefusedError)
        if refused and len(batch) > 1:
            middle = len(batch) // 2
            await self._settle([entry for entry in batch[:middle] if not entry.withdrawn])
            await self._settle([entry for entry in batch[middle:] if not entry.withdrawn])
            return
        trace = error.__traceback__ if error is not None else None
        unwanted: list[ItemT] = []
        for entry in batch:
            if entry.withdrawn:
                unwanted.append(entry.item)
                continue
            if error is not None:
                error = error.with_traceback(trace)  # it grows where it is raised
            try:
                entry.tell(error)
            except KeyboardInterrupt:
                raise  # it is the program that is to end
            except BaseException as failure:
                self._on_error(_as_error(failure))
        if not refused:
            # A commit that was cut short, or lost its connection, may have been done all the same.
            self._unwanted += unwanted

    async def _attempt(
        self, action: Callable[[Sequence[ItemT]], Awaitable[None]], items: Sequence[ItemT]
    ) -> Exception | None:
        """Commit or undo, and return what it raises: whatever that is, the next batch must go on."""
        runner = self._runner
        assert runner is not None
        try:
            await action(items)
        except (KeyboardInterrupt, GeneratorExit):
            raise  # it is the program that is to end
        except BaseException as error:  # cancelled, by us or from within; SystemExit; the panic of a library in Rust
            if not isinstance(error, Exception) and runner.cancelling() > self._cut:
                raise  # and not by us alone: it is the loop that is to end
            return _as_error(error)
        finally:
            if self._cut:
                self._cut = False
                runner.uncancel()
        return None


def _as_error(error: BaseException) -> Exception:
    """Return what can be told of as an error: StopIteration, too, means something else to who awaits."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    return RuntimeError(f"ended by {type(error).__name__}")
