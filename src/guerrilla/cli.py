"""guerrillad, the command line: init, serve, check, status, top, reload, processors, schema, schema-sql, cat, version.

Nothing is decided here: the commands read arguments, call the daemon, the registry or the configuration, and print. The
flags and the names of the default files are those of the Go program.
"""

from __future__ import annotations

import difflib
import inspect
import io
import json
import os
import platform
import socket
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata
from importlib.machinery import EXTENSION_SUFFIXES
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core.core_schema import WithDefaultSchema

from guerrilla.backends.registry import GatewayConfig, ProcessorInfo, Registry
from guerrilla.cli_check import outside
from guerrilla.cli_config import ConfigOption, load_configuration, read_configuration
from guerrilla.cli_control import reload, status, top
from guerrilla.cli_init import init
from guerrilla.cli_stores import cat, schema_sql
from guerrilla.config import AppConfig, ConfigError, Problem, ServerConfig
from guerrilla.daemon import Daemon, StartError
from guerrilla.service import last_resort
from guerrilla.smtp import session

DEFAULT_PID_FILE = "/var/run/go-guerrilla.pid"

_KEEP_NOTHING = frozenset({"HeadersParser", "Hasher", "Header", "Debugger", "Compressor"})

app = typer.Typer(
    help="guerrillad, the inbound mail engine: receives mail by SMTP and runs it down a production line.",
    epilog="Exit codes: 0 fine; 1 bad configuration, the server could not start or does not answer, or the message "
    "cannot be had; 2 wrong use of the command line.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Log everything: level debug.")]


def main() -> None:
    """Run the command line of this process, and exit."""
    hold_standard_descriptors()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that has no arrow must not end the server
            stream.reconfigure(errors="backslashreplace")
    try:
        app(prog_name="guerrillad")
    except SystemExit as ending:
        # All is kept and closed. Python waits for threads; one that a processor has hung must not hold the process.
        last_resort(ending.code if isinstance(ending.code, int) else 0)
        raise


def hold_standard_descriptors() -> None:
    """Open /dev/null in the place of what is closed of standard input, output and error.

    Otherwise the event loop's own descriptors get these numbers, and libuv aborts the process when it closes them.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)


@app.callback()
def _before(context: typer.Context, verbose: VerboseOption = False) -> None:
    context.obj = verbose


@app.command()
def serve(
    context: typer.Context,
    config: ConfigOption = None,
    pid_file: Annotated[
        str,
        typer.Option(
            "--pidFile",
            "-p",
            help="File for the process number. Default: pid_file of the configuration; "
            f"with a configuration file, {DEFAULT_PID_FILE}.",
            show_default=False,
        ),
    ] = "",
    verbose: VerboseOption = False,
) -> None:
    """Receive mail until SIGTERM, SIGINT (Ctrl-C) or SIGQUIT; messages on their way are finished first."""

    def read() -> AppConfig:
        return with_options(load_configuration(config, Registry()), pid_file, verbose=verbose or context.obj)

    settings = with_options(read_configuration(config, Registry()), pid_file, verbose=verbose or context.obj)
    try:
        Daemon(settings).run(
            lambda daemon: _say(announcement(settings, daemon.addresses, _line(daemon.registry, settings))),
            read_config=read,
            control=True,
        )
    except (ConfigError, StartError) as error:
        typer.echo(error, err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        return


@app.command()
def check(config: ConfigOption = None) -> None:
    """Check the configuration: keys, values, processors, TLS files, addresses. Nothing is started or changed."""
    registry = Registry()
    settings = read_configuration(config, registry)
    problems = [*settings.warnings, *outside(settings, registry)]
    _complain(settings, problems)
    if not all(problem.warning for problem in problems):
        raise typer.Exit(1)
    enabled = ", ".join(server.listen_interface for server in settings.servers if server.is_enabled)
    name = settings.source.path if settings.source else "no configuration file, the embedded default"
    typer.echo(f"OK: {name}: {enabled or 'no server'}; {_line(registry, settings)}")


@app.command()
def processors(
    name: Annotated[str | None, typer.Argument(help="The processor to explain.", show_default=False)] = None,
) -> None:
    """List the processors; with NAME, say what one does, and its keys with type, default and meaning."""
    known = Registry().describe()
    if name is None:
        width = max(len(each.name) for each in known)
        for each in known:
            typer.echo(f"{each.name:<{width}}  {_paragraphs(each)[0]}")
        return
    found = next((each for each in known if each.name.lower() == name.lower()), None)
    if found is None:
        near = difflib.get_close_matches(name.lower(), [each.name.lower() for each in known], n=1)
        meant = [each.name for each in known if each.name.lower() in near]
        hint = f"did you mean {meant[0]}?" if meant else "guerrillad processors lists all"
        typer.echo(f"there is no processor {name!r}, {hint}", err=True)
        raise typer.Exit(2)
    keys = list(_explained(found.config_type)) or ["It has no keys."]
    typer.echo("\n".join([found.name, "", *_paragraphs(found), "", *keys]))


@app.command()
def schema() -> None:
    """Print the JSON Schema of the configuration, for editors and other programs."""
    typer.echo(json.dumps(configuration_schema(Registry()), indent=2, ensure_ascii=False))


@app.command()
def version() -> None:
    """Print the versions of guerrilla, of Python, and of the event loop, and whether the hot path is compiled."""
    typer.echo(f"guerrilla {_version('guerrilla') or '(not installed)'}")
    compiled = str(session.__file__).endswith(tuple(EXTENSION_SUFFIXES))
    typer.echo("compiled with mypyc" if compiled else "not compiled: slower, and else the same")
    typer.echo(f"Python {platform.python_version()}")
    uvloop = _version("uvloop")
    typer.echo(f"uvloop {uvloop}" if uvloop else "asyncio (uvloop is not installed)")


app.command()(init)
app.command()(status)
app.command()(top)
app.command()(reload)
app.command()(cat)
app.command()(schema_sql)  # "schema-sql"


class _Schema(GenerateJsonSchema):
    """Pydantic's, with the default of a duration written as the duration itself is."""

    def default_schema(self, schema: WithDefaultSchema) -> JsonSchemaValue:
        result = super().default_schema(schema)
        if result.get("format") == "go-duration" and "default" in result:
            result["default"] = f"{result['default']:g}s"
        return result


