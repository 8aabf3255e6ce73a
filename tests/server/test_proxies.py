"""Behind a proxy: the client is who a trusted proxy says; who is not trusted changes nothing by saying so."""

from __future__ import annotations

import asyncio
import struct
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any

import pytest

from guerrilla.config import ServerConfig
from guerrilla.server.limits import Clients
from guerrilla.server.proxies import Proxies
from guerrilla.server.shared_limits import Board, SharedClients
from guerrilla.smtp.proxy import SIGNATURE
from guerrilla.smtp.replies import TOO_MANY_CLIENTS, TOO_MANY_CLIENTS_FROM_ADDRESS

if TYPE_CHECKING:
    from tests.server.conftest import Certificate, Client, House, HouseMaker

V1 = b"PROXY TCP4 198.51.100.7 192.0.2.25 4711 25\r\n"
V2 = SIGNATURE + struct.pack(
    "!BBH4s4sHH", 0x21, 0x11, 12, IPv4Address("198.51.100.7").packed, IPv4Address("192.0.2.25").packed, 4711, 25
)
LOCAL = SIGNATURE + b"\x20\x00\x00\x00"
PROXY, STRANGER = "127.0.0.1", "127.0.0.2"
BEHIND: dict[str, Any] = {"proxy_on": True, "trusted_proxies": [PROXY]}
XCLIENT: dict[str, Any] = {"xclient_on": True, "trusted_proxies": [PROXY]}

each_version = pytest.mark.parametrize("header", [V1, V2], ids=["v1", "v2"])


async def arrived(house: House, client: Client, *, hello: str = "EHLO client.test") -> tuple[str, int]:
    """Send a message, and return from where it came, as its envelope says."""
    kept = len(house.backend.envelopes)
    assert await client.talk(hello, "MAIL FROM:<>", "RCPT TO:<b@example.com>", "DATA", "Hello\r\n.") == [
        "250", "250", "250", "354", "250",
    ]  # fmt: skip
    assert len(house.backend.envelopes) == kept + 1
    envelope = house.backend.envelopes[-1]
    assert house.log[-1]["client"] == envelope.remote_ip
    return envelope.remote_ip, envelope.remote_port


# PROXY.


@each_version
async def test_the_client_is_who_the_header_names(serve: HouseMaker, header: bytes) -> None:
    house = serve(**BEHIND)
    client = await house.connect()
    await client.send(header)
    assert (await client.reply()).startswith("220")
    assert await arrived(house, client) == ("198.51.100.7", 4711)
    assert not house.server._tasks, "a header that was read costs nothing any more"


@each_version
async def test_a_header_octet_by_octet_is_one(serve: HouseMaker, header: bytes) -> None:
    house = serve(proxyon=True)
    client = await house.connect()
    for octet in header:
        await client.send(bytes([octet]))
        await asyncio.sleep(0)
    assert (await client.reply()).startswith("220")
    assert await arrived(house, client) == ("198.51.100.7", 4711)


@each_version
async def test_what_the_client_sends_right_behind_the_header_is_not_lost(serve: HouseMaker, header: bytes) -> None:
    house = serve(**BEHIND)
    client = await house.connect()
    await client.send(header + b"EHLO client.test\r\nNOOP\r\n")
    assert [(await client.reply())[:3] for _ in range(3)] == ["220", "250", "250"]


async def test_a_header_that_is_longer_than_one_look_is_read(serve: HouseMaker) -> None:
    house = serve(**BEHIND)
    client = await house.connect()
    padding = b"\x04" + struct.pack("!H", 9000) + bytes(9000)
    header = V2[:14] + struct.pack("!H", 12 + len(padding)) + V2[16:] + padding
    await client.send(header + b"NOOP\r\n")
    assert [(await client.reply())[:3] for _ in range(2)] == ["220", "250"]


