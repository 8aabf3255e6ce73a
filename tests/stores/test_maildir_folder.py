"""One Maildir in a real folder: a file is delivered whole, for its owner only, and never through a link."""

from __future__ import annotations

import errno
import os
import re
import stat
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from guerrilla.stores.maildir_folder import (
    SWEEP_AGE,
    UNIQUE_NAME,
    Maildir,
    NoMaildirError,
    Owner,
    UnknownUserError,
    unique_name,
)

NAME = "1700000000.Qabc0P0.mx.example.com,S=3"
NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "joe"
    made.mkdir()
    return made


@pytest.fixture
def maildir(folder: Path) -> Maildir:
    return Maildir(str(folder.parent), ["joe"])


def deliver(maildir: Maildir, octets: bytes = b"Hi.", name: str = NAME) -> None:
    maildir.write(name, [octets])
    maildir.publish(name)


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


@pytest.mark.parametrize(
    "chunks",
    [
        pytest.param([], id="nothing"),
        pytest.param([b"", bytes(range(256)), b"\r\n.\r\n\n\r"], id="every octet and line end"),
        pytest.param([os.urandom(1_000_003)] * 25, id="25 MB"),
    ],
)
def test_octet_for_octet(maildir: Maildir, folder: Path, chunks: list[bytes]) -> None:
    """The file holds the chunks, one after the other, and nothing else."""
    maildir.write(NAME, chunks)
    assert files_in(folder) == [f"tmp/{NAME}"]
    maildir.publish(NAME)
    assert files_in(folder) == [f"new/{NAME}"]
    assert (folder / "new" / NAME).read_bytes() == b"".join(chunks)


def test_a_write_that_is_cut_short_goes_on(maildir: Maildir, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system may take less than it is given (write(2)): the rest follows."""
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda file, octets: write(file, octets[:7]))
        deliver(maildir, b"0123456789" * 10)
    assert (folder / "new" / NAME).read_bytes() == b"0123456789" * 10


def test_the_file_is_synced_before_it_is_seen_and_its_folder_before_it_is_delivered(
    maildir: Maildir, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Contents, then the move, then the entry: a power cut leaves nothing of it, or all. A removal lasts, too."""
    deliver(maildir, name="1.first")  # the folders are made and synced
    calls: list[object] = []
    fsync, rename = os.fsync, os.rename

    def recorded_fsync(file: int) -> None:
        calls.append(os.fstat(file).st_ino)
        fsync(file)

    def recorded_rename(*args: Any, **kwargs: Any) -> None:
        calls.append("rename")
        rename(*args, **kwargs)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "rename", recorded_rename)
    deliver(maildir)
    new = (folder / "new").stat().st_ino
    assert calls == [(folder / "new" / NAME).stat().st_ino, "rename", new]
    assert maildir.remove(NAME)
    assert calls[3:] == [new]


