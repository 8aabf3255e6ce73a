"""Several processes on the same listening sockets, and the one that watches over them.

The supervisor opens the sockets once and hands them on by fork, so a process that ends takes no waiting client with it.
It receives no mail itself, has no event loop and no thread, and does four things: it starts processes, replaces those
that die, replaces all of them one by one at a reload, and passes on what signals mean. What it says to a process goes
over a channel, a pair of sockets whose end also tells either side that the other one is gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, Protocol

from structlog.typing import FilteringBoundLogger

from guerrilla.config import AppConfig, ConfigError, ServerConfig
from guerrilla.generation import Place, StartError, places
from guerrilla.server.shared_limits import Board, SharedClients
from guerrilla.shared_stats import SharedStats
from guerrilla.stats import Stats

DRAIN, HURRY, REOPEN = b"drain\n", b"hurry\n", b"reopen\n"
"""What the supervisor says to a process."""

START_TIMEOUT: Final = 60.0
"""Seconds until a process must receive mail, or say why not."""
QUICK_DEATH: Final = 2.0
"""Seconds: a process that fails so soon after its start is replaced after a pause that grows, others at once."""
LONGEST_PAUSE: Final = 5.0
"""Seconds between two attempts to replace a process, at most."""
PATIENCE: Final = 60.0
"""Seconds beyond ``shutdown_timeout`` that a process may take to end, before it is killed."""
_ENDING: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT})
_SERVERS: Final = 64
_TICK: Final = 1.0
_MAX_WORD: Final = 65536


class Supervised(Protocol):
    """What the supervisor asks of the daemon that it multiplies."""

    config: AppConfig

    @property
    def log(self) -> FilteringBoundLogger:
        """Where the operator reads."""

    def open_sockets(self, config: AppConfig) -> None:
        """Open the sockets of all servers of this configuration that are not open."""

    def close_sockets(self, config: AppConfig | None) -> None:
        """Close the sockets of servers that this configuration does not have; without one, all."""

    def reopen_logs(self) -> None:
        """Open the logs anew."""

    def watch(self) -> None:
        """Let log and pid file be those of the configuration. Raises StartError; then they stay."""

    def check(self, config: AppConfig) -> None:
        """Raise ConfigError with all that is wrong."""


@dataclass(frozen=True, slots=True)
class Share:
    """What one process has in common with the others, and which of them it is."""

    board: Board
    stats: SharedStats
    slot: int
    numbers: dict[Place, int]
    """The row of each server on the board."""
    processes: int
    """Among how many the memory for messages is divided."""

    def clients(self, place: Place, server: ServerConfig) -> SharedClients:
        """Return what counts the connections of a server, over all processes."""
        return self.board.clients(self.slot, self.numbers[place], server.max_clients, server.max_clients_per_address)


@dataclass(slots=True, eq=False)
class _Child:
    pid: int
    slot: int
    channel: socket.socket
    started: float = field(default_factory=time.monotonic)
    word: bytes = b""
    ready: bool = False
    error: str = ""
    leaving: bool = False
    """Whether it was told to drain."""
    deadline: float = 0.0
    """When it is killed, if it is leaving."""


class Supervisor:
    """Keeps ``count(config)`` processes at work, each of which runs ``work`` and returns its exit code.

    ``work`` is given its Share and its end of the channel. It writes one line of JSON there, ``{"ready": true}`` or
    ``{"error": …}``, and obeys what it reads.
    """

    def __init__(
        self,
        daemon: Supervised,
        *,
        count: Callable[[AppConfig], int],
        work: Callable[[Share, socket.socket], int],
        read_config: Callable[[], AppConfig],
        heartbeat: Callable[[], None] = lambda: None,
        on_reload: Callable[[bool], None] = lambda begins: None,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        self._daemon = daemon
        self._count = count
        self._work = work
        self._read_config = read_config
        self._heartbeat = heartbeat
        self._on_reload = on_reload
        self._on_end = on_end
        self._control: socket.socket | None = None
        self._asking: socket.socket | None = None
        self._answer: Callable[[socket.socket], None] = lambda asking: None
        self._asked = False
        self._board = Board(4 * count(daemon.config) + 4, _SERVERS)
        self._stats = SharedStats(self._board.slots)
        self._numbers: dict[Place, int] = {}
        self._children: list[_Child] = []
        self._selector = selectors.DefaultSelector()
        self._signals: list[int] = []
        self._ending = False
        self._pause = 0.0
        self._next_start = 0.0

    def stats(self) -> Stats | None:
        """Return the numbers of all processes, those that have ended included; None before the first has written."""
        return self._stats.total()

    def listen_to(self, control: socket.socket, answer: Callable[[socket.socket], None]) -> None:
        """Have ``answer`` called with each connection that comes in at this socket; it is closed afterwards."""
        self._control, self._answer = control, answer

    def run(self, on_started: Callable[[], None]) -> None:
        """Start the processes, and return when a signal has ended all of them.

        Raises StartError if the first ones cannot be started, with what they said.
        """
        with self._selector, self._listening_to_signals():
            try:
                for _ in range(self._count(self._daemon.config)):
                    self._spawn()
                for child in list(self._children):
                    self._wait_until_ready(child)
                if self._control is not None:
                    self._selector.register(self._control, selectors.EVENT_READ, self._be_asked)
                on_started()
                while not self._ending:
                    self._turn()
                    self._obey()
                    self._answer_who_asks()
                    self._replace_the_dead()
            finally:
                self._on_end()
                self._drain()

    def _be_asked(self) -> None:
        # Not answered here: a reload turns the selector itself.
        self._asked = True

    def _answer_who_asks(self) -> None:
        if not self._asked or self._control is None:
            return
        self._asked = False
        with contextlib.suppress(OSError):  # gone again, or no descriptor is left
            self._asking, _ = self._control.accept()
        if self._asking is not None:
            with self._asking:
                self._answer(self._asking)
            self._asking = None

    # Signals.

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
                    self._tell(self._children, HURRY)
                self._ending = True
            elif number == signal.SIGUSR1:
                self.reopen_logs()
            elif number == signal.SIGHUP and not self._ending:
                with contextlib.suppress(ConfigError, StartError):  # the log has it
                    self.reload()

    # What signals, and the control socket, ask for.

    def reopen_logs(self) -> None:
        """Have all processes open their logs anew."""
        self._daemon.reopen_logs()
        self._tell(self._children, REOPEN)

    def reload(self) -> None:
        """Read the configuration anew, and replace the processes one by one; no client is refused meanwhile.

        When the first new process cannot be started, all stays as it was. Raises ConfigError or StartError then.
        """
        old = self._daemon.config
        self._on_reload(True)
        try:
            self._take_over(self._read_config())
        except (ConfigError, StartError) as error:
            self._daemon.config = old
            self._daemon.close_sockets(old)
            for line in str(error).splitlines():
                self._daemon.log.error("the configuration stays as it was", problem=line)
            raise
        finally:
            self._on_reload(False)
        self._daemon.log.info("the configuration was reloaded", processes=len(self._staying()))

    def _take_over(self, config: AppConfig) -> None:
        daemon = self._daemon
        daemon.check(config)
        daemon.open_sockets(config)
        daemon.config = config
        before = self._staying()
        first = self._spawn()
        self._wait_until_ready(first)
        try:
            daemon.watch()
        except StartError:
            self._leave(first)
            raise
        # From here on the configuration holds; a process that fails now is replaced like any other.
        for number in range(self._count(config)):
            if number < len(before):
                self._leave(before[number])
            if number + 1 < self._count(config):
                with contextlib.suppress(StartError):
                    self._wait_until_ready(self._spawn())
        for child in before[self._count(config) :]:
            self._leave(child)
        daemon.close_sockets(config)

    # Processes.

    def _staying(self) -> list[_Child]:
        return [child for child in self._children if not child.leaving]

    def _spawn(self) -> _Child:
        """Start a process."""
        slot = self._free_slot()
        for place in places(self._daemon.config):
            self._numbers.setdefault(place, len(self._numbers) % _SERVERS)
        share = Share(self._board, self._stats, slot, dict(self._numbers), self._count(self._daemon.config))
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if not pid:
            self._be_child(share, ours, theirs)
        theirs.close()
        ours.setblocking(False)
        child = _Child(pid, slot, ours)
        self._children.append(child)
        self._selector.register(ours, selectors.EVENT_READ, lambda: self._hear(child))
        return child

    def _free_slot(self) -> int:
        """Return a row of the board that nobody has, waiting for one if need be."""
        while True:
            taken = {child.slot for child in self._children}
            free = next((slot for slot in range(self._board.slots) if slot not in taken), None)
            if free is not None:
                return free
            self._turn()

    def _be_child(self, share: Share, ours: socket.socket, channel: socket.socket) -> None:
        """Do the work of a process, and end with it. Nothing of the supervisor is left open."""
        code = 1
        try:
            self._restore_signals()
            ours.close()
            for child in self._children:
                child.channel.close()
            for each in (self._control, self._asking):
                if each is not None:
                    each.close()
            self._selector.close()
            self._daemon.close_sockets(self._daemon.config)
            code = self._work(share, channel)
        except BaseException:
            traceback.print_exc()  # nobody else would: the process ends here
        finally:
            os._exit(code)

    def _hear(self, child: _Child) -> None:
        """Read what a process has to say; when its end of the channel is closed, it has ended."""
        try:
            octets = child.channel.recv(_MAX_WORD)
        except BlockingIOError:
            return
        except OSError:
            octets = b""
        if not octets:
            self._bury(child)
            return
        child.word += octets[: _MAX_WORD - len(child.word)]
        if child.word.endswith(b"\n"):
            said = json.loads(child.word)
            child.ready = bool(said.get("ready"))
            child.error = str(said.get("error", ""))

    def _bury(self, child: _Child) -> None:
        self._selector.unregister(child.channel)
        child.channel.close()
        _, status = os.waitpid(child.pid, 0)
        self._children.remove(child)
        self._board.clear(child.slot)
        self._stats.retire(child.slot)
        code = os.waitstatus_to_exitcode(status)
        if child.leaving and code == 0:
            return
        # Who was at work and is killed, by whomever, has not failed: a pause would help nobody.
        failed = time.monotonic() - child.started < QUICK_DEATH and not (child.ready and code < 0)
        self._pause = min(LONGEST_PAUSE, self._pause * 2 or 0.1) if failed else 0.0
        self._next_start = time.monotonic() + self._pause
        how = _how(code)
        self._daemon.log.error("a process has ended", pid=child.pid, exit=how, cause=child.error, pause=self._pause)

    def _replace_the_dead(self) -> None:
        if self._ending or time.monotonic() < self._next_start:
            return
        for _ in range(self._count(self._daemon.config) - len(self._staying())):
            self._spawn()

    def _wait_until_ready(self, child: _Child) -> None:
        """Return when the process receives mail. Raises StartError, with what it said, if it does not."""
        deadline = time.monotonic() + START_TIMEOUT
        while child in self._children and not child.ready and not child.error and time.monotonic() < deadline:
            if not _ENDING.isdisjoint(self._signals):
                return  # nobody waits for it any more
            self._turn()
        if not child.ready:
            self._leave(child)
            raise StartError(child.error or "a process does not start")

    def _turn(self) -> None:
        """Wait for something to happen, for a moment, and hear what it is."""
        self._heartbeat()
        timeout = min(_TICK, max(0.0, self._next_start - time.monotonic())) or _TICK
        for key, _ in self._selector.select(timeout):
            key.data()
        for child in self._children:
            if child.leaving and time.monotonic() > child.deadline:
                self._daemon.log.error("a process does not end and is killed", pid=child.pid)
                os.kill(child.pid, signal.SIGKILL)
                child.deadline = float("inf")

    def _tell(self, children: list[_Child], word: bytes) -> None:
        for child in children:
            with contextlib.suppress(OSError):  # it has ended, which will be noticed
                child.channel.send(word)

    def _leave(self, child: _Child) -> None:
        if child in self._children and not child.leaving:
            child.leaving = True
            child.deadline = time.monotonic() + self._daemon.config.shutdown_timeout + PATIENCE
            self._tell([child], DRAIN)

    def _drain(self) -> None:
        """Let all processes come to their end."""
        self._ending = True
        for child in list(self._children):
            self._leave(child)
        self._daemon.close_sockets(None)  # or new clients would wait in vain for someone to greet them
        while self._children:
            self._turn()
            self._obey()


def _how(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
