"""Gives up the powers of root, once and for good, after the ports are open.

The user and the group are those of the keys ``user`` and ``group``: names or numbers, empty for no change. The kernel
writes no core files of a process that has changed its user. Programs that a processor starts may still be setuid, as
the ``sendmail`` of some systems is; the unit in ``packaging/`` forbids that where it is not needed.
"""

from __future__ import annotations

import grp
import os
import pwd
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

UNCHANGED: Final = -1
"""Stands for a user or a group that stays, as in ``os.chown``."""

_NUMBER = re.compile(r"[0-9]{1,10}")
_LARGEST: Final = 2**32 - 2
"""The number above it means "unchanged" to the kernel."""


class PrivilegeError(Exception):
    """The process cannot become that user, or would not stay it. ``str()`` says what was found and what is meant."""


@dataclass(frozen=True, slots=True)
class _Identity:
    uid: int
    gid: int
    name: str
    """What the groups of the user are looked up by; empty for a number that has no entry."""


def owner(user: str, group: str) -> tuple[int, int]:
    """Return the numbers of the user and the group, for ``os.chown``: both UNCHANGED if ``user`` is empty.

    Raises:
        PrivilegeError: if there is no such user or group, or only a group is given.
    """
    found = _find(user, group)
    return (found.uid, found.gid) if found else (UNCHANGED, UNCHANGED)


def drop(user: str, group: str) -> None:
    """Become this user and this group, and make sure that there is no way back.

    An empty ``group`` means the primary group of the user. Without ``user``, or when the process is that user already,
    nothing is done. To be called while there is one thread that matters: open files stay open, and so do ports.

    Raises:
        PrivilegeError: if there is no such user or group, the process may not become it, or could go back; after the
            last two the process must end, since it may be neither the one nor the other.
    """
    wanted = _find(user, group)
    if wanted is None or _is_already(wanted, group):
        return
    if os.geteuid() != 0:
        raise PrivilegeError(
            f"user: this process runs as {_name(os.geteuid())} and cannot become {user!r}{_of(group)}, "
            "meant: start it as root, or leave user and group empty"
        )
    if wanted.uid == 0:
        raise PrivilegeError(f"user: found {user!r}{_of(group)}, which keeps the powers of root, meant: another user")
    try:
        _become(wanted)
    except OSError as error:
        raise PrivilegeError(f"user: cannot become {user!r}{_of(group)}: {error.strerror}") from error
    _verify(wanted)


def _find(user: str, group: str) -> _Identity | None:
    if not user:
        if group:
            raise PrivilegeError(f"group: found {group!r} without a user, meant: user and group, or user alone")
        return None
    entry = _user(user)
    uid = entry.pw_uid if entry else int(user)
    if group:
        gid = _group(group)
    elif entry:
        gid = entry.pw_gid
    else:
        raise PrivilegeError(f"group: the user {user} is not known here and so has no group, meant: a group")
    return _Identity(uid, gid, entry.pw_name if entry else "")


def _user(user: str) -> pwd.struct_passwd | None:
    """Return the entry of a name or number; None for a number that has none."""
    number = _number(user, "user")
    try:
        return pwd.getpwnam(user) if number is None else pwd.getpwuid(number)
    except (KeyError, ValueError):  # ValueError: a NUL in it
        if number is None:
            raise PrivilegeError(f"user: there is no user {user!r}, meant: a name or a number") from None
        return None


def _group(group: str) -> int:
    number = _number(group, "group")
    try:
        return grp.getgrnam(group).gr_gid if number is None else number
    except (KeyError, ValueError):
        raise PrivilegeError(f"group: there is no group {group!r}, meant: a name or a number") from None


def _number(text: str, key: str) -> int | None:
    if not re.fullmatch(r"[0-9]+", text):
        return None
    if not _NUMBER.fullmatch(text) or int(text) > _LARGEST:
        raise PrivilegeError(f"{key}: found {text}, meant: a number up to {_LARGEST}")
    return int(text)


def _is_already(wanted: _Identity, group: str) -> bool:
    # A group that was not asked for may be another than the primary one: a service manager has chosen it.
    groups = set(os.getresgid()) if group else {wanted.gid}
    return set(os.getresuid()) == {wanted.uid} and groups == {wanted.gid}


def _become(wanted: _Identity) -> None:
    # The groups first: without root's powers they could not be changed any more.
    if wanted.name:
        os.initgroups(wanted.name, wanted.gid)
    else:
        os.setgroups([wanted.gid])
    os.setresgid(wanted.gid, wanted.gid, wanted.gid)
    os.setresuid(wanted.uid, wanted.uid, wanted.uid)


def _verify(wanted: _Identity) -> None:
    """Look, and try to go back: what the calls returned is not taken for the truth."""
    if set(os.getresuid()) != {wanted.uid} or set(os.getresgid()) != {wanted.gid}:
        raise PrivilegeError("user: the system says that it was changed, and it was not")
    ways_back: list[Callable[[], None]] = [lambda: os.setuid(0), lambda: os.seteuid(0), lambda: os.setgroups([0])]
    for go_back in ways_back:
        try:
            go_back()
        except PermissionError:
            continue
        raise PrivilegeError("user: the powers of root were given up and can be had again, meant: for good")


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _of(group: str) -> str:
    return f" with group {group!r}" if group else ""
