"""The commands about stores: what was kept comes back octet for octet, and the printed table can be made."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.private_servers import MariaDB, PostgreSQL, RedisServer
from tests.private_servers.process import free_port
from typer.testing import CliRunner, Result

from guerrilla.backends.base import Task
from guerrilla.backends.processor import processor
from guerrilla.backends.registry import Registry
from guerrilla.cli import app
from guerrilla.config import AppConfig
from guerrilla.envelope import Address, Envelope
from guerrilla.reading import UnreadableError, is_key, open_mail_stores

MESSAGES = [
    pytest.param(b"Subject: x\r\n\r\nHi.\r\n", id="small"),
    pytest.param(b"Subject: x\r\n\r\n" + bytes(range(256)) * 2000, id="all octets, 500 kB"),
]
REDIS_LINE = "HeadersParser|Hasher|Header|{}Redis|{}"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder, and leave ``sys.path`` as it was."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


@dataclass(frozen=True)
class Kept:
    """What a line has kept: the names of the message, one for each recipient, and its octets."""

    keys: Sequence[str]
    octets: bytes


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def configure(save_process: str, **keys: Any) -> dict[str, Any]:
    """Write the default file, and return its ``backend_config``."""
    backend = {"save_process": save_process, "primary_mail_host": "mx.example.com", **keys}
    if "Sql" not in save_process:
        del backend["primary_mail_host"]
    configuration = {"servers": [{"listen_interface": "127.0.0.1:2525"}], "backend_config": backend}
    Path("goguerrilla.conf").write_text(json.dumps(configuration))
    return backend


def keep(backend: Mapping[str, Any], data: bytes) -> Kept:
    """Send one message to two recipients down the line, as a server would."""
    envelope = Envelope(
        remote_ip="192.0.2.1",
        mail_from=Address("s", "example.org"),
        rcpt_to=[Address("joe", "example.com"), Address("ann", "example.com")],
        queued_id="0123456789abcdef",
        received_at=datetime(2024, 2, 3, 4, 5, 6, tzinfo=UTC),
        data=data,
    )

    async def save() -> None:
        line = Registry().build(backend)
        for _, each in line.processors:
            await each.initialize()
        try:
            reply = await line.save(envelope, Task.SAVE_MAIL)
            assert reply.positive, reply
        finally:
            for _, each in line.processors:
                await each.shutdown()

    asyncio.run(save())
    return Kept(envelope.hashes or [envelope.queued_id], bytes(envelope))


def comes_back(key: str, kept: Kept) -> None:
    result = run("cat", key)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout_bytes == kept.octets


def told(result: Result, *words: str) -> None:
    """The command ended with exit code 1, nothing on standard output, and these words in one line."""
    assert (result.exit_code, result.stdout_bytes) == (1, b"")
    assert isinstance(result.exception, SystemExit)
    assert result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr


def sql(statement: str) -> list[Any]:
    with closing(sqlite3.connect("guerrilla.db")) as connection, connection:
        return connection.execute(statement).fetchall()


@pytest.mark.parametrize("data", MESSAGES)
@pytest.mark.parametrize("compressor", ["", "Compressor|"], ids=["plain", "compressed"])
def test_cat_gives_what_sql_has_kept_for_each_recipient(data: bytes, compressor: str) -> None:
    kept = keep(configure(f"HeadersParser|Hasher|Header|{compressor}Sql"), data)
    assert len(set(kept.keys)) == 2
    assert sql("SELECT DISTINCT body FROM new_mail") == [("gzip" if compressor else "",)]
    for key in kept.keys:
        comes_back(key, kept)


@pytest.mark.parametrize("data", MESSAGES)
def test_cat_gives_what_sql_has_kept_with_zstd(data: bytes) -> None:
    kept = keep(configure("HeadersParser|Hasher|Header|Compressor|Sql", compression="zstd"), data)
    assert sql("SELECT DISTINCT body, HEX(SUBSTR(mail, 1, 4)) FROM new_mail") == [("zstd", "28B52FFD")]
    for key in kept.keys:
        comes_back(key, kept)


def test_cat_without_a_configuration_reads_the_embedded_store() -> None:
    kept = keep(AppConfig.embedded().backend_config, b"Subject: x\r\n\r\nHi.\r\n")
    comes_back(kept.keys[0], kept)


@pytest.mark.parametrize("data", MESSAGES)
def test_cat_gives_what_a_maildir_has_kept_wherever_a_reader_moved_it(folder: Path, data: bytes) -> None:
    for user in ("joe", "ann"):
        (folder / user / "Maildir").mkdir(parents=True)
    backend = configure("HeadersParser|Hasher|Header|Compressor|MailDir", maildir_path=f"{folder}/[user]/Maildir")
    kept = keep(backend, data)
    files = list(folder.glob("*/Maildir/new/*"))
    assert len(files) == 2
    for file in files:
        comes_back(file.name, kept)
    files[0].rename(files[0].parent.parent / "cur" / f"{files[0].name}:2,S")
    comes_back(files[0].name, kept)


@pytest.mark.parametrize("data", MESSAGES)
@pytest.mark.parametrize("compressor", ["", "Compressor|"], ids=["plain", "compressed"])
def test_cat_follows_rows_to_the_redis_of_the_same_line(redis: RedisServer, data: bytes, compressor: str) -> None:
    redis.flush()
    line = REDIS_LINE.format(compressor, "Sql")
    kept = keep(configure(line, redis_interface=redis.url(), redis_expire_seconds=600), data)
    assert sql("SELECT DISTINCT body, LENGTH(mail) FROM new_mail") == [("redis", 0)]
    comes_back(kept.keys[0], kept)


@pytest.mark.parametrize("compressor", ["", "Compressor|"], ids=["plain", "compressed"])
def test_cat_reads_redis_where_nothing_else_keeps_mail(redis: RedisServer, compressor: str) -> None:
    redis.flush()
    line = REDIS_LINE.format(compressor, "Debugger")
    kept = keep(configure(line, redis_interface=redis.url(), redis_expire_seconds=600), b"Subject: x\r\n\r\nHi.\r\n")
    comes_back(kept.keys[0], kept)


def test_cat_reads_zstd_from_redis(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the library, it says in one line what to install."""
    redis.flush()
    line = REDIS_LINE.format("Compressor|", "Debugger")
    backend = configure(line, redis_interface=redis.url(), redis_expire_seconds=600, compression="zstd")
    kept = keep(backend, b"Subject: x\r\n\r\nHi.\r\n")
    comes_back(kept.keys[0], kept)
    monkeypatch.setitem(sys.modules, "zstandard", None)
    told(run("cat", kept.keys[0]), "Redis cannot be read", "pip install 'guerrilla[zstd]'")


