"""The processes that a supervisor watches over: how one is started, heard, told to end, and buried.

A process is started by fork. It talks with the supervisor over a channel, a pair of sockets whose end also tells either
side that the other one is gone. What all of them have in common is memory that was mapped before the fork.
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
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from structlog.typing import FilteringBoundLogger

from guerrilla.config import AppConfig, ServerConfig
from guerrilla.events import Event
from guerrilla.generation import Place, StartError, places
from guerrilla.server.shared_limits import Board, SharedClients
from guerrilla.shared_stats import SharedStats

DRAIN, HOLDS, HURRY, REOPEN = b"drain\n", b"holds\n", b"hurry\n", b"reopen\n"
"""What the supervisor says to a process; ``HOLDS`` is that its configuration does, and comes once at most."""

START_TIMEOUT: Final = 60.0
"""Seconds until a process must receive mail, or say why not."""
QUICK_DEATH: Final = 2.0
"""Seconds: a process that fails so soon after its start is replaced after a pause that grows, others at once."""
LONGEST_PAUSE: Final = 5.0
"""Seconds between two attempts to replace a process, at most."""
PATIENCE: Final = 20.0
"""Seconds beyond ``shutdown_timeout`` that a process may take to end, before it is killed."""
HURRIED: Final = 10.0
"""The same for one that was told to hurry, from then on."""
SERVERS: Final = 64
"""Servers that the processes can count connections for, at least; more, if the first configuration has many."""
_MAX_WORD: Final = 65536


class Supervised(Protocol):
    """What is asked of the daemon that is multiplied."""

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
    changes: Sequence[Event] = ()
    """What has changed at the reload at which this process begins: it publishes that once the configuration holds."""

    def clients(self, place: Place, server: ServerConfig) -> SharedClients:
        """Return what counts the connections of a server, over all processes."""
        return self.board.clients(self.slot, self.numbers[place], server.max_clients, server.max_clients_per_address)


Work = Callable[[Share, socket.socket], int]
"""What a process does: it returns its exit code, and is given its share and its end of the channel."""


@dataclass(slots=True, eq=False)
class Process:
    """One of them, as the supervisor sees it."""

    pid: int
    config: AppConfig
    share: Share
    channel: socket.socket
    started: float = field(default_factory=time.monotonic)
    word: bytes = b""
    ready: bool = False
    """Whether it receives mail."""
    error: str = ""
    ended: bool = False
    leaving: bool = False
    """Whether it was told to drain."""
    deadline: float = float("inf")
    """When it is killed."""

    @property
    def failed(self) -> bool:
        """Whether it cannot become ready any more, or has taken too long for it."""
        late = time.monotonic() > self.started + START_TIMEOUT
        return not self.ready and (bool(self.error) or self.ended or late)


class Processes:
    """Those that live; ``count`` is how many are meant to be at work.

    Each runs ``work``, which writes one line of JSON to its channel, ``{"ready": true}`` or ``{"error": …}``, and obeys
    what it reads there. ``let_go`` is called in each new one before: it gives up what is the supervisor's.
    """

    def __init__(
        self, daemon: Supervised, count: int, work: Work, selector: selectors.BaseSelector, let_go: Callable[[], None]
    ) -> None:
        self.count = count
        self.board = Board(4 * count + 4, max(SERVERS, 2 * len(places(daemon.config))))
        self.stats = SharedStats(self.board.slots)
        self.living: list[Process] = []
        """The oldest first."""
        self.next_start = 0.0
        """When the next one may be started in the place of one that has died."""
        self._daemon = daemon
        self._work = work
        self._selector = selector
        self._let_go = let_go
        self._pause = 0.0

    @property
    def staying(self) -> list[Process]:
        """Those that were not told to leave, the oldest first."""
        return [each for each in self.living if not each.leaving]

    @property
    def has_room(self) -> bool:
        """Whether there is a slot for one more."""
        return len(self.living) < self.board.slots

    def spawn(self, config: AppConfig, changes: Sequence[Event] = ()) -> Process:
        """Start a process with this configuration, which publishes ``changes``.

        Raises StartError if there is no room for it, or for its servers, or the system does not allow it.
        """
        share = self._share(config, changes)
        try:
            with contextlib.ExitStack() as opened:
                ours, theirs = map(opened.enter_context, socket.socketpair())
                ours.setblocking(False)
                pid = os.fork()
                if not pid:
                    self._be(config, share, ours, theirs)
                opened.pop_all()
        except OSError as error:
            raise StartError(f"cannot start a process: {error.strerror}") from error
        theirs.close()
        process = Process(pid, config, share, ours)
        self.living.append(process)
        self._selector.register(ours, selectors.EVENT_READ, lambda: self._hear(process))
        return process

    def _share(self, config: AppConfig, changes: Sequence[Event]) -> Share:
        taken = {each.share.slot for each in self.living}
        free = [slot for slot in range(self.board.slots) if slot not in taken]
        if not free:
            raise StartError(f"there are {len(taken)} processes already, with those that drain: no more can begin")
        return Share(self.board, self.stats, free[0], self._numbers(config), self.count, changes)

    def _numbers(self, config: AppConfig) -> dict[Place, int]:
        """Return the row of each server: the one it has in the processes that live, or one that nobody has.

        Raises StartError if there are too many.
        """
        board = self.board
        taken = [(place, row) for each in self.living for place, row in each.share.numbers.items()]
        # One that has ended is not the one that begins: the processes that drain it hold other sockets.
        rows = {place: row for place, row in taken if not board.ends(row)}
        held = {row for _, row in taken}
        free = [row for row in range(board.servers) if row not in held]
        wanted = places(config)
        new = [place for place in wanted if place not in rows]
        if len(new) > len(free):
            raise StartError(
                f"servers: found {len(held) + len(new)} listening interfaces, with those that processes still drain; "
                f"meant: at most {board.servers} with several processes; a restart makes room for twice as many as it "
                "finds"
            )
        for place, row in zip(new, free, strict=False):
            board.begin(row)
            rows[place] = row
        return {place: rows[place] for place in wanted}

    def _be(self, config: AppConfig, share: Share, ours: socket.socket, channel: socket.socket) -> None:
        """Do the work of a process, and end with it. Nothing of the supervisor is left open."""
        code = 1
        try:
            self._let_go()
            for each in (ours, *(process.channel for process in self.living)):
                each.close()
            self._daemon.config = config
            self._daemon.close_sockets(config)
            code = self._work(share, channel)
        except BaseException:
            traceback.print_exc()  # nobody else would: the process ends here
        finally:
            os._exit(code)

    def _hear(self, process: Process) -> None:
        """Read what a process has to say; when its end of the channel is closed, it has ended."""
        try:
            octets = process.channel.recv(_MAX_WORD)
        except BlockingIOError:
            return
        except OSError:
            octets = b""
        if not octets:
            self._bury(process)
            return
        process.word += octets[: _MAX_WORD - len(process.word)]
        if process.word.endswith(b"\n"):
            said = json.loads(process.word)
            process.ready = bool(said.get("ready"))
            process.error = str(said.get("error", ""))

    def _bury(self, process: Process) -> None:
        self._selector.unregister(process.channel)
        process.channel.close()
        _, status = os.waitpid(process.pid, 0)
        process.ended = True
        self.living.remove(process)
        self.board.clear(process.share.slot)
        self.stats.retire(process.share.slot)
        code = os.waitstatus_to_exitcode(status)
        if process.leaving and code == 0:
            return
        # Who was at work and is killed, by whomever, has not failed: a pause would help nobody.
        failed = time.monotonic() - process.started < QUICK_DEATH and not (process.ready and code < 0)
        self._pause = min(LONGEST_PAUSE, self._pause * 2 or 0.1) if failed else 0.0
        self.next_start = time.monotonic() + self._pause
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        self._daemon.log.error("a process has ended", pid=process.pid, exit=how, cause=process.error, pause=self._pause)

    # What they are told.

    def tell(self, word: bytes) -> None:
        """Say a word to all of them."""
        for each in self.living:
            self._tell(each, word)

    def hold(self, process: Process) -> None:
        """Let a process publish what has changed: its configuration holds."""
        self._tell(process, HOLDS)

    def leave(self, process: Process) -> None:
        """Let a process accept no more and come to its end, as long as it is allowed to take."""
        if process.ended or process.leaving:
            return
        process.leaving = True
        process.deadline = time.monotonic() + process.config.shutdown_timeout + PATIENCE
        self._tell(process, DRAIN)

    def leave_all(self) -> None:
        """Let all of them come to their end: nobody will accept any more."""
        self.end_servers({})
        for each in self.living:
            self.leave(each)

    def end_servers(self, staying: Container[Place]) -> None:
        """Let the processes that leave know that nobody comes after them at any server but these.

        Whoever accepts for one then takes who still waits there, so nobody may come any more: its sockets are closed
        here before.
        """
        for process in self.living:
            for place, row in process.share.numbers.items():
                if place not in staying:
                    self.board.end(row)

    def hurry(self) -> None:
        """Let all of them come to their end, and wait for nobody."""
        self.leave_all()
        self.tell(HURRY)
        for each in self.living:
            each.deadline = min(each.deadline, time.monotonic() + HURRIED)

    def kill_the_late(self) -> None:
        """Kill those that have taken too long to end. What they were at was never answered 250."""
        for each in self.living:
            if time.monotonic() > each.deadline:
                self._daemon.log.error("a process does not end and is killed", pid=each.pid)
                os.kill(each.pid, signal.SIGKILL)
                each.deadline = float("inf")

    def _tell(self, process: Process, word: bytes) -> None:
        with contextlib.suppress(OSError):  # it has ended, which will be noticed
            process.channel.send(word)
