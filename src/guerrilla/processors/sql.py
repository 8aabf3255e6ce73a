"""Sql: keeps mail in a database: MySQL or MariaDB, PostgreSQL, or SQLite, which needs nothing to be installed.

This file has the keys and the answers; rows, transactions and all that may go wrong with them are `guerrilla.stores`'.
"""

from __future__ import annotations

import socket

from pydantic import ConfigDict, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from guerrilla.backends.processor import CallNext, Duration, Envelope, Field, Processor, ProcessorConfig, Reply
from guerrilla.stores.base import Bodies, MailStore
from guerrilla.stores.dsn import kind_of, read_dsn
from guerrilla.stores.sql import SqlStore
from guerrilla.stores.sql_answer import keep_and_pass
from guerrilla.stores.sql_table import checked_name, insertion, mail_table
from guerrilla.stores.sql_writer import SqlSettings, SqlWriter


class SqlConfig(ProcessorConfig):
    """The keys of Sql."""

    model_config = ConfigDict(hide_input_in_errors=True)

    mail_table: str = Field(default="new_mail", description="The table: letters, digits and _, at most 64.")
    sql_driver: str = Field(
        default="sqlite",
        description='Which database: "mysql" or "mariadb", "postgres" or "pgx", "sqlite".',
    )
    sql_dsn: str = Field(
        default="guerrilla.db",
        validate_default=True,
        repr=False,
        description="Where it is: user:password@tcp(host:3306)/name or user:password@unix(/socket)/name for MySQL, "
        "host=… user=… password=… dbname=… or postgres://… for PostgreSQL, the path of the file for SQLite (a relative "
        "one starts at the working folder), or a URL of SQLAlchemy.",
    )
    sql_insert: str = Field(
        default="", description='Your own "INSERT INTO table (columns) VALUES", for a table with other columns.'
    )
    sql_values: str = Field(
        default="",
        description='What follows it for one row: "(NOW(), ?, …)", with 14 placeholders, ? or $1 to $14, for to, from, '
        "subject, body, mail, hash, content_type, recipient, ip_addr, return_path, is_tls, message_id, reply_to, "
        "sender. The table needs the columns hash and recipient.",
    )
    sql_max_open_conns: int = Field(default=0, ge=0, description="Connections at most; 0 for a few. SQLite has one.")
    sql_max_idle_conns: int = Field(default=2, ge=0, description="Connections that are kept while nothing is to do.")
    sql_max_conn_lifetime: Duration = Field(
        default=0.0, description="How long a connection is used; empty or 0 for as long as it lasts."
    )
    primary_mail_host: str = Field(
        default_factory=socket.gethostname,
        min_length=1,
        max_length=255,
        description="The host name in the column `to`; as a default, the machine's own.",
    )
    sql_create_table: bool | None = Field(
        default=None,
        description="Make the table at the start if it is not there, for SQLite the file too. As a default, only "
        "SQLite does; `guerrillad schema-sql` prints what you run yourself.",
    )

    @field_validator("mail_table")
    @classmethod
    def _check_table(cls, value: str) -> str:
        return checked_name(value)

    @field_validator("sql_driver")
    @classmethod
    def _check_driver(cls, value: str) -> str:
        return kind_of(value)

    @field_validator("sql_dsn", mode="before")
    @classmethod
    def _check_dsn(cls, value: object, info: ValidationInfo) -> object:
        """Read it, and show nothing of it: the password may be anywhere."""
        try:
            if not isinstance(value, str):
                raise ValueError("a text in double quotes is meant")
            if "sql_driver" in info.data:
                read_dsn(info.data["sql_driver"], value)
        except ValueError as error:
            raise PydanticCustomError(
                "refused", "{found}: {meant}", {"found": "not usable", "meant": str(error)}
            ) from None
        return value

    @field_validator("sql_values")
    @classmethod
    def _check_values(cls, value: str, info: ValidationInfo) -> str:
        if value:
            insertion(mail_table("mail"), info.data.get("sql_driver", "sqlite"), "", value)
        return value

    @field_validator("sql_max_conn_lifetime", mode="before")
    @classmethod
    def _no_lifetime(cls, value: object) -> object:
        return value or "0"

    def settings(self) -> SqlSettings:
        """Return what they say about the table."""
        return SqlSettings(
            dsn=read_dsn(self.sql_driver, self.sql_dsn),
            table=self.mail_table,
            host=self.primary_mail_host,
            create_table=self.sql_driver == "sqlite" if self.sql_create_table is None else self.sql_create_table,
            sql_insert=self.sql_insert,
            sql_values=self.sql_values,
            max_open=self.sql_max_open_conns,
            max_idle=self.sql_max_idle_conns,
            lifetime=self.sql_max_conn_lifetime,
        )


class Sql(Processor[SqlConfig]):
    """Keeps the message in a database: one row per recipient in ``mail_table``, octet for octet.

    Reads ``delivery_header`` and ``data``, or ``values["zlib-compressor"]`` if Compressor is listed before it (then
    the column ``body`` says "gzip" or "zstd"); after Redis ``body`` says "redis", and ``mail`` stays empty. Reads
    ``hashes``, ``subject``, ``header`` and what the dialogue learnt. Sets ``queued_id`` to the first hash, if Hasher is
    listed. It answers only when the rows are committed and on disk, many messages in one transaction; when a later
    processor refuses the message, they are removed again. A full disk is answered 452, any other fault of the database
    451.
    """

    def __init__(self, config: SqlConfig) -> None:
        super().__init__(config)
        self.writer = SqlWriter(config.settings())

    async def initialize(self) -> None:
        """Connect, and check the table. Raises RuntimeError; a server that is away is logged, and may come later."""
        await self.writer.open(self.log)

    async def shutdown(self) -> None:
        """Finish what is under way and close the database."""
        await self.writer.close()

    async def save_mail(self, envelope: Envelope, call_next: CallNext) -> Reply:
        """Commit the rows, then pass on; take them back if the rest of the line does not keep the message."""
        return await keep_and_pass(self.writer, envelope, call_next, self.log)

    def mail_store(self, bodies: Bodies | None = None) -> MailStore:
        """Return the table to be read; ``bodies`` has the octets of rows that say "redis"."""
        settings = self.writer.settings
        return SqlStore(settings.dsn, settings.table, bodies)
