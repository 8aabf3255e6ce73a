"""The limits of connections when several processes serve the same listening sockets: counted over all of them.

The counts are in memory that the processes share. Each process writes its own row alone, and reads those of all. Who
comes in is counted first and then compared, so two processes can never both give away the last place; when they try
in the same moment, both may refuse, and the clients come again. A process that is killed leaves its row to the
supervisor, who clears it.

Per address there is not a counter each, but two arrays of counters that addresses fall into by a secret hash, the
smaller of both being taken: bounded memory, and a wrong answer, which is rare, only ever refuses for a moment.

The same counts tell a process whether it has more connections than its share, and had better leave the next one to
the others.
"""

from __future__ import annotations

import mmap
import secrets
from operator import mul
from typing import Final

from guerrilla.server.limits import household
from guerrilla.smtp.replies import TOO_MANY_CLIENTS, TOO_MANY_CLIENTS_FROM_ADDRESS, Reply

BUCKETS: Final = 4096
"""Counters of one array: two arrays for each server and process."""
_ACCEPTS: Final = 1 + 2 * BUCKETS
_ROW: Final = 2 + 2 * BUCKETS
"""Numbers of one process and one server: all connections, the two arrays, and whether it accepts."""


class Board:
    """The counts of all processes. Made by the supervisor before it forks, and inherited.

    ``slots`` is how many processes there can be at a time, ``servers`` how many listening interfaces.
    """

    def __init__(self, slots: int, servers: int) -> None:
        self.slots = slots
        self.servers = servers
        self.salt = secrets.token_hex(16)
        self._flags = slots * servers * _ROW
        """Behind the rows: one for each server, whether all processes stop accepting."""
        self._memory = mmap.mmap(-1, (self._flags + servers) * 4)
        self._numbers = memoryview(self._memory).cast("I")

    def clients(self, slot: int, server: int, most: int, per_address: int) -> SharedClients:
        """Return what a process asks for a place, for one of its servers."""
        return SharedClients(self, slot, server, most, per_address)

    def begin(self, server: int) -> None:
        """Let everybody know that processes accept for the server, until it ends. For the supervisor, as is ``end``."""
        self._numbers[self._flags + server] = 0

    def end(self, server: int) -> None:
        """Let everybody know that all processes stop accepting for the server now, and none comes after them."""
        self._numbers[self._flags + server] = 1

    def ends(self, server: int) -> bool:
        """Return whether all processes stop accepting for the server."""
        return bool(self._numbers[self._flags + server])

    def clear(self, slot: int) -> None:
        """Forget the connections of a process that has ended."""
        size = self.servers * _ROW
        self._numbers[slot * size : (slot + 1) * size] = memoryview(bytes(size * 4)).cast("I")

    def add(self, slot: int, server: int, counter: int, change: int) -> None:
        """Change a number of one's own row."""
        self._numbers[(slot * self.servers + server) * _ROW + counter] += change

    def put(self, slot: int, server: int, counter: int, number: int) -> None:
        """Set a number of one's own row."""
        self._numbers[(slot * self.servers + server) * _ROW + counter] = number

    def column(self, server: int, counter: int) -> memoryview[int]:
        """Return a number as all processes have it, in the order of the slots."""
        return self._numbers[server * _ROW + counter : self._flags : self.servers * _ROW]

    def total(self, server: int, counter: int) -> int:
        """Return the sum of a number over all processes."""
        return sum(self.column(server, counter))


class SharedClients:
    """Counts the connections of one server over all processes; the counterpart of ``Clients``.

    ``len`` is the number of this process's own.
    """

    def __init__(self, board: Board, slot: int, server: int, most: int, per_address: int) -> None:
        self._board = board
        self._slot = slot
        self._server = server
        self.most = most
        self.per_address = per_address
        self._own = 0

    def __len__(self) -> int:
        return self._own

    def accept(self, accepts: bool) -> None:
        """Say whether this process accepts connections; it does not before it has said so."""
        self._board.put(self._slot, self._server, _ACCEPTS, accepts)

    def ends(self) -> bool:
        """Return whether the other processes stop accepting as well, so that nobody will take who still waits."""
        return self._board.ends(self._server)

    def ahead(self) -> bool:
        """Return whether this process has more connections than its share: the average of those that accept.

        An eighth more, and one, is still its share: to be exact would cost more than it gives where connections are
        short.
        """
        accepts = self._board.column(self._server, _ACCEPTS)
        held: int = sum(map(mul, self._board.column(self._server, 0), accepts))
        return 8 * (self._own - 1) * sum(accepts) > 9 * held

    def enter(self, address: str) -> Reply | None:
        """Count a connection in, or return why there is no place for it."""
        counters = self._counters(address)
        self._change(counters, 1)
        board, server = self._board, self._server
        refusal: Reply | None = None
        if board.total(server, 0) > self.most:
            refusal = TOO_MANY_CLIENTS
        elif self._too_many(counters[1:]):
            refusal = TOO_MANY_CLIENTS_FROM_ADDRESS
        if refusal is not None:
            self._change(counters, -1)
        return refusal

    def settle(self, address: str) -> Reply | None:
        """Count a connection that came in under no address for this one; or return why not, and change nothing."""
        buckets = self._counters(address)[1:]
        self._add(buckets, 1)
        if not self._too_many(buckets):
            return None
        self._add(buckets, -1)
        return TOO_MANY_CLIENTS_FROM_ADDRESS

    def leave(self, address: str) -> None:
        """Count a connection out that was counted in."""
        self._change(self._counters(address), -1)

    def _too_many(self, buckets: list[int]) -> bool:
        if not self.per_address or not buckets:
            return False
        return min(self._board.total(self._server, each) for each in buckets) > self.per_address

    def _counters(self, address: str) -> list[int]:
        if not address:
            return [0]
        key = hash((self._board.salt, household(address)))
        return [0, 1 + key % BUCKETS, 1 + BUCKETS + (key >> 20) % BUCKETS]

    def _change(self, counters: list[int], change: int) -> None:
        self._own += change
        self._add(counters, change)

    def _add(self, counters: list[int], change: int) -> None:
        for each in counters:
            self._board.add(self._slot, self._server, each, change)
