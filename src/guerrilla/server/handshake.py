"""The handshake of TLS: from it on the loop reads and writes, and no wire does."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Any, Final

GOODBYE: Final = 2.0
"""Seconds that TLS may take to end a connection as it should be."""


async def shake_hands(
    loop: asyncio.AbstractEventLoop,
    talker: Any,
    connected: socket.socket,
    context: ssl.SSLContext,
    seconds: float,
    unsent: bytes = b"",
) -> None:
    """Send what is still to be said in clear, and let ``talker``, called as an ``asyncio.Protocol``, talk in TLS.

    Its ``connection_made`` is called when the handshake is over; ``seconds`` are for the handshake, and as many
    for what comes before it. Raises OSError, of which ssl.SSLError is one, and for a client certificate that Python
    cannot decode ValueError: then the socket is the caller's to close, and of the end ``talker`` is not told.
    """
    if unsent:
        try:
            async with asyncio.timeout(seconds):
                await loop.sock_sendall(connected, unsent)
        except TimeoutError:
            raise ConnectionAbortedError("the client does not take what it was told before the handshake") from None
    await loop.connect_accepted_socket(
        lambda: talker, connected, ssl=context, ssl_handshake_timeout=seconds, ssl_shutdown_timeout=GOODBYE
    )
