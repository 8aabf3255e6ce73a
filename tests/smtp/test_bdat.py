"""BDAT (RFC 3030): exact to the octet, also when it is refused in the middle."""

from __future__ import annotations

import pytest

from guerrilla.smtp.data import Newlines
from guerrilla.smtp.events import Busy, Closed, CommandRefused, MessageReceived, MessageRefused
from guerrilla.smtp.settings import MAX_ERRORS, MAX_JUNK, MAX_STEPS
from guerrilla.testing import Dialogue


def with_recipient(mail: str = "MAIL FROM:<a@x>", **settings: object) -> Dialogue:
    """Return a dialogue after an accepted RCPT."""
    dialogue = Dialogue(**settings)  # type: ignore[arg-type]
    return dialogue.say("EHLO c", mail, "RCPT TO:<b@y>").expect(..., "250 2.1.0", "250 2.1.5")


def stored(dialogue: Dialogue) -> list[bytes]:
    """Return the messages that were taken."""
    return [bytes(envelope.data) for envelope in dialogue.envelopes]


@pytest.mark.parametrize("octet_by_octet", [False, True])
def test_chunks_and_commands_in_one_segment_are_told_apart_by_the_count(octet_by_octet: bool) -> None:
    octets = b"BDAT 6\r\nNOOP\r\nBDAT 5\r\n.\r\n\r\nbdat 3 last\r\nx\r\nNOOP\r\n"
    dialogue = with_recipient().feed(octets, range(len(octets)) if octet_by_octet else None)
    dialogue.expect("250 2.0.0 6 octets", "250 2.0.0 5 octets", "250 2.0.0 OK: queued", "250 2.0.0 OK")
    assert stored(dialogue) == [b"NOOP\r\n.\r\n\r\nx\r\n"]


@pytest.mark.parametrize("first", range(12))
def test_a_chunk_may_end_anywhere_and_dots_are_data(first: int) -> None:
    content = b"\r\n.\r\n..\xc3\xbc\r\n"
    head, tail = content[:first], content[first:]
    dialogue = with_recipient().feed(b"BDAT %d\r\n%bBDAT %d LAST\r\n%b" % (len(head), head, len(tail), tail))
    dialogue.expect("250 2.0.0", "250 2.0.0 OK: queued")
    assert stored(dialogue) == [content]


def test_an_empty_last_chunk_ends_the_message() -> None:
    dialogue = with_recipient().feed(b"BDAT 2\r\n\r\nBDAT 0 LAST\r\n").expect("250", "250 2.0.0 OK: queued")
    assert stored(dialogue) == [b"\r\n"]
    assert stored(with_recipient().say("BDAT 0 LAST").expect("250 2.0.0 OK: queued")) == [b""]


@pytest.mark.parametrize(
    "size", ["", "-1", "1_0", "+5", "0x10", "5 LAST x", "5\tLAST", "5 LASTX", "٣", "5.0", "9" * 20]
)
def test_a_chunk_of_unknown_length_ends_the_dialogue(size: str) -> None:
    dialogue = with_recipient().say(f"BDAT {size}", "NOOP").expect("501 5.5.2")
    assert [type(event) for event in dialogue.events] == [CommandRefused, Closed]
    assert stored(dialogue) == []


@pytest.mark.parametrize("size", ["5", "005", "5 ", "  5"])
def test_a_length_may_have_zeros_and_spaces_around(size: str) -> None:
    with_recipient().feed(f"BDAT {size}\r\nabcdeNOOP\r\n".encode()).expect("250 2.0.0 5 octets", "250 2.0.0 OK")


@pytest.mark.parametrize(
    ("before", "answer"),
    [
        ([], "503 5.5.1 Send HELO"),
        (["EHLO c"], "503 5.5.1 Send MAIL"),
        (["EHLO c", "MAIL FROM:<>"], "503 5.5.1 No valid recipients"),
    ],
)
@pytest.mark.parametrize("last", [b"", b" LAST"])
def test_a_chunk_out_of_sequence_is_read_to_its_end_and_refused(before: list[str], answer: str, last: bytes) -> None:
    dialogue = Dialogue().say("NOOP", *before).feed(b"BDAT 6%b\r\nQUIT\r\nNOOP\r\n" % last, range(30))
    dialogue.expect(answer, "250 2.0.0 OK")
    assert [type(event) for event in dialogue.events] == [CommandRefused]


