"""A port that speaks TLS from the first octet on: its handshake, its deadline, its places."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.server.conftest import Certificate, HouseMaker


async def test_a_message_comes_over_tls_from_the_first_octet_on(serve: HouseMaker, certificate: Certificate) -> None:
    house = serve(tls_always_on=True)
    client = await house.connect()
    await client.secure(certificate.client_context())
    assert await client.reply() == "220 mx.test ESMTP guerrilla"
    assert "STARTTLS" not in await client.say("EHLO client.test")
    assert (await client.say("STARTTLS")).startswith("503 5.5.1")
    assert await client.talk("MAIL FROM:<>", "RCPT TO:<b@example.com>", "DATA", "You\r\n.", "QUIT") == [
        "250", "250", "354", "250", "221",
    ]  # fmt: skip
    assert await client.rest() == b""
    (envelope,) = house.backend.envelopes
    assert envelope.tls is not None
    assert envelope.tls.version == "TLSv1.3"


async def test_a_hello_that_is_here_before_we_look_is_not_lost(serve: HouseMaker, certificate: Certificate) -> None:
    house = serve(tls_always_on=True)
    clients = await asyncio.gather(*(house.connect() for _ in range(50)))
    await asyncio.gather(*(client.secure(certificate.client_context()) for client in clients))
    for client in clients:
        assert (await client.reply()).startswith("220")


async def test_who_was_accepted_for_tls_speaks_it_though_a_policy_without_it_is_adopted_at_once(
    serve: HouseMaker, certificate: Certificate
) -> None:
    house = serve(tls_always_on=True)
    client = house.client()
    with contextlib.suppress(BlockingIOError):
        client.sock.connect(house.server.address)  # it is in the queue, without a turn of the loop
    house.server._accept(house.server._sockets[0])
    house.server.adopt(serve().server.policy)
    await client.secure(certificate.client_context())
    assert (await client.reply()).startswith("220")


async def test_what_comes_with_the_last_octets_of_the_handshake_is_not_lost(
    serve: HouseMaker, certificate: Certificate
) -> None:
    client = await serve(tls_always_on=True).connect()
    await client.secure(certificate.client_context(), early=b"EHLO client.test\r\n")
    assert [(await client.reply())[:3], (await client.reply())[:3]] == ["220", "250"]


async def test_what_is_said_in_clear_is_not_executed(serve: HouseMaker, certificate: Certificate) -> None:
    house = serve(tls_always_on=True)
    client = await house.connect()
    await client.send(b"EHLO evil.test\r\n")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await client.secure(certificate.client_context())
    await house.empty()
    (record,) = house.log
    assert record["event"] == "connection failed"


@pytest.mark.parametrize("hello", [b"", b"\x16\x03\x01\x02\x00\x01"])
async def test_a_client_that_does_not_go_on_loses_its_place_at_the_deadline(serve: HouseMaker, hello: bytes) -> None:
    house = serve(tls_always_on=True, timeout=0.2)
    client = await house.connect()
    await client.send(hello)
    assert await client.rest() == b""
    await house.empty()


@pytest.mark.parametrize("vanish", ["close", "reset", "end"])
async def test_a_client_that_vanishes_in_the_handshake_frees_its_place(serve: HouseMaker, vanish: str) -> None:
    house = serve(tls_always_on=True)
    client = await house.connect()
    await client.send(b"\x16\x03\x01\x02\x00\x01")
    await house.until(lambda: house.server.connections)
    getattr(client, vanish)()
    await house.empty()


async def test_one_client_too_many_is_told_inside_tls(serve: HouseMaker, certificate: Certificate) -> None:
    house = serve(tls_always_on=True, max_clients=1)
    first = await house.connect()
    await first.secure(certificate.client_context())
    await first.reply()
    second = await house.connect()
    await second.secure(certificate.client_context())
    assert await second.rest() == b"421 4.3.2 Too many connections, try again later\r\n"
    second.close()
    await first.say("QUIT")
    first.close()
    await house.empty()
    third = await house.connect()
    await third.secure(certificate.client_context())
    assert (await third.reply()).startswith("220")


async def test_a_client_in_its_handshake_takes_a_place(serve: HouseMaker, certificate: Certificate) -> None:
    house = serve(tls_always_on=True, max_clients=1)
    await house.connect()
    second = await house.connect()
    await second.secure(certificate.client_context())
    assert (await second.rest()).startswith(b"421 4.3.2")


async def test_the_end_of_the_server_does_not_wait_for_a_handshake(serve: HouseMaker) -> None:
    house = serve(tls_always_on=True)
    client = await house.connect()
    await house.until(lambda: house.server.connections)
    await house.server.close()
    assert await client.rest() == b""


async def test_a_handshake_that_ends_while_the_server_drains_is_told_so(
    serve: HouseMaker, certificate: Certificate
) -> None:
    house = serve(tls_always_on=True)
    client = await house.connect()
    await house.until(lambda: house.server.connections)
    draining = asyncio.create_task(house.server.drain())
    await asyncio.sleep(0)
    await client.secure(certificate.client_context())
    assert [(await client.reply())[:9], (await client.reply())[:9]] == ["220 mx.te", "421 4.3.2"]
    client.close()
    await draining


async def test_the_last_word_of_the_server_is_said_inside_tls(serve: HouseMaker, certificate: Certificate) -> None:
    house = serve(tls_always_on=True)
    client = await house.connect()
    await client.secure(certificate.client_context())
    await client.reply()
    await house.server.close()
    assert await client.rest() == b"421 4.3.2 Server is shutting down, try again later\r\n"