def test_a_body_that_has_expired_is_not_found(redis: RedisServer) -> None:
    redis.flush()
    line = REDIS_LINE.format("", "Sql")
    kept = keep(configure(line, redis_interface=redis.url(), redis_expire_seconds=600), b"Subject: x\r\n\r\nHi.\r\n")
    redis.flush()
    told(run("cat", kept.keys[0]), f"there is no message {kept.keys[0]} in Sql, Redis")


def test_a_redis_that_is_away_is_told_in_one_line(redis: RedisServer) -> None:
    redis.flush()
    line = REDIS_LINE.format("", "Sql")
    kept = keep(configure(line, redis_interface=redis.url(), redis_expire_seconds=600), b"Subject: x\r\n\r\nHi.\r\n")
    configure(line, redis_interface=f"127.0.0.1:{free_port()}", redis_expire_seconds=600)
    told(run("cat", kept.keys[0]), "Sql cannot be read", "Redis cannot be read")


def test_a_database_that_is_away_is_told_in_one_line_and_without_its_password() -> None:
    dsn = f"joe:sesame@tcp(127.0.0.1:{free_port()})/mail"
    configure("HeadersParser|Hasher|Header|Sql", sql_driver="mysql", sql_dsn=dsn)
    result = run("cat", "0" * 32)
    told(result, "Sql cannot be read")
    assert "sesame" not in result.stderr


def test_reading_makes_no_database(folder: Path) -> None:
    told(run("cat", "0" * 32), "Sql cannot be read", "guerrilla.db")
    assert not list(folder.iterdir())


def test_a_store_that_is_away_does_not_hide_what_another_has(folder: Path) -> None:
    for user in ("joe", "ann"):
        (folder / user / "Maildir").mkdir(parents=True)
    backend = configure("Hasher|Header|Sql|MailDir", maildir_path=f"{folder}/[user]/Maildir")
    kept = keep(backend, b"Subject: x\r\n\r\nHi.\r\n")
    Path("guerrilla.db").unlink()
    comes_back(next(folder.glob("*/Maildir/new/*")).name, kept)


