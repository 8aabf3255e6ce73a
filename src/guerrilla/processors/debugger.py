"""Debugger: shows the messages that pass in the log."""

from __future__ import annotations

import asyncio
from itertools import islice

from guerrilla.backends.processor import CallNext, Envelope, Field, Processor, ProcessorConfig, Reply

_MAX_FIELDS = 100
"""Header fields that are logged; real messages have fewer."""

_MAX_VALUE = 256
"""Characters of a value that are logged: a log line is to be read."""


class DebuggerConfig(ProcessorConfig):
    """The keys of Debugger."""

    log_received_mails: bool = Field(default=True, description="Log each message that passes.")
    sleep_seconds: int = Field(
        default=0,
        ge=0,
        description="Hold each message for so many seconds, to try out what gw_save_timeout does.",
    )


class Debugger(Processor[DebuggerConfig]):
    """Logs each message that passes: sender, recipients, subject, header and size.

    Reads ``mail_from``, ``rcpt_to``, ``subject``, ``header`` and the size; sets nothing. List HeadersParser before it
    to see subject and header. With ``sleep_seconds`` it holds the message for that long, to try out time limits.
    """

    async def save_mail(self, envelope: Envelope, call_next: CallNext) -> Reply:
        """Log the message, hold it if so configured, and pass on."""
        if self.config.log_received_mails:
            self.log.info(
                "mail received",
                mail_from=str(envelope.mail_from),
                rcpt_to=[str(recipient) for recipient in envelope.rcpt_to],
                subject=envelope.subject[:_MAX_VALUE],
                header=[
                    (name[:_MAX_VALUE], value[:_MAX_VALUE]) for name, value in islice(envelope.header, _MAX_FIELDS)
                ],
                size=len(envelope),
            )
        if self.config.sleep_seconds:
            await asyncio.sleep(self.config.sleep_seconds)
        return await call_next()
