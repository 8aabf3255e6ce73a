"""Sql keeps mail in a real SQLite file: all rows of a message or none, and 250 only for what is committed."""

from __future__ import annotations

import asyncio
import mmap
import os
import sqlite3
import stat
import tempfile
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import structlog
from pydantic import ValidationError
from sqlalchemy import Connection, event, text
from structlog.testing import LogCapture
from tests.private_servers import DatabaseServer

from guerrilla.backends.base import CallNext
from guerrilla.config import problems_of
from guerrilla.envelope import Address, Envelope, Headers, TLSInfo
from guerrilla.processors.sql import Sql, SqlConfig
from guerrilla.smtp.replies import INSUFFICIENT_STORAGE, LOCAL_ERROR, OK, STORAGE_NOT_AVAILABLE, Reply
from guerrilla.stores.sql_table import create_statements

Store: TypeAlias = Callable[..., AbstractAsyncContextManager[Sql]]
COLUMNS = (
    "mail_id date from to subject body mail spam_score hash content_type recipient has_attach ip_addr return_path "
    "is_tls message_id reply_to sender"
)


async def following() -> Reply:
    return OK


async def refusing() -> Reply:
    return LOCAL_ERROR


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "mail.db"


@pytest.fixture
def log() -> LogCapture:
    return LogCapture()


@pytest.fixture
def opened(path: Path, log: LogCapture) -> Store:
    """Opens a store on the file; on leaving, shuts it down."""

    @asynccontextmanager
    async def open_store(**config: Any) -> AsyncIterator[Sql]:
        sql = Sql(SqlConfig(**{"sql_dsn": str(path), "primary_mail_host": "mx.example.com"} | config))
        sql.log = structlog.wrap_logger(
            structlog.PrintLogger(), processors=[log], wrapper_class=structlog.make_filtering_bound_logger(0)
        )
        try:
            await sql.initialize()
            yield sql
        finally:
            await sql.shutdown()

    return open_store


async def execute(path: Path, statement: str) -> list[tuple[Any, ...]]:
    """Run one statement over a connection of its own, as the sqlite3 program does."""

    def run() -> list[tuple[Any, ...]]:
        connection = sqlite3.connect(path)
        try:
            with connection:
                return connection.execute(statement).fetchall()
        finally:
            connection.close()

    return await asyncio.to_thread(run)


async def count(path: Path) -> int:
    return int((await execute(path, "SELECT count(*) FROM new_mail"))[0][0])


def driver_of(connection: Connection) -> Any:
    return connection.connection.driver_connection


async def tell(sql: Sql, statement: str) -> Any:
    """Run a statement on the store's own connection, and return what it answers."""
    return await sql.writer.database.run(lambda connection: connection.execute(text(statement)).scalar())


def mail(data: bytes | mmap.mmap = b"Subject: x\r\n\r\nHi.\r\n", *users: str, **changes: Any) -> Envelope:
    envelope = Envelope(
        remote_ip="192.0.2.1",
        mail_from=Address("s", "example.org"),
        rcpt_to=[Address(user, "example.com") for user in users or ("joe",)],
        queued_id="q" * 32,
        data=data,
    )
    return replace(envelope, **changes)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(bytes(range(256)) * 3, id="every octet, NUL and 8-bit included"),
        pytest.param(b"a\r\n.\r\n\n\r\r\n", id="line ends of all kinds"),
        pytest.param(os.urandom(5_000_000), id="5 MB"),
    ],
)
async def test_octet_for_octet(opened: Store, path: Path, data: bytes) -> None:
    """The column `mail` holds delivery header and message as they are."""
    async with opened() as sql:
        assert await sql.save_mail(mail(data, delivery_header=b"D: x\r\n"), following) is OK
        assert await execute(path, "SELECT mail, body, typeof(mail) FROM new_mail") == [
            (b"D: x\r\n" + data, "", "blob")
        ]


