"""One client's connection: moves octets between a socket and a session, and asks the backend what the session asks.

There is no coroutine, task, timer, stream object or buffer here while a connection is idle: all are read into one that
they share; time limits are looked at by the server's sweep. A connection is its wire, its session, and a few numbers.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from structlog.typing import FilteringBoundLogger

from guerrilla.backends.answer import Answer
from guerrilla.counters import Counters
from guerrilla.envelope import Address, Envelope, TLSInfo
from guerrilla.server.handshake import shake_hands
from guerrilla.server.questions import Question, asked
from guerrilla.server.tls import tls_info
from guerrilla.server.wire import Wire
from guerrilla.smtp.events import (
    Busy,
    Closed,
    CommandRefused,
    Introduced,
    MessageReceived,
    MessageRefused,
    RcptReceived,
    TLSRequested,
)
from guerrilla.smtp.proxy import ProxyHeader
from guerrilla.smtp.replies import BYE, LOCAL_ERROR, SHUTTING_DOWN, TIMED_OUT, TOO_SLOW, Reply
from guerrilla.smtp.session import Session

if TYPE_CHECKING:
    from guerrilla.server.listener import Server

MAX_UNREAD: Final = 16384
"""Octets that a client may send ahead while its answer is out, before we stop reading."""
LINGER = 2.0
"""Seconds that we read on after the last word to a client that still talks, so that a reset does not swallow it."""


class Connection:
    """What a wire talks to, or in TLS a transport of the loop: one client.

    ``refusal`` is for one too many: it is told, and sent away. ``trusted`` says that it is a proxy, which may use
    XCLIENT, and ``encrypted`` that it begins with a TLS handshake.
    """

    __slots__ = (
        "_answer", "_asked_at", "_began", "_blocked", "_content_since", "_counters", "_handshaking",
        "_kept", "_loop", "_over", "_paused", "_policy", "_received", "_refusal", "_remote_port", "_server",
        "_session", "_since", "_tls", "_transport", "_trusted", "_waits", "encrypted", "place", "remote_ip",
    )  # fmt: skip

    def __init__(
        self,
        server: Server,
        remote_ip: str,
        remote_port: int,
        place: str,
        refusal: Reply | None = None,
        *,
        trusted: bool = False,
        encrypted: bool = False,
    ) -> None:
        self._server = server
        self._policy = server.policy
        self._policy.enter()
        self._loop = server.loop
        self._counters: Counters = server.witness.counters
        self.remote_ip = remote_ip
        self._remote_port = remote_port
        self.place = place if refusal is None else None
        """The address that it is counted for: none for a proxy that has not told its client; None: not counted."""
        self._refusal = refusal
        self._trusted = trusted
        self.encrypted = encrypted
        """Whether TLS is on from the first octet."""
        self._transport: Wire | asyncio.Transport | None = None
        self._session: Session | None = None
        self._tls: TLSInfo | None = None
        self._handshaking = False
        # What the sweep looks at, in seconds of the loop's clock.
        self._since = self._began = server.clock()
        self._content_since = 0.0
        self._received = 0
        self._asked_at = 0.0
        self._answer: asyncio.Future[Any] | None = None
        self._over = False
        self._kept = 0
        # Back-pressure.
        self._blocked = False
        self._paused = False
        self._waits = False

    # The transport's calls.

    def connection_made(self, transport: Wire | asyncio.Transport) -> None:
        """Greet. A transport of the loop's is one in TLS, after its handshake; after STARTTLS nobody is greeted."""
        self._transport = transport
        if self._refusal is not None:
            transport.write(self._refusal.wire)
            self._close(linger=True)
            return
        if not isinstance(transport, Wire):
            self._counters.tls_handshakes += 1
            self._tls = tls_info(transport.get_extra_info("ssl_object"))
        if self._session is not None:
            self._go_on_in_tls(self._session)
            return
        self._session = Session(
            self._policy.settings,
            self._policy,
            remote_ip=self.remote_ip,
            remote_port=self._remote_port,
            server=self._server.name,
            tls=self._tls,
            trusted=self._trusted,
        )
        self._server.witness.connected(self._server.name, self.client)
        if self._server.draining:
            self._session.drain()
        self._advance()

    def data_received(self, data: bytes) -> None:
        """Give the session what has come."""
        session = self._session
        if session is None or self._over:
            return
        received = len(data)
        self._received += received
        self._counters.octets_received += received
        if self._content_since:
            self._since = self._server.clock()
        session.receive_data(data)
        if session.unread > MAX_UNREAD:
            self._advance(talking=True)  # in TLS the loop may read as much again, and again, before this turn ends
        else:
            self._server.turn.do(self)

    def eof_received(self) -> bool:
        """Work off what the client has sent before it ended; keep the connection until the last answer is sent.

        TLS knows no such half-closed connection: there the last answers go nowhere.
        """
        if self._session is None or self._over or self._handshaking:
            return False
        self._session.receive_eof()
        self._advance()
        self._server.turn.send()
        return not self._over and self._tls is None

    def pause_writing(self) -> None:
        """The client does not read its replies: parse no more until it does."""
        self._blocked = True
        self._since = self._server.clock()

    def resume_writing(self) -> None:
        """Go on."""
        self._blocked = False
        self._advance(talking=True)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the client. A message that the backend has by now is still kept: its answer only goes nowhere."""
        self._over = True
        if self._session is not None and not self._session.asking:
            self._session.close()  # else what the message holds is given back with the answer
        self._server.forget(self)

    # What the server calls.

    def check(self, now: float) -> None:
        """Look at the time limits; called by the sweep."""
        session = self._session
        waited = now - self._since
        timeout = self._policy.timeout
        if self._over:
            unsent = self._transport is not None and self._transport.get_write_buffer_size() > 0
            if waited > (timeout if unsent else LINGER):
                self.abort()
        elif session is None or self._handshaking or (session.asking and not self._blocked):
            pass  # the handshake and the backend have limits of their own
        elif self._blocked:
            if waited > timeout:
                self.abort()
        elif self._too_slow(now):
            self._end(TOO_SLOW)
        elif waited > timeout:
            self._end(TIMED_OUT)

    def introduce(self, header: ProxyHeader) -> None:
        """Be the client that a PROXY header names; called before there is a transport.

        Only a proxy may say more with XCLIENT: where the header speaks for a client, the proxy has no word any more.
        """
        if header.source is not None:
            self.remote_ip, self._remote_port = header.source
            self._trusted = self._policy.proxies.xclient_from(self.remote_ip)
            if self._refusal is None and not self._trusted:
                self._refusal = self._settle()
        elif not header.local:
            self._trusted = False

    def follow(self) -> None:
        """Live by the server's policy that holds by now, unless a transaction is under way: it ends as it began."""
        session = self._session
        if session is not None:
            if session.in_transaction or self._handshaking:
                return
            session.move(self._server.policy.settings, self._server.policy)
        self._policy.leave()
        self._policy = self._server.policy
        self._policy.enter()

    @property
    def client(self) -> tuple[str, int]:
        """The address and port of the client, as far as they are known by now."""
        return self.remote_ip, self._remote_port

    def leave(self) -> None:
        """Live by no policy any more: the server has counted this connection out."""
        self._policy.leave()
        if self._session is not None and self._refusal is None:
            self._tell_end()

    def drain(self) -> None:
        """Let the transaction under way end, then say 421 and close."""
        if self._session is None:
            self.abort()
            return
        self._session.drain()
        if not self._handshaking:
            self._advance()

    def hurry(self, reply: Reply) -> None:
        """Say so and close now, whatever is under way; ``abort`` is for those who do not even read that.

        What the backend does for a message that waits for its answer is made void: the client sends it again.
        """
        session = self._session
        if session is None or self._handshaking:
            self.abort()
        elif session.asking and self._answer is not None and not self._answer.cancel():
            session.hurry()  # the answer is there, and said before anything else; nothing may begin behind it
        else:
            self._end(reply)

    def abort(self) -> None:
        """Cut the connection."""
        if self._transport is not None:
            self._over = True  # what was read in this turn is not worked off any more
            self._transport.abort()

    # The dialogue.

    def _advance(self, *, talking: bool = False) -> None:
        """Handle what the session has to tell, send what it has to say, and see that it is not fed too fast."""
        session = self._session
        if session is None or self._over:
            return
        if self._policy is not self._server.policy:
            self.follow()
        while not self._blocked:
            event = session.next_event()
            if event is None:
                break
            if isinstance(event, MessageReceived):
                self._ask(self._policy.backend.process, event.envelope)
            elif isinstance(event, RcptReceived):
                # Remembered: a processor may rename it, or strike it out itself.
                self._ask(self._policy.backend.validate_rcpt, event.envelope, event.envelope.rcpt_to[-1])
            elif isinstance(event, CommandRefused):
                self._server.witness.command_refused(
                    self._policy.log, self._server.name, self.client, event.line, event.reply
                )
            elif isinstance(event, MessageRefused):
                self._server.witness.message(self._policy.log, event.envelope, event.size, event.reply, 0.0)
            elif isinstance(event, TLSRequested):
                self._flush(session)
                self._start_tls(session)
                return
            elif isinstance(event, Closed):
                self._flush(session)
                # A client that still talks would have our last word swept away by the reset of a hard close.
                self._close(linger=talking and event.reply is not None and event.reply is not BYE)
                return
            elif isinstance(event, Introduced):
                self._introduced(session, event)
            elif isinstance(event, Busy):
                if not self._waits:
                    self._waits = True
                    self._loop.call_soon(self._next_turn, talking)
                break
        self._flush(session)
        self._watch(session)

    def go_on(self) -> None:
        """Work off what has come, after what came from all others in this turn was read too."""
        if self._handshaking:
            return
        try:
            self._advance(talking=True)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # as the loop does with what data_received raises: the others have their turn
            self.abort()
            self._policy.log.error("connection failed", client=self.remote_ip, exc_info=error)

    def _introduced(self, session: Session, event: Introduced) -> None:
        """Be the client that XCLIENT has named: told of as if the proxy had gone, and the client come."""
        self._tell_end()
        self._began, self._kept = self._server.clock(), 0
        proxy = self.remote_ip
        self.remote_ip, self._remote_port = event.remote_ip, event.remote_port
        if self.remote_ip != proxy:
            self._refusal = self._settle()
        if self._refusal is None:
            self._server.witness.connected(self._server.name, self.client)
        else:
            session.close(self._refusal)

    def _tell_end(self) -> None:
        seconds = self._server.clock() - self._began
        self._server.witness.disconnected(self._server.name, self.client, seconds, self._kept)

    def _settle(self) -> Reply | None:
        refusal = self._server.settle(self.remote_ip)
        if refusal is None:
            self.place = self.remote_ip
        return refusal

    def _next_turn(self, talking: bool) -> None:
        """Go on, after all others had their turn."""
        self._waits = False
        if not self._handshaking:
            self._advance(talking=talking)

    def _flush(self, session: Session) -> None:
        if session.unsent:
            counters = self._counters
            for reply in session.unsent:
                counters.count_reply(reply)
            data = session.data_to_send()
            assert self._transport is not None
            self._since = self._server.clock()
            self._server.turn.put(self._transport, data)

    def _watch(self, session: Session) -> None:
        """Keep the marks that the sweep and the back-pressure need."""
        if session.in_content:
            if not self._content_since:
                self._content_since = self._since
                self._received = 0
        else:
            self._content_since = 0.0
        full = session.unread > MAX_UNREAD
        if full is not self._paused:
            assert self._transport is not None
            self._paused = full
            if full:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def _too_slow(self, now: float) -> bool:
        if not self._content_since:
            return False
        owed = (now - self._content_since - self._policy.timeout) * self._policy.min_data_rate
        return self._received < owed

    def _ask(
        self, question: Callable[[Envelope], Awaitable[Reply]], envelope: Envelope, recipient: Address | None = None
    ) -> None:
        """Put a question to the backend; ``answered`` is called in the turn of its answer, with all of that turn."""
        self._asked_at = perf_counter()  # the loop's clock stands still while a callback runs
        self._answer = answer = asked(question, envelope, self._loop, self._server.keep)
        out = Question(self, self._server.turn, answer, envelope, recipient)
        if answer.done():  # the loop would make a handle for each callback
            self._server.turn.do(out)
        elif isinstance(answer, Answer) and answer.asker is None:  # a backend may give one answer to several
            answer.asker = out
        else:
            answer.add_done_callback(out.tell)

    @property
    def _log(self) -> FilteringBoundLogger:
        """The log that is open for sure: who has gone is not waited for by a policy that a reload has replaced."""
        return self._server.policy.log if self._over else self._policy.log

    def answered(self, done: asyncio.Future[Any], envelope: Envelope, recipient: Address | None) -> None:
        """Give the client its answer, whatever processors have made of the envelope: nobody else looks after it now."""
        session = self._session
        reply = LOCAL_ERROR
        try:
            reply = self._answer_of(done, envelope)
            self._tell_answer(envelope, recipient, reply)
        except Exception as error:
            self._log.error("an answer could not be told of", reply=str(reply), exc_info=error)
        finally:
            if session is not None and session.asking:
                self._pass_on(session, reply)

    def _answer_of(self, done: asyncio.Future[Any], envelope: Envelope) -> Reply:
        try:
            reply = done.result()
            if not isinstance(reply, Reply):
                raise TypeError(f"the backend answered {reply!r}, which is no Reply")
        except (Exception, asyncio.CancelledError) as error:
            if self._over and done.cancelled():
                return SHUTTING_DOWN  # we gave it up ourselves
            self._log.error("backend failed", queued_id=envelope.queued_id, exc_info=error)
            return LOCAL_ERROR
        return reply

    def _tell_answer(self, envelope: Envelope, recipient: Address | None, reply: Reply) -> None:
        if recipient is None:
            self._kept += reply.code < 400
            seconds = perf_counter() - self._asked_at
            self._server.witness.message(self._log, envelope, len(envelope.data), reply, seconds)
        elif not reply.positive:
            self._server.witness.recipient_refused(envelope, recipient, reply)

    def _pass_on(self, session: Session, reply: Reply) -> None:
        try:
            session.reply(reply)
            self._advance(talking=True)
        except Exception as error:  # of what a processor has made of the recipients
            self.abort()
            self._log.error("a client could not be answered", client=self.remote_ip, exc_info=error)

    # STARTTLS.

    def _start_tls(self, session: Session) -> None:
        assert isinstance(self._transport, Wire)  # in TLS it is refused
        self._server.turn.send()
        if self._transport.is_closing():
            return  # the client has gone, and we shall be told
        # What is still on its way in clear meets the handshake, and fails it (RFC 3207 section 5).
        connected, unsent = self._transport.detach()
        self._transport = None
        self._handshaking = True
        context, seconds = self._policy.tls_context, self._policy.handshake_timeout
        assert context is not None
        task = self._loop.create_task(shake_hands(self._loop, self, connected, context, seconds, unsent))
        self._server.keep(task)
        # Not in a coroutine of ours: one that is cancelled before its first step does nothing.
        task.add_done_callback(partial(self._hands_were_shaken, connected))

    def _hands_were_shaken(self, connected: socket.socket, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._counters.tls_failures += 1
            if isinstance(error, (OSError, ValueError)):  # see shake_hands
                self._policy.log.info("TLS handshake failed", client=self.remote_ip, cause=str(error))
            else:
                self._policy.log.error("TLS handshake failed", client=self.remote_ip, exc_info=error)
        if self._handshaking:
            connected.close()
            self.connection_lost(None)  # of a connection that is lost in its handshake the loop does not tell

    def _go_on_in_tls(self, session: Session) -> None:
        assert self._tls is not None
        self._handshaking = False
        self._blocked = False  # what was not taken in clear was sent before the handshake
        self._since = self._server.clock()
        session.tls_established(self._tls)
        if self._server.draining:
            session.drain()  # a shutdown does not reach who is in a handshake
        self._advance(talking=True)

    # The end.

    def _end(self, reply: Reply) -> None:
        """Have the last word."""
        assert self._session is not None
        self._session.close(reply)
        self._blocked = False
        self._advance()

    def _close(self, *, linger: bool) -> None:
        assert self._transport is not None
        self._server.turn.send()
        self._over = True
        self._since = self._server.clock()
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        if linger and isinstance(self._transport, Wire):  # TLS knows no end of one side
            self._transport.write_eof()
        else:
            self._transport.close()
