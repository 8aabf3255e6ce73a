"""The limits as numbers: who counts as one client, that counts come back to nothing, and memory that runs out."""

from __future__ import annotations

import pytest

from guerrilla.server.limits import Clients, Memory, client_address
from guerrilla.smtp.replies import TOO_MANY_CLIENTS, TOO_MANY_CLIENTS_FROM_ADDRESS


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("::ffff:c000:201", "192.0.2.1"),
        ("2001:DB8:0::1", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("", ""),
        ("no address", "no address"),
    ],
)
def test_a_client_has_one_name_however_it_came(peer: str, address: str) -> None:
    assert client_address(peer) == address


def test_no_more_than_the_limit_come_in() -> None:
    clients = Clients(2, 0)
    assert [clients.enter("192.0.2.1") for _ in range(3)] == [None, None, TOO_MANY_CLIENTS]
    clients.leave("192.0.2.1")
    assert clients.enter("192.0.2.2") is None
    assert len(clients) == 2


def test_no_more_than_the_limit_come_in_from_one_address() -> None:
    clients = Clients(10, 1)
    assert clients.enter("192.0.2.1") is None
    assert clients.enter("192.0.2.1") is TOO_MANY_CLIENTS_FROM_ADDRESS
    assert clients.enter("192.0.2.2") is None
    clients.leave("192.0.2.1")
    assert clients.enter("192.0.2.1") is None


def test_who_was_refused_is_not_counted() -> None:
    clients = Clients(10, 1)
    clients.enter("192.0.2.1")
    clients.enter("192.0.2.1")
    assert len(clients) == 1


def test_an_ipv6_network_of_64_bits_is_one_client() -> None:
    clients = Clients(10, 1)
    assert clients.enter("2001:db8:0:1::1") is None
    assert clients.enter("2001:db8:0:1:ffff::2") is TOO_MANY_CLIENTS_FROM_ADDRESS
    assert clients.enter("2001:db8:0:2::1") is None


def test_an_address_that_has_left_is_forgotten() -> None:
    clients = Clients(10, 5)
    for address in ("192.0.2.1", "192.0.2.1", "2001:db8::1"):
        clients.enter(address)
    for address in ("192.0.2.1", "2001:db8::1", "192.0.2.1"):
        clients.leave(address)
    assert len(clients) == 0
    assert not clients._households


def test_memory_is_given_up_to_its_limit_and_can_be_given_back() -> None:
    memory = Memory(100)
    assert memory.take(60)
    assert not memory.take(41)
    assert memory.has_room()
    assert memory.take(40)
    assert not memory.has_room()
    memory.give_back(60)
    assert memory.has_room()
    assert memory.held == 40
