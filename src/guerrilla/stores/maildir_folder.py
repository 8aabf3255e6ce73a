"""One Maildir: mail in plain files, one for each message, as maildir(5) has it.

A message is written in ``tmp``, synced, and moved to ``new``, whose entry is synced in turn: who sees it sees it whole.
Readers move it on to ``cur``, and add ``:2,`` and flags to its name. All functions here block; what they raise is
OSError, with the path of the Maildir in it, or NoMaildirError.

A user may own his Maildir and put anything into it, and we may be root. So nothing below the operator's part of the
path is reached by its name in full: each folder is opened in the one before it, and no symbolic link is followed.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2s

SWEEP_AGE = 36 * 3600
"""Seconds after which a file in ``tmp`` belongs to no delivery any more: what maildir(5) tells readers."""

UNIQUE_NAME = re.compile(r"[!-\-0-9;-~][!-.0-9;-~]{0,254}")
"""What we take for the unique name of a message: printable ASCII, not hidden, without the colon of the flags."""

_QUEUE_ID = re.compile(r"[0-9A-Za-z]{1,64}")
_NOT_HOST = re.compile(r"[^0-9A-Za-z.-]")

_FOLDERS = ("tmp", "new", "cur")
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_WALK = getattr(os, "O_PATH", os.O_RDONLY)
"""To go through a folder, where the system knows the difference, no right to read it is needed."""


class NoMaildirError(LookupError):
    """A Maildir is not there, and that says nothing of its user: a disk may not be mounted."""


class UnknownUserError(NoMaildirError):
    """There is no such user."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose the files become. -1 leaves user or group as the system makes it."""

    uid: int = -1
    gid: int = -1


AS_MADE = Owner()
"""User and group as the system makes them."""


