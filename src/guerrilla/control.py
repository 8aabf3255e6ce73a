"""The control socket: how ``status``, ``top`` and ``reload`` speak to a running daemon.

- One connection is one request: a line of JSON, ``{"command": "stats"}``, ``"reload"`` or ``"reopen"``; and a line of
  JSON back, ``{"ok": true, ...}`` or ``{"ok": false, "problems": [...]}``.
- It belongs to the user of the daemon: a folder that others cannot write to, mode 0600, and who connects is looked at
  again (SO_PEERCRED), since a descriptor can be handed on. Root may always.
- Everything is bounded: connections, octets, seconds. Nothing that a client does makes the daemon raise or wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import json
import os
import socket
import stat
import struct
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final

from guerrilla.config import AppConfig

MAX_REQUEST: Final = 4096
"""Octets of a request, with its line end."""

MAX_ANSWER: Final = 16 * 1024 * 1024
"""Octets of an answer, with its line end."""

MAX_CONNECTIONS: Final = 16
"""Connections that are open at once; further ones wait until one of these has ended."""

REQUEST_TIMEOUT: Final = 10.0
"""Seconds in which a client has to send its request, and again to take its answer."""

BLOCKING_TIMEOUT: Final = 1.0
"""The same where nothing else happens meanwhile."""

CLOSE_TIMEOUT: Final = 5.0
"""Seconds that what is being done for a client has, when the daemon ends."""

ACCEPT_PAUSE: Final = 1.0
"""Seconds before the next try, when there was no descriptor for a client, not even the spare one."""

AsyncAnswer = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
"""What gives the answer to a request."""

_MAX_PATH: Final = 107
_CREDENTIALS: Final = struct.Struct("iII")


class ControlError(Exception):
    """The control socket cannot be had, or does not answer. ``str()`` says what was found, where, and what is meant."""


class ControlSocket(socket.socket):
    """A listening socket that knows which file it is."""

    file: tuple[int, int] = (0, 0)
    """Device and inode."""


# Where it is


def control_path(config: AppConfig) -> Path | None:
    """Return the path of the socket of a daemon with this configuration; None if there is to be none.

    Raises ControlError if the run folder has to be in the temporary folder, and somebody else has taken its name.
    """
    if config.control_socket == "off":
        return None
    if config.control_socket:
        return Path(config.control_socket)
    return default_path(config.source.path if config.source else None)


def default_path(file: str | os.PathLike[str] | None) -> Path:
    """Return the path for this configuration file, or for the working folder without one, when no other is set.

    Raises as ``control_path`` does.
    """
    named_after = os.path.abspath(file or ".")
    digest = hashlib.sha256(os.fsencode(named_after)).hexdigest()
    return _run_folder() / f"guerrillad-{digest[:8]}.sock"


def _run_folder() -> Path:
    given = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    if given:
        return Path(given)
    if os.geteuid() == 0:
        return Path("/run/guerrilla")
    of_the_user = os.environ.get("XDG_RUNTIME_DIR", "")
    if of_the_user:
        return Path(of_the_user, "guerrilla")
    folder = Path(tempfile.gettempdir(), f"guerrilla-{os.geteuid()}")
    _make_private(folder)
    return folder


def _make_private(folder: Path) -> None:
    """Make a folder where anybody can; if it is there, make sure that it is ours alone."""
    try:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(0o700)
        found = folder.lstat()
    except OSError as error:
        raise ControlError(f"cannot make the run folder {folder}: {error.strerror}") from error
    mode = stat.S_IMODE(found.st_mode)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or mode != 0o700:
        kind = "folder" if stat.S_ISDIR(found.st_mode) else "something else"
        raise ControlError(
            f"found at {folder}: a {kind} of user {found.st_uid} with mode {mode:04o}; "
            f"meant: a folder of user {os.geteuid()} with mode 0700; control_socket can name another place"
        )


# The side of the daemon


def open_control(path: Path, owner: tuple[int, int] = (-1, -1)) -> ControlSocket:
    """Return the listening socket at this path; make its folder, and replace a socket that nobody listens at.

    The socket, and a folder that was not there, become those of ``owner``, the numbers of a user and a group; -1 for no
    change. Who may write to the folder can remove the socket at the end; a new one takes the place of one that stays.

    Raises ControlError if it cannot be had, or another daemon listens at it.
    """
    if len(os.fsencode(path)) > _MAX_PATH:
        raise ControlError(f"{path} is longer than the {_MAX_PATH} octets that a socket's path may have")
    try:
        with contextlib.suppress(FileExistsError):
            path.parent.mkdir(mode=0o700, parents=True)
            os.chown(path.parent, *owner, follow_symlinks=False)
        with _alone_in(path.parent):
            _remove_stale(path)
            return _listen(path, owner)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ControlError(f"cannot listen at {str(path)!a}: {getattr(error, 'strerror', None) or error}") from error


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keep other daemons that start from looking, removing and binding in this folder at the same time."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_stale(path: Path) -> None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):  # connecting to a file of any kind is refused, too
        raise ControlError(
            f"found at {path}: something that is no socket; meant: a free path, or the socket of a daemon"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:
            pass  # so many ask that its queue is full
    raise ControlError(f"another guerrillad is running and listens at {path}")


def _listen(path: Path, owner: tuple[int, int]) -> ControlSocket:
    listening = ControlSocket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        before = os.umask(0o177)
        try:
            listening.bind(os.fspath(path))
        finally:
            os.umask(before)
        os.chown(path, *owner, follow_symlinks=False)
        found = path.lstat()
        listening.file = (found.st_dev, found.st_ino)
        listening.listen(MAX_CONNECTIONS)
        listening.setblocking(False)
    except BaseException:
        listening.close()
        raise
    return listening


def close_control(listening: ControlSocket, path: Path) -> None:
    """Close the socket and remove it, unless its path has become another's. Never raises."""
    with contextlib.suppress(OSError):
        found = path.lstat()
        if (found.st_dev, found.st_ino) == listening.file:
            path.unlink()
    listening.close()


