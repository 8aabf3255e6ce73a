"""The keys of a message's copies: 32 hexadecimal digits for each recipient.

A key begins with the time of the message, as its queue id does: so an index of keys grows at its end. Were they chance
alone, each message would have a page in the middle of it to change.

The envelope is Any: compiled code holds to types, and a processor may have put a tuple where a list belongs.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any, Final

from guerrilla.written import written

_DIGITS: Final = 32
"""Of a key: as wide as the column that the Go program's tables have for it."""

_TIME_DIGITS: Final = 12
"""Of these, the ones that the queue id begins with: its time in milliseconds. The other 20 are 80 bits of a digest."""

_BLANK: Final = blake2b(digest_size=_DIGITS // 2, usedforsecurity=False)
"""What each digest begins as: to copy it is quicker than to make one. Nothing is added to it."""


def copy_keys(envelope: Any) -> list[str]:
    """Return a key per recipient, in their order: made of the transaction, the sender, the subject and that one.

    A queue id that a program has made in its own way may begin with no time: then the whole key is the digest.
    """
    queued_id: str = envelope.queued_id
    sender = written(envelope.mail_from)
    subject: str = envelope.subject
    time = queued_id[:_TIME_DIGITS]
    if not _is_hexadecimal(time):
        time = ""
    # Each text with its length in front, so that no two of them run into one another.
    message = f"{len(queued_id)}:{queued_id}{len(sender)}:{sender}{len(subject)}:{subject}"
    keys = []
    for recipient in envelope.rcpt_to:
        digest = _BLANK.copy()
        digest.update((message + written(recipient)).encode("utf-8", "surrogatepass"))
        keys.append((time + digest.hexdigest())[:_DIGITS])
    return keys


def _is_hexadecimal(text: str) -> bool:
    """Whether all of it is digits and small letters up to f."""
    for index in range(len(text)):
        octet = ord(text[index])
        if not (48 <= octet <= 57 or 97 <= octet <= 102):
            return False
    return True
