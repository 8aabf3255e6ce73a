"""A copy's key is the time of its message and a digest, the same for the same envelope."""

from __future__ import annotations

from typing import Any

from guerrilla.copy_keys import copy_keys
from guerrilla.envelope import Address, Envelope


def keys_of(**changes: Any) -> list[str]:
    envelope = Envelope(
        queued_id="0123456789abcdef",
        mail_from=Address("sender", "example.org"),
        rcpt_to=[Address("joe", "example.com"), Address("jörg", "example.com")],
        subject="Hello",
    )
    for name, value in changes.items():
        setattr(envelope, name, value)
    return copy_keys(envelope)


def test_a_key_is_12_digits_of_the_time_and_20_of_a_digest() -> None:
    assert keys_of() == ["0123456789ab40467f41b5df9c16c0c2", "0123456789ab0f6ded9128ffa1e88f37"]


def test_one_message_after_another_leaves_no_trace_in_the_keys() -> None:
    before = keys_of()
    assert keys_of(subject="another") != before
    assert keys_of() == before


def test_recipients_may_be_a_tuple() -> None:
    """Compiled code would refuse it for a list."""
    recipients = (Address("joe", "example.com"), Address("jörg", "example.com"))
    assert keys_of(rcpt_to=recipients) == keys_of()
