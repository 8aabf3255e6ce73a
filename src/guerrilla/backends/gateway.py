"""The gateway: the backend. It owns the conveyor and the workers, and answers every submission in time.

    server → process(envelope): what only writes on the envelope is done at once, and then
             → nothing is left of the line                    → Reply, at once
             → the store that is left begins, and tells us    → Reply
             → conveyor → worker: what is left of the line    → Reply

Its promises: a submission is always answered, within its time limit, the wait for a worker included; what a processor
raises never reaches the server; and work whose client was told to try again is made void.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, Final

from structlog.typing import FilteringBoundLogger

from guerrilla.backends.answer import Answer
from guerrilla.backends.base import Process, State, Task
from guerrilla.backends.deadlines import Deadlines
from guerrilla.backends.hooks import Annotator, Keeper, end_of_line
from guerrilla.backends.registry import Line
from guerrilla.envelope import Envelope
from guerrilla.smtp.replies import (
    LOCAL_ERROR,
    NOT_RUNNING,
    SAVE_TIMEOUT,
    STORAGE_TIMEOUT,
    STORAGE_TOO_BUSY,
    Reply,
    queued,
)

GRACE = 5.0
"""Seconds beyond its time limit that a cancelled processor may take to end."""
CLOSING = 30.0
"""Seconds that a processor's shutdown may take before it is given up, so that the others have theirs."""
CONVEYOR_CAPACITY: Final = 10_000
"""Submissions that may wait for a worker; the next one is told that we are too busy."""

# A member is slow to be found in its enumeration.
_RUNNING: Final = State.RUNNING
_SAVE_MAIL: Final = Task.SAVE_MAIL

_OCTETS: Final = tuple(f"{octet:02x}" for octet in range(256))
"""What the last two digits of a queue id can be."""


class InitializeError(Exception):
    """A processor could not be initialized; the text says which and why."""


class _Job:
    """One submission on its way."""

    __slots__ = ("answer", "began", "deadlines", "envelope", "gateway", "keeper", "process", "task", "undo", "void")

    def __init__(
        self,
        gateway: Gateway,
        envelope: Envelope,
        task: Task,
        process: Process,
        answer: Answer,
        deadlines: Deadlines[_Job],
    ) -> None:
        self.gateway = gateway
        self.envelope = envelope
        self.task = task
        self.process = process
        self.answer = answer
        self.deadlines = deadlines
        self.undo: Callable[[], object] | None = None
        """What undoes the work, while a worker or a store has it."""
        self.keeper: Keeper | None = None
        """The store that has it."""
        self.began = 0.0
        """When a store began, by the clock of its measuring."""
        self.void = False

    def void_work(self) -> None:
        """Have the work undone: its time is over, or whoever asked has cancelled the answer.

        Only once: to undo it may take longer than its time, and the worker takes back one cancellation.
        """
        if self.void:
            return
        self.void = True
        if self.undo is not None:
            self.undo()
            if self.keeper is not None:
                self.gateway.end_keeping(self, self.keeper, False)

    def told(self, error: BaseException | None) -> None:
        """Take note of what the store tells."""
        assert self.keeper is not None
        self.gateway.told(self, self.keeper, error)


class _Ids:
    """Makes names of transactions: 32 hexadecimal digits, which no other daemon makes, today or after a restart.

    12 digits of time in front: what is written together is found together, and ids sort by age. Then 12 by chance,
    for this instance, and 8 that count.
    """

    def __init__(self) -> None:
        self._instance = secrets.token_hex(6)
        self._count = 0
        self._millisecond = 0
        self._begin = ""
        """The latest millisecond, and what begins each id that is made in it: all but the last two digits."""

    def next(self) -> str:
        self._count = count = (self._count + 1) & 0xFFFF_FFFF
        last = count & 0xFF
        millisecond = time.time_ns() // 1_000_000
        if millisecond != self._millisecond or not last:
            self._millisecond = millisecond
            # Not {…:012x}: mypyc has that parsed each time.
            self._begin = hex(millisecond | 1 << 48)[3:] + self._instance + hex(count >> 8 | 1 << 24)[3:]
        return self._begin + _OCTETS[last]


