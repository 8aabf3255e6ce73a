r"""The playbook: an SMTP dialogue that is driven by hand, without sockets, and whose tests read like the dialogue.

::

    dialogue = Dialogue(max_size=1000)
    dialogue.say("EHLO client.test").expect("250-mx.test Hello", ..., "250 HELP")
    dialogue.talk('''
        C: MAIL FROM:<a@example.com>
        S: 250 2.1.0
        C: RCPT TO:<b@example.com>
        S: 250 2.1.5
        C: DATA
        S: 354
        C: Subject: Hello
        C: .
        S: 250 2.0.0 OK: queued as
    ''')
    assert dialogue.envelopes[0].data == b"Subject: Hello\r\n"

It runs the session that the server runs. What does not go as it should raises AssertionError, with the dialogue so far.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from types import EllipsisType
from typing import TypeAlias

from guerrilla.envelope import Address, Envelope, TLSInfo
from guerrilla.smtp import replies
from guerrilla.smtp.data import BodyWriter, MemoryBody, Newlines
from guerrilla.smtp.events import Busy, Closed, Event, MessageReceived, MessageRefused, RcptReceived
from guerrilla.smtp.hosts import AllowedHosts
from guerrilla.smtp.replies import Reply
from guerrilla.smtp.session import Session
from guerrilla.smtp.settings import House, Settings

Question: TypeAlias = RcptReceived | MessageReceived
"""An event that asks for an answer."""

_SHOWN = 100  # characters of a line that a failure shows


class OpenHouse:
    """A house that takes mail for the ``allowed_hosts``, always has room, and keeps messages in memory."""

    def __init__(self, allowed_hosts: Sequence[str] = (".",)) -> None:
        self._hosts = AllowedHosts(allowed_hosts)

    def allows(self, recipient: Address) -> bool:
        """Tell whether we take mail for the recipient's domain."""
        return self._hosts.allows(recipient)

    def has_room(self) -> bool:
        """Say yes."""
        return True

    def open_body(self) -> BodyWriter:
        """Return memory."""
        return MemoryBody()


def accept(question: Question) -> Reply:
    """Answer as a server does that takes everything."""
    return replies.RECIPIENT_OK if isinstance(question, RcptReceived) else replies.queued("test")


