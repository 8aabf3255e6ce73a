"""Whose Maildir is where: a local part from the wire is a folder just below the operator's, or no user at all."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guerrilla.stores.maildir_folder import Maildir, NoMaildirError, Owner, UnknownUserError
from guerrilla.stores.maildir_users import Layout, parse_user_map

LAYOUT = Layout("/srv/mail/[user]/Maildir")


@pytest.mark.parametrize(
    ("template", "user", "base", "parts"),
    [
        pytest.param("/home/[user]/Maildir", "joe", "/home", ("joe", "Maildir"), id="the seed's own"),
        pytest.param("/home//./[user]/Maildir/", "Joe", "/home", ("joe", "Maildir"), id="in lower case"),
        pytest.param("/m/x-[user]-[user]/[user]", "joe", "/m", ("x-joe-joe", "joe"), id="several times"),
        pytest.param("/[user]", "a.b_c+d-9", "/", ("a.b_c+d-9",), id="all characters"),
        pytest.param("/srv/mail", "joe", "/srv/mail", (), id="one for all"),
    ],
)
def test_the_folder_of_a_user(template: str, user: str, base: str, parts: tuple[str, ...]) -> None:
    maildir = Layout(template).of(user)
    assert (maildir.base, maildir.parts) == (base, parts)


def test_a_relative_template_starts_at_the_working_folder() -> None:
    assert str(Layout("mail/[user]").of("joe")) == os.path.join(os.getcwd(), "mail", "joe")


@pytest.mark.parametrize(
    "user",
    [
        "../../../../tmp/pwn",
        "..",
        ".",
        "",
        "a/../../b",
        "/etc/passwd",
        "a\0b",
        "-rf",
        ".ssh",
        "a..b",
        "x" * 65,
        "x" * 300,
        "joe\n",
        "jo e",
        "jöe",
        "jo\u0308e",
        "\u212aarl",
        "\uff4aoe",
        "\udcff",
        "[user]",
        "~root",
        "$HOME",
        "%n",
        "a\\b",
        "*",
    ],
)
def test_what_is_no_name_is_no_user(user: str) -> None:
    """What could leave the folder, hide in it or be taken for another name has no Maildir, in any layout."""
    for layout in (LAYOUT, Layout("~/Maildir"), Layout("/srv/mail")):
        with pytest.raises(UnknownUserError):
            layout.of(user)


@given(st.text() | st.text("./ab\0-~A", max_size=10))
def test_any_local_part_stays_in_its_place(user: str) -> None:
    """Whatever the local part is, its folder is a direct child of the operator's, or there is none."""
    try:
        maildir = LAYOUT.of(user)
    except UnknownUserError:
        return
    assert os.path.normpath(str(maildir)) == f"/srv/mail/{user.lower()}/Maildir"
    assert maildir.parts == (user.lower(), "Maildir")
    assert "/" not in user


def test_only_who_is_in_the_map_is_known() -> None:
    """A map names all users, in lower case, and whose their files are; without one, everybody is as the system is."""
    layout = Layout("/srv/[user]", {"joe": Owner(1, 2)})
    assert layout.of("JOE").owner == Owner(1, 2)
    with pytest.raises(UnknownUserError):
        layout.of("ann")
    assert LAYOUT.of("ann").owner == Owner(-1, -1)


def test_the_home_folder_is_the_systems_to_say() -> None:
    """A leading ~/ is the home of the system user of that name; nobody else has one."""
    entry = pwd.getpwnam("root")
    maildir = Layout("~/mail/Maildir").of("Root")
    assert (maildir.base, maildir.parts) == (entry.pw_dir, ("mail", "Maildir"))
    with pytest.raises(UnknownUserError):
        Layout("~/Maildir").of("no-such-user-here")


