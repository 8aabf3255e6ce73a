"""HeadersParser writes header and subject on the envelope, and passes on."""

from __future__ import annotations

from guerrilla.backends.processor import ProcessorConfig
from guerrilla.envelope import Envelope
from guerrilla.processors.headers_parser import HeadersParser
from guerrilla.smtp.replies import OK, Reply


async def read_header(data: bytes) -> Envelope:
    envelope = Envelope(data=data)

    async def following() -> Reply:
        return OK

    assert await HeadersParser(ProcessorConfig()).save_mail(envelope, following) is OK
    return envelope


async def test_fills_header_and_subject() -> None:
    """The header is kept as it came, in order; the subject is decoded."""
    envelope = await read_header(b"Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\nTo: a@example.org\r\n\r\nNot: this\r\n")
    assert list(envelope.header) == [("Subject", "=?utf-8?q?Gr=C3=BC=C3=9Fe?="), ("To", "a@example.org")]
    assert envelope.subject == "Grüße"


async def test_without_subject_it_is_empty() -> None:
    """A message without a Subject has an empty subject, also if the envelope had one before."""
    assert (await read_header(b"To: a@example.org\r\n\r\n")).subject == ""
