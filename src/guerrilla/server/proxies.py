"""The proxies in front of a server: whose word is believed, and the PROXY header by which they give it.

The header is looked at in the socket's own buffer and taken out of it octet for octet, so that what follows, SMTP or a
TLS handshake, is still there for the connection. That needs a task, for as long as the header takes.
"""

from __future__ import annotations

import asyncio
import socket
from ipaddress import ip_address, ip_network
from typing import Final

from guerrilla.config import ServerConfig
from guerrilla.smtp.proxy import HeaderReader, ProxyError, ProxyHeader

_LOOK: Final = 2048
"""Octets that are looked at in one go: a header is smaller nearly always."""


class Proxies:
    """The proxies that one configuration of a server trusts."""

    def __init__(self, config: ServerConfig) -> None:
        self._header = config.behind_proxy
        self._xclient = config.xclient_on
        self._networks = [ip_network(network) for network in config.trusted_proxies]

    def header_from(self, address: str) -> bool:
        """Tell whether a connection from the address has to begin with a PROXY header."""
        return self._header and self._trusts(address)

    def xclient_from(self, address: str) -> bool:
        """Tell whether a client with the address may say by XCLIENT for whom it speaks."""
        return self._xclient and self._trusts(address)

    def _trusts(self, address: str) -> bool:
        try:
            parsed = ip_address(address)
        except ValueError:
            return False  # the peer of a Unix socket has none
        return any(parsed in network for network in self._networks)


async def read_header(accepted: socket.socket, seconds: float) -> ProxyHeader:
    """Read the PROXY header, and not an octet that follows it, from a socket that does not block.

    Raises OSError if it is malformed, if it has not come after so many seconds, or if the proxy has hung up.
    """
    reader = HeaderReader()
    try:
        async with asyncio.timeout(seconds):
            while reader.header is None:
                octets = await _look(accepted)
                if not octets:
                    raise ConnectionAbortedError("the proxy has hung up before the end of its PROXY header")
                accepted.recv(reader.feed(octets))
    except TimeoutError:
        raise ConnectionAbortedError("the PROXY header has not come in time") from None
    except ProxyError as error:
        raise ConnectionAbortedError(f"the proxy has sent {error}") from None
    return reader.header


async def _look(accepted: socket.socket) -> bytes:
    """Return what has come, and leave it in the socket; nothing at its end."""
    while True:
        try:
            return accepted.recv(_LOOK, socket.MSG_PEEK)
        except BlockingIOError:
            await _readable(accepted)


async def _readable(accepted: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(accepted.fileno(), ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(accepted.fileno())
