"""One configuration, built: the logs, the gateway, and each server's policy. A reload builds another and drops this.

What outlives a configuration is not here: sockets, connections, counters, and the subscriptions to events.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from typing import TypeAlias

from structlog.typing import FilteringBoundLogger

from guerrilla.backends.base import Backend
from guerrilla.backends.gateway import Gateway, InitializeError
from guerrilla.backends.registry import Registry
from guerrilla.config import AppConfig, ConfigError, ServerConfig
from guerrilla.counters import Counters
from guerrilla.log import Log
from guerrilla.server.limits import Memory
from guerrilla.server.policy import Policy
from guerrilla.server.spool import Spool
from guerrilla.server.tls import TLSError
from guerrilla.smtp.hosts import AllowedHosts


class StartError(Exception):
    """The daemon cannot be started, or cannot take over a configuration; the text says why, and what can be done."""


Place: TypeAlias = tuple[str, int]
"""What a server is known by from one configuration to the next: its ``listen_interface``, and which one of that name it
is. Only those on "any free port" can share a name."""


def places(config: AppConfig) -> dict[Place, ServerConfig]:
    """Return the enabled servers, each by what it is known by."""
    found: dict[Place, ServerConfig] = {}
    count: Counter[str] = Counter()
    for server in config.servers:
        if server.is_enabled:
            found[server.listen_interface, count[server.listen_interface]] = server
            count[server.listen_interface] += 1
    return found


class Generation:
    """All that is made from one configuration and goes with it: ``build``, ``start``, and at the end ``close``.

    ``backend`` takes the place of the gateway, ``log`` that of the logs; neither is closed here.
    """

    def __init__(
        self, config: AppConfig, *, backend: Backend | None = None, log: FilteringBoundLogger | None = None
    ) -> None:
        self.config = config
        self.policies: dict[Place, Policy] = {}
        """The policy of each enabled server."""
        self.gateway: Gateway | None = None
        self._given_backend = backend
        self._given_log = log
        self._logs: dict[tuple[str, str], Log] = {}

    @property
    def log(self) -> FilteringBoundLogger:
        """The daemon's own log. Raises StartError if its file cannot be opened."""
        return self._open_log(self.config.log_file, self.config.log_level)

    def open_log(self) -> None:
        """Open the daemon's own log now, and not when it is first used. Raises as ``log`` does."""
        self._open_log(self.config.log_file, self.config.log_level)

    async def build(self, registry: Registry, memory: Memory, counters: Counters) -> None:
        """Make everything that can be made before the start; nothing outside is touched but files that are opened.

        ``memory`` and ``counters`` are the daemon's: they outlive a configuration.

        Raises:
            ConfigError: with all that is wrong with ``backend_config``.
            StartError: if a file or a name cannot be had.
        """
        log = self.log
        backend = self._given_backend
        if backend is None:
            backend = self.gateway = self._build_gateway(registry, log, counters)
        config = self.config
        found = registry.check(config.backend_config) if self.gateway is not None else []
        for problem in dict.fromkeys((*config.warnings, *found)):
            log.warning("configuration", problem=str(problem))
        spool = self._open_spool(memory)
        try:
            hosts = AllowedHosts(config.allowed_hosts or [socket.gethostname()])
        except ValueError as error:
            raise StartError(f"allowed_hosts: {error}") from error
        for place, server in places(config).items():
            self.policies[place] = await self._policy(server, hosts, backend, spool)

    async def start(self) -> None:
        """Open what the processors need, and let the workers begin. Raises StartError if one cannot be opened."""
        if self.gateway is None:
            return
        try:
            await self.gateway.initialize()
        except InitializeError as error:
            raise StartError(f"backend_config: {error}") from error
        await self.gateway.start()

    def reopen_logs(self) -> list[tuple[str, OSError]]:
        """Open all log files anew, and return those that cannot be opened: they stay in use as they are."""
        failed = []
        for (path, _), log in self._logs.items():
            try:
                log.reopen()
            except OSError as error:
                failed.append((path, error))
        return failed

    async def close(self) -> None:
        """Let the gateway come to its end, then close the logs. May be called in any state.

        Nobody lives by the policies any more: whoever asked has an answer, or was told 4xx and the work is void.
        """
        try:
            if self.gateway is not None:
                await self.gateway.shutdown(0.0)
                await asyncio.sleep(0)  # what was answered last is logged by those who asked
        finally:
            self.close_logs()

    def close_logs(self) -> None:
        """Close the logs; nothing else was made."""
        for log in self._logs.values():
            log.close()

    def _build_gateway(self, registry: Registry, log: FilteringBoundLogger, counters: Counters) -> Gateway:
        try:
            return Gateway(registry.build(self.config.backend_config, counters), log)
        except ConfigError as error:
            raise ConfigError(error.problems, self.config.source) from None

    def _open_spool(self, memory: Memory) -> Spool:
        config = self.config
        try:
            return Spool(memory, config.spool_threshold, config.spool_path)
        except OSError as error:
            raise StartError(
                f"spool_path {config.spool_path!r}: no file can be made there: {error.strerror}"
            ) from error

    async def _policy(self, server: ServerConfig, hosts: AllowedHosts, backend: Backend, spool: Spool) -> Policy:
        where = f"server {server.listen_interface}: " if server.log_file else ""
        path, level = server.log_file or self.config.log_file, server.log_level or self.config.log_level
        log = self._open_log(path, level, where)
        try:
            # A thousand certificates take seconds, in which mail flows on.
            return await asyncio.to_thread(Policy, server, hosts=hosts, backend=backend, spool=spool, log=log)
        except TLSError as error:
            raise StartError(f"server {server.listen_interface}: {error}") from error

    def _open_log(self, path: str, level: str, where: str = "") -> FilteringBoundLogger:
        if self._given_log is not None:
            return self._given_log
        if (path, level) not in self._logs:
            try:
                self._logs[path, level] = Log(path, level, self.config.log_format)
            except OSError as error:
                raise StartError(f"{where}log_file {path!r}: {error.strerror}") from error
        return self._logs[path, level].logger


def log_only(config: AppConfig, given: FilteringBoundLogger | None = None) -> Generation:
    """Return one that has the log of a configuration and nothing else. Raises StartError if it cannot be opened."""
    new = Generation(config, log=given)
    new.open_log()
    return new


def forget_log(old: Generation | None) -> None:
    """Close the log of one that has nothing else, if there is one."""
    if old is not None:
        old.close_logs()
