"""Sql: keeps mail in a database. Today that is SQLite, in one file, with nothing to install.

What is special to SQLite stands together, in ``SqlConfig`` (driver and DSN), ``_make_file``, ``_prepare`` and
``_is_full``; the table, its rows and the transactions are those of any database.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import sqlite3
from collections.abc import Sequence
from datetime import UTC
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

from pydantic import field_validator
from sqlalchemy import (
    URL,
    AsyncAdaptedQueuePool,
    BigInteger,
    Boolean,
    Column,
    Connection,
    DateTime,
    Float,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    bindparam,
    delete,
    event,
    insert,
    inspect,
)
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.schema import CreateIndex, CreateTable

from guerrilla.backends.batch import Batcher, BatchRefusedError
from guerrilla.backends.processor import CallNext, Envelope, Field, Processor, ProcessorConfig, Reply
from guerrilla.envelope import Address
from guerrilla.smtp.replies import INSUFFICIENT_STORAGE, LOCAL_ERROR, STORAGE_NOT_AVAILABLE

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_URL = re.compile(r"sqlite(?:\+aiosqlite)?:///([^?]*)")

_MAX_ON_LOOP = 1 << 20
"""Octets that are copied at once, in well under a millisecond; more goes to a thread: it may have to come from disk."""

Row: TypeAlias = dict[str, Any]


class SqlConfig(ProcessorConfig):
    """The keys of Sql."""

    mail_table: str = Field(default="new_mail", description="The table: letters, digits and _, at most 64.")
    sql_driver: str = Field(default="sqlite", description='Which database: "sqlite".')
    sql_dsn: str = Field(
        default="guerrilla.db",
        description="Where it is. For SQLite the path of the file, or sqlite:///path; a relative path starts at the "
        "working folder.",
    )
    primary_mail_host: str = Field(
        default_factory=socket.gethostname,
        min_length=1,
        max_length=255,
        description="The host name in the column `to`; as a default, the machine's own.",
    )
    sql_create_table: bool = Field(default=True, description="Make file and table at the start if they are not there.")

    @field_validator("mail_table")
    @classmethod
    def _check_table(cls, value: str) -> str:
        if not _IDENTIFIER.fullmatch(value):
            raise ValueError("a table name is meant: a letter or _, then letters, digits and _, at most 64 in all")
        return value

    @field_validator("sql_driver")
    @classmethod
    def _check_driver(cls, value: str) -> str:
        if value not in ("sqlite", "sqlite3"):
            raise ValueError('this release stores in SQLite only: "sqlite" (or "sqlite3") is meant')
        return "sqlite"

    @field_validator("sql_dsn")
    @classmethod
    def _check_dsn(cls, value: str) -> str:
        """Reduce it to the path. A database in memory is refused: it would break the promise of the 250."""
        path = value
        if "://" in value:
            url = _URL.fullmatch(value)
            if not url:
                raise ValueError("for SQLite, the path of a file is meant, or sqlite:///path")
            path = url[1]
        if not path or "\0" in path or path == ":memory:" or path.startswith("file:"):
            raise ValueError("the path of a file is meant: mail in memory would be lost, and 250 means kept")
        return path


@runtime_checkable
class _Compressed(Protocol):
    """What Compressor leaves in ``values["zlib-compressor"]``."""

    async def data(self) -> bytes:
        """Return the compressed message."""
        ...


class Sql(Processor[SqlConfig]):
    """Keeps the message in a database: one row per recipient in ``mail_table``, octet for octet.

    Reads ``delivery_header`` and ``data``, or ``values["zlib-compressor"]`` if Compressor is listed before it (then
    the column ``body`` says "gzip"); ``hashes``, ``subject``, ``header`` and what the dialogue learnt. Sets
    ``queued_id`` to the first hash, if Hasher is listed. It answers only when the rows are committed and on disk, many
    messages in one transaction; when a later processor refuses the message, they are removed again. A full disk is
    answered 452, any other fault of the database 451.
    """

    def __init__(self, config: SqlConfig) -> None:
        super().__init__(config)
        self.path = Path(config.sql_dsn).absolute()
        # SQLite has one writer at a time: more connections would only wait for one another.
        self.engine = create_async_engine(
            URL.create("sqlite+aiosqlite", database=str(self.path)),
            poolclass=AsyncAdaptedQueuePool,
            pool_size=1,
            max_overflow=0,
            hide_parameters=True,  # an error is logged: it must not show the mail
        )
        event.listen(self.engine.sync_engine, "connect", _prepare)
        self.table = _table(config.mail_table)
        self._batcher: Batcher[Sequence[Row]] = Batcher(self._commit, self._remove, on_error=self._log_undo_error)
        self._removals: set[asyncio.Task[None]] = set()

    async def initialize(self) -> None:
        """Open the database; make file and table if they are to be made.

        Raises:
            RuntimeError: if the file or the table cannot be used, with what is wrong and what is meant.
        """
        place = f"sql_dsn: {self.path} cannot be used"
        try:
            await asyncio.to_thread(_make_file, self.path, self.config.sql_create_table)
            async with self.engine.begin() as connection:
                if self.config.sql_create_table:
                    await connection.execute(CreateTable(self.table, if_not_exists=True))
                columns = await connection.run_sync(_columns, self.table.name)
                missing = [column.name for column in self.table.columns if column.name not in columns]
                if not missing and self.config.sql_create_table:
                    for index in self.table.indexes:
                        await connection.execute(CreateIndex(index, if_not_exists=True))
        except OSError as error:
            raise RuntimeError(
                f"{place}: {error.strerror}. A file in an existing folder is meant that this user may write to."
            ) from error
        except SQLAlchemyError as error:
            raise RuntimeError(
                f"{place}: {_cause(error)}. A SQLite file is meant that this user may write to."
            ) from error
        if not columns:
            raise RuntimeError(
                f"mail_table: there is no table {self.table.name} in {self.path}. "
                "Make it, or let sql_create_table be true."
            )
        if missing:
            raise RuntimeError(
                f"mail_table: the table {self.table.name} in {self.path} lacks the columns {', '.join(missing)}. "
                "A table that Sql made itself is meant, or one with all its columns."
            )

    async def shutdown(self) -> None:
        """Finish what is under way and close the database."""
        await self._batcher.close()
        if self._removals:
            await asyncio.wait(self._removals)
        await self.engine.dispose()

    async def save_mail(self, envelope: Envelope, call_next: CallNext) -> Reply:
        """Commit the rows, then pass on; take them back if the rest of the line does not keep the message."""
        rows = await self._rows(envelope)
        if not rows:
            return await call_next()
        try:
            await self._batcher.add(rows)
        except BatchRefusedError as error:
            # Whatever it is, the sender did not do it: another store, or a mended one, may take the message.
            self.log.error("the database refuses the message", queued_id=envelope.queued_id, cause=str(error))
            return LOCAL_ERROR
        except SQLAlchemyError as error:
            self.log.error("the message was not stored", queued_id=envelope.queued_id, cause=_cause(error))
            return INSUFFICIENT_STORAGE if _is_full(error) else STORAGE_NOT_AVAILABLE
        if envelope.hashes:
            envelope.queued_id = envelope.hashes[0]
        # RFC 5321 section 4.2.5: what was not answered 250 must not turn up later.
        try:
            reply = await call_next()
        except BaseException:
            await self._take_back(rows)
            raise
        if not reply.positive:
            await self._take_back(rows)
        return reply

    async def _rows(self, envelope: Envelope) -> list[Row]:
        """Return one row per recipient."""
        compressed = envelope.values.get("zlib-compressor")
        if isinstance(compressed, _Compressed):
            mail = await compressed.data()
        elif len(envelope) <= _MAX_ON_LOOP:
            mail = bytes(envelope)
        else:
            mail = await asyncio.to_thread(bytes, envelope)
        sender = _cut(str(envelope.mail_from), 255)
        header = envelope.header
        common: Row = {
            "date": envelope.received_at.astimezone(UTC).replace(tzinfo=None),
            "from": sender,
            "subject": _cut(envelope.subject, 255),
            "body": "gzip" if isinstance(compressed, _Compressed) else "",
            "mail": mail,
            "spam_score": 0.0,
            "content_type": _cut(header.get("Content-Type"), 64),
            "has_attach": 0,
            "ip_addr": _packed(envelope.remote_ip),
            "return_path": sender,
            "is_tls": envelope.tls is not None,
            "reply_to": _cut(_in_brackets(header.get("Reply-To")), 256),
            "sender": _cut(_in_brackets(header.get("Sender")), 256),
        }
        message_id = _in_brackets(header.get("Message-ID"))
        host = self.config.primary_mail_host
        hashes = envelope.hashes
        if len(hashes) != len(envelope.rcpt_to):
            hashes = [envelope.queued_id] * len(envelope.rcpt_to)
        return [
            common
            | {
                "to": _cut(str(Address(recipient.user, host)), 256),
                "recipient": _cut(str(recipient), 255),
                "hash": _cut(key, 32),
                "message_id": _cut(message_id or f"{key}.{recipient.user}@{host}", 256),
            }
            for recipient, key in zip(envelope.rcpt_to, hashes, strict=True)
        ]

    async def _commit(self, batch: Sequence[Sequence[Row]]) -> None:
        """Keep all messages of a batch, or none: the Batcher's commit."""
        insertion = asyncio.create_task(self._insert([row for rows in batch for row in rows]))
        try:
            await asyncio.shield(insertion)
        except asyncio.CancelledError:
            # A COMMIT cannot be called back while it runs. Wait, so that the undo that follows finds what it did.
            await asyncio.wait((insertion,))
            raise

    async def _insert(self, rows: list[Row]) -> None:
        try:
            async with self.engine.begin() as connection:
                await connection.execute(insert(self.table), rows)
        except (IntegrityError, DataError, OverflowError) as error:
            raise BatchRefusedError(_cause(error)) from error

    async def _take_back(self, rows: Sequence[Row]) -> None:
        """Remove the rows of one message, to the end even if we are cancelled meanwhile."""
        removal = asyncio.create_task(self._remove_or_log(rows))
        self._removals.add(removal)
        removal.add_done_callback(self._removals.discard)
        await asyncio.shield(removal)

    async def _remove_or_log(self, rows: Sequence[Row]) -> None:
        try:
            await self._remove([rows])
        except SQLAlchemyError as error:
            self._log_undo_error(error)

    async def _remove(self, batch: Sequence[Sequence[Row]]) -> None:
        """Remove the rows of these messages, and no others: the Batcher's undo."""
        statement = delete(self.table).where(
            self.table.c.hash == bindparam("of_hash"), self.table.c.recipient == bindparam("of_recipient")
        )
        keys = [{"of_hash": row["hash"], "of_recipient": row["recipient"]} for rows in batch for row in rows]
        async with self.engine.begin() as connection:
            await connection.execute(statement, keys)

    def _log_undo_error(self, error: Exception) -> None:
        self.log.error("rows of mail that was not accepted could not be removed", cause=_cause(error))


