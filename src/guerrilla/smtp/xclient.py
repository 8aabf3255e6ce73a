"""XCLIENT: by this command a proxy says for whom it speaks. It is Postfix's extension, and nginx's mail proxy uses it.

``XCLIENT name=value …``: the names are those of ``ATTRIBUTES``, each once at most, in any order and case of letters.
Values are xtext (RFC 3461 section 4), or ``[UNAVAILABLE]`` or ``[TEMPUNAVAIL]`` where nothing is known. All are
checked; the client's name, its login, and the address that it has connected to, are of no use here and forgotten.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from guerrilla.smtp.commands import CommandError
from guerrilla.smtp.proxy import canonical
from guerrilla.smtp.replies import BAD_XCLIENT

ATTRIBUTES: Final = "NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT"
"""What EHLO says that we take."""
MAX_VALUE: Final = 255
"""Octets of a value, decoded."""

_XTEXT = re.compile(rb"(?:[\x21-\x2a\x2c-\x3c\x3e-\x7e]|\+[0-9A-F]{2})+")
_ESCAPE = re.compile(rb"\+(..)")
_UNKNOWN = frozenset({b"[UNAVAILABLE]", b"[TEMPUNAVAIL]"})
_WORD = re.compile(rb"[\x21-\x7e]+")
_PRINTABLE = re.compile(rb"[^\x00-\x1f\x7f]+")
_PORT = re.compile(rb"0|[1-9][0-9]{0,4}")
# What IPv4Address and IPv6Address are given; "%" and what is no ASCII they would take.
_IPV4 = re.compile(rb"[0-9.]{7,15}")
_IPV6 = re.compile(rb"[0-9A-Fa-f:.]{2,45}")


@dataclass(frozen=True, slots=True)
class XClient:
    """What a proxy has said of its client. None: nothing, so what was known before holds."""

    address: str | None = None
    """In canonical form, IPv6 without a prefix."""
    port: int | None = None
    helo: str | None = None
    esmtp: bool | None = None


def parse_xclient(argument: bytes) -> XClient:
    """Read the attributes. Raises CommandError with the reply 501."""
    given: dict[bytes, str | None] = {}
    for word in argument.split(b" "):
        name, _, value = word.partition(b"=")
        name = name.upper()
        if name not in _READERS or name in given or not _XTEXT.fullmatch(value):
            raise CommandError(BAD_XCLIENT)
        try:
            given[name] = _value(name, value)
        except ValueError:
            raise CommandError(BAD_XCLIENT) from None
    port, protocol = given.get(b"PORT"), given.get(b"PROTO")
    return XClient(
        given.get(b"ADDR"),
        None if port is None else int(port),
        given.get(b"HELO"),
        None if protocol is None else protocol == "ESMTP",
    )


def _value(name: bytes, value: bytes) -> str | None:
    """Decode and check a value; None if it is not known. Raises ValueError."""
    if value.upper() in _UNKNOWN:
        return None
    decoded = _ESCAPE.sub(lambda pair: bytes.fromhex(pair[1].decode("ascii")), value)
    if len(decoded) > MAX_VALUE:
        raise ValueError("a value that is too long")
    return _READERS[name](decoded)


def _address(value: bytes) -> str:
    if value[:5].upper() == b"IPV6:":
        return canonical(IPv6Address(_matching(_IPV6, value[5:])))
    return canonical(IPv4Address(_matching(_IPV4, value)))


def _port(value: bytes) -> str:
    port = _matching(_PORT, value)
    if int(port) > 65535:
        raise ValueError("a port beyond 65535")
    return port


def _protocol(value: bytes) -> str:
    protocol = value.upper()
    if protocol not in (b"SMTP", b"ESMTP"):
        raise ValueError("a protocol that is neither SMTP nor ESMTP")
    return protocol.decode("ascii")


def _word(value: bytes) -> str:
    return _matching(_WORD, value)


def _login(value: bytes) -> str:
    return _matching(_PRINTABLE, value)


def _matching(pattern: re.Pattern[bytes], value: bytes) -> str:
    if not pattern.fullmatch(value):
        raise ValueError("a value that is malformed")
    return value.decode("utf-8")


_READERS: Final[Mapping[bytes, Callable[[bytes], str]]] = {
    b"NAME": _word,
    b"ADDR": _address,
    b"PORT": _port,
    b"PROTO": _protocol,
    b"HELO": _word,
    b"LOGIN": _login,
    b"DESTADDR": _address,
    b"DESTPORT": _port,
}
