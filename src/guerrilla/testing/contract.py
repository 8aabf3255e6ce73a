"""What every processor that stores mail must do, as one suite: the contract of custody, for ours and for yours.

    async def test_my_foo_keeps_the_contract(tmp_path: Path) -> None:
        async def stored(envelope: Envelope) -> list[bytes]:
            return [path.read_bytes() for path in tmp_path.glob(f"{envelope.hashes[0]}*")]

        await processor_contract(Subject(make=lambda: MyFoo(MyFooConfig(foo_path=str(tmp_path))), stored=stored))

A check is one function here, examines processors that it makes for itself, and raises AssertionError with what it has
seen. Nothing depends on how fast a store is; ``patience`` only bounds how long is waited for what never comes.
"""

from __future__ import annotations

import asyncio
import mmap
import secrets
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any, Final, TypeAlias

from guerrilla.backends.base import Task
from guerrilla.backends.processor import Processor, end_of_line
from guerrilla.envelope import Body, Envelope
from guerrilla.smtp.replies import LOCAL_ERROR, Reply
from guerrilla.testing.custody import PAUSE, Saving, Subject, descriptors, during, require

Check: TypeAlias = Callable[[Subject], Awaitable[None]]


async def processor_contract(subject: Subject) -> None:
    """Examine the processor with all ``CHECKS``, one after the other.

    Raises:
        AssertionError: with the name of the first check that fails, and what was seen.
    """
    for check in CHECKS:
        try:
            await check(subject)
        except AssertionError as error:
            raise AssertionError(f"{check.__name__}: {error}") from error


async def starts(subject: Subject) -> None:
    """It starts and ends, and starts again on the same store."""
    for _ in range(2):
        async with subject.started():
            pass


async def saves_and_passes_on(subject: Subject) -> None:
    """When the positive reply comes, every copy is there, octet for octet, and the rest of the line was called once."""
    bodies: dict[str, Body] = {
        "text": b"Subject: x\r\n\r\nHello.\r\n",
        "nothing": b"",
        "every octet, NUL and 8-bit": bytes(range(256)) * 3,
        "line ends of all kinds": b"a\r\n.\r\n\n\r\r\n..\r\n",
        "2 MB": secrets.token_bytes(2 << 20),
    }
    with tempfile.TemporaryFile() as file:
        file.write(secrets.token_bytes(300_000))
        file.flush()
        bodies["a memory map"] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    calls: list[Envelope] = []

    async def rest(envelope: Envelope, task: Task) -> Reply:
        calls.append(envelope)
        return await end_of_line(envelope, task)

    async with subject.started() as processor:
        for name, body in bodies.items():
            for recipients in (1, len(subject.recipients)):
                envelope = subject.envelope(body, recipients)
                case = f"{name}, to {recipients}"
                await Saving(subject, processor, envelope, rest).kept(case)
                require(calls == [envelope], f"{case}: the rest of the line was called {len(calls)} times")
                calls.clear()


async def many_at_once(subject: Subject) -> None:
    """A hundred messages at the same time are kept, each exactly once."""
    async with subject.started() as processor:
        savings = [Saving(subject, processor, subject.envelope(b"%d\r\n" % number, 1)) for number in range(100)]
        for saving in savings:
            await saving.kept("one of a hundred at the same time")


async def takes_back(subject: Subject) -> None:
    """What it stored goes when the rest of the line refuses the message, raises, or is cancelled."""
    reached = asyncio.Event()

    async def refusing(_: Envelope, __: Task) -> Reply:
        return LOCAL_ERROR

    async def raising(_: Envelope, __: Task) -> Reply:
        raise ZeroDivisionError

    async def waiting(_: Envelope, __: Task) -> Reply:
        reached.set()
        never: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        return await never

    async with subject.started() as processor:
        savings = {
            "the rest of the line refused the message": Saving(subject, processor, subject.envelope(), refusing),
            "the rest of the line failed": Saving(subject, processor, subject.envelope(), raising),
            "the rest of the line was cancelled": Saving(subject, processor, subject.envelope(), waiting),
        }
        await subject.in_time(reached.wait(), "the processor, which is to pass the message on,")
        savings["the rest of the line was cancelled"].cancel()
        for what, saving in savings.items():
            require(not await saving.positive(), f"{what}, and the answer is positive")
            await subject.all_gone([saving.envelope], what)
    for what, saving in savings.items():
        await subject.all_gone([saving.envelope], f"{what}, the processor has shut down")


async def refuses(subject: Subject) -> None:
    """A message that it must refuse is answered so, nothing of it is left, and those beside it are kept."""
    if subject.refusable is None:
        return
    async with subject.started() as processor:
        bad = Saving(subject, processor, subject.refusable())
        good = [Saving(subject, processor, subject.envelope()) for _ in range(5)]
        answer = await bad.ended()
        require(isinstance(answer, Reply) and not answer.positive, f"a reply that refuses is meant, not {answer!r}")
        for saving in good:
            await saving.kept("beside a message that is refused")
    await subject.all_gone([bad.envelope], "it was refused")


