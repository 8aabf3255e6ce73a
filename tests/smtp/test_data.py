"""DATA: it ends at CRLF.CRLF and nowhere else, is kept as it came, and holds to the limits of size and newline."""

from __future__ import annotations

import re
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guerrilla.envelope import TLSInfo
from guerrilla.smtp.data import BodyError, MemoryBody, Newlines
from guerrilla.smtp.events import MessageRefused
from guerrilla.smtp.replies import INSUFFICIENT_STORAGE, LOCAL_ERROR, Reply
from guerrilla.testing import Dialogue, OpenHouse

BARE = re.compile(rb"\r(?!\n)|(?<!\r)\n")
SMUGGLED = b"NOOP\r\nMAIL FROM:<smuggled@x>\r\n"

SEQUENCES = [
    b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\r.\n", b"\n.\r", b"\r.\r\n", b"\r\n.\r", b"\r\n.\r\r\n",
    b"\r\r\n.\r\r\n", b"\n\n.\r\n", b"\r\n.\n\r\n", b"\r\n\0.\r\n", b"\r\n.\0\r\n", b"\r\n\0.\r", b"\r\n\0.\n",
    b"\r\n. \r\n", b"\r\n.\t\r\n", b"\r\n.\v\r\n", b"\r\n .\r\n", b"\r\n.\b\r\n", b"\v.\v", b"\f.\f", b"\x85.\x85",
    b"\xe2\x80\xa8.\xe2\x80\xa8", b"\x1c.\x1c", b"\r\n..\r\n", b"\r\n.x\r\n", b"\r\n...\r\n", b"\r\n.", b"\r\n.\r\0\n",
]  # fmt: skip
"""What one or another server has taken for the end of DATA."""


LARGE = b"x" * 4094 + b"\r\n"
"""What is searched in another way than less."""


def in_data(**settings: object) -> Dialogue:
    """Return a dialogue after DATA."""
    dialogue = Dialogue(**settings)  # type: ignore[arg-type]
    return dialogue.say("EHLO c", "MAIL FROM:<a@x>", "RCPT TO:<b@y>", "DATA").expect(..., "354")


def unstuffed(content: bytes) -> bytes:
    """Take the dots away line by line: another way than the server's."""
    return b"\r\n".join(line.removeprefix(b".") for line in content.split(b"\r\n"))


@pytest.mark.parametrize("tls", [None, TLSInfo("TLSv1.3", "c")], ids=["clear", "tls"])
@pytest.mark.parametrize("newlines", [Newlines.REJECT, Newlines.NORMALIZE])
@pytest.mark.parametrize("octet_by_octet", [False, True])
@pytest.mark.parametrize(
    "head",
    [b"Subject: x\r\n\r\nbody", b"", LARGE, LARGE + b"a.b" * 40, LARGE + b"a.b" * 10],
    ids=["middle", "first", "in much", "many dots", "some dots"],
)
@pytest.mark.parametrize("sequence", SEQUENCES)
def test_nothing_but_the_end_ends_a_message(
    sequence: bytes, head: bytes, octet_by_octet: bool, newlines: Newlines, tls: TLSInfo | None
) -> None:
    content = head + sequence + SMUGGLED
    dialogue = in_data(newlines=newlines, tls=tls)
    dialogue.feed(content, range(len(content)) if octet_by_octet else None).expect()
    dialogue.feed(b".\r\n", range(3) if octet_by_octet else None)
    if BARE.search(content) and newlines is Newlines.REJECT:
        dialogue.expect("550 5.5.2")
        assert dialogue.envelopes == []
    else:
        dialogue.expect("250 2.0.0")
        (envelope,) = dialogue.envelopes
        assert str(envelope.mail_from) == "a@x"
        assert not BARE.search(bytes(envelope.data)), "nothing is stored that a next hop could take for an end"
        assert envelope.data == re.sub(rb"\r\n|\r|\n", b"\r\n", unstuffed(content))
    dialogue.say("NOOP").expect("250 2.0.0 OK")
    assert len(dialogue.events) == 1


@pytest.mark.parametrize("sequence", [b".\n", b".\r\r\n", b".\r", b". \r\n", b".\0\r\n"])
def test_a_false_end_as_the_very_first_line_is_content(sequence: bytes) -> None:
    in_data().feed(sequence + SMUGGLED).expect().say(".").expect("550" if BARE.search(sequence) else "250")


@pytest.mark.parametrize("where", range(1, 6))
def test_an_end_that_is_cut_anywhere_works_once(where: int) -> None:
    end = b"\r\n.\r\n"
    dialogue = in_data().feed(b"x" + end, [where]).expect("250 2.0.0")
    assert [envelope.data for envelope in dialogue.envelopes] == [b"x\r\n"]


