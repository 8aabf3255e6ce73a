"""MailDir keeps mail in real Maildirs: for all recipients or for none, and 250 only for what is synced."""

from __future__ import annotations

import asyncio
import mmap
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import structlog
from pydantic import ValidationError
from structlog.testing import LogCapture

from guerrilla.backends.base import CallNext
from guerrilla.envelope import Address, Envelope
from guerrilla.processors.maildir import MailDir, MailDirConfig
from guerrilla.smtp.replies import INSUFFICIENT_STORAGE, LOCAL_ERROR, NO_SUCH_USER, OK, STORAGE_NOT_AVAILABLE, Reply
from guerrilla.stores.maildir_folder import SWEEP_AGE

Open: TypeAlias = Callable[..., AbstractAsyncContextManager[MailDir]]
SECONDS = 1_700_000_000


async def following() -> Reply:
    return OK


async def refusing() -> Reply:
    return LOCAL_ERROR


async def raising() -> Reply:
    raise ZeroDivisionError


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The folder with the Maildirs of joe, ann and bob."""
    for user in ("joe", "ann", "bob"):
        (tmp_path / user / "Maildir").mkdir(parents=True)
    return tmp_path


@pytest.fixture
def log() -> LogCapture:
    return LogCapture()


@pytest.fixture
def opened(home: Path, log: LogCapture) -> Open:
    """Opens the processor on the folder; on leaving, shuts it down."""

    @asynccontextmanager
    async def open_processor(**config: Any) -> AsyncIterator[MailDir]:
        maildir = MailDir(MailDirConfig(**{"maildir_path": f"{home}/[user]/Maildir"} | config))
        maildir.log = structlog.wrap_logger(
            structlog.PrintLogger(), processors=[log], wrapper_class=structlog.make_filtering_bound_logger(0)
        )
        try:
            await maildir.initialize()
            yield maildir
        finally:
            await maildir.shutdown()

    return open_processor


def mail(data: bytes | mmap.mmap = b"Subject: x\r\n\r\nHi.\r\n", *users: str, queued_id: str = "0a" * 16) -> Envelope:
    return Envelope(
        mail_from=Address("s", "example.org"),
        rcpt_to=[Address(user, "example.com") for user in users or ("joe",)],
        queued_id=queued_id,
        received_at=datetime.fromtimestamp(SECONDS, UTC),
        data=data,
    )


def kept(home: Path) -> list[str]:
    """All files, with the names of the messages cut to their number and size."""
    files = (str(path.relative_to(home)) for path in home.rglob("*") if path.is_file())
    return sorted(re.sub(r"[0-9]+\.Q[0-9a-f]+(P[0-9]+)\..*(,S=[0-9]+)", r"\1\2", file) for file in files)


def contents(home: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(home.rglob("new/*"))]


@contextmanager
def file_size_limit(octets: int) -> Iterator[None]:
    """Let the system refuse to make any file of this process larger."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (octets, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def small_disk(home: Path) -> Iterator[Path]:
    """A file system of 1 MB, with the Maildir of eve on it."""
    place = home / "eve"
    place.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True, check=False)
    if mount.returncode != 0:
        pytest.skip("a file system can be mounted by root only")
    try:
        (place / "Maildir").mkdir()
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param({}, id="no path"),
        pytest.param({"maildir_path": ""}, id="an empty path"),
        pytest.param({"maildir_path": "/srv/../[user]"}, id="a path that leaves its place"),
        pytest.param({"maildir_path": "~joe/Maildir"}, id="somebody's home"),
        pytest.param({"maildir_path": "/srv/[user]", "maildir_user_map": "joe"}, id="a map without ids"),
        pytest.param({"maildir_path": "/srv/[user]", "maildir_user_map": 5}, id="a map that is no text"),
    ],
)
def test_the_configuration_is_checked(config: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        MailDirConfig.model_validate(config)


async def test_without_the_folder_of_all_it_does_not_start(home: Path, opened: Open) -> None:
    """That the folder of all Maildirs is missing is told at the start, not to the senders."""
    with pytest.raises(RuntimeError, match=f"{home}/none cannot be used: No such file"):
        async with opened(maildir_path=f"{home}/none/[user]"):
            pass


async def test_what_was_left_half_written_is_swept_at_the_start(home: Path, opened: Open, log: LogCapture) -> None:
    """An old file in tmp goes; a Maildir that cannot be swept is told of, and keeps nobody from starting."""
    async with opened() as maildir:
        await maildir.save_mail(mail(b"", "joe"), following)
    (name,) = (home / "joe/Maildir/new").iterdir()
    left = home / "joe/Maildir/tmp" / name.name
    name.rename(left)
    old = time.time() - SWEEP_AGE - 60
    os.utime(left, (old, old))
    (home / "ann/Maildir/tmp").write_bytes(b"")
    async with opened():
        assert kept(home) == ["ann/Maildir/tmp"]
    assert [entry["log_level"] for entry in log.entries] == ["warning"]


@pytest.mark.parametrize(
    ("user", "config", "reply"),
    [
        pytest.param("joe", {}, OK, id="who has a Maildir is known"),
        pytest.param("JOE", {}, OK, id="in any case"),
        pytest.param("eve", {}, NO_SUCH_USER, id="who has none is not"),
        pytest.param("../joe", {}, NO_SUCH_USER, id="nor what is no name"),
        pytest.param("", {}, NO_SUCH_USER, id="nor nobody"),
        pytest.param("joe", {"maildir_user_map": "joe=-1:-1,eve=-1:-1"}, OK, id="in the map, with a Maildir"),
        pytest.param("eve", {"maildir_user_map": "eve=-1:-1"}, STORAGE_NOT_AVAILABLE, id="in the map, without one"),
        pytest.param("ann", {"maildir_user_map": "joe=-1:-1"}, NO_SUCH_USER, id="not in the map"),
        pytest.param("no-such-user-here", {"maildir_path": "~/Maildir"}, NO_SUCH_USER, id="no system user"),
    ],
)
async def test_validates_the_recipient(opened: Open, user: str, config: dict[str, Any], reply: Reply) -> None:
    """The last recipient is the one in question."""
    async with opened(**config) as maildir:
        assert await maildir.validate_rcpt(mail(b"", "bob", user), following) == reply
        assert await maildir.save_mail(mail(b"", user), following) == reply


async def test_the_rest_of_the_line_is_asked_too(opened: Open) -> None:
    async with opened() as maildir:
        assert await maildir.validate_rcpt(mail(), refusing) is LOCAL_ERROR


async def test_what_cannot_be_looked_up_is_an_outage(home: Path, opened: Open, log: LogCapture) -> None:
    """A link in place of a Maildir, or no folder of them all, is no reason to say that there is no such user."""
    (home / "eve").mkdir()
    (home / "eve/Maildir").symlink_to(home / "joe/Maildir")
    async with opened() as maildir:
        assert await maildir.validate_rcpt(mail(b"", "eve"), following) is STORAGE_NOT_AVAILABLE
        assert await maildir.save_mail(mail(b"", "eve"), following) is STORAGE_NOT_AVAILABLE
        assert kept(home) == []
        home.rename(home.with_name("away"))
        assert await maildir.validate_rcpt(mail(), following) is STORAGE_NOT_AVAILABLE
        assert await maildir.save_mail(mail(), following) is STORAGE_NOT_AVAILABLE
        home.with_name("away").rename(home)
        assert await maildir.save_mail(mail(), following) is OK
    assert [entry["event"] for entry in log.entries] == [
        "a recipient could not be looked up",
        "the message was not stored",
    ] * 2
    assert all(str(home) in entry["cause"] for entry in log.entries)


async def test_a_disk_that_is_not_mounted_is_an_outage(home: Path, opened: Open, log: LogCapture) -> None:
    """Its mount point is an empty folder: then nobody is told for ever that there is no such user."""
    async with opened() as maildir:
        home.rename(home.with_name("away"))
        home.mkdir()
        assert await maildir.validate_rcpt(mail(), following) is STORAGE_NOT_AVAILABLE
        assert await maildir.save_mail(mail(), following) is STORAGE_NOT_AVAILABLE
        assert kept(home) == []
        home.rmdir()
        home.with_name("away").rename(home)
        assert await maildir.save_mail(mail(), following) is OK
    assert [entry["log_level"] for entry in log.entries] == ["error", "error"]
    assert all("is its disk mounted?" in entry["cause"] for entry in log.entries)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(bytes(range(256)) * 3, id="every octet, NUL and 8-bit included"),
        pytest.param(b"a\r\n.\r\n\n\r\r\n", id="line ends of all kinds"),
        pytest.param(os.urandom(25_000_000), id="25 MB"),
    ],
)
async def test_octet_for_octet(home: Path, opened: Open, data: bytes) -> None:
    """Delivery header and message stand in the file as they are, and its name says how large it is."""
    envelope = mail(data)
    envelope.delivery_header = b"D: x\r\n"
    async with opened() as maildir:
        assert await maildir.save_mail(envelope, following) is OK
    assert contents(home) == [b"D: x\r\n" + data]
    assert kept(home) == [f"joe/Maildir/new/P0,S={len(data) + 6}"]


