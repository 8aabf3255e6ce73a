"""Mail in the Maildirs of many users: one message delivered to all its recipients or to none, and reading back."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime

from guerrilla.header import parse_header, text_of
from guerrilla.stores.base import MailSummary
from guerrilla.stores.maildir_folder import UNIQUE_NAME, Maildir, NoMaildirError
from guerrilla.stores.maildir_users import Layout

_MAX_HEADER = 65_536
"""Octets of a message that are looked at for a list."""

_SECONDS = re.compile(r"([0-9]{1,11})\..+")


class Delivery:
    """The files of one message: ``files`` are user and unique name, for each recipient. All are kept, or none.

    ``store`` once, in a thread. Whatever came of it, ``remove`` takes back what it has made.
    """

    def __init__(self, layout: Layout, files: Sequence[tuple[str, str]]) -> None:
        self._layout = layout
        self._files = files
        self._written: list[tuple[Maildir, str]] = []
        self._given_up = False

    def store(self, chunks: Callable[[], Iterable[bytes]]) -> None:
        """Write the message for every user, and only then move the files to where readers see them.

        Raises NoMaildirError or OSError at the first user for whom it does not work: then ``remove`` it.
        """
        for user, name in self._files:
            if self._given_up:
                return
            maildir = self._layout.of(user)
            maildir.write(name, chunks())
            self._written.append((maildir, name))
        for maildir, name in self._written:
            if self._given_up:
                return
            maildir.publish(name)

    def give_up(self) -> None:
        """Let a ``store`` that is under way in another thread end early; ``remove`` is still to be called."""
        self._given_up = True

    def remove(self) -> None:
        """Remove all that was made. Raises the first OSError, when everything has been tried."""
        errors = []
        for maildir, name in self._written:
            try:
                maildir.remove(name)
            except OSError as error:
                errors.append(error)
        if errors:
            raise errors[0]


class MaildirStore:
    """Reads back what is in the Maildir of one user, or of all of them: a MailStore.

    The key of a message is the unique name of its file, which stays when a reader moves it; a name that two users have
    stands for one of them. There is no index: each call reads the folders, and ``search`` the headers of what it
    passes, so it is for people, not for programs.
    """

    def __init__(self, layout: Layout, user: str | None = None) -> None:
        self._layout = layout
        self._user = user

    async def list(self, *, limit: int = 50, before: str | None = None) -> Sequence[MailSummary]:
        """Return the newest messages, by the seconds in their names; with ``before``, those that come after it."""
        return await asyncio.to_thread(self._summaries, limit, before, "")

    async def search(self, text: str, *, limit: int = 50) -> Sequence[MailSummary]:
        """Return the newest messages that have the text in From, To or Subject, without regard to case."""
        return await asyncio.to_thread(self._summaries, limit, None, text.casefold())

    async def get(self, key: str) -> bytes | None:
        """Return the octets of the file."""
        return await asyncio.to_thread(self._read, key)

    async def delete(self, key: str) -> bool:
        """Remove the file, and sync its folder."""
        return await asyncio.to_thread(self._delete, key)

    async def close(self) -> None:
        """Do nothing: no file is open between two calls."""

    def _maildirs(self) -> Iterator[Maildir]:
        if self._user is None:
            yield from self._layout.maildirs()
            return
        with suppress(NoMaildirError):
            maildir = self._layout.of(self._user)
            maildir.check()
            yield maildir

    def _summaries(self, limit: int, before: str | None, text: str) -> Sequence[MailSummary]:
        entries = {
            name: (maildir, folder, file_name)
            for maildir in self._maildirs()
            for name, folder, file_name in maildir.names()
        }
        found: list[MailSummary] = []
        for name in sorted(entries, key=_age, reverse=True):
            if len(found) >= limit:
                break
            if before is not None and _age(name) >= _age(before):
                continue
            maildir, folder, file_name = entries[name]
            summary = _summary(name, maildir.read(folder, file_name, _MAX_HEADER))
            if summary and any(
                text in line.casefold() for line in (summary.sender, summary.recipient, summary.subject)
            ):
                found.append(summary)
        return found

    def _read(self, key: str) -> bytes | None:
        for maildir in self._maildirs():
            for name, folder, file_name in maildir.names():
                # A file that was moved since we looked stands a second time in the list only if it was lucky.
                if name == key and (content := maildir.read(folder, file_name)):
                    return content[0]
        return None

    def _delete(self, key: str) -> bool:
        return bool(UNIQUE_NAME.fullmatch(key)) and any(maildir.remove(key) for maildir in self._maildirs())


def _age(name: str) -> tuple[int, str]:
    """Return what messages are sorted by: the seconds in the name, which a name of another form has not."""
    match = _SECONDS.fullmatch(name)
    return (int(match[1]) if match else 0), name


def _summary(name: str, content: tuple[bytes, os.stat_result] | None) -> MailSummary | None:
    if content is None:
        return None
    octets, status = content
    header = parse_header(octets)
    return MailSummary(
        key=name,
        date=datetime.fromtimestamp(_age(name)[0] or status.st_mtime, UTC),
        sender=text_of(header, "From"),
        recipient=text_of(header, "To"),
        subject=text_of(header, "Subject"),
        size=status.st_size,
    )
