"""Whose Maildir is where: what the configuration says, and how a local part from the wire becomes a folder, or not."""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress

from guerrilla.stores.maildir_folder import AS_MADE, Maildir, NoMaildirError, Owner, UnknownUserError, is_bare

USER = "[user]"
"""What stands for the name of the user in a template."""

# No local part is taken for the name of a file but these: no slash, no NUL, nothing hidden, nothing beyond ASCII.
_USER_NAME = re.compile(r"(?!.*\.\.)[a-z0-9][a-z0-9._+-]{0,63}")
_MAP_ENTRY = re.compile(r"([^=:,]+)=(-1|[0-9]{1,10}):(-1|[0-9]{1,10})")
_MAX_ID = 2**32 - 2


class Layout:
    """Where the Maildir of each user is, and whose its files are: the configuration's template and user map.

    In the template ``[user]`` stands for the name of the user, and a leading ``~/`` for the home folder of the system
    user of that name. The path before the first ``[user]``, or the home folder, is the operator's. If ``owners``
    names anybody, others are unknown; if it is empty, whoever has a Maildir is known.

    Raises:
        ValueError: if the template is none, with what is meant.
    """

    def __init__(self, template: str, owners: Mapping[str, Owner] | None = None) -> None:
        self._in_home = template.startswith("~/")
        path = template[2:] if self._in_home else os.path.join(os.getcwd(), template)
        parts = [part for part in path.split("/") if part not in ("", ".")]
        others_home = template.startswith("~") and not self._in_home
        if not template or not parts or "\0" in template or ".." in parts or others_home:
            raise ValueError("the path of a folder is meant, without .., such as /home/[user]/Maildir or ~/Maildir")
        of_user = 0 if self._in_home else next((at for at, part in enumerate(parts) if USER in part), len(parts))
        self._base = "/" + "/".join(parts[:of_user])
        self._parts = parts[of_user:]
        self._owners = dict(owners or {})

    def check(self) -> None:
        """Return if the operator's part of the path is there. Raises OSError if it is not."""
        os.stat(self._base)

    def of(self, user: str) -> Maildir:
        """Return the Maildir of a user, whether it is there or not. The name is a local part, as it came.

        Raises:
            UnknownUserError: if nobody can have that name, or nobody has it.
            NoMaildirError: if the user is known and its home folder is missing, or all are.
            OSError: if the home folder cannot be looked at.
        """
        name = user.lower()
        # Beyond ASCII there are letters whose lower case is an ASCII letter.
        if not user.isascii() or not _USER_NAME.fullmatch(name) or (self._owners and name not in self._owners):
            raise UnknownUserError(f"there is no user {user[:80]!r}")
        known = bool(self._owners)
        base = _home(name, known=known) if self._in_home else self._base
        parts = [part.replace(USER, name) for part in self._parts]
        return Maildir(base, parts, self._owners.get(name, AS_MADE), known=known)

    def maildirs(self) -> Iterator[Maildir]:
        """Yield each Maildir that is there and that we may go into, once. Raises OSError if that cannot be said."""
        if not self._in_home and not self._parts:
            yield Maildir(self._base)
            return
        seen: set[str] = set()
        for user in self._users():
            # A link in its place is no Maildir, and many homes of system users are closed: neither hides the others.
            with suppress(NoMaildirError, NotADirectoryError, PermissionError):
                maildir = self.of(user)
                maildir.check()
                if str(maildir) not in seen:
                    seen.add(str(maildir))
                    yield maildir

    def _users(self) -> Iterator[str]:
        """Yield the names of those who may have a Maildir."""
        if self._owners:
            yield from self._owners
        elif self._in_home:
            yield from (entry.pw_name for entry in pwd.getpwall())
        else:
            pattern = self._parts[0]
            count = pattern.count(USER)
            start = pattern.index(USER)
            for name in os.listdir(self._base):
                length = (len(name) - len(pattern)) // count + len(USER)
                user = name[start : start + length]
                if pattern.replace(USER, user) == name:
                    yield user


def _home(user: str, *, known: bool) -> str:
    home = ""
    with suppress(KeyError):
        home = pwd.getpwnam(user).pw_dir
    if home.startswith("/"):
        with suppress(FileNotFoundError):
            os.stat(home)
            return home
        if is_bare(os.path.dirname(home)):
            raise NoMaildirError(f"there is no {home}, nor anything else beside it: is its disk mounted?")
    kind = NoMaildirError if known else UnknownUserError
    raise kind(f"there is no system user {user!r} with a home folder")


def parse_user_map(text: str) -> dict[str, Owner]:
    """Read ``name=uid:gid,name2=uid:gid``; -1 leaves the id as it is, blanks around a name or comma are allowed.

    Raises:
        ValueError: if it is written otherwise, or names one user twice, with what is meant.
    """
    owners: dict[str, Owner] = {}
    for entry in text.split(",") if text.strip(" ") else ():
        match = _MAP_ENTRY.fullmatch(entry.strip(" "))
        name = match[1].lower() if match else ""
        if not match or not match[1].isascii() or not _USER_NAME.fullmatch(name) or name in owners:
            raise ValueError(f"found {entry[:80]!r}; meant: name=uid:gid,name2=uid:gid, each name once")
        uid, gid = int(match[2]), int(match[3])
        if max(uid, gid) > _MAX_ID:
            raise ValueError(f"found {entry[:80]!r}; an id is 0 to {_MAX_ID}, or -1")
        owners[name] = Owner(uid, gid)
    return owners
