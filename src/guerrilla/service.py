"""The process around a daemon: its event loop, its signals, and the thread for a program that has no loop.

What a signal means is decided here and nowhere else: SIGTERM, SIGINT and SIGQUIT drain, and hurry when they come again;
SIGHUP reads the configuration anew; SIGUSR1 opens the logs anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Final, Generic, Protocol, TypeVar

import guerrilla.privileges as privileges
import guerrilla.systemd as systemd
from guerrilla.config import AppConfig, ConfigError, Problem
from guerrilla.control import (
    CLOSE_TIMEOUT,
    Control,
    ControlError,
    answer_blocking,
    close_control,
    control_path,
    open_control,
    tell_blocking,
)
from guerrilla.events import Event
from guerrilla.generation import StartError
from guerrilla.processes import DRAIN, HOLDS, HURRY, REOPEN, Share, Supervised
from guerrilla.server.tls import without_tracebacks
from guerrilla.stats import Stats
from guerrilla.supervisor import Supervisor

try:
    from uvloop import new_event_loop
except ImportError:
    from asyncio import new_event_loop  # type: ignore[assignment]  # uvloop's loop is one of asyncio's

LAST_RESORT: Final = 5.0
"""Seconds after everything is closed until a process whose tasks or threads do not end is ended all the same."""

_LARGE_BLOCK: Final = 4 << 20
"""Octets: twice as many may stay with us unused."""

ReadConfig = Callable[[], AppConfig]


class Served(Supervised, Protocol):
    """What is asked of a daemon here."""

    share: Share | None

    async def __aenter__(self) -> object:
        """Start."""

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Shut down."""

    def hurry(self) -> None:
        """Cut a shutdown short."""

    def publish(self, event: Event) -> None:
        """Tell an event to who has subscribed to it."""

    def load_config(self, path: str) -> AppConfig:
        """Read a configuration file."""

    async def reload_config(self, config: AppConfig) -> None:
        """Let another configuration hold."""

    def stats(self) -> Stats:
        """Return the numbers."""

    def inherit(self, sockets: Sequence[socket.socket]) -> None:
        """Take over sockets that listen already."""

    def drop_privileges(self) -> None:
        """Become the user of the configuration."""

    def watching(self) -> contextlib.AbstractContextManager[None]:
        """Have a log and a pid file, for the supervisor of the processes that receive mail."""


ServedT = TypeVar("ServedT", bound=Served)
ResultT = TypeVar("ResultT")


def process_count(config: AppConfig) -> int:
    """Return how many processes the configuration means: "auto" is one for each processor that we may use."""
    return len(os.sched_getaffinity(0)) if config.processes == "auto" else config.processes


def run(
    daemon: ServedT,
    on_started: Callable[[ServedT], None] | None,
    read_config: ReadConfig | None,
    *,
    control: bool = False,
) -> None:
    """Be the process of this daemon, or the supervisor of its processes, until a signal ends it.

    With ``control`` there is a socket that ``guerrillad status``, ``top`` and ``reload`` speak to. Raises what
    ``Daemon.start`` does.
    """
    with contextlib.ExitStack() as opened:
        opened.enter_context(without_tracebacks())
        notifier = systemd.Notifier()
        opened.callback(notifier.close)
        try:
            daemon.inherit(systemd.listen_sockets())
        except systemd.InheritedError as error:
            raise StartError(f"socket activation: {error}") from error
        opened.callback(daemon.close_sockets, None)
        house = _House(
            daemon, on_started, read_config, notifier, opened.enter_context(_control(daemon, wanted=control))
        )
        if process_count(daemon.config) == 1:
            _run_loop(_Service(house).serve())
        else:
            _supervise(house)


@contextlib.contextmanager
def _control(daemon: Served, *, wanted: bool) -> Iterator[socket.socket | None]:
    try:
        path = control_path(daemon.config) if wanted else None
        listening = open_control(path, _later(daemon.config)) if path is not None else None
    except ControlError as error:
        raise StartError(f"control_socket: {error}") from error
    except privileges.PrivilegeError as error:
        raise StartError(str(error)) from error
    if path is None or listening is None:
        yield None
        return
    try:
        yield listening
    finally:
        close_control(listening, path)


def _later(config: AppConfig) -> tuple[int, int]:
    """Return which user and group root will have become; who is not root stays as he is. Raises PrivilegeError."""
    as_root = os.geteuid() == 0
    return privileges.owner(config.user, config.group) if as_root else (privileges.UNCHANGED, privileges.UNCHANGED)


@dataclass(frozen=True, slots=True)
class _House(Generic[ServedT]):
    """What a process is run with."""

    daemon: ServedT
    on_started: Callable[[ServedT], None] | None
    read_config: ReadConfig | None
    notifier: systemd.Notifier
    control: socket.socket | None

    def read(self) -> AppConfig:
        """Return the configuration as it is by now. Raises ConfigError."""
        if self.read_config is not None:
            return self.read_config()
        source = self.daemon.config.source
        if source is None:
            raise ConfigError([Problem("configuration", "it did not come from a file", "meant: a path")])
        return self.daemon.load_config(source.path)

    def started(self) -> None:
        """Tell who waits for it that mail is received."""
        self.notifier.ready()
        if self.on_started is not None:
            self.on_started(self.daemon)