def unique_name(queue_id: str, number: int, received_at: datetime, host: str, size: int) -> str:
    """Return the name of the file for one recipient: ``<seconds>.Q<queue id>P<number>.<host>,S=<size>``.

    It is the same whenever the same message is delivered again, so that a repeated attempt replaces what an earlier
    one left. A queue id that another processor made of other characters stands in it as its digest.
    """
    if not _QUEUE_ID.fullmatch(queue_id):
        queue_id = blake2s(queue_id.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
    return f"{int(received_at.timestamp())}.Q{queue_id}P{number}.{_host_part(host)},S={size}"


def _host_part(host: str) -> str:
    return _NOT_HOST.sub("_", host)[:64]


class Maildir:
    """One Maildir: ``base``, which is the operator's and may be reached through links, and ``parts`` below it.

    Of who is not ``known`` otherwise, it says whether there is such a user.
    """

    __slots__ = ("base", "known", "owner", "parts")

    def __init__(self, base: str, parts: Sequence[str] = (), owner: Owner = AS_MADE, *, known: bool = False) -> None:
        self.base = base
        self.parts = tuple(parts)
        self.owner = owner
        self.known = known

    def __str__(self) -> str:
        """Return the path, for people."""
        return os.path.join(self.base, *self.parts)

    def check(self) -> None:
        """Return if the Maildir is there.

        Raises:
            UnknownUserError: if ``base`` is there and it is not.
            NoMaildirError: the same, but the user is known, or there is nothing at all in the folder above.
            OSError: if that cannot be said, or if it is a file or a link.
        """
        with self._opened():
            pass

    def write(self, name: str, chunks: Iterable[bytes]) -> None:
        """Write a file in ``tmp``, for its owner only, and sync it. What an earlier attempt left there is replaced.

        On an error nothing of it is left. A failed fsync is not tried again: the system may forget what it could not
        write, and say yes the second time.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with self._opened() as root:
            self._make_folders(root)
            with _folder("tmp", root) as tmp:
                _unlink(name, tmp)
                file = os.open(name, flags, 0o600, dir_fd=tmp)
                try:
                    try:
                        os.fchown(file, self.owner.uid, self.owner.gid)
                        for chunk in chunks:
                            _write_all(file, chunk)
                        os.fsync(file)
                    finally:
                        os.close(file)
                except BaseException:
                    with suppress(OSError):  # what cannot be removed now, ``sweep`` removes
                        _unlink(name, tmp)
                    raise

    def publish(self, name: str) -> None:
        """Move the file from ``tmp`` to ``new``, and sync the folder: from here on it is delivered."""
        with self._opened() as root, _folder("tmp", root) as tmp, _folder("new", root) as new:
            os.rename(name, name, src_dir_fd=tmp, dst_dir_fd=new)
            os.fsync(new)

    def remove(self, name: str) -> bool:
        """Remove the file for good, wherever a reader may have moved it meanwhile; return whether it was there."""
        try:
            with self._opened() as root:
                written = _remove_from("tmp", name, root)
                return _remove_from("new", name, root) or _remove_from("cur", name, root) or written
        except NoMaildirError:
            return False  # the Maildir is gone, and the file with it

    def sweep(self, host: str) -> None:
        """Remove from ``tmp`` what this host began to deliver and left behind ``SWEEP_AGE`` seconds ago."""
        ours = re.compile(rf"[0-9]+\.Q[0-9A-Za-z]+P[0-9]+\.{re.escape(_host_part(host))},S=[0-9]+")
        oldest = time.time() - SWEEP_AGE
        with self._opened() as root, suppress(FileNotFoundError), _folder("tmp", root) as tmp:
            for name in os.listdir(tmp):
                with suppress(FileNotFoundError):
                    if ours.fullmatch(name) and os.lstat(name, dir_fd=tmp).st_mtime < oldest:
                        os.unlink(name, dir_fd=tmp)

    def names(self) -> Sequence[tuple[str, str, str]]:
        """Return of each message its unique name, its folder and the name of the file there. ``tmp`` holds no mail."""
        found = []
        with self._opened() as root:
            for folder in ("new", "cur"):
                # A link in its place is none of ours, and hides no other mail.
                with suppress(FileNotFoundError, NotADirectoryError), _folder(folder, root) as opened:
                    for file_name in os.listdir(opened):
                        name = file_name.partition(":")[0]
                        if UNIQUE_NAME.fullmatch(name):
                            found.append((name, folder, file_name))
        return found

    def read(self, folder: str, file_name: str, limit: int | None = None) -> tuple[bytes, os.stat_result] | None:
        """Return the octets of a file, the first ``limit`` if that is given, and its status; None if it is gone."""
        # A pipe that somebody put there must not hold us.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            with self._opened() as root, _folder(folder, root) as opened:
                file = os.open(file_name, flags, dir_fd=opened)
        except (FileNotFoundError, NoMaildirError):
            return None
        with open(file, "rb") as reader:
            status = os.fstat(file)
            return (reader.read(limit), status) if stat.S_ISREG(status.st_mode) else None

    def _make_folders(self, root: int) -> None:
        """Make what is missing of ``tmp``, ``new`` and ``cur``, for the owner only, to last."""
        missing = [folder for folder in _FOLDERS if not _exists(folder, root)]
        for folder in missing:
            with suppress(FileExistsError):  # another delivery was quicker
                os.mkdir(folder, 0o700, dir_fd=root)
            with _folder(folder, root) as made:
                os.fchown(made, self.owner.uid, self.owner.gid)
        if missing:
            with _folder(".", root) as synced:
                os.fsync(synced)

    def _missing(self, above: int) -> NoMaildirError:
        if self.known:
            return NoMaildirError(f"the user is known, and there is no Maildir {self}")
        if is_bare(".", above):
            return NoMaildirError(f"there is no Maildir {self}, nor anything else beside it: is its disk mounted?")
        return UnknownUserError(f"there is no Maildir {self}")

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """Open the folder, part by part; whatever fails in it, the error says where."""
        try:
            opened = os.open(self.base, _WALK | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                for part in self.parts:
                    above = opened
                    try:
                        opened = os.open(part, _WALK | _FOLDER, dir_fd=above)
                    except FileNotFoundError:
                        raise self._missing(above) from None
                    os.close(above)
                yield opened
            finally:
                os.close(opened)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self)) from error


def is_bare(folder: str, above: int | None = None) -> bool:
    """Tell whether there is nothing in a folder, as in one where a disk belongs that is not mounted."""
    try:
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=above)
    except OSError:  # we may go through it, but not look around
        return False
    try:
        return not os.listdir(opened)
    finally:
        os.close(opened)


@contextmanager
def _folder(name: str, above: int) -> Iterator[int]:
    opened = os.open(name, _FOLDER, dir_fd=above)
    try:
        yield opened
    finally:
        os.close(opened)


def _exists(name: str, folder: int) -> bool:
    try:
        os.lstat(name, dir_fd=folder)
    except FileNotFoundError:
        return False
    return True


def _write_all(file: int, octets: bytes) -> None:
    rest = memoryview(octets)
    while rest:
        rest = rest[os.write(file, rest) :]


def _remove_from(folder: str, name: str, root: int) -> bool:
    """Remove the file from the folder, and sync that; in ``cur``, whatever flags it has."""
    with suppress(FileNotFoundError, NotADirectoryError), _folder(folder, root) as opened:
        removed = _unlink(name, opened)
        # Again, until it is not found: a reader may give it another flag between our look and our hand.
        while folder == "cur" and (flagged := [each for each in os.listdir(opened) if each.startswith(f"{name}:")]):
            for each in flagged:
                removed = _unlink(each, opened) or removed
        if removed:
            os.fsync(opened)
        return removed
    return False


def _unlink(name: str, folder: int) -> bool:
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        return False
    return True
