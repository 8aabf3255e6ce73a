"""The listening sockets that are open and have no server yet: opened here, inherited, or about to be handed on."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Container, Iterable, Sequence

from guerrilla import systemd
from guerrilla.config import AppConfig, ServerConfig
from guerrilla.generation import Place, StartError, places
from guerrilla.server.sockets import open_sockets


class Doors:
    """Sockets by the place that they are for. Who comes in at one waits until a server takes it."""

    def __init__(self) -> None:
        self._sockets: dict[Place, list[socket.socket]] = {}
        self._taken: dict[Place, list[socket.socket]] = {}
        """Those that a server has; it closes them."""
        self._inherited: list[socket.socket] = []
        """Held to the end: whoever opened them does so, too, and a server that is off for a while gets no others."""

    @property
    def places(self) -> list[Place]:
        """Those that there are sockets for."""
        return list(self._sockets)

    def addresses(self, config: AppConfig) -> list[tuple[ServerConfig, tuple[str, int]]]:
        """Return the servers of the configuration that there are sockets for, and where these are bound."""
        servers = places(config)
        return [
            (servers[place], sockets[0].getsockname()[:2])
            for place, sockets in self._sockets.items()
            if place in servers
        ]

    def open(self, config: AppConfig, besides: Container[Place] = ()) -> None:
        """Open the sockets of all servers of the configuration that are not open, ``besides`` those named.

        Raises StartError; then no more are open than before.
        """
        opened: dict[Place, list[socket.socket]] = {}
        for place, server in places(config).items():
            if place in besides or place in self._sockets:
                continue
            try:
                inherited = systemd.sockets_for(server.host, server.port, self._inherited) if self._inherited else []
                opened[place] = [each.dup() for each in inherited] or open_sockets(
                    server.host, server.port, self._leaving(config, server.port)
                )
            except OSError as error:
                _close_all(opened.values())
                raise StartError(f"server {server.listen_interface}: cannot listen: {_why(error)}") from error
        self._sockets.update(opened)

    def _leaving(self, config: AppConfig, port: int) -> list[socket.socket]:
        """Return the sockets at a port that this configuration does not have: a server may be moving from there.

        What was inherited stays open elsewhere, so nothing can take its place.
        """
        wanted = places(config)
        leaving = [
            each for place, some in (self._sockets | self._taken).items() if place not in wanted for each in some
        ]
        kept = {each.getsockname() for each in self._inherited}
        return [
            each
            for each in leaving
            if each.fileno() >= 0 and each.getsockname() not in kept and each.getsockname()[1] == port
        ]

    def inherit(self, sockets: Sequence[socket.socket]) -> None:
        """Take over sockets that listen already, for the servers that listen there, now or after a reload."""
        self._inherited = list(sockets)

    def held(self, place: Place) -> bool:
        """Tell whether the sockets of a place were inherited, so that another process holds them too."""
        kept = {each.getsockname() for each in self._inherited}
        return any(each.getsockname() in kept for each in self._sockets[place])

    def take(self, place: Place) -> list[socket.socket]:
        """Hand over the sockets of a place; they are the caller's to close."""
        self._taken[place] = self._sockets.pop(place)
        return list(self._taken[place])

    def close(self, config: AppConfig | None) -> None:
        """Close the sockets that are for no server of this configuration; without one, all, the inherited too."""
        wanted = places(config) if config is not None else {}
        _close_all([self._sockets.pop(place) for place in self.places if place not in wanted])
        if config is None:
            _close_all([self._inherited])
            self._inherited = []


def _close_all(sockets: Iterable[Sequence[socket.socket]]) -> None:
    for some in sockets:
        for listening in some:
            listening.close()


def _why(error: OSError) -> str:
    """Say what to do about the two errors that everybody meets."""
    if isinstance(error, PermissionError):
        return f"{os.strerror(errno.EACCES)}; ports below 1024 need root, or the capability CAP_NET_BIND_SERVICE"
    if error.errno == errno.EADDRINUSE:
        return f"{os.strerror(errno.EADDRINUSE)}; another server is running there"
    return str(error.strerror or error)
