"""A WorkThread does one thing after another, tells who waits, and finishes what it has begun."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

from guerrilla.stores.sql_thread import WorkThread, awaited


@pytest.fixture
async def thread() -> AsyncIterator[WorkThread]:
    thread = WorkThread("worker")
    yield thread
    await thread.end()


def workers() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "worker"]


async def test_in_order(thread: WorkThread) -> None:
    """What is given at once is done one after another, in one thread that is not the loop's."""
    done: list[tuple[int, int]] = []

    def work(number: int) -> int:
        done.append((number, threading.get_ident()))
        return number

    assert await asyncio.gather(*(thread.do(lambda n=number: work(n)) for number in range(9))) == [*range(9)]  # type: ignore[misc]
    assert [number for number, _ in done] == [*range(9)]
    (ident,) = {ident for _, ident in done}
    assert ident != threading.get_ident()


@pytest.mark.parametrize("error", [ValueError, SystemExit, asyncio.CancelledError])
async def test_raises(thread: WorkThread, error: type[BaseException]) -> None:
    """Whatever the work raises is raised where it is waited for, and the thread goes on."""

    def fail() -> None:
        raise error("it")

    with pytest.raises(error, match="it"):
        await thread.do(fail)
    assert await thread.do(lambda: 1) == 1


@pytest.mark.parametrize("fails", [False, True])
async def test_cancelled(thread: WorkThread, fails: bool) -> None:
    """Who is cancelled, however often, waits for the end of what was begun."""
    go_on = threading.Event()
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()

    def work() -> None:
        loop.call_soon_threadsafe(begun.set)
        assert go_on.wait(10)
        if fails:
            raise ValueError

    doing = asyncio.create_task(thread.do(work))
    await begun.wait()
    for _ in range(2):
        doing.cancel()
        await asyncio.wait((doing,), timeout=0)
        await asyncio.sleep(0)
    assert not doing.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await doing


async def test_awaited(thread: WorkThread) -> None:
    """The work can await something that is done in the loop."""

    async def name() -> str:
        await asyncio.sleep(0)
        return threading.current_thread().name

    loop = asyncio.get_running_loop()
    assert await thread.do(lambda: (awaited(name(), loop), threading.current_thread().name)) == (
        threading.current_thread().name,
        "worker",
    )


async def test_awaited_in_vain(thread: WorkThread) -> None:
    """What does not come is given up and cancelled; a TimeoutError of its own is told as it is."""
    loop = asyncio.get_running_loop()
    never = loop.create_future()
    with pytest.raises(TimeoutError, match=r"not there after 0\.01 s"):
        await thread.do(lambda: awaited(never, loop, 0.01))
    await asyncio.sleep(0)
    assert never.cancelled()

    async def fail() -> None:
        raise TimeoutError("mine")

    with pytest.raises(TimeoutError, match="mine"):
        await thread.do(lambda: awaited(fail(), loop))


async def test_ends_and_begins() -> None:
    """Until there is work, and when all is done, there is no thread; the next piece of work makes one."""
    thread = WorkThread("worker")
    await thread.end()
    for _ in range(2):
        assert not workers()
        assert await thread.do(lambda: 1) == 1
        assert len(workers()) == 1
        await thread.end()
    assert not workers()


async def test_thread_that_cannot_start(thread: WorkThread, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the system has no thread to give, that is said, and the next piece of work tries again."""

    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError, match="can't start"):
            await thread.do(lambda: 1)
    async with asyncio.timeout(5):
        assert await thread.do(lambda: 1) == 1


def test_loop_that_is_closed() -> None:
    """When the loop has ended in the meantime, nobody waits; the thread goes on all the same."""
    thread = WorkThread("worker")
    go_on = threading.Event()

    async def give_up() -> asyncio.Task[bool]:
        doing = asyncio.create_task(thread.do(lambda: go_on.wait(10)))
        await asyncio.sleep(0)
        return doing

    loop = asyncio.new_event_loop()
    doing = loop.run_until_complete(give_up())
    doing._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()
    go_on.set()

    async def ask() -> int:
        answer = await thread.do(lambda: 1)
        await thread.end()
        return answer

    assert asyncio.run(ask()) == 1
