"""``max_clients``, per server and per address: the next one is told at once, and no place is ever lost."""

from __future__ import annotations

import asyncio

import pytest
from tests.server.conftest import Certificate, HouseMaker

from guerrilla.server.limits import Clients

TOO_MANY = b"421 4.3.2 Too many connections, try again later\r\n"


async def test_one_too_many_gets_421_at_once_and_a_place_that_is_freed_is_given(serve: HouseMaker) -> None:
    house = serve(max_clients=2)
    first, _ = await house.greeted(), await house.greeted()
    third = await house.connect()
    assert await third.rest() == TOO_MANY
    assert [record["event"] for record in house.log] == ["too many connections"]
    third.close()
    await first.say("QUIT")
    await house.until(lambda: len(house.server.connections) == 1)
    assert (await (await house.connect()).reply()).startswith("220")


async def test_those_who_are_in_are_served_while_others_are_refused(serve: HouseMaker) -> None:
    house = serve(max_clients=1)
    client = await house.greeted()
    assert await (await house.connect()).rest() == TOO_MANY
    assert await client.talk("MAIL FROM:<>", "RCPT TO:<b@example.com>", "DATA", "You\r\n.") == [
        "250", "250", "354", "250",
    ]  # fmt: skip


async def test_two_hundred_beyond_the_limit_at_once_are_all_told(serve: HouseMaker) -> None:
    house = serve(max_clients=3)
    clients = await asyncio.gather(*(house.connect() for _ in range(203)))
    firsts = await asyncio.gather(*(client.reply() for client in clients))
    assert sorted(first[:3] for first in firsts) == ["220"] * 3 + ["421"] * 200


async def test_more_than_can_be_seen_off_with_patience_are_told_all_the_same(
    serve: HouseMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("guerrilla.server.listener.MAX_REFUSALS", 5)
    house = serve(max_clients=1)
    clients = await asyncio.gather(*(house.connect() for _ in range(50)))
    firsts = await asyncio.gather(*(client.reply() for client in clients))
    assert sorted(first[:3] for first in firsts) == ["220"] + ["421"] * 49
    assert len(house.log) == 5, "what cannot be borne is not written down either"


async def test_one_address_cannot_take_the_places_of_all(serve: HouseMaker) -> None:
    house = serve(max_clients=10, max_clients_per_address=2)
    for _ in range(2):
        assert (await (await house.connect(source="127.0.0.2")).reply()).startswith("220")
    assert (await (await house.connect(source="127.0.0.2")).rest()).startswith(b"421 4.7.0")
    assert (await (await house.connect(source="127.0.0.3")).reply()).startswith("220")


async def test_one_too_many_that_keeps_its_connection_is_cut_off(
    serve: HouseMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("guerrilla.server.connection.LINGER", 0.1)
    house = serve(max_clients=1, timeout=0.2, min_data_rate=0)
    await house.connect()
    refused = await house.connect()
    assert await refused.rest() == TOO_MANY
    await refused.send(b"EHLO client.test\r\n")
    await house.empty()


@pytest.mark.parametrize("tls", [False, True], ids=["in clear", "in TLS"])
async def test_after_hundreds_of_clients_of_every_fate_all_places_are_free(
    serve: HouseMaker, certificate: Certificate, tls: bool
) -> None:
    house = serve(max_clients=5, max_clients_per_address=4, timeout=0.3, tls_always_on=tls, start_tls_on=not tls)

    async def live(fate: int) -> None:
        client = await house.connect(source=f"127.0.0.{2 + fate % 3}")
        try:
            if fate % 7 == 0:
                return client.reset()
            if tls and fate % 7 == 1:
                return await client.send(b"garbage\r\n")
            if tls:
                await client.secure(certificate.client_context())
            if fate % 7 == 2:
                return client.close()
            if (await client.reply()).startswith("220"):
                await client.send(b"EHLO client.test\r\nMAIL FROM:<>\r\nRCPT TO:<b@example.com>\r\nDATA\r\n")
                if fate % 7 == 3:
                    return client.reset()
                if fate % 7 == 4:
                    await client.send(b"You\r\n.\r\nSTARTTLS\r\n")
                    return client.reset()
                await client.send(b"You\r\n.\r\nQUIT\r\n")
            await client.rest()
        except (ConnectionError, AssertionError):
            pass  # it was refused, or has vanished
        finally:
            client.close()

    for begin in range(0, 420, 42):
        await asyncio.gather(*(live(begin + number) for number in range(42)))
    await house.empty()
    assert len(house.server._clients) == 0
    assert isinstance(house.server._clients, Clients)
    assert not house.server._clients._households
    assert house.server._refusing == 0
