"""The answer to a submission, before it is there. It is apart from ``gateway``, since it is not compiled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from guerrilla.smtp.replies import Reply


class Answer(asyncio.Future[Reply]):
    """The future of a reply. Whoever cancels it has the work made void.

    A callback for that, which the loop would call for every message, would take longer than the conveyor does.
    """

    __slots__ = ("void_work",)

    void_work: Callable[[], None]
    """Deleted when the work is over and the answer there: so it holds nothing of the message."""

    def cancel(self, msg: Any = None) -> bool:
        """Give the answer up, as nobody waits for it; return whether it was not there yet."""
        if not super().cancel(msg):
            return False
        self.void_work()
        return True
