"""Hasher names each recipient's copy."""

from __future__ import annotations

import re

import pytest

from guerrilla.backends.gateway import _Ids
from guerrilla.backends.processor import ProcessorConfig
from guerrilla.envelope import Address, Envelope
from guerrilla.processors.hasher import Hasher
from guerrilla.smtp.replies import OK, Reply


async def hashes_of(*users: str, queued_id: str = "q1", sender: str = "s", subject: str = "x") -> list[str]:
    envelope = Envelope(
        queued_id=queued_id,
        mail_from=Address(sender, "example.org"),
        rcpt_to=[Address(user, "example.com") for user in users],
        subject=subject,
    )

    async def following() -> Reply:
        return OK

    assert await Hasher(ProcessorConfig()).save_mail(envelope, following) is OK
    return envelope.hashes


async def test_one_hash_per_recipient() -> None:
    """Each recipient has its own key of 32 hexadecimal digits."""
    hashes = await hashes_of("a", "b", "c")
    assert len(set(hashes)) == 3
    assert all(re.fullmatch("[0-9a-f]{32}", key) for key in hashes)


async def test_keys_sort_by_age() -> None:
    """A key begins with the time that the queue id begins with, so that an index of keys grows at its end."""
    queued_id = _Ids().next()
    assert [key[:12] for key in await hashes_of("a", "b", queued_id=queued_id)] == [queued_id[:12]] * 2


@pytest.mark.parametrize("queued_id", ["", "q1", "ABCDEF012345x", "0123 4567 89ab", "<>\r\n", "\ud800"])
async def test_a_queue_id_of_another_kind(queued_id: str) -> None:
    """A queue id that does not begin with hexadecimal digits leaves nothing of itself in the key."""
    hashes = await hashes_of("a", "b", queued_id=queued_id)
    assert len(set(hashes)) == 2
    assert all(re.fullmatch("[0-9a-f]{32}", key) for key in hashes)


async def test_recipients_are_independent() -> None:
    """The key of a recipient is the same, whoever else gets the message and in whatever order."""
    assert (await hashes_of("a", "b"))[1] == (await hashes_of("b"))[0] == (await hashes_of("c", "b", "a"))[1]


async def test_a_repeated_attempt_finds_itself() -> None:
    """The same envelope gives the same keys."""
    assert await hashes_of("a", "b") == await hashes_of("a", "b")


@pytest.mark.parametrize("change", [{"queued_id": "q2"}, {"sender": "t"}, {"subject": "y"}])
async def test_another_message_has_another_hash(change: dict[str, str]) -> None:
    """Transaction, sender and subject are each part of the key."""
    assert await hashes_of("a") != await hashes_of("a", **change)


async def test_fields_do_not_run_into_one_another() -> None:
    """What moves from one field to the next changes the key."""
    assert await hashes_of("ab", subject="x") != await hashes_of("b", subject="xa")
    assert await hashes_of("a", queued_id="q", sender="1s") != await hashes_of("a", queued_id="q1", sender="s")


async def test_any_text_has_a_hash() -> None:
    """A subject that cannot be written as UTF-8 has a key too, and nobody to send to has none."""
    assert len(await hashes_of("a", subject="\ud800")) == 1
    assert await hashes_of() == []
