"""What keeps the server from being filled: connections in all and per address, and octets of messages in memory."""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address

from guerrilla.smtp.replies import TOO_MANY_CLIENTS, TOO_MANY_CLIENTS_FROM_ADDRESS, Reply


def client_address(peer: str) -> str:
    """Return the client's address in canonical form: without a scope, and IPv4 also where IPv6 has carried it.

    ``peer`` is as the system writes it, so there is nothing to be done for IPv4.
    """
    if ":" not in peer:
        return peer
    try:
        address = ip_address(peer.partition("%")[0])
    except ValueError:
        return peer
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(address)


def household(address: str) -> str:
    """Return what is counted as one client: an IPv4 address, or the /64 that one IPv6 host has to itself."""
    if ":" not in address:
        return address
    return ":".join(IPv6Address(address).exploded.split(":")[:4])


class Clients:
    """Counts the connections of one server. Both limits may be changed; ``per_address`` 0: only ``most`` holds.

    A connection of a proxy that has not told its client yet comes in under the empty address, for which only ``most``
    holds, and is settled later.
    """

    def __init__(self, most: int, per_address: int) -> None:
        self.most = most
        self.per_address = per_address
        self._count = 0
        self._households: dict[str, int] = {}

    def __len__(self) -> int:
        return self._count

    def enter(self, address: str) -> Reply | None:
        """Count a connection in, or return why there is no place for it."""
        if self._count >= self.most:
            return TOO_MANY_CLIENTS
        if not self._add(household(address)):
            return TOO_MANY_CLIENTS_FROM_ADDRESS
        self._count += 1
        return None

    def settle(self, address: str) -> Reply | None:
        """Count a connection that came in under no address for this one; or return why not, and change nothing."""
        if not self._add(household(address)):
            return TOO_MANY_CLIENTS_FROM_ADDRESS
        self._remove("")
        return None

    def leave(self, address: str) -> None:
        """Count a connection out that was counted in."""
        self._count -= 1
        self._remove(household(address))

    def _add(self, house: str) -> bool:
        count = self._households.get(house, 0)
        if self.per_address and house and count >= self.per_address:
            return False
        self._households[house] = count + 1
        return True

    def _remove(self, house: str) -> None:
        count = self._households.pop(house) - 1
        if count:
            self._households[house] = count


class Memory:
    """Octets of messages that are held in memory, over all connections of the process. ``limit`` may be changed."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0

    def has_room(self) -> bool:
        """Tell whether another message may begin."""
        return self.held < self.limit

    def take(self, octets: int) -> bool:
        """Take room for so many, or return False if there is not enough."""
        if self.held + octets > self.limit:
            return False
        self.held += octets
        return True

    def give_back(self, octets: int) -> None:
        """Give room back that was taken."""
        self.held -= octets
