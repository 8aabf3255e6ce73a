"""One mail transaction, from MAIL to the answer to its content, and one chunk of BDAT.

All that belongs to a transaction is in this object, and it is thrown away whole: nothing of one message, not its
sender, a recipient or an octet, can reach the next one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from guerrilla.envelope import Address, Envelope
from guerrilla.smtp.data import Content, DotReader, Newlines
from guerrilla.smtp.replies import Reply
from guerrilla.smtp.settings import House, Settings


class Transaction:
    """What was said since MAIL was accepted."""

    __slots__ = (
        "_before", "_latest", "_named", "_settings", "chunks_failed", "content", "envelope", "overshoot", "reader",
        "recipients",
    )  # fmt: skip

    def __init__(self, envelope: Envelope, settings: Settings) -> None:
        self._settings = settings
        self.envelope = envelope
        self.recipients = 0
        """RCPT commands that were accepted, those that repeat a recipient included."""
        self._before = 0
        """Those on the envelope when the latest was added."""
        self._latest: Address | None = None
        self._named: set[Address | None] | None = None
        self.overshoot = 0
        """RCPT commands beyond the limit."""
        self.content: Content | None = None
        self.reader: DotReader | None = None
        self.chunks_failed = False
        """Whether a chunk was refused, so that no other can be taken (RFC 3030 section 4.2)."""

    @property
    def in_chunks(self) -> bool:
        """Whether a BDAT sequence is under way: nothing but BDAT or RSET may follow (RFC 3030 section 2)."""
        return self.content is not None or self.chunks_failed

    def add(self, recipient: Address) -> bool:
        """Write a recipient on the envelope, or return False: it was named before.

        What a processor makes of it there is the processor's: it is known again by what the client has called it.
        """
        if self._latest is not None:
            if self._named is None:  # a set to search in: most messages have one recipient, and need none
                self._named = {self._latest}
            if recipient in self._named:
                return False
            self._named.add(recipient)
        self._latest = recipient
        recipients = self.envelope.rcpt_to
        self._before = len(recipients)
        recipients.append(recipient)
        return True

    def keep(self) -> None:
        """Let the recipient that was added last stay, as whatever a processor has made of it."""
        envelope: Any = self.envelope
        if not isinstance(envelope.rcpt_to, list):
            envelope.rcpt_to = list(envelope.rcpt_to)

    def take_back(self) -> None:
        """Strike out the recipient that was added last; the processor that refused it may have done so itself."""
        self.keep()
        del self.envelope.rcpt_to[self._before :]
        self.recipients -= 1
        if self._named is None:
            self._latest = None
        else:
            self._named.discard(self._latest)

    def open_content(self, house: House) -> Content:
        """Make the place for the octets that come now."""
        binary = self.envelope.body_type == "BINARYMIME"
        newlines = Newlines.KEEP if binary else self._settings.newlines
        self.content = Content(house.open_body(), self._settings.max_size, newlines)
        return self.content

    def discard(self) -> None:
        """Give back what the content holds."""
        if self.content is not None:
            self.content.discard()
            self.content = None
            self.reader = None


@dataclass(slots=True)
class Chunk:
    """One BDAT command: so many octets follow, whatever they are, and they are read even when they are refused."""

    size: int
    last: bool
    into: Content | Reply
    """Where the octets go, or why they go nowhere."""
    left: int