@pytest.mark.parametrize("edge", [4096, 65536])
@pytest.mark.parametrize("offset", range(-2, 8))
def test_an_end_over_the_edge_of_a_read_works_once(edge: int, offset: int) -> None:
    content = (b"y" * (edge - offset)) + b"\r\n"
    dialogue = in_data().feed(content + b".\r\nNOOP\r\n", [edge]).expect("250 2.0.0", "250 2.0.0 OK")
    assert [envelope.data for envelope in dialogue.envelopes] == [content]


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        (b"", b""),
        (b"\r\n", b"\r\n"),
        (b"..\r\n", b".\r\n"),
        (b".x\r\n", b"x\r\n"),
        (b"...\r\n..\r\n", b"..\r\n.\r\n"),
        (b"a.\r\n.b\r\n", b"a.\r\nb\r\n"),
        (b"\r\n..\r\n\r\n", b"\r\n.\r\n\r\n"),
        (b"Subject: headers only\r\n", b"Subject: headers only\r\n"),
        (b" a continuation first\r\n", b" a continuation first\r\n"),
        (b"\0\x80\xff\x1a\r\n", b"\0\x80\xff\x1a\r\n"),
        *((b"a." * dots + b"\r\n", b"a." * dots + b"\r\n") for dots in (15, 16, 17, 31, 70)),
        *((b"a." * dots + b"\r\n..\r\n", b"a." * dots + b"\r\n.\r\n") for dots in (15, 16, 17, 31, 70)),
        *(
            (b"a." * dots + b"\r\n..\r\n" + b"b" * 2048 + b"\r\n", b"a." * dots + b"\r\n.\r\n" + b"b" * 2048 + b"\r\n")
            for dots in range(12)
        ),
    ],
)
def test_dots_are_unstuffed_once_and_nothing_else_is_touched(sent: bytes, stored: bytes) -> None:
    for before, cuts in ((b"", None), (b"", range(100)), (LARGE, None)):
        dialogue = in_data().feed(before + sent + b".\r\n", cuts).expect("250 2.0.0")
        assert [envelope.data for envelope in dialogue.envelopes] == [before + stored]


@pytest.mark.parametrize("length", [998, 1000, 2048, 65536, 3_000_000])
def test_a_line_of_any_length_is_never_wrapped(length: int) -> None:
    line = b"z" * length + b"\r\n"
    dialogue = in_data().feed(line + b".\r\n", range(0, length, 65536)).expect("250 2.0.0")
    assert dialogue.envelopes[0].data == line


@pytest.mark.parametrize("bare", [b"\r", b"\n"])
@pytest.mark.parametrize(
    "content", [b"%bSubject: x\r\n\r\n", b"Subj%bect: x\r\n\r\n", b"\r\nbo%bdy\r\n", b"\r\nbody%b\r\n"]
)
def test_a_bare_cr_or_lf_anywhere_is_refused_or_mended(content: bytes, bare: bytes) -> None:
    content = content % bare
    dialogue = in_data().feed(content + b".\r\n").expect("550 5.5.2")
    assert isinstance(dialogue.events[0], MessageRefused)
    assert dialogue.events[0].size == len(content)
    dialogue = in_data(newlines=Newlines.NORMALIZE).feed(content + b".\r\n", range(99)).expect("250 2.0.0")
    assert dialogue.envelopes[0].data == re.sub(rb"\r\n|\r|\n", b"\r\n", content)


def test_a_message_that_is_pipelined_behind_the_end_is_the_next_one() -> None:
    dialogue = in_data().say("one", ".", "MAIL FROM:<c@x>", "RCPT TO:<d@y>", "DATA", "two", ".")
    dialogue.expect("250", "250 2.1.0", "250 2.1.5", "354", "250")
    assert [(str(one.mail_from), one.data) for one in dialogue.envelopes] == [("a@x", b"one\r\n"), ("c@x", b"two\r\n")]


# Size.


def test_a_message_of_the_limit_is_taken_and_one_octet_more_is_not() -> None:
    in_data(max_size=7).feed(b"..2345\r\n.\r\n").expect("250 2.0.0")
    dialogue = in_data(max_size=7).feed(b"..23456\r\n.\r\n").expect("552 5.3.4")
    (event,) = dialogue.events
    assert isinstance(event, MessageRefused)
    assert (event.size, event.reply.code, event.envelope.data) == (8, 552, b"")
    dialogue.say("MAIL FROM:<a@x>", "RCPT TO:<b@y>", "DATA", ".").expect("250", "250", "354", "250")


def test_a_message_that_mending_makes_too_large_is_refused() -> None:
    in_data(max_size=7, newlines=Newlines.NORMALIZE).feed(b"\n\n\n\r\n.\r\n").expect("552 5.3.4")


