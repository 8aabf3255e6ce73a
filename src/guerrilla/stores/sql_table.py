"""The table of mail: its columns, how it is made, and how a row gets in.

Names, order and widths of the columns are those of the Go program, so that its tables, and what reads them, go on
working.
Nothing here knows of connections.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Float,
    Insert,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TextClause,
    bindparam,
    insert,
    text,
)
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.schema import CreateIndex, CreateTable, ExecutableDDLElement
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.types import TypeEngine

from guerrilla.stores.dsn import Kind, kind_of
from guerrilla.stores.sql_values import Adapter, Adapters, Moments, Row, octets, without_zone

COLUMNS: Final = (
    "date", "from", "to", "subject", "body", "mail", "spam_score", "hash", "content_type", "recipient", "has_attach",
    "ip_addr", "return_path", "is_tls", "message_id", "reply_to", "sender",
)  # fmt: skip
"""All but the key, as the table has them."""

MAIL: Final = COLUMNS.index("mail")
HASH: Final = COLUMNS.index("hash")
RECIPIENT: Final = COLUMNS.index("recipient")

BOUND: Final = (
    "to", "from", "subject", "body", "mail", "hash", "content_type", "recipient", "ip_addr", "return_path", "is_tls",
    "message_id", "reply_to", "sender",
)  # fmt: skip
"""The columns that the Go program binds, in the order in which ``sql_values`` has its placeholders."""

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_DIALECTS: Final[dict[Kind, type[Dialect]]] = {
    "mysql": mysql.dialect,
    "postgres": postgresql.dialect,
    "sqlite": sqlite.dialect,
}

# What may hold a question mark that is none of ours, then the placeholders, then what text() would take for one.
_TOKEN = re.compile(r"('(?:[^'\\]|\\.|'')*'|\"[^\"]*\"|`[^`]*`)|(\?)|\$([0-9]{1,3})", re.DOTALL)
_ENDS_WITH_VALUES = re.compile(r".*\bVALUES\s*", re.IGNORECASE | re.DOTALL)


def checked_name(value: str) -> str:
    """Return the name of a table.

    Raises:
        ValueError: if it is none.
    """
    if not _IDENTIFIER.fullmatch(value):
        raise ValueError("a table name is meant: a letter or _, then letters, digits and _, at most 64 in all")
    return value


def mail_table(name: str) -> Table:
    """Return the table.

    ``to`` is the recipient at ``primary_mail_host``, ``recipient`` the address as the client gave it; ``hash`` names
    the message; ``body`` is "gzip" or "zstd" if ``mail`` is compressed, "redis" if the octets are in Redis; ``ip_addr``
    is the client's address in 4 or 16 octets; ``date`` is UTC. ``spam_score`` and ``has_attach`` are left for others.
    """
    return Table(
        checked_name(name),
        MetaData(),
        Column("mail_id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
        Column("date", DateTime, nullable=False, index=True),
        Column("from", String(256), nullable=False),
        Column("to", String(256), nullable=False, index=True),
        Column("subject", String(255), nullable=False),
        Column("body", Text, nullable=False),
        Column("mail", LargeBinary().with_variant(mysql.LONGBLOB, "mysql", "mariadb"), nullable=False),
        Column("spam_score", Float, nullable=False),
        Column("hash", String(32), nullable=False, index=True),
        Column("content_type", String(64), nullable=False),
        Column("recipient", String(255), nullable=False),
        Column("has_attach", Integer, nullable=False),
        Column("ip_addr", LargeBinary(16).with_variant(mysql.VARBINARY(16), "mysql", "mariadb"), nullable=False),
        Column("return_path", String(255), nullable=False),
        Column("is_tls", Boolean, nullable=False),
        Column("message_id", String(256), nullable=False),
        Column("reply_to", String(256), nullable=False),
        Column("sender", String(256), nullable=False),
        sqlite_autoincrement=True,
        mysql_engine="InnoDB",
        mysql_charset="utf8mb4",
        mariadb_engine="InnoDB",
        mariadb_charset="utf8mb4",
    )


def create_statements(driver: str, table: str) -> list[str]:
    """Return the statements that make the table and its indexes, for a ``sql_driver``.

    Raises:
        ValueError: if there is no such driver, or the name is none.
    """
    dialect = _DIALECTS[kind_of(driver)]()
    made = mail_table(table)
    indexes = sorted(made.indexes, key=lambda index: str(index.name))
    statements: list[ExecutableDDLElement] = [CreateTable(made), *map(CreateIndex, indexes)]
    return [str(each.compile(dialect=dialect)).strip() for each in statements]


def insertion(table: Table, kind: Kind, sql_insert: str = "", sql_values: str = "") -> Insert | TextClause:
    """Return the statement that inserts a row: our own, or the operator's text with values bound to its placeholders.

    ``sql_insert`` is ``INSERT INTO name (columns) VALUES``, ``sql_values`` what follows it for one row, with ``?`` or
    ``$1`` to ``$14`` for the columns of ``BOUND``; each has the Go program's default when the other is given alone.

    Raises:
        ValueError: if the placeholders are not as many as the values.
    """
    if not sql_insert and not sql_values:
        return insert(table).inline()
    # In the order of the Go program's statement, in which "to" stands before "from".
    columns = ["date", "to", "from", *COLUMNS[3:]]
    if not sql_insert:
        quote = _DIALECTS[kind]().identifier_preparer.quote
        sql_insert = f"INSERT INTO {quote(table.name)} ({', '.join(map(quote, columns))})"
    if not _ENDS_WITH_VALUES.fullmatch(sql_insert):
        sql_insert += " VALUES"
    values = _with_names(sql_values) if sql_values else f"(:{', :'.join(columns)})"
    statement = text(f"{_literal(sql_insert)} {values}")
    return statement if sql_values else statement.bindparams(bindparam("date", type_=DateTime()))


class DriverInsert:
    """Our own INSERT as a driver takes it: SQLAlchemy's text, made once, and what it would make of the values of a row.

    To have it do so anew for every batch would cost as much as the server does.
    """

    def __init__(self, statement: Insert, dialect: Dialect) -> None:
        compiled = statement.compile(dialect=dialect, column_keys=COLUMNS)
        assert isinstance(compiled, SQLCompiler)
        assert compiled.positiontup == [*COLUMNS]
        self.text = str(compiled)
        self._marks = self.text.rpartition(" VALUES ")[2]
        self._texts: dict[int, str] = {}
        self._adapters = Adapters([_adapter(statement.table.c[name].type, dialect) for name in COLUMNS])

    def text_of(self, rows: int) -> str:
        """Return the statement for so many rows."""
        found = self._texts.get(rows)
        if found is None:
            found = self._texts[rows] = self.text + f", {self._marks}" * (rows - 1)
        return found

    def values(self, row: Row) -> tuple[Any, ...]:
        """Return what is bound to the placeholders for one row."""
        return self._adapters.of_row(row)

    def values_of(self, rows: Sequence[Row]) -> list[Any]:
        """Return what is bound to the placeholders for several rows, one after the other."""
        return self._adapters.of_rows(rows)


def _adapter(kind: TypeEngine[Any], dialect: Dialect) -> Adapter | None:
    """Return what makes of a value what the driver takes, if anything has to be made of it."""
    if isinstance(kind, DateTime):
        return Moments().write if dialect.name == "sqlite" else without_zone
    if dialect.name != "sqlite":
        return kind.dialect_impl(dialect).bind_processor(dialect)
    return next((adapt for of, adapt in _SQLITE_ADAPTERS if isinstance(kind, of)), None)


_SQLITE_ADAPTERS: Final[tuple[tuple[type[TypeEngine[Any]], Adapter], ...]] = (
    (LargeBinary, octets),
    (Boolean, int),
)
"""What makes of a value what SQLite's driver takes as it is: of others it asks itself, in vain, how to adapt them."""


def _with_names(values: str) -> str:
    """Replace the operator's placeholders by the names of what is bound to them."""
    marks = 0
    numbers: list[int] = []
    pieces: list[str] = []
    at = 0
    for match in _TOKEN.finditer(values):
        pieces.append(_literal(values[at : match.start()]))
        at = match.end()
        if match[1]:
            pieces.append(_literal(match[1]))
            continue
        marks += match[2] is not None
        number = marks if match[2] else int(match[3])
        numbers.append(number)
        pieces.append(f":{BOUND[number - 1]}" if 0 < number <= len(BOUND) else "")
    pieces.append(_literal(values[at:]))
    if {*numbers} != {*range(1, len(BOUND) + 1)} or marks not in (0, len(numbers)):
        raise ValueError(f"{len(BOUND)} placeholders are meant, for {', '.join(BOUND)}; there are {len(numbers)}")
    return "".join(pieces)


def _literal(piece: str) -> str:
    """Return the text as text() passes it on unchanged."""
    return piece.replace(":", "\\:")
