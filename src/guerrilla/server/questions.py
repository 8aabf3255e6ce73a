"""A question to the backend, and the future of its answer: whatever the backend returns or raises."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from guerrilla.envelope import Address, Envelope
from guerrilla.smtp.replies import Reply

if TYPE_CHECKING:
    from guerrilla.server.connection import Connection
    from guerrilla.server.turn import Turn


def asked(
    question: Callable[[Envelope], Awaitable[Reply]],
    envelope: Envelope,
    loop: asyncio.AbstractEventLoop,
    keep: Callable[[asyncio.Task[Any]], None],
) -> asyncio.Future[Any]:
    """Put the question, and return what its answer will be in. A task that is made for it is given to ``keep``."""
    try:
        promise = question(envelope)
    except Exception as error:
        answer: asyncio.Future[Any] = loop.create_future()
        answer.set_exception(error)
        return answer
    if isinstance(promise, asyncio.Future):
        return promise
    # A coroutine is the task itself, so that it notices a cancellation that comes before its first step.
    task: asyncio.Task[Any] = loop.create_task(promise if inspect.iscoroutine(promise) else _awaited(promise))
    keep(task)
    return task


async def _awaited(promise: Awaitable[Reply]) -> Reply:
    return await promise


class Question:
    """A question that is out, and the job of passing its answer on to the connection that has asked."""

    __slots__ = ("_answer", "_asker", "_envelope", "_recipient", "_turn")

    def __init__(
        self, asker: Connection, turn: Turn, answer: asyncio.Future[Any], envelope: Envelope, recipient: Address | None
    ) -> None:
        self._asker = asker
        self._turn = turn
        self._answer = answer
        self._envelope = envelope
        self._recipient = recipient

    def tell(self, _: object) -> None:
        """Have the answer, which is there, passed on in this turn."""
        self._turn.do(self)

    def go_on(self) -> None:
        """Pass it on."""
        self._asker.answered(self._answer, self._envelope, self._recipient)
