"""Powers that are given up: tried in child processes, since there is no way back."""

from __future__ import annotations

import functools
import grp
import os
import pwd
import subprocess
import sys
from typing import Any

import pytest

from guerrilla.privileges import UNCHANGED, PrivilegeError, drop, owner

NOBODY = pwd.getpwnam("nobody")
ME = pwd.getpwuid(os.geteuid()).pw_name

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has powers to give up")


def in_child(code: str, *arguments: str, as_user: tuple[int, int] | None = None) -> str:
    """Run code in a process of its own; return what it printed, or the PrivilegeError that ended it."""
    # It becomes the other user when all is imported: that user may not read the files of Python.
    become = "os.setgroups([]); os.setresgid(*[{1}] * 3); os.setresuid(*[{0}] * 3)".format(*as_user) if as_user else ""
    program = (
        "import os, sys\n"
        "from guerrilla.privileges import PrivilegeError, drop\n"
        f"{become}\n"
        f"try:\n    {code}\n"
        "except PrivilegeError as error:\n    print(error)\n"
    )
    command = [sys.executable, "-c", program, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return result.stdout.strip()


IDENTITY = "drop(sys.argv[1], sys.argv[2]); print(os.getresuid(), os.getresgid(), sorted(os.getgroups()))"


def identity(uid: int, gid: int, groups: list[int]) -> str:
    return f"{(uid,) * 3} {(gid,) * 3} {groups}"


@as_root
@pytest.mark.parametrize("user", ["nobody", str(NOBODY.pw_uid)])
def test_root_becomes_the_user_with_its_primary_group_and_its_groups_only(user: str) -> None:
    expected = identity(NOBODY.pw_uid, NOBODY.pw_gid, sorted(set(os.getgrouplist("nobody", NOBODY.pw_gid))))
    assert in_child(IDENTITY, user, "") == expected


@as_root
@pytest.mark.parametrize("group", ["daemon", str(grp.getgrnam("daemon").gr_gid)])
def test_root_becomes_the_group_that_is_named(group: str) -> None:
    gid = grp.getgrnam("daemon").gr_gid
    expected = identity(NOBODY.pw_uid, gid, sorted(set(os.getgrouplist("nobody", gid))))
    assert in_child(IDENTITY, "nobody", group) == expected


@as_root
def test_a_number_without_an_entry_has_the_group_that_is_named_and_no_other() -> None:
    assert in_child(IDENTITY, "54321", "54322") == identity(54321, 54322, [54322])


@as_root
def test_there_is_no_way_back() -> None:
    code = "drop('nobody', ''); os.setuid(0)"
    with pytest.raises(subprocess.CalledProcessError) as error:
        in_child(code)
    assert "PermissionError" in error.value.stderr


@as_root
def test_a_user_that_keeps_the_powers_of_root_is_refused() -> None:
    found = in_child(IDENTITY, "root", "daemon")
    assert found == "user: found 'root' with group 'daemon', which keeps the powers of root, meant: another user"


@as_root
def test_a_process_that_is_already_that_user_is_left_as_it_is() -> None:
    expected = identity(NOBODY.pw_uid, NOBODY.pw_gid, [])
    for group in ("", str(NOBODY.pw_gid)):
        assert in_child(IDENTITY, "nobody", group, as_user=(NOBODY.pw_uid, NOBODY.pw_gid)) == expected


@as_root
def test_a_group_that_was_not_asked_for_may_be_another_than_the_primary_one() -> None:
    expected = identity(NOBODY.pw_uid, 54322, [])
    assert in_child(IDENTITY, "nobody", "", as_user=(NOBODY.pw_uid, 54322)) == expected


@as_root
def test_who_is_not_root_cannot_become_another_and_is_told_so() -> None:
    nobody = (NOBODY.pw_uid, NOBODY.pw_gid)
    hint = "meant: start it as root, or leave user and group empty"
    found = in_child(IDENTITY, "daemon", "", as_user=nobody)
    assert found == f"user: this process runs as nobody and cannot become 'daemon', {hint}"
    found = in_child(IDENTITY, "nobody", "daemon", as_user=nobody)
    assert found == f"user: this process runs as nobody and cannot become 'nobody' with group 'daemon', {hint}"
    found = in_child(IDENTITY, "daemon", "", as_user=(54321, 54321))
    assert found == f"user: this process runs as 54321 and cannot become 'daemon', {hint}"


class System:
    """Takes the place of the system's calls, for who may not make them: root until ``setresuid``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.ids = {"uid": (0, 0, 0), "gid": (0, 0, 0)}
        self.refuses = ""
        self.forgets = ""
        for name in ("initgroups", "setgroups", "setresgid", "setresuid", "setuid", "seteuid"):
            monkeypatch.setattr(os, name, functools.partial(self.call, name))
        monkeypatch.setattr(os, "getresuid", lambda: self.ids["uid"])
        monkeypatch.setattr(os, "getresgid", lambda: self.ids["gid"])
        monkeypatch.setattr(os, "geteuid", lambda: self.ids["uid"][1])

    def call(self, name: str, *arguments: Any) -> None:
        root = self.ids["uid"][1] == 0
        if name == self.refuses or not (root or name == self.forgets):
            raise PermissionError(1, "Operation not permitted")
        if root:
            self.calls.append(name)
        if name.startswith("setres") and name != self.forgets:
            self.ids[name.removeprefix("setres")] = arguments


def test_the_groups_are_given_up_first_and_the_user_last(monkeypatch: pytest.MonkeyPatch) -> None:
    system = System(monkeypatch)
    drop("nobody", "")
    assert system.calls == ["initgroups", "setresgid", "setresuid"]
    assert system.ids == {"uid": (NOBODY.pw_uid,) * 3, "gid": (NOBODY.pw_gid,) * 3}
    system = System(monkeypatch)
    drop("54321", "54322")
    assert system.calls == ["setgroups", "setresgid", "setresuid"]


@pytest.mark.parametrize(
    ("refuses", "forgets", "told"),
    [
        ("setresgid", "", "user: cannot become 'nobody': Operation not permitted"),
        ("", "setresgid", "user: the system says that it was changed, and it was not"),
        ("", "setuid", "user: the powers of root were given up and can be had again, meant: for good"),
        ("", "setgroups", "user: the powers of root were given up and can be had again, meant: for good"),
    ],
)
def test_nothing_is_taken_for_the_truth(refuses: str, forgets: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    system = System(monkeypatch)
    system.refuses, system.forgets = refuses, forgets
    with pytest.raises(PrivilegeError) as error:
        drop("nobody", "")
    assert str(error.value) == told


def test_a_system_that_is_not_asked_as_root_is_not_asked_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    system = System(monkeypatch)
    system.ids["uid"] = (54321,) * 3
    with pytest.raises(PrivilegeError, match="user: this process runs as 54321 and cannot become 'nobody', meant: "):
        drop("nobody", "")
    system.ids["uid"] = (0, 0, 0)
    with pytest.raises(PrivilegeError, match="user: found '0' with group '1', which keeps the powers of root"):
        drop("0", "1")
    assert system.calls == []


def test_without_a_user_nothing_is_done() -> None:
    before = os.getresuid(), os.getresgid(), os.getgroups()
    drop("", "")
    drop(ME, "")
    assert (os.getresuid(), os.getresgid(), os.getgroups()) == before
    assert owner("", "") == (UNCHANGED, UNCHANGED)


def test_the_owner_of_files_is_given_by_numbers() -> None:
    assert owner("nobody", "") == (NOBODY.pw_uid, NOBODY.pw_gid)
    assert owner("nobody", "daemon") == (NOBODY.pw_uid, grp.getgrnam("daemon").gr_gid)
    assert owner("54321", "54322") == (54321, 54322)


@pytest.mark.parametrize(
    ("user", "group", "told"),
    [
        ("no-such-user", "", "user: there is no user 'no-such-user', meant: a name or a number"),
        ("a\0b", "", "user: there is no user 'a\\x00b', meant: a name or a number"),
        ("nobody", "no-such-group", "group: there is no group 'no-such-group', meant: a name or a number"),
        ("", "daemon", "group: found 'daemon' without a user, meant: user and group, or user alone"),
        ("54321", "", "group: the user 54321 is not known here and so has no group, meant: a group"),
        ("4294967295", "1", "user: found 4294967295, meant: a number up to 4294967294"),
        ("1", "99999999999", "group: found 99999999999, meant: a number up to 4294967294"),
        ("-1", "", "user: there is no user '-1', meant: a name or a number"),
    ],
)
def test_an_unknown_name_says_what_was_found_and_what_is_meant(user: str, group: str, told: str) -> None:
    with pytest.raises(PrivilegeError) as error:
        owner(user, group)
    assert str(error.value) == told
