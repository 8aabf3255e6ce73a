"""An empty database of each kind, looked into with the server's own client, and envelopes to put into it."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from tests.private_servers import DatabaseServer

from guerrilla.envelope import Address, Envelope
from guerrilla.stores.dsn import Dsn, read_dsn
from guerrilla.stores.sql_writer import SqlSettings

Letters: TypeAlias = Callable[..., Envelope]

_SERVERS = {"mysql": "mariadb", "postgres": "postgres"}
_MD5 = {"mysql": "MD5(mail)", "postgres": "md5(mail)"}


@dataclass(frozen=True)
class EmptyDatabase:
    """A database without a table. ``server`` is None for SQLite."""

    kind: str
    dsn: Dsn
    place: str
    server: DatabaseServer | None = None

    def sql(self, statement: str) -> list[list[str]]:
        """Run a statement over a connection that is not ours; return the rows, as text."""
        if self.server is not None:
            lines = self.server.sql(statement, self.place).splitlines()
            return [line.split("\t") for line in lines]
        connection = sqlite3.connect(self.place)
        try:
            with connection:
                return [[str(value) for value in row] for row in connection.execute(statement).fetchall()]
        finally:
            connection.close()

    def count(self, table: str = "new_mail") -> int:
        return int(self.sql(f"SELECT count(*) FROM {table}")[0][0])

    def subjects(self) -> Counter[str]:
        """How many rows there are of each subject."""
        return Counter(row[0] for row in self.sql("SELECT subject FROM new_mail"))

    def digests(self) -> list[list[str]]:
        """The length and the MD5 of each mail, in the order in which they came."""
        return self.sql(f"SELECT LENGTH(mail), {_MD5[self.kind]} FROM new_mail ORDER BY mail_id")

    def settings(self, **changes: Any) -> SqlSettings:
        settings = SqlSettings(dsn=self.dsn, table="new_mail", host="mx.example.com", create_table=True)
        return replace(settings, **changes)


def empty_database(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> EmptyDatabase:
    if kind == "sqlite":
        place = str(tmp_path / "mail.db")
        return EmptyDatabase(kind, read_dsn(kind, place), place)
    server: DatabaseServer = request.getfixturevalue(_SERVERS[kind])
    place = server.create_database()
    dsn = server.go_dsn(place)
    dsn += "?timeout=2s" if kind == "mysql" else "&connect_timeout=2"
    return EmptyDatabase(kind, read_dsn(kind, dsn), place, server)


def letters() -> Letters:
    """Return what makes envelopes: ``letter(b"octets", "joe", "ann", subject="x")``; each has a key of its own."""
    numbers = count(1)

    def letter(data: bytes = b"Subject: x\r\n\r\nHi.\r\n", *users: str, **changes: Any) -> Envelope:
        envelope = Envelope(
            remote_ip="192.0.2.1",
            mail_from=Address("s", "example.org"),
            rcpt_to=[Address(user, "example.com") for user in users or ("joe",)],
            queued_id=f"{next(numbers):032}",
            received_at=datetime(2024, 2, 3, 4, 5, 6, tzinfo=UTC),
            data=data,
        )
        return replace(envelope, **changes)

    return letter
