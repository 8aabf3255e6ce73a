"""Sql: keeps mail in a database: MySQL or MariaDB, PostgreSQL, or SQLite, which needs nothing to be installed.

This file has the keys; answers, rows, transactions and all that may go wrong with them are `guerrilla.stores`'.
"""

from __future__ import annotations

from dataclasses import replace

from pydantic import ValidationInfo, field_validator

from guerrilla.backends.processor import Field
from guerrilla.stores.sql_answer import TableProcessor
from guerrilla.stores.sql_keys import SqlKeys
from guerrilla.stores.sql_table import insertion, mail_table
from guerrilla.stores.sql_writer import SqlSettings


class SqlConfig(SqlKeys):
    """The keys of Sql."""

    sql_insert: str = Field(
        default="", description='Your own "INSERT INTO table (columns) VALUES", for a table with other columns.'
    )
    sql_values: str = Field(
        default="",
        description='What follows it for one row: "(NOW(), ?, …)", with 14 placeholders, ? or $1 to $14, for to, from, '
        "subject, body, mail, hash, content_type, recipient, ip_addr, return_path, is_tls, message_id, reply_to, "
        "sender. The table needs the columns hash and recipient.",
    )

    @field_validator("sql_values")
    @classmethod
    def _check_values(cls, value: str, info: ValidationInfo) -> str:
        if value:
            insertion(mail_table("mail"), info.data.get("sql_driver", "sqlite"), "", value)
        return value

    def settings(self) -> SqlSettings:
        """Return what they say about the table."""
        return replace(super().settings(), sql_insert=self.sql_insert, sql_values=self.sql_values)


class Sql(TableProcessor[SqlConfig]):
    """Keeps the message in a database: one row per recipient in ``mail_table``, octet for octet.

    Reads ``delivery_header`` and ``data``, or ``values["zlib-compressor"]`` if Compressor is listed before it (then
    the column ``body`` says "gzip" or "zstd"); after Redis ``body`` says "redis", and ``mail`` stays empty. Reads
    ``hashes``, ``subject``, ``header`` and what the dialogue learnt. Sets ``queued_id`` to the first hash, if Hasher is
    listed. It answers only when the rows are committed and on disk, many messages in one transaction; when a later
    processor refuses the message, they are removed again. A full disk is answered 452, any other fault of the database
    451.
    """
