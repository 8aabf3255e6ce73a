"""A Database ends what it is told to end, and never uses a connection again whose call was cut short."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Connection, event, text
from sqlalchemy.exc import DBAPIError
from tests.stores.sql_databases import EmptyDatabase, empty_database

from guerrilla.stores.sql_database import Database, Session, session_of
from guerrilla.stores.sql_errors import Verdict, cause_of, judge

SLEEP = {"mysql": "SELECT SLEEP(60)", "postgres": "SELECT pg_sleep(60)"}


@pytest.fixture
async def pool(networked: EmptyDatabase) -> AsyncIterator[Database]:
    pool = Database(networked.dsn, max_open=2)
    yield pool
    await pool.close()


def ask(connection: Connection) -> Session:
    connection.execute(text("SELECT 1"))
    session = session_of(connection)
    assert session is not None
    return session


async def test_connection_is_kept(pool: Database) -> None:
    """After a call that went well the connection is there for the next."""
    assert await pool.run(ask) == await pool.run(ask)


async def test_connection_of_a_failed_call(pool: Database) -> None:
    """After a call that failed it is not, whatever it failed of."""

    def fail(connection: Connection) -> None:
        sessions.append(ask(connection))
        raise ValueError("a bug")

    sessions: list[Session] = []
    with pytest.raises(ValueError, match="a bug"):
        await pool.run(fail)
    assert await pool.run(ask) not in sessions


@pytest.mark.parametrize("how", ["cancelled", "out of time"])
async def test_connection_of_a_call_cut_short(networked: EmptyDatabase, pool: Database, how: str) -> None:
    """Nor after one that was cut short while the server worked: the next call gets its own answer."""
    working = asyncio.Event()
    sessions: list[Session] = []

    def work(connection: Connection) -> None:
        sessions.append(ask(connection))
        working.set()
        connection.execute(text(SLEEP[networked.kind]))

    await pool.run(ask)  # to connect may take longer than the call has time
    call = asyncio.create_task(pool.run(work, seconds=0.5 if how == "out of time" else None))
    await asyncio.wait((call, asyncio.create_task(working.wait())), return_when=asyncio.FIRST_COMPLETED)
    assert working.is_set()
    if how == "cancelled":
        call.cancel()
    with pytest.raises((asyncio.CancelledError, TimeoutError)):
        await call
    assert await pool.run(ask) not in sessions


async def test_cut_while_it_connects(networked: EmptyDatabase) -> None:
    """A server that takes the connection and says nothing does not hold a call longer than it may take to connect."""
    assert networked.server is not None
    pool = Database(replace(networked.dsn, connect_seconds=0.2))
    networked.server.freeze()
    try:
        with pytest.raises(TimeoutError):
            await pool.run(ask)
    finally:
        networked.server.thaw()
    await pool.close()


async def test_end_session(pool: Database) -> None:
    """A session that is ended is gone, and a later one of its number is left alone; so is one that never was."""

    def work(connection: Connection) -> None:
        session = ask(connection)
        pool.wait(pool.end_session(Session(session.number, "another")))
        assert ask(connection) == session
        pool.wait(pool.end_session(session))
        ask(connection)

    with pytest.raises(DBAPIError) as caught:
        await pool.run(work)
    assert judge(caught.value) is Verdict.AGAIN
    await pool.end_session(Session(1 << 30, "x"))


async def test_max_open(networked: EmptyDatabase, pool: Database) -> None:
    """There are never more connections than there may be, and those that are not needed are closed."""
    opened: list[object] = []
    event.listen(pool.engine, "connect", lambda *_: opened.append(_))
    await asyncio.gather(*(pool.run(ask) for _ in range(20)))
    assert len(opened) == 2


async def test_closing_is_cancelled(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """A close that is cancelled while SQLite is busy leaves no thread behind, and no open file."""
    empty = empty_database("sqlite", request, tmp_path)
    Path(empty.place).touch()
    database = Database(empty.dsn)
    connections: list[Connection] = []
    go_on = threading.Event()

    def work(connection: Connection) -> None:
        connections.append(connection)
        assert go_on.wait(10)

    working = asyncio.create_task(database.run(work))
    while not connections:
        await asyncio.sleep(0.01)
    closing = asyncio.create_task(database.close())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.wait((working, closing))
    assert closing.cancelled()
    assert connections[0].closed
    assert "sqlite" not in {thread.name for thread in threading.enumerate()}


async def test_values_that_are_refused(networked: EmptyDatabase, pool: Database) -> None:
    """A value that does not fit is the value's fault, and the cause says so without the value."""
    networked.sql("CREATE TABLE t (x VARCHAR(3))")

    def work(connection: Connection) -> None:
        connection.execute(text("INSERT INTO t VALUES (:x)"), [{"x": "a"}, {"x": "secret"}])

    with pytest.raises(DBAPIError) as caught:
        await pool.run(work)
    assert judge(caught.value) is Verdict.REFUSED
    assert "too long" in cause_of(caught.value)
    assert "secret" not in str(caught.value)


def test_driver_that_is_not_installed(networked: EmptyDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its driver a database cannot be used, and it is said how to get it."""
    monkeypatch.setitem(__import__("sys").modules, "asyncmy" if networked.kind == "mysql" else "asyncpg", None)
    with pytest.raises(RuntimeError, match=rf"pip install 'guerrilla\[{networked.kind}\]'"):
        Database(networked.dsn)
