"""The keys of the configuration that the processors have in common that keep mail in a database.

Nothing is shown of a value that is refused: the password may be anywhere in it.
"""

from __future__ import annotations

import socket

from pydantic import ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from guerrilla.backends.processor import Duration, ProcessorConfig
from guerrilla.stores.dsn import kind_of, read_dsn
from guerrilla.stores.sql_table import checked_name
from guerrilla.stores.sql_writer import SqlSettings


class TableKeys(ProcessorConfig):
    """What the table is called, and what is in its rows."""

    model_config = ConfigDict(hide_input_in_errors=True)

    mail_table: str = Field(default="new_mail", description="The table: letters, digits and _, at most 64.")
    primary_mail_host: str = Field(
        default_factory=socket.gethostname,
        min_length=1,
        max_length=255,
        description="The host name in the column `to`; as a default, the machine's own.",
    )

    @field_validator("mail_table")
    @classmethod
    def _check_table(cls, value: str) -> str:
        return checked_name(value)

    def settings(self) -> SqlSettings:
        """Return what the keys say about the table; where it is, each processor is told by keys of its own."""
        raise NotImplementedError


class SqlKeys(TableKeys):
    """Where the database is, and how many connections it gets."""

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
    sql_max_open_conns: int = Field(default=0, ge=0, description="Connections at most; 0 for a few. SQLite has one.")
    sql_max_idle_conns: int = Field(default=2, ge=0, description="Connections that are kept while nothing is to do.")
    sql_max_conn_lifetime: Duration = Field(
        default=0.0, description="How long a connection is used; empty or 0 for as long as it lasts."
    )
    sql_create_table: bool | None = Field(
        default=None,
        description="Make the table at the start if it is not there, for SQLite the file too. As a default, only "
        "SQLite does; `guerrillad schema-sql` prints what you run yourself.",
    )

    @field_validator("sql_driver")
    @classmethod
    def _check_driver(cls, value: str) -> str:
        return kind_of(value)

    @field_validator("sql_dsn", mode="before")
    @classmethod
    def _check_dsn(cls, value: object, info: ValidationInfo) -> object:
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
            max_open=self.sql_max_open_conns,
            max_idle=self.sql_max_idle_conns,
            lifetime=self.sql_max_conn_lifetime,
        )
