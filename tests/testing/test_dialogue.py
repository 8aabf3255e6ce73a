"""The playbook: it plays what is written, keeps what was taken, and shows where a dialogue went another way."""

from __future__ import annotations

import mmap

import pytest

from guerrilla.envelope import Address, Envelope, TLSInfo
from guerrilla.smtp.events import Closed, CommandRefused, MessageReceived, MessageRefused, RcptReceived
from guerrilla.smtp.replies import NO_SUCH_USER, RECIPIENT_OK, Reply, queued
from guerrilla.testing import Dialogue, OpenHouse
from guerrilla.testing.dialogue import Question

WHOLE = """
    C: EHLO client.test
    S: 250-mx.test Hello
    S: ...
    S: 250 HELP

    C: MAIL FROM:<a@example.com>
    C: RCPT TO:<b@example.com>
    S: 250 2.1.0
    S: 250 2.1.5
    C: DATA
    S: 354
    C: Subject: Hello
    C:
    C: ..
    C: .
    S: 250 2.0.0 ... as test
    C: QUIT
    S: 221
"""


def test_a_whole_dialogue_is_played_and_its_message_kept() -> None:
    dialogue = Dialogue().talk(WHOLE)
    (envelope,) = dialogue.envelopes
    assert envelope.data == b"Subject: Hello\r\n\r\n.\r\n"
    assert str(envelope.mail_from) == "a@example.com"
    assert envelope.rcpt_to == [Address("b", "example.com")]
    assert (envelope.remote_ip, envelope.remote_port, envelope.server) == ("192.0.2.1", 4321, "test")
    assert [type(event) for event in dialogue.events] == [MessageReceived, Closed]
    assert dialogue.closed
    assert dialogue.output.startswith(b"220 mx.test ESMTP guerrilla\r\n250-mx.test Hello\r\n")


def test_the_greeting_can_be_expected_and_need_not_be() -> None:
    Dialogue(host_name="h").expect("220 h ESMTP guerrilla").say("NOOP").expect("250")
    Dialogue().say("NOOP").expect("250")
    assert not Dialogue().closed


@pytest.mark.parametrize(
    "lines",
    [
        ("250 2.0.0 OK",),
        ("250 2.0.0",),
        ("250 ... OK",),
        ("... OK",),
        (...,),
        (..., "250"),
        ("250", ...),
    ],
)
def test_a_line_is_matched_by_its_beginning_and_dots_stand_for_the_rest(lines: tuple[str, ...]) -> None:
    Dialogue().say("NOOP").expect(*lines)


@pytest.mark.parametrize(
    "lines", [(), ("250", "250"), ("251",), ("250 ... KO",), ("50 2.0.0 OK",), (..., "250", "250")]
)
def test_what_was_not_said_fails(lines: tuple[str, ...]) -> None:
    with pytest.raises(AssertionError, match="expected"):
        Dialogue().say("NOOP").expect(*lines)


def test_a_failure_shows_the_dialogue_and_where_it_parts() -> None:
    dialogue = Dialogue().say("NOOP").expect("250")
    with pytest.raises(AssertionError) as failure:
        dialogue.say("NOOP", "DATA \x07" + "x" * 200, "NOOP").expect("250 2.0.0", "354", ...)
    assert str(failure.value).split("\n") == [
        "the server was expected to say what is marked with -, and said what is marked with +",
        "  <-- 220 mx.test ESMTP guerrilla",
        "  --> NOOP",
        "  <-- 250 2.0.0 OK",
        "  --> NOOP",
        "  --> DATA \x07" + "x" * 94 + " … (206 octets)",
        "  --> NOOP",
        "  <-- 250 2.0.0 OK",
        "- <-- 354",
        "- <-- ...",
        "+ <-- 503 5.5.1 Send HELO or EHLO first",
        "+ <-- 250 2.0.0 OK",
    ]


def test_a_script_that_leaves_a_reply_out_fails() -> None:
    with pytest.raises(AssertionError, match=r"\+ <-- 250 2\.0\.0 OK"):
        Dialogue().talk("""
            C: NOOP
            C: NOOP
            S: 250
        """)
    with pytest.raises(AssertionError, match=r"\+ <-- 250 2\.0\.0 OK"):
        Dialogue().talk("C: NOOP")


def test_a_script_of_anything_else_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="'X: NOOP'"):
        Dialogue().talk("X: NOOP")


