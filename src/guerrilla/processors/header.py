"""Header: writes what goes in front of a message when it is stored, where it was delivered and how it came."""

from __future__ import annotations

import re
import socket
from datetime import UTC, datetime
from ipaddress import ip_address

from guerrilla.backends.processor import CallNext, Envelope, Field, Processor, ProcessorConfig, Reply

# RFC 5322 section 3.3. Written out, since strftime speaks the language of the locale.
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

# The dialogue has let nothing in that could leave its line; this is the last gate, for what other code has set.
_NOT_ASCII_TEXT = re.compile(r"[^\x20-\x7e]")
_NOT_TEXT = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_BREAKS_HELO = re.compile(r"[\s()<>@,;\\\"]")

_MAX_TEXT = 400
"""Octets of one text on a line, at most two a line: RFC 5322 section 2.1.1 allows 998. Valid ones are shorter."""


class HeaderConfig(ProcessorConfig):
    """The keys of Header."""

    primary_mail_host: str = Field(
        default_factory=socket.gethostname,
        min_length=1,
        max_length=255,
        description="The host name of this server in Delivered-To and Received; as a default, the machine's own.",
    )


class Header(Processor[HeaderConfig]):
    """Writes the trace header: Delivered-To, for the first recipient at ``primary_mail_host``, and Received.

    Reads the sender's side of the envelope (``helo``, ``remote_ip``, ``esmtp``, ``tls``, ``smtputf8``), ``rcpt_to``,
    ``received_at``, and ``hashes`` or else ``queued_id``. Sets ``delivery_header``: a store writes it before ``data``.
    """

    def __init__(self, config: HeaderConfig) -> None:
        super().__init__(config)
        self._second: tuple[int | None, str] = (None, "")
        """The latest second, and how it is written: much mail comes in one."""

    async def save_mail(self, envelope: Envelope, call_next: CallNext) -> Reply:
        """Fill ``delivery_header``, and pass on."""
        host = self.config.primary_mail_host
        header = _received(envelope, host, self._date(envelope.received_at))
        if envelope.rcpt_to:
            delivered_to = envelope.rcpt_to[0].at(host)
            header = f"Delivered-To: {_text(delivered_to, envelope.smtputf8)}\r\n{header}"
        envelope.delivery_header = header.encode()
        return await call_next()

    def _date(self, moment: datetime) -> str:
        latest, written = self._second
        second = int(moment.timestamp())
        if second != latest:
            written = _date(moment)
            self._second = second, written
        return written


def _received(envelope: Envelope, host: str, date: str) -> str:
    """Return the Received field (RFC 5321 section 4.4), folded, with its CRLF.

    The recipient stands in it only if there is one: several would tell each of the others (section 7.2).
    """
    utf8 = envelope.smtputf8
    helo = _BREAKS_HELO.sub("?", _text(envelope.helo, utf8)) or "unknown"
    clauses = f"by {_text(host, utf8)} with {_protocol(envelope)}"
    name = envelope.hashes[0] if envelope.hashes else envelope.queued_id  # a store tells the client the first hash
    if name:
        clauses += f" id {_text(name, utf8)}"
    if len(envelope.rcpt_to) == 1:
        clauses += f"\r\n\tfor <{_text(str(envelope.rcpt_to[0]), utf8)}>"
    return f"Received: from {helo}{_tcp_info(envelope.remote_ip)}\r\n\t{clauses};\r\n\t{date}\r\n"


def _text(text: str, utf8: bool) -> str:
    """Return the text so that it stays on its line: ``?`` for what may not stand there, cut to ``_MAX_TEXT`` octets.

    A header has octets beyond ASCII only if the client asked for SMTPUTF8 (RFC 6531 section 3.7.3).
    """
    if len(text) <= _MAX_TEXT and text.isascii() and text.isprintable():
        return text
    if not utf8:
        return _NOT_ASCII_TEXT.sub("?", text)[:_MAX_TEXT]
    return _NOT_TEXT.sub("?", text).encode()[:_MAX_TEXT].decode("utf-8", "ignore")


def _protocol(envelope: Envelope) -> str:
    """Return the name of the protocol that the message came by: RFC 3848, RFC 6531 section 4.3.

    There is no name for HELO over TLS, so that is SMTP.
    """
    if not envelope.esmtp:
        return "SMTP"
    return ("UTF8SMTP" if envelope.smtputf8 else "ESMTP") + ("S" if envelope.tls else "")


def _tcp_info(remote_ip: str) -> str:
    """Return the client's address as a literal (RFC 5321 section 4.1.3) in round brackets; nothing if it has none."""
    try:
        socket.inet_pton(socket.AF_INET, remote_ip)  # strict: what it takes is written as it should be
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
