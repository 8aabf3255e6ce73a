"""The answer to a submission, before it is there. It is apart from ``gateway``, since it is not compiled."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from guerrilla.smtp.replies import Reply


class Work(Protocol):
    """What an answer comes from."""

    def void_work(self) -> None:
        """Have it undone: nobody waits for the answer any more."""


class Asker(Protocol):
    """Who has asked, and does not await the answer."""

    def tell(self, answer: asyncio.Future[Any]) -> None:
        """Take note that the answer is there, or was given up. It raises nothing, and does nothing else yet."""


class Answer(asyncio.Future[Reply]):
    """The future of a reply. Whoever cancels it has the work made void, and ``asker`` is told when it is there: one.

    Callbacks for that, which the loop would call for every message, would take longer than the conveyor does.
    """

    __slots__ = ("asker", "work")

    asker: Asker | None
    """None when it was told: so neither holds the other."""
    work: Work | None
    """None when the work is over and the answer there: so it holds nothing of the message."""

    def set_result(self, result: Reply) -> None:
        """Give it."""
        asyncio.Future.set_result(self, result)
        if self.asker is not None:
            self._tell(self.asker)

    def set_exception(self, exception: type | BaseException) -> None:
        """Fail; the gateway never does."""
        super().set_exception(exception)
        if self.asker is not None:
            self._tell(self.asker)

    def cancel(self, msg: Any = None) -> bool:
        """Give the answer up, as nobody waits for it; return whether it was not there yet."""
        if not super().cancel(msg):
            return False
        if self.work is not None:
            self.work.void_work()
        if self.asker is not None:
            self._tell(self.asker)
        return True

    def _tell(self, asker: Asker) -> None:
        self.asker = None
        asker.tell(self)
