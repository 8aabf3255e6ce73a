"""A task calls its hook, which may pass on as often as it likes; without a hook, the envelope passes on."""

from __future__ import annotations

import gc
import weakref

import pytest

from guerrilla.backends.base import CallNext, Task
from guerrilla.backends.hooks import Annotator, end_of_line, hooked
from guerrilla.envelope import Envelope
from guerrilla.smtp.replies import OK, RECIPIENT_OK, Reply


@pytest.mark.parametrize("task", Task)
@pytest.mark.parametrize("hooks", [set(), {Task.SAVE_MAIL}, {Task.VALIDATE_RCPT}, set(Task)])
async def test_each_task_has_its_hook_and_is_passed_on_as_it_is(task: Task, hooks: set[Task]) -> None:
    envelope = Envelope()
    seen: list[object] = []

    async def save_mail(given: Envelope, call_next: CallNext) -> Reply:
        seen.append(("hook", Task.SAVE_MAIL, given))
        return await call_next()

    async def validate_rcpt(given: Envelope, call_next: CallNext) -> Reply:
        seen.append(("hook", Task.VALIDATE_RCPT, given))
        await call_next()
        return await call_next()

    async def following(given: Envelope, task: Task) -> Reply:
        seen.append(("following", task, given))
        return RECIPIENT_OK

    process = hooked(
        save_mail if Task.SAVE_MAIL in hooks else None,
        validate_rcpt if Task.VALIDATE_RCPT in hooks else None,
        following,
    )
    assert await process(envelope, task) is RECIPIENT_OK
    passed_on = 2 if task in hooks and task is Task.VALIDATE_RCPT else 1
    expected = [("hook", task, envelope)] * (task in hooks) + [("following", task, envelope)] * passed_on
    assert seen == expected


async def test_a_hook_need_not_pass_on() -> None:
    async def answer(envelope: Envelope, call_next: CallNext) -> Reply:
        return OK

    async def never(envelope: Envelope, task: Task) -> Reply:
        raise AssertionError

    assert await hooked(None, answer, never)(Envelope(), Task.VALIDATE_RCPT) is OK


class Signs:
    """Writes its name behind those that are there."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, envelope: Envelope) -> None:
        envelope.subject += self._name


async def test_annotators_in_a_row_write_in_their_order_and_go_with_their_line() -> None:
    """A line that a reload has replaced is not left to the garbage collector, which is seldom called."""
    last = Signs("b")
    process = Annotator(Signs("a"), Annotator(last, end_of_line))
    envelope = Envelope()
    assert (await process(envelope, Task.SAVE_MAIL)).positive
    assert envelope.subject == "ab"
    gone = weakref.ref(last)
    gc.disable()
    try:
        del process, last
        assert gone() is None
    finally:
        gc.enable()
