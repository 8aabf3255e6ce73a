"""Where a database is: the data source names of Go's drivers, and URLs, read into what SQLAlchemy needs.

    mysql      user:password@tcp(127.0.0.1:3306)/name?timeout=5s    user@unix(/run/mysqld/mysqld.sock)/name
    postgres   host=db1 user=guerrilla password='it''s' dbname=mail    postgres://user:password@db1/mail?sslmode=disable
    sqlite     /var/mail/guerrilla.db

Parameters of the Go drivers that mean nothing here are read over; an unknown one is an error, since it may have been
meant to make the connection safe. What is raised here never has a value in it: the password may be anywhere.
"""

from __future__ import annotations

import difflib
import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias
from urllib.parse import unquote, unquote_plus

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

Kind: TypeAlias = Literal["mysql", "postgres", "sqlite"]

_KINDS: Mapping[str, Kind] = {
    "mysql": "mysql",
    "mariadb": "mysql",
    "postgres": "postgres",
    "postgresql": "postgres",
    "pgx": "postgres",
    "sqlite": "sqlite",
    "sqlite3": "sqlite",
}

CONNECT_SECONDS = 10.0
"""How long it may take to connect, if the DSN does not say."""

_MYSQL_URL = re.compile(r"(?:mysql|mariadb)(?:\+[a-z0-9]+)?://(?s:.*)")
_POSTGRES_URL = re.compile(r"(?:postgres|postgresql)(?:\+[a-z0-9]+)?://(?s:.*)")
_SQLITE_URL = re.compile(r"sqlite(?:\+aiosqlite)?:///([^?]*)")
_SCHEME = re.compile(r"[a-z][a-z0-9+]*://(?s:.*)")

_GO_MYSQL = re.compile(r"(?:(?P<login>.*)@)?(?:(?P<net>[a-z0-9]+)(?:\((?P<address>[^()]*)\))?)?", re.DOTALL)
_KEY_VALUE = re.compile(r"\s*([A-Za-z_]+)\s*=\s*('(?:[^'\\]|\\.)*'|(?:[^\s'\\]|\\.)*)(?=\s|\Z)", re.DOTALL)
_HOST_AND_PORT = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\[\]:\s]+))?(?::([0-9]{1,5}))?")

