"""What may follow what in a dialogue, what each command answers, and what the driver of a session may do."""

from __future__ import annotations

from typing import Any

import pytest

from guerrilla.envelope import NULL_PATH, Address, Envelope
from guerrilla.smtp.events import Closed, CommandRefused, MessageReceived, RcptReceived
from guerrilla.smtp.replies import (
    LOCAL_ERROR,
    NO_SUCH_USER,
    RECIPIENT_OK,
    SHUTTING_DOWN,
    START_MAIL,
    STORAGE_TIMEOUT,
    TIMED_OUT,
    UNRECOGNIZED,
    Reply,
    queued,
)
from guerrilla.testing import Dialogue, OpenHouse
from guerrilla.testing.dialogue import Question


def greeted(**settings: object) -> Dialogue:
    """Return a dialogue after EHLO."""
    return Dialogue(**settings).say("EHLO client.test").expect("250-", ...)  # type: ignore[arg-type]


def with_recipient(**settings: object) -> Dialogue:
    """Return a dialogue after an accepted RCPT."""
    return greeted(**settings).say("MAIL FROM:<a@x.test>", "RCPT TO:<b@y.test>").expect("250 2.1.0", "250 2.1.5")


def test_ehlo_announces_what_is_obeyed() -> None:
    Dialogue(max_size=1000, max_recipients=7, starttls=True).talk("""
        C: EHLO client.test
        S: 250-mx.test Hello
        S: 250-PIPELINING
        S: 250-SIZE 1000
        S: 250-8BITMIME
        S: 250-BINARYMIME
        S: 250-CHUNKING
        S: 250-SMTPUTF8
        S: 250-ENHANCEDSTATUSCODES
        S: 250-LIMITS RCPTMAX=7 MAILMAX=100000
        S: 250-STARTTLS
        S: 250 HELP
    """)


def test_helo_announces_nothing_and_the_envelope_knows_which_it_was() -> None:
    dialogue = Dialogue().talk("""
        C: HELO old.test
        S: 250 mx.test Hello
        C: MAIL FROM:<>
        C: RCPT TO:<a@b>
        C: BDAT 0 LAST
        C: EHLO new.test
        C: MAIL FROM:<>
        C: RCPT TO:<a@b>
        C: BDAT 0 LAST
        S: ...
    """)
    assert [(envelope.helo, envelope.esmtp) for envelope in dialogue.envelopes] == [
        ("old.test", False),
        ("new.test", True),
    ]


def test_the_envelope_holds_what_mail_has_said() -> None:
    dialogue = greeted().say(
        "MAIL FROM:<ü@x.test> BODY=8bitmime SMTPUTF8 SIZE=3", "RCPT TO:<ä@y.test>", "DATA", "x", "."
    )
    (envelope,) = dialogue.envelopes
    assert (envelope.body_type, envelope.smtputf8, envelope.tls) == ("8BITMIME", True, None)
    assert (str(envelope.mail_from), [str(to) for to in envelope.rcpt_to]) == ("ü@x.test", ["ä@y.test"])


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("RCPT TO:<b@y.test>", "503 5.5.1 Send MAIL"),
        ("DATA", "503 5.5.1 Send HELO"),
        ("MAIL FROM:<a@x.test>", "503 5.5.1 Send HELO"),
        ("NOOP", "250 2.0.0"),
        ("RSET", "250 2.0.0"),
        ("HELP", "214 2.0.0"),
        ("VRFY a", "252 2.5.0"),
        ("EXPN a", "252 2.5.0"),
    ],
)
def test_before_helo_there_is_no_mail(line: str, answer: str) -> None:
    Dialogue().say(line).expect(answer)


