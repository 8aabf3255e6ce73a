"""The limits of a dialogue: lines, recipients, errors, commands that bring nothing, and messages."""

from __future__ import annotations

import pytest

from guerrilla.smtp.events import CommandRefused, MessageReceived, RcptReceived
from guerrilla.smtp.replies import LINE_TOO_LONG, NO_SUCH_USER, OK, RECIPIENT_OK, STORAGE_TIMEOUT, queued
from guerrilla.smtp.session import Session
from guerrilla.smtp.settings import (
    MAX_COMMAND_LINE,
    MAX_ERRORS,
    MAX_HELLOS,
    MAX_JUNK,
    MAX_MAILS,
    MAX_OVERSHOOT,
    MAX_UNRECOGNIZED,
    Settings,
)
from guerrilla.testing import Dialogue, OpenHouse

VERBS = ["HELO", "EHLO", "MAIL", "RCPT", "DATA", "BDAT", "RSET", "NOOP", "VRFY", "EXPN", "HELP", "QUIT", "STARTTLS"]


def in_transaction(**settings: object) -> Dialogue:
    """Return a dialogue after MAIL."""
    return Dialogue(**settings).say("EHLO c", "MAIL FROM:<>").expect(..., "250 2.1.0")  # type: ignore[arg-type]


# Lines.


@pytest.mark.parametrize("length", [MAX_COMMAND_LINE + 1, 4096, 65536, 1_000_000])
@pytest.mark.parametrize("size", [1000, 1 << 20])
def test_a_line_that_is_too_long_gets_one_reply_and_its_tail_is_no_command(length: int, size: int) -> None:
    line = b"NOOP " + b"x" * (length - 7) + b"\r\n"
    dialogue = Dialogue().feed(line + b"NOOP\r\n", range(0, len(line), size)).expect("500 5.5.2", "250 2.0.0")
    assert dialogue.events == [CommandRefused(b"", LINE_TOO_LONG)]


@pytest.mark.parametrize("length", [513, 1024, MAX_COMMAND_LINE])
def test_a_line_of_the_limit_is_read(length: int) -> None:
    Dialogue().feed(b"NOOP " + b"x" * (length - 7) + b"\r\n").expect("250 2.0.0")


def test_octets_without_a_line_end_cost_no_memory() -> None:
    dialogue = Dialogue()
    for _ in range(1000):
        dialogue.session.receive_data(b"x" * 100_000)
        assert dialogue.session.next_event() is None
        assert dialogue.session.unread <= MAX_COMMAND_LINE
    dialogue.feed(b"QUIT\r\nNOOP\r\n").expect("500 5.5.2", "250")


# Recipients.


def test_recipients_beyond_the_limit_are_put_off_and_the_others_stand() -> None:
    dialogue = in_transaction(max_recipients=100).say(*[f"RCPT TO:<u{i}@x>" for i in range(110)], "BDAT 0 LAST")
    dialogue.expect(*["250 2.1.5"] * 100, *["452 4.5.3"] * 10, "250 2.0.0")
    assert len(dialogue.envelopes[0].rcpt_to) == 100


def test_a_repeated_recipient_counts_each_time() -> None:
    dialogue = in_transaction(max_recipients=100).say(*["RCPT TO:<a@x>"] * 101, "BDAT 0 LAST")
    dialogue.expect(*["250 2.1.5"] * 100, "452 4.5.3", "250 2.0.0")
    assert len(dialogue.envelopes[0].rcpt_to) == 1


def test_far_too_many_recipients_wear_patience_out() -> None:
    dialogue = in_transaction(max_recipients=1).say(*["RCPT TO:<a@x>"] * (MAX_OVERSHOOT + MAX_ERRORS + 10))
    dialogue.expect("250 2.1.5", *["452 4.5.3"] * (MAX_OVERSHOOT + MAX_ERRORS), "421 4.7.0")
    assert dialogue.closed


def test_recipients_that_are_refused_wear_patience_out() -> None:
    dialogue = in_transaction(validates=True, decide=lambda question: NO_SUCH_USER)
    dialogue.say(*[f"RCPT TO:<u{i}@x>" for i in range(1000)]).expect(*["550 5.1.1"] * MAX_ERRORS, "421 4.7.0")


def test_recipients_that_cannot_be_asked_about_do_not() -> None:
    dialogue = in_transaction(validates=True, decide=lambda question: STORAGE_TIMEOUT)
    dialogue.say(*["RCPT TO:<a@x>"] * 1000).expect(*["451 4.3.0"] * 1000)


# Errors and junk.


def test_commands_that_are_none_are_borne_with_five_times() -> None:
    dialogue = Dialogue().say(*["NONSENSE"] * 2000).expect(*["500 5.5.1"] * MAX_UNRECOGNIZED, "421 4.7.0")
    assert dialogue.closed


