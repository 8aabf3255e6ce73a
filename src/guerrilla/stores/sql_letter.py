"""What a message becomes in the table of mail: a row per recipient, and its octets once for all of them.

It is compiled: this is done for each message that a database keeps. What a processor may have put into the envelope is
Any: compiled code holds to types, and a tuple may stand where a list belongs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC
from ipaddress import ip_address
from socket import AF_INET, inet_pton
from typing import Any, Final

from guerrilla.backends.batch import BatchRefusedError
from guerrilla.envelope import Address, Envelope, Headers
from guerrilla.stores.body import MAX_ON_LOOP, body_in, compressed_of
from guerrilla.stores.sql_errors import cause_of
from guerrilla.stores.sql_table import HASH, MAIL, RECIPIENT
from guerrilla.stores.sql_values import COPIED, Row
from guerrilla.written import written

_FIELDS: Final = ("Content-Type", "Message-ID", "Reply-To", "Sender")
"""Those of the header that have columns."""
_COLUMNS: Final = frozenset(name.lower() for name in _FIELDS)
_SHORTEST: Final = 6
_LONGEST: Final = 12
"""Characters of their names, all of which are even."""

_IPV4: Final = int(AF_INET)  # a member of an enumeration would be asked which number it is

_NOTHING: Final = bytearray()

_ROW_OVERHEAD: Final = 10_000
"""Octets, at most, that the other columns of a row take in a statement: their widths, in UTF-8."""
_ROW_USUALLY: Final = 1_000
"""Octets that they take of most messages, generously."""


class Letter:
    """One message on its way into the table. Its octets stay where they are until ``mail`` is asked for.

    The octets go elsewhere if ``values["redis"]`` is "redis", as Redis leaves it: then ``body`` says so, the column
    ``mail`` stays empty, and every row has the hash that is the key there. After Compressor, ``body`` is
    the ``encoding`` that it names: "gzip", which is zlib, or "zstd".
    """

    __slots__ = ("_compressed", "_envelope", "_octets", "elsewhere", "name", "rows", "size")

    def __init__(self, envelope: Envelope, host: str) -> None:
        self._envelope = envelope
        message: Any = envelope
        values = message.values
        self.elsewhere = bool(values) and values.get("redis") == "redis"
        size, body, compressed = 0, "redis", None
        if not self.elsewhere:
            size = _size_of(message)
            compressed = compressed_of(envelope) if values else None
            body = clean(getattr(compressed, "encoding", "gzip"), 64) if compressed is not None else ""
        self._compressed: Any = compressed
        self._octets = size
        """Those of the message, before it was compressed; 0 if they are elsewhere."""
        hashes = message.hashes
        self.name: Any = hashes[0] if hashes else message.queued_id
        """What names the message once its rows are there: the first of its hashes, if it has any."""
        self.rows = _rows(envelope, host, body)
        self.size = size * len(self.rows)
        """Octets that the rows take, about."""

    @property
    def keys(self) -> list[tuple[str, str]]:
        """Hash and recipient of each row."""
        return [(row[HASH], row[RECIPIENT]) for row in self.rows]

    def mail_at_hand(self) -> bytes | None:
        """Return what the column ``mail`` holds, if it can be had at once."""
        if self.elsewhere:
            return b""
        if self._compressed is None:
            return bytes(self._envelope) if self._octets <= MAX_ON_LOOP else None
        ask = getattr(self._compressed, "at_hand", None)
        octets: object = ask() if callable(ask) else None
        return octets if type(octets) is bytes else None

    def for_sqlite(self) -> bytearray | None:
        """Return the same as a bytearray, made at once, if that is what SQLite's driver takes in less time."""
        message: Any = self._envelope
        kind: Any = type(message)
        if self.elsewhere or self._compressed is not None or kind is not Envelope or self._octets >= COPIED:
            return None
        return _NOTHING.join((message.delivery_header, message.data[:]))

    async def mail(self) -> bytes:
        """Return what the column ``mail`` holds."""
        return b"" if self.elsewhere else await body_in(self._envelope, self._compressed)


def insert_all(
    letters: Sequence[Letter],
    insert: Callable[[list[Row]], object],
    wait: Callable[[Awaitable[bytes]], bytes],
    *,
    limit: int,
    packet: int,
    embedded: bool,
) -> None:
    """Give ``insert`` the rows of the letters, as many at a time as have ``limit`` octets of mail, or one.

    The octets of a message are had only for its own statement; ``wait`` has them if they are not at hand. A statement
    may have ``packet`` octets. ``embedded``: the octets are for SQLite's driver.

    Raises:
        BatchRefusedError: if a message is larger than that, or its octets cannot be had.
    """
    rows: list[Row] = []
    size = 0
    for letter in letters:
        mail = _octets_of(letter, wait, embedded)
        octets = len(mail)
        if octets + _ROW_OVERHEAD > packet:
            raise BatchRefusedError(f"it is larger than the max_allowed_packet of the database, {packet} octets")
        for row in letter.rows:
            if rows and size + octets > limit:
                insert(rows)
                rows, size = [], 0
            whole = row.copy()  # the letter's own stays without the octets
            whole[MAIL] = mail
            rows.append(whole)
            size += octets + _ROW_USUALLY
    insert(rows)


