"""Every store keeps the contract, over its real server: `guerrilla.testing.processor_contract`, check by check."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
from base64 import b64decode
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from redis.asyncio import Redis as Client
from sqlalchemy import LargeBinary, NullPool, String, column, select, table
from sqlalchemy.ext.asyncio import create_async_engine
from tests.private_servers import DatabaseServer, MariaDB, PhpFpm, PostgreSQL, RedisServer

from guerrilla.backends.processor import Processor
from guerrilla.envelope import Address, Envelope
from guerrilla.processors.fastcgi import FastCGI, FastCGIConfig
from guerrilla.processors.guerrilla_db_redis import GuerrillaDbRedis, GuerrillaDbRedisConfig
from guerrilla.processors.maildir import MailDir, MailDirConfig
from guerrilla.processors.mysql import MySql, MySqlConfig
from guerrilla.processors.redis import Redis, RedisConfig
from guerrilla.processors.sql import Sql, SqlConfig
from guerrilla.testing import Subject
from guerrilla.testing.contract import CHECKS, Check

Stored: TypeAlias = Callable[[Envelope], Awaitable[Sequence[bytes]]]

SCRIPTS = Path(__file__).parent / "php"


def in_table(url: str) -> Stored:
    """Reads the rows over a connection of its own."""
    rows = table("new_mail", column("hash", String), column("mail", LargeBinary))

    async def stored(envelope: Envelope) -> Sequence[bytes]:
        engine = create_async_engine(url, poolclass=NullPool)
        try:
            async with engine.connect() as connection:
                found = await connection.execute(select(rows.c.mail).where(rows.c.hash.in_(envelope.hashes)))
                return [bytes(mail) for (mail,) in found]
        finally:
            await engine.dispose()

    return stored


@pytest.fixture
def sqlite(tmp_path: Path) -> Subject:
    path = tmp_path / "mail.db"

    def read(envelope: Envelope) -> Sequence[bytes]:
        with closing(sqlite3.connect(path)) as connection:
            marks = ", ".join("?" * len(envelope.hashes))
            rows = connection.execute(f"SELECT mail FROM new_mail WHERE hash IN ({marks})", envelope.hashes)
            return [mail for (mail,) in rows]

    async def stored(envelope: Envelope) -> Sequence[bytes]:
        return await asyncio.to_thread(read, envelope)

    return Subject(make=lambda: Sql(SqlConfig(sql_dsn=str(path))), stored=stored)


def in_database(server: DatabaseServer, make: Callable[[str], Processor[Any]]) -> Subject:
    database = server.create_database()
    return Subject(make=lambda: make(database), stored=in_table(server.url(database)), server=server)


@pytest.fixture
def sql_on_mariadb(mariadb: MariaDB) -> Subject:
    def make(database: str) -> Sql:
        return Sql(SqlConfig(sql_driver="mysql", sql_dsn=mariadb.go_dsn(database), sql_create_table=True))

    return in_database(mariadb, make)


@pytest.fixture
def sql_on_postgres(postgres: PostgreSQL) -> Subject:
    def make(database: str) -> Sql:
        return Sql(SqlConfig(sql_driver="postgres", sql_dsn=postgres.go_dsn(database), sql_create_table=True))

    return in_database(postgres, make)


@pytest.fixture
def mysql(mariadb: MariaDB) -> Subject:
    def make(database: str) -> MySql:
        config = MySqlConfig(
            mysql_host=mariadb.address,
            mysql_user=mariadb.user,
            mysql_pass=mariadb.password,
            mysql_db=database,
            sql_create_table=True,
        )
        return MySql(config)

    return in_database(mariadb, make)


@pytest.fixture
def bodies_in_redis(redis: RedisServer) -> Subject:
    redis.flush()

    async def stored(envelope: Envelope) -> Sequence[bytes]:
        async with Client.from_url(redis.url()) as client:
            return [octets for octets in await client.mget(envelope.hashes) if isinstance(octets, bytes)]

    def make() -> Redis:
        return Redis(RedisConfig(redis_interface=redis.address, redis_expire_seconds=7200))

    return Subject(make=make, stored=stored, copy_per_recipient=False, server=redis)


@pytest.fixture
def rows_and_redis(mariadb: MariaDB, redis: RedisServer, bodies_in_redis: Subject) -> Subject:
    """Every row is a copy: its octets are where it says; so is a body in Redis to which no row belongs."""
    database = mariadb.create_database()
    in_rows = in_table(mariadb.url(database))

    async def stored(envelope: Envelope) -> Sequence[bytes]:
        rows, bodies = await in_rows(envelope), await bodies_in_redis.stored(envelope)
        return [mail or b"".join(bodies) for mail in rows] or bodies

    def make() -> GuerrillaDbRedis:
        config = GuerrillaDbRedisConfig(
            sql_driver="mysql",
            sql_dsn=mariadb.go_dsn(database),
            sql_create_table=True,
            redis_interface=redis.address,
            redis_expire_seconds=7200,
        )
        return GuerrillaDbRedis(config)

    return Subject(make=make, stored=stored, server=mariadb)


@pytest.fixture
def maildir(tmp_path: Path) -> Subject:
    for user in ("joe", "ann"):
        (tmp_path / user / "Maildir").mkdir(parents=True)

    def read(envelope: Envelope) -> list[bytes]:
        return [path.read_bytes() for path in tmp_path.glob(f"*/Maildir/*/*Q{envelope.queued_id}*")]

    async def stored(envelope: Envelope) -> Sequence[bytes]:
        return await asyncio.to_thread(read, envelope)

    def refusable() -> Envelope:
        envelope = subject.envelope()
        envelope.rcpt_to[-1] = Address("nobody", "example.com")
        return envelope

    def make() -> MailDir:
        return MailDir(MailDirConfig(maildir_path=f"{tmp_path}/[user]/Maildir"))

    known = [Address(user, "example.com") for user in ("joe", "ann")]
    subject = Subject(make=make, stored=stored, recipients=known, refusable=refusable)
    return subject


@pytest.fixture
def fastcgi(php_fpm: PhpFpm) -> Iterator[Subject]:
    scripts = php_fpm.documents / "contract"
    shutil.copytree(SCRIPTS, scripts)
    (scripts / "kept").mkdir()
    (scripts / "kept").chmod(0o777)

    def read(envelope: Envelope) -> list[bytes]:
        kept = (path.read_bytes() for path in (scripts / "kept").iterdir() if not path.suffix)
        bodies = (b64decode(json.loads(fields)["body"]) for fields in kept)
        return [body for body in bodies if body.startswith(envelope.delivery_header)]

    async def stored(envelope: Envelope) -> Sequence[bytes]:
        return await asyncio.to_thread(read, envelope)

    def refusable() -> Envelope:
        envelope = subject.envelope()
        envelope.subject = "no, thank you"
        return envelope

    def make() -> FastCGI:
        config = FastCGIConfig(
            fcgi_script_filename_save=str(scripts / "save.php"),
            fcgi_script_filename_validate=str(scripts / "validate.php"),
            fcgi_connection_type="unix",
            fcgi_connection_address=str(php_fpm.socket_path),
        )
        return FastCGI(config)

    subject = Subject(
        make=make, stored=stored, copy_per_recipient=False, takes_back=False, refusable=refusable, server=php_fpm
    )
    yield subject
    shutil.rmtree(scripts)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize(
    "store",
    [
        "sqlite",
        "sql_on_mariadb",
        "sql_on_postgres",
        "mysql",
        "bodies_in_redis",
        "rows_and_redis",
        "maildir",
        "fastcgi",
    ],
)
async def test_store_keeps_the_contract(store: str, check: Check, request: pytest.FixtureRequest) -> None:
    """What the check is about holds for the store."""
    await check(request.getfixturevalue(store))
