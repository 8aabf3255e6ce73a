"""Debugger logs what passes, and holds it if so configured."""

from __future__ import annotations

import asyncio

import pytest
import structlog
from pydantic import ValidationError
from structlog.testing import LogCapture

from guerrilla.envelope import Address, Envelope, Headers
from guerrilla.processors.debugger import Debugger, DebuggerConfig
from guerrilla.smtp.replies import OK, Reply

MAIL = Envelope(
    mail_from=Address("a", "example.org"),
    rcpt_to=[Address("b", "example.com"), Address("c", "example.com")],
    subject="Hello",
    header=Headers([("Subject", "Hello")]),
    delivery_header=b"D: x\r\n",
    data=b"Subject: Hello\r\n\r\n",
)


def debugger(config: DebuggerConfig) -> tuple[Debugger, LogCapture]:
    capture = LogCapture()
    processor = Debugger(config)
    processor.log = structlog.wrap_logger(
        structlog.PrintLogger(), processors=[capture], wrapper_class=structlog.make_filtering_bound_logger(0)
    )
    return processor, capture


async def following() -> Reply:
    return OK


async def test_logs_the_message() -> None:
    """One line tells sender, recipients, subject, header and size, and the message goes on."""
    processor, capture = debugger(DebuggerConfig())
    assert await processor.save_mail(MAIL, following) is OK
    assert capture.entries == [
        {
            "event": "mail received",
            "log_level": "info",
            "mail_from": "a@example.org",
            "rcpt_to": ["b@example.com", "c@example.com"],
            "subject": "Hello",
            "header": [("Subject", "Hello")],
            "size": 24,
        }
    ]


async def test_is_silent_when_told() -> None:
    """Without log_received_mails it only passes on."""
    processor, capture = debugger(DebuggerConfig(log_received_mails=False))
    assert await processor.save_mail(MAIL, following) is OK
    assert capture.entries == []


async def test_a_log_line_is_bounded() -> None:
    """A huge header does not make a huge log line."""
    processor, capture = debugger(DebuggerConfig())
    huge = Envelope(subject="x" * 998, header=Headers([("N" * 998, "v" * 100_000)] * 1_000))
    await processor.save_mail(huge, following)
    assert len(str(capture.entries)) < 100 * 2 * 256 + 10_000


async def test_holds_the_message() -> None:
    """With sleep_seconds the message is held, and may be cancelled there."""
    passed = asyncio.Event()

    async def note() -> Reply:
        passed.set()
        return OK

    processor, capture = debugger(DebuggerConfig(sleep_seconds=3600))
    task = asyncio.create_task(processor.save_mail(MAIL, note))
    while not capture.entries:
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not passed.is_set()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_cannot_sleep_backwards() -> None:
    """A negative sleep_seconds is refused."""
    with pytest.raises(ValidationError, match="sleep_seconds"):
        DebuggerConfig(sleep_seconds=-1)
