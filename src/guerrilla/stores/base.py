"""What every store of mail can be asked, whatever keeps it: the console and ``guerrillad cat`` know only this.

Reading back stands here; how mail gets into a store is each store's own, and its processor's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class MailSummary:
    """One stored message on one line of a list. The texts are decoded, and cut to what a line is good for."""

    key: str
    """Its name in the store: the hash, or in a Maildir the unique name of the file."""
    date: datetime
    """When it was received, UTC, with its time zone."""
    sender: str
    recipient: str
    subject: str
    size: int
    """Octets, as ``get`` returns them; of a compressed message the store may know only what it holds."""


class MailStore(Protocol):
    """Mail that is kept, to be read back and removed.

    What each method raises when the store is away is the store's own: an OSError, or its driver's error.
    """

    async def list(self, *, limit: int = 50, before: str | None = None) -> Sequence[MailSummary]:
        """Return the newest messages, newest first; with ``before``, those that come after the one with that key."""
        ...

    async def search(self, text: str, *, limit: int = 50) -> Sequence[MailSummary]:
        """Return the newest messages that have the text in sender, recipient or subject, without regard to case."""
        ...

    async def get(self, key: str) -> bytes | None:
        """Return the raw message as it was stored, delivery header and octets, decompressed; None if there is none."""
        ...

    async def delete(self, key: str) -> bool:
        """Remove the message for good; return whether it was there."""
        ...

    async def close(self) -> None:
        """Give back what is open. May be called twice."""
        ...


class Bodies(Protocol):
    """Where the octets of messages are whose rows are elsewhere."""

    async def get(self, key: str) -> bytes | None:
        """Return what is stored under the key, compressed or not."""
        ...

    async def delete(self, keys: Iterable[str]) -> int:
        """Remove what is stored under the keys, and return how many of them were there."""
        ...

    async def close(self) -> object:
        """Give back what is open. May be called twice."""
        ...


@runtime_checkable
class ReadsBack(Protocol):
    """A processor whose mail can be read back. It is asked without being initialized, and may be running as well."""

    def mail_store(self, bodies: Bodies | None = None) -> MailStore:
        """Return the store, connected to nothing yet; the caller closes it.

        ``bodies`` is where the same line keeps the octets that the store itself only refers to.

        Raises:
            RuntimeError: if the driver is not installed.
        """
        ...


@runtime_checkable
class KeepsBodies(Protocol):
    """A processor that keeps octets alone, which can be had by their key and not be listed."""

    def mail_bodies(self) -> Bodies:
        """Return where they are, connected to nothing yet; the caller closes it."""
        ...