def _octets_of(letter: Letter, wait: Callable[[Awaitable[bytes]], bytes], embedded: bool) -> bytes | bytearray:
    """Return the octets of a message. What that raises is its own affair: its time may be over, its map closed.

    Also a cancellation: if it is we who are cancelled, ``Database.run`` says so, whatever is raised here.
    """
    try:
        mail: bytes | bytearray | None = letter.for_sqlite() if embedded else None
        if mail is None:
            mail = letter.mail_at_hand()
        return mail if mail is not None else wait(letter.mail())
    except KeyboardInterrupt:
        raise  # it is the program that is to end
    except BaseException as error:
        failure = BatchRefusedError(f"its octets cannot be had: {cause_of(error)}")
        failure.__cause__ = error  # what mypyc makes of "raise from" leaves it out
        raise failure from error


def _size_of(message: Any) -> int:
    """Return ``len(message)``; of our own kind of envelope in less time."""
    kind: Any = type(message)
    if kind is not Envelope:
        return len(message)
    return len(message.delivery_header) + len(message.data)


def _at(recipient: Any, host: str) -> str:
    """Return ``recipient.at(host)``; of most addresses, whose user has letters and digits alone, in less time."""
    kind: Any = type(recipient)
    if kind is Address and host:
        user: object = recipient.user
        if isinstance(user, str) and user.isalnum():
            return f"{user}@{host}"
    text: str = recipient.at(host)
    return text


def _rows(envelope: Any, host: str, body: str) -> list[Row]:
    """Return one row per recipient, without the octets; ``date`` is in UTC, and says so."""
    received = envelope.received_at
    if received.tzinfo is not UTC:
        received = received.astimezone(UTC)
    sender = clean(written(envelope.mail_from), 255)
    subject = clean(envelope.subject, 255)
    fields = _first_values(envelope.header)
    content_type = clean(fields.get("content-type", ""), 64)
    message_id = _in_brackets(fields.get("message-id", ""))
    reply_to = clean(_in_brackets(fields["reply-to"]), 256) if "reply-to" in fields else ""
    header_sender = clean(_in_brackets(fields["sender"]), 256) if "sender" in fields else ""
    ip_addr = _packed(envelope.remote_ip)
    is_tls = envelope.tls is not None
    hashes = envelope.hashes
    recipients = envelope.rcpt_to
    if len(hashes) != len(recipients):
        hashes = [envelope.queued_id] * len(recipients)
    elif body == "redis":
        hashes = hashes[:1] * len(hashes)
    rows = []
    for index, recipient in enumerate(recipients):
        key = hashes[index]
        rows.append(
            [  # in the order of COLUMNS
                received,
                sender,
                clean(_at(recipient, host), 256),
                subject,
                body,
                b"",
                0.0,
                clean(key, 32),
                content_type,
                clean(written(recipient), 255),
                0,
                ip_addr,
                sender,
                is_tls,
                clean(message_id or f"{key}.{recipient.user}@{host}", 256),
                reply_to,
                header_sender,
            ]
        )
    return rows


def _first_values(header: Any) -> dict[str, Any]:
    """Return the first value of each field that has a column: to look once takes less time than to ask four times.

    What is not our own, or derived from it, is asked.
    """
    kind: Any = type(header)  # asked for itself, it would have compiled code take the fields for a tuple
    if kind is not Headers:
        return {name.lower(): header.get(name) for name in _FIELDS}
    found: dict[str, Any] = {}
    for each in header.fields:
        name = each[0]
        length = len(name)
        if _SHORTEST <= length <= _LONGEST and not length & 1:  # few others are so long
            name = name.lower()
            if name in _COLUMNS and name not in found:
                found[name] = each[1]
    return found


def _packed(ip: str) -> bytes:
    """Return the address in network order, 4 or 16 octets; nothing if it is none."""
    try:
        return inet_pton(_IPV4, ip)  # strict
    except (OSError, ValueError):
        pass
    try:
        return ip_address(ip).packed
    except ValueError:
        return b""


def _in_brackets(value: str) -> str:
    """Return what stands in the last pair of angle brackets, the address of a header field; else all of it."""
    begin = value.rfind("<") + 1
    if not begin:
        return value
    end = value.find(">", begin)
    return value[begin:end] if end >= 0 else value[begin:]


def clean(text: str, width: int) -> str:
    """Return the text as a column takes it: so many characters, without NUL and lone surrogates."""
    if len(text) > width:
        text = text[:width]
    if text.isascii() and "\0" not in text:
        return text
    return text.replace("\0", "").encode("utf-8", "replace").decode("utf-8")