@contextlib.contextmanager
def _calm_memory() -> Iterator[None]:
    """Let the garbage collector pass over what is there from the start, and look less often at what comes.

    Nearly all that a message makes is freed by reference counts; the collector's default, a look every 700 allocations,
    costs some 6 % of a process that receives mail.

    And let the C library keep some memory that messages give back. glibc returns what is free at the end of its heap to
    the system from twice the size on of the largest block that it had from there and got back: mallopt(3),
    M_MMAP_THRESHOLD. Until there was one, it does so after nearly every message of 100 kB, to ask for it anew, empty,
    for the next; that costs some 6 % of those.
    """
    bytes(_LARGE_BLOCK)
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


def last_resort(code: int) -> threading.Timer:
    """End this process with an exit code after ``LAST_RESORT`` seconds, unless that is cancelled."""
    timer = threading.Timer(LAST_RESORT, os._exit, (code,))
    timer.daemon = True
    timer.start()
    return timer


def _run_loop(main: Coroutine[Any, Any, None]) -> None:
    code = 1
    with contextlib.ExitStack() as ended, asyncio.Runner(loop_factory=new_event_loop) as runner:
        try:
            runner.run(main)
            code = 0  # a processor that does not end has lost nothing: its clients were told 4xx
        finally:
            # Everything is closed. A processor that swallows its cancellation would hold the loop for ever.
            ended.callback(last_resort(code).cancel)


# Several processes


def _supervise(house: _House[ServedT]) -> None:
    daemon = house.daemon
    daemon.check(daemon.config)
    daemon.open_sockets(daemon.config)
    daemon.drop_privileges()
    with daemon.watching():
        due = 0.0

        def heartbeat() -> None:
            nonlocal due
            interval = systemd.watchdog_interval()
            if interval is not None and time.monotonic() >= due:
                due = time.monotonic() + interval / 2
                house.notifier.watchdog()

        supervisor = Supervisor(
            daemon,
            count=process_count(daemon.config),
            work=lambda share, channel: _work(daemon, share, channel),
            read_config=house.read,
            heartbeat=heartbeat,
            on_reload=lambda begins: house.notifier.reloading() if begins else house.notifier.ready(),
            on_end=house.notifier.stopping,
            told=lambda asker, problems: tell_blocking(asker, {"ok": not problems, "problems": problems}),
        )

        def answer(asking: socket.socket, request: Mapping[str, Any]) -> dict[str, Any] | None:
            command = request.get("command")
            if command == "stats":
                stats = supervisor.stats() or daemon.stats()
                return {"ok": True, "stats": stats.as_dict()}
            if command == "reopen":
                supervisor.reopen_logs()
                return {"ok": True}
            if command == "reload":
                refused = supervisor.reload(asking)
                return {"ok": False, "problems": [refused]} if refused else None  # or it is told at the end
            return {"ok": False, "problems": ["unknown command, meant: stats, reload or reopen"]}

        control = house.control
        if control is not None:
            supervisor.listen_to(control, lambda asking: answer_blocking(asking, partial(answer, asking)))
        supervisor.run(house.started)


def _work(daemon: Served, share: Share, channel: socket.socket) -> int:
    """Be one of several processes; return its exit code."""
    daemon.share = share
    try:
        _run_loop(_Worker(daemon, channel).serve())
    except (ConfigError, StartError) as error:
        with contextlib.suppress(OSError):
            channel.sendall(json.dumps({"error": str(error)}).encode() + b"\n")
        return 1
    return 0


class _Worker:
    """One of several processes: it does what the supervisor says, and ends when that is gone."""

    def __init__(self, daemon: Served, channel: socket.socket) -> None:
        self._daemon = daemon
        self._channel = channel
        self._ending = asyncio.Event()
        self._ready = self._holds = False

    async def serve(self) -> None:
        loop = asyncio.get_running_loop()
        # Ctrl-C at a terminal goes to all processes of it: the supervisor says what it means.
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        loop.add_signal_handler(signal.SIGTERM, self._ending.set)
        loop.add_signal_handler(signal.SIGUSR1, self._daemon.reopen_logs)
        self._channel.setblocking(False)
        loop.add_reader(self._channel.fileno(), self._hear)
        try:
            async with self._daemon:
                self._channel.send(b'{"ready": true}\n')
                self._ready = True
                self._publish_changes()
                with _calm_memory():
                    await self._ending.wait()
        finally:
            loop.remove_reader(self._channel.fileno())

    def _publish_changes(self) -> None:
        """Tell what the reload has changed at which this process has begun, once it is true."""
        if self._ready and self._holds and self._daemon.share is not None:
            for change in self._daemon.share.changes:
                self._daemon.publish(change)

    def _hear(self) -> None:
        try:
            words = self._channel.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            words = b""
        if HOLDS in words:
            self._holds = True
            self._publish_changes()
        if REOPEN in words:
            self._daemon.reopen_logs()
        if HURRY in words:
            self._daemon.hurry()
        if not words:
            asyncio.get_running_loop().remove_reader(self._channel.fileno())
        if not words or DRAIN in words or HURRY in words:
            self._ending.set()