@pytest.mark.parametrize(
    ("lines", "answer"),
    [
        (["RCPT TO:<b@y.test>"], "503 5.5.1 Send MAIL"),
        (["DATA"], "503 5.5.1 Send MAIL"),
        (["MAIL FROM:<a@x.test>", "DATA"], "503 5.5.1 No valid recipients"),
        (["MAIL FROM:<a@x.test>", "MAIL FROM:<c@x.test>"], "503 5.5.1 Nested"),
        (["MAIL FROM:<>", "MAIL FROM:<c@x.test>"], "503 5.5.1 Nested"),
        (["MAIL FROM:<>", "RCPT TO:<a@b>", "MAIL FROM:<c@x.test>"], "503 5.5.1 Nested"),
        (["MAIL FROM:<>", "RCPT TO:<a@b>", "DATA", ".", "DATA"], "503 5.5.1 Send MAIL"),
        (["MAIL FROM:<>", "RCPT TO:<a@b>", "DATA", ".", "RCPT TO:<a@b>"], "503 5.5.1 Send MAIL"),
        (["MAIL FROM:<>", "RCPT TO:<a@b>", "RSET", "RCPT TO:<a@b>"], "503 5.5.1 Send MAIL"),
        (["MAIL FROM:<>", "RCPT TO:<a@b>", "RSET", "DATA"], "503 5.5.1 Send MAIL"),
        (["MAIL FROM:<>", "RCPT TO:<a@b>", "EHLO x", "DATA"], "503 5.5.1 Send MAIL"),
        (["MAIL FROM:<>", "RCPT TO:<a@b>", "HELO x", "DATA"], "503 5.5.1 Send MAIL"),
        (["MAIL FROM:<>", "RCPT TO:<a@b>", "DATA x"], "501 5.5.4"),
    ],
)
def test_what_comes_out_of_sequence_is_refused(lines: list[str], answer: str) -> None:
    greeted().say(*lines).expect(..., answer)


@pytest.mark.parametrize("line", ["EHLO", "HELO a b", "NOOP", "VRFY x", "HELP", "MAIL FROM:<>", "RCPT TO:<", "RSET x"])
def test_a_transaction_survives_what_does_not_concern_it(line: str) -> None:
    dialogue = with_recipient().say(line).say("DATA", ".").expect("354", "250 2.0.0")
    assert [str(envelope.mail_from) for envelope in dialogue.envelopes] == ["a@x.test"]


def test_a_second_message_holds_nothing_of_the_first() -> None:
    dialogue = with_recipient().say("DATA", "one", ".", "MAIL FROM:<> SMTPUTF8", "RCPT TO:<c@y.test>", "DATA", ".")
    first, second = dialogue.envelopes
    assert (str(first.mail_from), first.rcpt_to, first.data) == ("a@x.test", [Address("b", "y.test")], b"one\r\n")
    assert (second.mail_from, second.rcpt_to, second.data) == (NULL_PATH, [Address("c", "y.test")], b"")
    assert first.values is not second.values


def test_a_client_that_drops_leaves_nothing_for_the_next() -> None:
    with_recipient().hang_up()
    Dialogue().say("DATA").expect("503")
    Dialogue().say("EHLO b", "DATA").expect(..., "503 5.5.1 Send MAIL")


def test_a_repeated_recipient_gets_the_message_once() -> None:
    dialogue = with_recipient().say("RCPT TO:<b@Y.TEST>", "RCPT TO:<c@y.test>", "DATA", ".")
    dialogue.expect("250 2.1.5", "250 2.1.5", "354", "250")
    assert dialogue.envelopes[0].rcpt_to == [Address("b", "y.test"), Address("c", "y.test")]


def test_postmaster_needs_no_domain_and_its_namesakes_do() -> None:
    dialogue = greeted(allowed_hosts=["y.test"]).talk("""
        C: MAIL FROM:<>
        C: RCPT TO:<Postmaster>
        C: RCPT TO:<postmaster-news@y.test>
        C: RCPT TO:<postmaster-news>
        C: RCPT TO:<postmaster@z.test>
        C: BDAT 0 LAST
        S: 250 2.1.0
        S: 250 2.1.5
        S: 250 2.1.5
        S: 501 5.1.3
        S: 550 5.7.1
        S: 250 2.0.0
    """)
    assert [str(to) for to in dialogue.envelopes[0].rcpt_to] == ["postmaster", "postmaster-news@y.test"]


def test_mail_for_others_is_refused_for_good() -> None:
    dialogue = greeted(allowed_hosts=["y.test"]).say("MAIL FROM:<>", "RCPT TO:<a@x.test>", "DATA")
    dialogue.expect("250", "550 5.7.1 Relay", "503 5.5.1 No valid")
    event = dialogue.events[0]
    assert isinstance(event, CommandRefused)
    assert event.line == b"RCPT TO:<a@x.test>"
    assert event.reply.code == 550


def test_without_room_mail_is_put_off() -> None:
    class Full(OpenHouse):
        def has_room(self) -> bool:
            return False

    greeted(house=Full()).say("MAIL FROM:<>", "RCPT TO:<a@b>").expect("452 4.3.1", "503 5.5.1")


@pytest.mark.parametrize("verb", ["NOOP", "noop", "NoOp"])
def test_verbs_are_taken_in_any_case_with_spaces_behind(verb: str) -> None:
    Dialogue().say(verb, f"{verb} ", f"{verb}   x  ").expect("250 2.0.0", "250 2.0.0", "250 2.0.0")


