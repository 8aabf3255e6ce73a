"""Replies: what is on the wire is always one well-formed reply, and each named one is of the right class."""

from __future__ import annotations

import copy
import re
from dataclasses import FrozenInstanceError, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guerrilla.smtp import replies
from guerrilla.smtp.replies import Reply, greeting, queued

NAMED = {name: value for name, value in vars(replies).items() if isinstance(value, Reply)}
OURS = [
    "SHUTTING_DOWN",
    "TIMED_OUT",
    "TOO_SLOW",
    "TOO_MANY_CLIENTS",
    "TOO_MANY_CLIENTS_FROM_ADDRESS",
    "TOO_MANY_MAILS",
    "TOO_MANY_ERRORS",
    "LOCAL_ERROR",
    "SAVE_TIMEOUT",
    "NOT_RUNNING",
    "INSUFFICIENT_STORAGE",
    "TOO_MANY_RECIPIENTS",
    "STORAGE_NOT_AVAILABLE",
    "STORAGE_TOO_BUSY",
    "STORAGE_TIMEOUT",
    "STORAGE_ERROR",
    "QUOTA_EXCEEDED",
]


@pytest.mark.parametrize("name", OURS)
def test_an_outage_or_a_limit_is_temporary(name: str) -> None:
    assert NAMED[name].temporary
    assert not NAMED[name].positive


def test_only_outages_and_limits_are_temporary() -> None:
    assert sorted(name for name, reply in NAMED.items() if reply.temporary) == sorted(OURS)


@pytest.mark.parametrize(
    ("name", "wire"),
    [
        ("RELAY_DENIED", b"550 5.7.1 "),
        ("MESSAGE_TOO_LARGE", b"552 5.3.4 "),
        ("OK", b"250 2.0.0 "),
        ("BARE_NEWLINE", b"550 5.5.2 "),
        ("NO_SUCH_USER", b"550 5.1.1 "),
        ("USER_SUSPENDED", b"550 5.2.1 "),
        ("NEEDS_SMTPUTF8", b"553 5.6.7 "),
        ("UNKNOWN_PARAMETER", b"555 5.5.4 "),
        ("START_MAIL", b"354 Start"),
    ],
)
def test_a_decision_has_the_code_that_the_rfcs_give_it(name: str, wire: bytes) -> None:
    assert NAMED[name].wire.startswith(wire)


@pytest.mark.parametrize("name", sorted(NAMED))
def test_a_named_reply_is_one_line_with_an_enhanced_code(name: str) -> None:
    assert re.fullmatch(rb"(354 |[245][0-9][0-9] [245]\.[0-9]+\.[0-9]+ )[\x20-\x7e]+\r\n", NAMED[name].wire)


def test_two_functions_make_the_replies_that_hold_a_name() -> None:
    assert queued("0f").wire == b"250 2.0.0 OK: queued as 0f\r\n"
    assert greeting("mx.test").wire == b"220 mx.test ESMTP guerrilla\r\n"


@given(st.text() | st.sampled_from(["x" * 242, "x" * 243, "x" * 1000, "0f\n0f", "0f\r\n"]))
def test_the_reply_that_hands_over_is_one_like_any_other(queued_id: str) -> None:
    """It is made in less time, and nobody can tell."""
    quick, slow = queued(queued_id), Reply(250, "2.0.0", f"OK: queued as {queued_id}")
    assert type(quick) is Reply
    assert (quick, hash(quick), repr(quick), quick.wire) == (slow, hash(slow), repr(slow), slow.wire)
    assert copy.deepcopy(quick) == replace(quick) == slow
    with pytest.raises(FrozenInstanceError):
        quick.code = 550  # type: ignore[misc]


def test_several_lines_carry_the_code_on_each() -> None:
    assert Reply(250, "2.0.0", "a\nb\nc").wire == b"250-2.0.0 a\r\n250-2.0.0 b\r\n250 2.0.0 c\r\n"
    assert Reply(214).wire == b"214 \r\n"


@given(st.sampled_from([200, 250, 354, 421, 599]), st.booleans(), st.text())
def test_any_text_makes_a_well_formed_reply(code: int, enhanced: bool, text: str) -> None:
    reply = Reply(code, f"{code // 100}.7.1" if enhanced and code != 354 else "", text)
    lines = reply.wire.split(b"\r\n")
    assert lines.pop() == b""
    for line in lines:
        assert len(line) <= 510
        assert re.fullmatch(rb"[0-9]{3}[- ][\x20-\x7e]*", line)
    assert [line[3:4] for line in lines] == [b"-"] * (len(lines) - 1) + [b" "]


def test_text_of_a_client_cannot_forge_a_second_reply() -> None:
    assert Reply(550, "5.7.1", "a\r250 ok\u0085\u2028\x00").wire == b"550 5.7.1 a?250 ok???\r\n"
    assert len(Reply(550, "5.7.1", "x" * 1000).wire) == 512


@pytest.mark.parametrize(
    ("code", "enhanced"),
    [(199, ""), (600, ""), (-1, ""), (550, "4.1.1"), (250, "5.0.0"), (354, "3.0.0"), (550, "5.1"), (550, "5.1.1\n")],
)
def test_what_is_no_reply_cannot_be_made(code: int, enhanced: str) -> None:
    with pytest.raises(ValueError, match="code"):
        Reply(code, enhanced, "x")


@pytest.mark.parametrize(
    ("code", "positive", "temporary"),
    [(250, True, False), (354, True, False), (400, False, True), (499, False, True), (500, False, False)],
)
def test_the_class_tells_yes_later_and_no(code: int, positive: bool, temporary: bool) -> None:
    assert (Reply(code).positive, Reply(code).temporary) == (positive, temporary)


def test_a_reply_is_written_on_one_line() -> None:
    assert str(Reply(250, "2.0.0", "a\nb")) == "250 2.0.0 a / b"
    assert str(Reply(354, "", "Go on")) == "354 Go on"
    assert str(Reply(250)) == "250"


@pytest.mark.parametrize(
    ("text", "reply"),
    [
        ("554 5.7.1 No, thank you", Reply(554, "5.7.1", "No, thank you")),
        ("554-5.7.1 No", Reply(554, "5.7.1", "No")),
        ("250 OK", Reply(250, "", "OK")),
        ("451", Reply(451)),
        ("451 4.3.0", Reply(451, "4.3.0")),
        ("451 4.3.0x", Reply(451, "", "4.3.0x")),
        ("550 a\nb", Reply(550, "", "a\nb")),
    ],
)
def test_a_reply_is_read_from_text(text: str, reply: Reply) -> None:
    assert Reply.parse(text) == reply


@pytest.mark.parametrize("text", ["", "no", "55", "5501", "150 x", "660 x", "561 x", "٥٥٠ x", " 550 x", "550 4.1.1 x"])
def test_text_that_is_no_reply_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="code"):
        Reply.parse(text)


@given(st.text(max_size=40))
def test_no_text_does_worse_than_a_value_error(text: str) -> None:
    for head in ("", "550 ", "550 5.1.1 "):
        try:
            reply = Reply.parse(head + text)
        except ValueError:
            continue
        assert 200 <= reply.code <= 559