@pytest.mark.parametrize("content", [b"\n" + b"x" * 20 + b"\r\n", b"x" * 20 + b"\n\r\n", b"x" * 20 + b"\r\r\n"])
def test_size_outweighs_newlines_however_the_octets_are_cut(content: bytes) -> None:
    for cuts in (None, [1], [15], range(30)):
        in_data(max_size=10).feed(content + b".\r\n", cuts).expect("552 5.3.4")


class Recorder:
    """A body that counts what it is given, and fails where it is told to."""

    def __init__(self, room: int = 1 << 30, finishes: bool = True) -> None:
        self.room = room
        self.finishes = finishes
        self.written = 0
        self.discarded = 0

    def write(self, octets: bytes) -> None:
        assert not self.discarded
        if len(octets) > self.room:
            raise BodyError(INSUFFICIENT_STORAGE)
        self.room -= len(octets)
        self.written += len(octets)

    def finish(self) -> bytes:
        if not self.finishes:
            raise BodyError(LOCAL_ERROR)
        return b""

    def discard(self) -> None:
        self.discarded += 1


class RecordingHouse(OpenHouse):
    """A house whose every message goes to one recorder."""

    def __init__(self, body: Recorder) -> None:
        super().__init__()
        self.body = body

    def open_body(self) -> Recorder:
        return self.body


@pytest.mark.parametrize("content", [b"x" * 5000 + b"\r\n", b"\n" + b"x" * 5000 + b"\r\n"])
def test_a_refused_message_is_given_back_at_once_and_the_rest_costs_nothing(content: bytes) -> None:
    body = Recorder()
    dialogue = in_data(max_size=1000, house=RecordingHouse(body)).feed(content, range(0, 5000, 100)).expect()
    assert body.discarded
    assert body.written <= 1000
    assert dialogue.session.unread == 0
    dialogue.feed(b".\r\n").expect("552 5.3.4")


def test_a_store_without_room_puts_the_message_off_and_the_dialogue_goes_on() -> None:
    dialogue = in_data(house=RecordingHouse(Recorder(room=3))).say("1", "234567", ".", "NOOP")
    dialogue.expect("452 4.3.1", "250 2.0.0 OK")
    assert [type(event) for event in dialogue.events] == [MessageRefused]


def test_what_the_client_did_wrong_outweighs_a_store_without_room() -> None:
    for content in (b"x" * 50 + b"\r\n", b"x" * 8 + b"\n\r\n"):
        for cuts in (None, range(60)):
            dialogue = in_data(max_size=20, house=RecordingHouse(Recorder(room=3)))
            dialogue.feed(content + b".\r\n", cuts).expect("5")


def test_a_store_that_fails_at_the_end_puts_the_message_off() -> None:
    dialogue = in_data(house=RecordingHouse(Recorder(finishes=False))).say("x", ".", "NOOP")
    dialogue.expect("451 4.3.0", "250 2.0.0 OK")


@pytest.mark.parametrize("end", ["answered", "RSET", "hang up", "closed"])
def test_a_body_is_given_back_at_the_end_of_its_transaction_whatever_came_of_it(end: str) -> None:
    body = Recorder()
    dialogue = Dialogue(house=RecordingHouse(body)).say("EHLO c", "MAIL FROM:<>", "RCPT TO:<a@b>")
    dialogue.feed(b"BDAT 1\r\nx")
    assert not body.discarded
    if end == "answered":
        dialogue.say("BDAT 0 LAST")
    elif end == "RSET":
        dialogue.say("RSET")
    elif end == "hang up":
        dialogue.hang_up()
    else:
        dialogue.session.close()
    assert body.discarded


def test_a_body_in_memory_is_what_was_written_until_it_is_discarded() -> None:
    body = MemoryBody()
    assert body.finish() == b""
    body.write(b"a")
    assert body.finish() == b"a"
    body.write(b"b")
    assert body.finish() == b"ab"
    body.discard()
    body.discard()
    assert body.finish() == b""


def test_a_body_of_small_pieces_takes_about_as_much_memory_as_its_octets() -> None:
    body = MemoryBody()
    tracemalloc.start()
    try:
        for number in range(60_000):
            body.write(b"%02d" % (number % 100))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 120_000 * 2
    assert body.finish() == b"".join(b"%02d" % (number % 100) for number in range(60_000))


@given(st.lists(st.sampled_from([b"", b"a", b"bc", b"d" * 4095, b"e" * 4096, b"f" * 5000])))
def test_a_body_in_memory_keeps_small_and_large_pieces_in_their_order(pieces: list[bytes]) -> None:
    body = MemoryBody()
    for piece in pieces:
        body.write(piece)
    assert body.finish() == body.finish() == b"".join(pieces)


def test_an_error_of_a_body_says_what_the_client_is_told() -> None:
    error = BodyError(Reply(452, "4.3.1", "Full"))
    assert (str(error), error.reply.code) == ("452 4.3.1 Full", 452)
