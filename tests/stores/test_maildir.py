"""Mail in the Maildirs of several users: all get it or none does, at whatever step it fails; and it is read back."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from guerrilla.stores.base import MailStore
from guerrilla.stores.maildir import Delivery, MaildirStore
from guerrilla.stores.maildir_folder import UnknownUserError
from guerrilla.stores.maildir_users import Layout

CALLS = ["open", "mkdir", "fchown", "write", "fsync", "rename", "lstat"]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    for user in ("joe", "ann"):
        (tmp_path / user).mkdir()
    return Layout(f"{tmp_path}/[user]")


@pytest.fixture
def store(layout: Layout) -> MailStore:
    return MaildirStore(layout)


def mail_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def write(layout: Layout, user: str, name: str, octets: bytes = b"") -> None:
    Delivery(layout, [(user, name)]).store(lambda: [octets])


@contextmanager
def failing(call: str, number: int) -> Iterator[Callable[[], bool]]:
    """Let one call to the system fail with EIO: the one with this number. Yields whether it came to that."""
    real: Callable[..., Any] = getattr(os, call)
    calls = 0

    def fail(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            raise OSError(errno.EIO, "Input/output error")
        return real(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, call, fail)
        yield lambda: calls >= number


def attempt(delivery: Delivery) -> OSError | None:
    try:
        delivery.store(lambda: [b"Hi ", b"there"])
    except OSError as error:
        return error
    return None


@pytest.mark.parametrize("call", CALLS)
def test_whatever_fails_at_whatever_step_nothing_is_left(layout: Layout, tmp_path: Path, call: str) -> None:
    """When the k-th call of a kind fails, for every k, no user has the message, and the next one is stored."""
    number = 0
    failed = True
    while failed:
        number += 1
        delivery = Delivery(layout, [("joe", "1.a"), ("ann", "1.b")])
        with failing(call, number) as has_failed:
            error = attempt(delivery)
            failed = has_failed()
        assert (error is not None) is failed
        assert failed or mail_in(tmp_path) == ["ann/new/1.b", "joe/new/1.a"]
        delivery.remove()
        assert mail_in(tmp_path) == []
    assert number > 2


@pytest.mark.parametrize("folder", ["tmp", "new"])
def test_when_the_second_user_cannot_have_it_the_first_has_it_not(layout: Layout, tmp_path: Path, folder: str) -> None:
    """A fault at one user, before or after the message stands in another's folder, leaves nothing with either."""
    (tmp_path / "ann" / folder).write_bytes(b"no folder")
    delivery = Delivery(layout, [("joe", "1.a"), ("ann", "1.b")])
    with pytest.raises(NotADirectoryError):
        delivery.store(lambda: [b"Hi"])
    delivery.remove()
    assert mail_in(tmp_path) == [f"ann/{folder}"]


def test_an_unknown_user_among_others(layout: Layout, tmp_path: Path) -> None:
    """Who has no Maildir is unknown, and the others do not get it either."""
    delivery = Delivery(layout, [("joe", "1.a"), ("eve", "1.b")])
    with pytest.raises(UnknownUserError):
        delivery.store(lambda: [b"Hi"])
    delivery.remove()
    assert mail_in(tmp_path) == []


def test_a_fault_in_one_removal_leaves_the_others_removed(layout: Layout, tmp_path: Path) -> None:
    """What can be removed is; what cannot is told."""
    delivery = Delivery(layout, [("joe", "1.a"), ("ann", "1.b")])
    delivery.store(lambda: [b"Hi"])
    with failing("unlink", 1), pytest.raises(OSError, match="joe"):
        delivery.remove()
    assert mail_in(tmp_path) == ["joe/new/1.a"]


@pytest.mark.parametrize(("at", "left"), [(1, ["joe/tmp/1.a"]), (2, ["ann/tmp/1.b", "joe/tmp/1.a"])])
def test_when_it_is_given_up_it_goes_no_further(layout: Layout, tmp_path: Path, at: int, left: list[str]) -> None:
    """Given up while it writes, nothing is moved to where readers see it, and the rest is not written."""
    delivery = Delivery(layout, [("joe", "1.a"), ("ann", "1.b")])
    copies = 0

    def chunks() -> Iterator[bytes]:
        nonlocal copies
        copies += 1
        if copies == at:
            delivery.give_up()
        yield b"Hi"

    delivery.store(chunks)
    assert mail_in(tmp_path) == left
    delivery.remove()
    assert mail_in(tmp_path) == []


