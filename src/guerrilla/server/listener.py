"""One server: its listening sockets, the connections that came over them, and the sweep that looks at their limits."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Sequence
from typing import Any, Final

from guerrilla.server.connection import Connection
from guerrilla.server.handshake import shake_hands
from guerrilla.server.limits import Clients, client_address
from guerrilla.server.policy import Policy
from guerrilla.server.proxies import read_header
from guerrilla.server.readiness import readiness
from guerrilla.server.shared_limits import SharedClients
from guerrilla.server.sockets import MOST_WAITING, socket_of
from guerrilla.server.system_calls import accept, send
from guerrilla.server.turn import Turn
from guerrilla.server.wire import Wire, Wires
from guerrilla.server.witness import Witness
from guerrilla.smtp.replies import SHUTTING_DOWN, TOO_MANY_CLIENTS, Reply

ACCEPT_BURST: Final = 64
"""Connections taken at one time, so that those that are there are served in between."""
ACCEPT_PAUSE = 0.5
"""Seconds without accepting, when the system has no descriptor or no memory for another connection."""
COURTESY = 0.002
"""Seconds for which a process with more than its share of the connections leaves the next ones to the others."""
MAX_REFUSALS = 1024
"""Connections beyond the limit that are seen off with patience at the same time; the next are told and cut."""

_CAPACITY: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
_GONE: Final = frozenset(
    {errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.EINTR, errno.ENETDOWN, errno.EHOSTUNREACH}
)
"""The client has gone, or a firewall did not want it, before we took it from the queue: accept(2)."""


class Server:
    """A listening interface and all that came over it.

    ``sockets`` listen already; the server accepts from them once it is started, and closes them at its end; when they
    are shared with other processes, those go on accepting then, and ``clients`` counts for all of them. ``held``:
    whoever opened them holds them, and who waits to be accepted at the end waits for the next start. ``policy`` is what
    holds for the transactions that begin now; ``adopt`` replaces it while mail flows.
    """

    def __init__(
        self,
        policy: Policy,
        sockets: Sequence[socket.socket],
        witness: Witness,
        *,
        clients: SharedClients | None = None,
        held: bool = False,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.clock = self.loop.time  # it is asked for each reply, and a method is slower to be found
        self.name = policy.name
        self.policy = policy
        self.witness = witness
        self.turn = Turn(self.loop, witness.lines)
        self.connections: set[Connection] = set()
        """All that were accepted and have not gone, also those in a handshake, and those beyond the limit."""
        self.draining = False
        """Whether no transaction may begin any more."""
        self.address: tuple[str, int] = sockets[0].getsockname()[:2]
        """The address and port that are really bound: port 0 has become one."""
        self._clients = (
            clients
            if clients is not None
            else Clients(policy.config.max_clients, policy.config.max_clients_per_address)
        )
        self._wires = Wires(self.loop, readiness)
        self._refusing = 0
        self._sockets = list(sockets)
        self._shared = clients
        self._held = held
        self._spare = -1
        self._tasks: set[asyncio.Task[Any]] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._empty = asyncio.Event()
        self._empty.set()

    # Life.

    def start(self) -> None:
        """Accept from now on."""
        self._spare = _open_spare()
        for listening in self._sockets:
            # What is accepted has it from there; a reply must not wait until the last one is acknowledged.
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.loop.add_reader(listening.fileno(), self._accept, listening)
        if self._shared is not None:
            self._shared.accept(True)
        self._sweep()

    def adopt(self, policy: Policy) -> None:
        """Let another policy hold. Transactions under way end on the one they began with; nobody is cut off."""
        self.policy = policy
        self._clients.most = policy.config.max_clients
        self._clients.per_address = policy.config.max_clients_per_address
        for connection in list(self.connections):
            connection.follow()

    def stop_accepting(self) -> None:
        """Close the listening sockets, and let no transaction begin any more. May be called more than once."""
        self.draining = True
        if self._shared is not None:
            self._shared.accept(False)
        for listening in self._sockets:
            self._leave_alone(listening)
            if self._takes_the_rest():
                self._take_the_rest(listening)
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
        # One turn of the loop for the last words, and for answers that are there and not told yet.
        await asyncio.sleep(0)
        self.turn.work()
        for connection in list(self.connections):
            connection.abort()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._empty.wait()
        self._wires.close()
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
        connection.leave()
        if connection.place is None:
            self._refusing -= 1
        else:
            self._clients.leave(connection.place)
            self.witness.counters.connections_open -= 1
        if not self.connections:
            self._empty.set()

    def settle(self, address: str) -> Reply | None:
        """Count a connection of a proxy for its client's address, or return why there is no place for it."""
        refusal = self._clients.settle(address)
        if refusal is not None:
            self.witness.refused(self.policy.log, self.name, (address, 0), refusal)
        return refusal

    # Accepting.

    def _accept(self, listening: socket.socket) -> None:
        """Take what waits in the queue of the listening socket; where it is shared, not much more than one's share.

        Whoever runs just then would take all of it otherwise, and the other processors would have nothing to do for as
        long as the connections last.
        """
        for _ in range(ACCEPT_BURST):
            if self._shared is not None and self._shared.ahead():
                self._leave_alone(listening)
                self.loop.call_later(COURTESY, self._take_in_turn, listening)
                return
            if not self._take(listening):
                return

    def _takes_the_rest(self) -> bool:
        """Return whether nobody else will accept who waits now."""
        if self._held:
            return False
        return self._shared.ends() if self._shared is not None else self._sweeper is not None

    def _take_the_rest(self, listening: socket.socket) -> None:
        """Take who waits already, to be told 421 and not reset."""
        for _ in range(MOST_WAITING):
            if not self._take(listening):
                return

    def _take_in_turn(self, listening: socket.socket) -> None:
        """Take one that the others have left, since they are busy and it has waited long enough; and go on."""
        self._resume(listening)
        if listening in self._sockets and self._take(listening):
            self._accept(listening)

    def _take(self, listening: socket.socket) -> bool:
        """Take one connection, and return whether there may be another."""
        try:
            self._wires.start()  # for which there may have been no descriptor the last time
            accepted = accept(listening)
        except OSError as error:
            if error.errno in _GONE:
                return True
            if self.draining:
                self._turn_all_away(listening, error)
            else:
                self._pause(listening, error)
            return False
        if accepted is None:
            return False
        number, address, port = accepted
        self._adopt(number, client_address(address), port)
        return True

    def _adopt(self, number: int, remote_ip: str, remote_port: int) -> None:
        proxies = self.policy.proxies
        introduced = proxies.header_from(remote_ip)
        trusted = proxies.xclient_from(remote_ip)
        # A proxy is no client: who is counted, per address, is for whom it speaks.
        place = "" if introduced or trusted else remote_ip
        refusal = self._clients.enter(place)
        if refusal is not None:
            if self._refusing >= MAX_REFUSALS:
                self.witness.turned_away(refusal)
                _turn_away(number, refusal)
                return
            self._refusing += 1
            self.witness.refused(self.policy.log, self.name, (remote_ip, remote_port), refusal)
        else:
            self.witness.counters.connections_accepted += 1
            self.witness.counters.connections_open += 1
        encrypted = self.policy.tls_always_on
        connection = Connection(self, remote_ip, remote_port, place, refusal, trusted=trusted, encrypted=encrypted)
        if not self.connections:
            self._empty.clear()
        self.connections.add(connection)
        if introduced or connection.encrypted:
            self.keep(self.loop.create_task(self._connect_in_time(number, connection, introduced, self.policy)))
        else:
            self._connect(number, connection)

    def _connect(self, number: int, connection: Connection) -> None:
        """Let a connection in clear talk."""
        try:
            wire = Wire(self._wires, number, connection)
        except OSError as error:  # the system does not watch one more
            _turn_away(number, TOO_MANY_CLIENTS)
            self._not_connected(connection, error)
            return
        try:
            connection.connection_made(wire)
        except Exception as error:
            wire.abort()
            self.policy.log.error("connection failed", client=connection.remote_ip, exc_info=error)

    async def _connect_in_time(self, number: int, connection: Connection, introduced: bool, policy: Policy) -> None:
        """Do the same after a PROXY header, and the TLS handshake where TLS is always on.

        ``policy`` is the one that it was accepted under: there may be another one before this begins.
        """
        context = policy.tls_context if connection.encrypted else None
        try:
            accepted = socket_of(number)
        except OSError as error:  # some systems make no socket of a connection that is broken by now
            os.close(number)
            self._not_connected(connection, error)
            return
        try:
            if introduced:
                connection.introduce(await read_header(accepted, policy.handshake_timeout))
            if context is None:
                self._connect(accepted.detach(), connection)
            else:
                await shake_hands(self.loop, connection, accepted, context, policy.handshake_timeout)
        except (OSError, ValueError) as error:
            # The client has gone, its header is none, the handshake has failed, or their time is over. ValueError is
            # the loop's, for a client certificate that Python cannot decode.
            if context is not None:
                self.witness.counters.tls_failures += 1
            accepted.close()
            self._not_connected(connection, error)
        except BaseException:
            accepted.close()
            self.forget(connection)
            raise

    def _not_connected(self, connection: Connection, error: Exception) -> None:
        self.policy.log.info("connection failed", client=connection.remote_ip, cause=str(error))
        self.forget(connection)

    def _pause(self, listening: socket.socket, error: OSError) -> None:
        """Out of descriptors or memory: answer those who wait with 421, by the spare descriptor, and rest a moment."""
        self.policy.log.warning("cannot accept connections", listen_interface=self.name, cause=error.strerror)
        self._leave_alone(listening)
        self._turn_all_away(listening, error)
        self.loop.call_later(ACCEPT_PAUSE, self._resume, listening)

    def _turn_all_away(self, listening: socket.socket, error: OSError) -> None:
        """Answer those who wait, by the spare descriptor, if it is for want of one that they are not accepted."""
        if error.errno not in _CAPACITY or self._spare < 0:
            return
        os.close(self._spare)
        self._spare = -1
        for _ in range(MOST_WAITING if self.draining else ACCEPT_BURST):
            try:
                accepted = accept(listening)
            except OSError as again:
                if again.errno in _GONE:
                    continue
                break
            if accepted is None:
                break
            _turn_away(accepted[0], SHUTTING_DOWN if self.draining else TOO_MANY_CLIENTS)
        self._spare = _open_spare()

    def _resume(self, listening: socket.socket) -> None:
        if listening in self._sockets:
            if self._spare < 0:
                self._spare = _open_spare()
            self.loop.add_reader(listening.fileno(), self._accept, listening)

    def _leave_alone(self, listening: socket.socket) -> None:
        """Accept no more from the socket."""
        self.loop.remove_reader(listening.fileno())

    # Time.

    def _sweep(self) -> None:
        """Look at every connection's time limits, again and again: one timer for all of them."""
        self._sweeper = self.loop.call_later(min(1.0, self.policy.timeout / 4), self._sweep)
        self.turn.work()
        now = self.clock()
        for connection in list(self.connections):
            connection.check(now)


def _turn_away(number: int, reply: Reply) -> None:
    """Tell a client why, as far as the system takes it at once, and cut it off."""
    with contextlib.suppress(OSError):
        send(number, reply.wire)
    os.close(number)


def _open_spare() -> int:
    try:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1
