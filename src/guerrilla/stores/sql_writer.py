"""Putting mail into a database: many messages in one transaction, and none that was answered with less than 250.

What is promised, and where it is kept: all rows of a message or none (one transaction, ``_write``); a value that the
database refuses fails one message, not its batch (BatchRefusedError, and the Batcher halves); a COMMIT whose answer is
lost is asked after before anything is said (``_after_lost_commit``); what cannot be known is taken back (the Remover);
what went to a SQLite file that is not at its path any more does not count (``require_file``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Insert, bindparam, delete, inspect, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.schema import CreateIndex, CreateTable
from structlog.typing import FilteringBoundLogger

from guerrilla.backends.batch import Batcher, BatchRefusedError
from guerrilla.envelope import Envelope
from guerrilla.stores.dsn import Dsn
from guerrilla.stores.sql_database import (
    Database,
    Session,
    checkpoint,
    commit,
    execute_embedded,
    make_sqlite_file,
    max_packet_of,
    session_of,
)
from guerrilla.stores.sql_errors import STORE_ERRORS, Verdict, cause_of, judge, rolled_back
from guerrilla.stores.sql_letter import Letter, insert_all
from guerrilla.stores.sql_removal import Removal, Remover
from guerrilla.stores.sql_table import COLUMNS, DriverInsert, insertion, mail_table
from guerrilla.stores.sql_values import Row, without_zone

_ATTEMPTS: Final = 3
"""How often a batch is tried whose transaction was rolled back, or whose connection was lost before the COMMIT."""

_MAX_STATEMENT: Final = 1 << 20
"""Octets of mail in one INSERT, and so in memory at a time; a larger message is alone in its own."""

_MAX_EMBEDDED: Final = 1 << 18
"""The same for SQLite, whose driver goes on holding what each of its statements was given last, for every number of
rows one."""

_MAX_ROWS: Final = 32
"""Rows in one INSERT of SQLite, whose older versions take 999 values; its driver remembers 128 statements."""

_MAX_BATCH: Final = 1 << 24
"""Octets of mail in one transaction; a larger message is alone in its own."""

_CHECK_SECONDS: Final = 10.0
"""How long the database may take to show its table, to say what became of a COMMIT, or to remove rows."""


@dataclass(frozen=True, slots=True)
class SqlSettings:
    """What the keys of a processor say about its table."""

    dsn: Dsn
    table: str
    host: str
    """The host name in the column ``to``."""
    create_table: bool
    sql_insert: str = ""
    sql_values: str = ""
    max_open: int = 0
    """Connections at most; 0 for a few."""
    max_idle: int = 2
    lifetime: float = 0.0
    """Seconds after which a connection is not used again; 0 for never."""


class TableError(RuntimeError):
    """The table is not there, or is another one."""


class NotKeptError(Exception):
    """The message is not in the database, and will not be. ``verdict`` says why."""

    def __init__(self, verdict: Verdict, cause: str) -> None:
        super().__init__(cause)
        self.verdict = verdict

    @property
    def event(self) -> str:
        """What the operator reads of it; ``str()`` is the cause."""
        refused = self.verdict is Verdict.REFUSED
        return "the database refuses the message" if refused else "the message was not stored"


class Kept:
    """A message that is committed: leave the block without ``confirm()``, and it is taken back."""

    __slots__ = ("_confirmed", "_letter", "_writer")

    def __init__(self, writer: SqlWriter, letter: Letter) -> None:
        self._writer = writer
        self._letter = letter
        self._confirmed = False

    def confirm(self) -> None:
        """Say that the message may stay."""
        self._confirmed = True

    async def take_back(self) -> None:
        """Remove it: to the end, even if we are cancelled meanwhile."""
        await self._writer.take_back(self._letter)

    async def __aenter__(self) -> Kept:
        return self

    async def __aexit__(self, *_: object) -> None:
        if not self._confirmed:
            await self.take_back()


class SqlWriter:
    """Writes envelopes into one table: ``open``, then ``keep`` as often as there is mail, then ``close``.

        async with await writer.keep(envelope) as kept:
            …                       # the rest of the line
            kept.confirm()          # 250

    Raises:
        ValueError: if ``sql_insert`` and ``sql_values`` do not fit one another.
    """

    def __init__(self, settings: SqlSettings) -> None:
        self.settings = settings
        self.table = mail_table(settings.table)
        self._insertion = insertion(self.table, settings.dsn.kind, settings.sql_insert, settings.sql_values)
        self._driver_insert: DriverInsert | None = None
        self._database: Database | None = None
        self._log: FilteringBoundLogger | None = None
        self._table_is_checked = False
        self._remover = Remover(self._remove)
        self._batcher: Batcher[Letter] = Batcher(
            self._commit, self._undo, on_error=self._report_undo, size=_size, max_size=_MAX_BATCH
        )

    @property
    def database(self) -> Database:
        """The open database. Raises RuntimeError if it is not open."""
        if self._database is None:
            raise RuntimeError("the database is not open")
        return self._database

    async def open(self, log: FilteringBoundLogger) -> None:
        """Connect, and check the table, or make it if it is to be made.

        A server that cannot be reached is no error: it may come later, and mail is answered 451 until then.

        Raises:
            RuntimeError: if file, table, password or driver cannot be used, with what is wrong and what is meant.
        """
        self._log = self._remover.log = log
        settings = self.settings
        self._database = Database(
            settings.dsn, max_open=settings.max_open, max_idle=settings.max_idle, lifetime=settings.lifetime
        )
        place = f"sql_dsn: {settings.dsn} cannot be used"
        try:
            await self._prepare()
        except STORE_ERRORS as error:
            if settings.dsn.kind != "sqlite":
                if judge(error) in (Verdict.AWAY, Verdict.AGAIN):
                    log.warning(
                        "the database cannot be reached: mail is answered 451 until it can", cause=cause_of(error)
                    )
                    return
                raise RuntimeError(f"{place}: {cause_of(error)}") from error
            if isinstance(error, SQLAlchemyError):
                raise RuntimeError(
                    f"{place}: {cause_of(error)}. A SQLite file is meant that this user may write to."
                ) from error
            raise RuntimeError(
                f"{place}: {error.strerror}. A file in an existing folder is meant that this user may write to."
            ) from error

    async def close(self) -> None:
        """Finish what is under way and close the database. May be called without ``open``, and twice."""
        await self._batcher.close()
        await self._remover.close()
        if self._database is not None:
            await self._database.close()

    async def keep(self, envelope: Envelope) -> Kept:
        """Commit the rows of a message, and set its ``queued_id`` to the first hash if it has hashes.

        When it is cancelled, the rows are not there, or are removed.

        Raises:
            NotKeptError: if they are not committed.
        """
        letter = Letter(envelope, self.settings.host)
        if letter.rows:
            try:
                await self._batcher.add(letter)
            except (BatchRefusedError, *STORE_ERRORS, TableError) as error:
                raise _not_kept(error) from error
            envelope.queued_id = letter.name
        return Kept(self, letter)

    def begin(self, envelope: Envelope, tell: Callable[[BaseException | None], None]) -> Callable[[], object]:
        """Do as ``keep`` does, for one who does not wait; return what withdraws the message.

        ``tell`` is called later, with None or what ``keep`` would raise, unless the message was withdrawn.
        """
        letter = Letter(envelope, self.settings.host)
        if not letter.rows:  # there is nothing to be kept
            return asyncio.get_running_loop().call_soon(tell, None).cancel
        return self._batcher.put(letter, partial(_told, envelope, letter, tell)).withdraw

    async def take_back(self, letter: Letter) -> None:
        """Remove the rows of a message that was committed."""
        if letter.rows:
            # Shielded: it is removed to the end even if we are cancelled meanwhile.
            await asyncio.shield(self._remover.add(Removal(letter.keys)))

    async def _commit(self, letters: Sequence[Letter]) -> None:
        """Keep all messages of a batch, or none: the Batcher's commit."""
        if self._remover.full:
            raise SQLAlchemyError("too many rows wait to be removed")
        if not self._table_is_checked:
            await self._prepare()
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                await self._insert(letters)
                return
            except (*STORE_ERRORS, OverflowError) as error:
                verdict = judge(error)
                if verdict is Verdict.REFUSED:
                    raise BatchRefusedError(cause_of(error)) from error
                if self.database.kind == "sqlite":
                    self._table_is_checked = False  # the file may be another one now
                if verdict is not Verdict.AGAIN or attempt == _ATTEMPTS or self.database.kind == "sqlite":
                    raise

    async def _insert(self, letters: Sequence[Letter]) -> None:
        """Make one attempt. When it raises, no row is there, or the Remover sees to it."""
        writing = _Writing(self, letters)
        try:
            await self.database.run(writing.run)
        except BaseException as error:
            if writing.session is None or not writing.committing or rolled_back(error):
                raise
            if not await self._after_lost_commit(error, writing.session, letters):
                raise

    def insert(self, connection: Connection, rows: Sequence[Row]) -> None:
        """Put the rows into the table, within the transaction."""
        statement = self._insertion
        if not isinstance(statement, Insert):
            named = [dict(zip(COLUMNS, row, strict=True)) for row in rows]
            for each in named:
                each["date"] = without_zone(each["date"])
            connection.execute(statement, named)
            return
        if self._driver_insert is None:
            self._driver_insert = DriverInsert(statement, connection.dialect)
        insert = self._driver_insert
        if self.settings.dsn.kind != "sqlite":
            connection.exec_driver_sql(insert.text, [insert.values(row) for row in rows])
            return
        # As one statement: to go on after each would be to wait for the loop's thread to let Python's lock go.
        for first in range(0, len(rows), _MAX_ROWS):
            some = rows[first : first + _MAX_ROWS]
            execute_embedded(connection, insert.text_of(len(some)), insert.values_of(some))

    async def _after_lost_commit(self, error: BaseException, session: Session, letters: Sequence[Letter]) -> bool:
        """Find out whether the COMMIT was done whose answer did not come: True, or False and it never will be.

        What cannot be found out, or was not waited for, is removed in the background, and counts as not done.
        """
        known = False
        try:
            if isinstance(error, Exception):
                await self.database.end_session(session)
                there = await self.database.run(lambda connection: self._is_there(connection, letters))
                known = True
                return there
        except STORE_ERRORS:
            pass  # the error of the COMMIT says more
        finally:
            if not known:
                self._remover.add(Removal([key for letter in letters for key in letter.keys], session))
        return False

    def _is_there(self, connection: Connection, letters: Sequence[Letter]) -> bool:
        """Whether the transaction with these messages was committed: all of it was, if one row is there."""
        key, recipient = letters[0].keys[0]
        columns = self.table.c
        found = connection.execute(
            select(columns.hash).where(columns.hash == key, columns.recipient == recipient).limit(1)
        )
        return found.first() is not None

    async def _undo(self, letters: Sequence[Letter]) -> None:
        """Have the rows of these messages removed: the Batcher's undo."""
        self._remover.add(Removal([key for letter in letters for key in letter.keys]))

    def _report_undo(self, error: Exception) -> None:
        if self._log is not None:
            self._log.error("rows of mail that was not accepted are not removed", cause=cause_of(error))

    async def _remove(self, removals: Sequence[Removal]) -> None:
        """End the sessions and remove the rows, these and no others: the Remover's work."""
        for session in {removal.session for removal in removals if removal.session is not None}:
            await self.database.end_session(session)
        columns = self.table.c
        statement = delete(self.table).where(
            columns.hash == bindparam("of_hash"), columns.recipient == bindparam("of_recipient")
        )
        keys = dict.fromkeys(key for removal in removals for key in removal.rows)
        values = [{"of_hash": key, "of_recipient": recipient} for key, recipient in keys]

        def work(connection: Connection) -> None:
            with connection.begin():
                connection.execute(statement, values)

        # A statement for each row, so the more there are the longer it may take.
        await self.database.run(work, seconds=_CHECK_SECONDS + len(values) / 1000)

    async def _prepare(self) -> None:
        """Make the file of SQLite if it is to be made, and check the table."""
        dsn = self.settings.dsn
        if dsn.kind == "sqlite":
            await asyncio.to_thread(make_sqlite_file, Path(str(dsn)), self.settings.create_table)
        await self._check_table()

    async def _check_table(self) -> None:
        """See that the table is there with all that is needed; make it and its indexes if they are to be made."""
        settings = self.settings
        own = not settings.sql_insert and not settings.sql_values
        needed = [column.name for column in self.table.columns] if own else ["hash", "recipient"]

        def work(connection: Connection) -> tuple[set[str], Mapping[str, Any]]:
            with connection.begin():
                columns, indexed = _columns(connection, self.table.name)
                if not columns and settings.create_table:
                    connection.execute(CreateTable(self.table, if_not_exists=True))
                    columns, indexed = _columns(connection, self.table.name)
                if settings.create_table and own and columns.issuperset(needed):
                    for index in self.table.indexes:
                        if index.columns[0].name not in indexed:
                            connection.execute(CreateIndex(index, if_not_exists=settings.dsn.kind != "mysql"))
            if settings.dsn.kind == "sqlite":
                checkpoint(connection)  # wherever the file is moved to, it has its table
                self.database.require_file()
            return columns, dict(connection.info)

        columns, info = await self.database.run(work, seconds=_CHECK_SECONDS)
        if not columns:
            raise TableError(
                f"mail_table: there is no table {self.table.name} in {settings.dsn}. "
                "Make it, or let sql_create_table be true."
            )
        missing = [name for name in needed if name not in columns]
        if missing:
            raise TableError(
                f"mail_table: the table {self.table.name} in {settings.dsn} lacks the columns {', '.join(missing)}. "
                "A table that Sql made itself is meant, or one with all its columns."
            )
        if not info.get("durable", True) and self._log is not None:
            self._log.warning("the database does not write to disk at COMMIT: mail can be lost in a power cut")
        self._table_is_checked = True


