"""Each processor of the line is counted and timed, whatever it does."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from guerrilla.backends.base import Process, Task
from guerrilla.backends.hooks import Keeper, Tell, end_of_line
from guerrilla.backends.measure import measured
from guerrilla.backends.processor import Processor, ProcessorConfig, stack
from guerrilla.backends.registry import Registry
from guerrilla.counters import Counters, ProcessorCounters
from guerrilla.envelope import Envelope
from guerrilla.smtp.replies import LOCAL_ERROR, Reply


async def run(answer: object) -> ProcessorCounters:
    """Call a processor that answers so, or raises it, and return what was counted."""

    def decorator(following: Process) -> Process:
        async def process(envelope: Envelope, task: Task) -> Reply:
            if isinstance(answer, BaseException):
                raise answer
            return answer  # type: ignore[return-value]

        return process

    async def end(envelope: Envelope, task: Task) -> Reply:
        return LOCAL_ERROR

    counters = ProcessorCounters()
    with contextlib.suppress(ValueError, asyncio.CancelledError):
        await measured(decorator, counters)(end)(Envelope(), Task.SAVE_MAIL)
    return counters


@pytest.mark.parametrize(
    ("answer", "errors"),
    [(Reply(250), 0), (Reply(550), 0), (ValueError(), 1), (asyncio.CancelledError(), 1), ("no reply", 1)],
)
async def test_a_call_is_counted_and_what_is_no_reply_is_an_error(answer: object, errors: int) -> None:
    counters = await run(answer)
    assert sum(counters.latencies.counts) == 1
    assert counters.errors == errors


def ends(envelope: Envelope, task: Task) -> Awaitable[Reply]:
    raise StopIteration(Reply(250))  # as next() does, of a generator that has returned one


async def test_a_process_that_raises_stop_iteration_has_not_answered() -> None:
    """Compiled, the coroutine around it would have returned what the exception holds."""
    counters = ProcessorCounters()
    with pytest.raises(RuntimeError, match="StopIteration") as caught:
        await measured(lambda following: ends, counters)(ends)(Envelope(), Task.SAVE_MAIL)
    assert isinstance(caught.value.__cause__, StopIteration)
    assert (sum(counters.latencies.counts), counters.errors) == (1, 1)


async def plain_coroutine(gate: asyncio.Future[Reply]) -> Reply:
    return await gate


@pytest.mark.parametrize("wrap", [plain_coroutine, lambda gate: gate])
async def test_who_waits_is_cancelled_without_a_warning(wrap: Callable[[asyncio.Future[Reply]], Any]) -> None:
    """Compiled, it hands the cancellation on to what it awaits itself. A warning, an error here, would replace it."""
    gate = asyncio.get_running_loop().create_future()
    counters = ProcessorCounters()
    process = measured(lambda following: lambda envelope, task: wrap(gate), counters)(end_of_line)

    async def wait() -> Reply:
        return await process(Envelope(), Task.SAVE_MAIL)

    waiting = asyncio.create_task(wait())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert gate.cancelled()
    assert counters.errors == 1


async def test_a_line_counts_for_each_of_its_processors_by_its_name() -> None:
    counters = Counters()
    line = Registry().build({"save_process": "HeadersParser|Hasher"}, counters)
    await line.save(Envelope(), Task.SAVE_MAIL)
    await line.save(Envelope(), Task.SAVE_MAIL)
    assert {name: sum(each.latencies.counts) for name, each in counters.processors.items()} == {
        "HeadersParser": 2,
        "Hasher": 2,
    }


class Clock:
    """Time passes on it only where somebody takes it."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """What processors are measured by, those that are made from now on."""
    made = Clock()
    monkeypatch.setattr(time, "perf_counter", made)
    return made


class Annotates(Processor[ProcessorConfig]):
    """Takes a second, or fails."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(ProcessorConfig())
        self._clock = clock

    def annotate(self, envelope: Envelope) -> None:
        self._clock.now += 1.0
        if envelope.subject:
            raise ValueError(envelope.subject)


async def test_what_annotates_is_counted_and_what_it_raises_is_an_error(clock: Clock) -> None:
    counters = ProcessorCounters()
    process = stack([measured(Annotates(clock).decorate, counters)])
    await process(Envelope(), Task.SAVE_MAIL)
    await process(Envelope(), Task.VALIDATE_RCPT)
    assert (sum(counters.latencies.counts), counters.errors) == (1, 0)
    with pytest.raises(ValueError, match="no"):
        await process(Envelope(subject="no"), Task.SAVE_MAIL)
    assert (sum(counters.latencies.counts), counters.errors) == (2, 1)