class Gateway:
    """Runs envelopes through a production line, a number of them at a time.

    ``initialize``, ``start``, then ``process`` and ``validate_rcpt``, and at the end ``shutdown``, which may be called
    in any state and more than once.
    """

    def __init__(self, line: Line, log: FilteringBoundLogger) -> None:
        self._line = line
        self._annotator = line.save if isinstance(line.save, Annotator) else None
        """What only writes on the envelope, at the head of the line."""
        self._rest = line.save if self._annotator is None else self._annotator.end
        self._keeper = self._rest if isinstance(self._rest, Keeper) else None
        self._log = log
        self._state = State.NEW
        self._conveyor: deque[_Job] = deque()
        self._workers: list[asyncio.Task[None]] = []
        self._resting: deque[asyncio.Future[None]] = deque()
        """Workers that wait for something to be put on the conveyor; the one that came last is called first."""
        self._ids = _Ids()
        # Since the start, the loop is remembered: to ask for it asks the system for the number of the process.
        self._loop: asyncio.AbstractEventLoop
        self._save_deadlines: Deadlines[_Job]
        self._validate_deadlines: Deadlines[_Job]
        self._idle = asyncio.Event()
        """Set once nothing is in flight any more, and nothing can come."""
        self._in_flight = 0
        self._opened = 0

    @property
    def state(self) -> State:
        """Where in its life the gateway is."""
        return self._state

    @property
    def queue_depth(self) -> int:
        """Submissions that wait for a worker."""
        return len(self._conveyor)

    @property
    def workers(self) -> int:
        """How many there are."""
        return len(self._workers)

    @property
    def workers_busy(self) -> int:
        """How many of them have an envelope."""
        return min(self._in_flight - len(self._conveyor), len(self._workers))

    @property
    def validates(self) -> bool:
        """Whether there is a ``validate_process``."""
        return bool(self._line.config.validate_process)

    async def initialize(self) -> None:
        """Initialize the processors, in order. When one fails, it and those before it are shut down again.

        Raises InitializeError, and RuntimeError if it was called before.
        """
        if self._state is not State.NEW:
            raise RuntimeError(f"the gateway cannot be initialized: its state is {self._state.value}")
        for name, processor in self._line.processors:
            processor.log = self._log.bind(processor=name)
            self._opened += 1
            try:
                await processor.initialize()
            except BaseException as error:
                self._state = State.ERROR
                await self._close_processors()
                if isinstance(error, Exception | SystemExit):
                    failure = InitializeError(f"{name}: {str(error) or type(error).__name__}")
                    failure.__cause__ = error  # what mypyc makes of "raise from" leaves it out
                    raise failure from error
                raise
        self._state = State.INITIALIZED

    async def start(self) -> None:
        """Start the workers. Raises RuntimeError if the gateway is not initialized."""
        if self._state is not State.INITIALIZED:
            raise RuntimeError(f"the gateway cannot be started: its state is {self._state.value}")
        self._ids = _Ids()  # the process may be the child of the one that made us
        config = self._line.config
        self._loop = loop = asyncio.get_running_loop()
        self._save_deadlines = Deadlines(config.gw_save_timeout, self._expire, loop)
        self._validate_deadlines = Deadlines(config.gw_val_rcpt_timeout, self._expire, loop)
        self._workers = [
            loop.create_task(self._work(), name=f"worker {number}") for number in range(1, config.save_workers_size + 1)
        ]
        self._state = State.RUNNING

    async def shutdown(self, limit: float | None = None) -> None:
        """Take nothing more, let what is in flight come to its answer, and shut the processors down in reverse order.

        What is in flight has its time limit, or ``limit`` seconds: 0 where nobody waits for an answer, and all of it is
        void. A processor that swallows its cancellation is waited for ``GRACE`` longer, then cancelled again.
        """
        if self._state is not State.ERROR:
            self._state = State.SHUTTERED
        if not self._in_flight:
            self._idle.set()
        if limit is None:
            limit = max(self._line.config.gw_save_timeout, self._line.config.gw_val_rcpt_timeout)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit + GRACE):
                await self._idle.wait()
        workers, self._workers = self._workers, []
        if workers:
            self._save_deadlines.expire_all()
            self._validate_deadlines.expire_all()
        for worker in workers:
            worker.cancel()
        if workers:
            _, stuck = await asyncio.wait(workers, timeout=GRACE)
            if stuck:
                self._log.error("a processor does not end although it is cancelled", workers=len(stuck))
        await self._close_processors()

    def process(self, envelope: Envelope) -> asyncio.Future[Reply]:
        """Take a message into custody. The answer is positive only when every store of the line has kept it.

        Cancel the answer to have the work made void. It is there at once if nothing in the line ever waits.
        """
        envelope.queued_id = self._ids.next()
        envelope.received_at = datetime.now(UTC)
        if self._state is not _RUNNING:
            return _answered(NOT_RUNNING)
        at_once = self._rest is end_of_line
        if not at_once and len(self._conveyor) >= CONVEYOR_CAPACITY:
            return _answered(STORAGE_TOO_BUSY)
        if self._annotator is not None:
            try:
                self._annotator.write_on(envelope)
                if at_once:
                    answer: asyncio.Future[Reply] = self._loop.create_future()
                    found: Any = envelope  # its queue id may be no text any more
                    answer.set_result(queued(found.queued_id))
                    return answer
            except KeyboardInterrupt:
                raise  # it is the program that is to end
            except BaseException:  # also GeneratorExit: there is no coroutine here that could be closed
                _tell(self._log.exception, "processor failed", envelope, _SAVE_MAIL)
                return _answered(LOCAL_ERROR)
        return self._submit(envelope, _SAVE_MAIL, self._rest, self._save_deadlines)

    def validate_rcpt(self, envelope: Envelope) -> asyncio.Future[Reply]:
        """Answer for the last recipient of the envelope."""
        if self._state is not State.RUNNING:
            return _answered(NOT_RUNNING)
        if len(self._conveyor) >= CONVEYOR_CAPACITY:
            return _answered(STORAGE_TOO_BUSY)
        return self._submit(envelope, Task.VALIDATE_RCPT, self._line.validate, self._validate_deadlines)

    def _submit(
        self, envelope: Envelope, task: Task, process: Process, deadlines: Deadlines[_Job]
    ) -> asyncio.Future[Reply]:
        answer = Answer(loop=self._loop)
        job = _Job(self, envelope, task, process, answer, deadlines)
        answer.asker = None
        answer.work = job
        deadlines.add(job)
        self._in_flight += 1
        keeper = self._keeper if task is _SAVE_MAIL else None
        if keeper is not None and not self._conveyor and self._in_flight <= len(self._workers):
            self._keep(job, keeper)
        else:
            self._conveyor.append(job)
            self._wake_worker()
        return answer

    def _keep(self, job: _Job, keeper: Keeper) -> None:
        """Have the store that is the rest of the line begin: no worker has to wait for it, though it counts as one."""
        job.keeper = keeper
        job.began = keeper.clock()
        try:
            job.undo = keeper.begin(job.envelope, job.told)
        except KeyboardInterrupt:
            self.end_keeping(job, keeper, False)
            raise  # it is the program that is to end
        except BaseException as error:
            self.told(job, keeper, error)

    def told(self, job: _Job, keeper: Keeper, error: BaseException | None) -> None:
        """Answer what the store tells: that it has kept the message, or why it has not.

        Raises RuntimeError if it has told before, or has withdrawn the message.
        """
        if job.answer.work is None:
            raise RuntimeError("a store tells once what has come of a message, and nothing of one that was withdrawn")
        reply = LOCAL_ERROR
        fine = False
        try:
            reply = keeper.reply(job.envelope, error)
            fine = True
        except KeyboardInterrupt:
            self.end_keeping(job, keeper, False)
            raise  # it is the program that is to end
        except BaseException:
            _tell(self._log.exception, "processor failed", job.envelope, job.task)
        if not job.answer.done():
            job.answer.set_result(reply)
        self.end_keeping(job, keeper, fine)

    def end_keeping(self, job: _Job, keeper: Keeper, fine: bool) -> None:
        """Let go of a submission that the store has kept, has refused, or no longer has; ``fine``: with a reply."""
        keeper.measure(job.began, fine)
        self._end(job)
        if self._conveyor:
            self._wake_worker()

    def _end(self, job: _Job) -> None:
        """Let go of a submission: it is answered, and nothing is done with it any more."""
        job.undo = None
        job.answer.work = None
        job.deadlines.remove(job)
        self._in_flight -= 1
        if not self._in_flight and self._state is not _RUNNING:
            self._idle.set()

    def _is_full(self) -> bool:
        """Return whether as many submissions are worked on as may be at a time."""
        return self._in_flight - len(self._conveyor) >= len(self._workers)

    def _wake_worker(self) -> None:
        while self._resting and not self._is_full():
            call = self._resting.pop()
            if not call.done():
                call.set_result(None)
                return

    async def _work(self) -> None:
        """Be a worker: take one envelope at a time, and live on whatever comes of it."""
        worker = asyncio.current_task()
        assert worker is not None
        while not worker.cancelling():
            while not self._conveyor or self._is_full():  # also one that was called: a busy one may have been quicker
                call: asyncio.Future[None] = self._loop.create_future()
                self._resting.append(call)
                await call
            job = self._conveyor.popleft()
            if not job.answer.done():
                job.undo = worker.cancel
                reply = await self._run(job, worker)
                job.undo = None
                if job.void:
                    worker.uncancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await asyncio.sleep(0)  # a processor that had it cancelled itself may not have waited since
                elif not job.answer.done():
                    job.answer.set_result(reply)
            self._end(job)
            del job  # a worker that rests must not hold on to a message, and to the file of a large one

    async def _run(self, job: _Job, worker: asyncio.Task[None]) -> Reply:
        try:
            processing: Awaitable[object] = job.process(job.envelope, job.task)
            reply = await processing
        except (KeyboardInterrupt, GeneratorExit):
            raise  # it is the program that is to end
        except BaseException as error:  # also SystemExit, and the panic of a library that is written in Rust
            if isinstance(error, asyncio.CancelledError) and worker.cancelling():
                if not job.void:
                    raise  # it is the worker itself that is to end
            else:
                _tell(self._log.exception, "processor failed", job.envelope, job.task)
            return LOCAL_ERROR
        if not isinstance(reply, Reply):
            _tell(self._log.error, "processor gave no reply", job.envelope, job.task, reply)
            return LOCAL_ERROR
        if job.void and job.task is Task.SAVE_MAIL and reply.positive:
            _tell(self._log.error, "kept after its time was over: the client sends it again", job.envelope, job.task)
        return reply

    def _expire(self, job: _Job) -> None:
        """Answer at once, and make the work void: RFC 5321 section 4.2.5 forbids to deliver what was answered 4yz."""
        if not job.answer.done():
            job.answer.set_result(SAVE_TIMEOUT if job.task is Task.SAVE_MAIL else STORAGE_TIMEOUT)
        job.void_work()
        _tell(self._log.warning, "time is over", job.envelope, job.task)

    async def _close_processors(self) -> None:
        """Shut down in reverse order all that were to be initialized; one that fails does not stop the others."""
        while self._opened:
            self._opened -= 1
            name, processor = self._line.processors[self._opened]
            try:
                async with asyncio.timeout(CLOSING):
                    await processor.shutdown()
            except Exception:
                self._log.exception("processor failed to shut down", processor=name)


def _tell(log: Callable[..., object], event: str, envelope: Any, task: Task, *found: object) -> None:
    """Write down what became of a submission, and what was found where a Reply was meant.

    Neither a log that fails, nor a queue id that is no text any more, may cost a worker.
    """
    with contextlib.suppress(Exception):
        fields = {"found": repr(found[0])[:80], "meant": "a Reply"} if found else {}
        log(event, task=task.value, queued_id=envelope.queued_id, **fields)


def _answered(reply: Reply) -> asyncio.Future[Reply]:
    answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
    answer.set_result(reply)
    return answer
