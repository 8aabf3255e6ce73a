"""How long a client that brings no mail is borne with."""

from __future__ import annotations

from guerrilla.smtp.settings import MAX_ERRORS, MAX_JUNK, MAX_UNRECOGNIZED


class Patience:
    """Counts what a client does wrong, and the commands that bring no mail forward, until a message is taken."""

    __slots__ = ("_errors", "_junk", "_unrecognized")

    def __init__(self) -> None:
        self._errors = self._junk = self._unrecognized = 0

    def renew(self) -> None:
        """Forget what was: the client has brought a message."""
        self._errors = self._junk = self._unrecognized = 0

    def error(self) -> None:
        """Count a command that was refused."""
        self._errors += 1

    def junk(self) -> None:
        """Count a command that brings no mail forward: beyond a number, each is an error."""
        self._junk += 1
        if self._junk > MAX_JUNK:
            self._errors += 1

    def unrecognized(self) -> None:
        """Count a command that is none."""
        self._unrecognized += 1

    @property
    def exhausted(self) -> bool:
        """Whether the client is to be sent away."""
        return self._errors >= MAX_ERRORS or self._unrecognized >= MAX_UNRECOGNIZED