async def test_memory_map(opened: Store, path: Path) -> None:
    """A message on disk is stored as one in memory."""
    octets = os.urandom(2_000_000)
    with tempfile.TemporaryFile() as file:
        file.write(octets)
        file.flush()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            async with opened() as sql:
                assert await sql.save_mail(mail(data), following) is OK
    assert await execute(path, "SELECT mail FROM new_mail") == [(octets,)]


async def test_columns(opened: Store, path: Path) -> None:
    """Each column has what the Go program's table has in it."""
    envelope = mail(
        b"x",
        "joe",
        remote_ip="2001:db8::1",
        subject="Grüße",
        hashes=["0" * 32],
        tls=TLSInfo("TLSv1.3", "x"),
        received_at=datetime(2024, 2, 3, 4, 5, 6, tzinfo=timezone(timedelta(hours=2))),
        header=Headers(
            [
                ("content-type", "text/plain"),
                ("message-id", "<id@example.org>"),
                ("reply-to", "Joe <reply@example.org>"),
                ("sender", "sender@example.org"),
            ]
        ),
    )
    async with opened() as sql:
        await sql.save_mail(envelope, following)
    assert " ".join(row[1] for row in await execute(path, "PRAGMA table_info(new_mail)")) == COLUMNS
    assert await execute(path, "SELECT * FROM new_mail") == [
        (
            1,
            "2024-02-03 02:05:06.000000",
            "s@example.org",
            "joe@mx.example.com",
            "Grüße",
            "",
            b"x",
            0.0,
            "0" * 32,
            "text/plain",
            "joe@example.com",
            0,
            bytes.fromhex("20010db8000000000000000000000001"),
            "s@example.org",
            1,
            "id@example.org",
            "reply@example.org",
            "sender@example.org",
        )
    ]


async def test_columns_of_little(opened: Store, path: Path) -> None:
    """A bounce without a header, from nowhere, has its row too; a message without an id is given one."""
    envelope = Envelope(
        rcpt_to=[Address("postmaster")], queued_id="1" * 32, received_at=datetime(2024, 1, 1, tzinfo=UTC)
    )
    async with opened() as sql:
        await sql.save_mail(envelope, following)
    columns = "`from`, `to`, recipient, ip_addr, is_tls, message_id, reply_to, mail"
    assert await execute(path, f"SELECT {columns} FROM new_mail") == [
        ("", "postmaster@mx.example.com", "postmaster", b"", 0, f"{'1' * 32}.postmaster@mx.example.com", "", b"")
    ]


async def test_text_is_made_to_fit(opened: Store, path: Path) -> None:
    """Text is cut to its column, and holds no NUL and nothing that is not UTF-8."""
    header = Headers([("Content-Type", "t" * 100), ("Message-ID", "m" * 300), ("Sender", "\ud800")])
    async with opened() as sql:
        assert await sql.save_mail(mail(header=header, subject="a\0b\ud800" + "s" * 300), following) is OK
    assert await execute(path, "SELECT subject, content_type, message_id, sender FROM new_mail") == [
        ("ab?" + "s" * 251, "t" * 64, "m" * 256, "?")
    ]


async def test_sql_in_addresses_is_only_text(opened: Store, path: Path) -> None:
    """What looks like SQL is stored, not run."""
    evil = "'; DROP TABLE new_mail;--"
    async with opened() as sql:
        await sql.save_mail(mail(b"x", evil, subject=evil), following)
    assert await execute(path, "SELECT subject FROM new_mail") == [(evil,)]


async def test_one_row_per_recipient(opened: Store, path: Path) -> None:
    """Each recipient has a row with the whole message and its own hash; the first hash becomes the queue id."""
    envelope = mail(b"x", "a", "b", hashes=["A" * 32, "B" * 32])
    async with opened() as sql:
        await sql.save_mail(envelope, following)
    assert envelope.queued_id == "A" * 32
    assert await execute(path, "SELECT recipient, hash, mail FROM new_mail ORDER BY mail_id") == [
        ("a@example.com", "A" * 32, b"x"),
        ("b@example.com", "B" * 32, b"x"),
    ]


