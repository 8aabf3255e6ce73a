"""Calls the hook of a processor that is meant by a task. It is apart from ``processor``, so that it can be compiled."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias

from guerrilla.backends.base import CallNext, Process, Task
from guerrilla.envelope import Envelope
from guerrilla.smtp.replies import Reply

Hook: TypeAlias = Callable[[Envelope, CallNext], Awaitable[Reply]]


def hooked(save_mail: Hook | None, validate_rcpt: Hook | None, following: Process) -> Process:
    """Return a process that calls the hook for the task; where there is none, the envelope passes on."""

    def process(envelope: Envelope, task: Task) -> Awaitable[Reply]:
        hook = save_mail if task is Task.SAVE_MAIL else validate_rcpt
        if hook is None:
            return following(envelope, task)

        def call_next() -> Awaitable[Reply]:
            return following(envelope, task)

        return hook(envelope, call_next)

    return process
