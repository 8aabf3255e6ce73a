"""What a server says and allows, what it asks of the house around it, and the limits that hold for every dialogue."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Protocol

from guerrilla.envelope import Address
from guerrilla.smtp.data import BodyWriter, Newlines
from guerrilla.smtp.replies import Reply, greeting
from guerrilla.smtp.xclient import ATTRIBUTES

MAX_COMMAND_LINE: Final = 2048
"""Octets, CRLF included. RFC 5321 section 4.5.3.1.4 asks for 512, and the extensions add to it; Postfix takes 2,048."""
MAX_UNRECOGNIZED: Final = 5
"""Commands that are none, before the client is sent away: the Go program's limit."""
MAX_ERRORS: Final = 20
"""Errors of any kind without a message that was taken in between: Postfix's ``smtpd_hard_error_limit``."""
MAX_JUNK: Final = 100
"""Commands that bring no mail forward (NOOP, RSET…) before each is an error: ``smtpd_junk_command_limit``."""
MAX_HELLOS: Final = 1000
"""HELO and EHLO before each is an error: far beyond what any client means, and their replies are the longest."""
MAX_OVERSHOOT: Final = 1000
"""Recipients refused for their number before each counts as an error: ``smtpd_recipient_overshoot_limit``."""
MAX_STEPS: Final = 500
"""Commands and pieces of content that are worked off before other clients have their turn: a few milliseconds."""
MAX_MAILS: Final = 100_000
"""Transactions on one connection, as announced (RFC 9422) and held."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What one server says and allows, made once for all its sessions. ``max_size`` is in octets."""

    host_name: str
    max_size: int = 10 << 20
    max_recipients: int = 100
    starttls: bool = False
    validates: bool = False
    """Whether the driver is asked about each recipient."""
    newlines: Newlines = Newlines.REJECT
    xclient: bool = False
    """Whether a proxy that is trusted may say by XCLIENT for whom it speaks."""
    greeting: Reply = field(init=False, repr=False)
    helo: Reply = field(init=False, repr=False)
    ehlo: Reply = field(init=False, repr=False)
    ehlo_in_tls: Reply = field(init=False, repr=False)
    ehlo_to_proxy: Reply = field(init=False, repr=False)
    ehlo_to_proxy_in_tls: Reply = field(init=False, repr=False)

    def __post_init__(self) -> None:
        extensions = [
            f"{self.host_name} Hello",
            "PIPELINING",  # RFC 2920
            f"SIZE {self.max_size}",  # RFC 1870
            "8BITMIME",  # RFC 6152
            "BINARYMIME",  # RFC 3030
            "CHUNKING",  # RFC 3030
            "SMTPUTF8",  # RFC 6531
            "ENHANCEDSTATUSCODES",  # RFC 2034
            f"LIMITS RCPTMAX={self.max_recipients} MAILMAX={MAX_MAILS}",  # RFC 9422
        ]
        starttls = ["STARTTLS"] if self.starttls else []  # RFC 3207
        xclient = [f"XCLIENT {ATTRIBUTES}"]
        object.__setattr__(self, "greeting", greeting(self.host_name))
        object.__setattr__(self, "helo", Reply(250, "", f"{self.host_name} Hello"))
        for name, more in {
            "ehlo": starttls,
            "ehlo_in_tls": [],
            "ehlo_to_proxy": [*starttls, *xclient],
            "ehlo_to_proxy_in_tls": xclient,
        }.items():
            object.__setattr__(self, name, Reply(250, "", "\n".join([*extensions, *more, "HELP"])))


class House(Protocol):
    """What a session asks of the house around it, and needs answered at once."""

    def allows(self, recipient: Address) -> bool:
        """Tell whether we take mail for the recipient's domain."""

    def has_room(self) -> bool:
        """Tell whether there is memory for one more message."""

    def open_body(self) -> BodyWriter:
        """Return where the octets of the next message go."""
