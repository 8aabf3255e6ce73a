"""A question to the backend, and the future of its answer: whatever the backend returns or raises."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from guerrilla.envelope import Envelope
from guerrilla.smtp.replies import Reply


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
