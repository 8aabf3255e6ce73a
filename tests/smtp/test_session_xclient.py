"""XCLIENT: a trusted proxy says for whom it speaks, once; from anybody else it is no command."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guerrilla.envelope import Envelope, TLSInfo
from guerrilla.smtp.commands import CommandError
from guerrilla.smtp.events import CommandRefused, Introduced
from guerrilla.smtp.replies import TOO_MANY_CLIENTS_FROM_ADDRESS
from guerrilla.smtp.xclient import XClient, parse_xclient
from guerrilla.testing.dialogue import Dialogue

OFFER = "250-XCLIENT NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT"


def proxied() -> Dialogue:
    return Dialogue(xclient=True, trusted=True)


def message(dialogue: Dialogue) -> Envelope:
    """Send a message, and return its envelope."""
    dialogue.say("MAIL FROM:<>", "RCPT TO:<a@b>", "DATA", ".").expect("250", "250", "354", "250")
    return dialogue.envelopes[-1]


def test_the_client_is_who_the_proxy_says_and_the_dialogue_begins_anew() -> None:
    dialogue = proxied()
    dialogue.talk(f"""
        C: EHLO proxy.test
        S: 250-
        S: ...
        S: {OFFER}
        S: 250 HELP
        C: XCLIENT ADDR=198.51.100.7 NAME=client.test PORT=4711
        S: 220 mx.test ESMTP
        C: MAIL FROM:<>
        S: 503 5.5.1 Send HELO
        C: HELO client.test
        S: 250 mx.test Hello
    """)
    envelope = message(dialogue)
    assert (envelope.remote_ip, envelope.remote_port) == ("198.51.100.7", 4711)
    assert (envelope.helo, envelope.esmtp) == ("client.test", False)
    assert [event for event in dialogue.events if isinstance(event, Introduced)] == [Introduced("198.51.100.7", 4711)]


def test_without_a_port_it_is_not_known() -> None:
    dialogue = proxied().say("XCLIENT ADDR=IPV6:2001:DB8::0:1", "HELO c")
    envelope = message(dialogue)
    assert (envelope.remote_ip, envelope.remote_port) == ("2001:db8::1", 0)


def test_a_port_alone_changes_the_port_alone() -> None:
    envelope = message(proxied().say("XCLIENT PORT=1", "HELO c"))
    assert (envelope.remote_ip, envelope.remote_port) == ("192.0.2.1", 1)


def test_an_address_that_the_proxy_does_not_know_is_its_own() -> None:
    envelope = message(proxied().say("XCLIENT ADDR=[UNAVAILABLE] NAME=[TEMPUNAVAIL] HELO=[unavailable]", "HELO c"))
    assert (envelope.remote_ip, envelope.remote_port) == ("192.0.2.1", 4321)


@pytest.mark.parametrize(("protocol", "esmtp"), [("ESMTP", True), ("smtp", False), ("[UNAVAILABLE]", False)])
def test_a_greeting_that_the_proxy_passes_on_is_one(protocol: str, esmtp: bool) -> None:
    envelope = message(proxied().say(f"xclient helo=client.test Proto={protocol}"))
    assert (envelope.helo, envelope.esmtp) == ("client.test", esmtp)


def test_it_is_taken_once_and_offered_no_more() -> None:
    dialogue = proxied().say("XCLIENT ADDR=198.51.100.7", "XCLIENT ADDR=198.51.100.8")
    dialogue.expect("220", "503 5.5.1 XCLIENT is taken once only")
    dialogue.say("EHLO c")
    assert OFFER.encode() not in dialogue.output
    assert message(dialogue).remote_ip == "198.51.100.7"


def test_after_a_syntax_error_it_may_be_tried_again() -> None:
    dialogue = proxied().say("XCLIENT ADDR=nowhere", "XCLIENT ADDR=198.51.100.7", "HELO c")
    dialogue.expect("501 5.5.4", "220", "250")
    assert message(dialogue).remote_ip == "198.51.100.7"


def test_in_a_transaction_it_is_refused_and_changes_nothing() -> None:
    dialogue = proxied().say("HELO c", "MAIL FROM:<>", "XCLIENT ADDR=198.51.100.7", "RCPT TO:<a@b>", "DATA", ".")
    dialogue.expect("250", "250", "503 5.5.1 Not allowed within", "250", "354", "250")
    assert dialogue.envelopes[-1].remote_ip == "192.0.2.1"


@pytest.mark.parametrize(("xclient", "trusted"), [(False, False), (True, False), (False, True)])
def test_who_is_not_trusted_is_offered_nothing_and_told_that_it_is_no_command(xclient: bool, trusted: bool) -> None:
    dialogue = Dialogue(xclient=xclient, trusted=trusted).say("EHLO c", "XCLIENT ADDR=198.51.100.7 HELO=x")
    assert b"250-XCLIENT" not in dialogue.output
    assert dialogue.output.endswith(b"500 5.5.1 Command unrecognized\r\n")
    envelope = message(dialogue)
    assert (envelope.remote_ip, envelope.remote_port, envelope.helo) == ("192.0.2.1", 4321, "c")


def test_from_who_is_not_trusted_it_counts_as_any_other_word_that_is_no_command() -> None:
    dialogue = Dialogue(xclient=True).say(*["XCLIENT ADDR=198.51.100.7"] * 5)
    dialogue.expect(*["500"] * 5, "421 4.7.0 Too many errors")


def test_in_tls_it_is_offered_too_and_what_was_said_in_clear_before_holds() -> None:
    assert OFFER.encode() in Dialogue(xclient=True, trusted=True, tls=TLSInfo("", "")).say("EHLO c").output
    dialogue = Dialogue(xclient=True, trusted=True, starttls=True).say("EHLO c")
    assert f"250-STARTTLS\r\n{OFFER}\r\n".encode() in dialogue.output
    dialogue.say("XCLIENT ADDR=198.51.100.7 HELO=c", "STARTTLS").handshake()
    dialogue.say("MAIL FROM:<>").expect("503 5.5.1 Send HELO")
    assert message(dialogue.say("EHLO c")).remote_ip == "198.51.100.7"


def test_a_driver_that_does_not_want_the_client_has_the_last_word_instead_of_a_greeting() -> None:
    session = proxied().session
    session.receive_data(b"XCLIENT ADDR=198.51.100.7\r\nNOOP\r\n")
    assert isinstance(session.next_event(), Introduced)
    session.close(TOO_MANY_CLIENTS_FROM_ADDRESS)
    while session.next_event() is not None:
        pass
    assert session.data_to_send() == TOO_MANY_CLIENTS_FROM_ADDRESS.wire


def test_what_the_client_says_can_follow_in_the_same_read() -> None:
    dialogue = proxied().feed(b"XCLIENT ADDR=198.51.100.7\r\nEHLO c\r\nXCLIENT ADDR=1.1.1.1\r\n")
    dialogue.expect("220", "250-", ..., "250 HELP", "503")


GOOD = {
    b"NAME=[UNAVAILABLE]": XClient(),
    b"NAME=spike.example.com": XClient(),
    b"LOGIN=user+40example.com": XClient(),
    b"LOGIN=J+C3+BCrgen+20": XClient(),
    b"DESTADDR=198.51.100.2 DESTPORT=25": XClient(),
    b"ADDR=192.0.2.1 PORT=[UNAVAILABLE]": XClient("192.0.2.1"),
    b"ADDR=ipv6:::ffff:192.0.2.1": XClient("192.0.2.1"),
    b"ADDR=IPV6:FE80::1 PORT=65535": XClient("fe80::1", 65535),
    b"PORT=0": XClient(port=0),
    b"HELO=[192.0.2.1] PROTO=esmtp": XClient(helo="[192.0.2.1]", esmtp=True),
    b"HELO=a+2Bb+3Dc": XClient(helo="a+b=c"),
    b"HELO=" + b"x" * 255: XClient(helo="x" * 255),
    b"PROTO=SMTP": XClient(esmtp=False),
}


@pytest.mark.parametrize(("argument", "client"), GOOD.items())
def test_each_attribute_is_read(argument: bytes, client: XClient) -> None:
    assert parse_xclient(argument) == client


BAD = [
    b"",
    b"ADDR",
    b"ADDR=",
    b"ADDR=192.0.2.1  PORT=1",
    b"ADDR =192.0.2.1",
    b"ADDR=192.0.2.1 ADDR=192.0.2.1",
    b"ADDR=192.0.2.1 addr=[UNAVAILABLE]",
    b"ADDR=[192.0.2.1]",
    b"ADDR=192.0.2.01",
    b"ADDR=192.0.2.256",
    b"ADDR=2001:db8::1",
    b"ADDR=IPV6:192.0.2.1",
    b"ADDR=IPV6:fe80::1%25eth0",
    b"ADDR=client.test",
    b"ADDR=192.0.2.1+00",
    b"ADDR=192.0.2.1\t",
    "ADDR=192.0.2.١".encode(),
    b"DESTADDR=here",
    b"PORT=65536",
    b"PORT=01",
    b"PORT=+1",
    b"PORT=1_0",
    b"DESTPORT=x",
    b"PROTO=LMTP",
    b"HELO=a+0D+0AMAIL",
    b"HELO=a+20b",
    b"HELO=+C3+BC",
    b"HELO=a+4",
    b"HELO=a+4x",
    b"HELO=a+4a",
    b"HELO=a=b",
    b"HELO=" + b"x" * 256,
    b"NAME=a+00b",
    b"LOGIN=a+0Ab",
    b"LOGIN=+FF",
    b"TTL=1",
    b"=1",
]


@pytest.mark.parametrize("argument", BAD)
def test_what_is_malformed_is_501_and_changes_nothing(argument: bytes) -> None:
    dialogue = proxied().say("HELO c").feed(b"XCLIENT " + argument + b"\r\n").expect("501 5.5.4 Syntax: XCLIENT")
    assert isinstance(dialogue.events[-1], CommandRefused)
    envelope = message(dialogue)
    assert (envelope.remote_ip, envelope.remote_port, envelope.helo) == ("192.0.2.1", 4321, "c")


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=255))
def test_any_printable_name_comes_through_xtext(helo: str) -> None:
    encoded = "".join(f"+{ord(char):02X}" if char in "+=" else char for char in helo).encode()
    expected = None if helo.upper() in ("[UNAVAILABLE]", "[TEMPUNAVAIL]") else helo
    assert parse_xclient(b"HELO=" + encoded).helo == expected


@given(st.lists(st.sampled_from([b"ADDR=", b"PORT=", b"HELO=", b"+4", b"1", b".", b":", b"IPV6:", b" "]) | st.binary()))
def test_garbage_is_a_command_error_at_most(parts: list[bytes]) -> None:
    with contextlib.suppress(CommandError):
        parse_xclient(b"".join(parts))
