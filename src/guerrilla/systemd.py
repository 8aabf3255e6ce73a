"""The daemon as a service of systemd: what it tells the manager, and the sockets that it is handed.

The protocols are those of sd_notify(3) and sd_listen_fds(3), a datagram and three environment variables. The bindings
on PyPI need the C library, or lack the half of this. Without systemd nothing happens here, and nothing fails.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import stat
import time
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Final

FIRST_DESCRIPTOR: Final = 3
"""SD_LISTEN_FDS_START: the number of the first socket that is handed over."""

_NUMBER = re.compile(r"[0-9]{1,18}")


class InheritedError(Exception):
    """What was handed over as a listening socket cannot be used as one. ``str()`` says which, and why."""


class Notifier:
    """Tells systemd how the service does. Every method returns at once and never raises.

    The socket is opened here and kept: a service that has run out of file descriptors can still say that it lives.
    A message for which the manager has no room is lost, as any datagram is.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._socket: socket.socket | None = None
        # "@" stands for the NUL in front of an abstract name.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        if address.startswith(("/", "@")):
            with contextlib.suppress(OSError):
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
                self._socket.setblocking(False)

    @property
    def active(self) -> bool:
        """Whether somebody is told."""
        return self._socket is not None

    def ready(self, status: str = "") -> None:
        """Say that the service is up, or that its reload has ended."""
        self._send("READY=1", *_status(status))

    def reloading(self) -> None:
        """Say that the configuration is being read anew; ``ready`` ends it."""
        # Type=notify-reload tells by the time that this answers its own signal, and no earlier one.
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """Say that the service drains and ends."""
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """Set the line that ``systemctl status`` shows."""
        self._send(*_status(text or " "))

    def watchdog(self) -> None:
        """Say that the service is alive; due once every ``watchdog_interval()`` seconds."""
        self._send("WATCHDOG=1")

    def main_pid(self, pid: int) -> None:
        """Say which process is the main one, where it is not the one that was started."""
        self._send(f"MAINPID={pid}")

    def close(self) -> None:
        """Close the socket. What is said afterwards goes nowhere."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, *assignments: str) -> None:
        if self._socket is not None:
            # ValueError: a name that is no address. OSError: nobody is there, or there is no room.
            with contextlib.suppress(OSError, ValueError):
                self._socket.sendto("\n".join(assignments).encode(errors="replace"), self._address)


def _status(text: str) -> list[str]:
    # A line break would begin an assignment of its own.
    line = "".join(each if each.isprintable() else " " for each in text[:256])
    return [f"STATUS={line}"] if line else []


def watchdog_interval(environment: Mapping[str, str] = os.environ) -> float | None:
    """Return the seconds after which systemd is to hear of this process again, or None if it does not wait for it.

    It is half of what systemd allows, so that one late answer is no fault.
    """
    allowed = environment.get("WATCHDOG_USEC", "")
    meant_for = environment.get("WATCHDOG_PID", str(os.getpid()))
    if meant_for != str(os.getpid()) or not _NUMBER.fullmatch(allowed) or int(allowed) == 0:
        return None
    return int(allowed) / 2 / 1_000_000


def listen_sockets(
    environment: MutableMapping[str, str] = os.environ, first: int = FIRST_DESCRIPTOR
) -> list[socket.socket]:
    """Take over the listening sockets that this process was started with; without socket activation there are none.

    They do not block, and no child process inherits them. The variables are removed, so that the answer is given once,
    and no child takes them for its own.

    Raises:
        InheritedError: if one is not a listening TCP socket; those before it are closed.
    """
    pid, count, names = (environment.pop(key, "") for key in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if not count or pid != str(os.getpid()):
        return []
    if not _NUMBER.fullmatch(count):
        raise InheritedError(f"LISTEN_FDS: found {count!r}, meant: the number of sockets that are handed over")
    labels = names.split(":")
    with contextlib.ExitStack() as taken:
        sockets = []
        for index in range(int(count)):
            label = labels[index] if index < len(labels) else ""
            sockets.append(taken.enter_context(_take(first + index, label)))
        taken.pop_all()
    return sockets


def _take(descriptor: int, label: str) -> socket.socket:
    what = f"LISTEN_FDS: file descriptor {descriptor}" + (f" ({label})" if label else "")
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            raise InheritedError(f"{what} is no socket")
        taken = socket.socket(fileno=descriptor)
    except OSError as error:
        raise InheritedError(f"{what} cannot be used: {error.strerror}") from error
    fault = _fault(taken)
    if fault:
        taken.close()
        raise InheritedError(f"{what} {fault}, meant: a listening TCP socket")
    taken.set_inheritable(False)
    taken.setblocking(False)
    return taken


def _fault(taken: socket.socket) -> str:
    if taken.family not in (socket.AF_INET, socket.AF_INET6):
        return "is not of the internet"
    if taken.type != socket.SOCK_STREAM:
        return "is no stream"
    if not taken.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return "does not listen"
    return ""


def sockets_for(host: str, port: int, inherited: Iterable[socket.socket]) -> list[socket.socket]:
    """Return those that are bound to the address of a server, as ``ServerConfig`` has it.

    An empty host means all interfaces: 0.0.0.0 or [::]. A name means any of its addresses; one that cannot be resolved
    has none. Never raises.
    """
    wanted = {("0.0.0.0", port), ("::", port)} if not host else _resolved(host, port)  # noqa: S104 - compared only
    return [each for each in inherited if each.getsockname()[:2] in wanted]


def _resolved(host: str, port: int) -> set[tuple[str, int]]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return set()
    return {(str(address[0]), port) for _, _, _, _, address in found}
