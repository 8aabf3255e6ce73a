"""One server: its listening sockets, the connections that came over them, and the sweep that looks at their limits."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from typing import Any, Final

from structlog.typing import FilteringBoundLogger

from guerrilla.backends.base import Backend
from guerrilla.config import ServerConfig
from guerrilla.envelope import Address
from guerrilla.server.connection import HANDSHAKE_TIMEOUT, LINGER, Connection
from guerrilla.server.limits import Clients, client_address
from guerrilla.server.spool import Spool
from guerrilla.server.tls import make_context
from guerrilla.smtp.data import BodyWriter, Newlines
from guerrilla.smtp.hosts import AllowedHosts
from guerrilla.smtp.replies import SHUTTING_DOWN, TOO_MANY_CLIENTS, Reply
from guerrilla.smtp.settings import Settings

BACKLOG: Final = 1024
ACCEPT_BURST: Final = 64
"""Connections taken at one time, so that those that are there are served in between."""
ACCEPT_PAUSE: Final = 0.5
"""Seconds without accepting, when the system has no descriptor or no memory for another connection."""
MAX_REFUSALS: Final = 1024
"""Connections beyond the limit that are seen off with patience at the same time; the next are told and cut."""
READ_SIZE: Final = 262144

_CAPACITY: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
_GONE: Final = frozenset(
    {errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.EINTR, errno.ENETDOWN, errno.EHOSTUNREACH}
)
"""The client has gone, or a firewall did not want it, before we took it from the queue: accept(2)."""


class Server:
    """A listening interface and all that came over it. It is the House that its sessions ask.

    ``backend`` may be replaced while it runs: what is submitted later goes to the new one.
    """

    def __init__(
        self,
        config: ServerConfig,
        *,
        hosts: AllowedHosts,
        backend: Backend,
        spool: Spool,
        log: FilteringBoundLogger,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.config = config
        self.name = config.listen_interface
        self.backend = backend
        self.log = log
        self.timeout: float = config.timeout
        self.min_data_rate = config.min_data_rate
        self.tls_always_on = config.tls.tls_always_on
        self.tls_context = make_context(config.tls) if config.tls.start_tls_on or config.tls.tls_always_on else None
        self.settings = Settings(
            host_name=config.host_name,
            max_size=config.max_size,
            max_recipients=config.max_recipients,
            starttls=config.tls.start_tls_on,
            validates=backend.validates,
            newlines=Newlines(config.bare_newline),
        )
        self.read_buffer = memoryview(bytearray(READ_SIZE))
        self.connections: set[Connection] = set()
        """All that were accepted and have not gone, also those in a handshake, and those beyond the limit."""
        self.draining = False
        """Whether no transaction may begin any more."""
        self.address = ("", 0)
        """The address and port that are really bound: port 0 has become one."""
        self._hosts = hosts
        self._spool = spool
        self._clients = Clients(config.max_clients, config.max_clients_per_address)
        self._refusing = 0
        self._sockets: list[socket.socket] = []
        self._spare = -1
        self._tasks: set[asyncio.Task[Any]] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._empty = asyncio.Event()
        self._empty.set()

    # The House.

    def allows(self, recipient: Address) -> bool:
        """Tell whether we take mail for the recipient's domain."""
        return self._hosts.allows(recipient)

    def has_room(self) -> bool:
        """Tell whether there is memory for one more message."""
        return self._spool.memory.has_room()

    def open_body(self) -> BodyWriter:
        """Return where the octets of the next message go."""
        return self._spool.open_body()

    # Life.

    @property
    def handshake_timeout(self) -> float:
        """Seconds that a TLS handshake may take."""
        return min(HANDSHAKE_TIMEOUT, self.timeout)

    def bind(self) -> None:
        """Open the listening sockets; nothing is accepted yet. Raises OSError."""
        self._sockets = open_sockets(self.config.host, self.config.port)
        self.address = self._sockets[0].getsockname()[:2]

    def start(self) -> None:
        """Accept from now on."""
        self._spare = _open_spare()
        for listening in self._sockets:
            self.loop.add_reader(listening.fileno(), self._accept, listening)
        self._sweep()

    def stop_accepting(self) -> None:
        """Close the listening sockets, and let no transaction begin any more. May be called more than once."""
        self.draining = True
        for listening in self._sockets:
            self.loop.remove_reader(listening.fileno())
            listening.close()
        self._sockets = []
        if self._spare >= 0:
            os.close(self._spare)
            self._spare = -1

    async def drain(self) -> None:
        """Stop accepting, let each transaction under way end, say 421 to everyone; return when all have gone."""
        self.stop_accepting()
        for connection in list(self.connections):
            connection.drain()
        await self._empty.wait()

    async def close(self) -> None:
        """Stop accepting, and cut off who is still there. May be called more than once, and without a start."""
        self.stop_accepting()
        for connection in list(self.connections):
            connection.hurry(SHUTTING_DOWN)
        # One turn of the loop for the last words to leave.
        await asyncio.sleep(0)
        for connection in list(self.connections):
            connection.abort()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._empty.wait()
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None

    # What connections call.

    def keep(self, task: asyncio.Task[Any]) -> None:
        """Hold a task that nobody waits for: the loop itself holds it only weakly. It is cancelled at the end."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def forget(self, connection: Connection) -> None:
        """Count a connection out. May be called more than once."""
        if connection not in self.connections:
            return
        self.connections.remove(connection)
        if connection.refused:
            self._refusing -= 1
        else:
            self._clients.leave(connection.remote_ip)
        if not self.connections:
            self._empty.set()

    # Accepting.

    def _accept(self, listening: socket.socket) -> None:
        """Take what waits in the queue of the listening socket."""
        for _ in range(ACCEPT_BURST):
            try:
                accepted, peer = listening.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _GONE:
                    continue
                self._pause(listening, error)
                return
            self._adopt(accepted, client_address(peer[0]), peer[1])

    def _adopt(self, accepted: socket.socket, remote_ip: str, remote_port: int) -> None:
        refusal = self._clients.enter(remote_ip)
        if refusal is not None:
            if self._refusing >= MAX_REFUSALS:
                _turn_away(accepted, refusal)
                return
            self._refusing += 1
            self.log.warning("too many connections", client=remote_ip, reply=str(refusal))
        accepted.setblocking(False)
        connection = Connection(self, remote_ip, remote_port, refusal)
        self.connections.add(connection)
        self._empty.clear()
        self.keep(self.loop.create_task(self._connect(accepted, connection)))

    async def _connect(self, accepted: socket.socket, connection: Connection) -> None:
        """Hand a socket over to its connection, after the TLS handshake where TLS is always on."""
        context = self.tls_context if self.tls_always_on else None
        connected = False
        try:
            await self.loop.connect_accepted_socket(
                lambda: connection,
                accepted,
                ssl=context,
                ssl_handshake_timeout=self.handshake_timeout if context else None,
                ssl_shutdown_timeout=LINGER if context else None,
            )
            connected = True
        except OSError as error:
            # The client has gone, the handshake has failed, or its time is over.
            self.log.info("connection failed", client=connection.remote_ip, cause=str(error))
        finally:
            if not connected:
                accepted.close()
                self.forget(connection)

    def _pause(self, listening: socket.socket, error: OSError) -> None:
        """Out of descriptors or memory: answer those who wait with 421, by the spare descriptor, and rest a moment."""
        self.log.warning("cannot accept connections", listen_interface=self.name, cause=error.strerror)
        self.loop.remove_reader(listening.fileno())
        if error.errno in _CAPACITY and self._spare >= 0:
            os.close(self._spare)
            self._spare = -1
            self._turn_all_away(listening)
            self._spare = _open_spare()
        self.loop.call_later(ACCEPT_PAUSE, self._resume, listening)

    def _turn_all_away(self, listening: socket.socket) -> None:
        for _ in range(ACCEPT_BURST):
            try:
                _turn_away(listening.accept()[0], TOO_MANY_CLIENTS)
            except OSError:
                return

    def _resume(self, listening: socket.socket) -> None:
        if listening in self._sockets:
            if self._spare < 0:
                self._spare = _open_spare()
            self.loop.add_reader(listening.fileno(), self._accept, listening)

    # Time.

    def _sweep(self) -> None:
        """Look at every connection's time limits, again and again: one timer for all of them."""
        self._sweeper = self.loop.call_later(min(1.0, self.timeout / 4), self._sweep)
        now = self.loop.time()
        for connection in list(self.connections):
            connection.check(now)


def _turn_away(accepted: socket.socket, reply: Reply) -> None:
    """Tell a client why, as far as its socket takes it at once, and cut it off."""
    with accepted, contextlib.suppress(OSError):
        accepted.setblocking(False)
        accepted.send(reply.wire)


def _open_spare() -> int:
    try:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1


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
