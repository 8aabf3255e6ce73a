"""Calls what a processor does for a task. It is apart from ``processor``, so that it can be compiled."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

from guerrilla.backends.base import CallNext, Process, Task
from guerrilla.counters import ProcessorCounters
from guerrilla.envelope import Envelope
from guerrilla.smtp.replies import RECIPIENT_OK, Reply, queued

_SAVE_MAIL: Final = Task.SAVE_MAIL  # a member is slow to be found in its enumeration

Hook: TypeAlias = Callable[[Envelope, CallNext], Awaitable[Reply]]
Annotate: TypeAlias = Callable[[Envelope], object]
Tell: TypeAlias = Callable[[BaseException | None], None]
Begin: TypeAlias = Callable[[Envelope, Tell], Callable[[], object]]


def hooked(save_mail: Hook | None, validate_rcpt: Hook | None, following: Process) -> Process:
    """Return a process that calls the hook for the task; where there is none, the envelope passes on."""

    def process(envelope: Envelope, task: Task) -> Awaitable[Reply]:
        hook = save_mail if task is _SAVE_MAIL else validate_rcpt
        if hook is None:
            return following(envelope, task)

        def call_next() -> Awaitable[Reply]:
            return following(envelope, task)

        return hook(envelope, call_next)

    return process


class Annotator:
    """A process that writes on the envelope of each message, and passes it on at once: no coroutine is made for it.

    Those that follow one another are called one after the other. What follows is settled when it is made.
    """

    __slots__ = ("annotate", "clock", "counters", "end", "following", "next")

    def __init__(self, annotate: Annotate, following: Process) -> None:
        self.annotate = annotate
        self.following = following
        self.counters: ProcessorCounters | None = None
        """None: it is measured as a part of something else."""
        self.clock = time.perf_counter
        self.next = following if isinstance(following, Annotator) else None
        """The one of its kind that follows at once."""
        self.end: Process = following if self.next is None else self.next.end
        """What follows the last of these."""

    def __call__(self, envelope: Envelope, task: Task) -> Awaitable[Reply]:
        """Be the process."""
        if task is _SAVE_MAIL:
            self.write_on(envelope)
        return self.end(envelope, task)

    def write_on(self, envelope: Envelope) -> None:
        """Have all of them write, and measure it: one looks at the clock when the one before it has ended."""
        clock = self.clock
        began = clock()
        spent = 0.0
        counters = self.counters
        each: Annotator | None = self
        try:
            while each is not None:
                counters = each.counters
                each.annotate(envelope)
                ended = clock()
                if counters is not None:
                    counters.latencies.add(ended - began)
                    spent += ended - began
                began = ended
                each = each.next
        except BaseException:
            ended = clock()
            if counters is not None:
                counters.errors += 1
                counters.latencies.add(ended - began)
                spent += ended - began
            raise
        finally:
            envelope.spent += spent


class Keeper:
    """The process of a store that is the last of its line. The gateway has it begin and is told: no worker waits.

    ``begin`` takes a message and calls ``tell`` once, later: with None when it is kept, or with why it is not. What it
    returns withdraws the message: then it will not be there, and nothing is told. ``reply`` is the answer to what was
    told, and may raise it. Called as a process, a Keeper does the same.
    """

    __slots__ = ("begin", "clock", "counters", "process", "reply")

    def __init__(
        self, process: Process, begin: Begin, reply: Callable[[Envelope, BaseException | None], Reply]
    ) -> None:
        self.process = process
        self.begin = begin
        self.reply = reply
        self.counters: ProcessorCounters | None = None
        """None: it is measured as a part of something else."""
        self.clock = time.perf_counter

    def __call__(self, envelope: Envelope, task: Task) -> Awaitable[Reply]:
        """Be the process."""
        return self.process(envelope, task)

    def measure(self, began: float, fine: bool) -> None:
        """Count a message that was begun at that time, by ``clock``, and is over; ``fine``: with a reply."""
        counters = self.counters
        if counters is not None:
            counters.latencies.add(self.clock() - began)
            if not fine:
                counters.errors += 1


async def end_of_line(envelope: Envelope, task: Task) -> Reply:
    """Answer for an envelope that has passed every processor: the seed's DefaultProcessor."""
    found: Any = envelope  # its queue id may be no text any more
    return queued(found.queued_id) if task is _SAVE_MAIL else RECIPIENT_OK
