"""The trace header is the same whatever types a processor has left, and each date is that of its moment."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from guerrilla.envelope import EPOCH, Address, Envelope
from guerrilla.trace_header import Dates, trace_header

DATE = "Sat, 03 Feb 2024 04:05:06 +0000"
RECIPIENT = Address("jörg", "example.com")


@pytest.mark.parametrize(
    ("loose", "strict"),
    [
        ({"rcpt_to": (RECIPIENT,)}, {"rcpt_to": [RECIPIENT]}),
        ({"hashes": ("k1", "k2")}, {"hashes": ["k1", "k2"]}),
        ({"hashes": None}, {"hashes": []}),
        ({"hashes": [None], "queued_id": ""}, {"hashes": [], "queued_id": ""}),
        ({"esmtp": 1, "tls": "yes", "smtputf8": 1}, {"esmtp": True, "tls": object(), "smtputf8": True}),
        ({"esmtp": "", "smtputf8": None}, {"esmtp": False, "smtputf8": False}),
    ],
)
def test_what_another_type_says_as_well_is_taken(loose: dict[str, Any], strict: dict[str, Any]) -> None:
    """Compiled code would refuse a tuple for a list, and a number for a bool."""
    envelopes = [Envelope(**{"rcpt_to": [RECIPIENT], "queued_id": "q", **given}) for given in (loose, strict)]
    assert trace_header(envelopes[0], "mx.test", DATE) == trace_header(envelopes[1], "mx.test", DATE)


@pytest.mark.parametrize("octet", range(128))
def test_a_name_that_the_client_has_told_cannot_end_and_cannot_begin_a_comment(octet: int) -> None:
    char = chr(octet)
    written = char if char.isprintable() and char not in ' ()<>@,;"\\' else "?"
    header = trace_header(Envelope(helo=f"a{char}b"), "mx.test", DATE)
    assert header.startswith(f"Received: from a{written}b\r\n".encode())


@pytest.mark.parametrize("zone", [UTC, timezone(timedelta(hours=-3))])
def test_a_date_is_that_of_its_moment_whatever_was_written_before(zone: timezone) -> None:
    dates = Dates()
    begin = datetime(2024, 12, 31, 23, 59, 58, tzinfo=UTC)
    steps = [0, 999_999, 1_000_000, 1_999_999, 2_000_000, 1_999_999, 0, 86_400_000_000]
    moments = [begin + timedelta(microseconds=step) for step in steps]
    assert [dates.write(moment.astimezone(zone)) for moment in moments] == [
        moment.strftime("%a, %d %b %Y %H:%M:%S +0000") for moment in moments
    ]


def test_the_first_and_the_last_second_that_there_are_have_a_date() -> None:
    dates = Dates()
    assert dates.write(EPOCH) == "Thu, 01 Jan 1970 00:00:00 +0000"
    assert dates.write(datetime.max.replace(tzinfo=UTC)) == "Fri, 31 Dec 9999 23:59:59 +0000"


def test_a_moment_without_a_zone_is_one_of_this_machine() -> None:
    moment = datetime(2024, 2, 3, 4, 5, 6)
    dates = Dates()
    assert dates.write(moment) == dates.write(moment.astimezone(UTC))
