"""Listening sockets: opened once, and handed to the servers that accept from them."""

from __future__ import annotations

import errno
import socket
from typing import Final

BACKLOG: Final = 1024
"""Connections that may wait to be accepted."""


def open_sockets(host: str, port: int) -> list[socket.socket]:
    """Open listening sockets for an address, a name, or, with an empty host, for all interfaces.

    Raises OSError; then none is left open.
    """
    if not host and socket.has_dualstack_ipv6():
        return [_listen(("", port), socket.AF_INET6, dualstack=True)]
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
            opened.append(_listen((str(address[0]), chosen), family, dualstack=False))
    except OSError:
        for each in opened:
            each.close()
        raise
    return opened


def _listen(address: tuple[str, int], family: int, *, dualstack: bool) -> socket.socket:
    listening = socket.create_server(address, family=family, backlog=BACKLOG, dualstack_ipv6=dualstack)
    listening.setblocking(False)
    return listening
