"""Reading mail back: the stores of a whole configuration, opened as they are, without a running line.

Nothing is started and nothing is made: the processors that ``save_process`` names are only asked for their stores, so
a server may use these at the same time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

from guerrilla.backends.registry import Registry
from guerrilla.config import AppConfig
from guerrilla.stores.base import Bodies, KeepsBodies, MailStore, ReadsBack
from guerrilla.stores.compression import decompressed_body
from guerrilla.stores.maildir_folder import UNIQUE_NAME

_SECONDS: Final = 30.0
"""How long each store may take to answer."""


class UnreadableError(Exception):
    """A store that may hold the message cannot be read, or there is none; the text says which, and why."""


def is_key(text: str) -> bool:
    """Whether a store may have a message of that name: printable ASCII, without slash and colon, 255 at most.

    Hashes and queue ids have that form as well as the names of files in a Maildir.
    """
    return UNIQUE_NAME.fullmatch(text) is not None


class MailStores:
    """What keeps the mail of one configuration, by the names of the processors, in the order of ``save_process``.

    ``stores`` are complete; ``bodies`` keep only the octets, under the key of the message.
    """

    def __init__(self, stores: Mapping[str, MailStore], bodies: Mapping[str, Bodies]) -> None:
        self.stores = stores
        self.bodies = bodies

    @property
    def names(self) -> list[str]:
        """The processors that are asked, in their order."""
        return [*self.stores, *self.bodies]

    async def get(self, key: str) -> bytes | None:
        """Return the raw message from the first store that has it: delivery header and octets, decompressed.

        Raises:
            UnreadableError: if none has it, and one of them cannot be read.
        """
        failures = []
        readers: list[Callable[[str], Awaitable[bytes | None]]] = [store.get for store in self.stores.values()]
        readers += [bodies.get for bodies in self.bodies.values()]
        for name, read in zip(self.names, readers, strict=True):
            try:
                async with asyncio.timeout(_SECONDS):
                    found = await read(key)
                    if found is not None and name in self.bodies:
                        found = await decompressed_body(found)
            except Exception as error:  # of whatever kind: another store may have the message
                failures.append(f"{name} cannot be read: {_cause(error)}")
                continue
            if found is not None:
                return found
        if failures:
            raise UnreadableError("; ".join(failures))
        return None


@asynccontextmanager
async def open_mail_stores(config: AppConfig, registry: Registry) -> AsyncIterator[MailStores]:
    """Give the stores of a configuration, and close them afterwards. Connections are made when something is read.

    Rows whose octets are in Redis are read from the Redis of the same line.

    Raises:
        ConfigError: if the line cannot be built.
        UnreadableError: if nothing in ``save_process`` can be read back, or a driver is not installed.
    """
    names = registry.chain(config.backend_config)
    line = [each for each in registry.build(config.backend_config).processors if each[0] in names]
    async with AsyncExitStack() as stack:
        bodies: dict[str, Bodies] = {}
        for name, processor in line:
            if isinstance(processor, KeepsBodies):
                bodies[name] = processor.mail_bodies()
                stack.push_async_callback(bodies[name].close)
        stores: dict[str, MailStore] = {}
        for name, processor in line:
            if isinstance(processor, ReadsBack):
                try:
                    stores[name] = processor.mail_store(next(iter(bodies.values()), None))
                except RuntimeError as error:
                    raise UnreadableError(f"{name} cannot be read: {error}") from error
                stack.push_async_callback(stores[name].close)
        if not stores and not bodies:
            raise UnreadableError(f"nothing in this line can be read back: {' → '.join(names)}")
        yield MailStores(stores, bodies)


def _cause(error: Exception) -> str:
    """Return the first line: SQLAlchemy adds the statement."""
    return str(error).partition("\n")[0] or type(error).__name__
