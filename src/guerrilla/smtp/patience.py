"""How long a client that brings no mail is borne with."""

from __future__ import annotations

from guerrilla.smtp.settings import MAX_ERRORS, MAX_HELLOS, MAX_JUNK, MAX_UNRECOGNIZED


class Patience:
    """Counts what a client does wrong, and the commands that bring no mail forward, until a message is taken."""

    __slots__ = ("_errors", "_hellos", "_junk", "_unrecognized")

    def __init__(self) -> None:
        self._errors = self._hellos = self._junk = self._unrecognized = 0

    def renew(self) -> None:
        """Forget what was: the client has brought a message."""
        self._errors = self._hellos = self._junk = self._unrecognized = 0

    def error(self) -> bool:
        """Count a command that was refused; return whether the client is to be sent away."""
        self._errors += 1
        return self._errors >= MAX_ERRORS or self._unrecognized >= MAX_UNRECOGNIZED

    def unrecognized(self) -> None:
        """Note that the command that will be counted as refused is none at all."""
        self._unrecognized += 1

    def hello(self) -> bool:
        """Count a HELO or EHLO; return whether the client is to be sent away."""
        self._hellos += 1
        return self._hellos > MAX_HELLOS and self.error()

    def junk(self) -> bool:
        """Count a command that brings no mail forward; return whether the client is to be sent away."""
        self._junk += 1
        return self._junk > MAX_JUNK and self.error()
