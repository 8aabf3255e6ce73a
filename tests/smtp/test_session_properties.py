"""What holds for every dialogue: the reads do not matter, junk never raises, and content comes back octet for octet."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from guerrilla.smtp.data import Newlines
from guerrilla.smtp.events import MessageReceived, RcptReceived
from guerrilla.smtp.replies import NO_SUCH_USER, OK, RECIPIENT_OK, STORAGE_TIMEOUT, Reply
from guerrilla.smtp.settings import MAX_COMMAND_LINE
from guerrilla.testing import Dialogue
from guerrilla.testing.dialogue import Question

GOOD = [
    "EHLO client.test", "HELO client.test", "MAIL FROM:<a@here.test>", "MAIL FROM:<> SIZE=50 BODY=8BITMIME",
    "MAIL FROM:<a@here.test> BODY=BINARYMIME", "RCPT TO:<yes@here.test>", "RCPT TO:<other@here.test>", "RSET", "NOOP x",
    "VRFY a", "EXPN a", "HELP", "RCPT TO:<postmaster>",
]  # fmt: skip
BAD = [
    "EHLO", "MAIL FROM:<a@here.test", "MAIL FROM:<> SIZE=9999", "MAIL FROM:<> X=Y", "RCPT TO:<no@here.test>",
    "RCPT TO:<later@here.test>", "RCPT TO:<a@there.test>", "NONSENSE", "RSET x", "", " NOOP", "X" * 3000, "DATA x",
]  # fmt: skip
ENDINGS = ["STARTTLS", "QUIT", "GET / HTTP/1.1", "BDAT -1"]

# Content in which newlines, dots and ends of other programs are frequent.
noise = st.lists(
    st.sampled_from([b"\r\n", b"\r", b"\n", b".", b"..", b"\r\n.", b"x", b"\0", b"\xff", b"text" * 20, b"QUIT\r\n"]),
    max_size=12,
).map(b"".join)


def chunk(octets: bytes, last: bool) -> bytes:
    """Return a BDAT command and its octets."""
    return b"BDAT %d%b\r\n%b" % (len(octets), b" LAST" if last else b"", octets)


opening = st.sampled_from(
    [b"", b"EHLO c\r\n", b"EHLO c\r\nMAIL FROM:<a@here.test>\r\nRCPT TO:<yes@here.test>\r\nRCPT TO:<no@here.test>\r\n"]
)
lines = st.sampled_from(GOOD * 2 + BAD).map(lambda line: line.encode() + b"\r\n")
data = noise.map(lambda content: b"DATA\r\n" + content + b"\r\n.\r\n")
chunks = st.builds(chunk, noise, st.booleans())
junk = st.binary(max_size=30)
ending = st.sampled_from(ENDINGS).map(lambda line: line.encode() + b"\r\n")
dialogues = st.lists(opening | lines | data | data | chunks | chunks | junk | ending, max_size=12).map(b"".join)
cuts = st.lists(st.integers(0, 1500), max_size=12)


def decide(question: Question) -> Reply:
    """Answer by the name of the recipient, and for a message by its size."""
    if isinstance(question, RcptReceived):
        return {"no": NO_SUCH_USER, "later": STORAGE_TIMEOUT}.get(question.envelope.rcpt_to[-1].user, RECIPIENT_OK)
    return OK if len(question.envelope.data) % 5 else STORAGE_TIMEOUT


def outcome(octets: bytes, cuts: object, newlines: Newlines, hangs_up: bool) -> tuple[bytes, list[str], list[bytes]]:
    """Return all that a dialogue shows of itself: what was said, the events, and the octets of the messages."""
    dialogue = Dialogue(
        starttls=True,
        validates=True,
        max_size=200,
        max_recipients=2,
        allowed_hosts=["here.test"],
        newlines=newlines,
        decide=decide,
    )
    dialogue.feed(octets, cuts)  # type: ignore[arg-type]
    if hangs_up:
        dialogue.hang_up()
    data = [bytes(event.envelope.data) for event in dialogue.events if isinstance(event, MessageReceived)]
    return dialogue.output, [repr(event) for event in dialogue.events], data


@given(dialogues, cuts, st.sampled_from([Newlines.REJECT, Newlines.NORMALIZE]), st.booleans())
@example(
    b"EHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<postmaster>\r\nBDAT 9\r\na\nb\nc\nd\ne", [110, 66], Newlines.REJECT, False
)
@settings(max_examples=500)
def test_the_reads_make_no_difference(octets: bytes, cuts: list[int], newlines: Newlines, hangs_up: bool) -> None:
    whole = outcome(octets, None, newlines, hangs_up)
    assert outcome(octets, cuts, newlines, hangs_up) == whole
    assert outcome(octets, range(len(octets)), newlines, hangs_up) == whole


@pytest.mark.parametrize(
    "state",
    [
        [],
        ["EHLO c"],
        ["EHLO c", "MAIL FROM:<>"],
        ["EHLO c", "MAIL FROM:<>", "RCPT TO:<a@b>"],
        ["EHLO c", "MAIL FROM:<>", "RCPT TO:<a@b>", "DATA"],
        ["EHLO c", "MAIL FROM:<>", "RCPT TO:<a@b>", "BDAT 100"],
        ["EHLO c", "STARTTLS"],
    ],
    ids=lambda state: state[-1].split(" ")[0] if state else "start",
)
@given(st.lists(junk | lines | noise, max_size=8))
@example([b"x" * 5000, b"x" * 5000])
def test_junk_never_raises_and_is_never_kept(state: list[str], reads: list[bytes]) -> None:
    dialogue = Dialogue(starttls=True).say("NOOP", *state)
    for read in reads:
        dialogue.feed(read)
        assert dialogue.session.unread <= MAX_COMMAND_LINE
    answers = dialogue.output.split(b"\r\n")
    assert answers.pop() == b""
    assert all(len(line) <= 510 and line.isascii() and line[:3].isdigit() for line in answers)


text_lines = st.lists(
    st.binary(max_size=12).map(lambda line: line.replace(b"\r", b"").replace(b"\n", b""))
    | st.sampled_from([b".", b".."]),
    max_size=12,
)


@given(text_lines, cuts)
def test_a_stuffed_message_comes_back_octet_for_octet(lines: list[bytes], cuts: list[int]) -> None:
    message = b"".join(line + b"\r\n" for line in lines)
    stuffed = b"".join((b"." + line if line.startswith(b".") else line) + b"\r\n" for line in lines)
    dialogue = Dialogue().say("EHLO c", "MAIL FROM:<>", "RCPT TO:<a@b>", "DATA").expect(..., "354")
    dialogue.feed(stuffed + b".\r\nNOOP\r\n", cuts).expect("250 2.0.0 OK: queued", "250 2.0.0 OK")
    assert [envelope.data for envelope in dialogue.envelopes] == [message]


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=8), st.booleans(), cuts)
def test_chunks_come_back_octet_for_octet(parts: list[bytes], closing: bool, cuts: list[int]) -> None:
    octets = b"".join(chunk(part, not closing and i == len(parts) - 1) for i, part in enumerate(parts))
    octets += chunk(b"", True) if closing else b""
    dialogue = Dialogue().say("EHLO c", "MAIL FROM:<> BODY=BINARYMIME", "RCPT TO:<a@b>")
    dialogue.feed(octets + b"NOOP\r\n", cuts).expect(..., "250 2.0.0 OK: queued", "250 2.0.0 OK")
    assert [envelope.data for envelope in dialogue.envelopes] == [b"".join(parts)]
