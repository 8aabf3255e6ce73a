"""What is told of the clients and their mail: to the counters, to who has subscribed to events, and to the log.

It is the one place that all three are fed from, so that they tell the same story. An event is only made when somebody
wants it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

from structlog.typing import FilteringBoundLogger

from guerrilla.counters import Counters
from guerrilla.envelope import Address
from guerrilla.event_bus import EventBus
from guerrilla.events import Connected, Disconnected, Failed, Queued, Rejected
from guerrilla.log_records import Lines, log_message
from guerrilla.smtp.replies import Reply
from guerrilla.written import written

MAX_LOGGED_RECIPIENTS: Final = 10


class Witness:
    """Sees what happens on the connections of a daemon. ``counters`` and ``events`` are the daemon's.

    An envelope is Any where processors have had it: compiled code holds to types, and they may have written a tuple on
    it for a list, or a UUID for a text.
    """

    def __init__(self, counters: Counters, events: EventBus) -> None:
        self.counters = counters
        self.lines = Lines()
        """Lines of the log that tell of messages: a turn of the loop may hold them."""
        self._events = events

    def refused(self, log: FilteringBoundLogger, server: str, client: tuple[str, int], reply: Reply) -> None:
        """There was no place for a client."""
        self.turned_away(reply)
        log.warning("too many connections", client=client[0], reply=str(reply))
        self._rejected("connection", server, client, reply, "too many connections")

    def turned_away(self, reply: Reply) -> None:
        """There was no place for a client, nor the time to write it down."""
        self.counters.connections_refused += 1
        self.counters.count_reply(reply)

    def connected(self, server: str, client: tuple[str, int]) -> None:
        """A client was let in, and is greeted."""
        if self._events.wants(Connected):
            self._events.publish(Connected(server=server, remote_ip=client[0], remote_port=client[1]))

    def disconnected(self, server: str, client: tuple[str, int], seconds: float, messages: int) -> None:
        """A client that was greeted is gone."""
        if self._events.wants(Disconnected):
            self._events.publish(
                Disconnected(
                    server=server, remote_ip=client[0], remote_port=client[1], seconds=seconds, messages=messages
                )
            )

    def command_refused(
        self, log: FilteringBoundLogger, server: str, client: tuple[str, int], line: bytes, reply: Reply
    ) -> None:
        """The dialogue has refused a command."""
        log.debug("command refused", client=client[0], line=line, reply=str(reply))
        self._rejected("command", server, client, reply, "command refused")

    def recipient_refused(self, envelope: Any, recipient: Address, reply: Reply) -> None:
        """The line has refused a recipient."""
        client: Any = (envelope.remote_ip, envelope.remote_port)
        self._rejected("recipient", envelope.server, client, reply, "recipient refused", envelope, (recipient,))

    def message(self, log: FilteringBoundLogger, envelope: Any, size: int, reply: Reply, seconds: float) -> None:
        """A message was answered, ``seconds`` after its end. ``size`` is that of its content as it came, in octets."""
        code, recipients = reply.code, envelope.rcpt_to
        self.counters.count_message(reply, len(recipients), size, seconds)
        log_message(
            log,
            "kept" if code < 400 else "deferred" if code < 500 else "refused",
            envelope.queued_id,
            envelope.remote_ip,
            written(envelope.mail_from),
            _some(recipients),
            size,
            written(reply),
            milliseconds(seconds),
            self.lines,
        )
        if code >= 500:
            client: Any = (envelope.remote_ip, envelope.remote_port)
            everyone = tuple(recipients)
            self._rejected("message", envelope.server, client, reply, "message refused", envelope, everyone)
            return
        kind = Queued if code < 400 else Failed
        if self._events.wants(kind):
            self._events.publish(
                kind(
                    server=envelope.server,
                    remote_ip=envelope.remote_ip,
                    remote_port=envelope.remote_port,
                    queued_id=envelope.queued_id,
                    helo=envelope.helo,
                    sender=envelope.mail_from,
                    recipients=tuple(recipients),
                    size=size,
                    seconds=seconds,
                    reply=reply,
                )
            )

    def _rejected(
        self,
        what: Literal["connection", "command", "recipient", "message"],
        server: Any,
        client: Any,
        reply: Reply,
        reason: str,
        envelope: Any = None,
        recipients: tuple[Address, ...] = (),
    ) -> None:
        if not self._events.wants(Rejected):
            return
        self._events.publish(
            Rejected(
                server=server,
                remote_ip=client[0],
                remote_port=client[1],
                what=what,
                reply=reply,
                reason=reason,
                helo=envelope.helo if envelope is not None else "",
                queued_id=envelope.queued_id if envelope is not None else "",
                sender=envelope.mail_from if envelope is not None else None,
                recipients=recipients,
            )
        )


def _some(recipients: Sequence[Address]) -> list[str]:
    """Write so many of them as a line has room for."""
    texts = [written(recipient) for recipient in recipients[:MAX_LOGGED_RECIPIENTS]]
    if len(recipients) > MAX_LOGGED_RECIPIENTS:
        texts.append(f"and {len(recipients) - MAX_LOGGED_RECIPIENTS} more")
    return texts


def milliseconds(seconds: float) -> float:
    """Return ``round(seconds * 1000, 2)``, without the text that ``round`` makes and reads for it."""
    exact = seconds * 1000
    hundredths = exact * 100
    if 0 < hundredths < 2**31:
        whole = int(hundredths)
        rest = hundredths - whole
        # A product may have been rounded to a half, but never past one: if it is none, it is certain which is nearest.
        if rest != 0.5:
            return (whole + (rest > 0.5)) / 100
    return round(exact, 2)
