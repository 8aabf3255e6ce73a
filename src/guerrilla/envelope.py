"""The envelope: one message on its way, and the addresses written on it.

Everything else that travels through the house is frozen; the envelope is the one thing that changes, because the
processors write their findings on it. It knows nothing of sockets, stores or configuration.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv6Address
from typing import Any

Body = bytes | mmap.mmap
"""The octets of a message: in memory, or a read-only map of an unlinked temporary file. Both have ``find``, ``len``
and slices that are ``bytes``."""

_DOT_STRING = re.compile(r"[^\s\x00-\x20\x7f\"(),.:;<>@\[\\\]]+(?:\.[^\s\x00-\x20\x7f\"(),.:;<>@\[\\\]]+)*")


class Written:
    """Holds the text of an address, or of a reply, where it was known when that was made: see ``written``.

    It is no field: it tells no more.
    """

    __slots__ = ("_written",)

    _written: str


@dataclass(frozen=True, slots=True)
class Address(Written):
    """A mailbox as RFC 5321 section 4.1.2 has it, read and normalised.

    ``user`` is the local part without its quotes, ``host`` the domain in lower case (an address literal stays in its
    brackets, its address in canonical form, and ``ip`` holds it parsed). The null path ``<>`` has neither.
    ``<postmaster>`` has no host. ``route`` is the source route that stood before it, which RFC 5321 appendix C tells
    us to read and ignore.
    """

    user: str = ""
    host: str = ""
    ip: IPv4Address | IPv6Address | None = None
    route: tuple[str, ...] = field(default=(), compare=False)

    @property
    def null_path(self) -> bool:
        """Whether this is ``<>``, the sender of bounces."""
        return not self.user and not self.host

    @property
    def is_ascii(self) -> bool:
        """Whether it can be used without SMTPUTF8 (RFC 6531)."""
        return self.user.isascii() and self.host.isascii()

    def __str__(self) -> str:
        """Write it as ``user@host``, the local part quoted where it must be; the null path is the empty string."""
        try:
            return self._written  # it is asked for several times a message
        except AttributeError:
            return self.at(self.host) if self.user or self.host else ""

    def at(self, host: str) -> str:
        """Write the mailbox that the same user has at another host."""
        user = self.user
        # Most are letters and digits alone, and to see that is quicker.
        if not user.isalnum() and not _DOT_STRING.fullmatch(user):
            user = '"' + user.replace("\\", "\\\\").replace('"', '\\"') + '"'
        return f"{user}@{host}" if host else user


class _Draft(Written):
    """An address before it is frozen: to write the attributes of one that is frozen takes three times as long."""

    __slots__ = ("host", "ip", "route", "user")


def mailbox(user: str, host: str) -> Address:
    """Return ``Address(user, host)``, made in less time; for a local part that need not be quoted, and a host."""
    draft: Any = _Draft()
    draft._written = f"{user}@{host}"
    draft.user = user
    draft.host = host
    draft.ip = None
    draft.route = ()
    draft.__class__ = Address
    return draft  # type: ignore[no-any-return]  # it is an Address by now


NULL_PATH = Address()
"""The reverse-path ``<>``."""


EPOCH = datetime.fromtimestamp(0, UTC)
"""The time of an envelope that is not stamped yet."""


@dataclass(frozen=True, slots=True)
class ClientCertificate:
    """The certificate that a client has shown, and that was verified: by which authorities, the configuration says."""

    subject: str
    """Whom it is for, written as RFC 4514 has it: ``CN=mail.example.com,O=Example``."""
    issuer: str
    serial_number: str
    """Hexadecimal digits, upper case."""
    fingerprint: str
    """SHA-256 of the certificate, 64 hexadecimal digits, lower case."""
    der: bytes = field(repr=False)
    """The certificate itself, for who needs more of it."""


@dataclass(frozen=True, slots=True)
class TLSInfo:
    """What is known of the TLS session that the message came over."""

    version: str
    """Such as ``TLSv1.3``."""
    cipher: str
    """OpenSSL's name of the cipher suite."""
    server_name: str = ""
    """The name that the client has asked for (SNI, RFC 6066 section 3), as it wrote it; empty: it named none, or what
    cannot be a name. Anybody can ask for anything."""
    client_certificate: ClientCertificate | None = None
    """What the client has shown, if it was asked to."""


