"""What happens in a daemon, as values: the 17 topics of the Go program under their names, and the mail events.

An event is frozen and holds nothing that changes or is freed afterwards: no envelope, no octets of a message. So it may
be kept as long as one likes. How events reach those who subscribed is told in ``event_bus``.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import ClassVar, Final, Literal

from guerrilla.config import AppConfig, ServerConfig
from guerrilla.envelope import Address
from guerrilla.smtp.replies import Reply


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Anything that happens. Subscribe to this class, and everything comes."""

    topic: ClassVar[str] = ""
    """The name of the event, as the Go program has it; empty for a class that only stands for those below it."""

    time: datetime = field(default_factory=_now, compare=False)
    """When it happened, UTC."""


# Changes of the configuration as a whole


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigChange(Event):
    """Something in the configuration has changed, and holds by now."""

    key: ClassVar[str] = ""
    """The key of the configuration that this is about; empty: the whole of it."""

    old: AppConfig
    new: AppConfig

    @property
    def before(self) -> object:
        """The value of ``key`` that held before."""
        return getattr(self.old, self.key) if self.key else self.old

    @property
    def after(self) -> object:
        """The value of ``key`` that holds now."""
        return getattr(self.new, self.key) if self.key else self.new


class BackendConfigChanged(ConfigChange):
    """The production line was built anew."""

    __slots__ = ()
    topic = "config_change:backend_config"
    key = "backend_config"


class NewConfig(ConfigChange):
    """Another configuration holds: anything in it may have changed."""

    __slots__ = ()
    topic = "config_change:new_config"


class AllowedHostsChanged(ConfigChange):
    """Mail is taken for other domains."""

    __slots__ = ()
    topic = "config_change:allowed_hosts"
    key = "allowed_hosts"


class PidFileChanged(ConfigChange):
    """The process number is written to another file."""

    __slots__ = ()
    topic = "config_change:pid_file"
    key = "pid_file"


class LogFileChanged(ConfigChange):
    """The daemon logs to another file."""

    __slots__ = ()
    topic = "config_change:log_file"
    key = "log_file"


class LogFileReopened(ConfigChange):
    """The log file of the daemon was opened anew; ``old`` and ``new`` are the same."""

    __slots__ = ()
    topic = "config_change:reopen_log_file"
    key = "log_file"


class LogLevelChanged(ConfigChange):
    """Other records are kept in the log of the daemon."""

    __slots__ = ()
    topic = "config_change:log_level"
    key = "log_level"


# Changes of one server


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerChange(Event):
    """Something about one server has changed. ``old`` is None for a new server, ``new`` for one that was removed."""

    key: ClassVar[str] = ""
    """The key of the server that this is about; empty: the whole of it."""

    old: ServerConfig | None = None
    new: ServerConfig | None = None

    @property
    def server(self) -> str:
        """The listening interface, as it is configured."""
        config = self.new or self.old
        return config.listen_interface if config is not None else ""

    @property
    def before(self) -> object:
        """The value of ``key`` that held before; None for a new server."""
        return getattr(self.old, self.key) if self.key and self.old is not None else self.old

    @property
    def after(self) -> object:
        """The value of ``key`` that holds now; None for a server that was removed."""
        return getattr(self.new, self.key) if self.key and self.new is not None else self.new


class ServerAdded(ServerChange):
    """There is a server that was not there before."""

    __slots__ = ()
    topic = "server_change:new_server"


class ServerRemoved(ServerChange):
    """A server is no longer in the configuration."""

    __slots__ = ()
    topic = "server_change:remove_server"


class ServerUpdated(ServerChange):
    """Any key of a server has changed."""

    __slots__ = ()
    topic = "server_change:update_config"


class ServerStarted(ServerChange):
    """A server was enabled: it accepts connections."""

    __slots__ = ()
    topic = "server_change:start_server"
    key = "is_enabled"


class ServerStopped(ServerChange):
    """A server was disabled: it accepts no more connections."""

    __slots__ = ()
    topic = "server_change:stop_server"
    key = "is_enabled"


class ServerLogFileChanged(ServerChange):
    """A server logs to another file."""

    __slots__ = ()
    topic = "server_change:new_log_file"
    key = "log_file"


