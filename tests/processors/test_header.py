"""Header writes Delivered-To and Received, and nothing from the wire can leave its line."""

from __future__ import annotations

import locale
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guerrilla.envelope import Address, Envelope, TLSInfo
from guerrilla.processors.header import Header, HeaderConfig
from guerrilla.smtp.replies import OK, Reply

TLS = TLSInfo("TLSv1.3", "TLS_AES_256_GCM_SHA384")


def mail(**changes: Any) -> Envelope:
    envelope = Envelope(
        remote_ip="192.0.2.1",
        helo="client.example.org",
        esmtp=True,
        rcpt_to=[Address("joe", "example.com")],
        queued_id="0123456789abcdef",
        received_at=datetime(2024, 2, 3, 4, 5, 6, tzinfo=UTC),
    )
    return replace(envelope, **changes)


async def write_header(envelope: Envelope) -> bytes:
    async def following() -> Reply:
        return OK

    assert await Header(HeaderConfig(primary_mail_host="mx.example.com")).save_mail(envelope, following) is OK
    return envelope.delivery_header


async def test_delivery_header() -> None:
    """It has both fields, folded, each line ended with CRLF (RFC 5321 section 4.4)."""
    assert await write_header(mail()) == (
        b"Delivered-To: joe@mx.example.com\r\n"
        b"Received: from client.example.org ([192.0.2.1])\r\n"
        b"\tby mx.example.com with ESMTP id 0123456789abcdef\r\n"
        b"\tfor <joe@example.com>;\r\n"
        b"\tSat, 03 Feb 2024 04:05:06 +0000\r\n"
    )


async def test_several_recipients_are_not_told_of_each_other() -> None:
    """With several recipients there is no `for`, and only the first is named, in Delivered-To."""
    header = await write_header(mail(rcpt_to=[Address("joe", "example.com"), Address("secret", "example.com")]))
    assert header.startswith(b"Delivered-To: joe@mx.example.com\r\n")
    assert b"\tby mx.example.com with ESMTP id 0123456789abcdef;\r\n" in header
    assert b"secret" not in header
    assert b"example.com>" not in header


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"esmtp": False}, b"SMTP"),
        ({"esmtp": False, "tls": TLS}, b"SMTP"),
        ({}, b"ESMTP"),
        ({"tls": TLS}, b"ESMTPS"),
        ({"smtputf8": True}, b"UTF8SMTP"),
        ({"smtputf8": True, "tls": TLS}, b"UTF8SMTPS"),
    ],
)
async def test_protocol(changes: dict[str, Any], name: bytes) -> None:
    """The protocol has its registered name (RFC 3848, RFC 6531)."""
    assert b" with " + name + b" id " in await write_header(mail(**changes))


@pytest.mark.parametrize(
    ("ip", "literal"),
    [
        ("192.0.2.1", b"from client.example.org ([192.0.2.1])\r\n"),
        ("192.0.2.01", b"from client.example.org\r\n"),
        ("192.0.2.1\0", b"from client.example.org\r\n"),
        ("2001:db8:0::1", b"from client.example.org ([IPv6:2001:db8::1])\r\n"),
        ("fe80::1%eth0", b"from client.example.org ([IPv6:fe80::1])\r\n"),
        ("", b"from client.example.org\r\n"),
    ],
)
async def test_address_literal(ip: str, literal: bytes) -> None:
    """The client's address is written as a literal, an IPv6 one with its tag and without its zone."""
    assert literal in await write_header(mail(remote_ip=ip))


async def test_postmaster_without_a_host() -> None:
    """<postmaster> is delivered to the postmaster of this host."""
    header = await write_header(mail(rcpt_to=[Address("postmaster")]))
    assert header.startswith(b"Delivered-To: postmaster@mx.example.com\r\n")
    assert b"\tfor <postmaster>;\r\n" in header


async def test_local_part_is_quoted() -> None:
    """A local part that needs quotes has them."""
    assert b'Delivered-To: "a b"@mx.example.com\r\n' in await write_header(mail(rcpt_to=[Address("a b", "x.org")]))


