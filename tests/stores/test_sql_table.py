"""The table can be made as it is printed; the operator's own statement takes the values in the Go program's order."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Dialect, Insert
from sqlalchemy.dialects import mysql, postgresql, sqlite
from tests.stores.sql_databases import EmptyDatabase

from guerrilla.stores.sql_table import (
    BOUND,
    COLUMNS,
    DriverInsert,
    checked_name,
    create_statements,
    insertion,
    mail_table,
)

MARKS = ", ".join("?" * 14)


def test_create_statements(database: EmptyDatabase) -> None:
    """What is printed for the operator makes the table with its indexes, in each database."""
    statements = create_statements(database.kind, "new_mail")
    for statement in statements:
        database.sql(statement)
    assert database.count() == 0
    assert len(statements) == 4
    assert [column.name for column in mail_table("new_mail").columns] == ["mail_id", *COLUMNS]


def test_mysql_columns() -> None:
    """In MySQL a mail may have 4 GB, and text is what a mail can have."""
    (table, *_) = create_statements("mariadb", "new_mail")
    assert "mail LONGBLOB NOT NULL" in table
    assert {*table.rpartition(")")[2].split()} == {"ENGINE=InnoDB", "CHARSET=utf8mb4"}


@pytest.mark.parametrize("name", ["", "a b", "new_mail\n", "`x`", "a;DROP TABLE b", "1a", "ä", "a" * 65])
def test_no_name(name: str) -> None:
    """What is no name never becomes one."""
    with pytest.raises(ValueError, match="a table name is meant"):
        checked_name(name)
    with pytest.raises(ValueError, match="a table name is meant"):
        create_statements("mysql", name)


def bound(sql_insert: str, sql_values: str) -> tuple[str, list[str]]:
    """Return the statement as MySQL is sent it, and the columns in the order of its placeholders."""
    compiled = insertion(mail_table("t"), "mysql", sql_insert, sql_values).compile(dialect=mysql.dialect())
    return str(compiled), list(compiled.positiontup or ())


def test_go_statement() -> None:
    """The Go program's own statement binds its 14 values in its order; quoted marks and colons are left alone."""
    statement, columns = bound(
        "INSERT INTO t (date, to, x) VALUES ", f"(NOW(), {MARKS.replace('?', '?', 5)}, 0, '?:a $9 50%', \"?\", `?`)"
    )
    assert columns == list(BOUND)
    assert statement.endswith(", 0, '?:a $9 50%%', \"?\", `?`)")
    assert statement.startswith("INSERT INTO t (date, to, x) VALUES  (NOW(), %s, ")


def test_numbered() -> None:
    """PostgreSQL's placeholders may stand in any order, and twice."""
    numbers = ", ".join(f"${number}" for number in range(14, 0, -1))
    statement = insertion(mail_table("t"), "postgres", "INSERT INTO t (x)", f"({numbers}, $1, NOW()::date)")
    dialect: Dialect = postgresql.dialect(paramstyle="numeric_dollar")  # type: ignore[no-untyped-call]
    text = str(statement.compile(dialect=dialect))
    assert text.startswith("INSERT INTO t (x) VALUES ($1, $2, ")
    assert text.endswith(", $14, $14, NOW()::date)")


@pytest.mark.parametrize("dialect", [mysql.dialect(), sqlite.dialect()], ids=["mysql", "sqlite"])
def test_own_statement_as_the_driver_takes_it(dialect: Dialect) -> None:
    """Every column but the key has one placeholder, and the values of a row are in their order, made fit."""
    table = mail_table("t")
    statement = insertion(table, "mysql")
    assert isinstance(statement, Insert)
    made = DriverInsert(statement, dialect)
    marks = ", ".join([("%s" if dialect.name == "mysql" else "?")] * len(COLUMNS))
    assert made.text.endswith(f" VALUES ({marks})")
    row: dict[str, object] = {name: name for name in COLUMNS}
    date = datetime(2024, 2, 3, 4, 5, 6)
    row |= {"date": date.replace(tzinfo=UTC), "spam_score": 0.5, "is_tls": True, "mail": b"m", "ip_addr": b"i"}
    written = {"date": "2024-02-03 04:05:06.000000" if dialect.name == "sqlite" else date}
    assert dict(zip(COLUMNS, made.values([*row.values()]), strict=True)) == row | written


def row_of(date: datetime) -> list[object]:
    """Return a row in which all else is blank."""
    return [date, *(False if name == "is_tls" else b"" for name in COLUMNS[1:])]


def test_moments_of_sqlite() -> None:
    """A moment is written as SQLAlchemy writes it, whatever was written before."""
    statement = insertion(mail_table("t"), "sqlite")
    assert isinstance(statement, Insert)
    made = DriverInsert(statement, sqlite.dialect())
    begin = datetime(2024, 12, 31, 23, 59, 58)
    steps = [0, 999_999, 1_000_000, 1_000_001, 1_999_999, 2_000_000, 1_999_999, 0, 86_400_000_000]
    moments = [begin + timedelta(microseconds=step) for step in steps] + [datetime.min, datetime.max]
    rows = [row_of(moment.replace(tzinfo=UTC)) for moment in moments]
    assert made.values_of(rows)[:: len(COLUMNS)] == [each.isoformat(" ", "microseconds") for each in moments]


def test_a_moment_of_a_class_that_writes_itself_otherwise() -> None:
    """A processor may have put it there, since libraries have classes of their own."""

    class Moment(datetime):
        def isoformat(self, *_: object, **__: object) -> str:
            return "now"

    statement = insertion(mail_table("t"), "sqlite")
    assert isinstance(statement, Insert)
    row = row_of(Moment(2024, 2, 3, 4, 5, 6, tzinfo=UTC))
    assert DriverInsert(statement, sqlite.dialect()).values(row)[0] == "2024-02-03 04:05:06.000000"


def test_one_of_both() -> None:
    """Given alone, each of the two keys has the Go program's default for the other; VALUES may be left out."""
    statement, columns = bound("INSERT INTO mine (x)", "")
    assert statement.startswith("INSERT INTO mine (x) VALUES (%s, ")
    assert columns == ["date", "to", "from", *COLUMNS[3:]]
    statement, columns = bound("", f"(NOW(), {MARKS})")
    assert statement.startswith("INSERT INTO t (date, `to`, `from`, subject, ")
    assert columns == list(BOUND)


@pytest.mark.parametrize(
    "values", ["(?)", f"({MARKS}, ?)", "('?')", f"({MARKS}, $1)", "($1)", f"($0, {MARKS})", f"($15, {MARKS})"]
)
def test_wrong_number(values: str) -> None:
    """Placeholders that are not as many as the values are refused, with what is meant."""
    with pytest.raises(ValueError, match="14 placeholders are meant, for to, from, subject, body, mail, hash"):
        insertion(mail_table("t"), "mysql", "", values)


@given(st.text(alphabet="?:$%'\"`\\a1( ", max_size=60))
def test_any_text(text: str) -> None:
    """Whatever stands around the placeholders, it is refused, or sent with the values in their places."""
    try:
        _, columns = bound("", f"({MARKS}, {text})")
    except ValueError:
        return
    assert Counter(columns) == Counter(BOUND)