def test_a_home_folder_that_is_missing_with_all_others_is_an_outage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it is for who is in the map; else a system user without a home folder is no user."""

    class Entry:
        pw_dir = str(tmp_path / "homes" / "joe")

    (tmp_path / "homes").mkdir()
    monkeypatch.setattr(pwd, "getpwnam", lambda name: Entry)
    with pytest.raises(NoMaildirError, match=r"is its disk mounted\?$"):
        Layout("~/Maildir").of("joe")
    (tmp_path / "homes" / "ann").mkdir()
    with pytest.raises(UnknownUserError, match="no system user 'joe' with a home"):
        Layout("~/Maildir").of("joe")
    with pytest.raises(NoMaildirError, match="no system user 'joe' with a home") as caught:
        Layout("~/Maildir", {"joe": Owner()}).of("joe")
    assert caught.type is NoMaildirError
    (tmp_path / "homes" / "joe").mkdir()
    assert Layout("~/Maildir").of("joe").base == Entry.pw_dir


@pytest.mark.parametrize(
    "template", ["", "~", "~/", "/", "~joe/Maildir", "/srv/../etc/[user]", "/a\0/[user]", "~/../x"]
)
def test_a_template_is_checked(template: str) -> None:
    """What is no path, or leaves its place, is refused when the layout is made."""
    with pytest.raises(ValueError, match="is meant"):
        Layout(template)


@pytest.mark.parametrize(
    ("text", "owners"),
    [
        ("", {}),
        ("  ", {}),
        ("joe=1:2", {"joe": Owner(1, 2)}),
        ("joe=-1:-1, Ann=1001:-1", {"joe": Owner(-1, -1), "ann": Owner(1001, -1)}),
    ],
)
def test_a_map_is_read(text: str, owners: dict[str, Owner]) -> None:
    assert parse_user_map(text) == owners


@pytest.mark.parametrize(
    "text",
    [
        "joe",
        "joe=1",
        "joe=1:2,",
        "joe=1:2;ann=1:2",
        "joe=+1:2",
        "joe=1_0:2",
        "joe=-2:1",
        "joe=٣:1",
        "joe=1:2\n",
        "joe=4294967295:1",
        "../x=1:2",
        "=1:2",
        "\u212a=1:2",
        "joe=1:2,JOE=1:2",
    ],
)
def test_a_map_is_checked(text: str) -> None:
    """What is written otherwise is an error that says what is meant."""
    with pytest.raises(ValueError, match="found "):
        parse_user_map(text)


@pytest.mark.parametrize("template", ["[user]", "[user]/Maildir", "x-[user]-[user].d"])
def test_maildirs_without_a_map_are_those_that_are_there(tmp_path: Path, template: str) -> None:
    """Each folder that the template can mean is found; a link, a file and a name that no user has are not."""
    layout = Layout(str(tmp_path / template))
    for user in ("joe", "ann", "b"):
        (tmp_path / template.replace("[user]", user)).mkdir(parents=True)
    for name in ("Upper", ".hidden", "x-joe-ann.d"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "joe")
    if template == "[user]":
        (tmp_path / "x-joe-ann.d").rmdir()
    assert sorted(str(maildir) for maildir in layout.maildirs()) == [
        str(tmp_path / template.replace("[user]", user)) for user in ("ann", "b", "joe")
    ]


def test_maildirs_with_a_map_are_those_of_the_map(tmp_path: Path) -> None:
    """Others' folders are none of ours, and who has none is left out; a folder that all share is there once."""
    (tmp_path / "joe").mkdir()
    (tmp_path / "eve").mkdir()
    owners = {"joe": Owner(), "ann": Owner()}
    assert [str(each) for each in Layout(f"{tmp_path}/[user]", owners).maildirs()] == [str(tmp_path / "joe")]
    assert [str(each) for each in Layout(str(tmp_path), owners).maildirs()] == [str(tmp_path)]
    assert [str(each) for each in Layout(str(tmp_path)).maildirs()] == [str(tmp_path)]


def test_maildirs_in_home_folders_are_looked_for_with_the_system_users() -> None:
    """Of the system users, those have a Maildir whose home has it."""
    assert list(Layout("~/no-such-folder/for-the-tests-of-guerrilla").maildirs()) == []


def test_a_maildir_that_we_may_not_go_into_hides_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody keeps us from the rest of the mail by closing his own folder."""
    layout = Layout(f"{tmp_path}/[user]", {"joe": Owner(), "ann": Owner()})
    (tmp_path / "joe").mkdir()
    (tmp_path / "ann").mkdir()
    check = Maildir.check

    def closed(self: Maildir) -> None:  # for root, no mode closes a folder
        if str(self).endswith("joe"):
            raise PermissionError
        check(self)

    monkeypatch.setattr(Maildir, "check", closed)
    assert [str(each) for each in layout.maildirs()] == [str(tmp_path / "ann")]


def test_a_missing_base_is_an_outage(tmp_path: Path) -> None:
    """If the folder that all Maildirs are in is not there, it is not that nobody has one."""
    layout = Layout(f"{tmp_path}/none/[user]")
    with pytest.raises(FileNotFoundError):
        layout.check()
    with pytest.raises(FileNotFoundError):
        list(layout.maildirs())
