"""The daemon: owns the listeners, the gateway, the log and the configuration, and opens and closes them in order.

What the Go program kept in globals is here, in an object, so two daemons can live in one process and not know of each
other.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from structlog.typing import FilteringBoundLogger

from guerrilla.backends.base import Backend
from guerrilla.backends.gateway import Gateway, InitializeError
from guerrilla.backends.processor import Factory
from guerrilla.backends.registry import Registry
from guerrilla.config import AppConfig, ConfigError, ServerConfig, parse
from guerrilla.log import Log
from guerrilla.server.limits import Memory
from guerrilla.server.listener import Server
from guerrilla.server.spool import Spool
from guerrilla.server.tls import TLSError
from guerrilla.smtp.hosts import AllowedHosts

try:
    from uvloop import new_event_loop
except ImportError:
    from asyncio import new_event_loop  # type: ignore[assignment]

DESCRIPTORS_APART: Final = 64
"""File descriptors that are needed beside those of the clients: stores, logs, the loop itself."""


class StartError(Exception):
    """The daemon cannot be started; the text says why, and what can be done."""


class Daemon:
    """An SMTP server with a production line behind it.

        async with Daemon({"backend_config": {"save_process": "HeadersParser|Hasher|Header|Sql"}}) as daemon:
            ...

    ``config`` is an AppConfig, a mapping with the keys of the configuration file, or None for the embedded default:
    127.0.0.1:2525, any recipient, mail kept in guerrilla.db. ``backend`` takes the place of the gateway, ``log`` that
    of the log that the configuration describes; neither is closed at the end.

    Raises:
        ConfigError: if the mapping is no configuration.
    """

    def __init__(
        self,
        config: AppConfig | Mapping[str, Any] | None = None,
        *,
        backend: Backend | None = None,
        log: FilteringBoundLogger | None = None,
    ) -> None:
        if config is None:
            config = AppConfig.embedded()
        self.config = config if isinstance(config, AppConfig) else parse(config)
        self.registry = Registry()
        self._given_backend = backend
        self._given_log = log
        self._logs: dict[str, Log] = {}
        self._gateway: Gateway | None = None
        self._servers: list[Server] = []
        self._running = False
        self._hurry = asyncio.Event()

    def add_processor(self, name: str, factory: Factory) -> None:
        """Let ``name`` stand for a processor in ``save_process`` and ``validate_process``; call it before the start.

        ``factory`` is a Processor class, a ``@processor`` function, or a function that returns a Decorator. It takes
        the place of a shipped one of that name. Raises ValueError for a bad name, TypeError for what is no processor.
        """
        self.registry.add(name, factory)

    @property
    def addresses(self) -> list[tuple[ServerConfig, tuple[str, int]]]:
        """Where mail is received: each enabled server, and the address and port that are really bound."""
        return [(server.config, server.address) for server in self._servers]

    async def start(self) -> None:
        """Open everything, and receive mail from here on. What was opened is closed again when this fails.

        Raises:
            ConfigError: with all that is wrong with ``backend_config``.
            StartError: if a port, a file or a store cannot be had.
        """
        if self._running:
            raise StartError("the daemon is already running")
        self._running = True
        try:
            await self._open()
        except BaseException:
            await self._close(drain=False)
            raise

    async def shutdown(self) -> None:
        """Stop accepting, let each transaction under way come to its answer, and close everything in reverse order.

        What has not ended after ``shutdown_timeout`` is told 421 and cut off. May be called more than once.
        """
        await self._close(drain=True)

    def hurry(self) -> None:
        """Cut a shutdown short: what is still under way is told 421 and cut off now."""
        self._hurry.set()

    async def __aenter__(self) -> Daemon:
        """Start."""
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Shut down."""
        await self.shutdown()

    def run(self, on_started: Callable[[Daemon], None] | None = None) -> None:
        """Run until SIGTERM, SIGINT or SIGQUIT, then drain and return; a second signal hurries.

        On uvloop where it is to be had. ``on_started`` is called once mail is received. Raises what ``start`` does.
        """
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(self._serve(on_started))

    @contextlib.contextmanager
    def in_thread(self) -> Iterator[Daemon]:
        """Run in a thread of its own as long as the ``with`` block lasts, for a program that has no event loop.

        Raises what ``start`` does.
        """
        started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()

        async def live() -> None:
            try:
                await self.start()
            except BaseException as error:
                started.set_exception(error)
                return
            ending = asyncio.Event()
            started.set_result((asyncio.get_running_loop(), ending))
            await ending.wait()
            await self.shutdown()

        def body() -> None:
            with asyncio.Runner(loop_factory=new_event_loop) as runner:
                runner.run(live())

        thread = threading.Thread(target=body, name="guerrilla")
        thread.start()
        try:
            loop, ending = started.result()
            try:
                yield self
            finally:
                loop.call_soon_threadsafe(ending.set)
        finally:
            thread.join()

    async def _serve(self, on_started: Callable[[Daemon], None] | None) -> None:
        loop = asyncio.get_running_loop()
        ending = asyncio.Event()

        def end() -> None:
            if ending.is_set():
                self.hurry()
            ending.set()

        signals = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
        for number in signals:
            loop.add_signal_handler(number, end)
        try:
            await self.start()
            if on_started is not None:
                on_started(self)
            await ending.wait()
            await self.shutdown()
        finally:
            for number in signals:
                loop.remove_signal_handler(number)

    # Opening, in this order.

    async def _open(self) -> None:
        log = self._log(self.config.log_file)
        self._hurry.clear()
        self._raise_descriptor_limit(log)
        backend = self._given_backend or self._build_gateway(log)
        spool = self._open_spool()
        try:
            hosts = AllowedHosts(self.config.allowed_hosts or [socket.gethostname()])
        except ValueError as error:
            raise StartError(f"allowed_hosts: {error}") from error
        for config in self.config.servers:
            if config.is_enabled:
                self._bind(config, hosts, backend, spool)
        if not self._servers:
            raise StartError("servers: not one is enabled")
        if self._gateway is not None:
            try:
                await self._gateway.initialize()
            except InitializeError as error:
                raise StartError(str(error)) from error
            await self._gateway.start()
        for server in self._servers:
            server.start()
            host, port = server.address
            log.info("receiving", address=f"{host}:{port}", listen_interface=server.name)
        self._write_pid_file(log)

    def _build_gateway(self, log: FilteringBoundLogger) -> Gateway:
        try:
            line = self.registry.build(self.config.backend_config)
        except ConfigError as error:
            raise ConfigError(error.problems, self.config.source) from None
        for problem in dict.fromkeys((*self.config.warnings, *self.registry.check(self.config.backend_config))):
            log.warning("configuration", problem=str(problem))
        self._gateway = Gateway(line, log)
        return self._gateway

    def _open_spool(self) -> Spool:
        config = self.config
        try:
            return Spool(Memory(config.memory_limit), config.spool_threshold, config.spool_path)
        except OSError as error:
            raise StartError(
                f"spool_path {config.spool_path!r}: no file can be made there: {error.strerror}"
            ) from error

    def _bind(self, config: ServerConfig, hosts: AllowedHosts, backend: Backend, spool: Spool) -> None:
        log = self._log(config.log_file or self.config.log_file)
        try:
            server = Server(config, hosts=hosts, backend=backend, spool=spool, log=log)
            self._servers.append(server)
            server.bind()
        except TLSError as error:
            raise StartError(f"server {config.listen_interface}: {error}") from error
        except OSError as error:
            self._servers.pop()
            raise StartError(f"server {config.listen_interface}: cannot listen: {_why(error)}") from error

    def _log(self, path: str) -> FilteringBoundLogger:
        if self._given_log is not None:
            return self._given_log
        if path not in self._logs:
            try:
                self._logs[path] = Log(path, self.config.log_level, self.config.log_format)
            except OSError as error:
                raise StartError(f"log_file {path!r}: {error.strerror}") from error
        return self._logs[path].logger

    def _raise_descriptor_limit(self, log: FilteringBoundLogger) -> None:
        """Ask the system for as many file descriptors as there can be clients."""
        needed = sum(server.max_clients for server in self.config.servers if server.is_enabled) + DESCRIPTORS_APART
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft >= needed or soft == resource.RLIM_INFINITY:
            return
        most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        if most < needed:
            log.warning("max_clients is more than the system allows", needed=needed, limit=most)

    def _write_pid_file(self, log: FilteringBoundLogger) -> None:
        if self.config.pid_file:
            try:
                Path(self.config.pid_file).write_text(f"{os.getpid()}\n", encoding="ascii")
            except OSError as error:
                log.warning("cannot write the pid file", pid_file=self.config.pid_file, cause=error.strerror)

    # Closing, in reverse.

    async def _close(self, *, drain: bool) -> None:
        if not self._running:
            return
        self._remove_pid_file()
        for server in self._servers:
            server.stop_accepting()
        if drain:
            await self._drain()
        for server in self._servers:
            await server.close()
        self._servers = []
        if self._gateway is not None:
            await self._gateway.shutdown()
            self._gateway = None
        for log in self._logs.values():
            log.close()
        self._logs = {}
        self._running = False

    async def _drain(self) -> None:
        """Wait until all transactions have ended, but not longer than allowed."""
        drains = [asyncio.create_task(server.drain()) for server in self._servers]
        hurry = asyncio.create_task(self._hurry.wait())
        everyone = asyncio.gather(*drains)
        await asyncio.wait((everyone, hurry), timeout=self.config.shutdown_timeout, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        everyone.cancel()
        await asyncio.gather(hurry, everyone, return_exceptions=True)

    def _remove_pid_file(self) -> None:
        if not self.config.pid_file:
            return
        path = Path(self.config.pid_file)
        with contextlib.suppress(OSError, ValueError):
            if path.read_text(encoding="ascii").strip() == str(os.getpid()):  # another's is not ours to remove
                path.unlink()


def _why(error: OSError) -> str:
    """Say what to do about the two errors that everybody meets."""
    if isinstance(error, PermissionError):
        return f"{error.strerror}; ports below 1024 need root, or the capability CAP_NET_BIND_SERVICE"
    if error.errno == errno.EADDRINUSE:
        return f"{error.strerror}; another server is running there"
    return str(error.strerror or error)
