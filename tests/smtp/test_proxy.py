"""The PROXY header: what is taken, what is not, and that not an octet of what follows is touched."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from guerrilla.smtp.proxy import (
    MAX_BLOCK,
    MAX_LINE,
    SIGNATURE,
    HeaderReader,
    ProxyError,
    ProxyHeader,
    canonical,
    crc32c,
)

SOURCE, DESTINATION = "192.0.2.1", "198.51.100.2"
SOURCE_6, DESTINATION_6 = "2001:db8::1", "2001:db8::2"
CLIENT = b"EHLO client.test\r\nPROXY TCP4 1.1.1.1 1.1.1.1 1 1\r\n"
"""What follows the header."""


def read(octets: bytes) -> tuple[ProxyHeader | None, int]:
    """Give a reader all of it at once; return the header, and how much belonged to it."""
    reader = HeaderReader()
    taken = reader.feed(octets)
    return reader.header, taken


def v2(block: bytes, *, command: int = 0x21, family: int = 0x11, length: int | None = None) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, family, len(block) if length is None else length) + block


def ipv4(source: str = SOURCE, port: int = 56324) -> bytes:
    return IPv4Address(source).packed + IPv4Address(DESTINATION).packed + struct.pack("!HH", port, 25)


def ipv6(source: str = SOURCE_6, port: int = 56324) -> bytes:
    return IPv6Address(source).packed + IPv6Address(DESTINATION_6).packed + struct.pack("!HH", port, 25)


def tlv(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


def with_checksum(block: bytes, change: int = 0) -> bytes:
    checksum = crc32c(v2(block + tlv(3, bytes(4)))) ^ change
    return v2(block + tlv(3, checksum.to_bytes(4)))


FROM_CLIENT = ProxyHeader((SOURCE, 56324))
FROM_CLIENT_6 = ProxyHeader((SOURCE_6, 56324))
UNKNOWN = ProxyHeader()
LOCAL = ProxyHeader(local=True)

GOOD = {
    "TCP4": (b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 25\r\n", FROM_CLIENT),
    "TCP4 longest": (
        b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
        ProxyHeader(("255.255.255.255", 65535)),
    ),
    "TCP4 port 0": (b"PROXY TCP4 192.0.2.1 198.51.100.2 0 0\r\n", ProxyHeader((SOURCE, 0))),
    "TCP6": (b"PROXY TCP6 2001:db8::1 2001:db8::2 56324 25\r\n", FROM_CLIENT_6),
    "TCP6 in another form": (b"PROXY TCP6 2001:0DB8:0:0:0:0:0:1 ::2 56324 25\r\n", FROM_CLIENT_6),
    "TCP6 that carries IPv4": (b"PROXY TCP6 ::ffff:192.0.2.1 ::ffff:198.51.100.2 56324 25\r\n", FROM_CLIENT),
    "UNKNOWN": (b"PROXY UNKNOWN\r\n", UNKNOWN),
    "UNKNOWN with addresses": (b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n", UNKNOWN),
    "UNKNOWN with what has no meaning": (b"PROXY UNKNOWN \0\xff\r\n", UNKNOWN),
    "UNKNOWN longest": (b"PROXY UNKNOWN ".ljust(MAX_LINE - 2, b"f") + b"\r\n", UNKNOWN),
    "v2 IPv4": (v2(ipv4()), FROM_CLIENT),
    "v2 IPv6": (v2(ipv6(), family=0x21), FROM_CLIENT_6),
    "v2 IPv6 that carries IPv4": (v2(ipv6("::ffff:192.0.2.1"), family=0x21), FROM_CLIENT),
    "v2 datagrams": (v2(ipv4(), family=0x12), FROM_CLIENT),
    "v2 Unix": (v2(bytes(216), family=0x31), UNKNOWN),
    "v2 unspecified": (v2(b"", family=0x00), UNKNOWN),
    "v2 unspecified with a block": (v2(b"what ever", family=0x00), UNKNOWN),
    "v2 unspecified transport": (v2(b"", family=0x10), UNKNOWN),
    "v2 LOCAL": (v2(b"", command=0x20, family=0x00), LOCAL),
    "v2 LOCAL with a block": (v2(ipv4(), command=0x20), LOCAL),
    "v2 LOCAL of a family that there is not": (v2(b"?", command=0x20, family=0xFF), LOCAL),
    "v2 vectors": (v2(ipv4() + tlv(2, b"mx.test") + tlv(4, b"") + tlv(0xE0, b"x" * 300)), FROM_CLIENT),
    "v2 checksum": (with_checksum(ipv4() + tlv(5, b"id")), FROM_CLIENT),
    "v2 longest": (v2(ipv4() + tlv(4, bytes(MAX_BLOCK - 15))), FROM_CLIENT),
}


@pytest.mark.parametrize(("octets", "header"), GOOD.values(), ids=GOOD)
def test_a_header_is_read_and_what_follows_it_is_not(octets: bytes, header: ProxyHeader) -> None:
    assert read(octets) == (header, len(octets))
    assert read(octets + CLIENT) == (header, len(octets))


@pytest.mark.parametrize(("octets", "header"), GOOD.values(), ids=GOOD)
def test_how_a_header_is_cut_makes_no_difference(octets: bytes, header: ProxyHeader) -> None:
    reader = HeaderReader()
    for octet in octets:
        assert reader.header is None
        assert reader.feed(bytes([octet])) == 1
    assert reader.header == header
    assert reader.feed(CLIENT) == 0


BAD = {
    "SMTP": b"EHLO client.test\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01",
    "small letters": b"proxy TCP4 192.0.2.1 198.51.100.2 56324 25\r\n",
    "another word": b"PROXYTCP4 192.0.2.1 198.51.100.2 56324 25\r\n",
    "no protocol": b"PROXY \r\n",
    "another protocol": b"PROXY UDP4 192.0.2.1 198.51.100.2 56324 25\r\n",
    "IPv6 as TCP4": b"PROXY TCP4 2001:db8::1 2001:db8::2 56324 25\r\n",
    "IPv4 as TCP6": b"PROXY TCP6 192.0.2.1 198.51.100.2 56324 25\r\n",
    "a leading zero": b"PROXY TCP4 192.0.2.01 198.51.100.2 56324 25\r\n",
    "three numbers": b"PROXY TCP4 192.0.2 198.51.100.2 56324 25\r\n",
    "a number beyond 255": b"PROXY TCP4 192.0.2.256 198.51.100.2 56324 25\r\n",
    "a bad destination": b"PROXY TCP4 192.0.2.1 198.51.100.256 56324 25\r\n",
    "IPv6 with a scope": b"PROXY TCP6 fe80::1%eth0 2001:db8::2 56324 25\r\n",
    "IPv6 too short": b"PROXY TCP6 2001:db8:1 2001:db8::2 56324 25\r\n",
    "digits of another script": "PROXY TCP4 192.0.2.١ 198.51.100.2 56324 25\r\n".encode(),
    "a port beyond 65535": b"PROXY TCP4 192.0.2.1 198.51.100.2 65536 25\r\n",
    "a destination port beyond 65535": b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 65536\r\n",
    "a port with a leading zero": b"PROXY TCP4 192.0.2.1 198.51.100.2 056324 25\r\n",
    "a port with a sign": b"PROXY TCP4 192.0.2.1 198.51.100.2 +5632 25\r\n",
    "no ports": b"PROXY TCP4 192.0.2.1 198.51.100.2\r\n",
    "two spaces": b"PROXY TCP4  192.0.2.1 198.51.100.2 56324 25\r\n",
    "a space at the end": b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 25 \r\n",
    "no CR": b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 25\n",
    "a CR inside": b"PROXY UNKNOWN a\rb\r\n",
    "UNKNOWNS": b"PROXY UNKNOWNS\r\n",
    "too long": b"PROXY UNKNOWN ".ljust(MAX_LINE - 1, b"f") + b"\r\n",
    "too long without an end": b"PROXY UNKNOWN ".ljust(MAX_LINE, b"f"),
    "v2 version 1": v2(ipv4(), command=0x11),
    "v2 version 3": v2(ipv4(), command=0x31),
    "v2 another command": v2(ipv4(), command=0x22),
    "v2 another family": v2(ipv4(), family=0x41),
    "v2 another transport": v2(ipv4(), family=0x13),
    "v2 IPv4 too short": v2(ipv4()[:-1]),
    "v2 IPv6 too short": v2(ipv4(), family=0x21),
    "v2 Unix too short": v2(bytes(215), family=0x31),
    "v2 too long": v2(b"", length=MAX_BLOCK + 1),
    "v2 two octets of a vector": v2(ipv4() + b"\x04\x00"),
    "v2 a vector beyond the end": v2(ipv4() + b"\x04\x00\x02x"),
    "v2 a wrong checksum": with_checksum(ipv4(), change=1),
    "v2 a checksum of three octets": v2(ipv4() + tlv(3, bytes(3))),
    "v2 a wrong signature": v2(ipv4()).replace(b"QUIT", b"QUIZ"),
}


@pytest.mark.parametrize("octets", BAD.values(), ids=BAD)
def test_what_does_not_match_in_full_is_no_header(octets: bytes) -> None:
    with pytest.raises(ProxyError):
        read(octets)


@pytest.mark.parametrize("octets", [b"X", b"PROXX", b"\r\n\r\n\1", b"\n"])
def test_what_can_be_no_header_is_refused_at_once(octets: bytes) -> None:
    with pytest.raises(ProxyError, match="no PROXY header but b'"):
        read(octets)


def test_the_checksum_is_that_of_the_standard() -> None:
    assert crc32c(b"123456789") == 0xE3069283


def test_an_ipv6_address_that_carries_ipv4_is_that_ipv4_address() -> None:
    assert canonical(IPv6Address("::ffff:192.0.2.1")) == "192.0.2.1"
    assert canonical(IPv6Address("2001:DB8:0::1")) == "2001:db8::1"


addresses = st.ip_addresses(v=4) | st.ip_addresses(v=6)
ports = st.integers(0, 65535)
vectors = st.lists(st.tuples(st.integers(0, 255).filter(lambda kind: kind != 3), st.binary(max_size=40)), max_size=5)


@given(addresses, ports, st.binary(max_size=50), st.integers(0, 200))
def test_what_a_line_says_is_what_is_read(address: IPv4Address | IPv6Address, port: int, rest: bytes, cut: int) -> None:
    line = f"PROXY TCP{address.version} {address} {address} {port} 25\r\n".encode()
    check_cut(line, rest, cut, ProxyHeader((canonical(address), port)))


@given(addresses, ports, vectors, st.binary(max_size=50), st.integers(0, 500))
def test_what_a_block_says_is_what_is_read(
    address: IPv4Address | IPv6Address, port: int, more: list[tuple[int, bytes]], rest: bytes, cut: int
) -> None:
    block = address.packed * 2 + struct.pack("!HH", port, 25) + b"".join(tlv(*each) for each in more)
    octets = v2(block, family=0x11 if address.version == 4 else 0x21)
    check_cut(octets, rest, cut, ProxyHeader((canonical(address), port)))


def check_cut(octets: bytes, rest: bytes, cut: int, header: ProxyHeader) -> None:
    cut = min(cut, len(octets) - 1)
    reader = HeaderReader()
    assert reader.feed(octets[:cut]) == cut
    assert reader.header is None
    assert reader.feed(octets[cut:] + rest) == len(octets) - cut
    assert reader.header == header


starts = st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", b"PROXY TCP6 ", SIGNATURE, SIGNATURE + b"\x21\x11\x00\x0c"])


@given(starts, st.binary(max_size=400), st.integers(0, 400))
@example(SIGNATURE + b"\x21", b"", 3)
def test_garbage_is_a_proxy_error_at_most_and_the_cut_makes_no_difference(
    start: bytes, garbage: bytes, cut: int
) -> None:
    octets = start + garbage
    outcomes: list[tuple[ProxyHeader | None, int] | None] = []
    for parts in ([octets], [octets[:cut], octets[cut:]]):
        reader = HeaderReader()
        taken = 0
        try:
            for part in parts:
                taken += reader.feed(part)
        except ProxyError:
            outcomes.append(None)
        else:
            outcomes.append((reader.header, taken))
    assert outcomes[0] == outcomes[1]