async def test_a_message_on_disk(home: Path, opened: Open) -> None:
    """A memory map is stored as octets in memory are."""
    octets = os.urandom(1_000_000)
    with tempfile.TemporaryFile() as file:
        file.write(octets)
        file.flush()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            async with opened() as maildir:
                assert await maildir.save_mail(mail(data), following) is OK
    assert contents(home) == [octets]


async def test_one_file_for_each_recipient(home: Path, opened: Open) -> None:
    """Each recipient has the message, also if two are one user; who has no recipient has nothing to keep."""
    async with opened() as maildir:
        assert await maildir.save_mail(mail(b"Hi", "joe", "ann", "Joe"), following) is OK
        assert kept(home) == ["ann/Maildir/new/P1,S=2", "joe/Maildir/new/P0,S=2", "joe/Maildir/new/P2,S=2"]
        assert await maildir.save_mail(Envelope(), following) is OK
        assert len(kept(home)) == 3


async def test_a_repeated_attempt_finds_itself(home: Path, opened: Open) -> None:
    """The same message delivered again is there once."""
    async with opened() as maildir:
        for _ in range(2):
            assert await maildir.save_mail(mail(b"Hi", "joe"), following) is OK
    assert contents(home) == [b"Hi"]


async def test_a_thousand_recipients(home: Path, opened: Open) -> None:
    """However many recipients, few files are open at a time."""
    users = [f"user{number}" for number in range(1000)]
    for user in users:
        (home / user / "Maildir").mkdir(parents=True)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
    try:
        async with opened() as maildir:
            assert await maildir.save_mail(mail(b"Hi", *users), following) is OK
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert contents(home) == [b"Hi"] * 1000


