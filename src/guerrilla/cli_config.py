"""The configuration as the command line has it: the option ``-c``, the default files, and how a bad one is told."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from guerrilla.backends.registry import Registry
from guerrilla.config import AppConfig, ConfigError, load

DEFAULT_FILES = ("goguerrilla.conf", "goguerrilla.conf.json")

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        help="Configuration file, JSON or TOML. Default: goguerrilla.conf, or else goguerrilla.conf.json; "
        "if there is neither, mail for anybody is taken on 127.0.0.1:2525 and kept in guerrilla.db.",
        show_default=False,
    ),
]


def read_configuration(path: Path | None, registry: Registry) -> AppConfig:
    """Read the file, or the first default one, or take the embedded default; end with exit code 1 if it is bad."""
    # At the end: a file that happens to lie here must not stand before a module of Python.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    if path is None:
        path = next((Path(name) for name in DEFAULT_FILES if os.path.exists(name)), None)
    if path is None:
        return AppConfig.embedded()
    try:
        return load(path, registry.check)
    except ConfigError as error:
        typer.echo(error, err=True)
        raise typer.Exit(1) from None
