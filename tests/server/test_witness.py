"""What is told of a message."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from guerrilla.counters import Counters
from guerrilla.envelope import Address, Envelope
from guerrilla.event_bus import EventBus
from guerrilla.events import MailEvent
from guerrilla.log import Log
from guerrilla.server.witness import Witness, milliseconds
from guerrilla.smtp.replies import LOCAL_ERROR, MESSAGE_TOO_LARGE, OK, Reply


@pytest.mark.parametrize(
    ("reply", "outcome"), [(OK, "kept"), (LOCAL_ERROR, "deferred"), (MESSAGE_TOO_LARGE, "refused")]
)
def test_the_line_of_a_message_says_all_that_is_known_of_it_in_this_order(
    tmp_path: Path, reply: Reply, outcome: str
) -> None:
    path = tmp_path / "log"
    log = Log(str(path))
    envelope = Envelope(
        remote_ip="192.0.2.1",
        mail_from=Address("a b", "example.org"),
        rcpt_to=[Address(f"r{number}", "example.com") for number in range(12)],
        queued_id="0" * 32,
    )
    Witness(Counters(), EventBus()).message(log.logger, envelope, 2048, reply, 0.0012345)
    log.close()
    line = path.read_text()
    recipients = ",".join(f'"r{number}@example.com"' for number in range(10))
    assert line.partition('Z","event":')[2] == (
        f'"message","outcome":"{outcome}","queued_id":"{"0" * 32}","client":"192.0.2.1",'
        f'"sender":{json.dumps(str(envelope.mail_from))},"recipients":[{recipients},"and 2 more"],"size":2048,'
        f'"reply":{json.dumps(str(reply))},"ms":1.23}}\n'
    )


def test_ten_recipients_are_all_named(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = Log(str(path))
    envelope = Envelope(rcpt_to=[Address(f"r{number}", "example.com") for number in range(10)])
    Witness(Counters(), EventBus()).message(log.logger, envelope, 1, OK, 0.0)
    log.close()
    assert json.loads(path.read_text())["recipients"] == [f"r{number}@example.com" for number in range(10)]


def test_recipients_may_be_a_tuple(tmp_path: Path) -> None:
    """Compiled code would refuse it for a list, and the client would wait for ever for what is kept."""
    path = tmp_path / "log"
    log = Log(str(path))
    envelope: Any = Envelope()
    envelope.rcpt_to = (Address("a", "example.com"),)
    Witness(Counters(), EventBus()).message(log.logger, envelope, 1, OK, 0.0)
    log.close()
    assert json.loads(path.read_text())["recipients"] == ["a@example.com"]


@pytest.mark.parametrize("reply", [OK, LOCAL_ERROR, MESSAGE_TOO_LARGE])
async def test_what_a_processor_has_written_need_not_be_text(tmp_path: Path, reply: Reply) -> None:
    path = tmp_path / "log"
    log = Log(str(path))
    events = EventBus()
    came: list[Any] = []

    async def take(event: MailEvent) -> None:
        came.append(event)

    events.subscribe(MailEvent, take)
    events.start(log.logger)
    envelope: Any = Envelope()
    envelope.queued_id = envelope.helo = uuid.UUID(int=7)
    envelope.server = envelope.remote_ip = envelope.remote_port = None
    witness = Witness(Counters(), events)
    witness.message(log.logger, envelope, 1, reply, 0.0)
    witness.recipient_refused(envelope, Address("a", "example.com"), reply)
    await events.close()
    log.close()
    assert json.loads(path.read_text())["queued_id"] == str(uuid.UUID(int=7))
    assert [(event.queued_id, event.remote_port) for event in came] == [(uuid.UUID(int=7), None)] * 2


@given(st.floats() | st.floats(0, 100) | st.integers(0, 10**7).map(lambda number: (number + 0.5) / 100_000))
@example(0.0)
@example(-0.0)
@example(1.005e-3)
@example(0.125e-3)
@example(0.375e-3)
@example(21474.83648)
@example(1e308)
def test_milliseconds_are_what_round_makes_of_them(seconds: float) -> None:
    try:
        expected = round(seconds * 1000, 2)
    except (OverflowError, ValueError) as error:
        with pytest.raises(type(error)):
            milliseconds(seconds)
    else:
        assert repr(milliseconds(seconds)) == repr(expected)
