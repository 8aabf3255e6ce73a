"""Calls what a processor does for a task. It is apart from ``processor``, so that it can be compiled."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeAlias

from guerrilla.backends.base import CallNext, Process, Task
from guerrilla.envelope import Envelope
from guerrilla.smtp.replies import RECIPIENT_OK, Reply, queued

_SAVE_MAIL: Final = Task.SAVE_MAIL  # a member is slow to be found in its enumeration

Hook: TypeAlias = Callable[[Envelope, CallNext], Awaitable[Reply]]
Annotate: TypeAlias = Callable[[Envelope], object]


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
    """A process that writes on the envelope of each message, and passes it on at once: no coroutine is made for it."""

    __slots__ = ("annotate", "following")

    def __init__(self, annotate: Annotate, following: Process) -> None:
        self.annotate = annotate
        self.following = following

    def __call__(self, envelope: Envelope, task: Task) -> Awaitable[Reply]:
        """Be the process."""
        if task is _SAVE_MAIL:
            self.annotate(envelope)
        return self.following(envelope, task)


def all_annotations(process: Process) -> Sequence[Annotate] | None:
    """Return all that a line does with a message, if it only writes on the envelope; None if it may have to wait."""
    found: list[Annotate] = []
    while isinstance(process, Annotator):
        found.append(process.annotate)
        process = process.following
    return found if process is end_of_line else None


async def end_of_line(envelope: Envelope, task: Task) -> Reply:
    """Answer for an envelope that has passed every processor: the seed's DefaultProcessor."""
    return queued(envelope.queued_id) if task is _SAVE_MAIL else RECIPIENT_OK
