"""Several processes on the same listening sockets, and the one that watches over them.

The supervisor opens the sockets once and hands them on by fork, so a process that ends takes no waiting client with it.
It receives no mail itself, has no event loop and no thread, and does four things: it starts processes, replaces those
that die, replaces all of them one by one at a reload, and passes on what signals mean.

It never waits for one thing alone: a reload that is under way is remembered, and taken a step further whenever the
process that it waits for is ready. Signals, the control socket and dead processes have their turn in between.
"""

from __future__ import annotations

import contextlib
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from guerrilla.config import AppConfig, ConfigError
from guerrilla.config_changes import changes, only_at_start
from guerrilla.events import Event
from guerrilla.generation import Place, StartError, places
from guerrilla.processes import LONGEST_PAUSE, REOPEN, Process, Processes, Supervised, Work
from guerrilla.server.tls import fingerprint
from guerrilla.stats import Stats

MAX_ASKERS: Final = 16
"""Clients of the control socket that can wait for a reload at a time."""
_ENDING: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT})
_TICK: Final = 1.0

_Files = dict[Place, tuple[tuple[str, int, int, int], ...]]


@dataclass(slots=True, eq=False)
class _Reload:
    """One that is under way."""

    config: AppConfig
    changes: list[Event]
    tls_files: _Files
    fresh: Process
    """The process that it waits for."""
    holds: bool = False
    """Whether the configuration holds: one process lives by it."""


