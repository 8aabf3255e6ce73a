"""A form as a browser posts it (application/x-www-form-urlencoded, URL Standard section 5.2), encoded piece by piece.

Its size must be known before it is sent, and a large message must not be in memory to find it out: so there is one
function that counts and one that encodes, and both see the same pieces.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_PLAIN = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789*-._"
_ESCAPED = re.compile(rb"[^A-Za-z0-9*\-._]")
_CODE = tuple(
    bytes((octet,)) if octet in _PLAIN else b"+" if octet == 0x20 else b"%%%02X" % octet for octet in range(256)
)


def encode(octets: bytes) -> bytes:
    """Encode a value, or a piece of one."""
    if _is_binary(octets):
        return b"%" + octets.hex("%").upper().encode()
    return _ESCAPED.sub(lambda match: _CODE[match[0][0]], octets)


def encoded_length(octets: bytes) -> int:
    """Return how long ``encode`` makes it, without encoding it."""
    return len(octets) * 3 if _is_binary(octets) else len(octets) + 2 * _escapes(octets)


def encode_fields(fields: Sequence[tuple[str, str]]) -> bytes:
    """Encode whole fields, as UTF-8; what cannot be written so becomes ``?``."""
    return b"&".join(
        encode(name.encode("utf-8", "replace")) + b"=" + encode(value.encode("utf-8", "replace"))
        for name, value in fields
    )


def _escapes(octets: bytes) -> int:
    return len(octets.translate(None, _PLAIN + b" "))


def _is_binary(octets: bytes) -> bool:
    """Whether so much is to be escaped that escaping all of it costs little room and a hundredth of the time."""
    return _escapes(octets) * 4 > len(octets)
