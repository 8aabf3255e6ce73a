"""What all private servers have in common: programs, a folder, and processes that start, halt and end."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, Literal

START_SECONDS = 60.0
"""How long a server may take until it answers, also when it has to recover first; each of them takes less than two."""
STOP_SECONDS = 20.0
"""How long a server may take to stop by itself before it is killed."""
ANSWER_SECONDS = 10.0
"""How long a server may take to answer one request."""
PASSWORD = "p@ss:w/rd%1"
"""Has what has to be quoted in a URL, and must not be in Go's form for MySQL."""

Over = Literal["tcp", "socket"]
"""How a server is reached."""


class ProgramMissingError(Exception):
    """A program is not installed; the text names it and the Debian package that has it."""


def find_program(pattern: str, package: str) -> str:
    """Find a program by the glob pattern of its name; raises `ProgramMissingError`."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: float(folder.parent.name))
    for folder in [*reversed(versions), Path("/usr/sbin"), *map(Path, os.get_exec_path())]:
        for found in sorted(folder.glob(pattern)):
            return str(found)
    raise ProgramMissingError(f"{pattern} is not installed (Debian package {package})")


def free_port() -> int:
    """Find a port that nobody listens on.

    It lies below those that the kernel gives to clients: a client that tries to reach a killed server would otherwise
    at times be given the server's own port, be connected to itself, and keep the server from coming back.
    """
    lowest_of_clients = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(10_000, lowest_of_clients)
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Look every few milliseconds whether the condition holds; raises `TimeoutError`, with the text, after the time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"after {seconds:g} seconds still not: {what}")
        time.sleep(0.005)


def _children(pid: int) -> list[int]:
    """List the processes that the process has started, and those that these have."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # "pid (name) state parent …", and the name may hold anything.
            parent = int(stat.read_text(errors="replace").rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        parents.setdefault(parent, []).append(int(stat.parent.name))
    found = [pid]
    for known in found:
        found += parents.get(known, [])
    return found[1:]


def _all_threads_are(states: str, pids: Sequence[int]) -> bool:
    """Whether each thread of the processes is in one of the states of proc(5), or gone."""
    for pid in pids:
        for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
            try:
                state = stat.read_text(errors="replace").rpartition(")")[2].split()[0]
            except (FileNotFoundError, ProcessLookupError):
                continue
            if state not in states:
                return False
    return True


class PrivateServer(ABC):
    """A server in a folder of its own. ``options`` are added to its command line.

    Making it raises `ProgramMissingError`. A kind of server says what its programs and its command are, how its folder
    is filled, and how to tell that it answers.
    """

    program: ClassVar[str]
    """The name of the server's program, as a glob pattern."""
    package: ClassVar[str]
    """The Debian package that has it."""
    account: ClassVar[str]
    """Whom it runs as when the tests are run by root."""
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    """What makes it stop without waiting for its clients."""
    socket_name: ClassVar[str] = "server.sock"

    def __init__(self, options: Sequence[str] = ()) -> None:
        self._program = find_program(self.program, self.package)
        self._options = list(options)
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._filled = False
        self.host = "127.0.0.1"
        self.port = free_port()
        # Not in pytest's folder, which nobody but the user who runs the tests may enter.
        self.folder = Path(tempfile.mkdtemp(prefix="guerrilla-"))
        self.folder.chmod(0o755)
        (self.folder / "server.log").touch()
        if os.geteuid() == 0:
            for path in (self.folder, self.folder / "server.log"):
                shutil.chown(path, self.account, self.account)

    @property
    def address(self) -> str:
        """Host and port as ``127.0.0.1:3306``."""
        return f"{self.host}:{self.port}"

    @property
    def socket_path(self) -> Path:
        """The Unix socket."""
        return self.folder / self.socket_name.format(port=self.port)

    @property
    def log(self) -> str:
        """What the server has printed."""
        return (self.folder / "server.log").read_text(errors="replace")

    @abstractmethod
    def _fill(self) -> None:
        """Make what the server needs in its folder. Called once, before it starts for the first time."""

    @abstractmethod
    def _command(self) -> list[str]:
        """Return the program's arguments. It has to stay in the foreground."""

    @abstractmethod
    def answers(self) -> bool:
        """Whether the server answers a request now."""

    def start(self) -> None:
        """Make sure that the server runs and answers: start it, thaw it, or find that there is nothing to do.

        Raises `RuntimeError` with its log when it ends, `TimeoutError` when it does not answer in time.
        """
        self.thaw()
        process = self._process
        if process is None or process.poll() is not None:
            self._forget()
            if not self._filled:
                self._fill()
                self._filled = True
            process = self._launch()

        def up() -> bool:
            if process.poll() is not None:
                raise RuntimeError(f"{type(self).__name__} ended at its start:\n{self.log[-4000:]}")
            return self.answers()

        wait_until(up, START_SECONDS, f"{type(self).__name__} answers")

    def stop(self) -> None:
        """Let the server end in good order, without waiting for its clients; does nothing when it does not run."""
        if self._process is not None:
            self.thaw()
            self._process.send_signal(self.stop_signal)
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill()
        self._forget()

    def kill(self) -> None:
        """End all processes of the server at once, with SIGKILL; does nothing when it does not run."""
        if self._process is not None:
            pids = self._signal_all(signal.SIGKILL)
            self._process.wait()
            wait_until(lambda: _all_threads_are("ZX", pids), STOP_SECONDS, "all processes have ended")
        self._forget()

    def restart(self) -> None:
        """Stop the server if it runs, and start it."""
        self.stop()
        self.start()

    def freeze(self) -> None:
        """Halt all processes of the server: connections are accepted, by the kernel, and never answered."""
        pids = self._signal_all(signal.SIGSTOP)
        wait_until(lambda: _all_threads_are("TZX", pids), STOP_SECONDS, "all processes have halted")

    def thaw(self) -> None:
        """Let the processes of the server go on; does nothing when they do."""
        self._signal_all(signal.SIGCONT)

    def close(self) -> None:
        """Kill the server and remove its folder."""
        self.kill()
        shutil.rmtree(self.folder)

    def _run(self, command: Sequence[str], *, seconds: float = ANSWER_SECONDS, **variables: str) -> str:
        """Run a program as the server's account; raises what `subprocess.run` does."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self._environment(**variables),
            user=self._user,
            group=self._user,
            extra_groups=None if self._user is None else [],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
            text=True,
            timeout=seconds,
        )
        return done.stdout

    def _launch(self) -> subprocess.Popen[bytes]:
        """Start the server, and a guard that ends it and removes the folder when the tests are gone."""
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, *self._command(), *self._options],
                cwd=self.folder,
                env=self._environment(),
                user=self._user,
                group=self._user,
                extra_groups=None if self._user is None else [],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        # Nobody but this process holds the other end of the guard's stdin.
        script = 'read -r _; kill -STOP "$1"; pkill -KILL -P "$1"; kill -KILL "$1"; rm -rf -- "$2"'
        self._guard = subprocess.Popen(
            ["sh", "-c", script, "sh", str(self._process.pid), str(self.folder)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        return self._process

    def _forget(self) -> None:
        """Let go of a server that has ended, and of its guard."""
        self._process = None
        if self._guard is not None:
            self._guard.kill()
            self._guard.communicate()
            self._guard = None

    def _signal_all(self, number: signal.Signals) -> list[int]:
        """Send the signal to each process of the server, and return their ids; none when it has ended.

        A group of processes would not do: each process of PostgreSQL is a group of its own.
        """
        if self._process is None or self._process.poll() is not None:
            return []
        first = self._process.pid
        if number == signal.SIGCONT:
            if not _all_threads_are("T", [first]):
                return []
        else:
            os.kill(first, signal.SIGSTOP)
            wait_until(lambda: _all_threads_are("TZX", [first]), STOP_SECONDS, "the first process has halted")
        # Halted, the first process starts no more, and no id of those it has started is given to anybody else.
        pids = [*_children(first), first]
        for pid in pids:
            os.kill(pid, number)
        return pids

    @property
    def _user(self) -> str | None:
        return self.account if os.geteuid() == 0 else None

    def _environment(self, **variables: str) -> dict[str, str]:
        """Return the environment of its programs: nothing that the user has set for his own servers."""
        folder = str(self.folder)
        return {"PATH": "/usr/bin:/bin:/usr/sbin", "LC_ALL": "C.UTF-8", "HOME": folder, "TMPDIR": folder} | variables
