"""A database and its connections, and what is special to each of the three.

A call that fails or is cut short costs its connection, which is closed and never used again: half an answer may still
be on its way. Only SQLite, which has no server and no network in between, is waited for and keeps its connection.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from sqlalchemy import AsyncAdaptedQueuePool, Connection, Engine, NullPool, create_engine, event, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.util import await_only, greenlet_spawn

from guerrilla.stores.dsn import Dsn
from guerrilla.stores.sql_errors import STORE_ERRORS, FileMovedError, mysql_code
from guerrilla.stores.sql_thread import WorkThread, awaited

ResultT = TypeVar("ResultT")

_ATTEMPTS: Final = 500
"""To switch a new SQLite file to its write-ahead log, a hundredth of a second apart."""
_MAX_PACKET: Final = 1 << 30
"""Octets of a statement, where the server sets no limit that we have to know."""


@dataclass(frozen=True, slots=True)
class Session:
    """One session on the server: its id, and what tells it from a later one of that id."""

    number: int
    mark: str


class Database:
    """A pool of connections. ``max_open`` of them at most, of which ``max_idle`` stay; ``lifetime`` is in seconds.

    Raises:
        RuntimeError: if the driver is not installed.
    """

    def __init__(self, dsn: Dsn, *, max_open: int = 0, max_idle: int = 2, lifetime: float = 0.0) -> None:
        self.dsn = dsn
        self.kind = dsn.kind
        embedded = dsn.kind == "sqlite"
        self.engine = _embedded_engine(dsn) if embedded else _networked_engine(dsn, max_open, max_idle, lifetime)
        event.listen(self.engine, "connect", _ON_CONNECT[dsn.kind])
        self._waiting: set[asyncio.Task[Any]] = set()
        """Those of the calls that wait for what is no driver's."""
        self._thread: WorkThread | None = None
        """What SQLite is used in."""
        self._connection: Connection | None = None
        """SQLite's one: it has one writer at a time, and more would only wait for one another."""
        self._path = str(dsn)
        self._file: tuple[int, int] | None = None
        """Device and inode that the path of SQLite led to when that was made."""
        if embedded:
            self._thread = WorkThread("sqlite")
            event.listen(self.engine, "do_connect", self._remember_file)

    async def run(self, work: Callable[[Connection], ResultT], *, seconds: float | None = None) -> ResultT:
        """Do the work on a connection; close that if the work raises, is cancelled, or takes longer than ``seconds``.

        The work is written as if nothing had to be awaited, which takes much less time. It runs in a greenlet of
        SQLAlchemy's, or for SQLite in a thread, without a limit; in both ``wait`` awaits.

        Raises:
            what the work raises, and those of ``STORE_ERRORS``, TimeoutError among them.
        """
        if self._thread is not None:
            self._loop = asyncio.get_running_loop()
            return await self._thread.do(lambda: self._run_embedded(work))
        call = _Call(self, work)
        limits = [limit for limit in (seconds, self.dsn.answer_seconds) if limit is not None]
        task = asyncio.create_task(call.run())
        try:
            async with asyncio.timeout(min(limits, default=None)):
                return await asyncio.shield(task)
        except BaseException:
            call.cut(task)
            while not task.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait((task,))
            if not task.cancelled():
                task.exception()  # it has been seen
            raise

    def wait(self, awaitable: Awaitable[ResultT]) -> ResultT:
        """Await something within the work of a call."""
        if self._thread is not None:
            return awaited(awaitable, self._loop)
        task = asyncio.current_task()
        assert task is not None
        self._waiting.add(task)
        try:
            result: ResultT = await_only(awaitable)
            return result
        finally:
            self._waiting.discard(task)

    def waits(self, task: asyncio.Task[Any]) -> bool:
        """Tell whether what a call is at is not the driver's, but something else that it waits for."""
        return task in self._waiting

    async def end_session(self, session: Session) -> None:
        """Return when there is no such session on the server, ending it if there is: nothing of it can come any more.

        Raises:
            those of ``STORE_ERRORS``: then it may still be there.
        """
        look, kill = _SESSIONS[self.kind]

        def end(connection: Connection) -> None:
            values = {"number": session.number, "mark": session.mark}
            pause = 0.01
            while connection.execute(text(look), values).first():
                try:
                    connection.execute(text(kill), {"number": session.number})
                except DBAPIError as error:
                    if mysql_code(error) != _NO_SUCH_THREAD:  # it went by itself
                        raise
                connection.rollback()  # PostgreSQL shows one transaction always the same sessions
                self.wait(asyncio.sleep(pause))
                pause = min(2 * pause, 0.5)

        await self.run(end, seconds=self.dsn.connect_seconds + 10.0)

    def require_file(self) -> None:
        """See that what is written can be found: SQLite itself goes on writing to a file that was moved or deleted.

        Raises:
            FileMovedError: if the path leads elsewhere, or nowhere. Raised within a call, it ends the connection.
        """
        if self._file is not None and self._file != _identity(self._path):
            raise FileMovedError(
                f"sql_dsn: {self.dsn} was moved, deleted or replaced while it was in use. It is meant to stay where it "
                "is until the server is stopped. It is opened again for the next message; if there is none, it is made "
                "if sql_create_table is true."
            )

    async def close(self) -> None:
        """Close all connections that no call has."""
        try:
            self.require_file()
        except FileMovedError:
            with suppress(*STORE_ERRORS):
                await self.run(self._leave_file)
        if self._thread is None:
            await greenlet_spawn(self.engine.dispose)
        else:
            try:
                await self._thread.do(self._disconnect)
            finally:  # also if we are cancelled: nobody else would end it
                await self._thread.end()

    def _run_embedded(self, work: Callable[[Connection], ResultT]) -> ResultT:
        """Do the work on the connection of SQLite, in its thread."""
        connection = self._connection
        if connection is None:
            connection = self._connection = self.engine.connect()
        try:
            return work(connection)
        except FileMovedError:
            # SQLite does not do so when it closes a moved file: the mail would stay in a log that is not found there.
            with suppress(SQLAlchemyError):
                _end_transaction(connection)
                checkpoint(connection)
            self._disconnect()
            raise
        finally:
            if not connection.closed:
                _end_transaction(connection)

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _leave_file(self, _: Connection) -> None:
        self.require_file()

    def _remember_file(self, *_: object) -> None:
        """Look before SQLite opens the file, which it would make, for everyone to read, if it is not there.

        If the file is replaced in between, the old one is remembered, and ``require_file`` finds it out.
        """
        status = os.stat(self._path)
        self._file = status.st_dev, status.st_ino


