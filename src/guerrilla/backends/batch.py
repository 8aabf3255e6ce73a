"""Group commit: many envelopes, one fsync.

A commit costs a disk write however much it holds. So while one batch commits, the next one fills; nobody waits for a
clock, and nobody is told yes before the commit. The more come at once, the larger the batches, the less each one pays.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

ItemT = TypeVar("ItemT")


class BatchRefusedError(Exception):
    """The store has refused what is in the batch (not: the store is away). The batch is split to find the culprit."""


class _Entry(Generic[ItemT]):
    __slots__ = ("item", "outcome")

    def __init__(self, item: ItemT, outcome: asyncio.Future[None]) -> None:
        self.item = item
        self.outcome = outcome


class Batcher(Generic[ItemT]):
    """Commits items in batches: ``await batcher.add(item)`` returns when the batch with the item is committed.

    ``commit`` is given the items of one batch and must keep all of them or none. If it raises BatchRefusedError, the
    batch is halved and tried again until the refused item stands alone: it fails, the others are kept. Whatever else it
    raises fails the whole batch, and each ``add`` raises it. When every ``add`` of a batch has been cancelled, so is its
    commit, which then must roll back.

    ``undo`` is given the items that were committed although nobody waits for them any more: their client has been told
    to try again, so they must go (RFC 5321 section 4.2.5). What ``undo`` raises goes to ``on_error``.
    """

    def __init__(
        self,
        commit: Callable[[Sequence[ItemT]], Awaitable[None]],
        undo: Callable[[Sequence[ItemT]], Awaitable[None]],
        *,
        on_error: Callable[[Exception], None],
        max_items: int = 256,
    ) -> None:
        self._commit = commit
        self._undo = undo
        self._on_error = on_error
        self._max_items = max_items
        self._waiting: deque[_Entry[ItemT]] = deque()
        self._runner: asyncio.Task[None] | None = None
        self._closed = False

    async def add(self, item: ItemT) -> None:
        """Commit the item with others; return when it is kept.

        Raises:
            RuntimeError: if the batcher is closed.
            BaseException: what ``commit`` raised for it.
        """
        if self._closed:
            raise RuntimeError("the batcher is closed")
        loop = asyncio.get_running_loop()
        entry = _Entry(item, loop.create_future())
        self._waiting.append(entry)
        if self._runner is None:
            self._runner = loop.create_task(self._run())
        ...