async def test_without_hasher(opened: Store, path: Path) -> None:
    """Without Hasher in the line every row carries the queue id, which stays."""
    envelope = mail(b"x", "a", "b")
    async with opened() as sql:
        await sql.save_mail(envelope, following)
    assert envelope.queued_id == "q" * 32
    assert await execute(path, "SELECT hash FROM new_mail") == [("q" * 32,)] * 2


async def test_without_recipients(opened: Store, path: Path) -> None:
    """When an earlier processor has taken all recipients, there is nothing to store."""
    async with opened() as sql:
        assert await sql.save_mail(mail(rcpt_to=[]), following) is OK
    assert await count(path) == 0


class ZlibStream:
    """What Compressor leaves behind, in its shape."""

    async def data(self) -> bytes:
        return zlib.compress(b"whole message")


async def test_compressed(opened: Store, path: Path) -> None:
    """With Compressor before it, the compressed form is stored for every recipient, and `body` says so."""
    async with opened() as sql:
        await sql.save_mail(mail(b"x", "a", "b", values={"zlib-compressor": ZlibStream()}), following)
    assert await execute(path, "SELECT mail, body FROM new_mail") == [(zlib.compress(b"whole message"), "gzip")] * 2


async def test_group_commit(opened: Store, path: Path) -> None:
    """Messages that come at the same time share transactions, and all are there."""
    commits: list[object] = []
    async with opened() as sql:
        event.listen(sql.writer.database.engine, "commit", commits.append)
        replies = await asyncio.gather(
            *(sql.save_mail(mail(b"%d" % number, queued_id=f"{number:032}"), following) for number in range(50))
        )
        assert replies == [OK] * 50
        assert len(commits) < 10
    assert {row[0] for row in await execute(path, "SELECT mail FROM new_mail")} == {b"%d" % n for n in range(50)}


async def test_statements_are_short(opened: Store, path: Path) -> None:
    """Messages that are not small share a transaction, but no statement: the driver would hold on to all of them."""
    statements: list[str] = []
    async with opened() as sql:
        await sql.writer.database.run(lambda connection: driver_of(connection).set_trace_callback(statements.append))
        replies = await asyncio.gather(*(sql.save_mail(mail(b"x" * 100_000), following) for _ in range(8)))
        assert {*replies} == {OK}
    words = [statement.split()[0] for statement in statements]
    assert (words.count("INSERT"), words.count("COMMIT")) == (4, 1)
    assert await count(path) == 8


async def test_committed_before_passed_on(opened: Store, path: Path) -> None:
    """When the next processor runs, another connection sees the row."""
    seen = []

    async def look() -> Reply:
        seen.append(await count(path))
        return OK

    async with opened() as sql:
        await sql.save_mail(mail(), look)
    assert seen == [1]


async def test_durable(opened: Store) -> None:
    """The connection that writes has a write-ahead log with full synchronisation, so that COMMIT means on disk."""
    wanted = {"journal_mode": "wal", "synchronous": 2, "busy_timeout": 5000}
    async with opened() as sql:
        assert {pragma: await tell(sql, f"PRAGMA {pragma}") for pragma in wanted} == wanted


async def test_page_size(opened: Store, path: Path) -> None:
    """A new file has larger pages than SQLite's own; one that is there keeps its own, and its mail."""
    async with opened() as sql:
        assert await tell(sql, "PRAGMA page_size") == 8192
    path.unlink()
    await execute(path, "PRAGMA page_size = 4096")
    await execute(path, "CREATE TABLE other (x)")
    async with opened() as sql:
        assert await sql.save_mail(mail(), following) is OK
        assert await tell(sql, "PRAGMA page_size") == 4096
    assert await count(path) == 1


async def raising() -> Reply:
    raise ValueError("a bug")


async def cancelled() -> Reply:
    raise asyncio.CancelledError


@pytest.mark.parametrize(("rest", "error"), [(raising, ValueError), (cancelled, asyncio.CancelledError)])
async def test_undone_when_the_rest_raises(
    opened: Store, path: Path, rest: CallNext, error: type[BaseException]
) -> None:
    """When the rest of the line raises or is cancelled, all rows of the message go, and no others."""
    async with opened() as sql:
        await sql.save_mail(mail(b"kept", "a", "b", queued_id="k" * 32), following)
        with pytest.raises(error):
            await sql.save_mail(mail(b"lost", "a", "b"), rest)
        assert await execute(path, "SELECT mail FROM new_mail") == [(b"kept",)] * 2