def test_a_message_that_is_not_there_is_told() -> None:
    keep(configure("HeadersParser|Hasher|Header|Sql"), b"Subject: x\r\n\r\nHi.\r\n")
    told(run("cat", "0" * 32), f"there is no message {'0' * 32} in Sql")


def test_a_line_that_keeps_nothing_is_told() -> None:
    configure("HeadersParser|Debugger")
    told(run("cat", "0" * 32), "nothing in this line can be read back: HeadersParser → Debugger")


@pytest.mark.parametrize("key", ["", "../x", "/etc/passwd", ".hidden", "a b", "x\n", "é", "x" * 256, "x:2,S", "a\0b"])
def test_what_is_no_name_of_a_message_is_wrong_use(key: str) -> None:
    assert not is_key(key)
    result = run("cat", key)
    assert (result.exit_code, result.stdout_bytes) == (2, b"")
    assert "no name of a message" in result.stderr


@pytest.mark.parametrize("key", ["'", "%27OR%271%27=%271", "x'OR'1'='1", "*", "%"])
def test_the_name_is_never_read_as_sql(key: str) -> None:
    keep(configure("HeadersParser|Hasher|Header|Sql"), b"Subject: x\r\n\r\nHi.\r\n")
    told(run("cat", key), "there is no message")


def test_a_bad_configuration_is_told() -> None:
    configure("Hadersparser")
    result = run("cat", "0" * 32)
    assert (result.exit_code, result.stdout_bytes) == (1, b"")
    assert "did you mean HeadersParser?" in result.stderr


async def test_what_validates_only_is_not_asked_for_mail(folder: Path) -> None:
    backend = {
        "save_process": "Debugger",
        "validate_process": "MailDir",
        "maildir_path": f"{folder}/[user]/Maildir",
    }
    with pytest.raises(UnreadableError, match=r"\Anothing in this line can be read back: Debugger\Z"):
        async with open_mail_stores(AppConfig(allowed_hosts=["."], backend_config=backend), Registry()):
            pass


async def test_a_processor_that_was_added_is_passed_over() -> None:
    registry = Registry()
    registry.add("Mine", processor(lambda envelope: None))
    config = AppConfig(allowed_hosts=["."], backend_config={"save_process": "Mine|Sql"})
    async with open_mail_stores(config, registry) as stores:
        assert stores.names == ["Sql"]


def test_schema_sql_makes_the_table_in_sqlite_that_sql_takes() -> None:
    printed = run("schema-sql", "--driver", "sqlite")
    assert printed.exit_code == 0
    with closing(sqlite3.connect("guerrilla.db")) as connection:
        connection.executescript(printed.stdout)
    kept = keep(configure("HeadersParser|Hasher|Header|Sql", sql_create_table=False), b"Subject: x\r\n\r\nHi.\r\n")
    comes_back(kept.keys[0], kept)


def test_schema_sql_makes_the_table_in_mariadb_that_sql_takes(mariadb: MariaDB) -> None:
    database = mariadb.create_database()
    mariadb.sql(run("schema-sql", "--driver", "mysql", "--table", "mine").stdout, database)
    keys = {"sql_driver": "mysql", "sql_dsn": mariadb.go_dsn(database), "mail_table": "mine"}
    kept = keep(configure("HeadersParser|Hasher|Header|Sql", **keys), b"Subject: x\r\n\r\nHi.\r\n")
    comes_back(kept.keys[1], kept)


def test_schema_sql_makes_the_table_in_postgresql_that_sql_takes(postgres: PostgreSQL) -> None:
    database = postgres.create_database()
    postgres.sql(run("schema-sql", "--driver", "postgres").stdout, database)
    keys = {"sql_driver": "postgres", "sql_dsn": postgres.go_dsn(database)}
    kept = keep(configure("HeadersParser|Hasher|Header|Sql", **keys), b"Subject: x\r\n\r\nHi.\r\n")
    comes_back(kept.keys[1], kept)


@pytest.mark.parametrize("arguments", [(), ("--driver", "oracle"), ("--driver", "mysql", "--table", "a; DROP TABLE b")])
def test_schema_sql_prints_nothing_for_what_it_does_not_know(arguments: tuple[str, ...]) -> None:
    result = run("schema-sql", *arguments)
    assert (result.exit_code, result.stdout_bytes) == (2, b"")
    assert result.stderr