@pytest.mark.skipif(os.getuid() != 0, reason="only root may give files away")
async def test_the_files_are_the_users(home: Path, opened: Open) -> None:
    """User and group are those of the map."""
    async with opened(maildir_user_map="joe=54321:54322") as maildir:
        assert await maildir.save_mail(mail(), following) is OK
    (path,) = home.rglob("new/*")
    assert (path.stat().st_uid, path.stat().st_gid) == (54321, 54322)


@pytest.mark.parametrize(
    "user",
    ["../../../../tmp/pwn", "..", ".", "a/../../ann", "a\0b", "-rf", "x" * 300, "/etc/passwd", "joe\u0308", "\u212aoe"],
)
async def test_no_name_from_the_wire_is_a_path(home: Path, opened: Open, user: str) -> None:
    """What is no name of a user is refused, and no file is made anywhere; the other recipient gets nothing either."""
    async with opened() as maildir:
        assert await maildir.validate_rcpt(mail(b"", user), following) is NO_SUCH_USER
        assert await maildir.save_mail(mail(b"", "joe", user), following) is NO_SUCH_USER
    assert kept(home) == []
    assert sorted(path.name for path in home.iterdir()) == ["ann", "bob", "joe"]


@pytest.mark.parametrize("folder", ["tmp", "new"])
async def test_all_or_none(home: Path, opened: Open, log: LogCapture, folder: str) -> None:
    """If the second user cannot have the message, the first has it not, and the sender tries again."""
    broken = home / "ann/Maildir" / folder
    broken.write_bytes(b"")
    async with opened() as maildir:
        log.entries.clear()
        assert await maildir.save_mail(mail(b"", "joe", "ann"), following) is STORAGE_NOT_AVAILABLE
        assert kept(home) == [f"ann/Maildir/{folder}"]
        assert [(entry["queued_id"], str(home) in entry["cause"]) for entry in log.entries] == [("0a" * 16, True)]
        broken.unlink()
        assert await maildir.save_mail(mail(b"", "joe", "ann"), following) is OK
        assert len(kept(home)) == 2


