"""The commands about stores: ``schema-sql`` prints the table of mail, ``cat`` a message that is kept."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from typing import Annotated

import typer

from guerrilla.backends.registry import Registry
from guerrilla.cli_config import ConfigOption, read_configuration
from guerrilla.config import AppConfig, ConfigError
from guerrilla.reading import UnreadableError, is_key, open_mail_stores


class Driver(StrEnum):
    """The databases that Sql knows."""

    MYSQL = "mysql"
    POSTGRES = "postgres"
    SQLITE = "sqlite"


def schema_sql(
    driver: Annotated[Driver, typer.Option(help="The database, as in sql_driver.", show_default=False)],
    table: Annotated[str, typer.Option(help="The table, as in mail_table.")] = "new_mail",
) -> None:
    """Print the SQL that makes the table of mail and its indexes, for the client of the database."""
    from guerrilla.stores.sql_table import create_statements  # SQLAlchemy: the other commands start without it

    try:
        statements = create_statements(driver.value, table)
    except ValueError as error:
        typer.echo(f"--table: {error}", err=True)
        raise typer.Exit(2) from None
    for statement in statements:
        typer.echo(f"{statement};")


def cat(
    key: Annotated[
        str,
        typer.Argument(
            metavar="HASH",
            help="The name of the message: its hash or queue id, or in a Maildir the name of the file without flags.",
            show_default=False,
        ),
    ],
    config: ConfigOption = None,
) -> None:
    """Write a stored message to standard output: delivery header and octets, whatever store holds it."""
    if not is_key(key):
        typer.echo(f"{key!a} is no name of a message: a hash such as the 250 answers is meant", err=True)
        raise typer.Exit(2)
    registry = Registry()
    settings = read_configuration(config, registry)
    try:
        message, names = asyncio.run(_get(key, settings, registry))
    except (ConfigError, UnreadableError) as error:
        typer.echo(error, err=True)
        raise typer.Exit(1) from None
    if message is None:
        typer.echo(f"there is no message {key} in {', '.join(names)}", err=True)
        raise typer.Exit(1)
    typer.echo(message, nl=False)


async def _get(key: str, settings: AppConfig, registry: Registry) -> tuple[bytes | None, list[str]]:
    """Return the message, and where it was looked for."""
    async with open_mail_stores(settings, registry) as stores:
        return await stores.get(key), stores.names