class Supervisor:
    """Keeps ``count`` processes at work, each of which runs ``work``, as ``Processes`` says.

    ``told`` gives a client of the control socket the problems of the reload that it has asked for.
    """

    def __init__(
        self,
        daemon: Supervised,
        *,
        count: int,
        work: Work,
        read_config: Callable[[], AppConfig],
        heartbeat: Callable[[], None] = lambda: None,
        on_reload: Callable[[bool], None] = lambda begins: None,
        on_end: Callable[[], None] = lambda: None,
        told: Callable[[socket.socket, list[str]], None] = lambda asker, problems: None,
    ) -> None:
        self._daemon = daemon
        self._read_config = read_config
        self._heartbeat = heartbeat
        self._on_reload = on_reload
        self._on_end = on_end
        self._told = told
        self._control: socket.socket | None = None
        self._answer: Callable[[socket.socket], None] = lambda asking: None
        self._selector = selectors.DefaultSelector()
        self._processes = Processes(daemon, count, work, self._selector, self._let_go)
        self._signals: list[int] = []
        self._ending = False
        self._wanted = False
        self._reload: _Reload | None = None
        self._askers: list[socket.socket] = []
        """Who waits for the reload that is under way."""
        self._later: list[socket.socket] = []
        """Who waits for the one after it."""
        self._tls_files = _files(daemon.config)

    def stats(self) -> Stats | None:
        """Return the numbers of all processes, those that have ended included; None before the first has written."""
        return self._processes.stats.total()

    def listen_to(self, control: socket.socket, answer: Callable[[socket.socket], None]) -> None:
        """Have ``answer`` called with each connection that comes in at this socket.

        It is closed afterwards, unless it is to be told what came of a reload.
        """
        self._control, self._answer = control, answer

    def run(self, on_started: Callable[[], None]) -> None:
        """Start the processes, and return when a signal has ended all of them.

        Raises StartError if the first ones cannot be started, with what they said.
        """
        with self._selector, self._listening_to_signals():
            try:
                self._start()
                if self._control is not None:
                    self._selector.register(self._control, selectors.EVENT_READ, self._be_asked)
                if not self._ending:
                    on_started()
                while not self._ending:
                    self._turn()
                    self._replace_the_dead()
                    self._go_on()
            finally:
                self._drain()

    def _start(self) -> None:
        first = [self._processes.spawn(self._daemon.config) for _ in range(self._processes.count)]
        while not self._ending and not all(each.ready for each in first):
            self._turn()
            for each in first:
                if each.failed:
                    raise StartError(each.error or "a process does not start")

    def _turn(self) -> None:
        """Wait for something to happen, for a moment, hear what it is, and do what signals mean."""
        self._heartbeat()
        timeout = min(_TICK, max(0.0, self._processes.next_start - time.monotonic())) or _TICK
        for key, _ in self._selector.select(timeout):
            key.data()
        self._processes.kill_the_late()
        self._obey()

    def _drain(self) -> None:
        """Let all processes come to their end."""
        self._ending = True
        if self._reload is not None:
            self._end_reload(StartError("guerrillad is shutting down"))
        self._on_end()
        self._tell(self._later, ["guerrillad is shutting down"])
        # Before the processes are told: the last of them takes who still waits, and nobody may come after that.
        self._daemon.close_sockets(None)
        self._processes.leave_all()
        while self._processes.living:
            self._turn()

    def _let_go(self) -> None:
        """Give up, in a new process, all that is the supervisor's."""
        self._restore_signals()
        for each in (*self._askers, *self._later):
            each.close()
        if self._control is not None:
            self._control.close()
        self._selector.close()

    # Signals, and the control socket.

    @contextlib.contextmanager
    def _listening_to_signals(self) -> Iterator[None]:
        """Note the signals that come, and wake up at each."""
        waking, wakeup = socket.socketpair()
        for each in (waking, wakeup):
            each.setblocking(False)
        numbers = (*_ENDING, signal.SIGHUP, signal.SIGUSR1)
        before = {number: signal.signal(number, lambda number, _: self._signals.append(number)) for number in numbers}
        old_descriptor = signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)

        def restore() -> None:
            signal.set_wakeup_fd(old_descriptor)
            for number, handler in before.items():
                signal.signal(number, handler)
            waking.close()
            wakeup.close()

        self._restore_signals = restore
        self._selector.register(waking, selectors.EVENT_READ, lambda: waking.recv(4096))
        try:
            yield
        finally:
            restore()

    def _obey(self) -> None:
        """Do what the signals that have come mean."""
        signals, self._signals = self._signals, []
        for number in signals:
            if number in _ENDING:
                if self._ending:
                    self._processes.hurry()
                self._ending = True
            elif number == signal.SIGUSR1:
                self.reopen_logs()
            elif number == signal.SIGHUP:
                self.reload()

    def _be_asked(self) -> None:
        assert self._control is not None
        try:
            asking, _ = self._control.accept()
        except OSError:  # gone again, or no descriptor is left
            return
        self._answer(asking)
        if asking not in self._later:
            asking.close()

    def reopen_logs(self) -> None:
        """Have all processes open their logs anew."""
        self._daemon.reopen_logs()
        self._processes.tell(REOPEN)

    def reload(self, asker: socket.socket | None = None) -> str:
        """Let the configuration be read anew as soon as may be; ``asker`` is told what has come of it.

        Then the processes are replaced one by one, and no client is refused meanwhile. When the first new one cannot be
        started, all stays as it was. Returns why it is refused; empty if it is not.
        """
        if self._ending:
            return "guerrillad is shutting down"
        if len(self._later) == MAX_ASKERS:
            return f"{MAX_ASKERS} others wait for a reload already"
        self._wanted = True
        if asker is not None:
            self._later.append(asker)
        return ""

    # Processes that die.

    def _replace_the_dead(self) -> None:
        if time.monotonic() < self._processes.next_start:
            return
        reload = self._reload
        staying = [each for each in self._processes.staying if reload is None or each is not reload.fresh]
        for _ in range(self._processes.count - len(staying)):
            self._spawn()

    def _spawn(self) -> Process | None:
        """Start a process by the configuration that holds; in a reload, it publishes what has changed."""
        reload = self._reload
        try:
            if reload is None or not reload.holds:
                return self._processes.spawn(self._daemon.config)
            process = self._processes.spawn(reload.config, reload.changes)
            self._processes.hold(process)
            return process
        except StartError as error:
            self._daemon.log.error("a process cannot be replaced", cause=str(error), pause=LONGEST_PAUSE)
            self._processes.next_start = time.monotonic() + LONGEST_PAUSE
            return None

    # A reload, step by step.

    def _go_on(self) -> None:
        """Do the next step of the reload, if there is one to be done; where there is no slot free, it comes later."""
        if self._reload is not None and (self._reload.fresh.ready or self._reload.fresh.failed):
            self._take_a_step(self._reload)
        if self._reload is None and self._wanted and self._processes.has_room:
            self._begin()

    def _begin(self) -> None:
        """Check the configuration, and try it with one process."""
        daemon = self._daemon
        self._wanted = False
        self._askers, self._later = self._later, []
        self._on_reload(True)
        try:
            config = self._read_config()
            daemon.check(config)
            daemon.open_sockets(config)
            found = _files(config)
            renewed = {place[0] for place, files in self._tls_files.items() if found.get(place, files) != files}
            told = changes(daemon.config, config, renewed)
            self._reload = _Reload(config, told, found, self._processes.spawn(config, told))
        except (ConfigError, StartError) as error:
            self._end_reload(error)

    def _take_a_step(self, reload: _Reload) -> None:
        if not reload.holds:
            try:
                self._let_hold(reload)
            except StartError as error:
                self._end_reload(error)
                return
        # A process that fails from here on is replaced like any other.
        if reload.fresh.failed:
            self._processes.leave(reload.fresh)
        self._replace_the_next(reload)

    def _let_hold(self, reload: _Reload) -> None:
        """Let the configuration hold. Raises StartError if it cannot."""
        if not reload.fresh.ready:
            raise StartError(reload.fresh.error or "a process does not start")
        daemon = self._daemon
        old, daemon.config = daemon.config, reload.config
        try:
            daemon.watch()
        except StartError:
            daemon.config = old
            raise
        reload.holds = True
        self._processes.hold(reload.fresh)
        self._tls_files = reload.tls_files
        for key in only_at_start(old, reload.config):
            daemon.log.warning("takes effect at the next start only", key=key)

    def _replace_the_next(self, reload: _Reload) -> None:
        """Let an outdated process leave, and start another while there are more; at the end, finish."""
        processes = self._processes
        outdated = [each for each in processes.staying if each.config is not reload.config]
        if outdated[1:]:
            if not processes.has_room or time.monotonic() < processes.next_start:
                return
            fresh = self._spawn()
            if fresh is not None:
                reload.fresh = fresh
                processes.leave(outdated[0])
            return
        self._daemon.close_sockets(reload.config)
        processes.end_servers(places(reload.config))
        # When some have died meanwhile and were replaced, there are more than there should be.
        for each in (*outdated, *[each for each in processes.staying if each not in outdated][processes.count :]):
            processes.leave(each)
        self._end_reload(None)

    def _end_reload(self, error: ConfigError | StartError | None) -> None:
        """Tell everybody what has come of the reload. If its configuration does not hold, all is as it was."""
        reload, self._reload = self._reload, None
        holds = reload is not None and reload.holds
        daemon = self._daemon
        daemon.close_sockets(daemon.config)
        if reload is not None and not holds:
            self._processes.end_servers(places(daemon.config))
            self._processes.leave(reload.fresh)
        problems = str(error).splitlines() if error is not None else []
        for line in problems:
            daemon.log.error("a reload was cut short" if holds else "the configuration stays as it was", problem=line)
        if error is None:
            daemon.log.info("the configuration was reloaded", processes=self._processes.count)
        self._on_reload(False)
        self._tell(self._askers, problems)

    def _tell(self, askers: list[socket.socket], problems: list[str]) -> None:
        while askers:
            with askers.pop() as asker:
                self._told(asker, problems)


def _files(config: AppConfig) -> _Files:
    """Return what the certificate files of each server look like from outside."""
    return {place: fingerprint(server.tls) for place, server in places(config).items()}
