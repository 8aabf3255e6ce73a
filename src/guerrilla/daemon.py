"""The daemon: owns the servers, the generation that holds by now, and the events; opens and closes them in order.

What the Go program kept in globals is here, in an object, so two daemons can live in one process and not know of each
other. What one configuration makes is a Generation; a reload builds a new one beside the old one, swaps, and drains.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

from structlog.typing import FilteringBoundLogger

from guerrilla import privileges, service
from guerrilla.backends.base import Backend
from guerrilla.backends.gateway import Gateway
from guerrilla.backends.processor import Factory
from guerrilla.backends.registry import Registry
from guerrilla.config import AppConfig, ConfigError, Problem, ServerConfig, as_config, load
from guerrilla.config_changes import changes, only_at_start
from guerrilla.counters import Counters
from guerrilla.descriptors import raise_descriptor_limit
from guerrilla.doors import Doors
from guerrilla.event_bus import EventBus
from guerrilla.events import Event, LogFileReopened, ServerLogFileReopened
from guerrilla.generation import Generation, Place, StartError, forget_log, log_only, places
from guerrilla.log import as_logger
from guerrilla.loop_lag import LoopLag
from guerrilla.own_stats import OwnStats
from guerrilla.pid_file import PidFile
from guerrilla.processes import Share
from guerrilla.server.limits import Memory
from guerrilla.server.listener import Server
from guerrilla.server.witness import Witness
from guerrilla.stats import Stats

__all__ = ["Daemon", "StartError"]

ResultT = TypeVar("ResultT")


class Daemon:
    """An SMTP server with a production line behind it.

        async with Daemon({"backend_config": {"save_process": "HeadersParser|Hasher|Header|Sql"}}) as daemon:
            ...

    ``config`` is an AppConfig, a mapping with the keys of the configuration file, or None for the embedded default:
    127.0.0.1:2525, any recipient, mail kept in guerrilla.db. ``backend`` takes the place of the gateway, ``log`` that
    of the logs that the configuration describes: a logger of structlog or of the standard library. Neither is closed
    at the end.

    Raises:
        ConfigError: if the mapping is no configuration.
        TypeError: if the logger is neither.
    """

    def __init__(
        self,
        config: AppConfig | Mapping[str, Any] | None = None,
        *,
        backend: Backend | None = None,
        log: FilteringBoundLogger | logging.Logger | None = None,
    ) -> None:
        self.config = as_config(config)
        self.registry = Registry()
        self._given_backend = backend
        self._given_log = as_logger(log) if log is not None else None
        self._memory = Memory(0)
        self._events = EventBus()
        self._counters = Counters()
        self._lag = LoopLag()
        self._generation: Generation | None = None
        self._stats = OwnStats(self._counters, self._memory, self._lag, self._events, self._gateway)
        self._servers: dict[Place, Server] = {}
        self._retiring: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid_file = PidFile()
        self._running = False
        self._ending = False
        self.share: Share | None = None
        """What this process has in common with others, if it is one of several."""
        self._doors = Doors()
        # What is opened is put on the stack, to be closed in reverse order; these are made anew by each start.
        self._opened = contextlib.AsyncExitStack()
        self._closing = asyncio.Lock()
        self._reloading = asyncio.Lock()
        self._hurry = asyncio.Event()

    # Before the start.

    def add_processor(self, name: str, factory: Factory) -> None:
        """Let ``name`` stand for a processor in ``save_process`` and ``validate_process``.

        ``factory`` is a Processor class, a ``@processor`` function, or a function that returns a Decorator. It takes
        the place of a shipped one of that name, from the next start or reload on. Raises ValueError for a bad name,
        TypeError for what is no processor.
        """
        self.registry.add(name, factory)

    def load_config(self, path: str | os.PathLike[str]) -> AppConfig:
        """Read a configuration file and check it, this daemon's own processors included; nothing takes effect.

        Raises ConfigError with all that is wrong, each problem with its place.
        """
        return load(path, self.registry.check)

    def check(self, config: AppConfig) -> None:
        """Raise ConfigError with all that is wrong with ``backend_config``, or StartError for an unknown user."""
        problems = [problem for problem in self.registry.check(config.backend_config) if not problem.warning]
        if problems and self._given_backend is None:
            raise ConfigError(problems, config.source)
        try:
            privileges.owner(config.user, config.group)
        except privileges.PrivilegeError as error:
            raise StartError(str(error)) from error

    def set_config(self, config: AppConfig | Mapping[str, Any]) -> None:
        """Let a configuration hold from the next start on.

        Raises ConfigError if the mapping is none, RuntimeError if the daemon runs: ``reload_config`` is meant then.
        """
        if self._running:
            raise RuntimeError("the daemon runs: reload_config is meant")
        self.config = as_config(config)

    # Life.

    @property
    def addresses(self) -> list[tuple[ServerConfig, tuple[str, int]]]:
        """Where mail is received: each enabled server, and the address and port that are really bound."""
        found = [(server.policy.config, server.address) for server in self._servers.values()]
        return found + self._doors.addresses(self.config)

    @property
    def log(self) -> FilteringBoundLogger:
        """The daemon's own log: the one that was given, or the one of its configuration while it runs.

        Raises RuntimeError if there is none.
        """
        if self._given_log is not None:
            return self._given_log
        if self._generation is None:
            raise RuntimeError("the daemon does not run, so its log is not open")
        return self._generation.log

    async def start(self) -> None:
        """Open everything, and receive mail from here on. What was opened is closed again when this fails.

        Raises:
            ConfigError: with all that is wrong with ``backend_config``.
            StartError: if a port, a file or a store cannot be had.
        """
        if self._running:
            raise StartError("the daemon is already running")
        self._running = True
        self._loop = asyncio.get_running_loop()
        self._opened, self._closing, self._reloading = contextlib.AsyncExitStack(), asyncio.Lock(), asyncio.Lock()
        self._hurry = asyncio.Event()
        async with self._reloading:  # who asks for a reload by now waits until there is something to reload
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
        """Start, in this process alone: ``processes`` is for ``run``."""
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Shut down."""
        await self.shutdown()

    # While it runs.

    async def reload_config_file(self, path: str | os.PathLike[str] | None = None) -> None:
        """Read the file, or the one that the present configuration came from, and let it hold: ``reload_config``."""
        if path is None:
            if self.config.source is None:
                raise ConfigError([Problem("configuration", "it did not come from a file", "meant: a path")])
            path = self.config.source.path
        await self.reload_config(self.load_config(path))

    async def reload_config(self, config: AppConfig | Mapping[str, Any]) -> None:
        """Let another configuration hold, while mail flows: build all of it, swap, and drain what was.

        Nothing of it takes effect when this raises. A transaction under way ends on the configuration it began with.
        Clients stay connected; only those of a server that is gone or off are told 421 between two transactions.
        What only a start can change (``processes``, ``user``, ``group``, ``control_socket``) is said in the log.

        Raises:
            ConfigError: with all that is wrong with it.
            StartError: if a port, a file or a store cannot be had.
        """
        config = as_config(config)
        if not self._running:
            self.config = config
            return
        async with self._reloading:
            await self._reload(config)

    def reopen_logs(self) -> None:
        """Open all log files anew, after they were renamed. One that cannot be opened stays in use, and says so."""
        if self._generation is None:
            return
        for path, error in self._generation.reopen_logs():
            self._generation.log.error("cannot reopen the log", log_file=path, cause=error.strerror)
        if not self._running:
            return  # several processes: each tells it itself
        self._events.publish(LogFileReopened(old=self.config, new=self.config))
        for server in places(self.config).values():
            if server.log_file:
                self._events.publish(ServerLogFileReopened(old=server, new=server))

    # Who wants to know.

    def subscribe(self, event: type[Event] | str, function: Callable[[Any], object]) -> None:
        """Have a function called at each event of a class (or of one below it), or with a topic: ``mail:queued``.

        An ``async def`` runs on the daemon's loop, a plain function in a thread of its own. One that raises or hangs
        harms nobody: it only misses events. A subscription may come before the start, and outlives a shutdown. Raises
        ValueError for an unknown topic, TypeError for what is neither.
        """
        self._events.subscribe(event, function)

    def unsubscribe(self, event: type[Event] | str, function: Callable[[Any], object]) -> None:
        """End a subscription. Raises ValueError if there is none."""
        self._events.unsubscribe(event, function)

    def publish(self, event: Event) -> None:
        """Tell an event to who has subscribed to it; from any thread. Never waits, never raises."""
        self._events.publish(event)

    def stats(self) -> Stats:
        """Return what has happened since the start, and what is under way, over all processes."""
        return self._stats.total()

    def _gateway(self) -> Gateway | None:
        return self._generation.gateway if self._generation is not None else None

    # Ways to run.

    def run(
        self,
        on_started: Callable[[Daemon], None] | None = None,
        *,
        read_config: Callable[[], AppConfig] | None = None,
        control: bool = False,
    ) -> None:
        """Run until SIGTERM, SIGINT or SIGQUIT, then drain and return; a second signal hurries.

        SIGHUP reads the configuration anew, from its file or by ``read_config``; SIGUSR1 opens the logs anew. On uvloop
        where it is to be had. ``on_started`` is called once mail is received. With ``control`` there is a socket for
        ``guerrillad status``, ``top`` and ``reload``. When ``processes`` is not 1, this process only watches over so
        many others, each with its own copy of processors and subscriptions. Raises what ``start`` does.
        """
        service.run(self, on_started, read_config, control=control)

    @contextlib.contextmanager
    def in_thread(self) -> Iterator[Daemon]:
        """Run in a thread of its own as long as the ``with`` block lasts, for a program that has no event loop.

        ``call`` is how such a program uses what is asynchronous here. ``processes`` does not count: this is one.
        Raises what ``start`` does.
        """
        with service.in_thread(self):
            yield self

    def call(self, coroutine: Coroutine[Any, Any, ResultT]) -> ResultT:
        """Run a coroutine on the daemon's loop, from another thread, and return its result.

            with daemon.in_thread():
                daemon.call(daemon.reload_config_file())

        Raises what the coroutine raises, and RuntimeError if the daemon does not run, or if this is its own loop.
        """
        return service.call(self._loop if self._running else None, coroutine)

    # Opening, in this order.

    async def _open(self) -> None:
        config = self.config
        if not places(config):
            raise StartError("servers: not one is enabled")
        self.check(config)  # which also imports what the line needs, while we may read it
        self._opened.callback(self.close_sockets, None)
        self.open_sockets(config)
        if self.share is None:
            self.drop_privileges()
        forget_log(self._generation)  # the supervisor's, in one of several processes
        generation = self._generation = Generation(config, backend=self._given_backend, log=self._given_log)
        self._opened.push_async_callback(self._close_generation)
        self._events.start(generation.log)
        self._opened.push_async_callback(self._events.close)
        self._memory.limit = self._memory_limit(config)
        await generation.build(self.registry, self._memory, self._counters)
        raise_descriptor_limit(config, generation.log)
        self._opened.push_async_callback(self._close_servers)
        self._take_over(generation)
        await generation.start()
        self._opened.push_async_callback(self._drain)
        for server in self._servers.values():
            self._start_server(server)
        self._lag.start()
        self._opened.callback(self._lag.stop)
        if self.share is not None:
            self._stats.publish(self.share)
            self._opened.callback(self._stats.stop)
            return
        self._opened.callback(self._pid_file.remove)
        self._pid_file.write(config.pid_file, generation.log)
        if (meant := service.process_count(config)) != 1:
            generation.log.warning("there is one process: only Daemon.run starts several", processes=meant)

    def inherit(self, sockets: Sequence[socket.socket]) -> None:
        """Take over sockets that listen already, for the servers that listen there, now or after a reload."""
        self._doors.inherit(sockets)

    def drop_privileges(self) -> None:
        """Become the user and the group of the configuration. Raises StartError if that cannot be."""
        try:
            privileges.drop(self.config.user, self.config.group)
        except privileges.PrivilegeError as error:
            raise StartError(str(error)) from error

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Have a log and a pid file without receiving mail: for the process that watches over those that do."""
        try:
            self._generation = log_only(self.config, self._given_log)
            self._pid_file.write(self.config.pid_file, self.log)
            yield
        finally:
            self._pid_file.remove()
            forget_log(self._generation)
            self._generation = None

    def watch(self) -> None:
        """Let log and pid file be those of the configuration, while ``watching``. Raises StartError; then they stay."""
        new = log_only(self.config, self._given_log)
        try:
            self._move_pid_file(self.config)
        except StartError:
            forget_log(new)
            raise
        forget_log(self._generation)
        self._generation = new

    def _move_pid_file(self, config: AppConfig) -> None:
        try:
            self._pid_file.move(config.pid_file)
        except OSError as error:
            raise StartError(f"pid_file {config.pid_file!r}: {error.strerror}") from error

    def open_sockets(self, config: AppConfig) -> None:
        """Open the listening sockets of all servers of this configuration now; the start would do it otherwise.

        Nobody is accepted yet; who comes waits. Raises StartError; then no more are open than before.
        """
        self._doors.open(config, besides=self._servers)

    def close_sockets(self, config: AppConfig | None) -> None:
        """Close the sockets that have no server yet, and none in this configuration either; without one, all."""
        self._doors.close(config)

    def _start_server(self, server: Server) -> None:
        server.start()
        address = "[{}]:{}" if ":" in server.address[0] else "{}:{}"
        self.log.info("receiving", address=address.format(*server.address), listen_interface=server.name)

    def _take_over(self, generation: Generation) -> list[Server]:
        """Let each server live by its policy of this generation; return those that it does not have."""
        removed = [server for place, server in self._servers.items() if place not in generation.policies]
        kept, self._servers = self._servers, {}
        witness = Witness(self._counters, self._events)
        for place, policy in generation.policies.items():
            if place in kept:
                kept[place].adopt(policy)
                self._servers[place] = kept[place]
            else:
                clients = self.share.clients(place, policy.config) if self.share is not None else None
                held = self._doors.held(place)
                self._servers[place] = Server(policy, self._doors.take(place), witness, clients=clients, held=held)
        return removed

    def _memory_limit(self, config: AppConfig) -> int:
        return config.memory_limit // (self.share.processes if self.share else 1)

    # Reloading.

    async def _reload(self, config: AppConfig) -> None:
        old = self._generation
        if old is None:
            raise StartError("the daemon does not run any more")
        self.check(config)
        new = Generation(config, backend=self._given_backend, log=self._given_log)
        self.open_sockets(config)
        fresh = self._doors.places
        try:
            await new.build(self.registry, self._memory, self._counters)
            await new.start()
            if self._ending:
                raise StartError("the daemon is shutting down")
            self._move_pid_file(config)
        except BaseException:
            self.close_sockets(self.config)
            await new.close()
            raise
        # From here on nothing can fail, and nobody else has a turn until all of it is done.
        renewed = [
            place[0]
            for place, policy in new.policies.items()
            if place in old.policies and old.policies[place].tls_files != policy.tls_files
        ]
        self._generation = new
        for server in (removed := self._take_over(new)):
            server.stop_accepting()
        self._memory.limit = self._memory_limit(config)
        retiring = asyncio.get_running_loop().create_task(self._retire(old, removed))
        self._retiring.add(retiring)
        retiring.add_done_callback(self._retiring.discard)
        old_config, self.config = self.config, config
        raise_descriptor_limit(config, new.log)
        for place in fresh:
            self._start_server(self._servers[place])
        for change in changes(old_config, config, renewed):
            self._events.publish(change)
        for key in only_at_start(old_config, config):
            new.log.warning("takes effect at the next start only", key=key)

    async def _retire(self, old: Generation, removed: Sequence[Server]) -> None:
        """Let what began under another configuration come to its end, and close what that was made of."""
        try:
            await self._drain_servers(removed)
            for server in removed:
                await server.close()
            for policy in old.policies.values():
                await policy.abandoned()
        finally:
            await old.close()

    # Closing, in reverse.

    async def _close(self) -> None:
        self._ending = True
        async with self._closing:  # who comes second waits for the first
            try:
                await self._opened.aclose()
            finally:
                self._servers = {}
                self._running = self._ending = False

    async def _drain(self) -> None:
        """Accept nothing more, and wait until all transactions have ended, but not longer than allowed."""
        await self._drain_servers(list(self._servers.values()))

    async def _drain_servers(self, servers: Sequence[Server]) -> None:
        everyone = asyncio.gather(*(server.drain() for server in servers))
        hurry = asyncio.create_task(self._hurry.wait())
        ends = (everyone, hurry)
        try:
            await asyncio.wait(ends, timeout=self.config.shutdown_timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            hurry.cancel()
            everyone.cancel()
            await asyncio.gather(*ends, return_exceptions=True)

    async def _close_servers(self) -> None:
        """Cut off who is still there, and wait for what earlier configurations still had to do."""
        for server in self._servers.values():
            await server.close()
        if self._retiring:
            await asyncio.wait(self._retiring)

    async def _close_generation(self) -> None:
        generation, self._generation = self._generation, None
        if generation is not None:
            await generation.close()