def configuration_schema(registry: Registry) -> dict[str, Any]:
    """Return the JSON Schema of the whole configuration, the keys of the registry's processors included."""
    result = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **AppConfig.model_json_schema(schema_generator=_Schema),
    }
    backend: dict[str, Any] = {}
    models: list[type[BaseModel]] = [GatewayConfig, *(each.config_type for each in registry.describe())]
    for model in models:
        part = model.model_json_schema(schema_generator=_Schema)
        result.setdefault("$defs", {}).update(part.get("$defs", {}))
        for key, value in part.get("properties", {}).items():
            backend.setdefault(key, value)
    # Processors by import path bring keys of their own: what is not named here is not wrong.
    result["properties"]["backend_config"] |= {"properties": backend, "additionalProperties": True}
    return result


def with_options(settings: AppConfig, pid_file: str, *, verbose: bool) -> AppConfig:
    """Return the configuration as the options of ``serve`` make it."""
    default = DEFAULT_PID_FILE if settings.source else ""
    return settings.model_copy(
        update={
            "pid_file": pid_file or settings.pid_file or default,
            "log_level": "debug" if verbose else settings.log_level,
        }
    )


def _complain(settings: AppConfig, problems: Iterable[Problem]) -> None:
    for problem in problems:
        typer.echo(settings.source.locate(problem) if settings.source else problem, err=True)


# What is printed


def announcement(
    settings: AppConfig, addresses: Iterable[tuple[ServerConfig, tuple[str, int]]], line: str
) -> list[str]:
    """Say what runs, where, and how to stop it. The addresses are those that are really listened on."""
    lines = [f"guerrilla {_version('guerrilla')}".rstrip()]
    for server, (host, port) in addresses:
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        lines.append(f"receiving on {address} ({_recipients(settings)}{_tls(server)})")
    lines.append(f"production line: {line}")
    if settings.source is None:
        select = 'SELECT "from", recipient, subject FROM new_mail'
        lines.append(f"storing in guerrilla.db (SQLite, table new_mail): try  sqlite3 guerrilla.db '{select}'")
    lines.append("stop with Ctrl-C or SIGTERM")
    return lines


def _say(lines: Iterable[str]) -> None:
    try:
        typer.echo("\n".join(lines))
    except OSError:
        # Whoever started this reads no longer: mail goes on, and what is left in the buffer goes nowhere.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _recipients(settings: AppConfig) -> str:
    hosts = settings.allowed_hosts or [socket.gethostname()]
    if "." in hosts:
        return "any recipient"
    more = f" and {len(hosts) - 3} more" if len(hosts) > 3 else ""
    return "recipients at " + ", ".join(hosts[:3]) + more


def _tls(server: ServerConfig) -> str:
    if server.tls.tls_always_on:
        return "; TLS"
    return "; STARTTLS" if server.tls.start_tls_on else ""


def _line(registry: Registry, settings: AppConfig) -> str:
    names = registry.chain(settings.backend_config)
    forgetful = _KEEP_NOTHING.issuperset(names)
    return " → ".join(names) + (" (no store: what is answered 250 is NOT kept)" if forgetful else "")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _paragraphs(processor: ProcessorInfo) -> list[str]:
    return inspect.cleandoc(processor.doc).replace("``", "`").split("\n") if processor.doc else ["(not documented)"]


def _explained(model: type[BaseModel]) -> Iterator[str]:
    """Describe the keys of a configuration, from its JSON Schema."""
    properties = model.model_json_schema(schema_generator=_Schema).get("properties", {})
    for key, field in model.model_fields.items():
        default = properties[key].get("default", field.get_default(call_default_factory=True, validated_data={}))
        standing = "required" if field.is_required() else f"default {json.dumps(default, default=str)}"
        yield f"{key}: {_kind(properties[key])}, {standing}"
        if field.description:
            yield f"    {field.description}"


def _kind(described: dict[str, Any]) -> str:
    """Say in plain words what type a JSON Schema describes."""
    if "enum" in described:
        return " or ".join(json.dumps(each) for each in described["enum"])
    if "anyOf" in described:
        return " or ".join(_kind(each) for each in described["anyOf"])
    if described.get("format") == "go-duration":
        return 'duration such as "1m30s"'
    words = {"string": "text", "integer": "whole number", "boolean": "true or false", "array": "list"}
    kind: str = described.get("type", "object")
    return words.get(kind, kind)


if __name__ == "__main__":
    main()