def test_octets_are_cut_where_it_is_said() -> None:
    whole = Dialogue().feed(b"NOOP\r\nQUIT\r\n")
    for cuts in ([3], [5], range(20), [-1, 0, 99]):
        assert Dialogue().feed(b"NOOP\r\nQUIT\r\n", cuts).output == whole.output
    assert Dialogue().feed(b"NO", [1]).say("OP").expect("250").output.endswith(b"OK\r\n")


def test_a_callable_decides_what_is_answered() -> None:
    asked: list[str] = []

    def decide(question: Question) -> Reply:
        asked.append(str(question.envelope.rcpt_to[-1]))
        if isinstance(question, RcptReceived):
            return NO_SUCH_USER if question.envelope.rcpt_to[-1].user == "no" else RECIPIENT_OK
        return Reply(554, "5.7.1", "No")

    dialogue = Dialogue(validates=True, decide=decide).talk("""
        C: EHLO c
        S: ...
        C: MAIL FROM:<>
        C: RCPT TO:<no@x>
        C: RCPT TO:<yes@x>
        C: DATA
        S: 250 2.1.0
        S: 550 5.1.1
        S: 250 2.1.5
        S: 354
        C: .
        S: 554 5.7.1 No
    """)
    assert asked == ["no@x", "yes@x", "yes@x"]
    assert dialogue.envelopes == []
    first, second, third = dialogue.events
    assert isinstance(first, RcptReceived)
    assert isinstance(second, RcptReceived)
    assert isinstance(third, MessageReceived)
    assert first.envelope.rcpt_to == [Address("no", "x")], "an event keeps the envelope as it was then"
    assert second.envelope.rcpt_to == third.envelope.rcpt_to == [Address("yes", "x")]


def test_a_question_can_be_left_open_and_answered_later() -> None:
    dialogue = Dialogue(decide=lambda question: None)
    dialogue.say("EHLO c", "MAIL FROM:<>", "RCPT TO:<a@b>", "BDAT 2 LAST", "").expect(..., "250 2.1.0", "250 2.1.5")
    dialogue.say("NOOP").expect()
    assert dialogue.envelopes == []
    dialogue.answer(queued("x")).expect("250 2.0.0 OK: queued as x", "250 2.0.0")
    assert [envelope.data for envelope in dialogue.envelopes] == [b"\r\n"]
    with pytest.raises(RuntimeError):
        dialogue.answer(queued("x"))


def test_hosts_and_limits_are_those_that_are_given() -> None:
    dialogue = Dialogue(max_size=7, max_recipients=1, allowed_hosts=["x.test"], tls=TLSInfo("TLSv1.3", "c"))
    dialogue.say("EHLO c").expect(..., "250-SIZE 7", ..., "250-LIMITS RCPTMAX=1", ...)
    dialogue.say("MAIL FROM:<>", "RCPT TO:<a@y.test>", "RCPT TO:<a@x.test>", "RCPT TO:<b@x.test>")
    dialogue.expect("250", "550 5.7.1", "250", "452 4.5.3")
    dialogue.say("DATA", "1234567", ".").expect("354", "552 5.3.4")
    assert [type(event) for event in dialogue.events] == [CommandRefused, MessageRefused]


def test_a_house_takes_the_place_of_the_hosts() -> None:
    class Full(OpenHouse):
        def has_room(self) -> bool:
            return False

    Dialogue(house=Full()).say("EHLO c", "MAIL FROM:<>").expect(..., "452 4.3.1")


def test_tls_is_established_when_it_was_asked_for() -> None:
    dialogue = Dialogue(starttls=True).say("EHLO c").expect(..., "250-STARTTLS", "250 HELP")
    dialogue.say("STARTTLS").expect("220 2.0.0").handshake().say("STARTTLS").expect("503 5.5.1")
    with pytest.raises(RuntimeError):
        dialogue.handshake()


def test_a_client_that_hangs_up_ends_the_dialogue() -> None:
    assert Dialogue().feed(b"NOOP\r\nNO").hang_up().closed


def test_a_kept_message_outlives_the_body_that_it_came_in() -> None:
    class Mapped:
        def __init__(self) -> None:
            self.map = mmap.mmap(-1, 3)

        def write(self, octets: bytes) -> None:
            self.map.write(octets)

        def finish(self) -> mmap.mmap:
            return self.map

        def discard(self) -> None:
            self.map.close()

    class House(OpenHouse):
        def open_body(self) -> Mapped:
            return Mapped()

    dialogue = Dialogue(house=House()).say("EHLO c", "MAIL FROM:<>", "RCPT TO:<a@b>").feed(b"BDAT 3 LAST\r\nabc")
    (envelope,) = dialogue.envelopes
    assert envelope.data == b"abc"
    assert isinstance(envelope, Envelope)