_DURATION = re.compile(r"(?:[0-9]{1,9}(?:\.[0-9]{1,9})?(?:ms|s|m|h))+")
_DURATION_PART = re.compile(r"([0-9.]+)(ms|s|m|h)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_WHOLE = re.compile(r"[0-9]{1,9}")

# We always speak utf8mb4, bind times as UTC, and leave what else these are about to the database.
_MYSQL_MEANINGLESS = frozenset(
    {
        "allowAllFiles", "allowCleartextPasswords", "allowNativePasswords", "allowOldPasswords", "charset",
        "checkConnLiveness", "clientFoundRows", "collation", "columnsWithAlias", "compress", "connectionAttributes",
        "interpolateParams", "loc", "maxAllowedPacket", "multiStatements", "parseTime", "rejectReadOnly",
        "timeTruncate", "writeTimeout",
    }
)  # fmt: skip
_MYSQL_VARIABLES = frozenset(
    {"innodb_lock_wait_timeout", "interactive_timeout", "lock_wait_timeout", "net_read_timeout", "net_write_timeout",
     "wait_timeout"}
)  # fmt: skip
_MYSQL_MEANT = {"connect_timeout", "readTimeout", "ssl_ca", "ssl_cert", "ssl_key", "timeout", "tls", "unix_socket"}

_POSTGRES_MEANINGLESS = frozenset(
    {
        "binary_parameters", "client_encoding", "datestyle", "default_query_exec_mode", "description_cache_capacity",
        "disable_prepared_binary_result", "extra_float_digits", "fallback_application_name", "prefer_simple_protocol",
        "sslsni", "statement_cache_capacity", "statement_cache_mode", "timezone",
    }
)  # fmt: skip
_POSTGRES_SETTINGS = frozenset(
    {"application_name", "idle_in_transaction_session_timeout", "lock_timeout", "options", "search_path",
     "statement_timeout"}
)  # fmt: skip
_POSTGRES_MEANT = {
    "connect_timeout", "dbname", "host", "password", "port", "sslcert", "sslkey", "sslmode", "sslrootcert",
    "target_session_attrs", "user",
}  # fmt: skip
_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")

_SQLITE_MEANINGLESS = re.compile(r"cache|mode|vfs|immutable|nolock|psow|_[a-z_]+")

# Said to the session before anything else. Strict: a value that does not fit is refused, not cut. Without
# NO_BACKSLASH_ESCAPES and ANSI_QUOTES, whatever the server's own mode: how values are quoted rests on it.
_MYSQL_MODE = "SET SESSION sql_mode = 'STRICT_ALL_TABLES,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION'"


@dataclass(frozen=True, slots=True)
class Dsn:
    """Which database, where it is, and how to connect. ``str()`` shows the place, without the password."""

    kind: Kind
    url: URL
    connect_args: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """What the driver's connect() is given beyond the URL, the password among it."""
    connect_seconds: float = CONNECT_SECONDS
    answer_seconds: float | None = None
    """How long the database may take to answer; None if the DSN does not say."""

    def __str__(self) -> str:
        """Write the place for people."""
        if self.kind == "sqlite":
            return self.url.database or ""
        where = self.url.query.get("unix_socket") or self.url.query.get("host") or self.url.host or "localhost"
        port = f":{self.url.port}" if self.url.port else ""
        return f"{self.kind} at {where}{port}, database {self.url.database or 'of the user'}"


def kind_of(driver: str) -> Kind:
    """Return the database that a ``sql_driver`` stands for.

    Raises:
        ValueError: if it stands for none.
    """
    try:
        return _KINDS[driver]
    except KeyError:
        raise ValueError(f"a driver is meant: {', '.join(_KINDS)}") from None


def read_dsn(driver: str, dsn: str) -> Dsn:
    """Read a ``sql_dsn``, in the form of Go's driver or as a URL.

    Raises:
        ValueError: if it cannot be used, with what is meant; no value of it stands in the text.
    """
    return _READERS[kind_of(driver)](dsn)


def mysql_dsn(host: str, user: str, password: str, database: str) -> Dsn:
    """Make a DSN of the parts: ``host`` is ``host:port``, a host, or the path of a Unix socket.

    Raises:
        ValueError: if ``host`` is none of these.
    """
    if host.startswith("/"):
        return _mysql(user, password, None, None, database, {"unix_socket": host})
    return _mysql(user, password, *_host_and_port(host, 3306), database, {})


def _read_mysql(dsn: str) -> Dsn:
    if _MYSQL_URL.fullmatch(dsn):
        url = _parsed(dsn, "mysql://user:password@host:3306/name")
        return _mysql(url.username, url.password, url.host, url.port, url.database, _parameters_of(url))
    if _SCHEME.fullmatch(dsn):
        raise ValueError("a DSN of MySQL is meant, user:password@tcp(host:3306)/name, or mysql://…")
    # The address may hold slashes and so may the password: the name begins after the last one, as in Go.
    place, slash, rest = dsn.rpartition("/")
    match = _GO_MYSQL.fullmatch(place)
    if not match or not slash:
        raise ValueError(
            "it cannot be read; meant: user:password@tcp(host:3306)/name or user:password@unix(/path/of/socket)/name"
        )
    name, _, query = rest.partition("?")
    name, parameters = unquote(name), _parameters(query)
    user, _, password = (match["login"] or "").partition(":")
    net, address = match["net"] or "tcp", match["address"] or ""
    if net == "unix":
        parameters["unix_socket"] = address or "/tmp/mysql.sock"  # noqa: S108 - Go's default
        return _mysql(user, password, None, None, name, parameters)
    if net not in ("tcp", "tcp4", "tcp6"):
        raise ValueError("tcp(host:3306) or unix(/path/of/socket) is meant before the /")
    return _mysql(user, password, *_host_and_port(address or "127.0.0.1", 3306), name, parameters)


def _mysql(
    user: str | None, password: str | None, host: str | None, port: int | None, name: str | None, given: dict[str, str]
) -> Dsn:
    _refuse_unknown(given, _MYSQL_MEANT, _MYSQL_MEANINGLESS | _MYSQL_VARIABLES)
    begin = [_MYSQL_MODE]
    begin += [f"SESSION {key} = {_whole(key, given[key])}" for key in sorted(_MYSQL_VARIABLES & given.keys())]
    arguments: dict[str, Any] = {
        "init_command": ", ".join(begin),
        "charset": "utf8mb4",
        "local_infile": False,
        # Statements are prepared and values sent as they are; written into the statement, 25 MB hold the loop a second.
        "stmt_cache_size": 32,
    }
    tls = _mysql_tls(given)
    if tls is not None:
        arguments["ssl"] = tls
    limit = given.get("timeout") or given.get("connect_timeout")
    if password:
        arguments["password"] = password.encode()  # as text, the driver would write it in Latin-1
    url = URL.create("mysql+asyncmy", user or None, None, host, port, name or None)
    if "unix_socket" in given:
        url = url.set(query={"unix_socket": given["unix_socket"]})
    return Dsn(
        "mysql",
        url,
        arguments,
        connect_seconds=_seconds("timeout", limit) or CONNECT_SECONDS if limit else CONNECT_SECONDS,
        answer_seconds=_seconds("readTimeout", given["readTimeout"]) or None if "readTimeout" in given else None,
    )


def _mysql_tls(given: Mapping[str, str]) -> ssl.SSLContext | None:
    mode = given.get("tls", "true" if "ssl_ca" in given else "false")
    if mode == "false":
        return None
    if mode not in ("true", "skip-verify"):
        raise ValueError("tls: true, skip-verify or false is meant")
    context = _context("ssl_ca", given)
    if mode == "skip-verify":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _read_postgres(dsn: str) -> Dsn:
    if _POSTGRES_URL.fullmatch(dsn):
        url = _parsed(re.sub(r"\Apostgres(?=[:+])", "postgresql", dsn), "postgres://user:password@host:5432/name")
        given = _parameters_of(url)
        parts = {"user": url.username, "password": url.password, "host": url.host, "dbname": url.database}
        given |= {key: value for key, value in parts.items() if value}
        if url.port is not None:
            given["port"] = str(url.port)
        # SQLAlchemy's own form says which driver is meant, and knows nothing of lib/pq's default.
        return _postgres(given, "prefer" if "+" in url.drivername else "require")
    if _SCHEME.fullmatch(dsn):
        raise ValueError("a DSN of PostgreSQL is meant, host=… user=… password=… dbname=…, or postgres://…")
    given, at = {}, 0
    text = dsn.strip(" \t\r\n")
    while at < len(text):
        match = _KEY_VALUE.match(text, at)
        if not match:
            raise ValueError("it cannot be read; meant: host=… user=… password='…' dbname=…")
        key, value = match.groups()
        value = value[1:-1] if value.startswith("'") else value
        given[key] = re.sub(r"\\(.)", r"\1", value, flags=re.DOTALL)
        at = match.end()
    if not given:
        raise ValueError("it is empty; meant: host=… user=… password=… dbname=…, or postgres://…")
    return _postgres(given, "require")


def _postgres(given: dict[str, str], default_mode: str) -> Dsn:
    if any(key.startswith("pool_") for key in given):
        raise ValueError("the pool is not set in the DSN: sql_max_open_conns and its like are meant")
    _refuse_unknown(given, _POSTGRES_MEANT, _POSTGRES_MEANINGLESS | _POSTGRES_SETTINGS)
    host = given.get("host", "localhost")
    port = _whole("port", given.get("port", "5432"))
    local = host.startswith("/")
    arguments: dict[str, Any] = {
        "ssl": False if local else _postgres_tls(given, default_mode),
        "server_settings": {key: given[key] for key in sorted(_POSTGRES_SETTINGS & given.keys())},
    }
    if "target_session_attrs" in given:
        arguments["target_session_attrs"] = given["target_session_attrs"]
    limit = float(_whole("connect_timeout", given.get("connect_timeout", "0"))) or CONNECT_SECONDS
    arguments["timeout"] = limit
    if "password" in given:
        arguments["password"] = given["password"]
    url = URL.create("postgresql+asyncpg", given.get("user") or None, database=given.get("dbname") or None)
    url = url.set(query={"host": host, "port": str(port)}) if local else url.set(host=host, port=port)
    return Dsn("postgres", url, arguments, connect_seconds=limit)


def _postgres_tls(given: Mapping[str, str], default: str) -> ssl.SSLContext | str | bool:
    mode = given.get("sslmode") or default
    if mode not in _SSL_MODES:
        raise ValueError(f"sslmode: {', '.join(_SSL_MODES)} is meant")
    if mode == "disable":
        return False
    if mode in ("allow", "prefer", "require") and not {"sslrootcert", "sslcert"} & given.keys():
        return mode
    context = _context("sslrootcert", given)
    context.check_hostname = mode == "verify-full"
    if mode != "verify-full" and mode != "verify-ca" and "sslrootcert" not in given:
        context.verify_mode = ssl.CERT_NONE
    return context


def _read_sqlite(dsn: str) -> Dsn:
    """A database in memory is refused: it would break the promise of the 250."""
    path = dsn
    if "://" in dsn:
        match = _SQLITE_URL.fullmatch(dsn)
        if not match:
            raise ValueError("for SQLite, the path of a file is meant, or sqlite:///path")
        path = match[1]
    else:
        path, asked, query = dsn.removeprefix("file:").partition("?")
        given = _parameters(query) if asked else {}
        for key in given:
            if not _SQLITE_MEANINGLESS.fullmatch(key):
                raise ValueError(f"unknown parameter {_name(key)}; the path of a file is meant")
        if given.get("mode", "rwc") not in ("rw", "rwc"):
            path = ""
    if not path or "\0" in path or path == ":memory:" or path.startswith("file:"):
        raise ValueError("the path of a file is meant: mail in memory would be lost, and 250 means kept")
    return Dsn("sqlite", URL.create("sqlite", database=str(Path(path).absolute())))


_READERS: Mapping[Kind, Callable[[str], Dsn]] = {
    "mysql": _read_mysql,
    "postgres": _read_postgres,
    "sqlite": _read_sqlite,
}


def _parsed(dsn: str, meant: str) -> URL:
    try:
        return make_url(dsn)
    except (ArgumentError, ValueError):
        raise ValueError(f"the URL cannot be read; meant: {meant}, with %40 for an @ in the password") from None


def _parameters_of(url: URL) -> dict[str, str]:
    return {key: value if isinstance(value, str) else value[-1] for key, value in url.query.items()}


def _parameters(query: str) -> dict[str, str]:
    given = {}
    for part in filter(None, query.split("&")):
        key, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"key=value is meant, not {_name(key)} alone")
        given[key] = unquote_plus(value)
    return given


