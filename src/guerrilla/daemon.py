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
    from asyncio import new_event_loop  # type: ignore[assignment]  # uvloop's loop is one of asyncio's

DESCRIPTORS_PER_CLIENT: Final = 2
"""Its socket, and the file of a large message."""
LAST_RESORT: Final = 10.0
"""Seconds after everything is closed until a process whose tasks or threads do not end is ended all the same."""
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
        self._servers: list[Server] = []
        self._running = False
        # What is opened is put on the stack, to be closed in reverse order; these three are made anew by each start.
        self._opened = contextlib.AsyncExitStack()
        self._closing = asyncio.Lock()
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
        self._opened, self._closing, self._hurry = contextlib.AsyncExitStack(), asyncio.Lock(), asyncio.Event()
        try:
            await self._open()
        except BaseException:
            await self._close()
            raise

    async def shutdown(self) -> None:
        """Stop accepting, let each transaction under way come to its answer, and close everything in reverse order.

        What has not ended after ``shutdown_timeout`` is told 421 and cut off. May be called more than once.
        """
        await self._close()

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
        last_resort = threading.Timer(LAST_RESORT, os._exit, (1,))
        last_resort.daemon = True
        try:
            with asyncio.Runner(loop_factory=new_event_loop) as runner:
                try:
                    runner.run(self._serve(on_started))
                finally:
                    # Everything is closed. A processor that swallows its cancellation would hold the loop for ever.
                    last_resort.start()
        finally:
            last_resort.cancel()

    @contextlib.contextmanager
    def in_thread(self) -> Iterator[Daemon]:
        """Run in a thread of its own as long as the ``with`` block lasts, for a program that has no event loop.

        Raises what ``start`` does.
        """
        started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()

        async def live() -> None:
            ending = asyncio.Event()
            async with self:
                started.set_result((asyncio.get_running_loop(), ending))
                await ending.wait()

        def body() -> None:
            try:
                with asyncio.Runner(loop_factory=new_event_loop) as runner:
                    runner.run(live())
            except BaseException as error:
                if started.done():
                    raise
                started.set_exception(error)

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

        def ignore() -> None:
            self._log(self.config.log_file).warning("this version neither reloads nor reopens: stop and start it")

        handlers = dict.fromkeys((signal.SIGTERM, signal.SIGINT, signal.SIGQUIT), end)
        # The Go program's reload and reopen are no reason to die and to cut everybody off.
        handlers |= dict.fromkeys((signal.SIGHUP, signal.SIGUSR1), ignore)
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        try:
            async with self:
                if on_started is not None:
                    on_started(self)
                await ending.wait()
        finally:
            for number in handlers:
                loop.remove_signal_handler(number)

    # Opening, in this order.

    async def _open(self) -> None:
        log = self._log(self.config.log_file)
        self._raise_descriptor_limit(log)
        gateway = None
        backend = self._given_backend
        if backend is None:
            backend = gateway = self._build_gateway(log)
        found = self.registry.check(self.config.backend_config) if gateway is not None else []
        for problem in dict.fromkeys((*self.config.warnings, *found)):
            log.warning("configuration", problem=str(problem))
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
        if gateway is not None:
            try:
                await gateway.initialize()
            except InitializeError as error:
                raise StartError(str(error)) from error
            await gateway.start()
        self._opened.push_async_callback(self._drain)
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
        gateway = Gateway(line, log)
        self._opened.push_async_callback(gateway.shutdown)
        return gateway

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
            server.bind()
        except TLSError as error:
            raise StartError(f"server {config.listen_interface}: {error}") from error
        except OSError as error:
            raise StartError(f"server {config.listen_interface}: cannot listen: {_why(error)}") from error
        self._opened.push_async_callback(server.close)
        self._servers.append(server)

    def _log(self, path: str) -> FilteringBoundLogger:
        if self._given_log is not None:
            return self._given_log
        if path not in self._logs:
            try:
                log = Log(path, self.config.log_level, self.config.log_format)
            except OSError as error:
                raise StartError(f"log_file {path!r}: {error.strerror}") from error
            self._opened.callback(log.close)
            self._logs[path] = log
        return self._logs[path].logger

    def _raise_descriptor_limit(self, log: FilteringBoundLogger) -> None:
        """Ask the system for as many file descriptors as there can be clients."""
        clients = sum(server.max_clients for server in self.config.servers if server.is_enabled)
        needed = clients * DESCRIPTORS_PER_CLIENT + DESCRIPTORS_APART
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft >= needed or soft == resource.RLIM_INFINITY:
            return
        most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        if most < needed:
            log.warning("max_clients is more than the system allows", needed=needed, limit=most)

    def _write_pid_file(self, log: FilteringBoundLogger) -> None:
        if not self.config.pid_file:
            return
        try:
            Path(self.config.pid_file).write_text(f"{os.getpid()}\n", encoding="ascii")
        except OSError as error:
            log.warning("cannot write the pid file", pid_file=self.config.pid_file, cause=error.strerror)
            return
        self._opened.callback(self._remove_pid_file)

    # Closing, in reverse.

    async def _close(self) -> None:
        async with self._closing:  # who comes second waits for the first
            try:
                await self._opened.aclose()
            finally:
                self._servers = []
                self._logs = {}
                self._running = False

    async def _drain(self) -> None:
        """Accept nothing more, and wait until all transactions have ended, but not longer than allowed."""
        everyone = asyncio.gather(*(server.drain() for server in self._servers))
        hurry = asyncio.create_task(self._hurry.wait())
        ends = (everyone, hurry)
        try:
            await asyncio.wait(ends, timeout=self.config.shutdown_timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            hurry.cancel()
            everyone.cancel()
            await asyncio.gather(*ends, return_exceptions=True)

    def _remove_pid_file(self) -> None:
        path = Path(self.config.pid_file)
        with contextlib.suppress(OSError, ValueError):
            if path.read_text(encoding="ascii").strip() == str(os.getpid()):  # another's is not ours to remove
                path.unlink()


def _why(error: OSError) -> str:
    """Say what to do about the two errors that everybody meets."""
    if isinstance(error, PermissionError):
        return f"{os.strerror(errno.EACCES)}; ports below 1024 need root, or the capability CAP_NET_BIND_SERVICE"
    if error.errno == errno.EADDRINUSE:
        return f"{os.strerror(errno.EADDRINUSE)}; another server is running there"
    return str(error.strerror or error)