async def test_a_file_that_is_too_large(home: Path, opened: Open) -> None:
    """Where the system lets no file be so large, the answer is 452, and nothing is left."""
    async with opened() as maildir:
        with file_size_limit(10_000):
            assert await maildir.save_mail(mail(bytes(10_001), "joe"), following) is INSUFFICIENT_STORAGE
            assert kept(home) == []
            assert await maildir.save_mail(mail(bytes(10_000), "joe"), following) is OK


async def test_a_full_disk(home: Path, small_disk: Path, opened: Open) -> None:
    """A full disk is answered 452, for all recipients; when there is room again, mail is kept again."""
    filler = small_disk / "filler"
    filler.write_bytes(bytes(800_000))
    async with opened() as maildir:
        assert await maildir.save_mail(mail(bytes(500_000), "joe", "eve"), following) is INSUFFICIENT_STORAGE
        assert kept(home) == ["eve/filler"]
        filler.unlink()
        assert await maildir.save_mail(mail(bytes(500_000), "joe", "eve"), following) is OK


@pytest.mark.parametrize("rest", [refusing, raising])
async def test_what_the_rest_of_the_line_does_not_keep_is_removed(home: Path, opened: Open, rest: CallNext) -> None:
    """When a later processor refuses or fails, the files go again, also if a reader has moved one."""

    async def after_a_reader() -> Reply:
        assert len(contents(home)) == 2
        (path,) = (home / "joe/Maildir/new").iterdir()
        path.rename(home / "joe/Maildir/cur" / f"{path.name}:2,S")
        return await rest()

    async with opened() as maildir:
        try:
            reply = await maildir.save_mail(mail(b"", "joe", "ann"), after_a_reader)
        except ZeroDivisionError:
            assert rest is raising
        else:
            assert reply is LOCAL_ERROR
        assert kept(home) == []


async def test_what_cannot_be_removed_is_told(home: Path, opened: Open, log: LogCapture) -> None:
    """When a file cannot be taken back, the reply stands, and the log says so."""

    async def breaking() -> Reply:
        (home / "joe/Maildir").rename(home / "joe/away")
        (home / "joe/Maildir").write_bytes(b"")
        return LOCAL_ERROR

    async with opened() as maildir:
        assert await maildir.save_mail(mail(), breaking) is LOCAL_ERROR
    assert [entry["event"] for entry in log.entries] == ["files of mail that was not accepted could not be removed"]


class SlowBody(bytes):
    """A message whose octets come only when they are let: it holds the thread that writes it."""

    def __new__(cls, octets: bytes) -> SlowBody:
        body = super().__new__(cls, octets)
        body.asked = threading.Event()
        body.let = threading.Event()
        body.times = 0
        return body

    asked: threading.Event
    let: threading.Event
    times: int
    """How often the octets were read."""

    def __getitem__(self, item: Any) -> Any:
        self.asked.set()
        self.times += 1
        assert self.let.wait(60)
        return super().__getitem__(item)


