"""What the dialogue tells its driver. The counterpart of an event that asks is ``Session.reply``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, TypeAlias

from guerrilla.envelope import Envelope
from guerrilla.smtp.replies import Reply

# Each message has one of these: their __init__ is written out, since that of a dataclass is not compiled, and it could
# not write to what is frozen. What is Final does not change, so that they have a hash all the same.


@dataclass(slots=True, unsafe_hash=True)
class RcptReceived:
    """RCPT has named a recipient, now the last of the envelope: answer with ``reply``. Nothing is parsed until then."""

    envelope: Final[Envelope]

    def __init__(self, envelope: Envelope) -> None:
        self.envelope = envelope


@dataclass(slots=True, unsafe_hash=True)
class MessageReceived:
    """The whole message is here: answer with ``reply``. Nothing is parsed until then."""

    envelope: Final[Envelope]

    def __init__(self, envelope: Envelope) -> None:
        self.envelope = envelope


@dataclass(frozen=True, slots=True)
class MessageRefused:
    """A message has come to its end and was refused by the dialogue itself; the client has its answer."""

    envelope: Envelope
    size: int
    """Octets of content that came."""
    reply: Reply


@dataclass(frozen=True, slots=True)
class CommandRefused:
    """A command was refused; the client has its answer. ``line`` is what came, for a log that escapes it."""

    line: bytes
    reply: Reply


@dataclass(frozen=True, slots=True)
class TLSRequested:
    """The client will start the TLS handshake as soon as it has read our reply: send it, then call ``tls_established``.

    What came in clear behind STARTTLS has been dropped (RFC 3207 section 5); what is still on its way must meet the
    handshake, never the session.
    """


@dataclass(frozen=True, slots=True)
class Introduced:
    """A trusted proxy has said for whom it speaks: the client's address from now on. It will be greeted next.

    A driver that does not want this client calls ``close``.
    """

    remote_ip: str
    remote_port: int
    """0 if the proxy has not said it."""


@dataclass(frozen=True, slots=True)
class Closed:
    """The dialogue is over: send what there is to send, and close."""

    reply: Reply | None = field(default=None, compare=False)
    """The last word, if we had it; None when the client has hung up."""


@dataclass(frozen=True, slots=True)
class Busy:
    """Much was worked off and there may be more: let others have their turn, then ask for the next event.

    When it comes depends on how the octets were cut. A driver that serves one client only may pass over it.
    """


Event: TypeAlias = (
    RcptReceived | MessageReceived | MessageRefused | CommandRefused | TLSRequested | Introduced | Closed | Busy
)