def test_nothing_but_bdat_or_rset_brings_a_sequence_forward() -> None:
    dialogue = with_recipient().feed(b"BDAT 1\r\nx").expect("250")
    dialogue.talk("""
        C: DATA
        C: RCPT TO:<c@y>
        C: MAIL FROM:<>
        C: NOOP
        C: RSET
        C: DATA
        S: 503 5.5.1 A BDAT sequence
        S: 503 5.5.1 A BDAT sequence
        S: 503 5.5.1 Nested
        S: 250 2.0.0
        S: 250 2.0.0
        S: 503 5.5.1 Send MAIL
    """)


def test_after_data_there_is_no_chunk_of_the_same_message() -> None:
    dialogue = with_recipient().say("DATA", "x", ".").feed(b"BDAT 1 LAST\r\nxNOOP\r\n").expect("503 5.5.1", "250")
    assert len(dialogue.envelopes) == 1


@pytest.mark.parametrize("octet_by_octet", [False, True])
def test_after_a_failed_chunk_all_are_read_and_refused_up_to_the_last(octet_by_octet: bool) -> None:
    octets = b"BDAT 3\r\na\nbBDAT 6\r\nQUIT\r\nBDAT 6 LAST\r\nQUIT\r\nMAIL FROM:<>\r\n"
    dialogue = with_recipient().feed(octets, range(len(octets)) if octet_by_octet else None)
    dialogue.expect("550 5.5.2", "503 5.5.1 The BDAT", "503 5.5.1 The BDAT", "250 2.1.0")
    assert [type(event) for event in dialogue.events] == [MessageRefused, CommandRefused, CommandRefused]
    assert isinstance(dialogue.events[0], MessageRefused)
    assert dialogue.events[0].size == 3
    assert stored(dialogue) == []


def test_after_a_failed_chunk_rset_begins_anew() -> None:
    dialogue = with_recipient().feed(b"BDAT 1\r\n\n").expect("550 5.5.2")
    dialogue.say("DATA", "RCPT TO:<c@y>", "RSET", "MAIL FROM:<>", "RCPT TO:<c@y>", "BDAT 0 LAST")
    dialogue.expect("503 5.5.1 A BDAT", "503 5.5.1 A BDAT", "250 2.0.0", "250 2.1.0", "250 2.1.5", "250 2.0.0")


def test_a_chunk_that_was_refused_is_not_missing_from_a_message_that_is_taken() -> None:
    dialogue = Dialogue().say("EHLO c", "MAIL FROM:<>").feed(b"BDAT 5\r\nfirst").expect("503 5.5.1 No valid")
    dialogue.feed(b"RCPT TO:<b@y>\r\nBDAT 6 LAST\r\nsecond").expect("503 5.5.1 A BDAT", "503 5.5.1 No valid")
    assert stored(dialogue) == []


# Size.


def test_the_limit_holds_over_all_chunks_and_is_seen_before_they_are_read() -> None:
    with_recipient(max_size=6).feed(b"BDAT 3\r\nabcBDAT 3 LAST\r\ndef").expect("250", "250 2.0.0 OK: queued")
    dialogue = with_recipient(max_size=6).feed(b"BDAT 3\r\nabcBDAT 4 LAST\r\ndefgNOOP\r\n")
    dialogue.expect("250", "552 5.3.4", "250 2.0.0 OK")
    (event,) = dialogue.events
    assert isinstance(event, MessageRefused)
    assert event.size == 3, "nothing of the chunk that is too large was taken"


