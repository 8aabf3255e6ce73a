r"""The PROXY header, versions 1 and 2, by which a proxy says for whom it has opened a connection: HAProxy's protocol.

Version 1 is a line, ``PROXY TCP4 192.0.2.1 192.0.2.2 56324 25\r\n``; version 2 is binary. The header comes first, and
what follows it is the client's own: SMTP, or a TLS handshake. So the reader takes no octet beyond it, however the
octets are cut into reads. What does not match in full is an error as soon as it can be told.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
"""The first octets of version 2."""
MAX_LINE: Final = 107
"""Octets of version 1, CRLF included: the longest that the protocol knows."""
MAX_BLOCK: Final = 16384
"""Octets of version 2 after the first 16. There is room for 65,535, and what is sent is some hundreds at most."""

_HEAD: Final = 16
_LINE_START: Final = b"PROXY "
_PORT = rb"(0|[1-9][0-9]{0,4})"
_LINE = re.compile(
    # What follows UNKNOWN has no meaning.
    rb"PROXY (?:UNKNOWN(?: [^\r\n]*)?"
    rb"|TCP4 ([0-9.]{7,15}) ([0-9.]{7,15}) " + _PORT + b" " + _PORT + rb"|TCP6 ([0-9A-Fa-f:.]{2,39}) "
    rb"([0-9A-Fa-f:.]{2,39}) " + _PORT + b" " + _PORT + rb")\r\n"
)
_ADDRESS_SIZES: Final[Mapping[int, int]] = {0: 0, 1: 4, 2: 16, 3: 108}
"""Octets of one address by the family: unspecified, IPv4, IPv6, Unix."""
_CRC32C_TYPE: Final = 3


class ProxyError(ValueError):
    """There is no PROXY header, or it is malformed; the text says what was found."""


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """What a proxy has said."""

    source: tuple[str, int] | None = None
    """The client's address, in canonical form, and its port; None where the header names none that is of use: then
    those of the connection itself hold."""
    local: bool = False
    """Whether the proxy speaks for itself, as in its health checks."""


def canonical(address: IPv4Address | IPv6Address) -> str:
    """Write an address in its one form: an IPv4 address is that also where IPv6 has carried it."""
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(address)


class HeaderReader:
    """Reads one header. ``header`` is None until it is complete."""

    __slots__ = ("_octets", "header")

    def __init__(self) -> None:
        self._octets = bytearray()
        self.header: ProxyHeader | None = None

    def feed(self, octets: bytes) -> int:
        """Look at what comes next, and return how much of it belongs to the header: the rest is the client's.

        Raises ProxyError; then nothing more can be read.
        """
        if self.header is not None:
            return 0
        before = len(self._octets)
        self._octets += octets
        size = _size(self._octets)
        if size is None or size > len(self._octets):
            return len(octets)
        whole = bytes(self._octets[:size])
        self.header = _parse_block(whole) if whole.startswith(SIGNATURE) else _parse_line(whole)
        return size - before


def _size(octets: bytearray) -> int | None:
    """Return the octets of the whole header, from its beginning; None if they do not tell it yet."""
    if octets[: len(SIGNATURE)] == SIGNATURE[: len(octets)]:
        if len(octets) < _HEAD:
            return None
        length = int.from_bytes(octets[14:16])
        if length > MAX_BLOCK:
            raise ProxyError(f"a header that announces {length} octets, at most {MAX_BLOCK} are read")
        return _HEAD + length
    if octets[: len(_LINE_START)] == _LINE_START[: len(octets)]:
        size = octets.find(b"\n") + 1
        if size > MAX_LINE or (not size and len(octets) >= MAX_LINE):
            raise ProxyError(f"a line of more than {MAX_LINE} octets: {bytes(octets[:40])!r}…")
        return size or None
    raise ProxyError(f"no PROXY header but {bytes(octets[:40])!r}")


# Version 1.


def _parse_line(line: bytes) -> ProxyHeader:
    match = _LINE.fullmatch(line)
    if not match:
        raise ProxyError(f"a malformed line: {line!r}")
    try:
        if match[1]:
            addresses = [canonical(IPv4Address(text.decode("ascii"))) for text in match.group(1, 2)]
        elif match[5]:
            addresses = [canonical(IPv6Address(text.decode("ascii"))) for text in match.group(5, 6)]
        else:
            return ProxyHeader()
    except ValueError as error:
        raise ProxyError(f"a malformed address: {line!r}") from error
    source_port, destination_port = (int(port) for port in match.group(3, 4, 7, 8) if port)
    if source_port > 65535 or destination_port > 65535:
        raise ProxyError(f"a port beyond 65535: {line!r}")
    return ProxyHeader((addresses[0], source_port))


# Version 2.


def _parse_block(octets: bytes) -> ProxyHeader:
    version, command = divmod(octets[12], 16)
    family, transport = divmod(octets[13], 16)
    if version != 2 or command > 1:
        raise ProxyError(f"version and command {octets[12]:#04x}, meant: 0x20 or 0x21")
    if command == 0:
        return ProxyHeader(local=True)  # all else is to be passed over, the family too
    if family not in _ADDRESS_SIZES or transport > 2:
        raise ProxyError(f"family and transport {octets[13]:#04x}, which there is not")
    if not family or not transport:
        return ProxyHeader()  # unspecified: what the block holds cannot be known
    size = _ADDRESS_SIZES[family]
    addresses_end = _HEAD + 2 * size + (0 if family == 3 else 4)
    if len(octets) < addresses_end:
        raise ProxyError(f"{len(octets) - _HEAD} octets are too few for the addresses of family {family}")
    _check_tlvs(octets, addresses_end)
    address: IPv4Address | IPv6Address
    if family == 1:
        address = IPv4Address(octets[_HEAD : _HEAD + size])
    elif family == 2:
        address = IPv6Address(octets[_HEAD : _HEAD + size])
    else:
        return ProxyHeader()  # a Unix socket is no address that mail could come from
    return ProxyHeader((canonical(address), int.from_bytes(octets[addresses_end - 4 : addresses_end - 2])))


def _check_tlvs(octets: bytes, position: int) -> None:
    """See that the vectors fill the header exactly, and that the checksum is right if there is one."""
    while position < len(octets):
        value = position + 3
        end = value + int.from_bytes(octets[position + 1 : value])
        if value > len(octets) or end > len(octets):
            raise ProxyError("a vector that reaches beyond the header")
        if octets[position] == _CRC32C_TYPE:
            without = octets[:value] + bytes(end - value) + octets[end:]
            if octets[value:end] != crc32c(without).to_bytes(4):
                raise ProxyError("a checksum that is wrong")
        position = end


def _table() -> tuple[int, ...]:
    table = []
    for crc in range(256):
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return tuple(table)


_CRC32C: Final = _table()


def crc32c(octets: bytes) -> int:
    """Return the CRC32c checksum (RFC 9260 appendix A)."""
    crc = 0xFFFFFFFF
    for octet in octets:
        crc = (crc >> 8) ^ _CRC32C[(crc ^ octet) & 0xFF]
    return crc ^ 0xFFFFFFFF
