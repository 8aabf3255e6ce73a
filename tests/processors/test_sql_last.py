"""Sql as the last of its line: the gateway has it begin, and what is promised of a message is the same."""

from __future__ import annotations

import asyncio
import sqlite3
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import structlog
from sqlalchemy import Connection
from structlog.testing import LogCapture

from guerrilla.backends.base import CallNext
from guerrilla.backends.gateway import Gateway
from guerrilla.backends.hooks import Keeper
from guerrilla.backends.processor import Processor, ProcessorConfig, end_of_line, processor
from guerrilla.backends.registry import Registry
from guerrilla.counters import Counters
from guerrilla.envelope import Address, Envelope
from guerrilla.processors.mysql import MySql, MySqlConfig
from guerrilla.processors.sql import Sql, SqlConfig
from guerrilla.smtp.replies import INSUFFICIENT_STORAGE, LOCAL_ERROR, SAVE_TIMEOUT, STORAGE_NOT_AVAILABLE, Reply
from guerrilla.stores.sql_keys import TableKeys
from guerrilla.stores.sql_writer import SqlWriter

Open: TypeAlias = Callable[..., AbstractAsyncContextManager[tuple[Gateway, Sql]]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "mail.db"


@pytest.fixture
def records() -> LogCapture:
    return LogCapture()


@pytest.fixture
def opened(path: Path, records: LogCapture) -> Open:
    """Opens a gateway whose line ends with Sql, on the file."""

    @asynccontextmanager
    async def start(chain: str = "HeadersParser|Hasher|Header|Sql", **keys: Any) -> AsyncIterator[tuple[Gateway, Sql]]:
        log = structlog.wrap_logger(
            structlog.PrintLogger(), processors=[records], wrapper_class=structlog.make_filtering_bound_logger(0)
        )
        line = Registry().build({"save_process": chain, "sql_dsn": str(path), **keys}, Counters())
        gateway = Gateway(line, log)
        await gateway.initialize()
        await gateway.start()
        [sql] = [made for _, made in line.processors if isinstance(made, Sql)]
        try:
            yield gateway, sql
        finally:
            await gateway.shutdown()

    return start


def mail(subject: str = "x", data: bytes = b"", *users: str) -> Envelope:
    return Envelope(
        mail_from=Address("s", "example.org"),
        rcpt_to=[Address(user, "example.com") for user in users or ("joe",)],
        data=f"Subject: {subject}\r\n\r\n".encode() + data,
    )


def rows(path: Path, columns: str = "subject") -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(f"SELECT {columns} FROM new_mail ORDER BY mail_id").fetchall()
    finally:
        connection.close()


def execute(path: Path, statement: str) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute(statement)
    connection.close()


async def driver(sql: Sql, use: Callable[[Any], Any]) -> Any:
    """Do something with SQLite's own connection."""

    def work(connection: Connection) -> Any:
        return use(connection.connection.driver_connection)

    return await sql.writer.database.run(work)


async def test_kept_under_the_name_that_the_client_is_told(opened: Open, path: Path) -> None:
    envelopes = [mail(f"{number}", b"Hi.\r\n", "joe", "eve") for number in range(3)]
    async with opened() as (gateway, _):
        replies = await asyncio.gather(*map(gateway.process, envelopes))
    kept = rows(path, "hash, recipient, mail")
    assert [row[1] for row in kept] == ["joe@example.com", "eve@example.com"] * 3
    assert [row[2] for row in kept[::2]] == [bytes(envelope) for envelope in envelopes]
    assert [envelope.queued_id for envelope in envelopes] == [row[0] for row in kept[::2]]
    assert [reply.text for reply in replies] == [f"OK: queued as {row[0]}" for row in kept[::2]]


@pytest.mark.parametrize("size", [10, 100_000])
async def test_what_compressor_has_left_is_kept_compressed(opened: Open, path: Path, size: int) -> None:
    envelopes = [mail("x", b"x" * size) for _ in range(3)]
    async with opened("HeadersParser|Hasher|Header|Compressor|Sql") as (gateway, _):
        replies = await asyncio.gather(*map(gateway.process, envelopes))
    assert all(reply.positive for reply in replies)
    kept = rows(path, "body, mail")
    assert [(body, zlib.decompress(data)) for body, data in kept] == [("gzip", bytes(each)) for each in envelopes]


async def test_without_hasher_it_keeps_its_queue_id(opened: Open, path: Path) -> None:
    async with opened("Sql") as (gateway, _):
        reply = await gateway.process(mail())
    assert [f"OK: queued as {hash_}" for (hash_,) in rows(path, "hash")] == [reply.text]


async def test_without_recipients_there_is_no_row(opened: Open, path: Path) -> None:
    """And nothing that could fail: a database that is gone is not missed, nor a message that is withdrawn."""
    async with opened("Sql") as (gateway, _):
        envelope = Envelope(hashes=["h"])
        reply = await gateway.process(envelope)
        assert reply.text == f"OK: queued as {envelope.queued_id}"
        assert envelope.queued_id != "h"
        execute(path, "DROP TABLE new_mail")
        withdrawn = gateway.process(Envelope())
        answer = gateway.process(Envelope())
        withdrawn.cancel()
        assert (await answer).positive
        assert gateway.workers_busy == 0


@pytest.mark.parametrize("number", [0, 7, 19])
async def test_what_the_database_refuses_fails_alone(
    opened: Open, path: Path, records: LogCapture, number: int
) -> None:
    envelopes = [mail("bad" if each == number else "good") for each in range(20)]
    async with opened() as (gateway, _):
        execute(
            path,
            "CREATE TRIGGER t BEFORE INSERT ON new_mail WHEN new.subject = 'bad' BEGIN SELECT RAISE(ABORT, 'no'); END",
        )
        replies = await asyncio.gather(*map(gateway.process, envelopes))
    assert [each for each, reply in enumerate(replies) if not reply.positive] == [number]
    assert replies[number] is LOCAL_ERROR
    assert rows(path) == [("good",)] * 19
    assert [(entry["event"], entry["queued_id"], entry["cause"]) for entry in records.entries] == [
        ("the database refuses the message", envelopes[number].queued_id, "no")
    ]


async def test_a_full_database_is_452_and_one_without_its_table_451(opened: Open, path: Path) -> None:
    async with opened() as (gateway, sql):
        pages = await driver(sql, lambda connection: connection.execute("PRAGMA page_count").fetchone()[0])
        await driver(sql, lambda connection: connection.execute(f"PRAGMA max_page_count = {pages + 20}"))
        assert await gateway.process(mail("large", b"x" * 1_000_000)) is INSUFFICIENT_STORAGE
        assert (await gateway.process(mail("small"))).positive
        assert rows(path) == [("small",)]
        execute(path, "DROP TABLE new_mail")
        assert await gateway.process(mail()) is STORAGE_NOT_AVAILABLE


@pytest.mark.parametrize("moment", ["BEGIN", "INSERT", "COMMIT"])
@pytest.mark.parametrize("alone", [True, False])
async def test_who_is_not_waited_for_any_more_leaves_no_row(opened: Open, path: Path, moment: str, alone: bool) -> None:
    """Whatever the transaction is at; the others of the batch, and the next, are kept."""
    async with opened() as (gateway, sql):
        loop = asyncio.get_running_loop()
        answers: list[asyncio.Future[Reply]] = []

        def cancel(statement: str) -> None:
            if statement.startswith(moment):
                loop.call_soon_threadsafe(answers[0].cancel)

        await driver(sql, lambda connection: connection.set_trace_callback(cancel))
        answers += map(gateway.process, [mail("gone"), *([] if alone else [mail("kept")])])
        await asyncio.wait(answers)
        assert answers[0].cancelled()
        assert all(answer.result().positive for answer in answers[1:])
        await driver(sql, lambda connection: connection.set_trace_callback(None))
        assert (await gateway.process(mail("next"))).positive
    assert rows(path) == [*([] if alone else [("kept",)]), ("next",)]


async def test_whose_time_is_over_leaves_no_row(opened: Open, path: Path) -> None:
    """Another program holds the file for longer; what was answered 451 is not there when it lets go."""
    async with opened(gw_save_timeout="50ms") as (gateway, _):
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        assert await gateway.process(mail("late")) is SAVE_TIMEOUT
        other.execute("ROLLBACK")
        other.close()
    assert rows(path) == []


async def test_when_the_store_closes_what_it_has_begun_is_kept(opened: Open, path: Path) -> None:
    async with opened() as (gateway, _):
        answers = [gateway.process(mail(f"{number}")) for number in range(3)]
    assert all(answer.result().positive for answer in answers)
    assert rows(path) == [("0",), ("1",), ("2",)]


class Broken:
    """What a processor in Compressor's place may leave."""

    encoding = "gzip"

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def at_hand(self) -> bytes:
        raise self._error

    async def data(self) -> bytes:
        raise AssertionError


class Breaks(Processor[ProcessorConfig]):
    """Leaves it where the subject says so."""

    def annotate(self, envelope: Envelope) -> None:
        if envelope.subject in ERRORS:
            envelope.values["zlib-compressor"] = Broken(ERRORS[envelope.subject])


ERRORS = {
    "cancelled": asyncio.CancelledError(),
    "exit": SystemExit(3),
    "generator": GeneratorExit(),
    "stop": StopIteration(),
    "bug": ValueError("a bug"),
}


@pytest.mark.parametrize("subject", ERRORS)
async def test_octets_that_cannot_be_had_are_the_affair_of_their_message(
    opened: Open, path: Path, subject: str
) -> None:
    async with opened(f"HeadersParser|{__name__}:Breaks|Sql") as (gateway, _):
        answers = [gateway.process(mail(each)) for each in ("one", subject, "two")]
        replies = await asyncio.gather(*answers)
        assert [reply.positive for reply in replies] == [True, False, True]
        assert (await gateway.process(mail("next"))).positive
    assert rows(path) == [("one",), ("two",), ("next",)]


async def test_more_than_there_are_workers(opened: Open, path: Path) -> None:
    """What waits for a worker is kept as the others are."""
    async with opened(save_workers_size=3) as (gateway, _):
        replies = await asyncio.gather(*(gateway.process(mail(f"{number}")) for number in range(20)))
    assert all(reply.positive for reply in replies)
    assert sorted(rows(path)) == sorted((f"{number}",) for number in range(20))


class Late(Sql):
    """Learns where its table is when it is started."""

    async def initialize(self) -> None:
        self.writer = SqlWriter(self.config.settings())
        await super().initialize()


class Own(Sql):
    """Keeps nothing, by what it was given when it was made."""

    def __init__(self, config: SqlConfig) -> None:
        super().__init__(config)
        self.save_mail = self._refuse  # type: ignore[method-assign]

    async def _refuse(self, envelope: Envelope, call_next: CallNext) -> Reply:
        return LOCAL_ERROR


@pytest.mark.parametrize(("kind", "kept"), [("Late", True), ("Own", False)])
async def test_what_an_instance_is_given_counts(opened: Open, path: Path, kind: str, kept: bool) -> None:
    async with opened(f"{__name__}:{kind}") as (gateway, _):
        assert (await gateway.process(mail())).positive is kept
    assert len(rows(path)) == kept


class Careful(Sql):
    """Keeps nothing whose subject is no."""

    async def save_mail(self, envelope: Envelope, call_next: CallNext) -> Reply:
        return LOCAL_ERROR if envelope.subject == "no" else await super().save_mail(envelope, call_next)


async def test_who_derives_from_it_has_the_last_word(opened: Open, path: Path) -> None:
    async with opened(f"HeadersParser|{__name__}:Careful") as (gateway, _):
        assert await gateway.process(mail("no")) is LOCAL_ERROR
        assert (await gateway.process(mail("yes"))).positive
    assert rows(path) == [("yes",)]


@pytest.mark.parametrize(
    "made",
    [
        Sql(SqlConfig()),
        MySql(MySqlConfig(mysql_user="u", mysql_pass="p", mysql_db="d")),
    ],
)
async def test_only_the_last_of_a_line_is_told_to_begin(made: Sql | MySql) -> None:
    @processor
    async def following(envelope: Envelope) -> None:
        return None

    assert isinstance(made.decorate(end_of_line), Keeper)
    assert not isinstance(made.decorate(following.decorate(end_of_line)), Keeper)


def test_where_the_table_is_the_keys_of_each_processor_say() -> None:
    with pytest.raises(NotImplementedError):
        TableKeys().settings()
