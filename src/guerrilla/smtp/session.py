"""The dialogue with one client (RFC 5321 section 4): octets in, events out, octets back.

Rules of this file:

1. Here is how a dialogue is driven; what is said in it, and what that changes, is in ``conversation``.
2. A driver does four things: ``receive_data``, then ``next_event`` until it gives None, then it sends ``data_to_send``;
   and it answers an event that asks with ``reply``. While an answer is out nothing is parsed, so PIPELINING
   (RFC 2920) and back-pressure need no further code, and a burst of replies leaves in one write.
3. How the octets are cut into reads makes no difference to the dialogue.
4. Nothing that a client sends raises. What raises is a mistake of the driver.
"""

from __future__ import annotations

from guerrilla.envelope import TLSInfo
from guerrilla.smtp import replies
from guerrilla.smtp.conversation import Conversation, State
from guerrilla.smtp.events import Busy, Closed, Event
from guerrilla.smtp.replies import Reply
from guerrilla.smtp.settings import MAX_STEPS, House, Settings


class Session(Conversation):
    """The dialogue with one client, as a state machine without I/O.

    ``remote_ip``, ``remote_port`` and ``server`` are written on every envelope; ``tls`` is given when the connection
    began with TLS. ``trusted`` says that the peer is a proxy: where the settings allow XCLIENT, it may say for whom it
    speaks.
    """

    __slots__ = ()

    @property
    def unread(self) -> int:
        """Octets that were received and are not parsed: the driver stops reading when they grow."""
        return len(self._in)

    @property
    def asking(self) -> bool:
        """Whether an event waits for its answer: the client waits for us, not we for it."""
        return self._state is State.ASKED_RCPT or self._state is State.ASKED_MESSAGE

    @property
    def in_content(self) -> bool:
        """Whether a message is coming, from its first octet to its last, so that a least data rate can be asked."""
        if self._state is State.DATA or self._state is State.CHUNK:
            return True
        return self._state is State.COMMAND and self._transaction is not None and self._transaction.in_chunks

    @property
    def in_transaction(self) -> bool:
        """Whether MAIL was accepted, and what it began has not ended."""
        return self._transaction is not None

    def receive_data(self, octets: bytes) -> None:
        """Take what the client has sent. In the time between STARTTLS and the handshake it is dropped."""
        if self._state is State.HANDSHAKE or self.closed:
            return
        self._in.append(octets)

    def receive_eof(self) -> None:
        """Note that the client will send no more. What it has sent is still worked off and answered."""
        self._eof = True

    @property
    def unsent(self) -> list[Reply]:
        """The replies that ``data_to_send`` will return, for a driver that counts them."""
        return self._out

    def data_to_send(self) -> bytes:
        """Return what is to be sent to the client, once."""
        out = self._out
        data = out[0].wire if len(out) == 1 else b"".join([reply.wire for reply in out])
        out.clear()
        return data

    def next_event(self) -> Event | None:
        """Parse on, up to the next event; None when more octets, or the answer to an event, are needed first."""
        for _ in range(MAX_STEPS):
            state = self._state
            if state is State.COMMAND:
                if self._draining and self._transaction is None:
                    self.close(replies.SHUTTING_DOWN)
                    continue
                line = self._in.next_line()
                if line is None:
                    break
                event = self._command(line)
            elif state is State.DATA:
                if not self._in:
                    break
                event = self._read_data()
            elif state is State.CHUNK:
                if not self._in and self._chunk is not None and self._chunk.left:
                    break
                event = self._read_chunk()
            elif state is State.CLOSING:
                self._state = State.CLOSED
                return Closed(self._last_word)
            elif state is State.GREETING:
                self._out.append(self._settings.greeting)
                self._state = State.COMMAND
                continue
            elif state is State.HANDSHAKE:
                break
            else:
                return None
            if event is not None:
                return event
        else:
            return Busy()
        if self._eof:
            self.close()
            self._state = State.CLOSED
            return Closed()
        return None

    def reply(self, reply: Reply) -> None:
        """Answer the event that has asked.

        Raises RuntimeError if none has. A 421 is sent and ends the dialogue (RFC 5321 section 3.8).
        """
        transaction = self._transaction
        if transaction is None or not self.asking:
            raise RuntimeError("no event waits for an answer")
        code = reply.code
        if 300 <= code < 400:
            reply = replies.LOCAL_ERROR  # "go on" is no answer to a recipient or a message
            code = reply.code
        self._out.append(reply)
        about_message = self._state is State.ASKED_MESSAGE
        self._state = State.COMMAND
        if about_message:
            self._end_transaction()
            if code < 300:
                self._patience.renew()
        elif code < 300:
            transaction.keep()
        else:
            transaction.take_back()
            if code >= 500:
                self._count_error()
        if code == 421:
            self.close()
        elif self._hurried:
            self.close(replies.SHUTTING_DOWN)

    def tls_established(self, tls: TLSInfo) -> None:
        """Begin anew inside TLS: all that was said in clear is forgotten (RFC 3207 section 4.2).

        Raises RuntimeError if the client has not asked for TLS.
        """
        if self._state is not State.HANDSHAKE:
            raise RuntimeError("STARTTLS was not asked for")
        self._tls = tls
        self._state = State.COMMAND
        self._helo = ""
        self._esmtp = False

    def move(self, settings: Settings, house: House) -> None:
        """Go on under other settings and in another house. Raises RuntimeError in the middle of a transaction."""
        if self._transaction is not None:
            raise RuntimeError("a transaction ends on the settings it began with")
        self._settings = settings
        self._house = house

    def drain(self) -> None:
        """Let the transaction under way come to its end, and no other begin (RFC 5321 section 3.8)."""
        self._draining = True

    def hurry(self) -> None:
        """Let nothing begin behind the answer that is waited for: the session is closed with it, and says 421."""
        self._hurried = True