@each_version
async def test_the_header_comes_in_clear_before_tls(serve: HouseMaker, certificate: Certificate, header: bytes) -> None:
    house = serve(tls_always_on=True, **BEHIND)
    client = await house.connect()
    await client.send(header)
    await client.secure(certificate.client_context(), early=b"NOOP\r\n")
    assert [(await client.reply())[:3] for _ in range(2)] == ["220", "250"]
    assert await arrived(house, client) == ("198.51.100.7", 4711)
    assert house.backend.envelopes[-1].tls is not None


async def test_a_handshake_may_begin_in_the_segment_of_the_header(serve: HouseMaker, certificate: Certificate) -> None:
    house = serve(tls_always_on=True, **BEHIND)
    client = await house.connect()
    client._outgoing.write(V2)  # in front of what TLS will say first
    await client.secure(certificate.client_context())
    assert await client.reply() != ""
    assert await arrived(house, client) == ("198.51.100.7", 4711)


@pytest.mark.parametrize("header", [LOCAL, b"PROXY UNKNOWN\r\n", SIGNATURE + b"\x21\x00\x00\x00"])
async def test_a_header_that_names_nobody_leaves_the_address_of_the_connection(
    serve: HouseMaker, header: bytes
) -> None:
    house = serve(**BEHIND)
    client = await house.connect()
    await client.send(header)
    await client.reply()
    assert await arrived(house, client) == (PROXY, client.port)


@pytest.mark.parametrize(
    "octets",
    [b"EHLO client.test\r\n", V1.replace(b"4711", b"65536"), V2.replace(b"QUIT", b"QUIZ"), V2[:12] + b"\x31" + V2[13:]],
)
@pytest.mark.parametrize("tls", [False, True])
async def test_anything_but_a_header_is_the_end_without_a_word(serve: HouseMaker, octets: bytes, tls: bool) -> None:
    house = serve(tls_always_on=tls, **BEHIND)
    client = await house.connect()
    await client.send(octets)
    assert await client.rest() == b""
    await house.empty()
    (record,) = house.log
    assert (record["event"], record["client"]) == ("connection failed", PROXY)
    assert record["cause"].startswith("the proxy has sent")


@pytest.mark.parametrize("octets", [b"", V1[:-1], V2[:5]])
async def test_a_header_that_does_not_come_in_time_is_the_end_without_a_word(serve: HouseMaker, octets: bytes) -> None:
    house = serve(timeout=0.1, **BEHIND)
    client = await house.connect()
    await client.send(octets)
    assert await client.rest() == b""
    await house.empty()
    assert house.log[-1]["cause"] == "the PROXY header has not come in time"


async def test_a_header_that_trickles_in_gets_no_more_time(serve: HouseMaker) -> None:
    house = serve(timeout=0.2, **BEHIND)
    client = await house.connect()

    async def trickle() -> None:
        await client.send(b"PROXY UNKNOWN ")
        for _ in range(80):
            await client.send(b"x")
            await asyncio.sleep(0.02)

    trickling = asyncio.create_task(trickle())
    await house.until(lambda: house.log)
    assert house.log[-1]["cause"] == "the PROXY header has not come in time"
    await asyncio.gather(trickling, return_exceptions=True)


@pytest.mark.parametrize("octets", [b"", V1[:-1]])
async def test_a_proxy_may_hang_up_before_it_has_said_anything(serve: HouseMaker, octets: bytes) -> None:
    house = serve(**BEHIND)
    client = await house.connect()
    await client.send(octets)
    client.end()
    assert await client.rest() == b""
    await house.empty()
    assert house.log[-1]["cause"] == "the proxy has hung up before the end of its PROXY header"


async def test_a_proxy_that_resets_is_forgotten(serve: HouseMaker) -> None:
    house = serve(**BEHIND)
    client = await house.connect()
    await house.until(lambda: house.server.connections)
    client.reset()
    await house.empty()


async def test_the_end_does_not_wait_for_a_header(serve: HouseMaker) -> None:
    house = serve(**BEHIND)
    client = await house.connect()
    await house.until(lambda: house.server.connections)
    await house.server.close()
    assert await client.rest() == b""


