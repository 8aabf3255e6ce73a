"""Every reply that the server can give, by name, with its code beside it.

Classes (RFC 5321 section 4.2.1): 2yz done, 4yz try again later, 5yz never try this again. What the client did wrong and
what policy forbids is 5yz; whatever goes wrong with us is 4yz, so that no sender ever bounces a mail for our fault.
Enhanced codes are those of RFC 3463 and RFC 5248. Texts are for people and may change; codes are for programs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from guerrilla.envelope import Written

_MAX_LINE = 512
"""RFC 5321 section 4.5.3.1.5: a reply line, CRLF included."""

_MAX_SHORT = 256
"""Characters of a text that certainly fits on a line, whatever stands before it."""

_REPLY = re.compile(r"([2-5][0-5][0-9])(?:[ -]([245]\.[0-9]{1,3}\.[0-9]{1,3}))?(?: (.*))?", re.DOTALL)
_ENHANCED = re.compile(r"[245]\.[0-9]{1,3}\.[0-9]{1,3}")
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]")


@dataclass(frozen=True, slots=True)
class Reply(Written):
    r"""An SMTP reply: a value that a processor answers with.

    ``Reply(550, "5.1.1", "No such user")``. ``code`` is 200 to 599; ``enhanced`` is an RFC 3463 code of the same class,
    or empty where none belongs (the greeting, EHLO, 354); ``text`` is one line, or several separated by ``\n``.
    Text from anywhere is safe: what is not printable ASCII becomes ``?``, and no line is longer than RFC 5321 allows.

    Raises:
        ValueError: if the code is no reply code, or the enhanced code is of another class.
    """

    code: int
    enhanced: str = ""
    text: str = ""
    wire: bytes = field(init=False, repr=False, compare=False)
    """The reply as it is sent, CRLF included."""

    def __post_init__(self) -> None:
        if not 200 <= self.code <= 599:
            raise ValueError(f"a reply code is 200 to 599, not {self.code}")
        if self.enhanced:
            if not _ENHANCED.fullmatch(self.enhanced):
                raise ValueError(f"an enhanced status code looks like 5.1.1, not {self.enhanced!r}")
            if ord(self.enhanced[0]) - 48 != self.code // 100:
                raise ValueError(f"the enhanced code {self.enhanced} is of another class than {self.code}")
        # The enhanced code stands on every line of a multi-line reply (RFC 2034 section 4).
        prefix = f"{self.enhanced} " if self.enhanced else ""
        room = _MAX_LINE - len("250-") - len(prefix) - len("\r\n")
        if len(self.text) <= room and self.text.isascii() and self.text.isprintable():
            object.__setattr__(self, "wire", f"{self.code} {prefix}{self.text}\r\n".encode("ascii"))
            return
        lines = [prefix + _UNPRINTABLE.sub("?", line)[:room] for line in self.text.split("\n")]
        last = len(lines) - 1
        wire = "".join(f"{self.code}{'-' if i < last else ' '}{line}\r\n" for i, line in enumerate(lines))
        object.__setattr__(self, "wire", wire.encode("ascii"))

    @property
    def positive(self) -> bool:
        """Whether it says yes: 2yz, or the 3yz that asks for more."""
        return self.code < 400

    @property
    def temporary(self) -> bool:
        """Whether the client should try again later: 4yz."""
        return 400 <= self.code < 500

    def __str__(self) -> str:
        """Write it on one line, as a log wants it."""
        text = self.text.replace("\n", " / ") if "\n" in self.text else self.text
        if self.enhanced and text:  # as most have
            return f"{self.code} {self.enhanced} {text}"
        rest = self.enhanced or text
        return f"{self.code} {rest}" if rest else f"{self.code}"

    @classmethod
    def parse(cls, text: str) -> Reply:
        """Read a reply from text such as ``554 5.7.1 No, thank you``, as other programs write it.

        Raises:
            ValueError: if the text does not begin with a reply code.
        """
        match = _REPLY.fullmatch(text)
        if not match:
            raise ValueError(f"a reply begins with a code, as in '550 5.1.1 No such user', not {text[:80]!r}")
        code, enhanced, rest = match.groups()
        return cls(int(code), enhanced or "", rest or "")


# What the dialogue says. 2yz and 3yz.
HELP = Reply(214, "2.0.0", "Commands: HELO EHLO MAIL RCPT DATA BDAT RSET NOOP VRFY EXPN HELP QUIT STARTTLS")
START_TLS_READY = Reply(220, "2.0.0", "Ready to start TLS")
BYE = Reply(221, "2.0.0", "Bye")
OK = Reply(250, "2.0.0", "OK")
SENDER_OK = Reply(250, "2.1.0", "Sender OK")
RECIPIENT_OK = Reply(250, "2.1.5", "Recipient OK")
CANNOT_VERIFY = Reply(252, "2.5.0", "Cannot verify or expand, but will take the message and attempt delivery")
START_MAIL = Reply(354, "", "Start mail input; end with <CRLF>.<CRLF>")

# 4yz: ours to mend, or a limit that will pass.
SHUTTING_DOWN = Reply(421, "4.3.2", "Server is shutting down, try again later")
TIMED_OUT = Reply(421, "4.4.2", "Timed out waiting for you")
TOO_SLOW = Reply(421, "4.4.2", "Too slow: the message did not come at the least data rate")
TOO_MANY_CLIENTS = Reply(421, "4.3.2", "Too many connections, try again later")
TOO_MANY_CLIENTS_FROM_ADDRESS = Reply(421, "4.7.0", "Too many connections from your address")
TOO_MANY_MAILS = Reply(421, "4.7.0", "Too many messages on one connection: connect again")
TOO_MANY_ERRORS = Reply(421, "4.7.0", "Too many errors")
LOCAL_ERROR = Reply(451, "4.3.0", "Local error in processing, try again later")
SAVE_TIMEOUT = Reply(451, "4.3.0", "The message was not stored in time, try again later")
NOT_RUNNING = Reply(451, "4.3.2", "Not accepting mail at the moment, try again later")
INSUFFICIENT_STORAGE = Reply(452, "4.3.1", "Insufficient system storage, try again later")
TOO_MANY_RECIPIENTS = Reply(452, "4.5.3", "Too many recipients")

# What a validator of recipients answers: the seed's RcptErrors. Outages are 4yz, decisions 5yz.
NO_SUCH_USER = Reply(550, "5.1.1", "No such user here")
STORAGE_NOT_AVAILABLE = Reply(451, "4.3.0", "Storage not available, try again later")
STORAGE_TOO_BUSY = Reply(451, "4.3.2", "Storage too busy, try again later")
STORAGE_TIMEOUT = Reply(451, "4.3.0", "Storage timeout, try again later")
STORAGE_ERROR = Reply(451, "4.3.0", "Storage error, try again later")
QUOTA_EXCEEDED = Reply(452, "4.2.2", "Mailbox full")
USER_SUSPENDED = Reply(550, "5.2.1", "Mailbox disabled, not accepting messages")

# 5yz: the client's mistake, or policy.
UNRECOGNIZED = Reply(500, "5.5.1", "Command unrecognized")
LINE_TOO_LONG = Reply(500, "5.5.2", "Command line too long")
BARE_NEWLINE_IN_COMMAND = Reply(500, "5.5.2", "A command line ends with CRLF and holds no other CR or LF")
SYNTAX_ERROR = Reply(501, "5.5.2", "Syntax error in parameters")
NO_ARGUMENT_ALLOWED = Reply(501, "5.5.4", "This command takes no parameters")
BAD_HELO = Reply(501, "5.5.2", "Syntax: HELO or EHLO, and your host name or [address]")
BAD_MAIL = Reply(501, "5.5.2", "Syntax: MAIL FROM:<address> [parameters]")
BAD_RCPT = Reply(501, "5.5.2", "Syntax: RCPT TO:<address> [parameters]")
BAD_SENDER = Reply(501, "5.1.7", "Bad sender address")
BAD_RECIPIENT = Reply(501, "5.1.3", "Bad recipient address")
BAD_VRFY = Reply(501, "5.5.2", "Syntax: VRFY or EXPN, and a name")
BAD_BDAT = Reply(501, "5.5.2", "Syntax: BDAT size [LAST]")
BAD_XCLIENT = Reply(501, "5.5.4", "Syntax: XCLIENT attribute=value, each attribute once")
BAD_PARAMETER_VALUE = Reply(501, "5.5.4", "Bad or repeated parameter value")
UNKNOWN_PARAMETER = Reply(555, "5.5.4", "Parameter not recognized or not implemented")
NO_TLS = Reply(502, "5.5.1", "STARTTLS is not offered here")
NO_HELO = Reply(503, "5.5.1", "Send HELO or EHLO first")
NESTED_MAIL = Reply(503, "5.5.1", "Nested MAIL command")
NO_MAIL = Reply(503, "5.5.1", "Send MAIL first")
NO_RECIPIENTS = Reply(503, "5.5.1", "No valid recipients")
IN_BDAT = Reply(503, "5.5.1", "A BDAT sequence is under way: send BDAT or RSET")
BDAT_FAILED = Reply(503, "5.5.1", "The BDAT sequence has failed: send RSET")
BINARY_NEEDS_BDAT = Reply(503, "5.5.1", "BODY=BINARYMIME is sent with BDAT, not with DATA")
IN_TRANSACTION = Reply(503, "5.5.1", "Not allowed within a mail transaction")
XCLIENT_AGAIN = Reply(503, "5.5.1", "XCLIENT is taken once only")
ALREADY_TLS = Reply(503, "5.5.1", "TLS is already active")
BARE_NEWLINE = Reply(550, "5.5.2", "The message holds a bare CR or LF; lines end with CRLF (RFC 5321 section 2.3.8)")
RELAY_DENIED = Reply(550, "5.7.1", "Relay access denied")
MESSAGE_TOO_LARGE = Reply(552, "5.3.4", "Message size exceeds the limit")
NEEDS_SMTPUTF8 = Reply(553, "5.6.7", "A non-ASCII address needs the SMTPUTF8 parameter")
NOT_SMTP = Reply(554, "5.7.0", "This is an SMTP server")
PATH_TOO_LONG = Reply(501, "5.1.0", "Path too long")
LOCAL_PART_TOO_LONG = Reply(501, "5.1.0", "Local part too long")
DOMAIN_TOO_LONG = Reply(501, "5.1.0", "Domain too long")


class _Draft(Written):
    """A reply before it is frozen: what is frozen is written much slower."""

    __slots__ = ("code", "enhanced", "text", "wire")


def queued(queued_id: str) -> Reply:
    """Return the reply that hands the message over: from here on it is ours (RFC 5321 section 6.1)."""
    text = f"OK: queued as {queued_id}"
    # One is made for each message, and what is known to be well-formed need not be looked at once more.
    if len(text) <= _MAX_SHORT and text.isascii() and text.isprintable():
        draft: Any = _Draft()
        draft.code = 250
        draft.enhanced = "2.0.0"
        draft.text = text
        draft._written = line = f"250 2.0.0 {text}"
        draft.wire = f"{line}\r\n".encode("ascii")
        draft.__class__ = Reply
        return draft  # type: ignore[no-any-return]  # it is a Reply by now
    return Reply(250, "2.0.0", text)


def greeting(host_name: str) -> Reply:
    """Return the banner (RFC 5321 section 4.3.1). It tells no version: that helps only who looks for old ones."""
    return Reply(220, "", f"{host_name} ESMTP guerrilla")
