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

# RFC 5322 section 3.3. Written out, since strftime speaks the language of the locale.
_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

# The dialogue has let nothing in that could leave its line; this is the last gate, for what other code has set.
_NOT_ASCII_TEXT: Final = re.compile(r"[^\x20-\x7e]")
_NOT_TEXT: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
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
    """Return the trace header that ``host`` writes: Delivered-To, if there is a recipient, and Received."""
    utf8 = bool(envelope.smtputf8)
    header = _received(envelope, host, date, utf8)
    if envelope.rcpt_to:
        header = f"Delivered-To: {_text(envelope.rcpt_to[0].at(host), utf8)}\r\n{header}"
    return header.encode()


def _received(envelope: Any, host: str, date: str, utf8: bool) -> str:
    """Return the Received field, folded, with its CRLF.

    The recipient stands in it only if there is one: several would tell each of the others (RFC 5321 section 7.2).
    """
    helo = _BREAKS_HELO.sub("?", _text(envelope.helo, utf8)) or "unknown"
    name = envelope.hashes[0] if envelope.hashes else envelope.queued_id  # a store tells the client the first hash
    named = f" id {_text(name, utf8)}" if name else ""
    meant = f"\r\n\tfor <{_text(str(envelope.rcpt_to[0]), utf8)}>" if len(envelope.rcpt_to) == 1 else ""
    return (
        f"Received: from {helo}{_tcp_info(envelope.remote_ip)}\r\n"
        f"\tby {_text(host, utf8)} with {_protocol(envelope)}{named}{meant};\r\n"
        f"\t{date}\r\n"
    )


def _text(text: str, utf8: bool) -> str:
    """Return the text so that it stays on its line: ``?`` for what may not stand there, cut to ``_MAX_TEXT`` octets.

    A header has octets beyond ASCII only if the client asked for SMTPUTF8 (RFC 6531 section 3.7.3).
    """
    if len(text) <= _MAX_TEXT and text.isascii() and text.isprintable():
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
