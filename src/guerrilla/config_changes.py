"""What differs between two configurations, as events, in the order in which the Go program tells it.

Only what has changed is told. A server is known by its ``listen_interface``: when that changes, one server is removed
and another one is new. Events about files that were opened anew are not made here, since no configuration shows them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final

from guerrilla.config import AppConfig, ServerConfig
from guerrilla.config_server import Section
from guerrilla.events import (
    AllowedHostsChanged,
    BackendConfigChanged,
    ConfigChange,
    Event,
    LogFileChanged,
    LogLevelChanged,
    NewConfig,
    PidFileChanged,
    ServerAdded,
    ServerChange,
    ServerLogFileChanged,
    ServerMaxClientsChanged,
    ServerRemoved,
    ServerStarted,
    ServerStopped,
    ServerTimeoutChanged,
    ServerTLSChanged,
    ServerUpdated,
)

_AFTER_NEW_CONFIG: Final[tuple[type[ConfigChange], ...]] = (
    AllowedHostsChanged,
    PidFileChanged,
    LogFileChanged,
    LogLevelChanged,
)
_OF_A_SERVER: Final[tuple[type[ServerChange], ...]] = (
    ServerLogFileChanged,
    ServerTimeoutChanged,
    ServerMaxClientsChanged,
)

_ONLY_AT_START: Final = ("processes", "user", "group", "control_socket")


def only_at_start(old: AppConfig, new: AppConfig) -> list[str]:
    """Return the keys that have changed and that a reload cannot let take effect: only the next start can."""
    return [key for key in _ONLY_AT_START if _differ(old, new, key)]


def changes(old: AppConfig, new: AppConfig, renewed: Collection[str] = ()) -> list[Event]:
    """Return the events that tell what has changed from one configuration to the next.

    ``renewed`` names the ``listen_interface`` of each server whose certificate files hold something else than before:
    its TLS has changed, though its keys may not have.
    """
    found: list[Event] = []
    if old.backend_config != new.backend_config:
        found.append(BackendConfigChanged(old=old, new=new))
    if dict(old) != dict(new):  # by their keys: the models themselves differ also when they come from different files
        found.append(NewConfig(old=old, new=new))
    found.extend(kind(old=old, new=new) for kind in _AFTER_NEW_CONFIG if _differ(old, new, kind.key))
    before, after = _by_interface(old), _by_interface(new)
    for interface, server in after.items():
        found.extend(_changes_of(before.get(interface), server, interface[0] in renewed))
    found.extend(ServerRemoved(old=server) for interface, server in before.items() if interface not in after)
    return found


def _differ(old: Section, new: Section, key: str) -> bool:
    return bool(getattr(old, key) != getattr(new, key))


def _by_interface(config: AppConfig) -> dict[tuple[str, int], ServerConfig]:
    """Return the servers by their interfaces; those on "any free port" may share one, and are counted."""
    found: dict[tuple[str, int], ServerConfig] = {}
    for server in config.servers:
        number = 0
        while (server.listen_interface, number) in found:
            number += 1
        found[server.listen_interface, number] = server
    return found


def _changes_of(old: ServerConfig | None, new: ServerConfig, renewed: bool) -> Iterator[Event]:
    if old is None:
        yield ServerAdded(new=new)
        return
    if old != new:
        yield ServerUpdated(old=old, new=new)
    if old.is_enabled != new.is_enabled:
        # Whoever starts or stops a server does it with all that is new: the rest need not be told.
        yield ServerStarted(old=old, new=new) if new.is_enabled else ServerStopped(old=old, new=new)
        return
    for kind in _OF_A_SERVER:
        if _differ(old, new, kind.key):
            yield kind(old=old, new=new)
    if old.tls != new.tls or renewed:
        yield ServerTLSChanged(old=old, new=new, renewed=renewed)
