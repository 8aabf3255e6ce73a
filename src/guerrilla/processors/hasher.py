"""Hasher: names each copy of a message, one per recipient."""

from __future__ import annotations

from hashlib import blake2s

from guerrilla.backends.processor import CallNext, Envelope, Processor, ProcessorConfig, Reply

_DIGEST_SIZE = 16
"""Octets: written as 32 hexadecimal digits, as wide as the column that the Go program's tables have for it."""


class Hasher(Processor[ProcessorConfig]):
    """Makes a key for each recipient's copy of the message.

    Reads ``queued_id``, ``mail_from``, ``subject`` and ``rcpt_to``. Sets ``hashes``: 32 hexadecimal digits (BLAKE2s)
    per recipient, in their order. The key of one recipient does not depend on the others, and a second run over the
    same envelope gives the same keys. List HeadersParser before it.
    """

    async def save_mail(self, envelope: Envelope, call_next: CallNext) -> Reply:
        """Fill ``hashes``, and pass on."""
        message = blake2s(digest_size=_DIGEST_SIZE, usedforsecurity=False)
        for field in (envelope.queued_id, str(envelope.mail_from), envelope.subject):
            octets = field.encode("utf-8", "surrogatepass")
            # Its length in front, so that no two fields run into one another.
            message.update(b"%d:%b" % (len(octets), octets))
        hashes = []
        for recipient in envelope.rcpt_to:
            copy = message.copy()
            copy.update(str(recipient).encode("utf-8", "surrogatepass"))
            hashes.append(copy.hexdigest())
        envelope.hashes = hashes
        return await call_next()
