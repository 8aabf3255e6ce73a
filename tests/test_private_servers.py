"""The private servers: they answer, halt, come back, keep what they confirmed, and leave nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool
from tests.private_servers import DatabaseServer, MariaDB, Over, PhpFpm, PostgreSQL, PrivateServer, RedisServer

SERVERS = ["mariadb", "postgres", "redis", "php_fpm"]
TOO_SHORT = 0.3
"""Seconds after which a request to a frozen server is given up."""


class Store(NamedTuple):
    """A server that keeps text, and how its asynchronous driver writes and reads it over a connection of its own."""

    server: PrivateServer
    write: Callable[[str], Awaitable[None]]
    read: Callable[[], Awaitable[list[str]]]


def sql_store(server: DatabaseServer, over: Over) -> Store:
    url = server.url(server.create_database(), over=over)

    async def run(statement: str, **values: str) -> list[str]:
        engine = create_async_engine(url, poolclass=NullPool)
        async with engine.begin() as connection:
            result = await connection.execute(text(statement), values)
            return list(result.scalars()) if result.returns_rows else []

    async def write(value: str) -> None:
        await run("CREATE TABLE IF NOT EXISTS kept (value VARCHAR(100))")
        await run("INSERT INTO kept VALUES (:value)", value=value)

    return Store(server, write, lambda: run("SELECT value FROM kept"))


def redis_store(server: RedisServer, over: Over) -> Store:
    server.flush()
    url = server.url(1, over=over, password=True)

    async def write(value: str) -> None:
        async with Redis.from_url(url) as client:
            await client.set("kept", value)

    async def read() -> list[str]:
        async with Redis.from_url(url, retry_on_timeout=False) as client:
            found = await client.get("kept")
            assert isinstance(found, bytes)
            return [found.decode()]

    return Store(server, write, read)


@pytest.fixture(params=["tcp", "socket"])
def over(request: pytest.FixtureRequest) -> Over:
    way: Over = request.param
    return way


@pytest.fixture(params=["mariadb", "postgres", "redis"])
def make_store(request: pytest.FixtureRequest) -> Callable[[Over], Store]:
    server: Any = request.getfixturevalue(request.param)
    return partial(redis_store if isinstance(server, RedisServer) else sql_store, server)


@pytest.fixture
def store(make_store: Callable[[Over], Store]) -> Store:
    return make_store("tcp")


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> PrivateServer:
    found: PrivateServer = request.getfixturevalue(request.param)
    return found


async def test_what_a_driver_writes_it_reads(make_store: Callable[[Over], Store], over: Over) -> None:
    store = make_store(over)
    await store.write("kept")
    assert await store.read() == ["kept"]


async def test_a_frozen_server_does_not_answer_until_it_is_thawed(store: Store) -> None:
    await store.write("kept")
    store.server.freeze()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(TOO_SHORT):
            await store.read()
    store.server.thaw()
    assert await store.read() == ["kept"]


async def test_a_killed_server_still_has_what_it_confirmed(store: Store) -> None:
    await store.write("kept")
    store.server.kill()
    store.server.start()
    assert await store.read() == ["kept"]


async def test_a_stopped_server_still_has_what_it_confirmed(store: Store) -> None:
    await store.write("kept")
    store.server.restart()
    assert await store.read() == ["kept"]


def test_a_server_runs_where_the_test_before_killed_it(server: PrivateServer) -> None:
    assert server.answers()
    server.kill()


def test_a_server_runs_where_the_test_before_froze_it(server: PrivateServer) -> None:
    assert server.answers()
    server.freeze()


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_a_server_that_has_ended_refuses_connections(server: PrivateServer, end: str) -> None:
    getattr(server, end)()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((server.host, server.port))
    with socket.socket(socket.AF_UNIX) as sock, pytest.raises((ConnectionRefusedError, FileNotFoundError)):
        sock.connect(str(server.socket_path))


def test_a_frozen_server_can_be_killed_and_started(server: PrivateServer) -> None:
    server.freeze()
    server.kill()
    server.start()
    assert server.answers()


def test_a_frozen_server_accepts_connections(server: PrivateServer) -> None:
    server.freeze()
    with socket.create_connection((server.host, server.port)) as sock:
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv(1)


def test_to_start_kill_stop_and_thaw_twice_changes_nothing(server: PrivateServer) -> None:
    server.thaw()
    server.start()
    for end in (server.kill, server.stop):
        end()
        end()
        server.thaw()
        server.freeze()
    server.start()
    assert server.answers()


def test_to_start_a_server_that_runs_keeps_its_connections(redis: RedisServer) -> None:
    with socket.create_connection((redis.host, redis.port)) as sock:
        redis.start()
        sock.sendall(b"PING\r\n")
        assert sock.recv(100) == b"+PONG\r\n"


@pytest.mark.parametrize(
    ("name", "says"), [("mariadb", "Shutdown complete"), ("postgres", "database system is shut down")]
)
async def test_a_database_ends_in_good_order_though_a_client_is_connected(
    name: str, says: str, request: pytest.FixtureRequest
) -> None:
    database: DatabaseServer = request.getfixturevalue(name)
    engine = create_async_engine(database.url())
    async with engine.connect() as connection:
        await connection.execute(text("SELECT 1"))
        before = len(database.log)
        database.stop()
        await connection.invalidate()
    await engine.dispose()
    assert says in database.log[before:]


@pytest.mark.parametrize("name", ["mariadb", "postgres"])
def test_each_new_database_is_another_and_empty(name: str, request: pytest.FixtureRequest) -> None:
    database: DatabaseServer = request.getfixturevalue(name)
    first, second = database.create_database(), database.create_database()
    database.sql("CREATE TABLE kept (value INT)", first)
    database.sql("INSERT INTO kept VALUES (1), (2)", first)
    assert database.sql("SELECT value, value + 1 FROM kept ORDER BY value", first) == "1\t2\n2\t3\n"
    with pytest.raises(subprocess.CalledProcessError) as refused:
        database.sql("SELECT value FROM kept", second)
    assert "kept" in refused.value.stderr


@pytest.mark.parametrize("name", ["mariadb", "postgres"])
def test_a_database_refuses_another_password(
    name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    database: DatabaseServer = request.getfixturevalue(name)
    monkeypatch.setattr(database, "password", "another")
    with pytest.raises(subprocess.CalledProcessError):
        database.sql("SELECT 1")


def test_the_databases_confirm_only_what_is_on_the_disk(mariadb: MariaDB, postgres: PostgreSQL) -> None:
    assert mariadb.sql("SELECT @@innodb_flush_log_at_trx_commit, @@innodb_doublewrite") == "1\t1\n"
    assert [postgres.sql(f"SHOW {name}") for name in ("fsync", "synchronous_commit", "full_page_writes")] == [
        "on\n"
    ] * 3


def test_redis_confirms_only_what_is_on_the_disk(redis: RedisServer) -> None:
    assert redis.command("CONFIG", "GET", "appendfsync") == "appendfsync\nalways\n"
    assert redis.command("CONFIG", "GET", "appendonly") == "appendonly\nyes\n"


def test_go_dsns_have_the_form_of_their_drivers(mariadb: MariaDB, postgres: PostgreSQL) -> None:
    assert mariadb.go_dsn("mail") == f"guerrilla:p@ss:w/rd%1@tcp(127.0.0.1:{mariadb.port})/mail"
    assert mariadb.go_dsn(over="socket") == f"guerrilla:p@ss:w/rd%1@unix({mariadb.socket_path})/guerrilla"
    login = "postgres://guerrilla:p%40ss%3Aw%2Frd%251@"
    assert postgres.go_dsn("mail") == f"{login}127.0.0.1:{postgres.port}/mail?sslmode=disable"
    assert postgres.go_dsn(over="socket") == (
        f"{login}/postgres?host={postgres.folder}&port={postgres.port}&sslmode=disable"
    )


def test_php_runs_a_script_as_it_is_at_that_moment(php_fpm: PhpFpm, over: Over) -> None:
    script = php_fpm.documents / "script.php"
    for said in ("SAVED", "PASSED"):
        script.write_text(f"<?php echo '{said}', $_SERVER['REQUEST_METHOD'];")
        assert php_fpm.request(script, over=over).endswith(f"\r\n\r\n{said}GET".encode())


def test_a_frozen_php_does_not_answer_until_it_is_thawed(php_fpm: PhpFpm, over: Over) -> None:
    php_fpm.freeze()
    with pytest.raises(TimeoutError):
        php_fpm.request("/ping", over=over, seconds=TOO_SHORT)
    php_fpm.thaw()
    assert php_fpm.request("/ping", over=over).endswith(b"pong")


@pytest.mark.usefixtures("redis")
def test_options_are_added_to_the_command_line() -> None:
    server = RedisServer(["--maxmemory", "123mb"])
    server.start()
    try:
        assert server.command("CONFIG", "GET", "maxmemory") == f"maxmemory\n{123 << 20}\n"
    finally:
        server.close()
    assert not server.folder.exists()


@pytest.mark.usefixtures("redis")
def test_a_server_that_ends_at_its_start_says_why() -> None:
    server = RedisServer(["--maxmemory", "nonsense"])
    with pytest.raises(RuntimeError, match="argument must be a memory value"):
        server.start()
    server.close()


@pytest.mark.parametrize(
    ("name", "frozen"), [*((name, False) for name in SERVERS), pytest.param("php_fpm", True, id="php_fpm-frozen")]
)
def test_servers_and_folders_are_gone_when_the_tests_are_killed(
    name: str, frozen: bool, request: pytest.FixtureRequest
) -> None:
    kind = type(request.getfixturevalue(name)).__name__
    source = f"""\