async def test_utf8_only_when_asked_for() -> None:
    """An address beyond ASCII is written as UTF-8 with SMTPUTF8, and never without."""
    recipient = [Address("jörg", "example.com")]
    assert "Delivered-To: jörg@".encode() in await write_header(mail(rcpt_to=recipient, smtputf8=True))
    assert b"Delivered-To: j?rg@" in await write_header(mail(rcpt_to=recipient))


async def test_without_recipient_id_or_helo() -> None:
    """What is not known is left out; the greeting, which must stand there, is unknown."""
    header = await write_header(mail(rcpt_to=[], queued_id="", helo=""))
    assert header == (
        b"Received: from unknown ([192.0.2.1])\r\n\tby mx.example.com with ESMTP;\r\n"
        b"\tSat, 03 Feb 2024 04:05:06 +0000\r\n"
    )


async def test_date_is_utc() -> None:
    """A date of another zone is written in UTC."""
    moment = datetime(2024, 12, 31, 23, 30, 0, tzinfo=timezone(-timedelta(hours=1)))
    assert b"\tWed, 01 Jan 2025 00:30:00 +0000\r\n" in await write_header(mail(received_at=moment))


async def test_each_message_has_its_own_date() -> None:
    """One Header writes many dates, and each as if it were the first, whether the second is the same or another."""

    async def following() -> Reply:
        return OK

    header = Header(HeaderConfig(primary_mail_host="mx.example.com"))
    dates = []
    for second, microsecond in ((1, 0), (1, 999_999), (2, 0), (1, 0)):
        envelope = mail(received_at=datetime(2024, 3, 10, 0, 0, second, microsecond, tzinfo=UTC))
        await header.save_mail(envelope, following)
        dates.append(envelope.delivery_header.rpartition(b"+0000")[0][-2:-1])
    assert dates == [b"1", b"1", b"2", b"1"]


@pytest.fixture
def other_locale() -> Iterator[None]:
    before = locale.setlocale(locale.LC_TIME)
    for name in ("de_DE.UTF-8", "fr_FR.UTF-8", "C"):
        try:
            locale.setlocale(locale.LC_TIME, name)
            break
        except locale.Error:
            continue
    yield
    locale.setlocale(locale.LC_TIME, before)


@pytest.mark.usefixtures("other_locale")
async def test_date_is_english() -> None:
    """Day and month have their English names, whatever the locale."""
    assert b"\tSun, 10 Mar 2024 00:00:00 +0000\r\n" in await write_header(
        mail(received_at=datetime(2024, 3, 10, tzinfo=UTC))
    )


async def test_greeting_cannot_pretend() -> None:
    """A greeting cannot add a comment, a clause or a date."""
    header = await write_header(mail(helo="a (b); <c>\r\nX: y"))
    assert header.splitlines()[1] == b"Received: from a??b????c???X:?y ([192.0.2.1])"


@pytest.mark.parametrize("letter", ["x", "\N{MONKEY}"])
async def test_lines_are_short(letter: str) -> None:
    """No line is longer than 998 octets (RFC 5322 section 2.1.1), and no character is cut in two."""
    text = letter * 5_000
    changes: dict[str, Any] = {"helo": text, "rcpt_to": [Address(text, text)], "queued_id": text}
    for utf8 in (False, True):
        header = await write_header(mail(**changes, smtputf8=utf8))
        assert max(map(len, header.split(b"\r\n"))) <= 998
        header.decode()


@given(st.text(), st.booleans())
async def test_no_text_leaves_its_line(text: str, utf8: bool) -> None:
    """Whatever greeting, recipient and name are, the header has its lines, none too long, and no control characters."""
    header = await write_header(
        mail(helo=text, rcpt_to=[Address(text or "a", text)], queued_id=text, remote_ip=text, smtputf8=utf8)
    )
    lines = header.split(b"\r\n")
    assert [line[:12] for line in lines][0::5] == [b"Delivered-To", b""]
    assert len(lines) == 6
    assert all(len(line) <= 998 for line in lines)
    assert not re.search(rb"[\x00-\x08\x0a-\x1f\x7f]", header.replace(b"\r\n", b""))
    assert utf8 or header.isascii()
    header.decode()


def test_host_is_this_machine_by_default() -> None:
    """Without configuration the host is the machine's own name."""
    assert HeaderConfig().primary_mail_host
