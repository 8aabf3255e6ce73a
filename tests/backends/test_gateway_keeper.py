"""A store at the end of a line begins at once and tells what became of a message: no worker waits for it."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import pytest
from structlog.testing import LogCapture

from guerrilla.backends import gateway as gateway_module
from guerrilla.backends.base import Decorator, Process, Task
from guerrilla.backends.gateway import CONVEYOR_CAPACITY, Gateway
from guerrilla.backends.hooks import Keeper, Tell, end_of_line
from guerrilla.backends.processor import Processor, ProcessorConfig, processor
from guerrilla.backends.registry import Registry
from guerrilla.counters import Counters
from guerrilla.envelope import Envelope
from guerrilla.smtp.replies import (
    INSUFFICIENT_STORAGE,
    LOCAL_ERROR,
    OK,
    RECIPIENT_OK,
    SAVE_TIMEOUT,
    STORAGE_TOO_BUSY,
    Reply,
)

Start: TypeAlias = Callable[..., Awaitable[Gateway]]
ONE: dict[str, Any] = {"save_workers_size": 1}


class FullError(Exception):
    """What a store tells that has no room."""


class Shelf:
    """A store. What it tells of each message, the test says; and it may be told to raise in place of beginning."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.tells: list[Tell] = []
        self.withdrawn: list[Envelope] = []
        self.awaited = 0
        self._error = error

    def __call__(self) -> Decorator:
        return self._decorate

    def _decorate(self, following: Process) -> Process:
        async def process(envelope: Envelope, task: Task) -> Reply:
            if task is Task.SAVE_MAIL:
                self.awaited += 1
            return await following(envelope, task)

        return Keeper(process, self._begin, self._reply)

    def _begin(self, envelope: Envelope, tell: Tell) -> Callable[[], None]:
        if self._error is not None:
            raise self._error
        self.tells.append(tell)
        return lambda: self.withdrawn.append(envelope)

    def _reply(self, envelope: Envelope, error: BaseException | None) -> Reply:
        if isinstance(error, FullError):
            return INSUFFICIENT_STORAGE
        if error is not None:
            raise error
        return OK


class Marks(Processor[ProcessorConfig]):
    """Writes on the envelope."""

    def annotate(self, envelope: Envelope) -> None:
        envelope.subject += "marked"


def events(records: LogCapture) -> list[str]:
    return [str(entry["event"]) for entry in records.entries]


@pytest.mark.parametrize("line", ["Shelf", "Marks|Shelf"])
@pytest.mark.parametrize(("told", "reply"), [(None, OK), (FullError(), INSUFFICIENT_STORAGE)])
async def test_it_begins_at_once_and_the_answer_is_what_it_tells(
    running: Start, line: str, told: Exception | None, reply: Reply
) -> None:
    shelf = Shelf()
    gateway = await running(line, Shelf=shelf, Marks=Marks)
    envelope = Envelope()
    answer = gateway.process(envelope)
    [tell] = shelf.tells  # before the loop had a turn
    assert envelope.subject == ("marked" if "Marks" in line else "")
    assert not answer.done()
    assert gateway.workers_busy == 1
    tell(told)
    assert answer.result() is reply
    assert gateway.workers_busy == 0
    assert not shelf.awaited


async def test_behind_what_waits_it_is_awaited_by_a_worker(running: Start) -> None:
    async def passes(envelope: Envelope) -> None:
        return None

    shelf = Shelf()
    gateway = await running("Passes|Shelf", Shelf=shelf, Passes=processor(passes))
    assert (await gateway.process(Envelope())).positive
    assert (len(shelf.tells), shelf.awaited) == (0, 1)


async def test_as_many_as_there_are_workers_and_the_next_when_one_is_told_of(running: Start) -> None:
    """What waits for its turn is taken by a worker."""
    shelf = Shelf()
    gateway = await running("Shelf", {"save_workers_size": 2}, Shelf=shelf)
    answers = [gateway.process(Envelope()) for _ in range(4)]
    for _ in range(3):
        await asyncio.sleep(0)
    assert len(shelf.tells) == 2
    assert (gateway.queue_depth, gateway.workers_busy) == (2, 2)
    shelf.tells[1](None)
    assert answers[1].done()
    assert (await answers[2]).positive
    assert (await answers[3]).positive
    assert shelf.awaited == 2
    assert not answers[0].done()
    shelf.tells[0](None)
    assert answers[0].result() is OK
    assert gateway.workers_busy == 0