async def test_one_header_is_all_that_is_taken(serve: HouseMaker) -> None:
    house = serve(**BEHIND)
    client = await house.connect()
    await client.send(V1 + V1.replace(b"100.7", b"100.8"))
    assert [(await client.reply())[:3] for _ in range(2)] == ["220", "500"]
    assert await arrived(house, client) == ("198.51.100.7", 4711)


@each_version
@pytest.mark.parametrize("proxy_on", [True, False])
async def test_from_who_is_not_trusted_a_header_changes_nothing(
    serve: HouseMaker, header: bytes, proxy_on: bool
) -> None:
    house = serve(proxy_on=proxy_on, trusted_proxies=[PROXY, "2001:db8::/32"])
    client = await house.connect(source=STRANGER)
    assert (await client.reply()).startswith("220"), "a client that speaks first is greeted first"
    await client.send(header)
    await client.send(b"\r\nRSET\r\n")
    while (reply := await client.reply()) != "250 2.0.0 OK":
        assert reply.startswith("500 5.5.")
    assert await arrived(house, client) == (STRANGER, client.port)


# Limits.


async def test_clients_are_counted_by_their_own_address_and_not_by_the_proxy_s(serve: HouseMaker) -> None:
    house = serve(max_clients=10, max_clients_per_address=1, **BEHIND)
    first = await house.connect()
    await first.send(V1)
    assert (await first.reply()).startswith("220")
    second = await house.connect()
    await second.send(V2)
    assert await second.rest() == b"421 4.7.0 Too many connections from your address\r\n"
    assert [(record["event"], record["client"]) for record in house.log] == [("too many connections", "198.51.100.7")]
    third = await house.connect()
    await third.send(V1.replace(b"100.7", b"100.8"))
    assert (await third.reply()).startswith("220")
    second.close()
    await first.say("QUIT")
    await house.until(lambda: len(house.server.connections) == 1)
    again = await house.connect()
    await again.send(V1)
    assert (await again.reply()).startswith("220")


async def test_health_checks_are_not_counted_by_address(serve: HouseMaker) -> None:
    house = serve(max_clients=10, max_clients_per_address=1, **BEHIND)
    clients = [await house.connect() for _ in range(3)]
    for client in clients:
        await client.send(LOCAL)
        assert (await client.reply()).startswith("220")
    for client in clients:
        client.close()
    await house.empty()
    assert isinstance(house.server._clients, Clients)
    assert not house.server._clients._households, "who is counted in is counted out under the same name"


async def test_a_connection_takes_its_place_before_its_header_has_come(serve: HouseMaker) -> None:
    house = serve(max_clients=1, **BEHIND)
    silent = await house.connect()
    await house.until(lambda: house.server.connections)
    client = await house.connect()
    await client.send(V1)
    assert (await client.rest()).startswith(b"421 4.3.2")
    client.close()
    silent.end()
    await house.empty()


@pytest.mark.parametrize("clients", [Clients(3, 1), Board(2, 2).clients(1, 1, 3, 1)], ids=["one", "many"])
def test_who_is_not_known_yet_is_counted_in_all_but_for_no_address(clients: Clients | SharedClients) -> None:
    assert [clients.enter("") for _ in range(4)] == [None, None, None, TOO_MANY_CLIENTS]
    assert clients.settle("192.0.2.1") is None
    assert clients.settle("192.0.2.1") is TOO_MANY_CLIENTS_FROM_ADDRESS
    assert clients.settle("192.0.2.2") is None
    for address in ("192.0.2.1", "192.0.2.2", ""):
        clients.leave(address)
    assert len(clients) == 0
    assert clients.enter("192.0.2.1") is None
    assert clients.enter("192.0.2.1") is TOO_MANY_CLIENTS_FROM_ADDRESS


# XCLIENT.


