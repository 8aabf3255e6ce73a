"""An outage of any store costs no message: 2,000 come from 20 connections while its server is killed and frozen.

The daemon runs as it does in production, but for the time that it gives a store. What it has answered 250 must be there
once per recipient, octet for octet; what it has answered 4yz the clients send again, so that at the end everything is
there, and whatever was kept of an attempt that was answered 4yz would be there once more.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import sqlite3
import subprocess
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import pytest
from redis import Redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
from tests.e2e.messages import id_of, recipients_of, some
from tests.e2e.outbox import PATIENCE_SECONDS, Outbox
from tests.private_servers import DatabaseServer, MariaDB, PhpFpm, PostgreSQL, PrivateServer, RedisServer

if TYPE_CHECKING:
    from tests.e2e.conftest import Launch, RunningDaemon

MESSAGES: Final = 2000
CONNECTIONS: Final = 20

Outage: TypeAlias = Callable[[Outbox], Awaitable[None]]
"""One outage, from its beginning until it is over."""
Kept: TypeAlias = Iterable[tuple[str, bytes]]
"""What a store holds: each copy with the recipient it is for, delivery header first."""


# What goes wrong.


def outage(begin: Callable[[], object], end: Callable[[], object]) -> Outage:
    """Go wrong until as many attempts are refused as there are clients: all have come to know of it."""

    async def happen(outbox: Outbox) -> None:
        await asyncio.to_thread(begin)
        before = outbox.refused
        await outbox.until(lambda: outbox.refused >= before + CONNECTIONS, "the clients are refused")
        await asyncio.to_thread(end)

    return happen


def hang(begin: Callable[[], object], end: Callable[[], object]) -> Outage:
    """Hang until the time was over for as many attempts as there are clients: for longer than gw_save_timeout."""

    async def happen(outbox: Outbox) -> None:
        before = outbox.timed_out
        await asyncio.to_thread(begin)
        await outbox.until(lambda: outbox.timed_out >= before + CONNECTIONS, "the clients wait in vain")
        await asyncio.to_thread(end)

    return happen


def unnoticed(begin: Callable[[], object], end: Callable[[], object], seconds: float = 0.0) -> Outage:
    """Go wrong, for so long at least, and see mail go on being accepted, to the last message if need be."""

    async def happen(outbox: Outbox) -> None:
        await asyncio.to_thread(begin)
        goal = min(len(outbox.accepted) + 5 * CONNECTIONS, MESSAGES)
        await asyncio.gather(outbox.accepts(goal), asyncio.sleep(seconds))
        await asyncio.to_thread(end)

    return happen


def killed(server: PrivateServer) -> Outage:
    """Kill a server, and start it again."""
    return outage(server.kill, server.start)


def frozen(server: PrivateServer) -> Outage:
    """Halt a server, and let it go on."""
    return hang(server.freeze, server.thaw)


# What is there afterwards.


async def rows_of(url: str) -> list[tuple[str, str, str, bytes]]:
    """Return recipient, hash, body and mail of each row."""
    engine = create_async_engine(url)
    try:
        async with engine.connect() as connection:
            found = await connection.execute(text("SELECT recipient, hash, body, mail FROM new_mail"))
            return [(row.recipient, row.hash, row.body, bytes(row.mail)) for row in found]
    finally:
        await engine.dispose()


async def rows_in(server: DatabaseServer, database: str) -> Kept:
    """Return what is in a table that has the octets as well."""
    return [(recipient, mail) for recipient, _, _, mail in await rows_of(server.url(database))]


async def rows_and_bodies_in(server: DatabaseServer, database: str, bodies: dict[str, bytes]) -> Kept:
    """Return what is in a table and in Redis, where nothing may be but what the rows say."""
    rows = await rows_of(server.url(database))
    orphans = bodies.keys() - {key for _, key, body, _ in rows if body == "redis"}
    assert not orphans, f"no row has {some(sorted(orphans))}"
    return [(recipient, bodies[key] if body == "redis" else mail) for recipient, key, body, mail in rows]


def bodies_in(server: RedisServer) -> dict[str, bytes]:
    """Return all keys of Redis, each with what is under it."""
    with closing(Redis(unix_socket_path=str(server.socket_path))) as redis:
        return {key.decode(): redis.get(key) for key in redis.scan_iter(count=1000)}  # type: ignore[misc]


def hold_to_its_answers(outbox: Outbox, kept: Kept, *, per_recipient: bool = True) -> None:
    """Check that every message is there, once for each recipient or once for all, and nothing else."""
    assert outbox.accepted == {*outbox.ids}
    found = Counter((id_of(mail), recipient) for recipient, mail in kept)
    wanted = Counter(
        (message_id, recipient)
        for message_id in outbox.ids
        for recipient in (recipients_of(message_id) if per_recipient else [""])
    )
    lost, surplus = wanted - found, found - wanted
    assert not lost, f"LOST: {lost.total()} copies of {MESSAGES} messages that were answered 250: {some(lost)}"
    assert not surplus, f"kept, though their sender was told that they are not: {some(surplus)}"


# What happens in between.


async def load(daemon: RunningDaemon, outages: Sequence[Outage]) -> Outbox:
    """Send everything, have the outages come one after the other meanwhile, and stop the daemon."""
    [port] = daemon.ports
    outbox = Outbox(port, MESSAGES, CONNECTIONS)

    async def go_wrong() -> None:
        for number, happen in enumerate(outages, 1):
            await outbox.accepts(MESSAGES * number // (len(outages) + 1))
            await happen(outbox)

    async with asyncio.timeout(PATIENCE_SECONDS), asyncio.TaskGroup() as group:
        group.create_task(go_wrong())
        group.create_task(outbox.empty())
    daemon.process.terminate()
    assert await asyncio.to_thread(daemon.process.wait, PATIENCE_SECONDS) == 0, daemon.errors
    return outbox


def config(save_process: str, **keys: Any) -> dict[str, Any]:
    return {
        "servers": [{"listen_interface": "127.0.0.1:0"}],
        "allowed_hosts": ["example.com"],
        "pid_file": "guerrillad.pid",
        "log_level": "warning",
        "backend_config": {
            "save_process": f"HeadersParser|Hasher|Header|{save_process}",
            "gw_save_timeout": "1s",
            **keys,
        },
    }


def sql_keys(driver: str, dsn: str) -> dict[str, Any]:
    return {"sql_driver": driver, "sql_dsn": dsn, "sql_create_table": True}


def redis_keys(redis: RedisServer) -> dict[str, Any]:
    return {"redis_interface": redis.address, "redis_expire_seconds": 7200}


async def test_sql_on_mariadb(launch: Launch, tmp_path: Path, mariadb: MariaDB) -> None:
    database = mariadb.create_database()
    daemon = launch(tmp_path, config("Sql", **sql_keys("mysql", mariadb.go_dsn(database))))
    outbox = await load(daemon, [killed(mariadb), frozen(mariadb)] * 3)
    hold_to_its_answers(outbox, await rows_in(mariadb, database))


async def test_sql_on_postgresql(launch: Launch, tmp_path: Path, postgres: PostgreSQL) -> None:
    database = postgres.create_database()
    daemon = launch(tmp_path, config("Sql", **sql_keys("postgres", postgres.go_dsn(database))))
    outbox = await load(daemon, [killed(postgres), frozen(postgres)] * 3)
    hold_to_its_answers(outbox, await rows_in(postgres, database))


async def test_mysql(launch: Launch, tmp_path: Path, mariadb: MariaDB) -> None:
    database = mariadb.create_database()
    keys = {
        "mysql_host": mariadb.address,
        "mysql_user": mariadb.user,
        "mysql_pass": mariadb.password,
        "mysql_db": database,
        "sql_create_table": True,
    }
    daemon = launch(tmp_path, config("MySql", **keys))
    outbox = await load(daemon, [killed(mariadb), frozen(mariadb)] * 3)
    hold_to_its_answers(outbox, await rows_in(mariadb, database))


async def test_redis(launch: Launch, tmp_path: Path, redis: RedisServer) -> None:
    redis.flush()
    daemon = launch(tmp_path, config("Redis", **redis_keys(redis)))
    outbox = await load(daemon, [killed(redis), frozen(redis)] * 3)
    hold_to_its_answers(outbox, [("", mail) for mail in bodies_in(redis).values()], per_recipient=False)


async def test_redis_and_sql_in_turn(launch: Launch, tmp_path: Path, mariadb: MariaDB, redis: RedisServer) -> None:
    redis.flush()
    database = mariadb.create_database()
    keys = sql_keys("mysql", mariadb.go_dsn(database)) | redis_keys(redis)
    daemon = launch(tmp_path, config("Compressor|Redis|Sql", **keys))
    outbox = await load(daemon, [*[killed(redis), killed(mariadb)] * 3, frozen(redis), frozen(mariadb)])
    bodies = {key: zlib.decompress(body) for key, body in bodies_in(redis).items()}
    hold_to_its_answers(outbox, await rows_and_bodies_in(mariadb, database, bodies))


async def test_guerrilla_db_redis(launch: Launch, tmp_path: Path, mariadb: MariaDB, redis: RedisServer) -> None:
    """When Redis is away, mail is accepted all the same, and its octets are in the table."""
    redis.flush()
    database = mariadb.create_database()
    keys = sql_keys("mysql", mariadb.go_dsn(database)) | redis_keys(redis)
    keys |= {"redis_sql_batch_timeout": 1, "gw_save_timeout": "2s"}
    daemon = launch(tmp_path, config("GuerrillaDbRedis", **keys))
    outages = [killed(mariadb), unnoticed(redis.kill, redis.start)] * 3
    outages += [frozen(mariadb), unnoticed(redis.freeze, redis.thaw, seconds=2.5)]
    outbox = await load(daemon, outages)
    hold_to_its_answers(outbox, await rows_and_bodies_in(mariadb, database, bodies_in(redis)))


async def test_sqlite_whose_database_another_process_holds(launch: Launch, tmp_path: Path) -> None:
    daemon = launch(tmp_path, config("Sql"))
    path = tmp_path / "guerrilla.db"
    with closing(sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)) as other:
        held = hang(lambda: other.execute("BEGIN IMMEDIATE"), lambda: other.execute("ROLLBACK"))
        outbox = await load(daemon, [held] * 3)
        assert other.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        hold_to_its_answers(outbox, other.execute("SELECT recipient, mail FROM new_mail"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, which can be filled."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128m", "tmpfs", path], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a file system can be mounted by root only")
    yield path
    subprocess.run(["umount", "--lazy", path], check=True)  # the daemon of a test that has failed is still in it


async def test_maildir_whose_disk_is_full(launch: Launch, tmp_path: Path, small_disk: Path) -> None:
    users = {address.partition("@")[0] for number in range(100) for address in recipients_of(str(number))}
    for user in users:
        (small_disk / user).mkdir()
    filler = small_disk / "filler"

    def fill() -> None:
        """Take the room that there is: most of it at once, since mail is quick too."""
        with filler.open("ab", buffering=0) as file, suppress(OSError):
            os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(small_disk).free * 3 // 4)
            while True:
                file.write(bytes(1 << 20))

    daemon = launch(tmp_path, config("MailDir", maildir_path=f"{small_disk}/[user]"))
    outbox = await load(daemon, [outage(fill, filler.unlink)] * 3)
    files = [
        (user, path)
        for user in users
        for part in ("tmp", "new", "cur")
        for path in (small_disk / user / part).iterdir()
    ]
    hold_to_its_answers(outbox, [(f"{user}@example.com", path.read_bytes()) for user, path in files])


async def test_fastcgi(launch: Launch, tmp_path: Path, php_fpm: PhpFpm) -> None:
    folder = php_fpm.documents / tmp_path.name
    (folder / "kept").mkdir(parents=True)
    (folder / "kept").chmod(0o777)
    script = shutil.copy(Path(__file__).parent / "keep_once.php", folder)
    keys = {
        "fcgi_script_filename_save": str(script),
        "fcgi_script_filename_validate": str(script),
        "fcgi_connection_type": "unix",
        "fcgi_connection_address": str(php_fpm.socket_path),
        "fcgi_max_connections": PhpFpm.WORKERS,
    }
    daemon = launch(tmp_path, config("FastCGI", **keys))
    outbox = await load(daemon, [killed(php_fpm), frozen(php_fpm)] * 3)
    kept: list[tuple[str, bytes]] = []
    for path in (folder / "kept").iterdir():
        if not path.suffix:
            recipients, body = json.loads(path.read_bytes())
            kept += [(recipient, base64.b64decode(body)) for recipient in recipients]
    hold_to_its_answers(outbox, kept)