async def test_who_comes_does_not_overtake_who_waits(running: Start) -> None:
    shelf = Shelf()
    gateway = await running("Shelf", {"save_workers_size": 3}, Shelf=shelf)
    answers = [gateway.process(Envelope()) for _ in range(4)]
    for tell in shelf.tells[:2]:
        tell(None)
    answers.append(gateway.process(Envelope()))  # there is room, but somebody waits for it
    assert len(shelf.tells) == 3
    shelf.tells[2](None)
    assert [reply.positive for reply in await asyncio.gather(*answers)] == [True] * 5
    assert shelf.awaited == 2


async def test_a_recipient_waits_for_its_turn_as_a_message_does(running: Start) -> None:
    shelf = Shelf()
    gateway = await running("Shelf", {**ONE, "validate_process": "Shelf"}, Shelf=shelf)
    gateway.process(Envelope())
    answer = gateway.validate_rcpt(Envelope())
    for _ in range(3):
        await asyncio.sleep(0)
    assert not answer.done()
    shelf.tells[0](None)
    assert await answer is RECIPIENT_OK


async def test_nothing_is_begun_for_a_recipient(running: Start) -> None:
    """Also where both lines have the same one, since a decorator may remember what it has made."""
    shelf = Shelf()
    keeper = shelf()(end_of_line)
    line = {"validate_process": "Same", "save_workers_size": 2}
    gateway = await running("Same", line, Same=lambda: lambda following: keeper)
    assert await gateway.validate_rcpt(Envelope()) is RECIPIENT_OK
    assert not shelf.tells
    answer = gateway.process(Envelope())
    shelf.tells[0](None)
    assert answer.result() is OK


async def test_who_is_refused_for_want_of_room_is_not_written_on(running: Start) -> None:
    gateway = await running("Marks|Shelf", ONE, Shelf=Shelf(), Marks=Marks)
    answers = [gateway.process(Envelope()) for _ in range(1 + CONVEYOR_CAPACITY)]
    envelope = Envelope()
    assert gateway.process(envelope).result() is STORAGE_TOO_BUSY
    assert envelope.subject == ""
    assert gateway.validate_rcpt(Envelope()).result() is STORAGE_TOO_BUSY
    for answer in answers:
        answer.cancel()


async def test_when_the_time_is_over_it_is_withdrawn(running: Start, records: LogCapture) -> None:
    """The client is told to try again, and the next has its turn."""
    shelf = Shelf()
    gateway = await running("Shelf", {**ONE, "gw_save_timeout": "10ms"}, Shelf=shelf)
    envelope = Envelope()
    assert await gateway.process(envelope) is SAVE_TIMEOUT
    assert shelf.withdrawn == [envelope]
    assert events(records) == ["time is over"]
    answer = gateway.process(Envelope())
    assert len(shelf.tells) == 2
    shelf.tells[1](None)
    assert answer.result() is OK


async def test_who_cancels_the_answer_has_it_withdrawn(running: Start) -> None:
    shelf = Shelf()
    gateway = await running("Shelf", ONE, Shelf=shelf)
    envelope = Envelope()
    answer = gateway.process(envelope)
    waiting = gateway.process(Envelope())
    assert answer.cancel()
    assert not answer.cancel()
    assert shelf.withdrawn == [envelope]
    assert (await waiting).positive


class Panic(BaseException):
    """What a library that is written in Rust raises."""


@pytest.mark.parametrize("error", [ValueError("no"), asyncio.CancelledError(), SystemExit(3), GeneratorExit(), Panic()])
@pytest.mark.parametrize("begins", [True, False])
async def test_what_it_raises_never_reaches_the_server(
    running: Start, records: LogCapture, error: BaseException, begins: bool
) -> None:
    shelf = Shelf(None if begins else error)
    gateway = await running("Shelf", ONE, Shelf=shelf)
    answer = gateway.process(Envelope())
    if begins:
        shelf.tells[0](error)
    assert answer.result() is LOCAL_ERROR
    assert events(records) == ["processor failed"]
    assert gateway.workers_busy == 0