async def test_undone_when_the_rest_refuses(opened: Store, path: Path) -> None:
    """When a later processor answers no, the answer is passed on and the rows go."""
    async with opened() as sql:
        assert await sql.save_mail(mail(b"lost", "a", "b", hashes=["A" * 32, "B" * 32]), refusing) is LOCAL_ERROR
        assert await count(path) == 0


async def test_undo_leaves_other_recipients(opened: Store, path: Path) -> None:
    """When another processor has given two messages one hash, the undo of one leaves the other."""
    async with opened() as sql:
        await sql.save_mail(mail(b"kept", "a", hashes=["A" * 32]), following)
        await sql.save_mail(mail(b"lost", "b", hashes=["A" * 32]), refusing)
        assert await execute(path, "SELECT mail FROM new_mail") == [(b"kept",)]


async def test_undo_is_finished_by_shutdown(opened: Store, path: Path) -> None:
    """An undo that is itself cancelled is finished before the database is closed."""
    async with opened() as sql:
        loop = asyncio.get_running_loop()
        saving: asyncio.Task[Reply] | None = None

        def cancel(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
            if statement.startswith("DELETE") and saving is not None:
                loop.call_soon_threadsafe(saving.cancel)

        event.listen(sql.writer.database.engine, "before_cursor_execute", cancel)
        saving = asyncio.create_task(sql.save_mail(mail(), refusing))
        with pytest.raises(asyncio.CancelledError):
            await saving
    assert await count(path) == 0


async def test_failing_undo_is_logged(opened: Store, path: Path, log: LogCapture) -> None:
    """When rows cannot be removed, the operator reads it, and at the end which they are; the answer stays as it was."""
    async with opened() as sql:
        await execute(path, "CREATE TRIGGER t BEFORE DELETE ON new_mail BEGIN SELECT RAISE(ABORT, 'no'); END")
        assert await sql.save_mail(mail(), refusing) is LOCAL_ERROR
    assert [entry["event"] for entry in log.entries] == [
        "rows of mail that was not accepted cannot be removed: trying on",
        "rows of mail that was not accepted are left in the table",
    ]


@pytest.mark.parametrize("moment", ["BEGIN", "INSERT", "COMMIT"])
async def test_cancelled_while_committing(opened: Store, path: Path, moment: str) -> None:
    """A message whose time is over, at whatever moment of its transaction, leaves no row; the next one is stored.

    What the database is doing is waited for, not cut short, so the connection stays good.
    """
    connections: list[object] = []
    async with opened() as sql:
        event.listen(sql.writer.database.engine, "connect", lambda *_: connections.append(_))
        loop = asyncio.get_running_loop()
        saving: asyncio.Task[Reply] | None = None

        def cancel(statement: str) -> None:
            if saving is not None and statement.startswith(moment):
                loop.call_soon_threadsafe(saving.cancel)

        await sql.writer.database.run(lambda connection: driver_of(connection).set_trace_callback(cancel))
        saving = asyncio.create_task(sql.save_mail(mail(b"lost"), following))
        with pytest.raises(asyncio.CancelledError):
            await saving
        saving = None
        assert await sql.save_mail(mail(b"kept", queued_id="k" * 32), following) is OK
    assert await execute(path, "SELECT mail FROM new_mail") == [(b"kept",)]
    assert connections == []


async def test_refused_alone(opened: Store, path: Path, log: LogCapture) -> None:
    """A message that the database refuses fails alone, with 451; those in its batch are stored."""
    async with opened() as sql:
        await execute(
            path,
            "CREATE TRIGGER t BEFORE INSERT ON new_mail WHEN new.subject = 'bad' BEGIN SELECT RAISE(ABORT, 'no'); END",
        )
        replies = await asyncio.gather(
            *(
                sql.save_mail(mail(queued_id=f"{number:032}", subject="bad" if number == 7 else "good"), following)
                for number in range(20)
            )
        )
        assert [reply for number, reply in enumerate(replies) if number != 7] == [OK] * 19
        assert replies[7] is LOCAL_ERROR
        assert await count(path) == 19
    assert [(entry["event"], entry["queued_id"], entry["cause"]) for entry in log.entries] == [
        ("the database refuses the message", f"{7:032}", "no")
    ]


async def test_refused_by_commit(opened: Store, path: Path) -> None:
    """What only COMMIT refuses is not there either, does not come with the next message, and does not keep it away."""
    async with opened() as sql:
        await sql.writer.database.run(lambda connection: driver_of(connection).execute("PRAGMA foreign_keys = ON"))
        await execute(path, "CREATE TABLE t (x REFERENCES new_mail (mail_id) DEFERRABLE INITIALLY DEFERRED)")
        await execute(
            path,
            "CREATE TRIGGER t AFTER INSERT ON new_mail WHEN new.subject = 'bad' BEGIN INSERT INTO t VALUES (-1); END",
        )
        assert await sql.save_mail(mail(subject="bad"), following) is LOCAL_ERROR
        assert await sql.save_mail(mail(subject="good"), following) is OK
        assert await execute(path, "SELECT subject FROM new_mail") == [("good",)]


async def test_conflicts_are_the_business_of_a_trigger(opened: Store, path: Path) -> None:
    """A trigger that notes each sender once with INSERT OR IGNORE keeps no mail away."""
    async with opened() as sql:
        await execute(path, "CREATE TABLE t (x UNIQUE)")
        await execute(
            path,
            "CREATE TRIGGER t AFTER INSERT ON new_mail BEGIN INSERT OR IGNORE INTO t VALUES (new.`from`); END",
        )
        for _ in range(2):
            assert await sql.save_mail(mail(b"x", "a", "b"), following) is OK
        assert await execute(path, "SELECT x FROM t") == [("s@example.org",)]


async def test_all_recipients_or_none(opened: Store, path: Path) -> None:
    """When the row of one recipient is refused, none is stored."""
    async with opened() as sql:
        await execute(
            path,
            "CREATE TRIGGER t BEFORE INSERT ON new_mail WHEN new.`to` LIKE 'b@%' BEGIN SELECT RAISE(ABORT, 'no'); END",
        )
        assert await sql.save_mail(mail(b"x", "a", "b", "c"), following) is LOCAL_ERROR
        assert await count(path) == 0


async def test_too_big_for_the_database(opened: Store, path: Path) -> None:
    """A message larger than the database can hold is answered 451, and a smaller one in its batch is stored."""
    async with opened() as sql:
        await sql.writer.database.run(
            lambda connection: driver_of(connection).setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 100_000)
        )
        small, large = mail(b"x"), mail(b"x" * 200_000)
        replies = await asyncio.gather(*(sql.save_mail(envelope, following) for envelope in (small, large)))
        assert replies == [OK, LOCAL_ERROR]
        assert await execute(path, "SELECT mail FROM new_mail") == [(b"x",)]


