"""A session goes on under other settings between two transactions, and never in the middle of one."""

from __future__ import annotations

import pytest

from guerrilla.envelope import Address
from guerrilla.smtp.data import BodyWriter, MemoryBody
from guerrilla.smtp.session import Session
from guerrilla.smtp.settings import Settings


class House:
    """Takes mail for one domain."""

    def __init__(self, domain: str) -> None:
        self.domain = domain

    def allows(self, recipient: Address) -> bool:
        return recipient.host == self.domain

    def has_room(self) -> bool:
        return True

    def open_body(self) -> BodyWriter:
        return MemoryBody()


def say(session: Session, *lines: bytes) -> bytes:
    """Return the last reply."""
    for line in lines:
        session.receive_data(line + b"\r\n")
        session.next_event()
    return session.data_to_send().splitlines()[-1]


def test_the_next_transaction_has_the_new_settings_and_the_new_house() -> None:
    session = Session(Settings("mx.test"), House("old.test"))
    say(session, b"EHLO a", b"MAIL FROM:<>")
    with pytest.raises(RuntimeError, match="ends on the settings it began with"):
        session.move(Settings("mx.test", max_size=10), House("new.test"))
    assert say(session, b"RCPT TO:<b@old.test>").startswith(b"250")
    say(session, b"RSET")
    session.move(Settings("mx.test", max_size=10), House("new.test"))
    assert say(session, b"MAIL FROM:<> SIZE=11").startswith(b"552")
    assert say(session, b"MAIL FROM:<>", b"RCPT TO:<b@new.test>").startswith(b"250")


def test_the_replies_that_wait_to_be_sent_can_be_counted() -> None:
    session = Session(Settings("mx.test"), House("old.test"))
    assert [reply.code for reply in session.unsent] == [220]
    assert session.data_to_send().startswith(b"220")
    assert not session.unsent
