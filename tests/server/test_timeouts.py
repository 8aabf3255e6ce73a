"""The limits in time: on silence, on slowness, on replies that nobody reads; and none while we are the slow ones."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING

import pytest

from guerrilla.server.connection import MAX_UNREAD
from guerrilla.server.wire import Wire
from guerrilla.smtp.replies import queued

if TYPE_CHECKING:
    from tests.server.conftest import Client, Gate, HouseMaker

LARGEST_READ = 262144
"""Octets that a loop reads at a time, at most."""
GAP = 0.02
"""Seconds between the octets of a slow client."""
TIMED_OUT = b"421 4.4.2 Timed out waiting for you\r\n"
TOO_SLOW = b"421 4.4.2 Too slow: the message did not come at the least data rate\r\n"


@contextlib.asynccontextmanager
async def dribbling(client: Client, octets: Iterable[bytes]) -> AsyncIterator[None]:
    """Send the octets slowly, as long as the block lasts."""

    async def dribble() -> None:
        with contextlib.suppress(ConnectionError):
            for each in octets:
                await client.send(each)
                await asyncio.sleep(GAP)

    task = asyncio.create_task(dribble())
    yield
    task.cancel()
    await asyncio.wait([task])


def endless(octets: bytes) -> Iterable[bytes]:
    while True:
        yield octets


@pytest.mark.parametrize("said", [[], ["EHLO a"], ["EHLO a", "MAIL FROM:<>"], ["HELO a", "NOOP"]])
async def test_a_silent_client_is_told_and_sent_away(serve: HouseMaker, said: list[str]) -> None:
    client = await serve(timeout=0.2).connect()
    await client.reply()
    await client.talk(*said)
    assert await client.rest() == TIMED_OUT


async def test_a_client_that_is_silent_in_a_message_is_told_and_sent_away(serve: HouseMaker) -> None:
    client = await serve(timeout=0.2, min_data_rate=0).connect()
    await client.begin()
    await client.send(b"half a mess")
    assert await client.rest() == TIMED_OUT


async def test_a_dribbled_command_line_does_not_buy_time(serve: HouseMaker) -> None:
    client = await serve(timeout=0.2).greeted()
    async with dribbling(client, endless(b"N")):
        assert await client.rest() == TIMED_OUT


async def test_what_was_read_in_the_turn_of_the_sweep_buys_time(serve: HouseMaker) -> None:
    """A process that was halted for longer than the limit finds both at once: the line of a client, and its end."""
    house = serve()
    client = await house.greeted()
    (connection,) = house.server.connections
    connection._since -= 10_000
    connection.data_received(b"NOOP\r\n")
    assert house.server._sweeper is not None
    house.server._sweeper.cancel()
    house.server._sweep()
    assert await client.reply() == "250 2.0.0 OK"


async def test_each_command_buys_time(serve: HouseMaker) -> None:
    client = await serve(timeout=0.5).greeted()
    until = asyncio.get_running_loop().time() + 1.0
    while asyncio.get_running_loop().time() < until:
        assert await client.talk("MAIL FROM:<>", "RCPT TO:<b@example.com>", "DATA", ".") == ["250", "250", "354", "250"]
        await asyncio.sleep(GAP)


async def test_an_honest_slow_sender_may_take_longer_than_the_timeout(serve: HouseMaker) -> None:
    house = serve(timeout=0.5, min_data_rate=500)
    client = await house.connect()
    await client.begin()
    until = asyncio.get_running_loop().time() + 1.2
    sent = b""
    while asyncio.get_running_loop().time() < until:
        await client.send(b"Slow, but steady.\r\n" * 4)
        sent += b"Slow, but steady.\r\n" * 4
        await asyncio.sleep(GAP)
    assert (await client.say(".")).startswith("250")
    assert house.backend.envelopes[0].data == sent


@pytest.mark.parametrize("command", ["DATA", "BDAT 1000000"])
async def test_a_sender_below_the_least_data_rate_is_told_and_sent_away(serve: HouseMaker, command: str) -> None:
    client = await serve(timeout=0.2, min_data_rate=1000).greeted()
    await client.talk("MAIL FROM:<>", "RCPT TO:<b@example.com>")
    await client.send(command.encode() + b"\r\n")
    if command == "DATA":
        await client.reply()
    async with dribbling(client, endless(b"x")):
        assert await client.rest() == TOO_SLOW


async def test_the_data_rate_is_asked_of_each_message_anew(serve: HouseMaker) -> None:
    house = serve(timeout=0.5, min_data_rate=100)
    client = await house.greeted()
    until = asyncio.get_running_loop().time() + 1.2
    while asyncio.get_running_loop().time() < until:
        # Each message is small, and there is a pause before it: together they are below the rate, alone they are not.
        assert await client.talk("MAIL FROM:<>", "RCPT TO:<b@example.com>", "DATA", "x\r\n.")
        await asyncio.sleep(0.1)
    assert await client.talk("QUIT") == ["221"]


async def test_a_fast_message_does_not_pay_for_a_slow_one_after_it(serve: HouseMaker) -> None:
    client = await serve(timeout=0.2, min_data_rate=1000).connect()
    await client.begin()
    await client.send(b"x" * 100_000 + b"\r\n.\r\n")
    await client.reply()
    await client.talk("MAIL FROM:<>", "RCPT TO:<b@example.com>", "DATA")
    async with dribbling(client, endless(b"x")):
        assert await client.rest() == TOO_SLOW


async def test_no_time_passes_for_the_client_while_the_backend_works(serve: HouseMaker, gate: Gate) -> None:
    house = serve(gate, timeout=0.2)
    client = await house.connect()
    await client.begin()
    await client.send(b"You\r\n.\r\n")
    await gate.asked()
    for _ in range(2):
        idle = await house.greeted()
        assert await idle.rest() == TIMED_OUT  # so that more than the timeout has passed, twice
    gate.open(queued("x"))
    assert await client.reply() == "250 2.0.0 OK: queued as x"
    assert await client.rest() == TIMED_OUT


LONG = b"MAIL FROM:<>\r\n" + b"RCPT TO:<b@example.com>\r\n" * 100 + b"DATA\r\n.\r\n"
"""A transaction with some 4 kB of replies."""


async def test_a_client_that_reads_no_replies_is_cut_and_costs_little_memory(serve: HouseMaker) -> None:
    house = serve(timeout=0.3)
    client = await house.greeted()
    (connection,) = house.server.connections
    house.narrow(connection)

    async def send_for_ever() -> None:
        while True:
            await client.send(LONG)

    sending = asyncio.create_task(send_for_ever())
    assert isinstance(connection._transport, Wire)
    assert connection._session is not None
    while house.server.connections:
        assert len(connection._transport._unsent) < 1 << 17
        assert connection._session.unread <= MAX_UNREAD + LARGEST_READ
        await asyncio.sleep(0)
    with pytest.raises(ConnectionError):
        await sending


async def test_a_client_that_reads_its_replies_late_loses_none(serve: HouseMaker) -> None:
    house = serve()
    client = await house.greeted()
    (connection,) = house.server.connections

    enough = asyncio.Event()

    async def send() -> int:
        count = 0
        while not enough.is_set():
            await client.send(LONG)
            count += 1
        client.end()
        return count

    sending = asyncio.create_task(send())
    await house.until(lambda: connection._blocked)
    enough.set()
    replies = await client.rest()
    assert replies.count(b"250 2.0.0 OK: queued as ") == await sending
