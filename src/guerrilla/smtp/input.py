"""What a client has sent and the session has not yet read: cut into lines, or taken as octets."""

from __future__ import annotations

from guerrilla.smtp.settings import MAX_COMMAND_LINE


class Input:
    """The octets that wait to be parsed. Bounded: lines by their limit, the rest by a driver that stops reading."""

    __slots__ = ("_octets", "_pos", "_too_long")

    def __init__(self) -> None:
        self._octets = b""
        self._pos = 0
        self._too_long = False

    def __len__(self) -> int:
        return len(self._octets) - self._pos

    def append(self, octets: bytes) -> None:
        """Take what has come."""
        self._octets = self._octets[self._pos :] + octets if self._pos < len(self._octets) else octets
        self._pos = 0

    def clear(self) -> None:
        """Forget all of it."""
        self._octets = b""
        self._pos = 0

    def next_line(self) -> bytes | None:
        """Return the next line, its end included; None if it is not here yet; empty if it was longer than allowed.

        A line that is too long is swallowed up to its end: its tail must never be taken for a command.
        """
        octets, pos = self._octets, self._pos
        if pos == len(octets):
            return None
        # Most clients send a line and wait: to see that there is no other takes less than to find where this one ends.
        alone = pos == 0 and octets.endswith(b"\n") and 10 not in octets[:-1]
        end = len(octets) - 1 if alone else octets.find(b"\n", pos)
        if end < 0:
            if len(self) > MAX_COMMAND_LINE:
                self._too_long = True
                self.clear()
            return None
        line = octets[pos : end + 1]
        self._pos = end + 1
        if self._too_long or len(line) > MAX_COMMAND_LINE:
            self._too_long = False
            return b""
        return line

    def take(self, most: int) -> bytes:
        """Return what there is, but at most so many octets."""
        octets = self._octets[self._pos : self._pos + most]
        self._pos += len(octets)
        return octets

    def rest(self) -> bytes:
        """Return what there is, and leave it: ``skip`` says how much of it was used."""
        return self._octets[self._pos :] if self._pos else self._octets

    def skip(self, count: int) -> None:
        """Leave so many octets behind."""
        self._pos += count