class _Writing:
    """One transaction on its way, and how far it came."""

    __slots__ = ("_letters", "_writer", "committing", "session")

    def __init__(self, writer: SqlWriter, letters: Sequence[Letter]) -> None:
        self._writer = writer
        self._letters = letters
        self.session: Session | None = None
        self.committing = False
        """Whether COMMIT may have been sent."""

    def run(self, connection: Connection) -> None:
        self.session = session_of(connection)
        database = self._writer.database
        packet = max_packet_of(connection)
        embedded = database.kind == "sqlite"
        limit = min(_MAX_EMBEDDED if embedded else _MAX_STATEMENT, packet // 4)
        insert = partial(self._writer.insert, connection)
        insert_all(self._letters, insert, database.wait, limit=limit, packet=packet, embedded=embedded)
        database.require_file()  # nothing is left in a file that has been moved
        self.committing = True
        commit(connection)
        database.require_file()  # nothing counts as committed in one that is gone


def _told(
    envelope: Envelope, letter: Letter, tell: Callable[[BaseException | None], None], error: BaseException | None
) -> None:
    """Pass on what has come of a message."""
    if error is None:
        envelope.queued_id = letter.name
    elif isinstance(error, (BatchRefusedError, *STORE_ERRORS, TableError)):
        error = _not_kept(error)
    tell(error)


def _not_kept(error: Exception) -> NotKeptError:
    """Return what says of what the batch has raised why the message is not kept."""
    if isinstance(error, BatchRefusedError):
        return NotKeptError(Verdict.REFUSED, str(error))
    return NotKeptError(judge(error), cause_of(error))


def _size(letter: Letter) -> int:
    return letter.size


def _columns(connection: Connection, table: str) -> tuple[set[str], set[str]]:
    """Return the names of the table's columns, and of those that an index begins with; none if there is no table."""
    inspector = inspect(connection)
    if not inspector.has_table(table):
        return set(), set()
    columns = {column["name"] for column in inspector.get_columns(table)}
    return columns, {name for index in inspector.get_indexes(table) for name in index["column_names"][:1] if name}
