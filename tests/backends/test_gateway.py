"""The gateway answers every submission in time, whatever its processors do, and they live and end in order."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeAlias, cast

import pytest
import structlog
from structlog.testing import LogCapture

from guerrilla.backends.base import CallNext, Decorator, State, Task
from guerrilla.backends.gateway import CONVEYOR_CAPACITY, Gateway, InitializeError
from guerrilla.backends.processor import FunctionProcessor, Processor, ProcessorConfig, processor
from guerrilla.backends.registry import Registry
from guerrilla.envelope import Address, Envelope
from guerrilla.smtp.replies import (
    LOCAL_ERROR,
    NO_SUCH_USER,
    NOT_RUNNING,
    OK,
    QUOTA_EXCEEDED,
    RECIPIENT_OK,
    SAVE_TIMEOUT,
    STORAGE_TIMEOUT,
    STORAGE_TOO_BUSY,
    Reply,
)

Build: TypeAlias = Callable[..., Gateway]
Start: TypeAlias = Callable[..., Awaitable[Gateway]]
ONE: dict[str, Any] = {"save_workers_size": 1}
LINE_OF = {Task.SAVE_MAIL: "save_process", Task.VALIDATE_RCPT: "validate_process"}
LIMIT_OF = {Task.SAVE_MAIL: "gw_save_timeout", Task.VALIDATE_RCPT: "gw_val_rcpt_timeout"}
TIMEOUT_OF = {Task.SAVE_MAIL: SAVE_TIMEOUT, Task.VALIDATE_RCPT: STORAGE_TIMEOUT}


def bare(process: Callable[[Envelope, Task], Any]) -> Callable[[], Decorator]:
    """Make of a process a processor that ends the line: nothing stands between it and the worker."""
    return lambda: lambda following: process


def notes(name: str, diary: list[str], broken: BaseException | None = None) -> type[Processor[ProcessorConfig]]:
    """Make a processor that writes its life down; ``broken`` is what its initialize raises."""

    class Noting(Processor[ProcessorConfig]):
        async def initialize(self) -> None:
            diary.append(f"initialize {name}")
            if broken is not None:
                raise broken

        async def shutdown(self) -> None:
            diary.append(f"shutdown {name}")

        async def save_mail(self, envelope: Envelope, call_next: CallNext) -> Reply:
            diary.append(f"save {name}")
            return await call_next()

    return Noting


class Panic(BaseException):
    """What a library that is written in Rust raises."""


class Passing(Processor[ProcessorConfig]):
    """Passes everything on. For that it is awaited, so by a worker."""

    async def save_mail(self, envelope: Envelope, call_next: CallNext) -> Reply:
        return await call_next()


def submit(gateway: Gateway, task: Task, envelope: Envelope | None = None) -> asyncio.Future[Reply]:
    envelope = envelope or Envelope()
    return gateway.process(envelope) if task is Task.SAVE_MAIL else gateway.validate_rcpt(envelope)


def events(records: LogCapture) -> list[str]:
    return [str(entry["event"]) for entry in records.entries]


class Gate:
    """A processor that holds what comes until it is let through, and counts it."""

    def __init__(self) -> None:
        self.inside = 0
        self.most = 0
        self.entered: asyncio.Queue[Envelope] = asyncio.Queue()
        self.open = asyncio.Event()
        self.cancelled = asyncio.Event()

    @property
    def processor(self) -> FunctionProcessor:
        return processor(self._hold)

    async def _hold(self, envelope: Envelope) -> None:
        self.inside += 1
        self.most = max(self.most, self.inside)
        self.entered.put_nowait(envelope)
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        finally:
            self.inside -= 1


class Stubborn:
    """A process that takes no notice of its cancellation: it ends when it is told, and answers yes."""

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()
        self.end = asyncio.Event()

    async def __call__(self, envelope: Envelope, task: Task) -> Reply:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
        await self.end.wait()
        return OK


# Life


async def test_states(built: Build) -> None:
    """New, initialized, running, shuttered."""
    gateway = built("HeadersParser")
    states = [gateway.state]
    for step in (gateway.initialize, gateway.start, gateway.shutdown):
        await step()
        states.append(gateway.state)
    assert states == [State.NEW, State.INITIALIZED, State.RUNNING, State.SHUTTERED]


async def test_order_of_life(built: Build) -> None:
    """Processors are initialized in order, once however often they are named, and shut down in reverse, once."""
    diary: list[str] = []
    gateway = built("A|B|A", {"validate_process": "C|B"}, A=notes("A", diary), B=notes("B", diary), C=notes("C", diary))
    await gateway.initialize()
    assert diary == ["initialize A", "initialize B", "initialize C"]
    await gateway.start()
    await gateway.process(Envelope())
    assert diary[3:] == ["save A", "save B", "save A"]
    await gateway.shutdown()
    await gateway.shutdown()
    assert diary[6:] == ["shutdown C", "shutdown B", "shutdown A"]


@pytest.mark.parametrize(
    ("error", "text"),
    [(OSError("no database"), "B: no database"), (OSError(), "B: OSError")],
    ids=["with a text", "without a text"],
)
async def test_failed_initialize(built: Build, error: Exception, text: str) -> None:
    """What was opened is closed in reverse, the one that failed too, and never again; the error says who and why."""
    diary: list[str] = []
    gateway = built("A|B|C", A=notes("A", diary), B=notes("B", diary, error), C=notes("C", diary))
    with pytest.raises(InitializeError) as raised:
        await gateway.initialize()
    assert str(raised.value) == text
    assert raised.value.__cause__ is error
    assert diary == ["initialize A", "initialize B", "shutdown B", "shutdown A"]
    assert gateway.state is State.ERROR
    with pytest.raises(RuntimeError, match="cannot be started: its state is error"):
        await gateway.start()
    assert await gateway.process(Envelope()) is NOT_RUNNING
    await gateway.shutdown()
    assert len(diary) == 4
    assert gateway.state is State.ERROR


async def test_cancelled_initialize(built: Build) -> None:
    """An initialize that is cancelled closes what it had opened, and is cancelled."""
    diary: list[str] = []
    gateway = built("A|B", A=notes("A", diary), B=notes("B", diary, asyncio.CancelledError()))
    with pytest.raises(asyncio.CancelledError):
        await gateway.initialize()
    assert diary == ["initialize A", "initialize B", "shutdown B", "shutdown A"]
    assert gateway.state is State.ERROR


async def test_failed_shutdown(built: Build, records: LogCapture) -> None:
    """A processor that cannot be shut down is logged, and the others are shut down all the same."""
    diary: list[str] = []

    class Broken(Processor[ProcessorConfig]):
        async def shutdown(self) -> None:
            raise OSError("it hangs on")

    gateway = built("A|Broken|C", A=notes("A", diary), Broken=Broken, C=notes("C", diary))
    await gateway.initialize()
    await gateway.shutdown()
    assert diary[2:] == ["shutdown C", "shutdown A"]
    [entry] = records.entries
    assert (entry["event"], entry["processor"]) == ("processor failed to shut down", "Broken")
    assert entry["exc_info"]


async def test_wrong_order_of_life(built: Build) -> None:
    """A gateway is not started before it is initialized, and neither is done twice."""
    gateway = built("HeadersParser")
    with pytest.raises(RuntimeError, match="cannot be started: its state is new"):
        await gateway.start()
    await gateway.initialize()
    with pytest.raises(RuntimeError, match="cannot be initialized: its state is initialized"):
        await gateway.initialize()
    await gateway.start()
    with pytest.raises(RuntimeError, match="cannot be started: its state is running"):
        await gateway.start()
    await gateway.shutdown()


async def test_shutdown_of_a_new_one(built: Build) -> None:
    """A gateway that was never initialized can be shut down: there is nothing to close."""
    diary: list[str] = []
    gateway = built("A", A=notes("A", diary))
    await gateway.shutdown()
    assert gateway.state is State.SHUTTERED
    assert diary == []


@pytest.mark.parametrize("task", Task)
async def test_not_running(built: Build, task: Task) -> None:
    """Before the start and after the shutdown, all is answered 451 4.3.2 at once."""
    gateway = built("HeadersParser", {"validate_process": "HeadersParser"})
    assert await submit(gateway, task) is NOT_RUNNING
    await gateway.initialize()
    assert await submit(gateway, task) is NOT_RUNNING
    await gateway.start()
    assert (await submit(gateway, task)).positive
    await gateway.shutdown()
    assert await submit(gateway, task) is NOT_RUNNING
    assert (NOT_RUNNING.code, NOT_RUNNING.enhanced) == (451, "4.3.2")


async def test_logger_of_a_processor(built: Build, records: LogCapture) -> None:
    """A processor writes to the log of its gateway, with its name, from initialize on."""

    class Talking(Processor[ProcessorConfig]):
        async def initialize(self) -> None:
            self.log.info("hello")

    gateway = built("talking", Talking=Talking)
    await gateway.initialize()
    assert records.entries == [{"event": "hello", "log_level": "info", "processor": "Talking"}]
    await gateway.shutdown()


# Submissions


async def test_answers(running: Start) -> None:
    """What passes the line is answered with its queue id; what a processor answers reaches the client."""

    @processor
    async def full(envelope: Envelope) -> Reply | None:
        return QUOTA_EXCEEDED if envelope.helo == "full" else None

    gateway = await running("Full", Full=full)
    envelope = Envelope()
    assert str(await gateway.process(envelope)) == f"250 2.0.0 OK: queued as {envelope.queued_id}"
    assert await gateway.process(Envelope(helo="full")) is QUOTA_EXCEEDED


async def test_stamps(running: Start) -> None:
    """Each submission gets a queue id of its own, of 32 hexadecimal digits, and its time; also the same envelope."""
    gateway = await running("HeadersParser")
    before = datetime.now(UTC)
    ids = set()
    envelope = Envelope()
    for _ in range(1000):
        await gateway.process(envelope)
        assert re.fullmatch("[0-9a-f]{32}", envelope.queued_id)
        ids.add(envelope.queued_id)
    assert len(ids) == 1000
    assert before <= envelope.received_at <= datetime.now(UTC)


async def test_ids_of_a_child_are_not_its_parent_s(built: Build) -> None:
    """A gateway that was made before the process was doubled makes other ids in each: it begins anew when it starts."""
    gateway = built("HeadersParser")
    envelopes = [Envelope(), Envelope()]
    await gateway.process(envelopes[0])
    await gateway.initialize()
    await gateway.start()
    await gateway.process(envelopes[1])
    await gateway.shutdown()
    assert envelopes[0].queued_id[12:24] != envelopes[1].queued_id[12:24]


async def test_ids_sort_by_age_and_are_no_other_gateway_s(running: Start) -> None:
    """Queue ids of one gateway sort in the order of submission; those of two, which start anew, never meet."""
    ids = []
    for _ in range(2):
        gateway = await running("HeadersParser")
        envelopes = [Envelope() for _ in range(1000)]
        await asyncio.gather(*[gateway.process(envelope) for envelope in envelopes])
        ids.append([envelope.queued_id for envelope in envelopes])
        assert ids[-1] == sorted(ids[-1])
    assert {each[12:24] for each in ids[0]}.isdisjoint(each[12:24] for each in ids[1])


async def test_validates_the_last_recipient(running: Start) -> None:
    """RCPT is answered by validate_process; save_process has no part in it, nor has it in DATA."""
    diary: list[str] = []

    @processor
    async def only_joe(envelope: Envelope) -> Reply | None:
        diary.append(str(envelope.rcpt_to[-1]))
        return None if envelope.rcpt_to[-1].user == "joe" else NO_SUCH_USER

    gateway = await running("A", {"validate_process": "Joe"}, Joe=only_joe, A=notes("A", diary))
    assert gateway.validates
    envelope = Envelope(rcpt_to=[Address("joe", "example.com")])
    assert await gateway.validate_rcpt(envelope) is RECIPIENT_OK
    envelope.rcpt_to.append(Address("ann", "example.com"))
    assert await gateway.validate_rcpt(envelope) is NO_SUCH_USER
    await gateway.process(envelope)
    assert diary == ["initialize A", "joe@example.com", "ann@example.com", "save A"]
    assert envelope.queued_id


async def test_without_a_validate_process(running: Start) -> None:
    """Then nobody needs to ask; who asks is told yes, and no processor hears of it."""
    seen: list[Envelope] = []

    @processor
    async def noting(envelope: Envelope) -> None:
        seen.append(envelope)

    gateway = await running("Noting", Noting=noting)
    assert not gateway.validates
    assert await gateway.validate_rcpt(Envelope()) is RECIPIENT_OK
    assert seen == []


async def test_workers_work_at_the_same_time(running: Start) -> None:
    """As many as there are workers are worked on at a time, and never more."""
    gate = Gate()
    gateway = await running("Gate", {"save_workers_size": 3}, Gate=gate.processor)
    answers = [gateway.process(Envelope()) for _ in range(10)]
    for _ in range(3):
        await gate.entered.get()
    assert gate.inside == 3
    gate.open.set()
    assert all(reply.positive for reply in await asyncio.gather(*answers))
    assert gate.most == 3


async def test_in_the_order_of_their_coming(running: Start) -> None:
    """One worker takes what waits in the order in which it came."""
    gate = Gate()
    gate.open.set()
    gateway = await running("Gate", ONE, Gate=gate.processor)
    envelopes = [Envelope() for _ in range(5)]
    await asyncio.gather(*[gateway.process(envelope) for envelope in envelopes])
    assert [gate.entered.get_nowait() for _ in envelopes] == envelopes


async def test_a_worker_that_is_called_in_vain(running: Start) -> None:
    """When a busy worker is quicker than the one that was called, that one rests again, and comes the next time."""
    gate = Gate()
    gateway = await running("Gate", {"save_workers_size": 2}, Gate=gate.processor)
    answers = [gateway.process(Envelope())]
    await gate.entered.get()
    gate.open.set()  # the first worker goes on in the next turn, before the second, which is called now
    answers.append(gateway.process(Envelope()))
    assert all(reply.positive for reply in await asyncio.gather(*answers))
    gate.open.clear()
    answers = [gateway.process(Envelope()) for _ in range(2)]
    for _ in range(3):
        await gate.entered.get()
    assert gate.inside == 2
    gate.open.set()
    assert all(reply.positive for reply in await asyncio.gather(*answers))


async def test_a_worker_that_has_ended_is_not_called(running: Start) -> None:
    """A worker that somebody has cancelled while it rested does not keep a message from the others."""
    gateway = await running("Passing", {"save_workers_size": 2}, Passing=Passing)
    await asyncio.sleep(0)
    [last] = [task for task in asyncio.all_tasks() if task.get_name() == "worker 2"]
    last.cancel()
    await asyncio.wait([last])
    assert (await gateway.process(Envelope())).positive


async def test_what_a_worker_was_called_for_that_has_ended_is_done_by_the_next(running: Start) -> None:
    """Somebody has cancelled it before it came: whoever is called after it takes both."""
    gateway = await running("Passing", {"save_workers_size": 2}, Passing=Passing)
    await asyncio.sleep(0)
    answers = [gateway.process(Envelope())]
    [last] = [task for task in asyncio.all_tasks() if task.get_name() == "worker 2"]
    last.cancel()
    await asyncio.wait([last])
    answers.append(gateway.process(Envelope()))
    assert all(reply.positive for reply in await asyncio.gather(*answers))


async def test_a_line_that_never_waits_answers_at_once(running: Start) -> None:
    """Neither a worker nor the conveyor has a part in it."""
    gate = Gate()
    gateway = await running("HeadersParser|Hasher|Header", {**ONE, "validate_process": "Gate"}, Gate=gate.processor)
    asked = gateway.validate_rcpt(Envelope())
    await gate.entered.get()
    envelope = Envelope(rcpt_to=[Address("a", "b")], data=b"Subject: hello\r\n\r\n")
    answer = gateway.process(envelope)
    assert answer.done()
    assert str(await answer) == f"250 2.0.0 OK: queued as {envelope.queued_id}"
    assert (envelope.subject, len(envelope.hashes), gateway.queue_depth) == ("hello", 1, 0)
    assert envelope.delivery_header.startswith(b"Delivered-To: a@")
    assert not answer.cancel()
    gate.open.set()
    assert (await asked).positive


@pytest.mark.parametrize("line", ["HeadersParser|Passing", "Passing|HeadersParser", "HeadersParser|End"])
async def test_a_line_with_anything_else_in_it_is_a_worker_s(running: Start, line: str) -> None:
    async def end(envelope: Envelope, task: Task) -> Reply:
        return OK

    gateway = await running(line, ONE, Passing=Passing, End=bare(end))
    answer = gateway.process(Envelope())
    assert not answer.done()
    assert (await answer).positive


FAILURES = {
    "value": ValueError("no"),
    "exit": SystemExit(),
    "cancelled": asyncio.CancelledError(),
    "generator": GeneratorExit(),
    "panic": Panic(),
}


class Breaking(Processor[ProcessorConfig]):
    """Fails by what the message says."""

    def annotate(self, envelope: Any) -> None:
        if envelope.helo == "interrupt":
            raise KeyboardInterrupt
        if envelope.helo == "id":
            envelope.queued_id = 7
        if envelope.helo in (*FAILURES, "id"):
            raise FAILURES.get(envelope.helo, ValueError())


@pytest.mark.parametrize("helo", [*FAILURES, "id"])
async def test_what_fails_in_a_line_that_never_waits(running: Start, records: LogCapture, helo: str) -> None:
    """The client is told 451, the log the cause, and the next message is kept."""
    gateway = await running("HeadersParser|Breaking", ONE, Breaking=Breaking)
    envelope = Envelope(helo=helo)
    assert await gateway.process(envelope) is LOCAL_ERROR
    [entry] = records.entries
    assert entry["exc_info"]
    assert (entry["event"], entry["task"], entry["queued_id"]) == ("processor failed", "save mail", envelope.queued_id)
    assert (await gateway.process(Envelope())).positive


@pytest.mark.parametrize("line", ["Naming", "Naming|Passing"])
async def test_a_queue_id_that_is_no_text_is_told_as_it_is(running: Start, line: str) -> None:
    """Whatever a processor has made of it, and whoever answers, in both forms."""

    class Naming(Processor[ProcessorConfig]):
        def annotate(self, envelope: Any) -> None:
            envelope.queued_id = 7

    gateway = await running(line, ONE, Naming=Naming, Passing=Passing)
    assert str(await gateway.process(Envelope())) == "250 2.0.0 OK: queued as 7"


async def test_an_interrupt_in_a_line_that_never_waits_ends_the_program(running: Start) -> None:
    gateway = await running("Breaking", ONE, Breaking=Breaking)
    with pytest.raises(KeyboardInterrupt):
        gateway.process(Envelope(helo="interrupt"))


async def test_full_conveyor(running: Start) -> None:
    """What finds the conveyor full is told at once that we are too busy; what is on it is answered in its turn."""
    gateway = await running("Passing", {**ONE, "gw_save_timeout": "1h"}, Passing=Passing)
    answers = [gateway.process(Envelope()) for _ in range(CONVEYOR_CAPACITY)]
    refused = gateway.process(Envelope())
    assert refused.done()
    assert await refused is STORAGE_TOO_BUSY
    assert STORAGE_TOO_BUSY.temporary
    assert all(reply.positive for reply in await asyncio.gather(*answers))
    assert (await gateway.process(Envelope())).positive


async def test_two_gateways(running: Start) -> None:
    """Two gateways do not know of each other: one that hangs or has ended does not touch the other."""
    gate = Gate()
    one = await running("Gate", ONE, Gate=gate.processor)
    other = await running("Passing", ONE, Passing=Passing)
    answer = one.process(Envelope())
    await gate.entered.get()
    assert (await other.process(Envelope())).positive
    await other.shutdown()
    assert one.state is State.RUNNING
    gate.open.set()
    assert (await answer).positive


# What a processor may do


async def cancelled_from_within() -> None:
    inner = asyncio.create_task(asyncio.Event().wait())
    inner.cancel()
    await inner


@pytest.mark.parametrize("task", Task)
@pytest.mark.parametrize(
    "error", [ValueError("no"), ValueError(""), SystemExit(), Panic(), None], ids=lambda error: repr(error)
)
async def test_raising(running: Start, records: LogCapture, task: Task, error: BaseException | None) -> None:
    """Whatever a processor raises, the client is told 451, the log the cause, and the worker lives on."""

    async def process(envelope: Envelope, task: Task) -> Reply:
        if envelope.helo == "bad":
            if error is None:
                await cancelled_from_within()
            else:
                raise error
        return OK

    gateway = await running("Bad", {**ONE, "validate_process": "Bad"}, Bad=bare(process))
    assert await submit(gateway, task, Envelope(helo="bad")) is LOCAL_ERROR
    assert (LOCAL_ERROR.code, LOCAL_ERROR.enhanced) == (451, "4.3.0")
    [entry] = records.entries
    assert entry["exc_info"]
    assert (entry["event"], entry["task"]) == ("processor failed", task.value)
    assert await submit(gateway, task) is OK


async def test_a_queue_id_that_is_no_text_costs_no_worker(running: Start, records: LogCapture) -> None:
    """Compiled code held it to be one when it was to be written down, and no message was answered any more."""

    async def process(envelope: Any, task: Task) -> Reply:
        envelope.queued_id = 7
        raise ValueError

    gateway = await running("Bad", ONE, Bad=bare(process))
    for _ in range(2):
        assert await gateway.process(Envelope()) is LOCAL_ERROR
    assert [entry["queued_id"] for entry in records.entries] == [7, 7]


class Unspeakable:
    """Cannot even be shown."""

    def __repr__(self) -> str:
        raise ValueError


@pytest.mark.parametrize("answer", [None, Unspeakable()], ids=["none", "one that cannot be shown"])
async def test_a_log_that_fails_costs_no_worker(answer: Any) -> None:
    def fail(*_: object) -> str:
        raise OSError("the log has gone")

    async def process(envelope: Envelope, task: Task) -> Reply:
        if envelope.helo == "bad":
            raise ValueError
        return cast(Reply, answer)

    registry = Registry()
    registry.add("Bad", bare(process))
    log = structlog.wrap_logger(structlog.PrintLogger(), processors=[fail])
    gateway = Gateway(registry.build({"save_process": "Bad"} | ONE), log)
    await gateway.initialize()
    await gateway.start()
    assert await gateway.process(Envelope(helo="bad")) is LOCAL_ERROR
    assert await gateway.process(Envelope()) is LOCAL_ERROR
    await gateway.shutdown()


async def test_a_hook_that_is_not_asynchronous(running: Start, records: LogCapture) -> None:
    """A hook that raises when it is called, before there is anything to await, costs no worker either."""

    def process(envelope: Envelope, task: Task) -> Awaitable[Reply]:
        raise TypeError("save_mail() takes 1 positional argument but 2 were given")

    gateway = await running("Bad", ONE, Bad=bare(process))
    for _ in range(2):
        assert await gateway.process(Envelope()) is LOCAL_ERROR
    assert events(records) == ["processor failed"] * 2


@pytest.mark.parametrize("found", [None, "250 OK", True, b"x" * 1000])
async def test_no_reply(running: Start, records: LogCapture, found: object) -> None:
    """What is no Reply is answered 451; the log says what was found, in short, and what was meant."""

    async def process(envelope: Envelope, task: Task) -> object:
        return found if envelope.helo == "bad" else OK

    gateway = await running("Bad", ONE, Bad=bare(process))
    envelope = Envelope(helo="bad")
    assert await gateway.process(envelope) is LOCAL_ERROR
    assert records.entries == [
        {
            "event": "processor gave no reply",
            "log_level": "error",
            "task": "save mail",
            "queued_id": envelope.queued_id,
            "found": repr(found)[:80],
            "meant": "a Reply",
        }
    ]
    assert await gateway.process(Envelope()) is OK


def test_an_interrupt_ends_the_program(built: Build) -> None:
    """KeyboardInterrupt in a processor is not swallowed."""

    async def process(envelope: Envelope, task: Task) -> Reply:
        raise KeyboardInterrupt

    async def main() -> None:
        gateway = built("Bad", ONE, Bad=bare(process))
        await gateway.initialize()
        await gateway.start()
        await gateway.process(Envelope())

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())


# Time


@pytest.mark.parametrize("task", Task)
async def test_time_limit(running: Start, records: LogCapture, task: Task) -> None:
    """When the time is over, the processor is cancelled, the client is told 451, and the worker serves the next."""
    gate = Gate()
    other = Task.SAVE_MAIL if task is Task.VALIDATE_RCPT else Task.VALIDATE_RCPT
    keys = {**ONE, "validate_process": "HeadersParser", LINE_OF[task]: "Gate", LIMIT_OF[task]: "10ms"}
    gateway = await running(keys.pop("save_process", "HeadersParser"), keys, Gate=gate.processor)
    envelope = Envelope()
    answer = submit(gateway, task, envelope)
    assert await answer is TIMEOUT_OF[task]
    assert (await answer).code == 451
    await gate.cancelled.wait()
    assert (await submit(gateway, other)).positive
    assert records.entries == [
        {"event": "time is over", "log_level": "warning", "task": task.value, "queued_id": envelope.queued_id}
    ]


async def test_time_limit_ends_with_the_answer(running: Start, records: LogCapture) -> None:
    """The time of a message that was answered is over with it: the next one on its worker is not cancelled by it."""
    gate = Gate()

    @processor
    async def only_slow(envelope: Envelope) -> Reply | None:
        return None if envelope.helo == "slow" else OK

    gateway = await running("Slow|Gate", {**ONE, "gw_save_timeout": "50ms"}, Slow=only_slow, Gate=gate.processor)
    slow = Envelope(helo="slow")
    assert await gateway.process(Envelope()) is OK
    assert await gateway.process(slow) is SAVE_TIMEOUT
    assert [entry["queued_id"] for entry in records.entries] == [slow.queued_id]


async def test_time_limit_covers_the_wait_for_a_worker(running: Start) -> None:
    """What finds no worker in time is told so, and never reaches a processor; the one at work is not disturbed."""
    gate = Gate()
    diary: list[str] = []
    keys = {**ONE, "validate_process": "Gate", "gw_val_rcpt_timeout": "1h", "gw_save_timeout": "10ms"}
    gateway = await running("A", keys, Gate=gate.processor, A=notes("A", diary))
    slow = gateway.validate_rcpt(Envelope())
    await gate.entered.get()
    assert await gateway.process(Envelope()) is SAVE_TIMEOUT
    assert not slow.done()
    gate.open.set()
    assert await slow is RECIPIENT_OK
    await gateway.shutdown()
    assert diary == ["initialize A", "shutdown A"]


@pytest.mark.parametrize("task", Task)
async def test_a_processor_that_will_not_end(running: Start, records: LogCapture, task: Task) -> None:
    """The client has its answer while the processor still hangs; its late yes is logged, and goes to nobody else."""
    stubborn = Stubborn()
    other = Task.SAVE_MAIL if task is Task.VALIDATE_RCPT else Task.VALIDATE_RCPT
    keys = {**ONE, "validate_process": "Next", LINE_OF[task]: "Stubborn", LIMIT_OF[task]: "10ms", LIMIT_OF[other]: "1h"}

    async def busy(envelope: Envelope, task: Task) -> Reply:
        await asyncio.sleep(0)  # a cancellation that was left over would strike here
        return QUOTA_EXCEEDED

    gateway = await running(keys.pop("save_process", "Next"), keys, Stubborn=bare(stubborn), Next=bare(busy))
    assert await submit(gateway, task) is TIMEOUT_OF[task]
    await stubborn.cancelled.wait()
    following = submit(gateway, other)
    stubborn.end.set()
    assert await following is QUOTA_EXCEEDED
    late = ["kept after its time was over: the client sends it again"] if task is Task.SAVE_MAIL else []
    assert events(records) == ["time is over", *late]


async def test_a_processor_that_refuses_too_late(running: Start, records: LogCapture) -> None:
    """A no that comes too late is in order: nothing was kept."""
    gate = Gate()

    async def process(envelope: Envelope, task: Task) -> Reply:
        try:
            await gate.open.wait()
        except asyncio.CancelledError:
            gate.cancelled.set()
        return QUOTA_EXCEEDED

    gateway = await running("Bad", {**ONE, "gw_save_timeout": "10ms"}, Bad=bare(process))
    assert await gateway.process(Envelope()) is SAVE_TIMEOUT
    await gate.cancelled.wait()
    await gateway.shutdown()
    assert events(records) == ["time is over"]


async def test_a_processor_with_a_time_limit_of_its_own(running: Start, records: LogCapture) -> None:
    """A processor may use asyncio.timeout() itself: the gateway takes that for an error, and for nothing else."""

    async def process(envelope: Envelope, task: Task) -> Reply:
        async with asyncio.timeout(0):
            await asyncio.Event().wait()
        return OK

    gateway = await running("Bad", ONE, Bad=bare(process))
    for _ in range(2):
        assert await gateway.process(Envelope()) is LOCAL_ERROR
    assert events(records) == ["processor failed"] * 2


# Answers that nobody waits for


async def test_answer_cancelled_while_it_waits(running: Start) -> None:
    """What waits for a worker when its answer is cancelled never reaches a processor."""
    gate = Gate()
    gateway = await running("Gate", ONE, Gate=gate.processor)
    first = gateway.process(Envelope())
    await gate.entered.get()
    gateway.process(Envelope()).cancel()
    last = Envelope()
    answer = gateway.process(last)
    gate.open.set()
    await asyncio.gather(first, answer)
    assert gate.entered.get_nowait() is last


async def test_answer_cancelled_while_it_is_worked_on(running: Start) -> None:
    """What is under way is made void, and its worker lives on."""
    gate = Gate()
    diary: list[str] = []
    gateway = await running("Gate|A", ONE, Gate=gate.processor, A=notes("A", diary))
    answer = gateway.process(Envelope())
    await gate.entered.get()
    answer.cancel()
    await gate.cancelled.wait()
    gate.open.set()
    assert (await gateway.process(Envelope())).positive
    assert diary == ["initialize A", "save A"]


async def test_answer_cancelled_and_time_over(running: Start) -> None:
    """What nobody waits for, and no worker has looked at, has its time limit all the same."""
    stubborn = Stubborn()
    gateway = await running("Stubborn", {**ONE, "gw_save_timeout": "10ms"}, Stubborn=bare(stubborn))
    first, second, third = (gateway.process(Envelope()) for _ in range(3))
    second.cancel()
    assert [await first, await third] == [SAVE_TIMEOUT, SAVE_TIMEOUT]  # the second one's time was over in between
    stubborn.end.set()
    await gateway.shutdown()
    assert second.cancelled()


async def test_answer_cancelled_in_the_moment_of_the_reply(running: Start) -> None:
    """What could go on is made void all the same, and the worker goes on to the next."""
    gate = Gate()
    gateway = await running("Gate", ONE, Gate=gate.processor)
    answer = gateway.process(Envelope())
    await gate.entered.get()
    gate.open.set()
    answer.cancel()
    assert (await gateway.process(Envelope())).positive
    assert gate.cancelled.is_set()


async def test_answer_cancelled_and_time_over_while_it_is_undone(running: Start) -> None:
    """What is undone when its time is over, since its answer was cancelled, is undone in peace; its worker lives on."""
    gate = Gate()

    async def process(envelope: Envelope, task: Task) -> Reply:
        if envelope.helo == "cancelled":
            gate.entered.put_nowait(envelope)
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await gate.open.wait()
                gate.cancelled.set()
                raise
        return OK

    keys = {**ONE, "gw_save_timeout": "10ms", "gw_val_rcpt_timeout": "1h", "validate_process": "Slow"}
    gateway = await running("Slow", keys, Slow=bare(process))
    answer = gateway.process(Envelope(helo="cancelled"))
    await gate.entered.get()
    answer.cancel()
    following = gateway.validate_rcpt(Envelope())
    assert await gateway.process(Envelope()) is SAVE_TIMEOUT  # and so the time of the one before it is over
    gate.open.set()
    assert await following is OK
    assert gate.cancelled.is_set()


@pytest.mark.parametrize("waits", [False, True])
async def test_answer_cancelled_by_its_own_processor(running: Start, waits: bool) -> None:
    """A processor that has its own message given up is cancelled where it waits next, and its worker lives on."""
    answers: list[asyncio.Future[Reply]] = []
    diary: list[str] = []

    async def process(envelope: Envelope, task: Task) -> Reply:
        if envelope.helo == "cancelled":
            answers[0].cancel()
            if waits:
                await asyncio.sleep(0)
            diary.append("went on")
        return OK

    gateway = await running("Own", ONE, Own=bare(process))
    answers.append(gateway.process(Envelope(helo="cancelled")))
    await asyncio.wait(answers)
    assert await gateway.process(Envelope()) is OK
    assert diary == ([] if waits else ["went on"])


async def test_an_answer_that_is_there_cannot_be_cancelled(running: Start) -> None:
    """Neither the one of work that is over, nor the one of work that goes on after its time."""
    stubborn = Stubborn()
    gateway = await running("Stubborn", {**ONE, "gw_save_timeout": "10ms"}, Stubborn=bare(stubborn))
    late = gateway.process(Envelope())
    assert await late is SAVE_TIMEOUT
    assert not late.cancel()
    stubborn.end.set()
    kept = (await running("Passing", ONE, Passing=Passing)).process(Envelope())
    assert (await kept).positive
    assert not kept.cancel()


async def test_an_answer_that_somebody_else_has_given_stays(running: Start) -> None:
    """It is a future as any other; its worker goes on to the next."""
    gate = Gate()
    gateway = await running("Gate", ONE, Gate=gate.processor)
    answer = gateway.process(Envelope())
    await gate.entered.get()
    answer.set_result(QUOTA_EXCEEDED)
    gate.open.set()
    assert (await gateway.process(Envelope())).positive
    assert await answer is QUOTA_EXCEEDED


async def test_an_envelope_waits_for_no_worker_that_is_at_work(running: Start) -> None:
    """One is called for each envelope, also when one was called before, and has not come."""
    gate = Gate()
    gateway = await running("Gate", {"save_workers_size": 2}, Gate=gate.processor)
    await asyncio.sleep(0)  # both come to their rest
    answers = [gateway.process(Envelope()) for _ in range(2)]
    await gate.entered.get()
    await gate.entered.get()
    gate.open.set()
    assert all(reply.positive for reply in await asyncio.gather(*answers))


# The end


async def test_shutdown_waits(running: Start) -> None:
    """What was submitted before the shutdown comes to its answer, also what waits for a worker; nothing new does."""
    gate = Gate()
    diary: list[str] = []
    gateway = await running("Gate|A", ONE, Gate=gate.processor, A=notes("A", diary))
    answers = [gateway.process(Envelope()) for _ in range(3)]
    await gate.entered.get()
    ending = asyncio.create_task(gateway.shutdown())
    await asyncio.sleep(0)
    assert await gateway.process(Envelope()) is NOT_RUNNING
    assert not ending.done()
    gate.open.set()
    assert all(reply.positive for reply in await asyncio.gather(*answers))
    await ending
    assert diary == ["initialize A", "save A", "save A", "save A", "shutdown A"]


async def test_shutdown_ends_by_the_time_limit(running: Start) -> None:
    """A processor that hangs does not hold the shutdown longer than the time limit."""
    gate = Gate()
    gateway = await running("Gate", {**ONE, "gw_save_timeout": "10ms"}, Gate=gate.processor)
    answer = gateway.process(Envelope())
    await gateway.shutdown()
    assert await answer is SAVE_TIMEOUT


async def test_shutdown_waits_for_work_that_was_made_void(running: Start) -> None:
    """A processor that is still at work when its client has been answered is not shut down under its hands."""
    stubborn = Stubborn()
    diary: list[str] = []
    keys = {**ONE, "gw_save_timeout": "10ms"}
    gateway = await running("A|Stubborn", keys, A=notes("A", diary), Stubborn=bare(stubborn))
    assert await gateway.process(Envelope()) is SAVE_TIMEOUT
    ending = asyncio.create_task(gateway.shutdown())
    await stubborn.cancelled.wait()
    await asyncio.sleep(0)
    assert diary == ["initialize A", "save A"]
    stubborn.end.set()
    await ending
    assert diary == ["initialize A", "save A", "shutdown A"]


async def test_shutdown_when_all_is_void(running: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has told everybody that it is over does not wait for the time limit of work that nobody wants any more."""
    monkeypatch.setattr("guerrilla.backends.gateway.GRACE", 0.01)
    stubborn = Stubborn()
    gateway = await running("Stubborn", {**ONE, "gw_save_timeout": "1h"}, Stubborn=bare(stubborn))
    answer = gateway.process(Envelope())
    await asyncio.sleep(0)
    answer.cancel()
    async with asyncio.timeout(20):
        await stubborn.cancelled.wait()
        await gateway.shutdown(0.0)
    stubborn.end.set()