async def test_list_is_newest_first(layout: Layout, store: MailStore, tmp_path: Path) -> None:
    """Mail of all users, read or not, by the time in its name; a name without one is the oldest."""
    for user, name in (("joe", "5.a"), ("ann", "30.b"), ("joe", "30.a"), ("ann", "0100.c"), ("joe", "odd")):
        write(layout, user, name)
    (tmp_path / "joe/new/30.a").rename(tmp_path / "joe/cur/30.a:2,RS")
    (tmp_path / "joe/tmp/99.x").write_bytes(b"")
    assert [each.key for each in await store.list()] == ["0100.c", "30.b", "30.a", "5.a", "odd"]
    assert [each.key for each in await store.list(limit=2)] == ["0100.c", "30.b"]
    assert [each.key for each in await store.list(limit=2, before="30.b")] == ["30.a", "5.a"]
    assert [each.key for each in await store.list(before="30.aa, which was removed")] == ["30.a", "5.a", "odd"]
    assert await store.list(limit=0) == []
    assert [each.key for each in await MaildirStore(layout, "Ann").list()] == ["0100.c", "30.b"]
    assert await MaildirStore(layout, "nobody").list() == []


async def test_a_summary(layout: Layout, store: MailStore) -> None:
    """A line says when it came, from whom, to whom, about what, and how large it is; words are decoded."""
    octets = b"To: joe@example.com\r\nFrom: =?utf-8?q?J=C3=BC?= <s@example.org>\r\nSubject: =?utf-8?b?w7w=?=\r\n\r\n"
    octets += b"x" * 100_000
    write(layout, "joe", "1700000000.a", octets)
    (summary,) = await store.list()
    assert (summary.key, summary.date) == ("1700000000.a", datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC))
    assert (summary.sender, summary.recipient) == ("Jü <s@example.org>", "joe@example.com")
    assert (summary.subject, summary.size) == ("ü", len(octets))


async def test_a_name_without_a_time_has_that_of_its_file(layout: Layout, store: MailStore, tmp_path: Path) -> None:
    write(layout, "joe", "odd")
    os.utime(tmp_path / "joe/new/odd", (60, 60))
    assert [each.date for each in await store.list()] == [datetime(1970, 1, 1, 0, 1, tzinfo=UTC)]


async def test_search(layout: Layout, store: MailStore) -> None:
    """Sender, recipient and subject are searched, decoded, without regard to case; not the text, not over two lines."""
    write(layout, "joe", "1.a", b"From: Ann\r\nTo: Joe\r\nSubject: =?utf-8?q?Gr=C3=BCSSE?=\r\n\r\nsecret")
    write(layout, "ann", "2.b", b"From: Joe\r\nTo: Ann\r\nSubject: Bye\r\n\r\n")
    assert [each.key for each in await store.search("grüße")] == ["1.a"]
    assert [each.key for each in await store.search("JOE")] == ["2.b", "1.a"]
    assert [each.key for each in await store.search("joe", limit=1)] == ["2.b"]
    assert await store.search("secret") == []


async def test_get_and_delete(layout: Layout, store: MailStore, tmp_path: Path) -> None:
    """A message is had octet for octet by its unique name, also when it was moved, and can be removed once."""
    octets = bytes(range(256)) * 1000
    write(layout, "ann", "1.a", octets)
    assert await store.get("1.a") == octets
    (tmp_path / "ann/new/1.a").rename(tmp_path / "ann/cur/1.a:2,S")
    assert await store.get("1.a") == octets
    assert await store.delete("1.a") is True
    assert await store.get("1.a") is None
    assert await store.delete("1.a") is False
    assert mail_in(tmp_path) == []
    await store.close()
    await store.close()


@pytest.mark.parametrize("key", ["", ".", "..", "../secret", "/etc/passwd", "a\0", "new/1.a", "1.a:2,S", "x" * 300])
async def test_a_key_is_no_path(layout: Layout, store: MailStore, tmp_path: Path, key: str) -> None:
    """What cannot be the name of a message is not there, whatever file it would lead to."""
    write(layout, "joe", "1.a")
    (tmp_path / "joe/secret").write_bytes(b"")
    assert await store.get(key) is None
    assert await store.delete(key) is False
    assert mail_in(tmp_path) == ["joe/new/1.a", "joe/secret"]


async def test_what_is_no_message_is_passed_over(layout: Layout, store: MailStore, tmp_path: Path) -> None:
    """A pipe among the mail does not hold the reader, and is none."""
    write(layout, "joe", "1.a")
    os.mkfifo(tmp_path / "joe/new/2.b")
    assert [each.key for each in await store.list()] == ["1.a"]
    assert await store.get("2.b") is None