def test_a_huge_chunk_is_refused_and_costs_no_memory_while_it_comes() -> None:
    dialogue = with_recipient(max_size=100).say("BDAT 4294967296 LAST").expect()
    for _ in range(50):
        dialogue.feed(b"x" * 100_000).expect()
        assert dialogue.session.unread == 0
    assert dialogue.session.in_content
    dialogue = with_recipient(max_size=100).feed(b"BDAT 200\r\n" + b"x" * 200 + b"NOOP\r\n")
    dialogue.expect("552 5.3.4", "250 2.0.0 OK")


def test_a_held_cr_counts_towards_the_limit() -> None:
    with_recipient(max_size=4).feed(b"BDAT 3\r\nab\rBDAT 2 LAST\r\n\nx").expect("250", "552 5.3.4")


# Newlines.


def test_a_crlf_over_the_edge_of_two_chunks_is_no_bare_newline() -> None:
    assert stored(with_recipient().feed(b"BDAT 2\r\na\rBDAT 2 LAST\r\n\nb")) == [b"a\r\nb"]


@pytest.mark.parametrize("content", [b"a\rb", b"a\nb", b"\n", b"\r", b"\r\r\n", b"a\r"])
def test_bare_newlines_are_refused_as_in_data(content: bytes) -> None:
    octets = b"BDAT %d LAST\r\n%b" % (len(content), content)
    for cuts in (None, range(30)):
        dialogue = with_recipient().feed(octets, cuts).expect("550 5.5.2")
        (event,) = dialogue.events
        assert isinstance(event, MessageRefused)
        assert event.size == len(content)


@pytest.mark.parametrize(
    ("sent", "kept"), [(b"a\rb", b"a\r\nb"), (b"\n", b"\r\n"), (b"a\r", b"a\r\n"), (b"a\r\n", b"a\r\n")]
)
def test_bare_newlines_are_mended_when_they_are_to_be(sent: bytes, kept: bytes) -> None:
    dialogue = with_recipient(newlines=Newlines.NORMALIZE).feed(b"BDAT %d LAST\r\n%b" % (len(sent), sent))
    assert stored(dialogue.expect("250 2.0.0 OK: queued")) == [kept]


def test_a_mended_end_can_make_a_message_too_large() -> None:
    with_recipient(newlines=Newlines.NORMALIZE, max_size=2).feed(b"BDAT 2 LAST\r\na\r").expect("552 5.3.4")


def test_binary_content_is_kept_as_it_is_and_comes_by_bdat_only() -> None:
    dialogue = with_recipient("MAIL FROM:<a@x> BODY=BINARYMIME")
    dialogue.say("DATA").expect("503 5.5.1 BODY=BINARYMIME")
    dialogue.feed(b"BDAT 9 LAST\r\n\r\n.\n\r.\r\0\xff").expect("250 2.0.0 OK: queued")
    assert stored(dialogue) == [b"\r\n.\n\r.\r\0\xff"]
    assert dialogue.envelopes[0].body_type == "BINARYMIME"


# Floods.


def test_empty_chunks_wear_patience_out() -> None:
    dialogue = with_recipient().say(*["BDAT 0"] * (MAX_JUNK + MAX_ERRORS + 10))
    assert dialogue.closed
    dialogue.expect(..., "250 2.0.0 0 octets", "421 4.7.0")


def test_many_small_chunks_make_one_message() -> None:
    dialogue = with_recipient().feed(b"BDAT 1\r\nx" * 3000 + b"BDAT 0 LAST\r\n")
    assert stored(dialogue) == [b"x" * 3000]
    assert [type(event) for event in dialogue.events] == [MessageReceived]


def test_after_many_chunks_in_one_read_others_have_their_turn() -> None:
    dialogue = with_recipient()
    session = dialogue.session
    chunks = MAX_STEPS * 2  # each is two steps: its command, and its content
    session.receive_data(b"BDAT 1\r\nx" * chunks + b"BDAT 0 LAST\r\n")
    for turn in range(1, 5):
        assert isinstance(session.next_event(), Busy)
        assert session.data_to_send().count(b"\r\n") == MAX_STEPS // 2, turn
    assert isinstance(session.next_event(), MessageReceived)
