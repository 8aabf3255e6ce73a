"""The trace header of a message: where it was delivered, and how it came (RFC 5321 section 4.4).

What stands here of the client stays on its line, whatever it is. The envelope is Any: compiled code holds to types, and
a processor may have put a tuple or a number where a list or a bool belongs.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from ipaddress import ip_address
from socket import AF_INET, inet_pton
from typing import Any, Final

from guerrilla.envelope import EPOCH
from guerrilla.written import written

# RFC 5322 section 3.3. Written out, since strftime speaks the language of the locale.
_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

# The dialogue has let nothing in that could leave its line; this is the last gate, for what other code has set.
_NOT_ASCII_TEXT: Final = re.compile(r"[^\x20-\x7e]")
_NOT_TEXT: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_CONTROLS_AS_BLANKS: Final = bytes(octet if 0x20 <= octet <= 0x7E else 0x20 for octet in range(256))
_BREAKS_HELO: Final = re.compile(r"[\s()<>@,;\\\"]")

_MAX_TEXT: Final = 400
"""Octets of one text on a line, at most two a line: RFC 5322 section 2.1.1 allows 998. Valid ones are shorter."""


class Dates:
    """Writes dates as RFC 5322 section 3.3 has them, in UTC. It remembers the latest second: much mail comes in one."""

    __slots__ = ("_begin", "_end", "_written")

    def __init__(self) -> None:
        self._begin = self._end = EPOCH
        self._written = _date(EPOCH)

    def write(self, moment: datetime) -> str:
        """Return the date."""
        if moment.tzinfo is not UTC:
            return _date(moment)
        if not self._begin <= moment <= self._end:
            self._written = _date(moment)
            self._begin = moment.replace(microsecond=0)
            self._end = moment.replace(microsecond=999_999)
        return self._written


def trace_header(envelope: Any, host: str, date: str) -> bytes:
    """Return the trace header that ``host`` writes: Delivered-To, if there is a recipient, and Received, folded.

    A recipient stands in Received only if it is alone: several would tell each of the others (RFC 5321 section 7.2).
    """
    recipients, hashes = envelope.rcpt_to, envelope.hashes
    helo: str = envelope.helo
    name: str = (hashes[0] if hashes else envelope.queued_id) or ""  # a store tells the client the first hash
    to, meant = _mailboxes(recipients[0], host) if recipients else ("", "")
    if not _is_plain(f"{helo}{name}{host}{to}{meant}"):  # one look at all of them, since hardly any is not
        utf8 = bool(envelope.smtputf8)
        helo, name, host = _text(helo, utf8), _text(name, utf8), _text(host, utf8)
        to, meant = _text(to, utf8), _text(meant, utf8)
    if not _is_name(helo):
        helo = _BREAKS_HELO.sub("?", helo) or "unknown"
    delivered = f"Delivered-To: {to}\r\n" if recipients else ""
    alone = f"\r\n\tfor <{meant}>" if len(recipients) == 1 else ""
    header = (
        f"{delivered}Received: from {helo}{_tcp_info(envelope.remote_ip)}\r\n"
        f"\tby {host} with {_protocol(envelope)}{' id ' if name else ''}{name}{alone};\r\n"
        f"\t{date}\r\n"
    )
    return header.encode()


def _mailboxes(recipient: Any, host: str) -> tuple[str, str]:
    """Return the mailbox that the recipient has at our host, and its own."""
    user: str = recipient.user
    own = written(recipient)
    if own == f"{user}@{recipient.host}":  # else it has quotes, or no host
        return f"{user}@{host}", own
    return recipient.at(host), own


def _is_plain(text: str) -> bool:
    """Whether it can stand on a line as it is, and so can every part of it."""
    try:
        octets = text.encode("ascii")
    except UnicodeEncodeError:
        return False
    return len(octets) <= _MAX_TEXT and octets.translate(_CONTROLS_AS_BLANKS) == octets


def _is_name(helo: str) -> bool:
    """Whether it is the name of a host, letters and digits, hyphens and dots; none of them breaks the line."""
    for index in range(len(helo)):
        octet = ord(helo[index])
        if not (97 <= octet <= 122 or 48 <= octet <= 57 or 65 <= octet <= 90 or octet == 45 or octet == 46):
            return False
    return bool(helo)


def _text(text: str, utf8: bool) -> str:
    """Return the text so that it stays on its line: ``?`` for what may not stand there, cut to ``_MAX_TEXT`` octets.

    A header has octets beyond ASCII only if the client asked for SMTPUTF8 (RFC 6531 section 3.7.3).
    """
    if _is_plain(text):
        return text
    if not utf8:
        return _NOT_ASCII_TEXT.sub("?", text)[:_MAX_TEXT]
    return _NOT_TEXT.sub("?", text).encode()[:_MAX_TEXT].decode("utf-8", "ignore")


def _protocol(envelope: Any) -> str:
    """Return the name of the protocol that the message came by: RFC 3848, RFC 6531 section 4.3.

    There is no name for HELO over TLS, so that is SMTP.
    """
    if not envelope.esmtp:
        return "SMTP"
    return ("UTF8SMTP" if envelope.smtputf8 else "ESMTP") + ("S" if envelope.tls else "")


def _tcp_info(remote_ip: str) -> str:
    """Return the client's address as a literal (RFC 5321 section 4.1.3) in round brackets; nothing if it has none."""
    try:
        inet_pton(AF_INET, remote_ip)  # strict: what it takes is written as it should be
        return f" ([{remote_ip}])"
    except (OSError, ValueError):
        pass
    try:
        ip = ip_address(remote_ip)
    except ValueError:
        return ""
    # Without the zone: it names an interface of this machine, and no literal has it.
    return f" ([IPv6:{str(ip).partition('%')[0]}])"


def _date(moment: datetime) -> str:
    """Return a date as RFC 5322 section 3.3 has it, in UTC."""
    utc = moment.astimezone(UTC)
    return f"{_DAYS[utc.weekday()]}, {utc.day:02} {_MONTHS[utc.month - 1]} {utc:%Y %H:%M:%S} +0000"
