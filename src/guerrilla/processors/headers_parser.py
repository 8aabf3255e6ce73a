"""HeadersParser: writes on the envelope what its header says."""

from __future__ import annotations

from guerrilla.backends.processor import CallNext, Envelope, Processor, ProcessorConfig, Reply
from guerrilla.header import parse_header, text_of


class HeadersParser(Processor[ProcessorConfig]):
    """Reads the header of the message.

    Reads ``data``. Sets ``header``, all fields in order, unfolded, as they came; and ``subject``, with its encoded
    words (RFC 2047) decoded. Folded lines, raw UTF-8 and malformed lines are taken as they are; a message without a
    header has none. It never refuses a message.
    """

    async def save_mail(self, envelope: Envelope, call_next: CallNext) -> Reply:
        """Fill ``header`` and ``subject``, and pass on."""
        envelope.header = parse_header(envelope.data)
        envelope.subject = text_of(envelope.header, "Subject")
        return await call_next()
