"""The end of a server: who has a transaction under way may finish it, all others are told, nobody is forgotten."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from tests.server.conftest import Gate

from guerrilla.server.listener import Server
from guerrilla.server.sockets import open_sockets
from guerrilla.smtp.replies import Reply, queued

if TYPE_CHECKING:
    from tests.server.conftest import Certificate, Client, House, HouseMaker

SHUTTING_DOWN = b"421 4.3.2 Server is shutting down, try again later\r\n"


def drain(house: House) -> asyncio.Task[None]:
    return asyncio.create_task(house.server.drain())


async def test_an_idle_client_is_told_at_once(serve: HouseMaker) -> None:
    house = serve()
    client = await house.greeted()
    draining = drain(house)
    assert await client.rest() == SHUTTING_DOWN
    await draining


async def test_a_client_that_has_only_just_come_is_told_too(serve: HouseMaker) -> None:
    house = serve()
    client = await house.connect()
    await house.until(lambda: house.server.connections)
    draining = drain(house)
    assert (await client.rest()).endswith(SHUTTING_DOWN)
    await draining


async def test_who_waits_to_be_accepted_is_told_and_not_reset_however_many_they_are(serve: HouseMaker) -> None:
    house = serve(max_clients=200)
    clients = [house.client() for _ in range(150)]
    for client in clients:
        client.sock.connect_ex(house.server.address)  # in one turn of the loop: nobody has been accepted yet
    draining = drain(house)
    for client in clients:
        assert (await client.rest()).endswith(SHUTTING_DOWN)
    await draining


async def test_who_waits_at_a_server_that_was_never_started_is_not_accepted(serve: HouseMaker) -> None:
    house = serve()
    beside = Server(house.server.policy, open_sockets("127.0.0.1", 0), house.server.witness)
    client = house.client()
    client.sock.connect_ex(beside.address)
    await beside.close()
    assert await client.rest() == b""


async def test_a_transaction_under_way_gets_its_250_and_then_its_421(serve: HouseMaker) -> None:
    house = serve()
    client = await house.greeted()
    await client.say("MAIL FROM:<>")
    draining = drain(house)
    assert await client.talk("RCPT TO:<b@example.com>", "DATA") == ["250", "354"]
    assert (await client.say("You\r\n.")).startswith("250 2.0.0")
    assert await client.rest() == SHUTTING_DOWN
    client.close()
    await draining
    assert len(house.backend.envelopes) == 1


async def test_a_message_that_is_with_the_backend_gets_its_answer(serve: HouseMaker, gate: Gate) -> None:
    house = serve(gate)
    client = await house.connect()
    await client.begin()
    await client.send(b"You\r\n.\r\nMAIL FROM:<next@client.test>\r\n")
    await gate.asked()
    draining = drain(house)
    gate.open(queued("x"))
    assert await client.rest() == b"250 2.0.0 OK: queued as x\r\n" + SHUTTING_DOWN
    client.close()
    await draining


async def test_a_client_in_its_starttls_is_told_inside_tls(serve: HouseMaker, certificate: Certificate) -> None:
    house = serve(start_tls_on=True)
    client = await house.greeted()
    await client.say("STARTTLS")
    draining = drain(house)
    await asyncio.sleep(0)
    await client.secure(certificate.client_context())
    assert (await client.reply()).startswith("421 4.3.2")
    client.close()
    await draining


async def test_one_too_many_is_not_waited_for(serve: HouseMaker) -> None:
    house = serve(max_clients=1)
    first, second = await house.connect(), await house.connect()
    await second.rest()
    draining = drain(house)
    await first.rest()
    await draining


async def started(client: Client, state: str, certificate: Certificate) -> None:
    """Bring a client to where the server has to cut it off."""
    if state == "in a message":
        await client.begin()
    elif state == "with the backend":
        await client.begin()
        await client.send(b"You\r\n.\r\n")
    elif state == "in the handshake":
        await client.reply()
        await client.talk("EHLO client.test", "STARTTLS")
    elif state == "in TLS":
        await client.reply()
        await client.talk("EHLO client.test", "STARTTLS")
        await client.secure(certificate.client_context())
        await client.say("EHLO client.test")


@pytest.mark.parametrize("state", ["just come", "in a message", "with the backend", "in the handshake", "in TLS"])
async def test_close_waits_for_nobody_and_has_the_last_word_where_that_can_be_said(
    serve: HouseMaker, gate: Gate, certificate: Certificate, state: str
) -> None:
    house = serve(gate, start_tls_on=True)
    client = await house.connect()
    await started(client, state, certificate)
    await house.until(lambda: house.server.connections)
    if state == "with the backend":
        await gate.asked()
    await house.server.close()
    assert not house.server.connections
    if state not in ("just come", "in the handshake"):
        assert await client.rest() == SHUTTING_DOWN
    else:
        assert await client.rest() in (
            b"",
            b"220 mx.test ESMTP guerrilla\r\n",
            b"220 mx.test ESMTP guerrilla\r\n" + SHUTTING_DOWN,
        )
    if gate.answer is not None:
        assert gate.answer.cancelled()  # so that the backend makes the message void
        await house.until(lambda: house.log)


async def test_close_cuts_off_a_client_that_does_not_read(serve: HouseMaker) -> None:
    house = serve()
    client = await house.greeted()
    (connection,) = house.server.connections
    house.narrow(connection)
    transaction = b"MAIL FROM:<>\r\n" + b"RCPT TO:<b@example.com>\r\n" * 100 + b"DATA\r\n.\r\n"

    async def never_read() -> None:
        while True:
            await client.send(transaction)

    sending = asyncio.create_task(never_read())
    await house.until(lambda: connection._blocked)
    await house.server.close()
    with pytest.raises(ConnectionError):
        await sending


async def test_close_cancels_what_a_backend_of_coroutines_is_about(serve: HouseMaker) -> None:
    class Slow:
        validates = False
        begun = False

        async def process(self, envelope: object) -> object:
            self.begun = True
            await asyncio.Event().wait()
            raise AssertionError("never")

        validate_rcpt = process

    slow = Slow()
    house = serve(slow)  # type: ignore[arg-type]
    client = await house.connect()
    await client.begin()
    await client.send(b"You\r\n.\r\n")
    await house.until(lambda: slow.begun)
    await house.server.close()
    assert await client.rest() == SHUTTING_DOWN
    assert [record["event"] for record in house.log] == ["message"]


@pytest.mark.parametrize("turns", [0, 1])
async def test_close_lets_nothing_begin_behind_an_answer_that_is_there_and_not_told(
    serve: HouseMaker, turns: int
) -> None:
    """Else a message might be kept that nobody tells the client about."""

    class Asked(Gate):
        validates = True
        validate_rcpt = Gate.process

        def process(self, envelope: object) -> asyncio.Future[Reply]:
            raise AssertionError("there is no time for this message")

    asked = Asked()
    house = serve(asked)
    client = await house.greeted()
    await client.send(b"MAIL FROM:<>\r\nRCPT TO:<b@example.com>\r\nBDAT 5 LAST\r\nYou\r\n")
    await asked.asked()
    asked.open(queued("x"))
    for _ in range(turns):
        await asyncio.sleep(0)
    await house.server.close()
    assert (await client.rest()).endswith(b"250 2.0.0 OK: queued as x\r\n" + SHUTTING_DOWN)
    assert house.log == []


async def test_an_answer_that_is_there_when_the_server_closes_is_told(serve: HouseMaker, gate: Gate) -> None:
    house = serve(gate)
    client = await house.connect()
    await client.begin()
    await client.send(b"You\r\n.\r\nMAIL FROM:<next@client.test>\r\n")
    await gate.asked()
    gate.open(queued("x"))
    await house.server.close()
    assert await client.rest() == b"250 2.0.0 OK: queued as x\r\n" + SHUTTING_DOWN
    assert [record["outcome"] for record in house.log] == ["kept"]


async def test_close_may_come_twice_and_without_a_start(serve: HouseMaker) -> None:
    house = serve()
    await house.server.close()
    await house.server.close()