class Control:
    """Answers what comes in at a control socket, on an event loop. It never raises, and leaves the socket open."""

    def __init__(self, listening: socket.socket, answer: AsyncAnswer) -> None:
        self._listening = listening
        self._answer = answer
        self._waiting: set[asyncio.Task[None]] = set()
        """Connections whose client is waited for."""
        self._working: set[asyncio.Task[None]] = set()
        """Connections whose request is being done."""
        self._again: asyncio.TimerHandle | None = None
        self._spare = -1
        """A descriptor to give up for a client when no other is left: just then one wants to know the status."""
        self._closed = False

    def start(self) -> None:
        """Begin to accept. The event loop must be running."""
        self._accepting()

    async def close(self) -> None:
        """Accept no more, wait ``CLOSE_TIMEOUT`` seconds for what is being done, and end all connections."""
        self._closed = True
        asyncio.get_running_loop().remove_reader(self._listening)
        if self._again is not None:
            self._again.cancel()
        for task in self._waiting:
            task.cancel()
        if self._working:
            _, late = await asyncio.wait(set(self._working), timeout=CLOSE_TIMEOUT)
            for task in late:
                task.cancel()
        if left := self._waiting | self._working:
            await asyncio.wait(left)
        self._release_spare()

    def _hold_spare(self) -> None:
        if self._spare < 0:
            with contextlib.suppress(OSError):
                self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def _release_spare(self) -> bool:
        """Return whether there was one."""
        if self._spare < 0:
            return False
        os.close(self._spare)
        self._spare = -1
        return True

    def _accepting(self) -> None:
        if not self._closed:
            self._hold_spare()
            asyncio.get_running_loop().add_reader(self._listening, self._accept)

    def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            connection, _ = self._listening.accept()
        except BlockingIOError:
            return
        except OSError:  # no descriptor is left: the socket stays readable, so come again, or look away for a while
            if self._release_spare():
                return
            loop.remove_reader(self._listening)
            self._again = loop.call_later(ACCEPT_PAUSE, self._accepting)
            return
        connection.setblocking(False)
        task = loop.create_task(self._serve(connection))
        self._waiting.add(task)
        task.add_done_callback(lambda task: self._ended(task, connection))
        if len(self._waiting) + len(self._working) >= MAX_CONNECTIONS:
            loop.remove_reader(self._listening)

    def _ended(self, task: asyncio.Task[None], connection: socket.socket) -> None:
        connection.close()
        self._waiting.discard(task)
        self._working.discard(task)
        self._accepting()

    async def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):  # also that the time is over
            async with asyncio.timeout(REQUEST_TIMEOUT):
                line = await _read_request(connection)
            if not line:
                return
            answer = await self._answered(connection, line)
            async with asyncio.timeout(REQUEST_TIMEOUT):
                await asyncio.get_running_loop().sock_sendall(connection, answer)

    async def _answered(self, connection: socket.socket, line: bytes) -> bytes:
        task = asyncio.current_task()
        assert task is not None
        self._waiting.discard(task)
        self._working.add(task)
        try:
            return _encode(await self._answer(_request(connection, line)))
        except Exception as error:
            return _encode(_failure(error))


