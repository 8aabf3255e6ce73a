"""Hasher: names each copy of a message, one per recipient."""

from __future__ import annotations

from guerrilla.backends.processor import Envelope, Processor, ProcessorConfig
from guerrilla.copy_keys import copy_keys


class Hasher(Processor[ProcessorConfig]):
    """Makes a key for each recipient's copy of the message.

    Reads ``queued_id``, ``mail_from``, ``subject`` and ``rcpt_to``. Sets ``hashes``: 32 hexadecimal digits per
    recipient, in their order: 12 of the time with which the queue id begins, and 20 of a digest (BLAKE2b). The key of
    one recipient does not depend on the others, and a second run over the same envelope gives the same keys. List
    HeadersParser before it.
    """

    def annotate(self, envelope: Envelope) -> None:
        """Fill ``hashes``."""
        envelope.hashes = copy_keys(envelope)