def _table(name: str) -> Table:
    """Return the table: names, order and widths of the columns are those of the Go program.

    ``to`` is the recipient at ``primary_mail_host``, ``recipient`` the address as the client gave it; ``body`` is
    "gzip" if ``mail`` is compressed; ``ip_addr`` is the client's address in 4 or 16 octets; ``date`` is UTC.
    ``spam_score`` and ``has_attach`` are left for others.
    """
    return Table(
        name,
        MetaData(),
        Column("mail_id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
        Column("date", DateTime, nullable=False, index=True),
        Column("from", String(256), nullable=False),
        Column("to", String(256), nullable=False, index=True),
        Column("subject", String(255), nullable=False),
        Column("body", Text, nullable=False),
        Column("mail", LargeBinary, nullable=False),
        Column("spam_score", Float, nullable=False),
        Column("hash", String(32), nullable=False, index=True),
        Column("content_type", String(64), nullable=False),
        Column("recipient", String(255), nullable=False),
        Column("has_attach", Integer, nullable=False),
        Column("ip_addr", LargeBinary(16), nullable=False),
        Column("return_path", String(255), nullable=False),
        Column("is_tls", Boolean, nullable=False),
        Column("message_id", String(256), nullable=False),
        Column("reply_to", String(256), nullable=False),
        Column("sender", String(256), nullable=False),
        sqlite_autoincrement=True,
    )


def _columns(connection: Connection, table: str) -> set[str]:
    """Return the names of the table's columns; none if there is no such table."""
    inspector = inspect(connection)
    return {column["name"] for column in inspector.get_columns(table)} if inspector.has_table(table) else set()


def _make_file(path: Path, create: bool) -> None:
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


def _prepare(connection: Any, _: object) -> None:
    """Set up a new connection: a write-ahead log that is on disk when COMMIT returns, and five seconds for a lock."""
    cursor = connection.cursor()
    try:
        for pragma in ("busy_timeout = 5000", "journal_mode = WAL", "synchronous = FULL"):
            cursor.execute(f"PRAGMA {pragma}")
    finally:
        cursor.close()


def _is_full(error: SQLAlchemyError) -> bool:
    """Whether the database says that there is no room: on the disk, or in its file."""
    cause = error.orig if isinstance(error, DBAPIError) else None
    return getattr(cause, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL


def _cause(error: Exception) -> str:
    """Return what the database said, without the statement that SQLAlchemy adds."""
    return str(error.orig if isinstance(error, DBAPIError) else error)


def _packed(ip: str) -> bytes:
    """Return the address in network order, 4 or 16 octets; nothing if it is none."""
    try:
        return ip_address(ip).packed
    except ValueError:
        return b""


def _in_brackets(value: str) -> str:
    """Return what stands in the last pair of angle brackets, the address of a header field; else all of it."""
    return value.rpartition("<")[2].partition(">")[0] if "<" in value else value


def _cut(text: str, width: int) -> str:
    """Return the text as a column takes it: so many characters, without NUL and lone surrogates."""
    return text[:width].replace("\0", "").encode("utf-8", "replace").decode("utf-8")
