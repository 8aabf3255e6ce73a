"""The command ``init``: writes a configuration in which every key stands with its default and what it means.

The models of the configuration are the only source of it, so what is written cannot be out of step with what is read.
A file that is there is never overwritten by accident, and no symbolic link is followed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn

import typer
from pydantic import BaseModel

from guerrilla.backends.registry import GatewayConfig, Registry
from guerrilla.cli_config import default_file
from guerrilla.config import AppConfig, ConfigError, ServerConfig, TLSConfig, parse
from guerrilla.self_signed import MissingLibraryError, self_signed
from guerrilla.smtp.hosts import AllowedHosts

DEFAULT_OUTPUT: Final = "guerrilla.toml"

_HOST = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*|\[[A-Za-z0-9:.]+\]")
_WIDTH: Final = 118
_OPTIONS: Final = {"host_name": "--host-name", "listen_interface": "--listen"}

_TOP: Final = """\
# The configuration of guerrillad. Every key stands here with what it means; a "#" right before a key is a default:
# take it away to set another value. "guerrillad check" finds what is wrong, "guerrillad schema" helps your editor.
"""

_LINE: Final = """\
# The production line. "guerrillad processors" lists all processors, and "guerrillad processors NAME" explains one and
# its keys, whose place is here.
"""


def init(
    host_name: Annotated[
        str,
        typer.Option("--host-name", help="Name of this mail server. Default: that of the machine.", show_default=False),
    ] = "",
    listen: Annotated[
        str, typer.Option("--listen", help='Address and port to listen on; ":25" for all interfaces.')
    ] = "127.0.0.1:2525",
    with_pair: Annotated[
        bool,
        typer.Option("--self-signed", help="Make a key and a self-signed certificate too, and turn STARTTLS on."),
    ] = False,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write, TOML.")] = Path(DEFAULT_OUTPUT),
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
) -> None:
    """Write a configuration with every key explained, and if asked a self-signed certificate."""
    if output.suffix.lower() != ".toml":
        _refuse(f'--output: found {output}, meant: a name that ends in ".toml"', 2)
    chosen, name = _chosen(host_name, listen)
    files: list[tuple[Path, bytes, int]] = []
    if with_pair:
        key_file, certificate_file = (output.absolute().with_suffix(suffix) for suffix in (".key", ".crt"))
        try:
            key, certificate = self_signed(name)
        except MissingLibraryError as error:
            _refuse(f"--self-signed: {error}", 1)
        files += [(key_file, key, 0o600), (certificate_file, certificate, 0o644)]
        chosen["servers"][0]["tls"] = {
            "start_tls_on": True,
            "private_key_file": str(key_file),
            "public_key_file": str(certificate_file),
        }
    # Others may not read it: a password of a database will stand there.
    files.append((output, configuration_text(chosen).encode(), 0o640))
    _write_all(files, force=force)
    _tell(output, name, files)


def _refuse(message: str, code: int) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(code)


def _chosen(host_name: str, listen: str) -> tuple[dict[str, Any], str]:
    """Return the keys that are not left at their defaults, checked, and the name of the server."""
    server: dict[str, Any] = {"listen_interface": listen}
    if host_name:
        server["host_name"] = host_name
    try:
        name = parse({"servers": [server]}).servers[0].host_name
    except ConfigError as error:
        problem = error.problems[0]
        option = _OPTIONS[problem.place.rpartition(".")[2]]
        _refuse(f"{option}: {problem.message}, {problem.hint}", 2)
    try:
        # It stands in allowed_hosts, where "." and "*" would take mail for others.
        if not _HOST.fullmatch(name):
            raise ValueError(f"found {name!r}")
        AllowedHosts([name])
    except ValueError as error:
        _refuse(f"--host-name: {error}, meant: a domain, or an IP address in brackets", 2)
    backend = {"primary_mail_host": name} if host_name else {}
    return {"allowed_hosts": [name], "pid_file": "guerrilla.pid", "servers": [server], "backend_config": backend}, name


# The text


def configuration_text(chosen: Mapping[str, Any]) -> str:
    """Write a configuration in TOML: the keys of ``chosen``, and all others as comments with their defaults.

    ``chosen`` has the form of the file, with one entry in ``servers``.
    """
    server = chosen["servers"][0]
    app_defaults = AppConfig().model_dump(mode="json")
    server_defaults = ServerConfig.model_validate(server).model_dump(mode="json")
    lines = [
        _TOP,
        *_keys(AppConfig, app_defaults, chosen),
        _header(AppConfig, "servers", "[[servers]]"),
        *_keys(ServerConfig, server_defaults, server),
        _header(ServerConfig, "tls", "[servers.tls]"),
        *_keys(TLSConfig, server_defaults["tls"], server.get("tls", {})),
        _LINE + _header(AppConfig, "backend_config", "[backend_config]"),
        *_backend(chosen["backend_config"]),
    ]
    return "\n".join(lines)


def _header(model: type[BaseModel], key: str, header: str) -> str:
    return f"# {model.model_fields[key].description}\n{header}\n"


def _backend(chosen: Mapping[str, Any]) -> Iterator[str]:
    """Write the keys of the gateway, and of each processor in the line, each key once."""
    registry = Registry()
    line = registry.chain(chosen)
    models: list[tuple[str, type[BaseModel]]] = [("The gateway", GatewayConfig)]
    models += [(each.name, each.config_type) for each in registry.describe() if each.name in line]
    written: set[str] = set()
    for title, model in models:
        keys = model.model_fields.keys() - written
        if keys:
            yield f"# {title}\n"
            yield from _keys(model, model().model_dump(mode="json", include=keys), chosen)
        written |= keys


def _keys(model: type[BaseModel], defaults: Mapping[str, Any], chosen: Mapping[str, Any]) -> Iterator[str]:
    """Write each key that is no table of its own, below its description."""
    for key, field in model.model_fields.items():
        if key not in defaults or _is_table(defaults[key]):
            continue
        text = textwrap.wrap(field.description or "", _WIDTH, break_on_hyphens=False)
        value = chosen.get(key, defaults[key])
        # TOML has no null, and its other values are written as JSON writes them.
        written = "" if value is None else " " + json.dumps(value, ensure_ascii=False)
        yield "\n".join([*(f"# {each}" for each in text), f"{'' if key in chosen else '#'}{key} ={written}\n"])


def _is_table(value: object) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(each, dict) for each in value))


# The files


def _write_all(files: list[tuple[Path, bytes, int]], *, force: bool) -> None:
    """Write all files, or none if one of them is there and may not be replaced; end with exit code 1 if that fails."""
    there = [str(path) for path, _, _ in files if os.path.lexists(path)]
    if there and not force:
        _refuse(f"{', '.join(there)}: is already there, meant: another name with --output, or --force", 1)
    for path, octets, mode in files:
        try:
            _write(path, octets, mode, replace=force)
        except OSError as error:
            _refuse(f"{path}: cannot be written: {error.strerror}", 1)


def _write(path: Path, octets: bytes, mode: int, *, replace: bool) -> None:
    """Make a file that was not there, or put a complete one in the place of another."""
    target = path.with_name(f".{path.name}.{os.getpid()}") if replace else path
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        with open(descriptor, "wb") as file:
            file.write(octets)
        if replace:
            os.replace(target, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(target)
        raise


def _tell(output: Path, name: str, files: list[tuple[Path, bytes, int]]) -> None:
    for path, _, _ in files:
        typer.echo(f"wrote {path}")
    found = default_file()
    option = "" if found is not None and output == found else f" -c {shlex.quote(str(output))}"
    typer.echo(f"It takes mail for {name}: set allowed_hosts to the domains that mail comes for. Then:")
    typer.echo(f"  guerrillad check{option}\n  guerrillad serve{option}")
