"""The content of a message: where it ends, what its newlines may be, how large it may grow, and where it is put.

Content is searched in blocks, never by line. Only CRLF.CRLF ends DATA (RFC 5321 section 4.1.1.4): everything else that
looks like an end is content, so no message can be smuggled inside another. The octets are kept as they came.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Final, Protocol

from guerrilla.envelope import Body
from guerrilla.scan import leading_dot, only_crlf
from guerrilla.smtp.replies import BARE_NEWLINE, MESSAGE_TOO_LARGE, Reply

_SMALL: Final = 4096
"""Octets below which a piece is joined to others: as an object of its own it would cost more than it holds."""
_END_OF_DATA: Final = b"\r\n.\r\n"
_DOT: Final = 0x2E
_ANY_NEWLINE = re.compile(rb"\r\n|\r|\n")


class Newlines(Enum):
    """What becomes of a CR or LF that is not part of a CRLF."""

    REJECT = "reject"
    """The message is refused after its end (RFC 5321 section 2.3.8)."""
    NORMALIZE = "normalize"
    """It becomes CRLF."""
    KEEP = "keep"
    """It is content like any other octet: BODY=BINARYMIME (RFC 3030)."""


class BodyError(Exception):
    """The storage of a body cannot take more; ``reply`` is for the client."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(str(reply))
        self.reply = reply


class BodyWriter(Protocol):
    """Where the octets of one message are put while they come. The server has one that spools to disk."""

    def write(self, octets: bytes) -> None:
        """Take more. Raises BodyError when there is no room."""

    def finish(self) -> Body:
        """Return all that was written. Raises BodyError when that fails."""

    def discard(self) -> None:
        """Give back what is held. Called at the end of the transaction, whatever came of it, perhaps twice."""


class MemoryBody:
    """A body in memory. It takes about as much of it as there are octets, however small the pieces they come in."""

    __slots__ = ("_parts",)

    def __init__(self) -> None:
        self._parts: list[bytes | bytearray] = []

    def write(self, octets: bytes) -> None:
        """Take more."""
        if not self._parts or len(octets) >= _SMALL:
            self._parts.append(octets)
            return
        last = self._parts[-1]
        if isinstance(last, bytearray):
            last += octets
        else:
            self._parts.append(bytearray(octets))

    def finish(self) -> bytes:
        """Return all that was written; what came in one piece is not copied."""
        whole = b"".join(self._parts)
        self._parts = [whole]
        return whole

    def discard(self) -> None:
        """Forget the octets."""
        self._parts.clear()


class Content:
    """Takes the octets of one message, from DATA or BDAT, and holds them to the size limit and the newline policy.

    Once it is ``refused`` it takes everything and keeps nothing, so a message beyond the limit costs no memory and the
    dialogue stays in step.
    """

    __slots__ = ("_body", "_held_cr", "_max_size", "_newlines", "refused", "size")

    def __init__(self, body: BodyWriter, max_size: int, newlines: Newlines) -> None:
        self._body = body
        self._max_size = max_size
        self._newlines = newlines
        self._held_cr = False
        self.size = 0
        """Octets that came, dots unstuffed."""
        self.refused: Reply | None = None
        """Why the message will not be taken."""

    def write(self, octets: bytes) -> None:
        """Take more."""
        if self._held_cr:
            octets = b"\r" + octets
            self._held_cr = False
        if self._newlines is not Newlines.KEEP:
            # A CR at the edge may be the half of a CRLF that a chunk has cut in two.
            if octets.endswith(b"\r"):
                self._held_cr = True
                octets = octets[:-1]
            if not only_crlf(octets):
                octets = self._mend(octets)
        self.size += len(octets)
        if self.size > self._max_size:
            self._refuse(MESSAGE_TOO_LARGE)
        if self.refused is None and octets:
            try:
                self._body.write(octets)
            except BodyError as error:
                self._refuse(error.reply)

    def finish(self) -> Body | Reply:
        """Return the whole content, or why it is refused."""
        if self._held_cr and self._newlines is Newlines.NORMALIZE:
            self._held_cr = False
            self.write(b"\r\n")
        elif self._held_cr:
            self.size += 1
            self._refuse(BARE_NEWLINE)
        if self.refused is not None:
            return self.refused
        try:
            return self._body.finish()
        except BodyError as error:
            return error.reply

    def discard(self) -> None:
        """Give back what is held."""
        self._body.discard()

    def _mend(self, octets: bytes) -> bytes:
        if self._newlines is Newlines.NORMALIZE:
            return _ANY_NEWLINE.sub(b"\r\n", octets)
        self._refuse(BARE_NEWLINE)
        return octets

    def _refuse(self, reply: Reply) -> None:
        if self.refused is None:
            self._body.discard()
        # The first reason stands, but size outweighs all and whatever the client did outweighs our own trouble: else
        # the answer would depend on how the octets were cut.
        if self.refused is None or self.refused.temporary or reply is MESSAGE_TOO_LARGE:
            self.refused = reply


class DotReader:
    """Reads the content of DATA up to CRLF.CRLF, and takes away the dots that the client has stuffed.

    The five octets may come in five reads, so what could be their beginning is held back until more is known.
    """

    __slots__ = ("_content", "_held", "_skip")

    def __init__(self, content: Content) -> None:
        self._content = content
        # The CRLF of the DATA command is the first half of an end that comes at once (RFC 5321 section 4.1.1.4).
        self._held = b"\r\n"
        self._skip = 2

    def feed(self, octets: bytes) -> int:
        """Take octets; return how many of them belong to the message, or -1 if its end has not come."""
        held = self._held
        if self._skip and len(held) == self._skip and octets and octets[0] != _DOT:
            held, self._skip = b"", 0  # the CRLF of the command is half of no end, and no content
        block = held + octets if held else octets
        dotted = leading_dot(block)
        # In most messages the first dot of a line is that of the end.
        end = dotted if block[dotted:] == _END_OF_DATA else block.find(_END_OF_DATA, dotted)
        if end < 0:
            keep = 0
            for length in (4, 3, 2, 1):
                if block.endswith(_END_OF_DATA[:length]):
                    keep = length
                    break
            cut = len(block) - keep
            self._held = block[cut:]
        else:
            cut = end + 2
        if cut:
            skip, self._skip = self._skip, 0
            part = block[skip:cut]
            if dotted < cut - 2:
                # RFC 5321 section 4.5.2: a dot at the beginning of a line that holds more is removed.
                part = block[:cut].replace(b"\r\n.", b"\r\n")[skip:]
            if part:
                self._content.write(part)
        return -1 if end < 0 else end + len(_END_OF_DATA) - len(held)
