"""Header: writes what goes in front of a message when it is stored, where it was delivered and how it came."""

from __future__ import annotations

import socket

from guerrilla.backends.processor import Envelope, Field, Processor, ProcessorConfig
from guerrilla.trace_header import Dates, trace_header


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
        self._host = config.primary_mail_host  # to ask a model of pydantic's takes longer
        self._dates = Dates()

    def annotate(self, envelope: Envelope) -> None:
        """Fill ``delivery_header``."""
        envelope.delivery_header = trace_header(envelope, self._host, self._dates.write(envelope.received_at))
