"""Taking back: rows of mail that was not accepted go, however long the database is away.

RFC 5321 section 4.2.5: what was not answered 250 must not turn up later. A COMMIT whose answer never came may still be
done when the server wakes up. So its session is ended first, and the rows removed then: nothing can come after that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from structlog.typing import FilteringBoundLogger

from guerrilla.stores.sql_database import Session
from guerrilla.stores.sql_errors import cause_of

_MAX_ROWS: Final = 100_000
"""Rows that may wait to be removed; some 20 MB. With so many nothing more is stored, and so none has to be added."""

_PAUSES: Final = (0.1, 30.0)
"""Seconds between two attempts: the first, and the longest."""


@dataclass(frozen=True, slots=True)
class Removal:
    """Rows that must go, as (hash, recipient), and the session that may still be about to commit them."""

    rows: Sequence[tuple[str, str]]
    session: Session | None = None


class Remover:
    """Removes rows in the background, and does not give up before ``close``.

    ``remove`` ends the sessions of the removals it is given, and removes their rows; what is not there is removed.
    """

    def __init__(self, remove: Callable[[Sequence[Removal]], Awaitable[None]]) -> None:
        self.log: FilteringBoundLogger | None = None
        self._remove = remove
        self._waiting: list[tuple[Removal, asyncio.Future[None]]] = []
        self._task: asyncio.Task[None] | None = None
        self._failing = False
        self._closing = asyncio.Event()

    @property
    def full(self) -> bool:
        """Whether so much waits that nothing should be stored any more."""
        return sum(len(removal.rows) for removal, _ in self._waiting) >= _MAX_ROWS

    def add(self, removal: Removal) -> asyncio.Future[None]:
        """Have rows removed. The future is done when they are, or when the latest attempt at any has failed."""
        tried = asyncio.get_running_loop().create_future()
        if self._failing:
            tried.set_result(None)
        self._waiting.append((removal, tried))
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        return tried

    async def close(self) -> None:
        """Return when all is removed, or one last attempt has failed; the operator reads then what is left."""
        self._closing.set()
        if self._task is not None:
            await asyncio.wait((self._task,))

    async def _run(self) -> None:
        pause, longest = _PAUSES
        while self._waiting:
            last = self._closing.is_set()
            attempted = list(self._waiting)
            error = await self._attempt([removal for removal, _ in attempted])
            for _, tried in attempted:
                if not tried.done():
                    tried.set_result(None)
            if error is None:
                del self._waiting[: len(attempted)]
                self._failing, pause = False, _PAUSES[0]
            elif last:
                self._report("rows of mail that was not accepted are left in the table", error)
                self._waiting.clear()
            else:
                if not self._failing:
                    self._report("rows of mail that was not accepted cannot be removed: trying on", error)
                self._failing = True
                await self._sleep(pause)
                pause = min(2 * pause, longest)
        self._task = None

    async def _attempt(self, removals: Sequence[Removal]) -> Exception | None:
        try:
            await self._remove(removals)
        except Exception as error:  # also a bug: all that can be done about it here is to try again
            return error
        return None

    def _report(self, text: str, error: Exception) -> None:
        if self.log is not None:
            hashes = list(dict.fromkeys(key for removal, _ in self._waiting for key, _ in removal.rows))
            self.log.error(text, cause=cause_of(error), messages=len(hashes), hashes=hashes[:20])

    async def _sleep(self, seconds: float) -> None:
        """Wait, or until there is a last attempt to be made."""
        try:
            async with asyncio.timeout(seconds):
                await self._closing.wait()
        except TimeoutError:
            pass