async def survives_cancellation(subject: Subject) -> None:
    """Cancelled at any moment, it answers nothing positive and leaves nothing; the messages beside it are kept."""
    cancelled: list[Saving] = []
    beside: list[Saving] = []
    async with subject.started() as processor:
        begin = time.monotonic()
        await Saving(subject, processor, subject.envelope()).kept("before anything is cancelled")
        duration = time.monotonic() - begin
        for moment in range(40):
            left, middle, right = (Saving(subject, processor, subject.envelope()) for _ in range(3))
            # The first twenty moments are turns of the loop, the others lie in the time that a message takes.
            for _ in range(min(moment, 20)):
                await asyncio.sleep(0)
            if moment >= 20:
                await asyncio.wait((middle.task,), timeout=duration * (moment - 20) / 16)
            middle.cancel()
            for saving in (left, right):
                await saving.kept("beside a message that is cancelled")
            beside += (left, right)
            (beside if await middle.positive() else cancelled).append(middle)
        await subject.all_gone((saving.envelope for saving in cancelled), "it was cancelled")
    # What was still on its way has come to its end by now.
    await subject.all_gone((saving.envelope for saving in cancelled), "it was cancelled, the processor has shut down")
    for saving in beside:
        await saving.still_kept("beside a message that was cancelled, after shutdown")


async def survives_a_frozen_server(subject: Subject) -> None:
    """While its server is frozen nothing is answered positively, and afterwards all goes on without a restart."""
    if subject.server is not None:
        await _survives(subject, subject.server.freeze, subject.server.thaw)


async def survives_a_killed_server(subject: Subject) -> None:
    """While its server is gone nothing is answered positively, and afterwards all goes on without a restart."""
    if subject.server is not None:
        await _survives(subject, subject.server.kill, subject.server.start)


async def _survives(subject: Subject, begin: Callable[[], object], end: Callable[[], object]) -> None:
    async with subject.started() as processor:
        await Saving(subject, processor, subject.envelope()).kept("before the outage")
        early = [Saving(subject, processor, subject.envelope()) for _ in range(20)]
        async with during(begin, end):
            late = [Saving(subject, processor, subject.envelope()) for _ in range(20)]
            await asyncio.wait([saving.task for saving in (*early, *late)], timeout=subject.outage)
            for saving in (*early, *late):
                saving.cancel()
            for saving in early:
                await saving.ended()
            for saving in late:
                require(not await saving.positive(), "a message is answered positively while the server is away")
        for _ in subject.wait():
            late.append(Saving(subject, processor, subject.envelope()))
            if await late[-1].positive():
                break
            await asyncio.sleep(PAUSE)
        await late[-1].kept("after the return of the server")
        await _told_and_kept_agree(subject, early, late)
    await _told_and_kept_agree(subject, early, late)


async def _told_and_kept_agree(subject: Subject, *savings: Sequence[Saving]) -> None:
    """What was answered positively is there, and nothing else; what was not was answered 4yz, or failed."""
    for saving in (saving for each in savings for saving in each):
        answer = await saving.ended()
        if isinstance(answer, Reply) and answer.positive:
            await saving.still_kept("answered positively at the time of an outage")
            continue
        require(not isinstance(answer, Reply) or answer.temporary, f"an outage is answered {answer}, and 4yz is meant")
        await subject.all_gone([saving.envelope], f"it came to {answer!r} at the time of an outage")


async def shuts_down_twice(subject: Subject) -> None:
    """Shutdown may be called twice, also when initialize was never called, was cancelled, or has failed."""

    async def shut_down(processor: Processor[Any], when: str) -> None:
        await subject.in_time(processor.shutdown(), f"the first shutdown, {when},")
        await subject.in_time(processor.shutdown(), f"the second shutdown, {when},")

    processor = subject.make()
    await subject.in_time(processor.initialize(), "initialize")
    await Saving(subject, processor, subject.envelope()).kept("before shutdown")
    await shut_down(processor, "after a message")
    await shut_down(subject.make(), "without initialize")
    for milliseconds in range(10):
        await shut_down(await subject.half_started(milliseconds / 1000), "after an initialize that was cancelled")
    if subject.server is not None:
        async with during(subject.server.kill, subject.server.start):
            await shut_down(await subject.half_started(subject.outage), "after an initialize without its server")


async def leaks_nothing(subject: Subject) -> None:
    """After shutdown no descriptor and no task is left of it, whatever was cancelled before."""
    await starts(subject)  # what a library opens once and for all is no leak
    descriptors_before, tasks_before = descriptors(), asyncio.all_tasks()
    async with subject.started() as processor, AsyncExitStack() as outage:
        await Saving(subject, processor, subject.envelope()).kept("before anything is cancelled")
        if subject.server is not None:
            await outage.enter_async_context(during(subject.server.freeze, subject.server.thaw))
        savings = [Saving(subject, processor, subject.envelope()) for _ in range(10)]
        for saving in savings:
            await asyncio.wait((saving.task,), timeout=PAUSE)
            saving.cancel()
            await saving.ended()
    for milliseconds in range(10):
        processor = await subject.half_started(milliseconds / 1000)
        await subject.in_time(processor.shutdown(), "shutdown after an initialize that was cancelled")
    left: list[str] = []
    for _ in subject.wait():
        tasks = asyncio.all_tasks() - tasks_before
        left = [f"task {task}" for task in tasks]
        left += [f"descriptor {number}, {what}" for number, what in descriptors() - descriptors_before]
        if not left:
            return
        await asyncio.sleep(PAUSE)
    raise AssertionError(f"left after shutdown: {'; '.join(left)}")


CHECKS: Final[Sequence[Check]] = (
    starts,
    saves_and_passes_on,
    many_at_once,
    takes_back,
    refuses,
    survives_cancellation,
    survives_a_frozen_server,
    survives_a_killed_server,
    shuts_down_twice,
    leaks_nothing,
)
