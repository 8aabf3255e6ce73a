"""What is said in the dialogue, and what it changes: each command and its answer (RFC 5321 section 4.1).

Rules of this file:

1. Everything that depends on the state of the dialogue is here; what can be read without it is in ``commands``,
   ``address``, ``xclient`` and ``data``. How the dialogue is driven is in ``session``.
2. Nothing that a client sends raises.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Final

from guerrilla.envelope import Envelope, TLSInfo
from guerrilla.smtp import replies
from guerrilla.smtp.commands import CommandError, is_foreign, parse_bdat, parse_helo, parse_mail, parse_rcpt
from guerrilla.smtp.data import Content, DotReader
from guerrilla.smtp.events import (
    CommandRefused,
    Event,
    Introduced,
    MessageReceived,
    MessageRefused,
    RcptReceived,
    TLSRequested,
)
from guerrilla.smtp.input import Input
from guerrilla.smtp.patience import Patience
from guerrilla.smtp.replies import Reply
from guerrilla.smtp.settings import MAX_MAILS, MAX_OVERSHOOT, House, Settings
from guerrilla.smtp.transaction import Chunk, Transaction
from guerrilla.smtp.xclient import parse_xclient

_SPACE: Final = 0x20


class State(Enum):
    """What the session waits for, or will do next."""

    GREETING = "greeting"
    COMMAND = "command"
    DATA = "data"
    CHUNK = "chunk"
    ASKED_RCPT = "asked about a recipient"
    ASKED_MESSAGE = "asked about the message"
    HANDSHAKE = "handshake"
    CLOSING = "closing"
    CLOSED = "closed"


class Conversation:
    """The state of a dialogue, and the commands that change it; ``Session`` is what a driver uses."""

    __slots__ = (
        "_chunk", "_draining", "_eof", "_esmtp", "_helo", "_house", "_hurried", "_in", "_introduced", "_last_word",
        "_mails", "_out", "_patience", "_remote_ip", "_remote_port", "_server", "_settings", "_state", "_tls",
        "_transaction", "_trusted",
    )  # fmt: skip

    def __init__(
        self,
        settings: Settings,
        house: House,
        *,
        remote_ip: str = "",
        remote_port: int = 0,
        server: str = "",
        tls: TLSInfo | None = None,
        trusted: bool = False,
    ) -> None:
        self._settings = settings
        self._house = house
        # The connection.
        self._remote_ip = remote_ip
        self._remote_port = remote_port
        self._server = server
        self._tls = tls
        self._trusted = trusted
        self._introduced = False
        self._state = State.COMMAND
        self._in = Input()
        self._out: list[Reply] = [settings.greeting]
        self._eof = False
        self._draining = False
        self._hurried = False
        self._mails = 0
        self._patience = Patience()
        self._last_word: Reply | None = None
        # Since EHLO.
        self._helo = ""
        self._esmtp = False
        # Since MAIL, and since BDAT.
        self._transaction: Transaction | None = None
        self._chunk: Chunk | None = None

    @property
    def closed(self) -> bool:
        """Whether the dialogue is over."""
        return self._state is State.CLOSING or self._state is State.CLOSED

    def close(self, reply: Reply | None = None) -> None:
        """End the dialogue, with a last reply or without, whatever state it is in; the next event is Closed."""
        if self.closed:
            return
        if reply is not None:
            self._out.append(reply)
        self._last_word = reply
        self._state = State.CLOSING
        self._in.clear()
        self._end_transaction()

    # Lines.

    def _command(self, line: bytes) -> Event | None:
        if not line:
            return self._refuse(replies.LINE_TOO_LONG, line)
        # RFC 5321 section 2.3.8: a line ends with CRLF and holds no other CR or LF.
        if not line.endswith(b"\r\n") or 13 in line[:-2]:
            return self._refuse(replies.BARE_NEWLINE_IN_COMMAND, line)
        line = line[:-2]
        verb, _, argument = line.partition(b" ")
        if argument and (argument[0] == _SPACE or argument[-1] == _SPACE):
            argument = argument.strip(b" ")
        # upper() is given octets, not text: in text there are letters that it turns into others.
        handler = _COMMANDS.get(verb) or _COMMANDS.get(verb.upper())
        if handler is not None:
            try:
                return handler(self, argument)
            except CommandError as error:
                return self._refuse(error.reply, line)
        if is_foreign(verb.upper()):
            self.close(replies.NOT_SMTP)
            return CommandRefused(line, replies.NOT_SMTP)
        self._patience.unrecognized()
        return self._refuse(replies.UNRECOGNIZED, line)

    def _say(self, reply: Reply) -> None:
        self._out.append(reply)

    def _refuse(self, reply: Reply, line: bytes) -> CommandRefused:
        self._say(reply)
        self._count_error()
        return CommandRefused(line, reply)

    def _say_to_junk(self, reply: Reply) -> None:
        self._say(reply)
        if self._patience.junk():
            self.close(replies.TOO_MANY_ERRORS)

    def _count_error(self) -> None:
        if self._patience.error():
            self.close(replies.TOO_MANY_ERRORS)

    # Commands, in the order of RFC 5321 section 4.1.1. Each is given its argument without the spaces around it.

    def _helo_command(self, argument: bytes) -> None:
        self._hello(argument, self._settings.helo, esmtp=False)

    def _ehlo_command(self, argument: bytes) -> None:
        settings = self._settings
        if self._trusted and settings.xclient and not self._introduced:
            reply = settings.ehlo_to_proxy_in_tls if self._tls else settings.ehlo_to_proxy
        else:
            reply = settings.ehlo_in_tls if self._tls else settings.ehlo
        self._hello(argument, reply, esmtp=True)

    def _hello(self, argument: bytes, reply: Reply, *, esmtp: bool) -> None:
        self._helo = parse_helo(argument)
        self._esmtp = esmtp
        self._end_transaction()  # RFC 5321 section 4.1.4: in the middle of things it is a RSET too
        self._say(reply)
        if self._patience.hello():
            self.close(replies.TOO_MANY_ERRORS)

    def _mail_command(self, argument: bytes) -> None:
        if not self._helo:
            raise CommandError(replies.NO_HELO)
        if self._transaction is not None:
            raise CommandError(replies.NESTED_MAIL)
        sender, size, body_type, smtputf8 = parse_mail(argument)
        # RFC 1870 section 6.1: what is too large is refused before it is sent.
        if size > self._settings.max_size:
            raise CommandError(replies.MESSAGE_TOO_LARGE)
        if not self._house.has_room():
            self._say(replies.INSUFFICIENT_STORAGE)
            return
        self._mails += 1
        if self._mails > MAX_MAILS:
            self.close(replies.TOO_MANY_MAILS)
            return
        # In their order: to have them matched with their names takes as long as the envelope itself.
        envelope = Envelope(
            self._remote_ip,
            self._remote_port,
            self._server,
            self._helo,
            self._esmtp,
            self._tls,
            sender,
            [],
            body_type,
            smtputf8,
        )
        self._transaction = Transaction(envelope, self._settings)
        self._say(replies.SENDER_OK)

    def _rcpt_command(self, argument: bytes) -> Event | None:
        transaction = self._transaction
        if transaction is None:
            raise CommandError(replies.NO_MAIL)
        if transaction.in_chunks:
            raise CommandError(replies.IN_BDAT)
        envelope = transaction.envelope
        recipient = parse_rcpt(argument, smtputf8=envelope.smtputf8)
        if not self._house.allows(recipient):
            raise CommandError(replies.RELAY_DENIED)
        if transaction.recipients >= self._settings.max_recipients:
            # RFC 5321 section 4.5.3.1.10: those within the limit stand, the others are sent later.
            transaction.overshoot += 1
            if transaction.overshoot > MAX_OVERSHOOT:
                raise CommandError(replies.TOO_MANY_RECIPIENTS)
            self._say(replies.TOO_MANY_RECIPIENTS)
            return None
        transaction.recipients += 1
        # Named twice, it gets the message once.
        if transaction.add(recipient) and self._settings.validates:
            self._state = State.ASKED_RCPT
            return RcptReceived(envelope)
        self._say(replies.RECIPIENT_OK)
        return None

    def _data_command(self, argument: bytes) -> None:
        transaction = self._ready_for_content()
        if argument:
            raise CommandError(replies.NO_ARGUMENT_ALLOWED)
        if transaction.in_chunks:
            raise CommandError(replies.IN_BDAT)
        if transaction.envelope.body_type == "BINARYMIME":
            raise CommandError(replies.BINARY_NEEDS_BDAT)  # RFC 3030 section 3
        transaction.reader = DotReader(transaction.open_content(self._house))
        self._state = State.DATA
        self._say(replies.START_MAIL)

    def _bdat_command(self, argument: bytes) -> Event | None:
        """Begin a chunk (RFC 3030 section 2). What it announces is read even when it is refused: it is not commands."""
        try:
            size, last = parse_bdat(argument)
        except CommandError as error:
            # The octets that follow cannot be told from commands any more.
            self.close(error.reply)
            return CommandRefused(b"BDAT " + argument, error.reply)
        into: Content | Reply
        try:
            transaction = self._ready_for_content()
            if transaction.chunks_failed:
                raise CommandError(replies.BDAT_FAILED)
            into = transaction.content or transaction.open_content(self._house)
            if into.size + size > self._settings.max_size:
                raise CommandError(replies.MESSAGE_TOO_LARGE)
        except CommandError as error:
            into = error.reply
        self._chunk = Chunk(size, last, into, size)
        self._state = State.CHUNK
        return None

    def _rset_command(self, argument: bytes) -> None:
        if argument:
            raise CommandError(replies.NO_ARGUMENT_ALLOWED)
        self._end_transaction()
        self._say_to_junk(replies.OK)

    def _noop_command(self, argument: bytes) -> None:
        self._say_to_junk(replies.OK)

    def _vrfy_command(self, argument: bytes) -> None:
        if not argument:
            raise CommandError(replies.BAD_VRFY)
        # RFC 5321 section 7.3: the same answer for all, so that nobody can ask who is here.
        self._say_to_junk(replies.CANNOT_VERIFY)

    def _help_command(self, argument: bytes) -> None:
        self._say_to_junk(replies.HELP)

    def _quit_command(self, argument: bytes) -> None:
        if argument:
            raise CommandError(replies.NO_ARGUMENT_ALLOWED)
        self.close(replies.BYE)

    def _starttls_command(self, argument: bytes) -> Event:
        if self._tls is not None:
            raise CommandError(replies.ALREADY_TLS)
        if not self._settings.starttls:
            raise CommandError(replies.NO_TLS)
        if argument:
            raise CommandError(replies.NO_ARGUMENT_ALLOWED)
        self._say(replies.START_TLS_READY)
        self._end_transaction()
        self._in.clear()
        self._state = State.HANDSHAKE
        return TLSRequested()

    def _xclient_command(self, argument: bytes) -> Event:
        """Speak with the proxy's client from now on, as if it had just connected."""
        if not (self._trusted and self._settings.xclient):
            self._patience.unrecognized()
            raise CommandError(replies.UNRECOGNIZED)
        if self._transaction is not None:
            raise CommandError(replies.IN_TRANSACTION)
        if self._introduced:
            raise CommandError(replies.XCLIENT_AGAIN)
        client = parse_xclient(argument)
        self._introduced = True
        if client.address is not None:
            self._remote_ip = client.address
            self._remote_port = 0
        if client.port is not None:
            self._remote_port = client.port
        self._helo = client.helo or ""
        self._esmtp = client.esmtp or False
        self._state = State.GREETING
        return Introduced(self._remote_ip, self._remote_port)

    # Content.

    def _ready_for_content(self) -> Transaction:
        transaction = self._transaction
        if transaction is None:
            raise CommandError(replies.NO_MAIL if self._helo else replies.NO_HELO)
        if not transaction.envelope.rcpt_to:
            raise CommandError(replies.NO_RECIPIENTS)
        return transaction

    def _read_data(self) -> Event | None:
        transaction = self._transaction
        assert transaction is not None
        assert transaction.reader is not None
        taken = transaction.reader.feed(self._in.rest())
        if taken < 0:
            self._in.clear()
            return None
        self._in.skip(taken)
        return self._end_of_content(transaction)

    def _read_chunk(self) -> Event | None:
        chunk, transaction = self._chunk, self._transaction
        assert chunk is not None
        octets = self._in.take(chunk.left)
        chunk.left -= len(octets)
        if isinstance(chunk.into, Content):
            chunk.into.write(octets)
        if chunk.left:
            return None
        self._chunk = None
        self._state = State.COMMAND
        error = chunk.into.refused if isinstance(chunk.into, Content) else chunk.into
        if error is not None:
            return self._chunk_refused(chunk, error)
        if chunk.last:
            assert transaction is not None
            return self._end_of_content(transaction)
        say = self._say if chunk.size else self._say_to_junk
        say(Reply(250, "2.0.0", f"{chunk.size} octets received"))
        return None

    def _chunk_refused(self, chunk: Chunk, error: Reply) -> Event:
        """Answer a chunk that was read to its end and not taken; the last one ends the transaction, as a dot would."""
        event: Event = CommandRefused(b"BDAT", error)
        if (transaction := self._transaction) is not None:
            if transaction.content is not None:
                event = MessageRefused(transaction.envelope, transaction.content.size, error)
            transaction.discard()
            transaction.chunks_failed = True
        if chunk.last:
            self._end_transaction()
        self._say(error)
        self._count_error()
        return event

    def _end_of_content(self, transaction: Transaction) -> Event:
        envelope, content = transaction.envelope, transaction.content
        assert content is not None
        data = content.finish()
        if not isinstance(data, Reply):
            envelope.data = data
            self._state = State.ASKED_MESSAGE
            return MessageReceived(envelope)
        self._state = State.COMMAND
        self._end_transaction()
        self._say(data)
        self._count_error()
        return MessageRefused(envelope, content.size, data)

    def _end_transaction(self) -> None:
        if self._transaction is not None:
            self._transaction.discard()
            self._transaction = None


_COMMANDS: Final[dict[bytes, Callable[[Conversation, bytes], Event | None]]] = {
    b"HELO": Conversation._helo_command,
    b"EHLO": Conversation._ehlo_command,
    b"MAIL": Conversation._mail_command,
    b"RCPT": Conversation._rcpt_command,
    b"DATA": Conversation._data_command,
    b"BDAT": Conversation._bdat_command,
    b"RSET": Conversation._rset_command,
    b"NOOP": Conversation._noop_command,
    b"VRFY": Conversation._vrfy_command,
    b"EXPN": Conversation._vrfy_command,
    b"HELP": Conversation._help_command,
    b"QUIT": Conversation._quit_command,
    b"STARTTLS": Conversation._starttls_command,
    b"XCLIENT": Conversation._xclient_command,
}