async def test_the_time_of_what_annotates_is_not_that_of_who_passes_on_to_it_however_often(clock: Clock) -> None:
    first, second = ProcessorCounters(), ProcessorCounters()

    def twice(following: Process) -> Process:
        async def process(envelope: Envelope, task: Task) -> Reply:
            clock.now += 0.5
            await following(envelope, task)
            return await following(envelope, task)

        return process

    await stack([measured(twice, first), measured(Annotates(clock).decorate, second)])(Envelope(), Task.SAVE_MAIL)
    assert sum(second.latencies.counts) == 2
    assert (first.latencies.seconds, second.latencies.seconds) == (0.5, 2.0)


async def test_what_annotates_is_not_counted_for_a_decorator_that_only_passes_on_to_it(clock: Clock) -> None:
    """Such a decorator may return the very process that follows, as one that is switched off does."""
    switched_off, annotates = ProcessorCounters(), ProcessorCounters()
    process = stack(
        [
            measured(lambda following: following, switched_off),
            measured(Annotates(clock).decorate, annotates),
        ]
    )
    with pytest.raises(ValueError, match="no"):
        await process(Envelope(subject="no"), Task.SAVE_MAIL)
    await process(Envelope(), Task.SAVE_MAIL)
    assert (annotates.errors, sum(annotates.latencies.counts)) == (1, 2)
    assert (switched_off.latencies.seconds, annotates.latencies.seconds) == (0.0, 2.0)


async def test_all_that_a_decorator_is_made_of_is_its_own_time(clock: Clock) -> None:
    """One may be stacked of two that annotate."""
    counters = ProcessorCounters()
    first, second = Annotates(clock), Annotates(clock)
    await stack([measured(lambda following: first.decorate(second.decorate(following)), counters)])(
        Envelope(), Task.SAVE_MAIL
    )
    assert sum(counters.latencies.counts) == 1
    assert counters.latencies.seconds == 2.0


async def test_the_time_of_those_that_follow_is_not_a_processors_own(clock: Clock) -> None:
    first, second = ProcessorCounters(), ProcessorCounters()

    def passes_on(following: Process) -> Process:
        return lambda envelope, task: following(envelope, task)

    def takes_its_time(following: Process) -> Process:
        async def process(envelope: Envelope, task: Task) -> Reply:
            clock.now += 1.0
            return LOCAL_ERROR

        return process

    line = stack([measured(passes_on, first), measured(takes_its_time, second)])
    await line(Envelope(), Task.SAVE_MAIL)
    assert (first.latencies.seconds, second.latencies.seconds) == (0.0, 1.0)


class Keeps:
    """Decorates a process as a store does that is the last of its line."""

    def __call__(self, following: Process) -> Process:
        return Keeper(following, self._begin, self._reply)

    def _begin(self, envelope: Envelope, tell: Tell) -> Callable[[], None]:
        raise AssertionError

    def _reply(self, envelope: Envelope, error: BaseException | None) -> Reply:
        raise AssertionError


async def test_a_keeper_stays_one_and_is_measured_where_it_is_awaited() -> None:
    counters = ProcessorCounters()
    process = measured(Keeps(), counters)(end_of_line)
    assert isinstance(process, Keeper)
    assert (await process(Envelope(), Task.SAVE_MAIL)).positive
    assert sum(counters.latencies.counts) == 1


async def test_a_decorator_that_passes_a_keeper_on_is_measured_apart_from_it() -> None:
    keeper = measured(Keeps(), first := ProcessorCounters())(end_of_line)
    process = measured(lambda following: following, second := ProcessorCounters())(keeper)
    assert process is not keeper
    assert (await process(Envelope(), Task.SAVE_MAIL)).positive
    assert sum(first.latencies.counts) == sum(second.latencies.counts) == 1


async def test_a_keeper_that_is_returned_again_and_again_is_measured_once_by_each() -> None:
    keeper = Keeps()(end_of_line)
    counters = [ProcessorCounters(), ProcessorCounters()]
    for _ in range(2):
        for each in counters:
            process = measured(lambda following: keeper, each)(end_of_line)
            assert (await process(Envelope(), Task.SAVE_MAIL)).positive
    assert [sum(each.latencies.counts) for each in counters] == [2, 2]


def test_a_keeper_that_nobody_measures_counts_nothing() -> None:
    keeper = Keeps()(end_of_line)
    assert isinstance(keeper, Keeper)
    keeper.measure(keeper.clock(), False)
    assert keeper.counters is None