async def test_cancelled_while_waiting(opened: Store, path: Path) -> None:
    """A message whose time is over before its transaction begins is not stored; those around it are."""
    async with opened() as sql:
        tasks = [
            asyncio.create_task(sql.save_mail(mail(b"%d" % number, queued_id=f"{number:032}"), following))
            for number in range(4)
        ]
        await asyncio.sleep(0)
        tasks[2].cancel()
        await asyncio.wait(tasks)
        assert [task.cancelled() for task in tasks] == [False, False, True, False]
    assert await execute(path, "SELECT mail FROM new_mail ORDER BY hash") == [(b"0",), (b"1",), (b"3",)]


@pytest.fixture
def locked() -> Iterator[Callable[[Path], sqlite3.Connection]]:
    """Locks the database over a connection of its own."""
    connections: list[sqlite3.Connection] = []

    def lock(path: Path) -> sqlite3.Connection:
        connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        connections.append(connection)
        connection.execute("BEGIN IMMEDIATE")
        return connection

    yield lock
    for connection in connections:
        connection.close()


async def test_locked(opened: Store, path: Path, log: LogCapture, locked: Callable[[Path], sqlite3.Connection]) -> None:
    """A database that another program holds is an outage: 451, with the cause in the log, and then it goes on."""
    async with opened() as sql:
        await tell(sql, "PRAGMA busy_timeout = 0")
        other = await asyncio.to_thread(locked, path)
        assert await sql.save_mail(mail(), following) is STORAGE_NOT_AVAILABLE
        await asyncio.to_thread(other.execute, "ROLLBACK")
        assert await sql.save_mail(mail(), following) is OK
        assert await count(path) == 1
    assert [entry["event"] for entry in log.entries] == ["the message was not stored"]
    assert log.entries[0]["cause"] == "database is locked"