async def test_shutdown_ends_the_workers(running: Start) -> None:
    """After the shutdown no task of the gateway is left."""
    before = asyncio.all_tasks()
    gateway = await running("Passing", {"save_workers_size": 3}, Passing=Passing)
    await gateway.process(Envelope())
    workers = asyncio.all_tasks() - before
    assert {task.get_name() for task in workers} == {"worker 1", "worker 2", "worker 3"}
    await gateway.shutdown()
    assert asyncio.all_tasks() == before


@pytest.mark.parametrize("stubborn", [False, True])
def test_end_of_the_event_loop(built: Build, stubborn: bool) -> None:
    """When the event loop ends under a gateway at work, its workers end, though a processor will not."""
    gate = Gate()
    workers: Sequence[asyncio.Task[Any]] = ()

    async def process(envelope: Envelope, task: Task) -> Reply:
        gate.entered.put_nowait(envelope)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if not stubborn:
                raise
        await asyncio.sleep(0)
        return OK

    async def main() -> None:
        nonlocal workers
        gateway = built("Bad", ONE, Bad=bare(process))
        await gateway.initialize()
        await gateway.start()
        workers = [task for task in asyncio.all_tasks() if task.get_name() == "worker 1"]
        gateway.process(Envelope())
        await gate.entered.get()

    asyncio.run(main())
    assert [worker.cancelled() for worker in workers] == [not stubborn]


async def test_a_processor_that_never_ends(running: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that swallows every cancellation does not hold the shutdown for ever."""
    monkeypatch.setattr("guerrilla.backends.gateway.GRACE", 0.01)
    end = asyncio.Event()

    async def deaf(envelope: Envelope) -> None:
        while not end.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await end.wait()

    gateway = await running("Deaf", {**ONE, "gw_save_timeout": "10ms"}, Deaf=processor(deaf))
    assert await gateway.process(Envelope()) is SAVE_TIMEOUT
    await gateway.shutdown()
    assert gateway.state is State.SHUTTERED
    end.set()
