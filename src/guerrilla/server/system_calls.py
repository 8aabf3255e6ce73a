"""What is asked of the system for each connection in clear, and each time that something has come on it.

On Linux, where there is a C compiler, it is in C (``_system_calls.c``): a socket of Python's is an object of several
layers, which asks the system for what we know already, and each of its calls gives the interpreter's lock back. Both
forms pass the same tests.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable


def plain_accept(listening: socket.socket, /) -> tuple[int, str, int] | None:
    """Take a connection that waits, or return None if there is none.

    Returns the number of its descriptor, which does not block and is the caller's to close, and the client's address
    and port. ``listening`` does not block either. Raises OSError, see accept(2).
    """
    try:
        connected, peer = listening.accept()
    except BlockingIOError:
        return None
    connected.setblocking(False)
    address, port = peer[:2] if isinstance(peer, tuple) else ("", 0)
    return connected.detach(), address, port


def plain_receive(number: int, buffer: bytearray, /) -> bytes | None:
    """Return what has come, at most as much as ``buffer`` holds; nothing at its end; None if nothing is there yet.

    What ``buffer`` holds afterwards is of no meaning. Raises OSError if the connection is broken.
    """
    try:
        with memoryview(buffer) as view:
            return bytes(view[: os.readv(number, [view])])
    except BlockingIOError:
        return None


def plain_send(number: int, octets: bytes, /) -> int:
    """Send as many of the octets as the system takes at once, and return how many. Raises OSError if it is broken."""
    try:
        return os.write(number, octets)
    except BlockingIOError:
        return 0


try:
    from guerrilla.server import _system_calls
except ImportError:
    _system_calls = None  # type: ignore[assignment]  # it was not built

accept: Callable[[socket.socket], tuple[int, str, int] | None] = getattr(_system_calls, "accept", plain_accept)
receive: Callable[[int, bytearray], bytes | None] = getattr(_system_calls, "receive", plain_receive)
send: Callable[[int, bytes], int] = getattr(_system_calls, "send", plain_send)