# One process


@contextlib.contextmanager
def in_thread(daemon: Served) -> Iterator[None]:
    """Run the daemon in a thread of its own as long as the ``with`` block lasts. Raises what ``Daemon.start`` does.

    An interrupt in the middle of the start (Ctrl-C) cuts it short.
    """
    started: Future[None] = Future()
    loop = new_event_loop()

    async def live() -> None:
        try:
            async with daemon:
                started.set_result(None)
                await loop.create_future()  # until it is cancelled
        except BaseException as error:
            if not started.done():
                started.set_exception(error)
            elif not isinstance(error, asyncio.CancelledError):
                raise

    life = loop.create_task(live())

    def body() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.get_loop().run_until_complete(life)

    thread = threading.Thread(target=body, name="guerrilla")
    thread.start()
    try:
        started.result()
        yield
    finally:
        with contextlib.suppress(RuntimeError):  # the start has failed, and the loop is closed
            loop.call_soon_threadsafe(life.cancel)
        thread.join()


def call(loop: asyncio.AbstractEventLoop | None, coroutine: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Run a coroutine on a loop of another thread and return its result. Raises as ``Daemon.call`` does."""
    fault = "the daemon does not run" if loop is None else ""
    with contextlib.suppress(RuntimeError):  # no loop runs in this thread
        if asyncio.get_running_loop() is loop:
            fault = "this is the daemon's own loop, which would wait for itself: await the coroutine"
    if loop is None or fault:
        coroutine.close()
        raise RuntimeError(fault)
    return asyncio.run_coroutine_threadsafe(coroutine, loop).result()


class _Service(Generic[ServedT]):
    """One daemon that runs until a signal ends it."""

    def __init__(self, house: _House[ServedT]) -> None:
        self._house = house
        self._daemon = house.daemon
        self._ending = asyncio.Event()
        self._reloads: set[asyncio.Task[None]] = set()
        self._heartbeat: asyncio.TimerHandle | None = None

    async def serve(self) -> None:
        loop = asyncio.get_running_loop()
        handlers: dict[signal.Signals, Callable[[], object]] = {
            signal.SIGTERM: self._end,
            signal.SIGINT: self._end,
            signal.SIGQUIT: self._end,
            signal.SIGHUP: self._on_hangup,
            signal.SIGUSR1: self._daemon.reopen_logs,
        }
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        try:
            async with self._daemon, self._controlled():
                self._beat()
                self._house.started()
                with _calm_memory():
                    await self._ending.wait()
                self._house.notifier.stopping()
        finally:
            if self._heartbeat is not None:
                self._heartbeat.cancel()
            for reload in self._reloads:
                reload.cancel()
            if self._reloads:
                await asyncio.wait(self._reloads, timeout=CLOSE_TIMEOUT)
            for number in handlers:
                loop.remove_signal_handler(number)

    @contextlib.asynccontextmanager
    async def _controlled(self) -> AsyncIterator[None]:
        if self._house.control is None:
            yield
            return
        control = Control(self._house.control, self._answer)
        control.start()
        try:
            yield
        finally:
            await control.close()

    async def _answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Do what is asked for at the control socket."""
        command = request.get("command")
        if command == "stats":
            return {"ok": True, "stats": self._daemon.stats().as_dict()}
        if command == "reopen":
            self._daemon.reopen_logs()
            return {"ok": True}
        if command == "reload":
            try:
                await self.reload()
            except (ConfigError, StartError) as error:
                return {"ok": False, "problems": str(error).splitlines()}
            return {"ok": True}
        return {"ok": False, "problems": ["unknown command, meant: stats, reload or reopen"]}

    def _beat(self) -> None:
        interval = systemd.watchdog_interval()
        if interval is not None:
            self._house.notifier.watchdog()
            self._heartbeat = asyncio.get_running_loop().call_later(interval, self._beat)

    def _end(self) -> None:
        if self._ending.is_set():
            self._daemon.hurry()
        self._ending.set()

    def _on_hangup(self) -> None:
        task = asyncio.get_running_loop().create_task(self._reload_and_tell())
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)

    async def _reload_and_tell(self) -> None:
        with contextlib.suppress(ConfigError, StartError):  # the log has it
            await self.reload()

    async def reload(self) -> None:
        """Read the configuration anew and let it hold; the log says what came of it. Raises as ``reload_config``."""
        daemon = self._daemon
        gc.collect()  # what the reload before has left, in cycles: a calm collector would let hundreds come together
        self._house.notifier.reloading()
        try:
            await daemon.reload_config(self._house.read())
        except (ConfigError, StartError) as error:
            for line in str(error).splitlines():
                daemon.log.error("the configuration stays as it was", problem=line)
            raise
        finally:
            self._house.notifier.ready()
        daemon.log.info("the configuration was reloaded")
