"""A thread that does one piece of work after another, for the loop to await: SQLite is used in one.

A piece of work is handed over once, and its outcome once, whatever it consists of: each time that two threads wake one
another costs as much as to write a row.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from queue import SimpleQueue
from threading import Thread
from typing import Any, Final, TypeAlias, TypeVar

ResultT = TypeVar("ResultT")
PATIENCE: Final = 60.0
"""Seconds that the thread waits for what the loop awaits for it: all others wait meanwhile."""

_Work: TypeAlias = "tuple[Callable[[], Any], _Outcome]"
"""What is to be done, and who waits for it."""


class _Outcome(asyncio.Future[Any]):
    """What comes of a piece of work. It cannot be cancelled: a task that awaits it is cancelled when it is there."""

    def cancel(self, msg: Any = None) -> bool:
        return False


class WorkThread:
    """The thread. It lives from the first piece of work to ``end``, and another one from the next on."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread: Thread | None = None
        self._work: SimpleQueue[_Work | None] = SimpleQueue()

    async def do(self, work: Callable[[], ResultT]) -> ResultT:
        """Do the work after what is under way; return what it returns, or raise what it raises.

        It is not cut short: when we are cancelled, we wait for its end, and are cancelled then.
        """
        outcome = _Outcome(loop=asyncio.get_running_loop())
        self._put((work, outcome))
        result: ResultT = await outcome
        return result

    async def end(self) -> None:
        """Return when all is done, and the thread has ended."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._work.put(None)
            await asyncio.to_thread(thread.join)

    def _put(self, work: _Work) -> None:
        if self._thread is None:
            self._work = SimpleQueue()  # a thread that is about to end may still read the last one
            # It does not hold a process that ends without ``end``: what is not committed is not kept.
            thread = Thread(target=_run, args=(self._work,), name=self._name, daemon=True)
            thread.start()  # which may fail: then the next piece of work has to try again
            self._thread = thread
        self._work.put(work)


def awaited(awaitable: Awaitable[ResultT], loop: asyncio.AbstractEventLoop, seconds: float = PATIENCE) -> ResultT:
    """Return, in such a thread, what the loop gets from awaiting something.

    Raises what that raises, and TimeoutError if there is nothing after so many seconds; then it is cancelled.
    """

    async def get() -> ResultT:
        return await awaitable

    asked = asyncio.run_coroutine_threadsafe(get(), loop)
    try:
        return asked.result(seconds)
    except TimeoutError:
        if asked.cancel():
            raise TimeoutError(f"not there after {seconds:g} s") from None
        raise  # it is what was awaited that has raised it


def _run(works: SimpleQueue[_Work | None]) -> None:
    while _do(works.get()):
        pass  # and hold nothing of what was done


def _do(work: _Work | None) -> bool:
    """Do a piece of work, and tell the loop; return whether more may come."""
    if work is None:
        return False
    action, outcome = work
    try:
        result = action()
    except BaseException as error:  # whatever it is, who waits has to know
        _tell(outcome, outcome.set_exception, error)
    else:
        _tell(outcome, outcome.set_result, result)
    return True


def _tell(outcome: asyncio.Future[Any], what: Callable[[Any], None], argument: object) -> None:
    with suppress(RuntimeError):  # the loop is closed: nobody waits
        outcome.get_loop().call_soon_threadsafe(what, argument)