def _refuse_unknown(given: Mapping[str, str], meant: set[str], others: frozenset[str]) -> None:
    for key in given:
        if key not in meant and key not in others:
            near = difflib.get_close_matches(key, sorted(meant | others), n=1)
            raise ValueError(f"unknown parameter {_name(key)}" + (f"; {near[0]} is meant" if near else ""))


def _name(key: str) -> str:
    """Show the name of a parameter; what is none may be a piece of a password."""
    return key if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,40}", key) else "(not a name)"


def _host_and_port(text: str, default: int) -> tuple[str, int]:
    match = _HOST_AND_PORT.fullmatch(text)
    port = int(match[3] or default) if match else 0
    if not match or not 0 < port < 65536:
        raise ValueError(f"host:{default} is meant, or [address]:{default}")
    return match[1] or match[2] or "127.0.0.1", port


def _whole(key: str, value: str) -> int:
    if not _WHOLE.fullmatch(value):
        raise ValueError(f"{key}: a whole number is meant")
    return int(value)


def _seconds(key: str, value: str) -> float:
    """Read a duration as Go writes it, or whole seconds, as in SQLAlchemy's URLs."""
    if _WHOLE.fullmatch(value):
        return float(value)
    if not _DURATION.fullmatch(value):
        raise ValueError(f"{key}: a duration is meant, such as 10s")
    return sum(float(number) * _UNITS[unit] for number, unit in _DURATION_PART.findall(value))


def _context(ca: str, given: Mapping[str, str]) -> ssl.SSLContext:
    """Make a context that trusts the authority in the file, or those of the system."""
    prefix = ca.removesuffix("ca").removesuffix("rootcert")
    certificate, key = given.get(f"{prefix}cert"), given.get(f"{prefix}key")
    try:
        context = ssl.create_default_context(cafile=given.get(ca) or None)
        if certificate:
            context.load_cert_chain(certificate, key or None)
    except OSError as error:
        raise ValueError(f"{ca}, {prefix}cert, {prefix}key: a file cannot be used: {error.strerror}") from None
    return context
