"""MySql: the older name for keeping mail in MySQL or MariaDB, with the address in four keys of its own.

The same as Sql otherwise, which has more keys. This file has the keys.
"""

from __future__ import annotations

from pydantic import field_validator
from pydantic_core import PydanticCustomError

from guerrilla.backends.processor import Field
from guerrilla.stores.dsn import mysql_dsn
from guerrilla.stores.sql_answer import TableProcessor
from guerrilla.stores.sql_keys import TableKeys
from guerrilla.stores.sql_writer import SqlSettings


class MySqlConfig(TableKeys):
    """The keys of MySql."""

    mysql_host: str = Field(
        default="127.0.0.1:3306", description="Where the server is: host:port, or the path of its Unix socket."
    )
    mysql_user: str = Field(description="The user.")
    mysql_pass: str = Field(repr=False, description="The user's password.")
    mysql_db: str = Field(min_length=1, description="The database in which the table is.")
    sql_create_table: bool = Field(default=False, description="Make the table at the start if it is not there.")

    @field_validator("mysql_host")
    @classmethod
    def _check_host(cls, value: str) -> str:
        mysql_dsn(value, "", "", "")
        return value

    @field_validator("mysql_pass", mode="before")
    @classmethod
    def _check_password(cls, value: object) -> object:
        """Show nothing of it, whatever it is."""
        if not isinstance(value, str):
            raise PydanticCustomError(
                "refused", "{found}: {meant}", {"found": "not usable", "meant": "a text in double quotes is meant"}
            )
        return value

    def settings(self) -> SqlSettings:
        """Return what they say about the table."""
        return SqlSettings(
            dsn=mysql_dsn(self.mysql_host, self.mysql_user, self.mysql_pass, self.mysql_db),
            table=self.mail_table,
            host=self.primary_mail_host,
            create_table=self.sql_create_table,
        )


class MySql(TableProcessor[MySqlConfig]):
    """Keeps the message in MySQL or MariaDB: one row per recipient in ``mail_table``, octet for octet.

    The older name of Sql, with the keys ``mysql_host``, ``mysql_user``, ``mysql_pass`` and ``mysql_db``; what it reads
    and sets, and when it answers, is as with Sql.
    """
