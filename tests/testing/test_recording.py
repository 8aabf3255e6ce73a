"""The recording backend: it keeps what it has taken, as it was, and answers otherwise when it is told to."""

from __future__ import annotations

import mmap
from dataclasses import replace

import pytest

from guerrilla.backends.base import Backend
from guerrilla.envelope import Address, Envelope
from guerrilla.smtp.replies import NO_SUCH_USER, RECIPIENT_OK, STORAGE_NOT_AVAILABLE, Reply, queued
from guerrilla.testing.recording import RecordingBackend

RECIPIENT = Address("b", "example.com")


def test_it_is_a_backend() -> None:
    backend: Backend = RecordingBackend()
    assert not backend.validates


async def test_it_takes_every_message_and_keeps_it_in_order() -> None:
    backend = RecordingBackend()
    for number in (1, 2):
        envelope = Envelope(rcpt_to=[RECIPIENT], data=b"%d" % number)
        assert await backend.process(envelope) == queued(f"{number:032x}")
        assert envelope.queued_id == f"{number:032x}"
    assert [(each.data, each.queued_id[-1]) for each in backend.envelopes] == [(b"1", "1"), (b"2", "2")]


async def test_what_is_kept_does_not_change_with_the_envelope_and_is_always_bytes() -> None:
    backend = RecordingBackend()
    with mmap.mmap(-1, 3) as mapped:
        mapped[:] = b"You"
        envelope = Envelope(rcpt_to=[RECIPIENT], data=mapped)
        await backend.process(envelope)
    envelope.rcpt_to.clear()
    (kept,) = backend.envelopes
    assert (kept.data, kept.rcpt_to) == (b"You", [RECIPIENT])


@pytest.mark.parametrize("answer", [STORAGE_NOT_AVAILABLE, Reply(554, "5.7.1", "No, thank you")])
async def test_what_is_refused_is_not_kept(answer: Reply) -> None:
    backend = RecordingBackend(on_message=lambda envelope: answer)
    assert await backend.process(Envelope()) is answer
    assert backend.envelopes == []


async def test_a_message_that_it_has_nothing_to_say_about_is_taken() -> None:
    backend = RecordingBackend(on_message=lambda envelope: NO_SUCH_USER if envelope.subject else None)
    assert (await backend.process(Envelope(subject="spam"))) is NO_SUCH_USER
    assert (await backend.process(Envelope())).positive
    assert len(backend.envelopes) == 1


async def test_a_positive_answer_of_ones_own_is_kept_too() -> None:
    backend = RecordingBackend(on_message=lambda envelope: queued("mine"))
    assert await backend.process(Envelope()) == queued("mine")
    assert len(backend.envelopes) == 1


async def test_recipients_are_asked_about_when_there_is_something_to_ask() -> None:
    backend = RecordingBackend(on_rcpt=lambda envelope: NO_SUCH_USER if envelope.rcpt_to[-1] != RECIPIENT else None)
    assert backend.validates
    envelope = Envelope(rcpt_to=[RECIPIENT])
    assert await backend.validate_rcpt(envelope) is RECIPIENT_OK
    envelope.rcpt_to.append(replace(RECIPIENT, user="nobody"))
    assert await backend.validate_rcpt(envelope) is NO_SUCH_USER


async def test_all_recipients_are_fine_when_there_is_nothing_to_ask() -> None:
    assert await RecordingBackend().validate_rcpt(Envelope(rcpt_to=[RECIPIENT])) is RECIPIENT_OK
