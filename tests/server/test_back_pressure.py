"""Back-pressure: what a client sends ahead of our answers waits in the kernel, not in our memory."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from guerrilla.server.connection import MAX_UNREAD
from guerrilla.smtp.replies import queued

if TYPE_CHECKING:
    from tests.server.conftest import Certificate, Gate, HouseMaker

LARGEST_READ = 262144
"""Octets that a loop reads at a time, at most."""
NEXT = b"MAIL FROM:<>\r\nRCPT TO:<b@example.com>\r\nDATA\r\n"


@pytest.mark.parametrize("secure", [False, True], ids=["in clear", "in TLS"])
async def test_what_is_pipelined_behind_a_message_in_progress_is_bounded(
    serve: HouseMaker, gate: Gate, certificate: Certificate, secure: bool
) -> None:
    house = serve(gate, start_tls_on=True)
    client = await house.greeted()
    if secure:
        await client.say("STARTTLS")
        await client.secure(certificate.client_context())
        await client.say("EHLO client.test")
    await client.talk("MAIL FROM:<>", "RCPT TO:<b@example.com>", "DATA")
    await client.send(b"You\r\n.\r\n")
    await gate.asked()
    (connection,) = house.server.connections
    assert connection._session is not None

    content = b"x" * 1022 + b"\r\n"
    sending = asyncio.create_task(client.send(NEXT + content * 8192 + b".\r\n"))
    await house.until(lambda: connection._paused)
    for _ in range(200):  # the server has every occasion to read on
        await asyncio.sleep(0)
        assert connection._session.unread <= MAX_UNREAD + LARGEST_READ
    assert not sending.done(), "the rest is still with the client"

    gate.open(queued("1"))
    assert await client.reply() == "250 2.0.0 OK: queued as 1"
    await sending
    assert [(await client.reply())[:3] for _ in range(3)] == ["250", "250", "354"]
    await house.until(lambda: gate.asked_for == 2)
    gate.open(queued("2"))
    assert await client.reply() == "250 2.0.0 OK: queued as 2"
    assert gate.size == 8 << 20


async def test_what_is_more_than_may_wait_is_worked_off_before_the_loop_reads_on(serve: HouseMaker) -> None:
    house = serve()
    await house.greeted()
    (connection,) = house.server.connections
    assert connection._session is not None
    connection.data_received(NEXT)
    assert connection._session.unread == len(NEXT), "what is little waits for the end of the turn"
    connection.data_received(b"x" * MAX_UNREAD)
    assert connection._session.unread == 0


async def test_a_client_that_ends_while_we_do_not_read_is_still_answered(serve: HouseMaker, gate: Gate) -> None:
    house = serve(gate)
    client = await house.connect()
    await client.begin()
    await client.send(b"You\r\n.\r\n")
    await gate.asked()
    (connection,) = house.server.connections
    await client.send(NEXT + b"x" * MAX_UNREAD + b"\r\n.\r\n")
    client.end()
    await house.until(lambda: connection._paused)
    gate.open(queued("1"))
    await house.until(lambda: gate.asked_for == 2)
    gate.open(queued("2"))
    replies = await client.rest()
    assert replies.startswith(b"250 2.0.0 OK: queued as 1\r\n")
    assert replies.endswith(b"250 2.0.0 OK: queued as 2\r\n")


@pytest.mark.parametrize(("seconds", "is_told"), [(-1, True), (1, False)], ids=["before the limit", "after it"])
async def test_the_last_replies_wait_for_who_reads_late_as_long_as_all_others_do(
    serve: HouseMaker, seconds: int, is_told: bool
) -> None:
    house = serve()
    client = await house.greeted()
    (connection,) = house.server.connections
    house.narrow(connection)
    await client.send(b"EHLO client.test\r\n" * 300 + b"QUIT\r\n")
    await house.until(lambda: connection._over)
    connection.check(house.server.clock() + connection._policy.timeout + seconds)
    assert (await client.rest()).endswith(b"221 2.0.0 Bye\r\n") == is_told


async def test_a_connection_that_is_ended_while_we_do_not_read_is_read_to_its_end(
    serve: HouseMaker, gate: Gate
) -> None:
    house = serve(gate)
    client = await house.connect()
    await client.begin()
    await client.send(b"You\r\n.\r\n" + NEXT + b"x" * (MAX_UNREAD * 2))
    await gate.asked()
    (connection,) = house.server.connections
    assert connection._paused
    draining = asyncio.create_task(house.server.drain())
    await house.until(lambda: house.server.draining)
    gate.open(queued("1"))
    assert (await client.rest()).startswith(b"250 2.0.0 OK: queued as 1\r\n421 4.3.2 ")
    client.close()
    await draining


async def test_a_client_that_sends_many_small_chunks_lets_others_have_their_turn(serve: HouseMaker) -> None:
    house = serve()
    client = await house.greeted()
    await client.talk("MAIL FROM:<>", "RCPT TO:<b@example.com>")
    (connection,) = house.server.connections
    session = connection._session
    assert session is not None
    chunks = 10_000
    session.receive_data(b"BDAT 2\r\nab" * chunks + b"BDAT 0 LAST\r\n")
    connection._advance(talking=True)
    unread = session.unread
    assert unread > chunks * 9, "a turn is short"
    assert connection._paused, "nothing more is read meanwhile"
    turn = asyncio.Event()
    asyncio.get_running_loop().call_soon(turn.set)
    await turn.wait()
    assert 0 < session.unread < unread, "it goes on by itself, turn by turn"
    replies = [await client.reply() for _ in range(chunks + 1)]
    assert set(replies[:-1]) == {"250 2.0.0 2 octets received"}
    assert replies[-1].startswith("250 2.0.0 OK: queued")
    await house.until(lambda: not connection._paused)
    assert [envelope.data for envelope in house.backend.envelopes] == [b"ab" * chunks]