class _Call:
    """One piece of work and the connection that it has, so that it can be cut short from outside."""

    __slots__ = ("_database", "_driver", "_work")

    def __init__(self, database: Database, work: Callable[[Connection], Any]) -> None:
        self._database = database
        self._work = work
        self._driver: Any = None

    async def run(self) -> Any:
        database = self._database
        # A driver's own limit may end with the socket's connection, and not hold for what the server says next.
        async with asyncio.timeout(database.dsn.connect_seconds):
            connection = await greenlet_spawn(database.engine.connect)
        return await greenlet_spawn(self._run, connection)

    def _run(self, connection: Connection) -> Any:
        try:
            self._driver = connection.connection.driver_connection
            return self._work(connection)
        except BaseException:
            self._close_driver()
            connection.invalidate()
            raise
        finally:
            connection.close()

    def cut(self, task: asyncio.Task[Any]) -> None:
        """End the work, wherever it is."""
        if task.done():
            return
        self._close_driver()
        # asyncpg ends what waits when it is closed; cancelled, it would ask the server to cancel, and wait for that.
        if self._driver is None or self._database.kind == "mysql" or self._database.waits(task):
            task.cancel()

    def _close_driver(self) -> None:
        """Close the socket at once, without a word to the server, which may hear nothing."""
        if self._driver is not None:
            self._driver.close() if self._database.kind == "mysql" else self._driver.terminate()


# What each database is told, and asked, when a connection is made

_MAX_OPEN: Final = 5
"""Connections when none are set: one writes, one takes back, the others read."""

_OPTIONS: Final[Mapping[str, Any]] = {
    "pool_reset_on_return": None,  # a call ends its transaction, or its connection
    "hide_parameters": True,  # an error is logged: it must not show the mail
}


def _embedded_engine(dsn: Dsn) -> Engine:
    return create_engine(dsn.url, poolclass=NullPool, **_OPTIONS)


def _networked_engine(dsn: Dsn, max_open: int, max_idle: int, lifetime: float) -> Engine:
    max_open = max_open or _MAX_OPEN
    idle = max(1, min(max_idle, max_open))
    try:
        engine = create_async_engine(
            dsn.url,
            connect_args=dict(dsn.connect_args),
            poolclass=AsyncAdaptedQueuePool,
            pool_size=idle,
            max_overflow=max_open - idle,
            pool_timeout=dsn.connect_seconds,
            pool_recycle=max(1, round(lifetime)) if lifetime else -1,
            **_OPTIONS,
        )
    except ModuleNotFoundError as error:
        raise RuntimeError(
            f"sql_driver: {error.name} is not installed. Meant: pip install 'guerrilla[{dsn.kind}]'"
        ) from error
    return engine.sync_engine


_NO_SUCH_THREAD: Final = 1094

_SESSIONS: Final = {
    "mysql": (
        "SELECT 1 FROM information_schema.processlist WHERE id = :number AND host = :mark",
        "KILL CONNECTION :number",
    ),
    "postgres": (
        "SELECT 1 FROM pg_stat_activity "
        "WHERE pid = :number AND CAST(extract(epoch FROM backend_start) AS text) = :mark",
        "SELECT pg_terminate_backend(:number)",
    ),
}