@pytest.mark.parametrize(
    "line",
    ["", " NOOP", "NOOP\t", "NOOPX", "QUITnow", "XCLIENT", "XCLIENT ADDR=1.2.3.4", "ﬀNOOP", "STARTTLſ", "NOOP\0"],
)
def test_what_is_no_command_is_not_executed(line: str) -> None:
    dialogue = Dialogue().say(line).expect("500 5.5.1")
    assert dialogue.events == [CommandRefused(line.encode(), UNRECOGNIZED)]


@pytest.mark.parametrize("line", ["RSET x", "QUIT x", "VRFY", "EXPN", "EHLO", "HELO", "MAIL", "RCPT", "EHLO a b"])
def test_a_wrong_number_of_arguments_is_an_error_of_syntax(line: str) -> None:
    greeted().say("MAIL FROM:<>" if line == "RCPT" else "NOOP", line).expect("250", "501 5.5")


@pytest.mark.parametrize(
    "octets",
    [b"NOOP\n", b"EHLO x\n", b"NOOP\rNOOP\r\n", b"NOOP\r\r\n", b"\n", b"\r\r\n", b"MAIL FROM:<a\rBcc: v@x>\r\n"],
)
def test_a_line_that_does_not_end_as_it_should_is_not_executed(octets: bytes) -> None:
    dialogue = Dialogue().feed(octets, range(len(octets))).expect("500 5.5.2")
    assert [type(event) for event in dialogue.events] == [CommandRefused]
    dialogue.say("MAIL FROM:<>").expect("503")


@pytest.mark.parametrize("octets", [b"EHLO a\x07b\r\n", b"HELO \x1b[2J\0\r\n", b"EHLO \xff\xfe\r\n", b"EHLO a\x85\r\n"])
def test_a_name_with_control_characters_is_refused(octets: bytes) -> None:
    dialogue = Dialogue().feed(octets).expect("501 5.5.2")
    dialogue.say("MAIL FROM:<>").expect("503")


@pytest.mark.parametrize(
    "head",
    ["GET / HTTP/1.1", "post / HTTP/1.1", "CONNECT mx.test:25 HTTP/1.1", "Host: x", "Content-Type: text/plain", "X:"],
)
def test_who_does_not_speak_smtp_is_sent_away_before_his_text_is_read(head: str) -> None:
    dialogue = Dialogue().say(head, "EHLO x", "MAIL FROM:<a@x>", "RCPT TO:<b@x>").expect("554 5.7.0")
    assert dialogue.closed


def test_pipelined_commands_are_answered_in_one_write() -> None:
    greeted().talk("""
        C: MAIL FROM:<>
        C: RCPT TO:<a@b>
        C: DATA
        C: one
        C: .
        C: MAIL FROM:<>
        C: RCPT TO:<a@b>
        C: BDAT 0 LAST
        C: QUIT
        S: 250 2.1.0
        S: 250 2.1.5
        S: 354
        S: 250 2.0.0
        S: 250 2.1.0
        S: 250 2.1.5
        S: 250 2.0.0
        S: 221 2.0.0
    """)


def test_after_quit_nothing_is_read() -> None:
    dialogue = with_recipient().say("QUIT", "DATA", "NOOP").expect("221 2.0.0")
    assert dialogue.say("NOOP").expect().closed
    assert dialogue.session.unread == 0
    assert dialogue.session.closed
    assert dialogue.session.next_event() is None


# Questions.


def answers(*replies: Reply) -> list[Reply]:
    """Return the replies in the order in which they are to be given, last first."""
    return list(reversed(replies))


def test_nothing_is_parsed_while_an_answer_is_out() -> None:
    dialogue = greeted(validates=True, decide=lambda question: None)
    dialogue.say("MAIL FROM:<>", "RCPT TO:<a@b>", "DATA", "x", ".", "QUIT").expect("250 2.1.0")
    assert dialogue.session.asking
    assert dialogue.session.unread == len(b"DATA\r\nx\r\n.\r\nQUIT\r\n")
    assert not dialogue.session.in_content
    dialogue.hang_up()
    assert not dialogue.closed, "what was sent before the end is worked off"
    dialogue.answer(RECIPIENT_OK).expect("250 2.1.5", "354")
    assert dialogue.session.asking
    dialogue.answer(queued("x")).expect("250 2.0.0 OK: queued as x", "221")
    assert [type(event) for event in dialogue.events] == [RcptReceived, MessageReceived, Closed]


