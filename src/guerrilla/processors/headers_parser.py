"""HeadersParser: writes on the envelope what its header says."""

from __future__ import annotations

from guerrilla.backends.processor import Envelope, Processor, ProcessorConfig
from guerrilla.header import parse_header, text_of


class HeadersParser(Processor[ProcessorConfig]):
    """Reads the header of the message.

    Reads ``data``. Sets ``header``, all fields in order, unfolded, as they came; and ``subject``, with its encoded
    words (RFC 2047) decoded. Folded lines, raw UTF-8 and malformed lines are taken as they are; a message without a
    header has none. It never refuses a message.
    """

    def annotate(self, envelope: Envelope) -> None:
        """Fill ``header`` and ``subject``."""
        envelope.header = parse_header(envelope.data)
        envelope.subject = text_of(envelope.header, "Subject")
