"""STARTTLS over a real socket: nothing that came in clear survives it, and nothing that comes in TLS is lost."""

from __future__ import annotations

import contextlib
import ssl
from typing import TYPE_CHECKING

import pytest

from guerrilla.smtp.replies import queued

if TYPE_CHECKING:
    from tests.server.conftest import Certificate, Client, Gate, House, HouseMaker


async def asked(house: House) -> Client:
    """Return a client that has asked for TLS, and been told to go on."""
    client = await house.greeted()
    assert await client.say("STARTTLS") == "220 2.0.0 Ready to start TLS"
    return client


def only_the_handshake_failed(house: House) -> bool:
    (record,) = house.log
    return bool(record["event"] == "TLS handshake failed" and record["client"] == "127.0.0.1")


async def test_a_message_comes_over_tls_and_says_so(serve: HouseMaker, certificate: Certificate) -> None:
    house = serve(start_tls_on=True)
    client = await house.connect()
    await client.reply()
    assert "STARTTLS" in await client.say("EHLO client.test")
    await client.say("STARTTLS")
    tls = await client.secure(certificate.client_context())
    assert "STARTTLS" not in await client.say("EHLO client.test")
    assert await client.talk("MAIL FROM:<>", "RCPT TO:<b@example.com>", "DATA", "You\r\n.", "QUIT") == [
        "250", "250", "354", "250", "221",
    ]  # fmt: skip
    assert await client.rest() == b""
    (envelope,) = house.backend.envelopes
    cipher = tls.cipher()
    assert envelope.tls is not None
    assert cipher is not None
    assert (envelope.tls.version, envelope.tls.cipher) == ("TLSv1.3", cipher[0])


async def test_starttls_is_not_there_where_it_is_off(serve: HouseMaker) -> None:
    client = await serve().connect()
    await client.reply()
    assert "STARTTLS" not in await client.say("EHLO client.test")
    assert (await client.say("STARTTLS")).startswith("502 5.5.1")


async def test_starttls_inside_tls_is_out_of_sequence(serve: HouseMaker, certificate: Certificate) -> None:
    client = await asked(serve(start_tls_on=True))
    await client.secure(certificate.client_context())
    assert (await client.say("STARTTLS")).startswith("503 5.5.1")
    assert await client.talk("EHLO client.test") == ["250"]


async def test_what_is_injected_in_the_segment_of_starttls_is_not_executed(
    serve: HouseMaker, certificate: Certificate
) -> None:
    house = serve(start_tls_on=True)
    client = await house.greeted()
    await client.send(b"STARTTLS\r\nEHLO evil.test\r\nMAIL FROM:<evil@evil.test>\r\nNONSENSE\r\n")
    assert await client.reply() == "220 2.0.0 Ready to start TLS"
    await client.secure(certificate.client_context())
    assert await client.say("MAIL FROM:<>") == "503 5.5.1 Send HELO or EHLO first"
    assert [record["line"] for record in house.log] == [b"MAIL FROM:<>"]


async def test_what_is_injected_before_the_handshake_fails_it(serve: HouseMaker, certificate: Certificate) -> None:
    house = serve(start_tls_on=True)
    client = await asked(house)
    await client.send(b"EHLO evil.test\r\n")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await client.secure(certificate.client_context())
    await house.empty()
    assert only_the_handshake_failed(house)


async def test_what_is_injected_before_the_220_is_read_is_not_executed(
    serve: HouseMaker, certificate: Certificate
) -> None:
    house = serve(start_tls_on=True)
    client = await house.greeted()
    await client.send(b"STARTTLS\r\n")
    await client.send(b"EHLO evil.test\r\n")
    assert await client.reply() == "220 2.0.0 Ready to start TLS"
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await client.secure(certificate.client_context())
    await house.empty()
    assert only_the_handshake_failed(house)


