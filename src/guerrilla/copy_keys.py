"""The keys of a message's copies: 32 hexadecimal digits for each recipient.

The envelope is Any: compiled code holds to types, and a processor may have put a tuple where a list belongs.
"""

from __future__ import annotations

from hashlib import blake2s
from typing import Any, Final

_DIGEST_SIZE: Final = 16
"""Octets: written as 32 hexadecimal digits, as wide as the column that the Go program's tables have for it."""

_BLANK: Final = blake2s(digest_size=_DIGEST_SIZE, usedforsecurity=False)
"""What each key begins as: to copy it is quicker than to make one. Nothing is added to it."""


def copy_keys(envelope: Any) -> list[str]:
    """Return a key per recipient, in their order: made of the transaction, the sender, the subject and that one."""
    message = _BLANK.copy()
    message.update(_field(envelope.queued_id) + _field(str(envelope.mail_from)) + _field(envelope.subject))
    keys = []
    for recipient in envelope.rcpt_to:
        copy = message.copy()
        copy.update(_octets(str(recipient)))
        keys.append(copy.hexdigest())
    return keys


def _field(text: str) -> bytes:
    """Return the octets of a text with their number in front, so that no two fields run into one another."""
    octets = _octets(text)
    return b"%d:%b" % (len(octets), octets)


def _octets(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
