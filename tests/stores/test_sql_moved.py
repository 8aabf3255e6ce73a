"""A SQLite file that is moved, deleted or replaced while it is in use: no mail counts as kept that nobody finds."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from sqlalchemy import Connection
from structlog.typing import FilteringBoundLogger
from tests.stores.sql_databases import EmptyDatabase, Letters, empty_database

from guerrilla.envelope import Envelope
from guerrilla.stores.sql_errors import Verdict
from guerrilla.stores.sql_writer import NotKeptError, SqlWriter


@pytest.fixture
def file(request: pytest.FixtureRequest, tmp_path: Path) -> EmptyDatabase:
    return empty_database("sqlite", request, tmp_path)


@pytest.fixture
async def writer(file: EmptyDatabase, sql_log: FilteringBoundLogger) -> AsyncIterator[SqlWriter]:
    """A writer on the file, which makes the table."""
    writer = SqlWriter(file.settings())
    await writer.open(sql_log)
    yield writer
    await writer.close()


async def put(writer: SqlWriter, envelope: Envelope) -> None:
    async with await writer.keep(envelope) as kept:
        kept.confirm()


def subjects_in(path: Path) -> list[str]:
    """Read a file by itself, without a log that lies elsewhere."""
    connection = sqlite3.connect(path)
    try:
        return [row[0] for row in connection.execute("SELECT subject FROM new_mail ORDER BY mail_id")]
    finally:
        connection.close()


def delete_all(path: Path) -> None:
    for each in path.parent.glob(f"{path.name}*"):
        each.unlink()


def replace(path: Path) -> None:
    other = path.with_name("other.db")
    sqlite3.connect(other).close()
    os.replace(other, path)


@pytest.mark.parametrize(
    "away",
    [
        pytest.param(Path.unlink, id="deleted"),
        pytest.param(delete_all, id="deleted with its log"),
        pytest.param(lambda path: path.rename(path.with_name("old.db")), id="moved"),
        pytest.param(replace, id="replaced"),
    ],
)
async def test_gone(file: EmptyDatabase, writer: SqlWriter, letter: Letters, away: Callable[[Path], None]) -> None:
    """The message that meets it is not kept, and it is said what happened; the next is in the file at the path."""
    path = Path(file.place)
    await put(writer, letter(subject="before"))
    away(path)
    with pytest.raises(NotKeptError, match="was moved, deleted or replaced while it was in use") as caught:
        await put(writer, letter(subject="lost"))
    assert caught.value.verdict is Verdict.AWAY
    await put(writer, letter(subject="after"))
    await put(writer, letter(subject="later"))
    assert file.subjects() == {"after": 1, "later": 1}


async def test_new_file_is_private(file: EmptyDatabase, writer: SqlWriter, letter: Letters) -> None:
    """The file that is made in its place is, like the first, for its owner only."""
    Path(file.place).unlink()
    with pytest.raises(NotKeptError):
        await put(writer, letter())
    await put(writer, letter())
    assert stat.S_IMODE(os.stat(file.place).st_mode) == 0o600


async def test_moved_file_has_its_mail(file: EmptyDatabase, writer: SqlWriter, letter: Letters, tmp_path: Path) -> None:
    """A file that was moved alone has all mail that was kept before, and not the message that was refused."""
    await put(writer, letter(subject="before"))
    os.rename(file.place, tmp_path / "old.db")
    with pytest.raises(NotKeptError):
        await put(writer, letter(subject="refused"))
    assert subjects_in(tmp_path / "old.db") == ["before"]


async def test_moved_before_the_end(file: EmptyDatabase, writer: SqlWriter, letter: Letters, tmp_path: Path) -> None:
    """A file that was moved has its mail also if no message came after that."""
    await put(writer, letter(subject="before"))
    os.rename(file.place, tmp_path / "old.db")
    await writer.close()
    assert subjects_in(tmp_path / "old.db") == ["before"]


async def test_moved_file_has_its_table(file: EmptyDatabase, writer: SqlWriter, tmp_path: Path) -> None:
    """The table is in the file itself before the first message."""
    os.rename(file.place, tmp_path / "old.db")
    assert subjects_in(tmp_path / "old.db") == []


async def test_gone_at_commit(file: EmptyDatabase, writer: SqlWriter, letter: Letters) -> None:
    """A file that goes in the very moment of COMMIT keeps no mail either."""

    def remove(statement: str) -> None:
        if statement == "COMMIT":
            Path(file.place).unlink()

    def watch(connection: Connection) -> None:
        driver = connection.connection.driver_connection
        assert isinstance(driver, sqlite3.Connection)
        driver.set_trace_callback(remove)  # which is called before the statement is run

    await writer.database.run(watch)
    with pytest.raises(NotKeptError, match="was moved, deleted or replaced"):
        await put(writer, letter())
    await put(writer, letter(subject="after"))
    assert file.subjects() == {"after": 1}


async def test_not_to_be_made(
    file: EmptyDatabase, writer: SqlWriter, letter: Letters, sql_log: FilteringBoundLogger, tmp_path: Path
) -> None:
    """Without sql_create_table no file is made: mail is not kept until the file is back."""
    await writer.close()
    writer = SqlWriter(file.settings(create_table=False))
    await writer.open(sql_log)
    try:
        os.rename(file.place, tmp_path / "old.db")
        for cause in ("was moved, deleted or replaced", "No such file", "No such file"):
            with pytest.raises(NotKeptError, match=cause):
                await put(writer, letter())
        assert not Path(file.place).exists()
        os.rename(tmp_path / "old.db", file.place)
        await put(writer, letter(subject="back"))
    finally:
        await writer.close()
    assert file.subjects() == {"back": 1}
