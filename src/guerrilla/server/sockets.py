"""Listening sockets: opened once, and handed to the servers that accept from them; and sockets of descriptors."""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from typing import Final

BACKLOG: Final = 1024
"""Connections that may wait to be accepted."""
MOST_WAITING: Final = BACKLOG + 1
"""How many there can be: Linux lets one more wait than it is told."""


def open_sockets(host: str, port: int, beside: Sequence[socket.socket] = ()) -> list[socket.socket]:
    """Open listening sockets for an address, a name, or, with an empty host, for all interfaces.

    ``beside`` are open sockets of ours that may have addresses in common with them: ":25" has with "127.0.0.1:25".
    While both listen, who comes in is at the one whose address is more exact. Raises OSError; then none is left open.
    """
    for each in beside:
        _share(each, True)
    try:
        return _open(host, port, shares=bool(beside))
    finally:
        for each in beside:
            _share(each, False)


def socket_of(number: int) -> socket.socket:
    """Return the socket, which does not block, of a descriptor that it closes from then on. Raises OSError."""
    made = socket.socket(fileno=number)
    made.setblocking(False)
    return made


def _open(host: str, port: int, *, shares: bool) -> list[socket.socket]:
    if not host and socket.has_dualstack_ipv6():
        return [_listen(("", port), socket.AF_INET6, dualstack=True, shares=shares)]
    try:
        # S104: an empty host is the operator's own word for all interfaces.
        found = socket.getaddrinfo(host or "0.0.0.0", port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)  # noqa: S104
    except UnicodeError as error:
        raise OSError(errno.EINVAL, f"{host!r} is no host name") from error
    opened: list[socket.socket] = []
    try:
        for family, _, _, _, address in dict.fromkeys(found):
            # A port that the system chose for the first address is the port of the others too.
            chosen = opened[0].getsockname()[1] if opened else port
            opened.append(_listen((str(address[0]), chosen), family, dualstack=False, shares=shares))
    except OSError:
        for each in opened:
            each.close()
        raise
    return opened


def _listen(address: tuple[str, int], family: int, *, dualstack: bool, shares: bool) -> socket.socket:
    listening = socket.create_server(
        address, family=family, backlog=BACKLOG, reuse_port=shares, dualstack_ipv6=dualstack
    )
    _share(listening, False)
    listening.setblocking(False)
    return listening


def _share(listening: socket.socket, on: bool) -> None:
    """Let a socket's port be bound once more, or not: the system wants both sides to allow it (socket(7))."""
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, on)
