"""The configuration as the command line has it: the option ``-c``, the default files, and how a bad one is told."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from guerrilla.backends.registry import Registry
from guerrilla.config import AppConfig, ConfigError, load

DEFAULT_FILES = ("goguerrilla.conf", "goguerrilla.conf.json", "guerrilla.toml")
"""Those of the Go program in its order, then the one that ``init`` writes."""

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        help="Configuration file, JSON or TOML. Default: goguerrilla.conf, goguerrilla.conf.json or guerrilla.toml, "
        "the first that is there; without one, mail for anybody is taken on 127.0.0.1:2525 and kept in guerrilla.db.",
        show_default=False,
    ),
]


def default_file() -> Path | None:
    """Return the configuration file that is taken when none is named, if it is in this folder."""
    return next((Path(name) for name in DEFAULT_FILES if os.path.exists(name)), None)


def read_configuration(path: Path | None, registry: Registry) -> AppConfig:
    """Read the file, or the first default one, or take the embedded default; end with exit code 1 if it is bad."""
    # At the end: a file that happens to lie here must not stand before a module of Python.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return load_configuration(path, registry)
    except ConfigError as error:
        typer.echo(error, err=True)
        raise typer.Exit(1) from None


def load_configuration(path: Path | None, registry: Registry) -> AppConfig:
    """Read the file, or the first default one, or take the embedded default. Raises ConfigError if it is bad."""
    path = path or default_file()
    return load(path, registry.check) if path is not None else AppConfig.embedded()
