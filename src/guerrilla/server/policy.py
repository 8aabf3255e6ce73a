"""What one server allows, says and asks under one configuration: made once, read by all, replaced whole by a reload.

A connection has the policy under which its transaction began until that transaction has ended; only then does it take
over the one that holds by now. So nobody is judged by half of the old rules and half of the new.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Final

from structlog.typing import FilteringBoundLogger

from guerrilla.backends.base import Backend
from guerrilla.config import ServerConfig
from guerrilla.envelope import Address
from guerrilla.server.proxies import Proxies
from guerrilla.server.spool import Spool
from guerrilla.server.tls import fingerprint, make_context
from guerrilla.smtp.data import BodyWriter, Newlines
from guerrilla.smtp.hosts import AllowedHosts
from guerrilla.smtp.settings import Settings

HANDSHAKE_TIMEOUT: Final = 10.0
"""Seconds for a TLS handshake; asyncio's own 60 would let the idle hold a place."""


class Policy:
    """The House that the sessions of a server ask, and all else that a configuration says of the server.

    Raises TLSError if the keys and certificates cannot be used; they are read now, and not again. Since that may
    take long, a policy can be made in any thread.
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
        self.config = config
        self.name = config.listen_interface
        self.backend = backend
        self.log = log
        self.timeout: float = float(config.timeout)
        self.min_data_rate = config.min_data_rate
        self.proxies = Proxies(config)
        self.tls_always_on = config.tls.tls_always_on
        self.tls_files = fingerprint(config.tls)
        """What the certificate files were when they were read."""
        self.tls_context: ssl.SSLContext | None = None
        if config.tls.start_tls_on or config.tls.tls_always_on:
            self.tls_context = make_context(config.tls, lambda doubt: log.warning("configuration", problem=str(doubt)))
        self.settings = Settings(
            host_name=config.host_name,
            max_size=config.max_size,
            max_recipients=config.max_recipients,
            starttls=config.tls.start_tls_on,
            validates=backend.validates,
            newlines=Newlines(config.bare_newline),
            xclient=config.xclient_on,
        )
        self._hosts = hosts
        self._spool = spool
        self._holders = 0
        self._left = asyncio.Event()
        self._left.set()

    @property
    def handshake_timeout(self) -> float:
        """Seconds that a TLS handshake may take."""
        return min(HANDSHAKE_TIMEOUT, self.timeout)

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

    # Who lives by it.

    def enter(self) -> None:
        """Count a connection that lives by this policy from now on."""
        self._holders += 1
        self._left.clear()

    def leave(self) -> None:
        """Count one out that has ended, or lives by another."""
        self._holders -= 1
        if not self._holders:
            self._left.set()

    async def abandoned(self) -> None:
        """Return when no connection lives by this policy any more."""
        await self._left.wait()