async def _read_request(connection: socket.socket) -> bytes:
    loop = asyncio.get_running_loop()
    line = b""
    while not _complete(line):
        octets = await loop.sock_recv(connection, MAX_REQUEST)
        if not octets:
            break
        line += octets
    return line


def answer_blocking(connection: socket.socket, answer: Callable[[dict[str, Any]], dict[str, Any] | None]) -> None:
    """Answer a connection, where there is no event loop; it is the caller's to close.

    ``answer`` returns None when the answer comes later, by ``tell_blocking``. Never raises. Besides that function, it
    takes at most ``BLOCKING_TIMEOUT`` seconds to read the request, and the same to write the answer.
    """
    with contextlib.suppress(OSError):
        line = _receive(connection, BLOCKING_TIMEOUT, MAX_REQUEST)
        if not line:
            return
        try:
            told = answer(_request(connection, line))
            octets = _encode(told) if told is not None else b""
        except Exception as error:
            octets = _encode(_failure(error))
        _send(connection, octets)


def tell_blocking(connection: socket.socket, answer: dict[str, Any]) -> None:
    """Give a connection its answer, within ``BLOCKING_TIMEOUT`` seconds. Never raises."""
    with contextlib.suppress(OSError):
        _send(connection, _encode(answer))


def _send(connection: socket.socket, octets: bytes) -> None:
    connection.settimeout(BLOCKING_TIMEOUT)
    connection.sendall(octets)


def _complete(line: bytes) -> bool:
    return b"\n" in line or len(line) > MAX_REQUEST


def _request(connection: socket.socket, line: bytes) -> dict[str, Any]:
    """Return the request that a client has sent. Raises ControlError if it may not, or has sent something else."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, user, _ = _CREDENTIALS.unpack(credentials)
    if user not in (os.geteuid(), 0):
        raise ControlError(f"found user {user}; meant: user {os.geteuid()}, as which guerrillad runs, or root")
    if len(line) > MAX_REQUEST or not line.endswith(b"\n"):
        raise ControlError(f"the request is no line of at most {MAX_REQUEST} octets")
    return _object(line, "the request")


def _object(line: bytes, what: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ControlError(f"{what} is no JSON object")
    return found


def _failure(error: Exception) -> dict[str, Any]:
    told = str(error) if isinstance(error, ControlError) else f"{type(error).__name__}: {error}"
    return {"ok": False, "problems": told.splitlines()}


def _encode(answer: dict[str, Any]) -> bytes:
    return json.dumps(answer).encode("ascii") + b"\n"


# The side of the client


def ask(path: Path, command: str, timeout: float) -> dict[str, Any]:
    """Return the answer of the daemon that listens at this path; it may take ``timeout`` seconds in all.

    Raises ControlError if there is none, saying why.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            end = time.monotonic() + timeout
            connection.settimeout(timeout)
            connection.connect(os.fspath(path))
            connection.sendall(_encode({"command": command}))
            line = _receive(connection, end - time.monotonic(), MAX_ANSWER)
    except OSError as error:
        raise ControlError(_unanswered(path, error, timeout)) from error
    if not line.endswith(b"\n"):
        raise ControlError(f"guerrillad at {path} ended the connection before its answer was whole")
    return _object(line, f"what came from {path}")


def _unanswered(path: Path, error: OSError, timeout: float) -> str:
    match error:
        case FileNotFoundError():
            return (
                f"there is no socket {path}: is guerrillad running? The socket is named after the configuration file "
                "and lies in the run folder of the daemon's user; --socket says where it is"
            )
        case ConnectionRefusedError():
            return f"nobody listens at {path}: guerrillad is not running"
        case PermissionError():
            return f"permission denied at {path}; meant: the user that guerrillad runs as, or root"
        case TimeoutError() | BlockingIOError():
            return f"guerrillad at {path} gave no answer within {timeout:g} s"
    return f"cannot ask at {path}: {error.strerror or error}"


def _receive(connection: socket.socket, seconds: float, limit: int) -> bytes:
    """Return what comes up to the end of a line, or of the connection, or beyond the limit, within so many seconds."""
    end = time.monotonic() + seconds
    line = bytearray()
    while not line.endswith(b"\n") and len(line) <= limit:
        left = end - time.monotonic()
        if left <= 0:
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
        connection.settimeout(left)
        octets = connection.recv(65536)
        if not octets:
            break
        line += octets
    return bytes(line)