def test_a_recipient_that_was_refused_is_asked_about_again_and_one_that_was_taken_is_not() -> None:
    given = answers(NO_SUCH_USER, RECIPIENT_OK, NO_SUCH_USER, RECIPIENT_OK, RECIPIENT_OK, queued("x"))
    asked: list[str] = []

    def decide(question: Question) -> Reply:
        asked.append(question.envelope.rcpt_to[-1].user)
        return given.pop()

    dialogue = greeted(validates=True, decide=decide).say("MAIL FROM:<>")
    dialogue.say(*(f"RCPT TO:<{user}@y.test>" for user in "aaabbbcabc"), "DATA", ".")
    assert "".join(asked) == "aabbcc"  # the last time about the message
    assert [to.user for to in dialogue.envelopes[0].rcpt_to] == ["a", "b", "c"]


def test_a_refused_recipient_is_none_and_may_be_asked_about_again() -> None:
    given = answers(NO_SUCH_USER, STORAGE_TIMEOUT, RECIPIENT_OK, queued("x"))
    dialogue = greeted(validates=True, decide=lambda question: given.pop(), max_recipients=1).talk("""
        C: MAIL FROM:<>
        C: RCPT TO:<a@b>
        C: DATA
        C: RCPT TO:<a@b>
        C: RCPT TO:<a@b>
        C: DATA
        C: .
        S: 250 2.1.0
        S: 550 5.1.1
        S: 503 5.5.1 No valid
        S: 451 4.3.0
        S: 250 2.1.5
        S: 354
        S: 250 2.0.0
    """)
    assert dialogue.envelopes[0].rcpt_to == [Address("a", "b")]


@pytest.mark.parametrize("reply", [LOCAL_ERROR, Reply(554, "5.7.1", "No"), STORAGE_TIMEOUT])
def test_a_message_that_is_not_taken_ends_its_transaction(reply: Reply) -> None:
    dialogue = with_recipient(decide=lambda question: reply).say("DATA", ".", "DATA")
    dialogue.expect("354", str(reply), "503 5.5.1 Send MAIL")
    assert dialogue.envelopes == []


def test_go_on_is_no_answer_to_a_question() -> None:
    with_recipient(decide=lambda question: START_MAIL).say("DATA", ".", "NOOP").expect("354", "451 4.3.0", "250")


def test_a_421_ends_the_dialogue() -> None:
    dialogue = with_recipient(decide=lambda question: SHUTTING_DOWN).say("DATA", ".", "NOOP").expect("354", "421 4.3.2")
    assert dialogue.closed


def test_who_answers_what_was_not_asked_made_a_mistake() -> None:
    for dialogue in (Dialogue(), with_recipient(), with_recipient().say("DATA")):
        with pytest.raises(RuntimeError, match="no event waits"):
            dialogue.session.reply(LOCAL_ERROR)
    with pytest.raises(RuntimeError, match="STARTTLS"):
        Dialogue().handshake()


def test_what_a_processor_writes_on_a_refused_envelope_reaches_no_other() -> None:
    def decide(question: Question) -> Reply:
        assert question.envelope.values == {}
        question.envelope.values["seen"] = True
        return LOCAL_ERROR

    dialogue = with_recipient(decide=decide)
    dialogue.say("DATA", ".", "MAIL FROM:<>", "RCPT TO:<a@b>", "DATA", ".").expect("354", "451", ..., "451")


# The driver ends it.


@pytest.mark.parametrize(
    "lines", [[], ["EHLO x"], ["EHLO x", "MAIL FROM:<>"], ["EHLO x", "MAIL FROM:<>", "RCPT TO:<a@b>", "DATA", "x"]]
)
def test_the_driver_can_close_at_any_moment_with_a_last_word(lines: list[str]) -> None:
    dialogue = Dialogue().say(*lines) if lines else Dialogue()
    dialogue.session.close(TIMED_OUT)
    dialogue.session.close(SHUTTING_DOWN)
    assert dialogue.session.data_to_send() == TIMED_OUT.wire
    event = dialogue.session.next_event()
    assert isinstance(event, Closed)
    assert event.reply == TIMED_OUT
    assert dialogue.session.next_event() is None
    assert dialogue.session.data_to_send() == b""


def test_a_client_that_hangs_up_in_the_middle_of_a_message_has_sent_none() -> None:
    for tail in (b"", b"x", b"x\r\n.", b"x\r\n.\r", b"BDAT"):
        dialogue = with_recipient().say("DATA").feed(tail or b"\r\n").hang_up()
        assert dialogue.closed
        assert dialogue.envelopes == []
    dialogue = with_recipient().feed(b"BDAT 5 LAST\r\nfour").hang_up()
    assert dialogue.closed
    assert dialogue.envelopes == []


