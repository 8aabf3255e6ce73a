"""SQLite alone: rows as Sql writes them, from a loop that does nothing else.

    python -m benchmarks.embedded FOLDER MESSAGES ROWS

It puts so many messages of 2 kB into a new database, ROWS in each transaction, the last perhaps beyond MESSAGES, and
prints as JSON how many there were, and the seconds that they took, by the clock and of the processor. Some go in before
the watch is started, as many as are sent to a server. Table, settings, driver and statement are the server's own.
"""

from __future__ import annotations

import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from benchmarks.clients import WARM_UP
from sqlalchemy import Connection, Insert

from guerrilla.stores.dsn import read_dsn
from guerrilla.stores.sql_database import Database, make_sqlite_file
from guerrilla.stores.sql_table import COLUMNS, HASH, DriverInsert, create_statements, insertion, mail_table

MAIL_SIZE: Final = 2_380
"""Octets of a message of 2,048 with what Header puts in front of it."""
TABLE: Final = "new_mail"
_MESSAGE_ID: Final = COLUMNS.index("message_id")


def opened(path: Path) -> Connection:
    """Make the database as the server makes it."""
    make_sqlite_file(path, True)
    connection = Database(read_dsn("sqlite", str(path))).engine.connect()
    for statement in create_statements("sqlite", TABLE):
        connection.exec_driver_sql(statement)
    connection.commit()
    return connection


class Batches:
    """Puts batches of so many rows into the table."""

    def __init__(self, connection: Connection, rows: int) -> None:
        statement = insertion(mail_table(TABLE), "sqlite")
        assert isinstance(statement, Insert)
        insert = DriverInsert(statement, connection.dialect)
        self._connection = connection  # which closes the driver's when it is let go of
        self._driver: Any = connection.connection.driver_connection
        self._text = insert.text_of(rows)
        self._values = insert.values_of([_row()] * rows)
        self.written = 0
        """Rows so far."""

    def write(self) -> None:
        """Write one, with a name of its own for each row: they ascend, as those of the server do."""
        values = self._values
        for at in range(0, len(values), len(COLUMNS)):
            self.written += 1
            name = f"{self.written:032x}"
            values[at + HASH] = name
            values[at + _MESSAGE_ID] = f"{name}.recipient@example.com"
        self._driver.execute(self._text, values)  # and the driver begins a transaction before it
        self._driver.commit()


def _row() -> list[Any]:
    sender, recipient = "sender@example.org", "recipient@example.com"
    values = {
        "date": datetime.now(UTC),
        "from": sender,
        "to": recipient,
        "mail": b"x" * MAIL_SIZE,
        "spam_score": 0.0,
        "recipient": recipient,
        "has_attach": 0,
        "ip_addr": bytes((127, 0, 0, 1)),
        "return_path": sender,
        "is_tls": False,
    }
    return [values.get(name, "") for name in COLUMNS]


def main() -> None:
    """Measure, and say what was seen."""
    folder, messages, rows = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    batches = Batches(opened(folder / "alone.db"), rows)
    for _ in range(0, WARM_UP, rows):
        batches.write()
    before = batches.written
    cpu, clock = time.process_time(), time.perf_counter()
    for _ in range(0, messages, rows):
        batches.write()
    seconds, cpu_seconds = time.perf_counter() - clock, time.process_time() - cpu
    print(json.dumps({"messages": batches.written - before, "seconds": seconds, "cpu_seconds": cpu_seconds}))


if __name__ == "__main__":
    main()