class ServerLogFileReopened(ServerChange):
    """The log file of a server was opened anew; ``old`` and ``new`` are the same."""

    __slots__ = ()
    topic = "server_change:reopen_log_file"
    key = "log_file"


class ServerTimeoutChanged(ServerChange):
    """Clients of a server may be silent for another time."""

    __slots__ = ()
    topic = "server_change:timeout"
    key = "timeout"


class ServerMaxClientsChanged(ServerChange):
    """A server takes another number of connections."""

    __slots__ = ()
    topic = "server_change:max_clients"
    key = "max_clients"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTLSChanged(ServerChange):
    """The TLS keys of a server, or what stands in its certificate files, have changed."""

    topic: ClassVar[str] = "server_change:tls_config"
    key: ClassVar[str] = "tls"

    renewed: bool = False
    """Whether the certificate files were read anew, because they hold something else."""


# What happens to mail


@dataclass(frozen=True, slots=True, kw_only=True)
class MailEvent(Event):
    """Something happened on a connection. What the client says of itself is not to be trusted."""

    server: str
    """The listening interface that took the connection, as it is configured."""
    remote_ip: str
    remote_port: int = 0


class Connected(MailEvent):
    """A client was let in. By XCLIENT, a proxy is Disconnected, and the client that it names Connected in its place."""

    __slots__ = ()
    topic = "mail:connected"


@dataclass(frozen=True, slots=True, kw_only=True)
class Disconnected(MailEvent):
    """A client that was let in is gone, whoever has ended it."""

    topic: ClassVar[str] = "mail:disconnected"

    seconds: float
    """How long the connection lasted."""
    messages: int
    """How many of its messages were kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected(MailEvent):
    """A client was told no, for what it did or by our policy. After a rejected connection there is no Disconnected."""

    topic: ClassVar[str] = "mail:rejected"

    what: Literal["connection", "command", "recipient", "message"]
    reply: Reply
    """What the client was told."""
    reason: str
    """What the log says of it."""
    helo: str = ""
    queued_id: str = ""
    """The name of the transaction, when a whole message was refused by the line."""
    sender: Address | None = None
    """Who sends, once MAIL was taken."""
    recipients: tuple[Address, ...] = ()
    """Those in question: all of a message that was refused, or the one recipient that was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Message(MailEvent):
    queued_id: str
    """The name of the transaction, 32 hexadecimal digits."""
    helo: str = ""
    sender: Address
    recipients: tuple[Address, ...]
    size: int
    """Octets of the message as it came."""
    seconds: float
    """From the end of the message to the reply."""
    reply: Reply
    """What the client was told."""


class Queued(_Message):
    """A message was kept: every store of the line has committed, and the client was told 250."""

    __slots__ = ()
    topic = "mail:queued"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed(_Message):
    """A message was deferred with 4xx for a fault of ours: the client has it still, and will try again."""

    topic: ClassVar[str] = "mail:failed"

    reason: str = ""
    """What the log says of it."""


EVENTS: Final[tuple[type[Event], ...]] = (
    BackendConfigChanged,
    NewConfig,
    AllowedHostsChanged,
    PidFileChanged,
    LogFileChanged,
    LogFileReopened,
    LogLevelChanged,
    ServerAdded,
    ServerRemoved,
    ServerUpdated,
    ServerStarted,
    ServerStopped,
    ServerLogFileChanged,
    ServerLogFileReopened,
    ServerTimeoutChanged,
    ServerMaxClientsChanged,
    ServerTLSChanged,
    Connected,
    Rejected,
    Queued,
    Failed,
    Disconnected,
)
"""Every event that has a topic."""


def of_topic(topic: str) -> type[Event]:
    """Return the class of the events with this topic.

    Raises:
        ValueError: if there is no such topic; the text says which one was probably meant.
    """
    topics = {event.topic: event for event in EVENTS}
    if topic in topics:
        return topics[topic]
    near = difflib.get_close_matches(topic, topics, n=1, cutoff=0.5)
    meant = repr(near[0]) if near else "one of " + ", ".join(topics)
    raise ValueError(f"there is no topic {topic!r}; meant: {meant}")
