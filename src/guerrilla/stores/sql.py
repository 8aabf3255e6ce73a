"""Reading mail back from a database: what is in the table that a processor fills, and the octets, wherever they are.

A message has a row for each recipient. With Hasher, each has a key of its own; without it, or with the octets in Redis,
they share one, and are shown as one message, to the first of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

from sqlalchemy import ColumnElement, Connection, Row, Select, delete, exists, func, or_, select

from guerrilla.stores.base import Bodies, MailSummary
from guerrilla.stores.compression import decompressed, decompressed_body
from guerrilla.stores.dsn import Dsn
from guerrilla.stores.sql_database import Database, make_sqlite_file
from guerrilla.stores.sql_letter import clean
from guerrilla.stores.sql_table import create_statements, mail_table

__all__ = ["Bodies", "SqlStore", "create_statements"]

ResultT = TypeVar("ResultT")

_SECONDS: Final = 30.0
"""How long the database may take to answer a reader."""

_HASH_WIDTH: Final = 32
"""Characters of the column ``hash``."""


class SqlStore:
    """The mail in one table, as a MailStore; ``bodies`` is asked for the octets that are in Redis.

    Every method raises those of ``STORE_ERRORS`` when the database is away.

    Raises:
        ValueError: if ``table`` is no name.
        RuntimeError: if the driver of the database is not installed.
    """

    def __init__(self, dsn: Dsn, table: str, bodies: Bodies | None = None) -> None:
        self._table = mail_table(table)
        self._bodies = bodies
        self._database = Database(dsn, max_open=4)

    async def list(self, *, limit: int = 50, before: str | None = None) -> Sequence[MailSummary]:
        """Return the newest messages, newest first; with ``before``, those that come after the one with that key."""
        columns = self._table.c
        earlier = self._table.alias()
        # The first row of each key: the others are the same message, to other recipients.
        statement = self._summaries().where(
            ~exists().where(earlier.c.hash == columns.hash, earlier.c.mail_id < columns.mail_id)
        )
        if before is not None:
            if not _is_key(before):
                return []
            first = select(func.min(columns.mail_id)).where(columns.hash == before).scalar_subquery()
            statement = statement.where(columns.mail_id < first)
        return [_summary(row) for row in await self._rows(statement.limit(limit))]

    async def search(self, text: str, *, limit: int = 50) -> Sequence[MailSummary]:
        """Return the newest messages that have the text in sender, recipient or subject, without regard to case.

        Of several recipients who share a key, those who match take a place each, and the newest is shown.
        """
        columns = self._table.c
        wanted = clean(text, 1000)
        found: Sequence[ColumnElement[bool]] = [
            column.icontains(wanted, autoescape=True)
            for column in (columns["from"], columns.to, columns.recipient, columns.subject)
        ]
        rows = await self._rows(self._summaries().where(or_(*found)).limit(limit))
        summaries: dict[str, MailSummary] = {}
        for row in rows:
            summaries.setdefault(row.hash, _summary(row))
        return [*summaries.values()]

    async def get(self, key: str) -> bytes | None:
        """Return the raw message, delivery header and octets, decompressed; None if it is not there, or not any more.

        Raises:
            zlib.error: if it should be compressed and cannot be decompressed.
            RuntimeError: if that needs a library that is not installed.
        """
        columns = self._table.c
        wanted = select(columns.body, columns.mail).where(columns.hash == key).limit(1)
        rows = await self._rows(wanted) if _is_key(key) else []
        if not rows:
            return None
        body, mail = rows[0].body, bytes(rows[0].mail)
        if body == "redis":
            octets = await self._bodies.get(key) if self._bodies is not None else None
            return None if octets is None else await decompressed_body(octets)
        return await decompressed(mail) if body in ("gzip", "zstd") else mail

    async def delete(self, key: str) -> bool:
        """Remove the message for good, with its octets in Redis, for all who share its key; return if it was there."""
        if not _is_key(key):
            return False
        columns = self._table.c

        def work(connection: Connection) -> tuple[int, bool]:
            with connection.begin():
                in_redis = connection.execute(
                    select(columns.hash).where(columns.hash == key, columns.body == "redis").limit(1)
                ).first()
                removed = connection.execute(delete(self._table).where(columns.hash == key))
            return removed.rowcount, in_redis is not None

        removed, in_redis = await self._run(work)
        if in_redis and self._bodies is not None:
            await self._bodies.delete([key])
        return removed > 0

    async def close(self) -> None:
        """Close the connections. May be called twice."""
        await self._database.close()
        if self._bodies is not None:
            await self._bodies.close()

    def _summaries(self) -> Select[Any]:
        columns = self._table.c
        size = func.length(columns.mail).label("size")
        sender = columns["from"].label("sender")
        wanted = (columns.hash, columns.date, sender, columns.recipient, columns.subject, size)
        return select(*wanted).order_by(columns.mail_id.desc())

    async def _rows(self, statement: Select[Any]) -> Sequence[Row[Any]]:
        return await self._run(lambda connection: connection.execute(statement).all())

    async def _run(self, work: Callable[[Connection], ResultT]) -> ResultT:
        database = self._database
        if database.kind == "sqlite":
            # Who reads makes no file: SQLite would, and one that everyone may read.
            await asyncio.to_thread(make_sqlite_file, Path(str(database.dsn)), create=False)
        return await database.run(work, seconds=_SECONDS)


def _is_key(text: str) -> bool:
    """Whether the column ``hash`` can hold the text: cut to its width, it would name another message."""
    return clean(text, _HASH_WIDTH) == text


def _summary(row: Row[Any]) -> MailSummary:
    date: datetime = row.date
    return MailSummary(row.hash, date.replace(tzinfo=UTC), row.sender, row.recipient, row.subject, row.size)
