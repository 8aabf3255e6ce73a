"""STARTTLS (RFC 3207): what was said in clear is forgotten, and what came in clear behind it is never read."""

from __future__ import annotations

import pytest

from guerrilla.envelope import TLSInfo
from guerrilla.smtp.events import Closed, TLSRequested
from guerrilla.smtp.settings import MAX_ERRORS
from guerrilla.testing import Dialogue

TLS = TLSInfo("TLSv1.3", "TLS_AES_128_GCM_SHA256")


@pytest.mark.parametrize("octet_by_octet", [False, True])
def test_what_came_in_clear_behind_starttls_is_dropped(octet_by_octet: bool) -> None:
    octets = b"EHLO c\r\nSTARTTLS\r\nNOOP x\r\nRSET\r\nMAIL FROM:<injected@x>"
    dialogue = Dialogue(starttls=True).feed(octets, range(len(octets)) if octet_by_octet else None)
    dialogue.expect(..., "250 HELP", "220 2.0.0")
    dialogue.feed(b"\r\nRSET\r\n").expect()
    assert dialogue.session.unread == 0
    assert dialogue.events == [TLSRequested()]
    dialogue.handshake().expect()
    dialogue.say("NOOP").expect("250 2.0.0")


def test_all_that_was_said_in_clear_is_forgotten() -> None:
    dialogue = Dialogue(starttls=True).say("EHLO c", "MAIL FROM:<a@x>", "RCPT TO:<b@y>", "STARTTLS").handshake(TLS)
    dialogue.talk("""
        C: DATA
        C: RCPT TO:<b@y>
        C: MAIL FROM:<a@x>
        C: EHLO again
        C: DATA
        C: MAIL FROM:<c@x>
        C: RCPT TO:<d@y>
        C: BDAT 0 LAST
        S: 503 5.5.1 Send HELO
        S: 503 5.5.1 Send MAIL
        S: 503 5.5.1 Send HELO
        S: 250-mx.test Hello
        S: ...
        S: 250 HELP
        S: 503 5.5.1 Send MAIL
        S: 250 2.1.0
        S: 250 2.1.5
        S: 250 2.0.0
    """)
    (envelope,) = dialogue.envelopes
    assert (str(envelope.mail_from), envelope.helo, envelope.tls) == ("c@x", "again", TLS)


def test_starttls_forgets_a_bdat_sequence_too() -> None:
    dialogue = Dialogue(starttls=True).say("EHLO c", "MAIL FROM:<a@x>", "RCPT TO:<b@y>").feed(b"BDAT 1\r\nx")
    dialogue.say("STARTTLS").expect("220 2.0.0").handshake()
    dialogue.say("EHLO c").feed(b"BDAT 1 LAST\r\ny").expect("503 5.5.1 Send MAIL")


def test_it_is_announced_and_obeyed_in_clear_only() -> None:
    dialogue = Dialogue(starttls=True).say("EHLO c").expect(..., "250-STARTTLS", "250 HELP")
    dialogue.say("STARTTLS").handshake().say("EHLO c")
    assert dialogue.output.count(b"STARTTLS") == 1
    dialogue.say("STARTTLS", "NOOP").expect("503 5.5.1 TLS is already", "250 2.0.0")


def test_a_connection_that_begins_with_tls_has_it_already() -> None:
    dialogue = Dialogue(starttls=True, tls=TLS).say(
        "EHLO c", "STARTTLS", "MAIL FROM:<>", "RCPT TO:<a@b>", "BDAT 0 LAST"
    )
    dialogue.expect(..., "250 HELP", "503 5.5.1 TLS is already", "250", "250", "250")
    assert b"STARTTLS" not in dialogue.output
    assert dialogue.envelopes[0].tls == TLS


def test_where_it_is_not_offered_it_is_refused() -> None:
    dialogue = Dialogue().say("EHLO c", "STARTTLS", "NOOP").expect(..., "502 5.5.1", "250 2.0.0")
    assert b"250-STARTTLS" not in dialogue.output


def test_an_argument_is_refused_and_nothing_is_dropped() -> None:
    Dialogue(starttls=True).say("EHLO c", "STARTTLS x", "NOOP").expect(..., "501 5.5.4", "250 2.0.0")


def test_inside_a_message_it_is_content() -> None:
    dialogue = Dialogue(starttls=True).say("EHLO c", "MAIL FROM:<>", "RCPT TO:<a@b>", "DATA", "STARTTLS", ".")
    assert [envelope.data for envelope in dialogue.envelopes] == [b"STARTTLS\r\n"]


def test_patience_is_not_renewed_by_tls() -> None:
    dialogue = Dialogue(starttls=True).say(*["MAIL x"] * (MAX_ERRORS - 1), "STARTTLS").handshake()
    assert dialogue.say("MAIL x").expect("503", "421 4.7.0").closed


def test_a_client_that_hangs_up_before_the_handshake_ends_the_dialogue() -> None:
    dialogue = Dialogue(starttls=True).say("STARTTLS").hang_up()
    assert [type(event) for event in dialogue.events] == [TLSRequested, Closed]


def test_draining_waits_for_the_handshake() -> None:
    dialogue = Dialogue(starttls=True).say("STARTTLS")
    dialogue.session.drain()
    dialogue.feed(b"x").expect()
    assert dialogue.handshake().expect("421 4.3.2").closed
