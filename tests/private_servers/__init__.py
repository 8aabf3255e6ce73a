"""Real servers of the tests' own: databases, Redis, php-fpm and proxies, to be stopped, frozen, killed and restarted.

A pytest plugin. Each server starts when the first test asks for it, in a temporary folder, on 127.0.0.1 and on a Unix
socket in that folder, and is gone with the folder at the end of the session, also when the tests are killed. What the
machine itself runs is never touched. Every test finds its server running, whatever the test before did to it; an empty
database comes from ``create_database()``, an empty Redis from ``flush()``.

The servers are as durable as they are by default, Redis as it can be (``appendfsync always``): what they have
confirmed outlives ``kill()``. Everything here blocks; a test whose event loop has to go on meanwhile uses
`asyncio.to_thread`.

A test whose server is not installed is left out, and named at the end; where ``CI`` is "true" it fails.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest

from .databases import DatabaseServer, MariaDB, PostgreSQL
from .php_fpm import PhpFpm
from .process import Over, PrivateServer, ProgramMissingError
from .proxies import HAProxy, Nginx
from .redis_server import RedisServer

__all__ = [
    "DatabaseServer", "HAProxy", "MariaDB", "Nginx", "Over", "PhpFpm", "PostgreSQL", "PrivateServer", "RedisServer",
    "serve",
]  # fmt: skip

Server = TypeVar("Server", bound=PrivateServer)


def serve(kind: Callable[[], Server]) -> Iterator[Server]:
    """Give a server that is not started yet, and remove it afterwards: the body of a fixture."""
    try:
        server = kind()
    except ProgramMissingError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def mariadb_of_session() -> Iterator[MariaDB]:
    yield from serve(MariaDB)


@pytest.fixture(scope="session")
def postgres_of_session() -> Iterator[PostgreSQL]:
    yield from serve(PostgreSQL)


@pytest.fixture(scope="session")
def redis_of_session() -> Iterator[RedisServer]:
    yield from serve(RedisServer)


@pytest.fixture(scope="session")
def php_fpm_of_session() -> Iterator[PhpFpm]:
    yield from serve(PhpFpm)


@pytest.fixture
def mariadb(mariadb_of_session: MariaDB) -> MariaDB:
    """Give a MariaDB that runs."""
    mariadb_of_session.start()
    return mariadb_of_session


@pytest.fixture
def postgres(postgres_of_session: PostgreSQL) -> PostgreSQL:
    """Give a PostgreSQL that runs."""
    postgres_of_session.start()
    return postgres_of_session


@pytest.fixture
def redis(redis_of_session: RedisServer) -> RedisServer:
    """Give a Redis that runs."""
    redis_of_session.start()
    return redis_of_session


@pytest.fixture
def php_fpm(php_fpm_of_session: PhpFpm) -> PhpFpm:
    """Give a php-fpm that runs."""
    php_fpm_of_session.start()
    return php_fpm_of_session


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the tests that were left out, and why."""
    left_out: dict[str, list[str]] = {}
    for report in terminalreporter.stats.get("skipped", []):
        if isinstance(report, pytest.TestReport) and isinstance(report.longrepr, tuple):
            left_out.setdefault(report.longrepr[2].removeprefix("Skipped: "), []).append(report.nodeid)
    if left_out:
        terminalreporter.section("left out")
    for reason, tests in left_out.items():
        terminalreporter.write_line(reason)
        for test in tests:
            terminalreporter.write_line(f"    {test}")
