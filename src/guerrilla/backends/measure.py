"""Measures a processor: how often it was called, how long it took, and how often it failed."""

from __future__ import annotations

import time
from collections.abc import Awaitable
from typing import Any

from guerrilla.backends.base import Decorator, Process, Task
from guerrilla.backends.hooks import Annotator, Keeper
from guerrilla.counters import ProcessorCounters
from guerrilla.envelope import Envelope
from guerrilla.smtp.replies import Reply


def measured(decorator: Decorator, counters: ProcessorCounters) -> Decorator:
    """Return the decorator with a watch around it.

    The time of a processor is that from its call to its answer, without the time of those that follow it in the line.
    """

    def decorate(following: Process) -> Process:
        process = decorator(following)
        # A decorator may also return what follows, or one of two that it has stacked: those are not it.
        if isinstance(process, Annotator) and process.following is following:
            process.counters = counters  # it measures itself
            return process
        if isinstance(process, Keeper) and process is not following:
            # A new one: a decorator may remember what it has made, and return it again.
            keeper = Keeper(_watched(process.process, counters), process.begin, process.reply)
            keeper.counters = counters
            return keeper
        return _watched(process, counters)

    return decorate


def _watched(process: Process, counters: ProcessorCounters) -> Process:
    clock = time.perf_counter

    async def measure(envelope: Envelope, task: Task) -> Any:
        began = clock()
        before = envelope.spent
        fine = False
        try:
            answer: Awaitable[Any] = process(envelope, task)  # it may be anything: the gateway looks
            reply = await answer
            fine = isinstance(reply, Reply)
            return reply
        except StopIteration as error:  # compiled, a coroutine that raises it returns its value
            failure = RuntimeError("a process raised StopIteration")
            failure.__cause__ = error  # what mypyc makes of "raise from" leaves it out
            raise failure from error
        finally:
            spent = clock() - began
            counters.latencies.add(max(0.0, spent - (envelope.spent - before)))
            envelope.spent = before + spent
            if not fine:
                counters.errors += 1

    return measure