class Headers:
    """The header fields of a message, in order, with repeated names kept; looked up without regard to case.

    Values are unfolded text as they came: decode encoded words with the parser that filled this, not here.
    """

    __slots__ = ("_index", "fields")

    def __init__(self, fields: Sequence[tuple[str, str]] = ()) -> None:
        self.fields = tuple(fields)
        """Each name with its value, in order."""
        self._index: dict[str, list[str]] | None = None

    def __len__(self) -> int:
        return len(self.fields)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self.fields)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and bool(self._values(name))

    def get(self, name: str, default: str = "") -> str:
        """Return the first value of the field, or the default."""
        values = self._values(name)
        return values[0] if values else default

    def get_all(self, name: str) -> list[str]:
        """Return every value of the field, in the order of the message."""
        return list(self._values(name))

    def _values(self, name: str) -> Sequence[str]:
        index = self._index
        if index is None:  # of most messages nobody asks for a field
            index = {}
            for each, value in self.fields:
                index.setdefault(each.lower(), []).append(value)
            self._index = index
        return index.get(name.lower(), ())

    def __repr__(self) -> str:
        return f"Headers({list(self.fields)!r})"


NO_HEADERS = Headers()
"""Those of a message that nobody has looked at."""


@dataclass(slots=True, eq=False)
class Envelope:
    """One message on its way: who sent it, to whom, over what connection, and its octets.

    The first group is what the dialogue learnt; nothing in it can be trusted but ``remote_ip``. The second group is
    filled by the processors, each of which says in its own documentation what it reads and writes.
    """

    remote_ip: str = ""
    remote_port: int = 0
    server: str = ""
    """The listening interface that took the connection, as it is configured."""
    helo: str = ""
    esmtp: bool = False
    tls: TLSInfo | None = None
    mail_from: Address = NULL_PATH
    rcpt_to: list[Address] = field(default_factory=list)
    """The accepted recipients, each once. While ``validate_rcpt`` runs, the last one is the one in question."""
    body_type: str = "7BIT"
    """``7BIT``, ``8BITMIME`` or ``BINARYMIME``, as MAIL said (RFC 6152, RFC 3030)."""
    smtputf8: bool = False
    data: Body = field(default=b"", repr=False)
    """The message as it came, CRLF and all, dots unstuffed, no trace header added."""

    queued_id: str = ""
    """The name of this transaction, 32 hexadecimal digits, made by the gateway; the client is told it with the 250."""
    received_at: datetime = EPOCH
    """When the whole message had come, UTC; stamped by the gateway, since the dialogue has no clock."""
    header: Headers = NO_HEADERS
    subject: str = ""
    hashes: list[str] = field(default_factory=list)
    """One key per recipient, in the order of ``rcpt_to``."""
    delivery_header: bytes = b""
    """What goes in front of the message when it is stored: Delivered-To and Received."""
    values: dict[str, object] = field(default_factory=dict)
    """What one processor leaves for a later one."""
    spent: float = field(default=0.0, repr=False)
    """Seconds that processors have taken so far: what those further down took is taken off their caller's time."""

    def __len__(self) -> int:
        """Return the size as it is stored: delivery header and message."""
        return len(self.delivery_header) + len(self.data)

    def __bool__(self) -> bool:
        """Be true, also when empty: an envelope is not a container."""
        return True

    def __bytes__(self) -> bytes:
        """Return the whole message as it is stored, delivery header first, in memory."""
        return self.delivery_header + self.data[:]

    def chunks(self, size: int = 65536) -> Iterator[bytes]:
        """Yield the message as it is stored, a piece at a time, so that a large one is never whole in memory."""
        if self.delivery_header:
            yield self.delivery_header
        data = self.data
        for start in range(0, len(data), size):
            yield data[start : start + size]
