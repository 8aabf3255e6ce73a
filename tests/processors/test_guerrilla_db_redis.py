"""GuerrillaDbRedis keeps rows in a real database and bodies in a real Redis, and mail also when there is no Redis."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import structlog
from pydantic import ValidationError
from structlog.testing import LogCapture
from tests.private_servers import MariaDB, RedisServer

from guerrilla.backends.base import CallNext, Task
from guerrilla.backends.batch import BatchRefusedError
from guerrilla.config import problems_of
from guerrilla.envelope import Address, Envelope
from guerrilla.processors.compressor import Compressor, CompressorConfig
from guerrilla.processors.guerrilla_db_redis import GuerrillaDbRedis, GuerrillaDbRedisConfig
from guerrilla.processors.redis import Redis, RedisConfig
from guerrilla.smtp.replies import LOCAL_ERROR, OK, STORAGE_NOT_AVAILABLE, Reply
from guerrilla.stores.dsn import read_dsn
from guerrilla.stores.redis import RedisBodies
from guerrilla.stores.sql import SqlStore

Opened: TypeAlias = Callable[..., AbstractAsyncContextManager[GuerrillaDbRedis]]
HASHES = ["a" * 32, "b" * 32]
KEYS = {"redis_interface": "127.0.0.1:6379", "redis_expire_seconds": 7200}
AWAY = "Redis does not take bodies: they go into the database until it does"


async def following() -> Reply:
    return OK


async def refusing() -> Reply:
    return LOCAL_ERROR


async def raising() -> Reply:
    raise ZeroDivisionError


async def cancelled() -> Reply:
    raise asyncio.CancelledError


@pytest.fixture
def server(redis: RedisServer) -> Iterator[RedisServer]:
    """Give a Redis that runs and is empty."""
    redis.flush()
    yield redis
    redis.start()
    redis.command("CONFIG", "SET", "maxmemory", "0", "appendfsync", "always")


@pytest.fixture
def file(tmp_path: Path) -> str:
    return str(tmp_path / "mail.db")


@pytest.fixture
def records() -> LogCapture:
    return LogCapture()


@pytest.fixture
def opened(server: RedisServer, file: str, records: LogCapture) -> Opened:
    """Starts the processor on SQLite; on leaving, shuts it down."""

    @asynccontextmanager
    async def open_processor(**changes: Any) -> AsyncIterator[GuerrillaDbRedis]:
        keys = {"sql_dsn": file, "redis_interface": server.address, "redis_expire_seconds": 7200} | changes
        processor = GuerrillaDbRedis(GuerrillaDbRedisConfig.model_validate(keys))
        processor.log = structlog.wrap_logger(
            structlog.PrintLogger(), processors=[records], wrapper_class=structlog.make_filtering_bound_logger(0)
        )
        try:
            await processor.initialize()
            yield processor
        finally:
            await processor.shutdown()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    return open_processor


def mail(data: bytes = b"Hi.\r\n", **changes: Any) -> Envelope:
    envelope = Envelope(
        mail_from=Address("s", "example.org"),
        rcpt_to=[Address("ann", "example.com"), Address("bob", "example.com")],
        queued_id="q" * 32,
        data=data,
        hashes=list(HASHES),
    )
    return replace(envelope, **changes)


def one(number: int) -> Envelope:
    """A message to one recipient, with a hash of its own."""
    return mail(b"%d" % number, rcpt_to=[Address("ann", "example.com")], hashes=[f"{number:032}"])


def rows(file: str) -> list[tuple[Any, ...]]:
    """Hash, body and mail of each row, read over a connection of its own."""
    connection = sqlite3.connect(file)
    try:
        return connection.execute("SELECT hash, body, mail FROM new_mail ORDER BY mail_id").fetchall()
    finally:
        connection.close()


def keys(server: RedisServer) -> set[str]:
    return set(server.command("KEYS", "*").split())


async def read(server: RedisServer, dsn: str, key: str = HASHES[0], driver: str = "sqlite") -> bytes | None:
    """Read the message as the console does."""
    store = SqlStore(read_dsn(driver, dsn), "new_mail", RedisBodies(server.address))
    try:
        return await store.get(key)
    finally:
        await store.close()


def on_mariadb(mariadb: MariaDB) -> dict[str, Any]:
    """The keys for an empty database."""
    dsn = mariadb.go_dsn(mariadb.create_database()) + "?timeout=2s"
    return {"sql_driver": "mysql", "sql_dsn": dsn, "sql_create_table": True}


async def compressed(processor: GuerrillaDbRedis, envelope: Envelope) -> Reply:
    """Save it with Compressor before the processor."""
    line = Compressor(CompressorConfig()).decorate(processor.decorate(lambda _, __: following()))
    return await line(envelope, Task.SAVE_MAIL)


OCTETS = [
    pytest.param(b"", id="nothing"),
    pytest.param(bytes(range(256)) * 3, id="every octet, NUL and 8-bit included"),
    pytest.param(os.urandom(5_000_000), id="5 MB"),
]


@pytest.mark.parametrize("data", OCTETS)
@pytest.mark.parametrize("with_compressor", [False, True])
async def test_octet_for_octet(
    opened: Opened, server: RedisServer, mariadb: MariaDB, data: bytes, with_compressor: bool
) -> None:
    """What is kept comes back through the store as it was, compressed on the way or not."""
    place = on_mariadb(mariadb)
    envelope = mail(data, delivery_header=b"D: x\r\n")
    async with opened(**place) as processor:
        if with_compressor:
            assert await compressed(processor, envelope) is OK
        else:
            assert await processor.save_mail(envelope, following) is OK
    assert await read(server, place["sql_dsn"], driver="mysql") == b"D: x\r\n" + data


async def test_where_it_is(opened: Opened, server: RedisServer, file: str) -> None:
    """Body once under the first hash, for as long as configured; a row per recipient that says so."""
    envelope = mail(b"x")
    async with opened(redis_expire_seconds=1000) as processor:
        assert await processor.save_mail(envelope, following) is OK
    assert rows(file) == [(HASHES[0], "redis", b"")] * 2
    assert server.command("GET", HASHES[0]) == "x\n"
    assert 900 < int(server.command("TTL", HASHES[0])) <= 1000
    assert (envelope.queued_id, envelope.values) == (HASHES[0], {"redis": "redis"})


@pytest.mark.parametrize(("hashes", "key"), [([], "q" * 32), (["c" * 32], "c" * 32)])
async def test_hashes_of_another_kind(
    opened: Opened, server: RedisServer, file: str, hashes: list[str], key: str
) -> None:
    """Without hashes the queue id is the key; of fewer hashes than recipients the first is, for all of them."""
    async with opened() as processor:
        await processor.save_mail(mail(b"x", hashes=hashes), following)
    assert rows(file) == [(key, "redis", b"")] * 2
    assert await read(server, file, key) == b"x"


async def test_stored_before_passed_on(opened: Opened, server: RedisServer, file: str) -> None:
    """When the next processor runs, others find rows and body."""
    seen = []

    async def look() -> Reply:
        seen.append(await read(server, file))
        return OK

    async with opened() as processor:
        await processor.save_mail(mail(b"x"), look)
    assert seen == [b"x"]


async def test_many_at_once(opened: Opened, server: RedisServer, mariadb: MariaDB) -> None:
    """Messages that come at the same time share transactions and round trips, and all are there."""

    def counts() -> tuple[int, int]:
        reads = server.command("INFO", "stats").partition("total_reads_processed:")[2].split()[0]
        return int(mariadb.sql("SHOW GLOBAL STATUS LIKE 'Com_commit'").split()[1]), int(reads)

    async with opened(**on_mariadb(mariadb)) as processor:
        commits, reads = counts()
        assert await asyncio.gather(*(processor.save_mail(one(n), following) for n in range(100))) == [OK] * 100
        commits_after, reads_after = counts()
    assert commits_after - commits < 30
    assert reads_after - reads < 30
    assert keys(server) == {f"{number:032}" for number in range(100)}


@pytest.mark.parametrize(("rest", "error"), [(raising, ZeroDivisionError), (cancelled, asyncio.CancelledError)])
async def test_taken_back_when_the_rest_raises(
    opened: Opened, server: RedisServer, file: str, rest: CallNext, error: type[BaseException]
) -> None:
    """When the rest of the line raises or is cancelled, its rows and its key go, and no others."""
    async with opened() as processor:
        await processor.save_mail(one(1), following)
        with pytest.raises(error):
            await processor.save_mail(mail(), rest)
    assert rows(file) == [(f"{1:032}", "redis", b"")]
    assert keys(server) == {f"{1:032}"}


async def test_taken_back_when_the_rest_refuses(opened: Opened, server: RedisServer, file: str) -> None:
    """When a later processor answers no, rows and key go."""
    async with opened() as processor:
        assert await processor.save_mail(mail(), refusing) is LOCAL_ERROR
    assert rows(file) == []
    assert keys(server) == set()


@pytest.mark.parametrize("with_compressor", [False, True])
async def test_redis_killed(
    opened: Opened, server: RedisServer, file: str, records: LogCapture, with_compressor: bool
) -> None:
    """While Redis is away bodies are in the rows, octet for octet; then in Redis again. The log says both."""
    async with opened() as processor:
        await processor.save_mail(one(1), following)
        await asyncio.to_thread(server.kill)
        envelope = mail(b"x" * 100)
        if with_compressor:
            assert await compressed(processor, envelope) is OK
        else:
            assert await processor.save_mail(envelope, following) is OK
        assert await processor.save_mail(one(2), following) is OK
        assert "redis" not in envelope.values
        await asyncio.to_thread(server.start)
        assert await processor.save_mail(one(3), following) is OK
    bodies = ["redis", *["gzip" if with_compressor else ""] * 2, "", "redis"]
    assert [row[:2] for row in rows(file)] == list(
        zip([f"{1:032}", *HASHES, f"{2:032}", f"{3:032}"], bodies, strict=True)
    )
    assert [await read(server, file, key) for key in HASHES] == [b"x" * 100] * 2
    assert [await read(server, file, f"{number:032}") for number in (1, 2, 3)] == [b"1", b"2", b"3"]
    assert keys(server) == {f"{1:032}", f"{3:032}"}
    assert [entry["event"] for entry in records.entries] == [AWAY, "Redis is back: bodies go there again"]


async def test_redis_refuses(opened: Opened, server: RedisServer, file: str, records: LogCapture) -> None:
    """A body for which Redis has no memory is in its row."""
    async with opened() as processor:
        server.command("CONFIG", "SET", "maxmemory", "1")
        assert await processor.save_mail(one(1), following) is OK
    assert rows(file) == [(f"{1:032}", "", b"1")]
    assert [entry["cause"] for entry in records.entries] == ["command not allowed when used memory > 'maxmemory'."]


async def test_redis_frozen(opened: Opened, server: RedisServer, file: str, records: LogCapture) -> None:
    """A Redis that takes longer than the limit is not waited for: the body is in the row, and never in Redis."""
    async with opened(redis_sql_batch_timeout=1) as processor:
        await processor.save_mail(one(1), following)
        server.freeze()
        replies = await asyncio.gather(*(processor.save_mail(one(number), following) for number in range(2, 50)))
        assert replies == [OK] * 48
        server.thaw()
    assert sorted(rows(file)) == [
        (f"{1:032}", "redis", b""),
        *((f"{number:032}", "", b"%d" % number) for number in range(2, 50)),
    ]
    assert keys(server) == {f"{1:032}"}
    assert [(entry["event"], entry["cause"]) for entry in records.entries] == [(AWAY, "TimeoutError")]


async def test_one_at_a_time_asks(opened: Opened, server: RedisServer, file: str) -> None:
    """While Redis is away one message finds out whether it is back, and the others pass it by."""
    async with opened(redis_sql_batch_timeout=3600) as processor:
        await asyncio.to_thread(server.kill)
        await processor.save_mail(one(1), following)
        await asyncio.to_thread(server.start)
        server.freeze()
        asking = asyncio.create_task(processor.save_mail(one(2), following))
        await asyncio.sleep(0)
        assert await asyncio.gather(*(processor.save_mail(one(n), following) for n in range(3, 30))) == [OK] * 27
        assert not asking.done()
        server.thaw()
        assert await asking is OK
    assert [row[0] for row in rows(file) if row[1] == "redis"] == [f"{2:032}"]
    assert len(rows(file)) == 29


async def test_cancelled_while_redis_is_frozen(opened: Opened, server: RedisServer, file: str) -> None:
    """A message whose time is over while Redis hangs is nowhere."""
    async with opened(redis_sql_batch_timeout=3600) as processor:
        await processor.save_mail(one(1), following)
        server.freeze()
        saving = asyncio.create_task(processor.save_mail(one(2), following))
        for _ in range(200):
            await asyncio.sleep(0)
        saving.cancel()
        await asyncio.wait((saving,))
        assert saving.cancelled()
        server.thaw()
    assert rows(file) == [(f"{1:032}", "redis", b"")]
    assert keys(server) == {f"{1:032}"}


async def test_cancelled_in_company(opened: Opened, server: RedisServer, file: str) -> None:
    """A message whose time is over while its batch is on the way to Redis goes again; the others of the batch stay."""
    async with opened(redis_sql_batch_timeout=3600) as processor:
        await processor.save_mail(one(1), following)
        server.freeze()
        tasks = [asyncio.create_task(processor.save_mail(one(number), following)) for number in (2, 3)]
        for _ in range(200):
            await asyncio.sleep(0)
        tasks[1].cancel()
        await asyncio.wait((tasks[1],))
        server.thaw()
        assert await tasks[0] is OK
        assert tasks[1].cancelled()
    assert [row[0] for row in rows(file)] == [f"{number:032}" for number in (1, 2)]
    assert keys(server) == {f"{number:032}" for number in (1, 2)}


async def test_read_back(opened: Opened, server: RedisServer) -> None:
    """It shows what it has kept by itself, wherever the octets are, also before it is started."""
    async with opened() as processor:
        await processor.save_mail(one(1), following)
        await asyncio.to_thread(server.kill)
        await processor.save_mail(one(2), following)
        await asyncio.to_thread(server.start)
    for bodies in (None, RedisBodies("127.0.0.1:1")):
        store = GuerrillaDbRedis(processor.config).mail_store(bodies)
        assert [await store.get(f"{number:032}") for number in (1, 2)] == [b"1", b"2"]
        await store.close()


async def test_database_down(opened: Opened, server: RedisServer, mariadb: MariaDB, records: LogCapture) -> None:
    """While the database is away the answer is 451, and no key is left; afterwards mail is kept."""
    async with opened(**on_mariadb(mariadb)) as processor:
        await processor.save_mail(one(1), following)
        await asyncio.to_thread(mariadb.kill)
        assert await processor.save_mail(one(2), following) is STORAGE_NOT_AVAILABLE
        await asyncio.to_thread(mariadb.start)
        assert await processor.save_mail(one(3), following) is OK
    assert keys(server) == {f"{1:032}", f"{3:032}"}
    assert [entry["event"] for entry in records.entries] == ["the message was not stored"]


async def test_database_refuses(opened: Opened, server: RedisServer, mariadb: MariaDB, records: LogCapture) -> None:
    """A message that the database refuses leaves no key; those beside it are kept."""
    place = on_mariadb(mariadb)
    async with opened(**place) as processor:
        name = str(processor.config.settings().dsn).rpartition(" ")[2]
        mariadb.sql("ALTER TABLE new_mail ADD CHECK (subject <> 'bad')", name)
        envelopes = [one(1), replace(one(2), subject="bad"), one(3)]
        replies = await asyncio.gather(*(processor.save_mail(each, following) for each in envelopes))
    assert replies == [OK, LOCAL_ERROR, OK]
    assert keys(server) == {f"{1:032}", f"{3:032}"}
    assert [entry["event"] for entry in records.entries] == ["the database refuses the message"]


async def test_after_redis(opened: Opened, server: RedisServer, file: str) -> None:
    """A Redis listed before it takes nothing away: the body is stored whole, or in the row if Redis is gone since."""
    async with opened() as processor:
        before = Redis(RedisConfig(redis_interface=server.address, redis_expire_seconds=7200))
        first, second = one(1), one(2)
        assert await before.save_mail(first, lambda: processor.save_mail(first, following)) is OK

        async def without_redis() -> Reply:
            await asyncio.to_thread(server.kill)
            return await processor.save_mail(second, following)

        assert await before.save_mail(second, without_redis) is OK
        await asyncio.to_thread(server.start)
        await before.shutdown()
    assert [await read(server, file, f"{number:032}") for number in (1, 2)] == [b"1", b"2"]


async def test_body_that_cannot_be_made(opened: Opened, server: RedisServer, file: str) -> None:
    """What goes wrong with the octets of one message is raised, and those beside it are kept."""

    class Broken:
        async def data(self) -> bytes:
            raise ValueError("a bug")

    async with opened() as processor:
        envelopes = [one(1), replace(one(2), values={"zlib-compressor": Broken()}), one(3)]
        outcomes = await asyncio.gather(
            *(processor.save_mail(each, following) for each in envelopes), return_exceptions=True
        )
    assert [outcomes[0], type(outcomes[1]), outcomes[2]] == [OK, BatchRefusedError, OK]
    assert keys(server) == {f"{1:032}", f"{3:032}"}
    assert len(rows(file)) == 2


async def test_redis_away_at_the_start(opened: Opened, server: RedisServer, records: LogCapture) -> None:
    """Redis need not be up when we start: a warning says where bodies go."""
    await asyncio.to_thread(server.kill)
    async with opened() as processor:
        assert await processor.save_mail(one(1), following) is OK
    assert [(entry["event"], entry["place"]) for entry in records.entries] == [(AWAY, server.address)]


async def test_redis_refuses_us_at_the_start(opened: Opened, server: RedisServer) -> None:
    """A wrong password keeps us from starting, and is not shown."""
    with pytest.raises(RuntimeError, match=r"redis_interface: .* invalid username-password pair") as caught:
        async with opened(redis_interface=f"redis://guerrilla:wrong@{server.address}"):
            pass
    assert "wrong" not in str(caught.value)


async def test_weak_redis(opened: Opened, server: RedisServer, records: LogCapture) -> None:
    """Redis settings that may lose bodies are warned of at the start."""
    server.command("CONFIG", "SET", "appendfsync", "no")
    async with opened():
        pass
    assert [entry["event"] for entry in records.entries] == ["this Redis may lose mail that was answered 250"]


async def test_keys_that_are_left(
    opened: Opened, server: RedisServer, records: LogCapture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When we end before Redis is back, the operator reads how many bodies are left to expire."""
    monkeypatch.setattr("guerrilla.stores.redis._CLOSE_SECONDS", 0.01)

    async def killing() -> Reply:
        await asyncio.to_thread(server.kill)
        return LOCAL_ERROR

    async with opened() as processor:
        await processor.save_mail(mail(), killing)
    assert [(entry["event"], entry["keys"]) for entry in records.entries] == [
        ("bodies of mail that was not accepted stay in Redis until they expire", 1)
    ]