async def test_full(opened: Store, path: Path) -> None:
    """A full database is 452; nothing of the message is left, and a smaller one is taken."""
    async with opened() as sql:
        pages = await tell(sql, "PRAGMA page_count")
        await tell(sql, f"PRAGMA max_page_count = {pages + 20}")
        assert await sql.save_mail(mail(b"x" * 1_000_000, "a", "b"), following) is INSUFFICIENT_STORAGE
        assert await count(path) == 0
        assert await sql.save_mail(mail(b"small"), following) is OK
        assert await count(path) == 1


async def test_table_lost(opened: Store, path: Path) -> None:
    """A table that is gone is an outage, not the sender's fault."""
    async with opened() as sql:
        await execute(path, "DROP TABLE new_mail")
        assert await sql.save_mail(mail(), following) is STORAGE_NOT_AVAILABLE


async def test_new_file_is_private(opened: Store, path: Path) -> None:
    """The file and its log are for their owner only: SQLite alone would let everyone read the mail."""
    before = os.umask(0)
    try:
        async with opened() as sql:
            await sql.save_mail(mail(), following)
            files = list(path.parent.iterdir())
            assert len(files) == 3
            assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    finally:
        os.umask(before)


async def test_second_start(opened: Store, path: Path) -> None:
    """A second start finds the mail of the first, and leaves the rights of the file as they are."""
    async with opened() as sql:
        await sql.save_mail(mail(), following)
    await asyncio.to_thread(path.chmod, 0o640)
    async with opened() as sql, opened() as second:  # a reload: the new gateway starts before the old one ends
        await sql.save_mail(mail(), following)
        await second.save_mail(mail(), following)
    assert await count(path) == 3
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


async def test_indexes(opened: Store, path: Path) -> None:
    """`to`, `hash` and `date` are indexed."""
    async with opened(mail_table="other"):
        rows = await execute(path, "SELECT name FROM sqlite_master WHERE type = 'index' ORDER BY 1")
    assert [row[0] for row in rows] == ["ix_other_date", "ix_other_hash", "ix_other_to"]


async def fails_to_start(opened: Store, match: str, **config: Any) -> None:
    with pytest.raises(RuntimeError, match=match):
        async with opened(**config):
            pass


async def test_no_folder(opened: Store, tmp_path: Path) -> None:
    """A folder that is not there is named, and not made."""
    await fails_to_start(opened, "none/mail.db cannot be used: No such file", sql_dsn=str(tmp_path / "none/mail.db"))


async def test_a_folder(opened: Store, tmp_path: Path) -> None:
    """A folder is no database."""
    await fails_to_start(opened, "unable to open database file. A SQLite file is meant", sql_dsn=str(tmp_path))


async def test_no_database(opened: Store, path: Path) -> None:
    """A file of another kind is named, and left as it is."""
    path.write_bytes(b"This is a letter.\n" * 100)
    await fails_to_start(opened, "mail.db cannot be used: file is not a database")
    assert path.read_bytes() == b"This is a letter.\n" * 100