@pytest.mark.parametrize("begins", [True, False])
async def test_an_interrupt_ends_the_program(running: Start, begins: bool) -> None:
    shelf = Shelf(None if begins else KeyboardInterrupt())
    gateway = await running("Shelf", Shelf=shelf)

    def submit() -> None:
        gateway.process(Envelope())
        shelf.tells[0](KeyboardInterrupt())

    with pytest.raises(KeyboardInterrupt):
        submit()
    assert gateway.workers_busy == 0


async def test_an_answer_that_somebody_else_has_given_stays(running: Start) -> None:
    shelf = Shelf()
    gateway = await running("Shelf", Shelf=shelf)
    answer = gateway.process(Envelope())
    answer.set_result(RECIPIENT_OK)
    shelf.tells[0](None)
    assert answer.result() is RECIPIENT_OK
    assert gateway.workers_busy == 0


async def test_shutdown_waits_for_what_it_has_begun(running: Start) -> None:
    shelf = Shelf()
    gateway = await running("Shelf", Shelf=shelf)
    answer = gateway.process(Envelope())
    closing = asyncio.create_task(gateway.shutdown())
    for _ in range(5):
        await asyncio.sleep(0)
    assert not closing.done()
    shelf.tells[0](None)
    await closing
    assert answer.result() is OK


async def test_what_shutdown_waits_for_in_vain_is_answered_and_withdrawn(
    running: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_module, "GRACE", 0.01)
    shelf = Shelf()
    gateway = await running("Shelf", Shelf=shelf)
    envelope = Envelope()
    answer = gateway.process(envelope)
    await gateway.shutdown(0)
    assert answer.result() is SAVE_TIMEOUT
    assert shelf.withdrawn == [envelope]


async def test_it_is_counted_and_timed(monkeypatch: pytest.MonkeyPatch, log: Any) -> None:
    """What was withdrawn, or told as a failure of its own, is an error; a refusal is not."""
    registry, counters, shelf = Registry(), Counters(), Shelf()
    registry.add("Shelf", shelf)
    gateway = Gateway(registry.build({"save_process": "Shelf", "save_workers_size": 4}, counters), log)
    await gateway.initialize()
    await gateway.start()
    answers = [gateway.process(Envelope()) for _ in range(5)]
    shelf.tells[0](None)
    shelf.tells[1](FullError())
    shelf.tells[2](ValueError())
    answers[3].cancel()
    await answers[4]
    counted = counters.processor("Shelf")
    assert sum(counted.latencies.counts) == 5
    assert counted.errors == 2
    await gateway.shutdown()


class Load:
    """Something that a message holds."""


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_message_that_is_answered_is_held_by_nobody(running: Start, cancelled: bool) -> None:
    shelf = Shelf()
    gateway = await running("Marks|Shelf", Shelf=shelf, Marks=Marks)
    load = Load()
    held = weakref.ref(load)
    envelope = Envelope(values={"load": load})
    gc.disable()
    try:
        answer = gateway.process(envelope)
        if cancelled:
            answer.cancel()
        else:
            shelf.tells[0](None)
        shelf.tells.clear()
        shelf.withdrawn.clear()
        del envelope, load
        assert held() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("withdrawn", [False, True])
async def test_what_a_store_tells_once_more_or_of_what_was_withdrawn_counts_for_nothing(
    running: Start, withdrawn: bool
) -> None:
    shelf = Shelf()
    gateway = await running("Shelf", Shelf=shelf)
    answer = gateway.process(Envelope())
    if withdrawn:
        answer.cancel()
    else:
        shelf.tells[0](None)
    with pytest.raises(RuntimeError, match="a store tells once"):
        shelf.tells[0](FullError())
    assert answer.cancelled() or answer.result() is OK
    assert gateway.workers_busy == 0
    later = gateway.process(Envelope())
    assert gateway.workers_busy == 1
    shelf.tells[1](None)
    assert later.result() is OK