@pytest.mark.parametrize(
    ("key", "value", "meant"),
    [
        ("mail_table", "a b", "a table name is meant"),
        ("sql_driver", "oracle", "meant"),
        ("sql_dsn", 12345, "a text in double quotes is meant"),
        ("redis_interface", "12345", "host:port is meant"),
        ("redis_expire_seconds", 0, "greater than or equal to 1"),
        ("redis_sql_batch_timeout", 3_000_000_000, "less than or equal to 3600"),
    ],
)
def test_bad_configuration(key: str, value: object, meant: str) -> None:
    """A value that cannot be meant is refused, with what is, and not shown: there may be a password in it."""
    with pytest.raises(ValidationError, match=meant) as caught:
        GuerrillaDbRedisConfig.model_validate(KEYS | {key: value})
    assert key in {problem["loc"][0] for problem in caught.value.errors()}
    assert "12345" not in str(caught.value)
    assert problems_of(caught.value, GuerrillaDbRedisConfig)


def test_the_keys_of_the_pool_are_those_of_sql() -> None:
    pool = {"sql_max_open_conns": 9, "sql_max_idle_conns": 3, "sql_max_conn_lifetime": "1h"}
    settings = GuerrillaDbRedisConfig.model_validate(KEYS | pool).settings()
    assert (settings.max_open, settings.max_idle, settings.lifetime) == (9, 3, 3600.0)