async def test_all_that_was_said_in_clear_is_forgotten(serve: HouseMaker, certificate: Certificate) -> None:
    house = serve(start_tls_on=True)
    client = await house.greeted()
    await client.talk("MAIL FROM:<evil@evil.test>", "RCPT TO:<b@example.com>", "STARTTLS")
    await client.secure(certificate.client_context())
    assert await client.talk("DATA", "RCPT TO:<b@example.com>", "MAIL FROM:<>") == ["503", "503", "503"]
    assert await client.talk("EHLO client.test", "MAIL FROM:<>") == ["250", "250"]


async def test_what_comes_with_the_last_octets_of_the_handshake_is_not_lost(
    serve: HouseMaker, certificate: Certificate
) -> None:
    client = await asked(serve(start_tls_on=True))
    await client.secure(certificate.client_context(), early=b"EHLO client.test\r\nMAIL FROM:<>\r\n")
    assert (await client.reply()).startswith("250-mx.test Hello")
    assert await client.reply() == "250 2.1.0 Sender OK"


async def test_a_whole_dialogue_may_come_with_the_handshake_and_the_end(
    serve: HouseMaker, certificate: Certificate
) -> None:
    house = serve(start_tls_on=True)
    client = await asked(house)
    whole = b"EHLO client.test\r\nMAIL FROM:<>\r\nRCPT TO:<b@example.com>\r\nDATA\r\nYou\r\n.\r\n"
    await client.secure(certificate.client_context(), early=whole)
    client.end()
    await house.empty()
    assert [envelope.data for envelope in house.backend.envelopes] in ([b"You\r\n"], [])


async def test_a_silent_client_loses_its_place_at_the_deadline_of_the_handshake(serve: HouseMaker) -> None:
    house = serve(start_tls_on=True, timeout=0.2)
    client = await asked(house)
    assert await client.rest() == b""
    await house.empty()
    assert only_the_handshake_failed(house)


async def test_a_client_that_dribbles_its_hello_loses_its_place_at_the_same_deadline(
    serve: HouseMaker, certificate: Certificate
) -> None:
    house = serve(start_tls_on=True, timeout=0.2)
    client = await asked(house)
    await client.send(b"\x16\x03\x01\x02\x00\x01")
    assert await client.rest() == b""
    await house.empty()
    assert only_the_handshake_failed(house)


async def test_garbage_instead_of_a_handshake_ends_the_connection(serve: HouseMaker) -> None:
    house = serve(start_tls_on=True)
    client = await asked(house)
    await client.send(b"\x00garbage" * 8192)
    await client.rest()
    await house.empty()
    assert only_the_handshake_failed(house)


LONG = (b"MAIL FROM:<>\r\n" + b"RCPT TO:<b@example.com>\r\n" * 100 + b"DATA\r\n.\r\n") * 30
"""Transactions with more replies than the system takes, and less than is waited for."""


async def behind(house: House) -> Client:
    """Return a client that has asked for TLS, and has not taken all that it was told before."""
    client = await house.greeted()
    (connection,) = house.server.connections
    house.narrow(connection)
    await client.send(LONG + b"STARTTLS\r\n")
    await house.until(lambda: connection._transport is None)
    return client


async def test_all_that_was_said_in_clear_is_sent_before_the_handshake(
    serve: HouseMaker, certificate: Certificate
) -> None:
    house = serve(start_tls_on=True)
    client = await behind(house)
    said = [await client.reply() for _ in range(30 * 103)]
    assert {text[:3] for text in said} == {"250", "354"}
    assert await client.reply() == "220 2.0.0 Ready to start TLS"
    await client.secure(certificate.client_context())
    assert await client.talk("EHLO client.test") == ["250"]


async def test_what_was_too_much_in_clear_is_not_waited_for_in_tls(serve: HouseMaker, certificate: Certificate) -> None:
    client = await behind(house := serve(start_tls_on=True))
    (connection,) = house.server.connections
    connection.pause_writing()  # as it is told when more than MAX_UNSENT is left
    while not (await client.reply()).startswith("220"):
        pass
    await client.secure(certificate.client_context())
    assert await client.talk("EHLO client.test") == ["250"]