def session_of(connection: Connection) -> Session | None:
    """Return the session of a connection; SQLite has none."""
    return connection.info.get("session")


def max_packet_of(connection: Connection) -> int:
    """Return how many octets a statement may have."""
    size: int = connection.info.get("max_packet", _MAX_PACKET)
    return size


def execute_embedded(connection: Connection, statement: str, values: Sequence[Any]) -> None:
    """Have SQLite's driver itself run a statement, within the transaction: SQLAlchemy takes longer than SQLite."""
    driver: Any = connection.connection.driver_connection
    try:
        driver.execute(statement, values)
    except sqlite3.Error as error:
        raise _as_sqlalchemy_has_it(error, connection) from error


def commit(connection: Connection) -> None:
    """Commit what was executed, also by ``execute_embedded``, of which SQLAlchemy knows nothing."""
    if connection.in_transaction():
        connection.commit()
        return
    driver: Any = connection.connection.driver_connection
    try:
        driver.commit()
    except sqlite3.Error as error:
        raise _as_sqlalchemy_has_it(error, connection) from error


def _as_sqlalchemy_has_it(error: sqlite3.Error, connection: Connection) -> BaseException:
    return DBAPIError.instance(None, None, error, sqlite3.Error, hide_parameters=True, dialect=connection.dialect)


def _end_transaction(connection: Connection) -> None:
    """Roll back what is not committed, also if COMMIT has failed.

    SQLAlchemy lets no other transaction begin then before it is told so, but rolls nothing back; and SQLite may have
    left it open, to be committed with the next.
    """
    connection.rollback()
    driver: Any = connection.connection.driver_connection
    driver.rollback()


def checkpoint(connection: Connection) -> None:
    """Have SQLite copy its write-ahead log into the database file, and empty it: the file is then complete alone."""
    connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.rollback()


def _identity(path: str) -> tuple[int, int] | None:
    """Return device and inode of a file; None if it is not there, or cannot be seen."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _greet_sqlite(connection: Any, _: object) -> None:
    """Set up a connection: a write-ahead log that is on disk when COMMIT returns, and five seconds for a lock.

    A new file gets pages of 8,192 octets, each of which holds several messages of usual size, and not one and a half.
    A statement of several rows notes what it changes, to undo it alone: in memory, not in a temporary file. To have it
    note nothing (OR ROLLBACK) would also overrule what a trigger's own statements, or the table, say of conflicts.
    """
    cursor = connection.cursor()
    try:
        cursor.execute("PRAGMA busy_timeout = 5000")
        cursor.execute("PRAGMA page_size = 8192")
        cursor.execute("PRAGMA temp_store = MEMORY")
        _use_write_ahead_log(cursor)
        cursor.execute("PRAGMA synchronous = FULL")
    finally:
        cursor.close()


def _use_write_ahead_log(cursor: Any) -> None:
    """Switch a new file over. When two processes do so at once, SQLite refuses one without the wait for a lock."""
    for attempt in range(_ATTEMPTS):
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or attempt + 1 == _ATTEMPTS:
                raise
            time.sleep(0.01)
        else:
            return


def _greet_mysql(connection: Any, record: Any) -> None:
    """Learn the session, what a statement may have, and whether COMMIT means on disk."""
    cursor = connection.cursor()
    try:
        cursor.execute(
            "SELECT CONNECTION_ID(), @@max_allowed_packet, @@innodb_flush_log_at_trx_commit, "
            "(SELECT host FROM information_schema.processlist WHERE id = CONNECTION_ID())"
        )
        number, packet, flush, host = cursor.fetchone()
    finally:
        cursor.close()
    connection.rollback()
    record.info.update(session=Session(number, host), max_packet=int(packet), durable=int(flush) == 1)


def _greet_postgres(connection: Any, record: Any) -> None:
    """Learn the session, and have COMMIT wait for the disk whatever the server's default is."""
    cursor = connection.cursor()
    try:
        cursor.execute(
            "SELECT pg_backend_pid(), (SELECT CAST(extract(epoch FROM backend_start) AS text) "
            "FROM pg_stat_activity WHERE pid = pg_backend_pid()), "
            "current_setting('synchronous_commit'), current_setting('fsync')"
        )
        number, start, synchronous, fsync = cursor.fetchone()
        if synchronous == "off":
            cursor.execute("SET synchronous_commit TO on")
    finally:
        cursor.close()
    connection.commit()
    record.info.update(session=Session(number, start), durable=fsync == "on")


_ON_CONNECT: Final = {"sqlite": _greet_sqlite, "mysql": _greet_mysql, "postgres": _greet_postgres}


def make_sqlite_file(path: Path, create: bool) -> None:
    """Make the file, for its owner only, if it is to be made and not there; SQLite would let everyone read it.

    Raises:
        OSError: if it cannot be made, or is not there.
    """
    if not create:
        os.stat(path)
        return
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return
    # The file is there after a power cut only if its folder says so.
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