def test_folders_that_are_made_last(maildir: Maildir, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When tmp, new and cur are made, the Maildir is synced, since mail in them is lost with them."""
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_ino))
    deliver(maildir)
    assert folder.stat().st_ino in synced


@pytest.mark.parametrize("mask", [0o000, 0o077])
def test_only_the_owner_reads(maildir: Maildir, folder: Path, mask: int) -> None:
    """A file has the mode 0600, and a folder that is made 0700, whatever the umask is."""
    before = os.umask(mask)
    try:
        deliver(maildir)
    finally:
        os.umask(before)
    assert stat.S_IMODE((folder / "new" / NAME).stat().st_mode) == 0o600
    assert {stat.S_IMODE((folder / each).stat().st_mode) for each in ("tmp", "new", "cur")} == {0o700}


def test_the_owner_is_the_one_of_the_map(folder: Path) -> None:
    """Files and folders get user and group as they are configured, where the process may give them; -1 leaves one."""
    uid, gid = (54321, 54322) if os.getuid() == 0 else (os.getuid(), os.getgid())
    deliver(Maildir(str(folder), (), Owner(uid, gid)))
    for name in ("tmp", "new", "cur", f"new/{NAME}"):
        status = (folder / name).stat()
        assert (status.st_uid, status.st_gid) == (uid, gid)
    deliver(Maildir(str(folder), (), Owner(-1, gid)), name="1.second")
    status = (folder / "new" / "1.second").stat()
    assert (status.st_uid, status.st_gid) == (os.getuid(), gid)


def test_what_an_earlier_attempt_left_is_replaced(maildir: Maildir, folder: Path) -> None:
    """A repeated attempt has the same name: there is one file in the end, the new one, and a link is not written to."""
    deliver(maildir, b"old")
    (folder / "target").write_bytes(b"")
    (folder / "tmp" / NAME).symlink_to(folder / "target")
    deliver(maildir, b"new")
    assert files_in(folder) == [f"new/{NAME}", "target"]
    assert (folder / "new" / NAME).read_bytes() == b"new"
    assert (folder / "target").read_bytes() == b""


@pytest.mark.parametrize("place", [".", "tmp", "new"])
@pytest.mark.parametrize("make", [Path.symlink_to, lambda path, target: path.write_bytes(b"")], ids=["link", "file"])
def test_only_a_folder_is_a_folder(
    maildir: Maildir, folder: Path, tmp_path: Path, place: str, make: Callable[[Path, Path], object]
) -> None:
    """A link or a file in the place of the Maildir, or of a folder in it, is an error; nothing is written beyond it."""
    elsewhere = tmp_path / "elsewhere"
    for each in ("tmp", "new", "cur"):
        (elsewhere / each).mkdir(parents=True)
    if place == ".":
        folder.rmdir()
    make(folder / place, elsewhere if place == "." else elsewhere / place)
    with pytest.raises(NotADirectoryError):
        deliver(maildir)
    assert files_in(elsewhere) == []


def test_the_operators_part_may_be_a_link(folder: Path, tmp_path: Path) -> None:
    """Where all Maildirs are is the operator's to say, also with a link."""
    (tmp_path / "mail").symlink_to(tmp_path)
    deliver(Maildir(str(tmp_path / "mail"), ["joe"]))
    assert files_in(folder) == [f"new/{NAME}"]


def test_a_folder_that_may_only_be_gone_through_is_enough(folder: Path, tmp_path: Path) -> None:
    """Above the Maildir no right to read is needed, as in a home folder of mode 0711."""
    tmp_path.chmod(0o300)
    try:
        deliver(Maildir(str(tmp_path.parent), [tmp_path.name, "joe"]))
    finally:
        tmp_path.chmod(0o700)
    assert files_in(folder) == [f"new/{NAME}"]


def test_check(maildir: Maildir, folder: Path, tmp_path: Path) -> None:
    """No Maildir is an unknown user; no folder where it should be in is an outage, and the error says where."""
    (tmp_path / "lost+found").mkdir()
    maildir.check()
    folder.rmdir()
    with pytest.raises(UnknownUserError):
        maildir.check()
    with pytest.raises(UnknownUserError):
        deliver(maildir)
    with pytest.raises(FileNotFoundError, match=re.escape(f"{tmp_path}/none/joe")):
        Maildir(str(tmp_path / "none"), ["joe"]).check()


def test_where_there_is_nothing_at_all_nobody_is_unknown(maildir: Maildir, folder: Path) -> None:
    """What a disk leaves behind that is not mounted is an empty folder."""
    folder.rmdir()
    for use in (maildir.check, lambda: deliver(maildir)):
        with pytest.raises(NoMaildirError, match=r"is its disk mounted\?$") as caught:
            use()
        assert caught.type is NoMaildirError


def test_who_is_known_is_not_unknown_for_want_of_a_maildir(tmp_path: Path) -> None:
    (tmp_path / "ann").mkdir()
    with pytest.raises(NoMaildirError, match="the user is known") as caught:
        Maildir(str(tmp_path), ["joe"], known=True).check()
    assert caught.type is NoMaildirError


def test_the_error_says_where(maildir: Maildir, folder: Path) -> None:
    """What fails inside a Maildir names it by its whole path."""
    with pytest.raises(OSError, match=re.escape(str(folder))) as caught:
        maildir.write("x" * 300, [])
    assert caught.value.errno == errno.ENAMETOOLONG


@pytest.mark.parametrize(
    "places",
    [
        pytest.param([f"tmp/{NAME}"], id="tmp"),
        pytest.param([f"new/{NAME}"], id="new"),
        pytest.param([f"cur/{NAME}"], id="cur"),
        pytest.param([f"cur/{NAME}:2,"], id="cur, with no flags"),
        pytest.param([f"cur/{NAME}:2,RS"], id="cur, with flags"),
        pytest.param([f"tmp/{NAME}", f"new/{NAME}"], id="tmp, and new from an earlier attempt"),
        pytest.param([], id="nowhere"),
    ],
)
def test_remove_finds_it(maildir: Maildir, folder: Path, places: list[str]) -> None:
    """The file is removed wherever a reader has moved it, and no other; the answer is whether it was there."""
    for each in ("tmp", "new", "cur"):
        (folder / each).mkdir()
    for place in [*places, f"cur/{NAME}x:2,", "new/other"]:
        (folder / place).write_bytes(b"")
    assert maildir.remove(NAME) is bool(places)
    assert files_in(folder) == [f"cur/{NAME}x:2,", "new/other"]


def test_nothing_is_removed_from_what_is_gone(maildir: Maildir, folder: Path) -> None:
    """Without its folders, or the Maildir itself, the file is not there."""
    assert maildir.remove(NAME) is False
    folder.rmdir()
    assert maildir.remove(NAME) is False


def test_sweep(maildir: Maildir, folder: Path) -> None:
    """Of the files in tmp, those go that this host has left there long ago; no others, and none elsewhere."""
    maildir.sweep("mx.example.com")  # there is no tmp yet
    (folder / "tmp").mkdir()
    (folder / "new").mkdir()
    old = time.time() - SWEEP_AGE - 60
    for path, changed in (
        (f"tmp/{NAME}", old),
        ("tmp/1700000001.Qabc0P0.mx.example.com,S=3", old + 120),
        ("tmp/1700000000.Qabc0P0.other.example.com,S=3", old),
        ("tmp/1700000000.M1P1.mx.example.com", old),
        (f"new/{NAME}", old),
    ):
        (folder / path).write_bytes(b"")
        os.utime(folder / path, (changed, changed))
    maildir.sweep("mx.example.com")
    assert files_in(folder) == [
        f"new/{NAME}",
        "tmp/1700000000.M1P1.mx.example.com",
        "tmp/1700000000.Qabc0P0.other.example.com,S=3",
        "tmp/1700000001.Qabc0P0.mx.example.com,S=3",
    ]


def test_names(maildir: Maildir, folder: Path) -> None:
    """Mail is what stands in new and cur under a name that can be one; a link in place of a folder hides no other."""
    assert maildir.names() == []
    (folder / "cur").mkdir()
    (folder / "elsewhere").mkdir()
    (folder / "new").symlink_to("elsewhere")
    for name in ("1.a:2,S", "2.b", ".hidden", "ü", ":2,", "a b", "elsewhere"):
        (folder / "cur" / name).write_bytes(b"")
    (folder / "elsewhere" / "3.c").write_bytes(b"")
    assert sorted(maildir.names()) == [
        ("1.a", "cur", "1.a:2,S"),
        ("2.b", "cur", "2.b"),
        ("elsewhere", "cur", "elsewhere"),
    ]


def test_read(maildir: Maildir, folder: Path) -> None:
    """A file is read in whole or in its first part; what is gone or no file is None, and a pipe does not hold us."""
    deliver(maildir, b"0123456789")
    whole = maildir.read("new", NAME)
    assert whole is not None
    assert (whole[0], whole[1].st_size) == (b"0123456789", 10)
    part = maildir.read("new", NAME, 4)
    assert part is not None
    assert (part[0], part[1].st_size) == (b"0123", 10)
    os.mkfifo(folder / "new" / "pipe")
    assert maildir.read("new", "pipe") is None
    assert maildir.read("new", "gone") is None
    (folder / "new" / "link").symlink_to(folder / "new" / NAME)
    with pytest.raises(OSError):
        maildir.read("new", "link")
    assert Maildir(str(folder.parent), ["nobody"]).read("new", NAME) is None


@pytest.mark.parametrize("queue_id", ["", "../../etc/passwd", "a/b", "a.b:2,S", "\0", "ü" * 300, "\udc80", "x" * 65])
def test_no_queue_id_leaves_the_name(queue_id: str) -> None:
    """Whatever another processor made the queue id, the name is one that a file can have; it is the same each time."""
    name = unique_name(queue_id, 1, NOON, "mx/1:a.example.com", 5)
    assert re.fullmatch(r"1704110400\.Q[0-9a-f]{32}P1\.mx_1_a\.example\.com,S=5", name)
    assert UNIQUE_NAME.fullmatch(name)
    assert name == unique_name(queue_id, 1, NOON, "mx/1:a.example.com", 5)
    assert name != unique_name(queue_id + "x", 1, NOON, "mx/1:a.example.com", 5)


def test_the_name_tells_time_message_recipient_host_and_size() -> None:
    """A queue id of letters and digits stands in the name as it is."""
    assert unique_name("0abc", 12, NOON, "mx.example.com", 5) == "1704110400.Q0abcP12.mx.example.com,S=5"