def test_errors_are_borne_with_twenty_times() -> None:
    dialogue = Dialogue().say("EHLO c", *["MAIL x", "DATA"] * 1000)
    dialogue.expect("250-", ..., *["501 5.5.2", "503 5.5.1"] * (MAX_ERRORS // 2), "421 4.7.0")
    assert dialogue.closed


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("NOOP", "250 2"),
        ("RSET", "250 2"),
        ("VRFY a", "252 2"),
        ("EXPN a", "252 2"),
        ("HELP", "214 2"),
    ],
)
def test_commands_that_bring_nothing_are_borne_with_a_hundred_times(line: str, answer: str) -> None:
    dialogue = Dialogue().say(*[line] * 2000).expect(*[answer] * (MAX_JUNK + MAX_ERRORS), "421 4.7.0")
    assert dialogue.closed


def test_a_flood_of_ehlo_is_answered_in_bounded_octets() -> None:
    dialogue = Dialogue().say(*["EHLO c", "HELO c"] * 2500)
    assert dialogue.closed
    assert dialogue.output.count(b"mx.test Hello") == MAX_HELLOS + MAX_ERRORS


def test_a_client_that_brings_messages_may_say_much_else() -> None:
    message = ["MAIL FROM:<>", "RCPT TO:<a@x>", "BDAT 0 LAST", "DATA", "NONSENSE", "RSET", "NOOP"]
    dialogue = Dialogue().say("EHLO c", *message * 200, "QUIT").expect(..., "221")
    assert len(dialogue.envelopes) == 200


def test_messages_that_are_refused_renew_no_patience() -> None:
    message = ["MAIL FROM:<>", "RCPT TO:<a@x>", "DATA", "xx", "."]
    dialogue = Dialogue(max_size=3).say("EHLO c", *message * 100).expect(..., "552 5.3.4", "421 4.7.0")
    assert len([line for line in dialogue.output.split(b"\r\n") if line.startswith(b"552")]) == MAX_ERRORS


def test_the_answer_about_a_user_is_the_same_for_all() -> None:
    dialogue = Dialogue().say("VRFY root", "VRFY nobody-of-that-name", "EXPN staff")
    assert len(set(dialogue.output.split(b"\r\n")[1:-1])) == 1


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("argument", ["", " ", " x x", " " + "y" * 2000, " " + "y" * 100_000, "\t", " \0", " =", " <>"])
def test_each_command_gets_exactly_one_reply_whatever_its_argument(verb: str, argument: str) -> None:
    dialogue = Dialogue().say(verb.lower() + argument)
    answers = [line for line in dialogue.output.split(b"\r\n")[1:-1] if line[3:4] == b" "]
    assert len(answers) == 1


# Size.


def test_what_is_announced_as_too_large_is_refused_before_it_is_sent() -> None:
    Dialogue(max_size=1000).say("EHLO c", "MAIL FROM:<> SIZE=1001", "MAIL FROM:<> SIZE=99999999999999999999").expect(
        ..., "552 5.3.4", "552 5.3.4"
    )
    Dialogue(max_size=1000).say("EHLO c", "MAIL FROM:<> SIZE=1000").expect(..., "250 2.1.0")


def test_a_lie_about_the_size_does_not_help() -> None:
    dialogue = Dialogue(max_size=1000).say("EHLO c", "MAIL FROM:<> SIZE=100", "RCPT TO:<a@b>", "DATA")
    for _ in range(100):
        dialogue.feed(b"x" * 100_000 + b"\r\n").expect()
        assert dialogue.session.unread == 0
    dialogue.say(".", "NOOP").expect("552 5.3.4", "250 2.0.0")
    dialogue.say("MAIL FROM:<> SIZE=900", "RCPT TO:<a@b>", "DATA", "x", ".").expect(..., "250 2.0.0")


# Messages on one connection.


def test_a_connection_has_as_many_transactions_as_are_announced() -> None:
    session = Session(Settings("mx.test"), OpenHouse())
    session.receive_data(b"EHLO c\r\n")
    assert session.next_event() is None
    taken = 0
    while not session.closed:
        session.receive_data(b"MAIL FROM:<>\r\nRCPT TO:<a@b>\r\nBDAT 0 LAST\r\n")
        event = session.next_event()
        if isinstance(event, MessageReceived):
            session.data_to_send()
            session.reply(OK)
            taken += 1
    assert taken == MAX_MAILS
    assert session.data_to_send().endswith(b"421 4.7.0 Too many messages on one connection: connect again\r\n")


def test_a_burst_of_errors_ends_with_the_answer_to_the_question_before_it() -> None:
    dialogue = in_transaction(validates=True, decide=lambda question: None)
    dialogue.say("RCPT TO:<a@b>", *["NONSENSE"] * 10).expect()
    assert isinstance(dialogue.events[-1], RcptReceived)
    dialogue.answer(RECIPIENT_OK).expect("250 2.1.5", *["500 5.5.1"] * MAX_UNRECOGNIZED, "421 4.7.0")
    with pytest.raises(RuntimeError):
        dialogue.answer(queued("x"))
