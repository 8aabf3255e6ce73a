"""The configuration: every key with its type, default and description, and how a file becomes an AppConfig.

The models here are the one source of ``guerrillad check``, of the JSON Schema and of the reference page. The
keys are those of the Go program. What stands in ``backend_config`` belongs to the gateway and the processors,
which check it themselves; ``load`` is given a function that does.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias

import durationpy
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PrivateAttr,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from guerrilla.config_problems import ConfigError, Problem, Source, problems_of, refused, shown
from guerrilla.config_source import read

__all__ = [
    "EMBEDDED_BACKEND",
    "AppConfig",
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

_NAME = re.compile(r"[!-~]{1,255}")
_HOST_AND_PORT = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\[\]:\x00-\x20\x7f-\U0010ffff]*)):([0-9]{1,5})")
_PROTOCOLS = ("tls1.0", "tls1.1", "tls1.2", "tls1.3")


def _hostname() -> str:
    name = socket.gethostname()
    return name if _NAME.fullmatch(name) else "localhost"


class _Section(BaseModel):
    """What all sections have in common: no conversions, no unknown keys, no changes after the fact."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", use_attribute_docstrings=False)


class TLSConfig(_Section):
    """The TLS side of a server: key ``tls``."""

    start_tls_on: bool = Field(default=False, description="Offer STARTTLS (RFC 3207).")
    tls_always_on: bool = Field(default=False, description="Speak TLS from the first octet on (RFC 8314).")
    private_key_file: str = Field(default="", description="PEM file with the private key.")
    public_key_file: str = Field(default="", description="PEM file with the certificate and its chain.")
    root_cas_file: str = Field(
        default="", description="PEM file with the authorities that client certificates are checked against."
    )
    client_auth_type: Literal[
        "NoClientCert",
        "RequestClientCert",
        "RequireAnyClientCert",
        "VerifyClientCertIfGiven",
        "RequireAndVerifyClientCert",
    ] = Field(default="NoClientCert", description="Whether clients are asked for a certificate.")
    prefer_server_cipher_suites: bool = Field(
        default=False, description="Choose the cipher by our order and not by the client's."
    )
    protocols: list[Literal["tls1.0", "tls1.1", "tls1.2", "tls1.3"]] = Field(
        default=[], max_length=2, description="Lowest and highest version; empty: tls1.2 and later."
    )
    ciphers: list[str] = Field(
        default=[],
        description="Cipher suites up to TLS 1.2, by their IANA names; empty: the library's choice.",
    )
    curves: list[Literal["P256", "P384", "P521", "X25519"]] = Field(
        default=[], description="Curves for the key exchange; empty: the library's choice."
    )

    @field_validator("client_auth_type", mode="before")
    @classmethod
    def _empty_is_default(cls, value: object) -> object:
        return "NoClientCert" if value == "" else value

    @model_validator(mode="after")
    def _agree(self) -> TLSConfig:
        if self.start_tls_on and self.tls_always_on:
            raise refused("both start_tls_on and tls_always_on are true", "meant: one of them")
        if (self.start_tls_on or self.tls_always_on) and not (self.private_key_file and self.public_key_file):
            raise refused("TLS is on, but there is no key", "set both private_key_file and public_key_file")
        if len(self.protocols) == 2 and self.protocols[0] > self.protocols[1]:
            raise refused(f"found protocols {shown(self.protocols)}", "meant: the lowest version, then the highest")
        return self


class ServerConfig(_Section):
    """One listening interface: an entry of ``servers``."""

    is_enabled: bool = Field(default=True, description="Whether this server is started.")
    host_name: str = Field(
        default_factory=_hostname,
        description="Name in the greeting and in Received; empty or absent: the name of the machine.",
    )
    listen_interface: str = Field(
        description='Address and port to listen on: "127.0.0.1:25", "[::1]:25", or ":25" for all interfaces.',
    )
    max_size: int = Field(default=10485760, ge=1, description="Octets that a message may have, at most.")
    timeout: int = Field(default=30, ge=1, le=86_400, description="Seconds that a client may be silent.")
    max_clients: int = Field(
        default=100, ge=1, le=1_000_000, description="Connections at the same time; the next one gets 421."
    )
    max_clients_per_address: int = Field(
        default=0,
        ge=0,
        description="Connections at the same time from one address; 0: only max_clients holds.",
    )
    max_recipients: int = Field(default=100, ge=1, description="Recipients of one message, at most.")
    min_data_rate: int = Field(
        default=100,
        ge=0,
        le=1_000_000_000,
        description="Octets per second that a client must send in a message, after timeout seconds of grace.",
    )
    bare_newline: Literal["reject", "normalize"] = Field(
        default="reject",
        description="What to do with a message that holds a lone CR or LF: refuse it, or make CRLF of it.",
    )
    log_file: str = Field(default="", description="Log of this server; empty: the log of the daemon.")
    xclient_on: bool = Field(default=False, description="XCLIENT is not available in this version: false.")
    proxyon: bool = Field(default=False, description="The PROXY protocol is not available in this version: false.")
    proxy_on: bool = Field(default=False, description="Another name of proxyon.")
    tls: TLSConfig = Field(default_factory=TLSConfig, description="Keys, versions and ciphers.")

    @model_validator(mode="before")
    @classmethod
    def _older_samples(cls, values: object) -> object:
        """Take the TLS keys also from where older samples have them: beside the others, not in ``tls``."""
        if not isinstance(values, dict):
            return values
        tls = values.get("tls", {})
        flat = ("start_tls_on", "tls_always_on", "private_key_file", "public_key_file")
        moved = {key: values[key] for key in flat if key in values and isinstance(tls, dict) and key not in tls}
        if not moved:
            return values
        rest = {key: value for key, value in values.items() if key not in moved}
        return {**rest, "tls": {**tls, **moved}}

    @field_validator("host_name")
    @classmethod
    def _printable(cls, value: str) -> str:
        if value and not _NAME.fullmatch(value):
            raise refused(f"found {shown(value)}", "meant: a host name in ASCII, without spaces")
        return value or _hostname()

    @field_validator("listen_interface")
    @classmethod
    def _address(cls, value: str) -> str:
        match = _HOST_AND_PORT.fullmatch(value)
        try:
            if match and match[1]:
                ipaddress.IPv6Address(match[1])
        except ValueError:
            match = None
        if match is None or int(match[3]) > 65535:
            raise refused(f"found {shown(value)}", 'meant: "127.0.0.1:25", "[::1]:25" or ":25"')
        return value

    @field_validator("xclient_on", "proxyon", "proxy_on")
    @classmethod
    def _not_available(cls, value: bool) -> bool:
        if value:
            raise refused("is not available in this version", "meant: false")
        return value

    @property
    def host(self) -> str:
        """The address to listen on, without brackets; empty for all interfaces."""
        return self.listen_interface.rpartition(":")[0].removeprefix("[").removesuffix("]")

    @property
    def port(self) -> int:
        """The port to listen on; 0: any free one."""
        return int(self.listen_interface.rpartition(":")[2])


def _default_servers() -> list[ServerConfig]:
    return [ServerConfig(listen_interface="127.0.0.1:2525")]


class AppConfig(_Section):
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
    log_level: Literal["debug", "info", "warning", "error", "fatal", "panic"] = Field(
        default="info", description="The least important records to keep."
    )
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