def test_a_whole_message_before_the_end_is_stored_and_answered() -> None:
    dialogue = with_recipient(decide=lambda question: None).say("DATA", "x", ".").hang_up()
    dialogue.answer(queued("x")).expect("250 2.0.0")
    assert dialogue.closed
    assert len(dialogue.envelopes) == 1


def test_draining_ends_an_idle_dialogue_at_once() -> None:
    dialogue = greeted()
    dialogue.session.drain()
    assert dialogue.say("NOOP").expect("421 4.3.2").closed


def test_draining_lets_a_transaction_come_to_its_end_and_no_other_begin() -> None:
    dialogue = with_recipient()
    dialogue.session.drain()
    dialogue.say("RCPT TO:<c@y.test>").expect("250 2.1.5")
    dialogue.say("DATA", ".", "MAIL FROM:<>").expect("354", "250 2.0.0", "421 4.3.2")
    assert dialogue.closed
    assert len(dialogue.envelopes) == 1


def test_the_driver_knows_when_content_is_coming() -> None:
    dialogue = with_recipient()
    parts = [
        b"NOOP\r\n",
        b"DATA\r\n",
        b".\r\n",
        b"MAIL FROM:<>\r\nRCPT TO:<a@b>\r\n",
        b"BDAT 2\r\nx",
        b"y",
        b"RSET\r\n",
    ]
    seen = [dialogue.feed(part).session.in_content for part in parts]
    assert seen == [False, True, False, False, True, True, False]


def test_two_dialogues_share_nothing() -> None:
    one, other = with_recipient(), greeted()
    other.say("DATA").expect("503")
    one.say("DATA", ".").expect("354", "250")
    assert other.envelopes == []
    assert isinstance(one.envelopes[0], Envelope)


@pytest.mark.parametrize("refused", ["", "one", "two"])
def test_a_recipient_that_a_processor_has_renamed_is_known_by_what_the_client_called_it(refused: str) -> None:
    """Named twice, it gets the message once; refused and named again, it is asked for anew, never said to be kept."""
    asked = []

    def rename(question: Question) -> Reply:
        if isinstance(question, MessageReceived):
            return queued("x")
        recipients = question.envelope.rcpt_to
        name = recipients[-1].user
        asked.append(name)
        recipients[-1] = Address(f"real-{name}", "y.test")
        return NO_SUCH_USER if name == refused else RECIPIENT_OK

    names = ["one", "one", "two", "two", "one"]
    dialogue = greeted(validates=True, decide=rename).say("MAIL FROM:<a@x.test>").expect("250")
    for name in names:
        dialogue.say(f"RCPT TO:<{name}@y.test>").expect("550" if name == refused else "250")
    dialogue.say("DATA", ".").expect("354", "250")
    assert [recipient.user for recipient in dialogue.envelopes[0].rcpt_to] == [
        f"real-{name}" for name in ("one", "two") if name != refused
    ]
    assert len(asked) == {"": 2, "one": 4, "two": 3}[refused]


@pytest.mark.parametrize("again", [list, tuple])
def test_a_processor_may_strike_out_itself_whom_it_refuses(again: type[Any]) -> None:
    """Else the one before would be struck out too, which was told 250."""

    def strike_out(question: Question) -> Reply:
        if isinstance(question, MessageReceived):
            return queued("x")
        envelope: Any = question.envelope
        refused = envelope.rcpt_to[-1].user == "two"
        envelope.rcpt_to = again(envelope.rcpt_to[:-1] if refused else envelope.rcpt_to)
        return NO_SUCH_USER if refused else RECIPIENT_OK

    dialogue = greeted(validates=True, decide=strike_out).say("MAIL FROM:<a@x.test>").expect("250")
    for name, code in (("two", "550"), ("one", "250"), ("two", "550"), ("three", "250")):
        dialogue.say(f"RCPT TO:<{name}@y.test>").expect(code)
    dialogue.say("DATA", ".").expect("354", "250")
    assert [recipient.user for recipient in dialogue.envelopes[0].rcpt_to] == ["one", "three"]


def test_an_event_that_asks_is_a_value_a_driver_may_keep_in_a_set() -> None:
    first, second = Envelope(), Envelope()
    events = {kind(envelope) for kind in (RcptReceived, MessageReceived) for envelope in (first, second, first)}
    assert len(events) == 4
    assert RcptReceived(first) in events