async def test_another_table(opened: Store, path: Path) -> None:
    """A table of that name with other columns is named, with what it lacks."""
    await execute(path, "CREATE TABLE new_mail (mail_id INTEGER PRIMARY KEY, mail BLOB)")
    await fails_to_start(opened, "new_mail in .* lacks the columns date, from, to, subject")


async def test_table_is_not_made_if_not_wanted(opened: Store, path: Path) -> None:
    """With sql_create_table false, neither file nor table is made; with a table that is there it works."""
    await fails_to_start(opened, "No such file", sql_create_table=False)
    assert not path.exists()
    await execute(path, "CREATE TABLE other (x)")
    await fails_to_start(opened, "there is no table new_mail", sql_create_table=False)
    async with opened():
        pass
    async with opened(sql_create_table=False) as sql:
        assert await sql.save_mail(mail(), following) is OK


async def test_shutdown_without_a_start(path: Path) -> None:
    """A store that was never started can be shut down, and has made nothing."""
    await Sql(SqlConfig(sql_dsn=str(path))).shutdown()
    assert not path.exists()


@pytest.mark.parametrize(
    ("key", "value", "meant"),
    [
        ("sql_dsn", "", "path of a file is meant"),
        ("sql_dsn", ":memory:", "in memory would be lost"),
        ("sql_dsn", "sqlite://", "sqlite:///path"),
        ("sql_dsn", "sqlite:///", "in memory would be lost"),
        ("sql_dsn", "sqlite:///:memory:", "in memory would be lost"),
        ("sql_dsn", "sqlite:///file::memory:?uri=true", "sqlite:///path"),
        ("sql_dsn", "file::memory:", "in memory would be lost"),
        ("sql_dsn", "sqlite://host/mail.db", "sqlite:///path"),
        ("sql_dsn", "mysql://root:ok@127.0.0.1/mail", "sqlite:///path"),
        ("sql_dsn", "http://[::1/x", "sqlite:///path"),
        ("sql_dsn", "a\0b", "path of a file is meant"),
        ("sql_driver", "oracle", "a driver is meant: mysql, mariadb, postgres"),
        ("mail_table", "", "a table name is meant"),
        ("mail_table", "new_mail\n", "a table name is meant"),
        ("mail_table", "a;DROP TABLE b", "a table name is meant"),
        ("mail_table", "a" * 65, "a table name is meant"),
        ("sql_create_table", "yes", "valid boolean"),
    ],
)
def test_bad_configuration(key: str, value: str, meant: str) -> None:
    """A value that cannot be meant is refused, with what is."""
    with pytest.raises(ValidationError, match=meant) as caught:
        SqlConfig.model_validate({key: value})
    assert [problem["loc"] for problem in caught.value.errors()] == [(key,)]


@pytest.mark.parametrize(
    ("driver", "dsn", "meant"),
    [
        ("mysql", "guerrilla.db", "user:password@tcp"),
        ("mysql", "root:s3cret@/mail?tsl=true", "unknown parameter tsl; tls is meant"),
        ("pgx", "password=s3cret hots=x", "unknown parameter hots; host is meant"),
        ("mariadb", ["s3cret"], "a text in double quotes is meant"),
    ],
)
def test_bad_dsn(driver: str, dsn: object, meant: str) -> None:
    """A DSN that cannot be used is refused with what is meant, and nothing of it is shown."""
    with pytest.raises(ValidationError, match=meant) as caught:
        SqlConfig.model_validate({"sql_driver": driver, "sql_dsn": dsn})
    shown = [str(caught.value), *map(str, problems_of(caught.value, SqlConfig))]
    assert not any("s3cret" in each for each in shown)


def test_password_is_not_shown() -> None:
    """What is shown of the configuration has no password in it."""
    assert "s3cret" not in repr(SqlConfig(sql_driver="mysql", sql_dsn="root:s3cret@/mail"))


GO_COLUMNS = (
    "date to from subject body mail spam_score hash content_type recipient has_attach ip_addr return_path is_tls "
    "message_id reply_to sender"
)
GO_VALUES = "(NOW(), ?, ?, ?, ? , ?, 0, ?, ?, ?, 0, ?, ?, ?, ?, ?, ?)"
QUOTES = {"mysql": "`", "postgres": '"'}
HEX = {"mysql": "HEX(mail)", "postgres": "UPPER(ENCODE(mail, 'hex'))"}


