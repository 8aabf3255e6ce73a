"""What the command ``check`` looks at outside of the file: folders, keys and certificates, addresses, users.

Nothing is made, opened for writing, or connected to. Each problem is one that ``serve`` would end with.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from dataclasses import replace

from guerrilla.backends.registry import Registry
from guerrilla.config import AppConfig, Problem, ServerConfig, TLSConfig
from guerrilla.privileges import PrivilegeError, owner
from guerrilla.server.key_pairs import read_file
from guerrilla.server.tls import TLSError, make_context
from guerrilla.smtp.hosts import AllowedHosts


def outside(settings: AppConfig, registry: Registry) -> Iterator[Problem]:
    """Find what the configuration says of the world around it that does not hold."""
    try:
        AllowedHosts(settings.allowed_hosts)
    except ValueError as error:
        yield Problem("allowed_hosts", str(error), "meant: a domain, or an IP address in brackets")
    yield from _identity(settings)
    yield from _log_file(settings.log_file, "log_file")
    if settings.spool_path and not os.access(settings.spool_path, os.W_OK | os.X_OK):
        yield Problem("spool_path", f"no file can be made in {settings.spool_path}", "meant: a folder to write in")
    for index, server in enumerate(settings.servers):
        if server.is_enabled:
            yield from _server(server, f"servers[{index}]")
    yield from _sqlite_files(settings, registry)


def _identity(settings: AppConfig) -> Iterator[Problem]:
    try:
        owner(settings.user, settings.group)
    except PrivilegeError as error:
        key, _, message = str(error).partition(": ")
        yield Problem(key, message)


def _server(server: ServerConfig, place: str) -> Iterator[Problem]:
    try:
        socket.getaddrinfo(server.host or None, server.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        yield Problem(f"{place}.listen_interface", f"{server.host} is no address of a machine: {error.strerror}")
    yield from _log_file(server.log_file, f"{place}.log_file")
    yield from _tls_files(server.tls, f"{place}.tls")


def _log_file(path: str, place: str) -> Iterator[Problem]:
    if path in ("", "stderr", "stdout", "off"):
        return
    reason = _unwritable(path)
    if reason:
        yield Problem(place, f"{path} cannot be written: {reason}")


def _unwritable(path: str) -> str:
    """Say why a file cannot be opened for writing, or made; empty if it can."""
    folder = os.path.dirname(path) or "."
    if os.path.isdir(path):
        code = errno.EISDIR
    elif not os.path.isdir(folder):
        code = errno.ENOTDIR if os.path.exists(folder) else errno.ENOENT
    elif not (os.access(path, os.W_OK) if os.path.exists(path) else os.access(folder, os.W_OK | os.X_OK)):
        code = errno.EACCES
    else:
        return ""
    return os.strerror(code)


def _sqlite_files(settings: AppConfig, registry: Registry) -> Iterator[Problem]:
    seen: set[str] = set()
    for config in registry.configurations(settings.backend_config):
        if getattr(config, "sql_driver", "") == "sqlite":
            from guerrilla.stores.dsn import read_dsn  # SQLAlchemy: only who has it in the line needs it

            path = str(read_dsn("sqlite", config.sql_dsn))  # type: ignore[attr-defined]  # it comes with sql_driver
            reason = _unwritable(path)
            if reason and path not in seen:
                yield Problem("backend_config.sql_dsn", f"{path} cannot be written: {reason}")
            seen.add(path)


def _tls_files(tls: TLSConfig, place: str) -> Iterator[Problem]:
    if not (tls.start_tls_on or tls.tls_always_on):
        return
    pair = ("private_key_file", "public_key_file")
    files = {f"{place}.{key}": getattr(tls, key) for key in (*pair, "root_cas_file")}
    for index, more in enumerate(tls.certificates):
        files |= {f"{place}.certificates[{index}].{key}": getattr(more, key) for key in pair}
    readable = True
    for key, path in files.items():
        try:
            if path:
                read_file(path)
        except OSError as error:
            readable = False
            yield Problem(key, f"{path} cannot be read: {error.strerror}")
    if readable:
        doubts: list[Problem] = []
        try:
            make_context(tls, doubts.append)
        except TLSError as error:
            yield Problem(place, str(error))
        for doubt in doubts:
            yield replace(doubt, place=place.removesuffix("tls") + doubt.place)