@pytest.mark.parametrize("times", [1, 3])
async def test_cancelled_while_it_writes(home: Path, opened: Open, times: int) -> None:
    """Nothing is there when the cancellation goes on, or, if it is repeated, when the processor has shut down."""
    body = SlowBody(b"x" * 100)
    async with opened() as maildir:
        saving = asyncio.create_task(maildir.save_mail(mail(body, "joe", "ann"), following))
        await asyncio.to_thread(body.asked.wait)
        assert kept(home) == ["joe/Maildir/tmp/P0,S=100"]
        for _ in range(times):
            saving.cancel()
            await asyncio.sleep(0)
        assert saving.done() is (times > 2)
        body.let.set()
        with pytest.raises(asyncio.CancelledError):
            await saving
        if times == 1:
            assert kept(home) == []
    assert kept(home) == []
    assert body.times == 1, "the second recipient's file is not begun any more"


async def test_cancelled_in_the_rest_of_the_line(home: Path, opened: Open) -> None:
    """A message whose time is over after it was stored is not there any more."""
    reached = asyncio.Event()

    async def waiting() -> Reply:
        reached.set()
        await asyncio.Event().wait()
        return OK

    async with opened() as maildir:
        saving = asyncio.create_task(maildir.save_mail(mail(b"", "joe", "ann"), waiting))
        await reached.wait()
        assert len(contents(home)) == 2
        saving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await saving
        assert kept(home) == []


async def test_many_at_once(home: Path, opened: Open) -> None:
    """200 messages at the same time into one Maildir: each is there, once."""
    async with opened() as maildir:
        envelopes = [mail(b"%d" % number, "joe", queued_id=f"{number:032x}") for number in range(200)]
        replies = await asyncio.gather(*(maildir.save_mail(envelope, following) for envelope in envelopes))
    assert replies == [OK] * 200
    assert sorted(contents(home), key=int) == [b"%d" % number for number in range(200)]


async def test_shuts_down_twice(opened: Open) -> None:
    """The second time there is nothing left to do."""
    async with opened() as maildir:
        await maildir.save_mail(mail(), following)
        await maildir.shutdown()


KILLED = """
import asyncio, sys
from datetime import UTC, datetime
from guerrilla.envelope import Address, Envelope
from guerrilla.processors.maildir import MailDir, MailDirConfig
from guerrilla.smtp.replies import OK

async def following():
    return OK

async def save(maildir, worker):
    for number in range(1_000_000):
        recipients = [Address(user, "example.com") for user in ("joe", "ann")]
        key = f"{worker:016x}{number:016x}"
        envelope = Envelope(rcpt_to=recipients, queued_id=key, data=key.encode() * 1000, received_at=datetime.now(UTC))
        assert await maildir.save_mail(envelope, following) is OK
        print(key, flush=True)

async def main():
    maildir = MailDir(MailDirConfig(maildir_path=sys.argv[1]))
    await maildir.initialize()
    await asyncio.gather(*(save(maildir, worker) for worker in range(8)))

asyncio.run(main())
"""


@pytest.mark.parametrize("answers", [1, 20, 57])
def test_killed_in_the_middle(home: Path, answers: int) -> None:
    """After kill -9, each message that was answered is there, whole, for both; and no part of any is to be seen."""
    command = [sys.executable, "-c", KILLED, f"{home}/[user]/Maildir"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        answered = [process.stdout.readline().removesuffix("\n") for _ in range(answers)]
        process.send_signal(signal.SIGKILL)
        answered += [line.removesuffix("\n") for line in process.stdout if line.endswith("\n")]
    for user in ("joe", "ann"):
        seen = [path.read_bytes() for path in (home / user / "Maildir/new").iterdir()]
        assert all(octets == octets[:32] * 1000 for octets in seen)
        assert {octets[:32].decode() for octets in seen} >= set(answered)