async def test_the_client_is_who_xclient_names(serve: HouseMaker) -> None:
    house = serve(**XCLIENT)
    proxy = await house.connect()
    await proxy.reply()
    assert "XCLIENT NAME ADDR" in await proxy.say("EHLO proxy.test")
    assert (await proxy.say("XCLIENT ADDR=198.51.100.7 PORT=4711 NAME=[UNAVAILABLE]")).startswith("220 mx.test")
    assert await arrived(house, proxy) == ("198.51.100.7", 4711)


async def test_from_who_is_not_trusted_xclient_changes_nothing(serve: HouseMaker) -> None:
    house = serve(**XCLIENT)
    client = await house.connect(source=STRANGER)
    await client.reply()
    assert "XCLIENT" not in await client.say("EHLO client.test")
    assert (await client.say("XCLIENT ADDR=198.51.100.7 PORT=4711")).startswith("500 5.5.1")
    assert await arrived(house, client) == (STRANGER, client.port)


async def test_a_client_that_xclient_names_is_counted_by_its_address(serve: HouseMaker) -> None:
    house = serve(max_clients=10, max_clients_per_address=1, **XCLIENT)
    proxies = [await house.connect() for _ in range(3)]
    for proxy in proxies:
        assert (await proxy.reply()).startswith("220"), "proxies are not counted by address"
    assert await proxies[0].talk("XCLIENT ADDR=198.51.100.7") == ["220"]
    assert await proxies[1].talk("XCLIENT ADDR=198.51.100.7") == ["421"]
    assert await proxies[2].talk("XCLIENT ADDR=[UNAVAILABLE]") == ["220"]


async def test_a_client_behind_a_proxy_is_not_taken_for_the_proxy(serve: HouseMaker) -> None:
    house = serve(proxy_on=True, **XCLIENT)
    for header in (V1, b"PROXY UNKNOWN\r\n"):
        client = await house.connect()
        await client.send(header)
        await client.reply()
        assert "XCLIENT" not in await client.say("EHLO client.test")
        assert (await client.say("XCLIENT ADDR=203.0.113.1")).startswith("500 5.5.1")


@pytest.mark.parametrize("header", [LOCAL, b"PROXY TCP4 127.0.0.1 127.0.0.1 4711 25\r\n"])
async def test_a_proxy_behind_a_proxy_may_speak_for_its_client(serve: HouseMaker, header: bytes) -> None:
    house = serve(proxy_on=True, max_clients=10, max_clients_per_address=1, **XCLIENT)
    for address in ("203.0.113.1", "203.0.113.2"):
        proxy = await house.connect()
        await proxy.send(header)
        await proxy.reply()
        assert (await proxy.say(f"XCLIENT ADDR={address} PORT=1")).startswith("220")
        assert await arrived(house, proxy) == (address, 1)


# Whom we trust.


def test_without_a_list_only_this_machine_is_trusted() -> None:
    proxies = Proxies(ServerConfig(listen_interface=":25", proxy_on=True))
    assert proxies.header_from("127.0.0.5")
    assert proxies.header_from("::1")
    assert not proxies.header_from("192.0.2.1")
    assert not proxies.header_from("2001:db8::1")
    assert not proxies.xclient_from("127.0.0.1")


def test_the_list_holds_addresses_and_networks() -> None:
    networks = ["192.0.2.1", "198.51.100.0/24", "2001:db8::/32"]
    proxies = Proxies(ServerConfig(listen_interface=":25", xclient_on=True, trusted_proxies=networks))
    assert all(proxies.xclient_from(address) for address in ("192.0.2.1", "198.51.100.255", "2001:db8::1"))
    assert not any(proxies.xclient_from(address) for address in ("192.0.2.2", "127.0.0.1", "::1"))
    assert not proxies.header_from("192.0.2.1")
    assert not proxies.xclient_from(""), "a Unix socket"


def test_an_empty_list_trusts_nobody() -> None:
    proxies = Proxies(ServerConfig(listen_interface=":25", xclient_on=True, proxy_on=True, trusted_proxies=[]))
    assert not proxies.xclient_from("127.0.0.1")
    assert not proxies.header_from("127.0.0.1")