class Dialogue:
    """One client's dialogue with a server that is made for it; see the top of this file.

    ``decide`` answers what the session asks (about recipients only if the server ``validates``); where it returns None
    the question stays open until ``answer``. A ``house`` takes the place of ``allowed_hosts``. ``tls`` is given for a
    connection that begins with TLS; ``trusted`` for one from a proxy, whose XCLIENT is believed if ``xclient``.
    """

    def __init__(
        self,
        *,
        host_name: str = "mx.test",
        max_size: int = 10 << 20,
        max_recipients: int = 100,
        starttls: bool = False,
        validates: bool = False,
        newlines: Newlines = Newlines.REJECT,
        allowed_hosts: Sequence[str] = (".",),
        house: House | None = None,
        decide: Callable[[Question], Reply | None] = accept,
        tls: TLSInfo | None = None,
        remote_ip: str = "192.0.2.1",
        xclient: bool = False,
        trusted: bool = False,
    ) -> None:
        settings = Settings(host_name, max_size, max_recipients, starttls, validates, newlines, xclient)
        self.session = Session(
            settings,
            house or OpenHouse(allowed_hosts),
            remote_ip=remote_ip,
            remote_port=4321,
            server="test",
            tls=tls,
            trusted=trusted,
        )
        self.events: list[Event] = []
        """All events but Busy, each with its envelope as it was then."""
        self.envelopes: list[Envelope] = []
        """The messages that were answered positively; they stay valid."""
        self.output = b""
        """All that the server has said, in octets."""
        self._decide = decide
        self._open: Question | None = None
        self._transcript: list[str] = []
        self._said: list[str] = []  # lines of the server that no expect() has seen
        self._run()

    @property
    def closed(self) -> bool:
        """Whether the server has ended the dialogue."""
        return bool(self.events) and isinstance(self.events[-1], Closed)

    def say(self, *lines: str) -> Dialogue:
        """Send lines, in one read. What the server said before and nobody expected is let pass."""
        return self.feed("".join(f"{line}\r\n" for line in lines).encode())

    def feed(self, octets: bytes, cuts: Iterable[int] | None = None) -> Dialogue:
        """Send octets as they are, cut into reads at the positions ``cuts``; in one read without them."""
        self._heard(*map(_shown, octets.removesuffix(b"\r\n").split(b"\r\n")))
        edges = sorted({0, len(octets), *(cut for cut in cuts or () if 0 < cut < len(octets))})
        for start, end in itertools.pairwise(edges):
            self.session.receive_data(octets[start:end])
            self._run()
        return self

    def hang_up(self) -> Dialogue:
        """Send no more, as a client that is done or gone."""
        self._heard("(hangs up)")
        self.session.receive_eof()
        return self._run()

    def handshake(self, tls: TLSInfo | None = None) -> Dialogue:
        """Establish TLS, after STARTTLS was answered. Raises RuntimeError if it was not."""
        self.session.tls_established(tls or TLSInfo("TLSv1.3", "TLS_AES_256_GCM_SHA384"))
        self._heard("(establishes TLS)")
        return self._run()

    def answer(self, reply: Reply) -> Dialogue:
        """Answer the question that ``decide`` left open, and go on. Raises RuntimeError if there is none."""
        self._reply(reply)
        return self._run()

    def expect(self, *lines: str | EllipsisType) -> Dialogue:
        """Check what the server has said since the client spoke or ``expect`` was called: these lines and no others.

        A line need only begin as is written here, and ``...`` inside it stands for any text. The object ``...`` stands
        for any number of lines.
        """
        said, self._said = self._said, []
        if not re.fullmatch("".join(map(_regex, lines)), "".join(f"{line}\n" for line in said)):
            raise AssertionError(self._failure(said, lines))
        return self

    def talk(self, script: str) -> Dialogue:
        """Play a whole dialogue: ``C:`` lines are sent, ``S:`` lines are expected as by ``expect``.

        Client lines that follow each other are sent in one read, and ``S: ...`` stands for any number of lines. After
        the last line the server has nothing more to say.
        """
        turns: list[tuple[str, str]] = []
        for line in (line.lstrip(" ") for line in script.split("\n")):
            if line and line[:2] not in ("C:", "S:"):
                raise ValueError(f"a line of a script begins with C: or S:, not {line!r}")
            if line:
                turns.append((line[:2], line[2:].removeprefix(" ")))
        for who, group in itertools.groupby(turns, lambda turn: turn[0]):
            lines = [text for _, text in group]
            if who == "C:":
                self.say(*lines)
            else:
                self.expect(*(... if line == "..." else line for line in lines))
        return self.expect()

    def _heard(self, *lines: str) -> None:
        self._said.clear()
        self._transcript += [f"--> {line}" for line in lines]

    def _run(self) -> Dialogue:
        while (event := self.session.next_event()) is not None:
            if not isinstance(event, Busy):
                self.events.append(_kept(event))
            if isinstance(event, RcptReceived | MessageReceived):
                self._open = event
                reply = self._decide(event)
                if reply is not None:
                    self._reply(reply)
        octets = self.session.data_to_send()
        self.output += octets
        lines = octets.decode("ascii").split("\r\n")[:-1]
        self._said += lines
        self._transcript += [f"<-- {line}" for line in lines]
        return self

    def _reply(self, reply: Reply) -> None:
        if isinstance(self._open, MessageReceived) and reply.positive:
            self.envelopes.append(_copy(self._open.envelope))
        self._open = None
        self.session.reply(reply)

    def _failure(self, said: Sequence[str], expected: Sequence[str | EllipsisType]) -> str:
        same = 0
        for line, wanted in zip(said, expected, strict=False):
            if not re.fullmatch(_regex(wanted), f"{line}\n"):
                break
            same += 1
        heard = self._transcript[: len(self._transcript) - len(said) + same]
        missed = ["..." if line is ... else line for line in expected[same:]]
        return "\n".join(
            ["the server was expected to say what is marked with -, and said what is marked with +"]
            + [f"  {line}" for line in heard]
            + [f"- <-- {line}" for line in missed]
            + [f"+ <-- {line}" for line in said[same:]]
        )


def _regex(line: str | EllipsisType) -> str:
    if line is ...:
        return r"(?:.*\n)*"
    return ".*".join(re.escape(part) for part in line.split("...")) + ".*\n"


def _shown(octets: bytes) -> str:
    text = octets.decode("ascii", "backslashreplace")
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} … ({len(octets)} octets)"


def _copy(envelope: Envelope) -> Envelope:
    return replace(envelope, rcpt_to=list(envelope.rcpt_to), data=bytes(envelope.data))


def _kept(event: Event) -> Event:
    if isinstance(event, RcptReceived | MessageReceived | MessageRefused):
        return replace(event, envelope=_copy(event.envelope))
    return event