@pytest.mark.parametrize("driver", ["mysql", "postgres"])
async def test_the_statement_of_the_go_program(opened: Store, request: pytest.FixtureRequest, driver: str) -> None:
    """Given as ``sql_insert`` and ``sql_values``, NOW() and all, it fills the table that both programs have."""
    server: DatabaseServer = request.getfixturevalue({"mysql": "mariadb", "postgres": "postgres"}[driver])
    database = server.create_database()
    for statement in create_statements(driver, "new_mail"):
        server.sql(statement, database)
    quote = QUOTES[driver]
    columns = ", ".join(f"{quote}{column}{quote}" for column in GO_COLUMNS.split())
    values = GO_VALUES
    if driver == "postgres":
        for number in range(1, 15):
            values = values.replace("?", f"${number}", 1)
    keys = {"sql_insert": f"INSERT INTO new_mail ({columns}) VALUES", "sql_values": values}
    data = bytes(range(256)) + b"%s :a ? $1"
    async with opened(sql_driver=driver, sql_dsn=server.go_dsn(database), **keys) as sql:
        hashes = [[f"{number}{user}".zfill(32) for user in ("ann", "bob")] for number in range(50)]
        envelopes = [mail(data, "ann", "bob", subject="50 %s", hashes=each) for each in hashes]
        replies = await asyncio.gather(*(sql.save_mail(envelope, following) for envelope in envelopes))
        assert replies == [OK] * 50
        assert await sql.save_mail(mail(data, hashes=["f" * 32]), refusing) is LOCAL_ERROR
    seconds = {"mysql": "ABS(TIMESTAMPDIFF(SECOND, NOW(), date))", "postgres": "ABS(EXTRACT(EPOCH FROM NOW() - date))"}
    rows = server.sql(
        f"SELECT hash, recipient, subject, {HEX[driver]}, {seconds[driver]} < 600 FROM new_mail ORDER BY hash", database
    ).splitlines()
    wanted = [
        (key, f"{user}@example.com", "50 %s", data.hex().upper())
        for each in hashes
        for key, user in zip(each, ("ann", "bob"), strict=True)
    ]
    assert [tuple(row.split("\t")[:4]) for row in rows] == sorted(wanted)
    assert {row.split("\t")[4] for row in rows} <= {"1", "t"}


def test_wrong_number_of_placeholders() -> None:
    """The operator's own values have as many placeholders as there are values."""
    with pytest.raises(ValidationError, match="14 placeholders are meant"):
        SqlConfig(sql_values="(NOW(), ?, ?)")


def test_settings_of_a_server() -> None:
    """The keys of the pool are taken over; a server's table is made only when that is asked for."""
    keys = {"sql_driver": "mariadb", "sql_dsn": "root:ok@tcp(127.0.0.1:3306)/gmail_mail"}
    settings = SqlConfig.model_validate(keys).settings()
    assert (settings.create_table, settings.max_open, settings.max_idle, settings.lifetime) == (False, 0, 2, 0.0)
    keys["sql_max_conn_lifetime"] = ""
    assert SqlConfig.model_validate(keys).settings().lifetime == 0.0
    pool = {"sql_max_open_conns": 9, "sql_max_idle_conns": 3, "sql_max_conn_lifetime": "1h", "sql_create_table": True}
    settings = SqlConfig.model_validate(keys | pool).settings()
    assert (settings.create_table, settings.max_open, settings.max_idle, settings.lifetime) == (True, 9, 3, 3600.0)


def test_configuration() -> None:
    """Without configuration it is guerrilla.db, table new_mail; "sqlite3" is another name of the driver."""
    config = SqlConfig(sql_driver="sqlite3")
    assert (config.sql_driver, config.sql_dsn, config.mail_table) == ("sqlite", "guerrilla.db", "new_mail")
    assert config.primary_mail_host