async def test_a_client_that_does_not_take_it_loses_its_place_at_the_deadline_too(serve: HouseMaker) -> None:
    house = serve(start_tls_on=True, timeout=0.2)
    await behind(house)
    await house.empty()
    assert house.log[-1]["event"] == "TLS handshake failed"
    assert house.log[-1]["cause"] == "the client does not take what it was told before the handshake"


@pytest.mark.parametrize("vanish", ["close", "reset", "end"])
async def test_a_client_that_vanishes_in_the_handshake_frees_its_place(serve: HouseMaker, vanish: str) -> None:
    house = serve(start_tls_on=True)
    client = await asked(house)
    getattr(client, vanish)()
    await house.empty()


async def test_who_was_in_the_handshake_when_the_server_began_to_close_is_told_so_in_tls(
    serve: HouseMaker, certificate: Certificate
) -> None:
    house = serve(start_tls_on=True)
    client = await asked(house)
    house.server.stop_accepting()
    await client.secure(certificate.client_context())
    assert (await client.rest()).startswith(b"421 4.3.2 ")


async def test_a_client_that_has_vanished_before_the_handshake_frees_its_place(serve: HouseMaker) -> None:
    house = serve(start_tls_on=True)
    await house.greeted()
    (connection,) = house.server.connections
    connection.data_received(b"STARTTLS\r\n")
    connection.abort()
    await house.empty()


async def test_a_client_with_old_tls_only_is_refused(serve: HouseMaker, certificate: Certificate) -> None:
    house = serve(start_tls_on=True)
    client = await asked(house)
    context = certificate.client_context()
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await client.secure(context)
    await house.empty()
    assert only_the_handshake_failed(house)
    assert "UNSUPPORTED_PROTOCOL" in house.log[0]["cause"]


async def test_an_idle_client_is_told_inside_tls(serve: HouseMaker, certificate: Certificate) -> None:
    client = await asked(serve(start_tls_on=True, timeout=0.3))
    await client.secure(certificate.client_context())
    assert await client.rest() == b"421 4.4.2 Timed out waiting for you\r\n"


async def test_a_client_that_reads_nothing_inside_tls_is_cut(serve: HouseMaker, certificate: Certificate) -> None:
    house = serve(start_tls_on=True, timeout=0.5)
    client = await asked(house)
    await client.secure(certificate.client_context())
    await client.say("EHLO client.test")
    transaction = b"MAIL FROM:<>\r\n" + b"RCPT TO:<b@example.com>\r\n" * 100 + b"DATA\r\n.\r\n"
    with contextlib.suppress(ConnectionError):
        while True:
            await client.send(transaction)
    await house.empty()


async def test_a_message_is_kept_though_its_client_closes_tls_before_the_answer(
    serve: HouseMaker, gate: Gate, certificate: Certificate
) -> None:
    house = serve(gate, start_tls_on=True)
    client = await asked(house)
    tls = await client.secure(certificate.client_context())
    await client.talk("EHLO client.test", "MAIL FROM:<>", "RCPT TO:<b@example.com>", "DATA")
    await client.send(b"You\r\n.\r\n")
    await gate.asked()
    with pytest.raises(ssl.SSLWantReadError):
        tls.unwrap()
    await client.flush()
    await house.empty()
    gate.open(queued("x"))
    await house.until(lambda: house.log)
    assert house.log[0]["outcome"] == "kept"


async def test_pipelining_behind_starttls_while_a_recipient_is_asked_about_stays_bounded(
    serve: HouseMaker, certificate: Certificate
) -> None:
    house = serve(start_tls_on=True)
    client = await house.greeted()
    (connection,) = house.server.connections
    connection._paused = True  # as it is when STARTTLS stood behind 16 kB of other commands
    await client.say("STARTTLS")
    await client.secure(certificate.client_context())
    assert await client.talk("EHLO client.test") == ["250"]
    assert not connection._paused