import os, tests.private_servers
server = tests.private_servers.{kind}()
server.start()
if {frozen}:
    server.freeze()
print(server.port, server.folder, flush=True)
os.kill(os.getpid(), {signal.SIGKILL:d})
"""
    # It returns when the guard has ended too, which writes to the same pipe.
    done = subprocess.run(
        [sys.executable, "-c", source],
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    port, folder = done.stdout.split()
    assert not Path(folder).exists()
    # The guard does not wait for the last of the processes: a connection may still be made, but nobody takes it.
    with contextlib.suppress(ConnectionError), socket.create_connection(("127.0.0.1", int(port)), timeout=10) as sock:
        assert sock.recv(1) == b""


LOOP_SCOPE = "[pytest]\nasyncio_default_fixture_loop_scope = function"
ABSENT = """
    import pytest
    from tests.private_servers import RedisServer, serve

    class Absent(RedisServer):
        program = "absent-server"
        package = "absent-package"

    @pytest.fixture(scope="session")
    def absent():
        yield from serve(Absent)

    def test_needs_it(absent): ...
    def test_needs_it_too(absent): ...
    def test_needs_nothing(): ...
"""


def test_tests_whose_server_is_not_installed_are_named(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CI", raising=False)
    pytester.makeini(LOOP_SCOPE)
    pytester.makepyfile(test_absent=ABSENT)
    result = pytester.runpytest("-p", "tests.private_servers")
    result.assert_outcomes(passed=1, skipped=2)
    result.stdout.fnmatch_lines(
        [
            "*left out*",
            "absent-server is not installed (Debian package absent-package)",
            "    test_absent.py::test_needs_it",
            "    test_absent.py::test_needs_it_too",
        ]
    )


def test_tests_whose_server_is_not_installed_fail_in_ci(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "true")
    pytester.makeini(LOOP_SCOPE)
    pytester.makepyfile(test_absent=ABSENT)
    pytester.runpytest("-p", "tests.private_servers").assert_outcomes(passed=1, errors=2)
