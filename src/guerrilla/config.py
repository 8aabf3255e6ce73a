"""The configuration: every key with its type, default and description, and how a file becomes an AppConfig.

The models here are the one source of ``guerrillad check``, of the JSON Schema and of the reference page. The
keys are those of the Go program. What stands in ``backend_config`` belongs to the gateway and the processors,
which check it themselves; ``load`` is given a function that does.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias

import durationpy
from pydantic import (
    BeforeValidator,
    Field,
    PlainSerializer,
    PrivateAttr,
    ValidationError,
    WithJsonSchema,
    field_validator,
)

from guerrilla.config_problems import ConfigError, Problem, Source, problems_of, refused, shown
from guerrilla.config_server import CertificateConfig, LogLevel, Section, ServerConfig, TLSConfig
from guerrilla.config_source import read

__all__ = [
    "EMBEDDED_BACKEND",
    "AppConfig",
    "CertificateConfig",
    "ConfigError",
    "Duration",
    "Problem",
    "ServerConfig",
    "Source",
    "TLSConfig",
    "load",
    "parse",
    "problems_of",
]

CheckBackend: TypeAlias = Callable[[Mapping[str, Any]], Sequence[Problem]]

EMBEDDED_BACKEND: Mapping[str, Any] = {"save_process": "HeadersParser|Hasher|Header|Sql"}
"""The production line when ``backend_config`` is absent: mail is kept in the embedded store."""

MAX_PROCESSES = 256
"""What ``processes`` can be, at most."""


# Durations

_GO_DURATION = re.compile(r"0|(?:(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:ns|us|µs|μs|ms|s|m|h))+")


def _seconds(value: object) -> float:
    # The library passes over junk between two parts, and knows days: the form is checked here, as Go has it.
    meant = 'meant: a duration such as "10s"'
    if not isinstance(value, str) or not _GO_DURATION.fullmatch(value):
        raise refused(f"found {shown(value)}", meant)
    try:
        return float(durationpy.from_str(value).total_seconds())
    except durationpy.DurationError:
        raise refused(f"found {shown(value)}, which is too long", meant) from None


def _go_duration(seconds: float) -> str:
    return f"{seconds:.9f}".rstrip("0").rstrip(".") + "s"


Duration = Annotated[
    float,
    BeforeValidator(_seconds),
    PlainSerializer(_go_duration, return_type=str),
    WithJsonSchema(
        {
            "type": "string",
            "format": "go-duration",
            "pattern": f"^(?:{_GO_DURATION.pattern})$",
            "examples": ["1m30s"],
        }
    ),
]
"""Seconds, written in a configuration as Go writes a duration: ``"300ms"``, ``"1m30s"``. Not negative."""


# Models


def _default_servers() -> list[ServerConfig]:
    return [ServerConfig(listen_interface="127.0.0.1:2525")]


class AppConfig(Section):
    """The whole configuration. Made by ``load`` from a file, by ``parse`` from a mapping, or by its keys."""

    servers: list[ServerConfig] = Field(
        default_factory=_default_servers, description="The listening interfaces; none: one on 127.0.0.1:2525."
    )
    allowed_hosts: list[str] = Field(
        default=[],
        description='Domains that mail is taken for: names, "*.example.com", "[192.0.2.1]", or "." for any; '
        "empty: the name of the machine.",
    )
    pid_file: str = Field(default="", description="File that the process number is written to; empty: none.")
    log_file: str = Field(default="stderr", description='"stderr", "stdout", "off", or the path of a file.')
    log_level: LogLevel = Field(default="info", description="The least important records to keep.")
    log_format: Literal["auto", "console", "json"] = Field(
        default="auto", description="Form of a record; auto: console for stderr and stdout, json for a file."
    )
    spool_threshold: int = Field(
        default=131072,
        ge=0,
        description="Octets of a message kept in memory; a larger one goes to a temporary file.",
    )
    spool_path: str = Field(
        default="",
        description="Folder of the temporary files; empty: /var/tmp if there is one, else the system's.",
    )
    memory_limit: int = Field(
        default=134217728, ge=1, description="Octets of messages in memory over all connections, at most."
    )
    shutdown_timeout: Duration = Field(
        default=60.0, description="How long messages on their way are waited for at the end."
    )
    processes: Annotated[int, Field(ge=1, le=MAX_PROCESSES)] | Literal["auto"] = Field(
        default=1,
        description='Processes that share the listening interfaces; "auto": one for each processor of the machine.',
    )
    user: str = Field(
        default="", description="User to run as once the ports are open, by name or number; empty: who started us."
    )
    group: str = Field(
        default="", description="Group to run as, by name or number; empty: the group of user, if there is one."
    )
    control_socket: str = Field(
        default="",
        description='Socket that status, top and reload speak to: a path, or "off"; empty: one in the run folder, '
        "named after the configuration file.",
    )
    backend_config: dict[str, Any] = Field(
        default_factory=lambda: dict(EMBEDDED_BACKEND),
        description="Keys of the gateway and of all processors; absent: mail is kept in the embedded store.",
    )

    _source: Source | None = PrivateAttr(default=None)
    _warnings: tuple[Problem, ...] = PrivateAttr(default=())

    @field_validator("servers")
    @classmethod
    def _distinct(cls, servers: list[ServerConfig]) -> list[ServerConfig]:
        seen: set[str] = set()
        for server in servers:
            if server.listen_interface in seen and server.port != 0:
                raise refused(f"two servers have the listen_interface {shown(server.listen_interface)}")
            seen.add(server.listen_interface)
        return servers or _default_servers()

    @field_validator("allowed_hosts")
    @classmethod
    def _hosts(cls, hosts: list[str]) -> list[str]:
        for host in hosts:
            if not host or not host.isprintable() or " " in host:
                raise refused(f"found {shown(host)}", "meant: the name of a domain")
        return hosts

    @field_validator("processes", mode="before")
    @classmethod
    def _processes(cls, count: object) -> object:
        # One complaint, where pydantic would have one for each of the two types.
        if count != "auto" and not (type(count) is int and 1 <= count <= MAX_PROCESSES):
            raise refused(f"found {shown(count)}", f'meant: a whole number from 1 to {MAX_PROCESSES}, or "auto"')
        return count

    @field_validator("log_level", mode="before")
    @classmethod
    def _level(cls, level: object) -> object:
        return "warning" if level == "warn" else level

    @classmethod
    def embedded(cls) -> AppConfig:
        """Return what holds without any configuration: loopback only, any recipient, the embedded store."""
        return cls(allowed_hosts=["."])

    @property
    def source(self) -> Source | None:
        """The file that this was read from, if it was."""
        return self._source

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """What is probably not as it was meant, found by ``load`` or ``parse``."""
        return self._warnings


# Reading

_DEAD_KEYS = {
    "backend_name": "the line is chosen by backend_config.save_process",
    "dashboard": "there is no dashboard in this version",
}


def load(path: str | os.PathLike[str], check_backend: CheckBackend | None = None) -> AppConfig:
    """Read a configuration file, JSON or (by its suffix) TOML.

    ``check_backend`` is given ``backend_config`` and returns what is wrong with it.

    Raises:
        ConfigError: with everything that is wrong, each problem with its place in the file.
    """
    values, source = read(path)
    return parse(values, check_backend, source)


def parse(
    values: Mapping[str, Any], check_backend: CheckBackend | None = None, source: Source | None = None
) -> AppConfig:
    """Make a configuration of a mapping with the keys of the file.

    Raises:
        ConfigError: with everything that is wrong.
    """
    problems = [
        Problem(key, "is not used any more", _DEAD_KEYS[key], warning=True) for key in values if key in _DEAD_KEYS
    ]
    config: AppConfig | None = None
    try:
        config = AppConfig.model_validate({key: value for key, value in values.items() if key not in _DEAD_KEYS})
    except ValidationError as error:
        problems.extend(problems_of(error, AppConfig))
    else:
        if not any(server.is_enabled for server in config.servers):
            problems.append(Problem("servers", "no server is enabled", "no mail will be received", warning=True))
    backend = values.get("backend_config", EMBEDDED_BACKEND)
    if check_backend is not None and isinstance(backend, Mapping):
        problems.extend(check_backend(backend))
    if source is not None:
        problems.sort(key=lambda problem: source.line(problem.place) or 0)
    if config is None or not all(problem.warning for problem in problems):
        raise ConfigError(problems, source)
    config._source = source
    config._warnings = tuple(problems)
    return config


def as_config(config: AppConfig | Mapping[str, Any] | None) -> AppConfig:
    """Make a configuration of what a program may give for one; None is the embedded default.

    Raises:
        ConfigError: if a mapping is no configuration.
        TypeError: if it is something else.
    """
    if config is None:
        return AppConfig.embedded()
    if isinstance(config, Mapping):
        return parse(config)
    if not isinstance(config, AppConfig):
        raise TypeError(
            f"found {config!r}; meant: an AppConfig, a mapping with its keys, or what load gives for a file"
        )
    return config
