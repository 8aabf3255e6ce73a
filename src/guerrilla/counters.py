"""The numbers of one process while it lives. What they say at one moment is in ``stats``.

Counting is on the way of every message, so it is an addition and nothing more: no lock (each process counts on its
event loop alone), no clock, no text that is put together. What needs work is done when a snapshot is taken.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any, Final

from guerrilla.smtp.replies import Reply

BOUNDS: Final[tuple[float, ...]] = (
    *(float(f"{step}e{power}") for power in range(-5, 1) for step in (1, 1.5, 2, 3, 5, 7)),
    *(10.0, 15.0, 20.0, 30.0, 50.0, 60.0),
)
"""Upper bounds of the buckets of a histogram, in seconds: 10 µs to 60 s. One more bucket takes what is longer."""

MAX_REPLIES: Final = 256
"""Replies that are told apart by their enhanced codes; further ones only by their code, since a processor may make up
as many as it likes."""


class Latencies:
    """A histogram that is being filled."""

    __slots__ = ("_latest", "counts", "seconds")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.seconds = 0.0
        self._latest = 0
        """The bucket of the latest: the next one is mostly there or near, and searched for from there on."""

    def add(self, seconds: float) -> None:
        """Count one more thing that took so long."""
        bucket = self._latest
        while bucket < len(BOUNDS) and seconds > BOUNDS[bucket]:
            bucket += 1
        while bucket > 0 and seconds <= BOUNDS[bucket - 1]:
            bucket -= 1
        self._latest = bucket
        self.counts[bucket] += 1
        self.seconds += seconds


class _Count:
    """How often something was seen."""

    __slots__ = ("times",)

    def __init__(self) -> None:
        self.times = 0


class ProcessorCounters:
    """The numbers of one processor of the line, its saving and validating taken together."""

    __slots__ = ("errors", "latencies")

    def __init__(self) -> None:
        self.errors = 0
        """How often it raised, or gave no reply."""
        self.latencies = Latencies()


class Counters:
    """The numbers of one process, from its start on. Add to the attributes; only its own event loop may."""

    __slots__ = (
        "_replies",
        "_started",
        "_told_apart",
        "answers",
        "connections_accepted",
        "connections_open",
        "connections_refused",
        "messages_deferred",
        "messages_kept",
        "messages_refused",
        "octets_kept",
        "octets_received",
        "processors",
        "recipients",
        "started_at",
        "tls_failures",
        "tls_handshakes",
    )

    def __init__(self) -> None:
        self.started_at = datetime.now(UTC)
        self._started = time.monotonic()
        self.connections_accepted = 0
        """Connections that were let in."""
        self.connections_refused = 0
        """Connections that there was no place for."""
        self.connections_open = 0
        """Connections that are open now: also to be subtracted from."""
        self.tls_handshakes = 0
        """TLS handshakes that were completed."""
        self.tls_failures = 0
        """TLS handshakes that came to nothing."""
        self.messages_kept = 0
        """Messages answered 250."""
        self.messages_deferred = 0
        """Messages answered 4xx."""
        self.messages_refused = 0
        """Messages answered 5xx."""
        self.recipients = 0
        """Recipients of the messages that were kept."""
        self.octets_received = 0
        """Octets that came from the clients, TLS taken off."""
        self.octets_kept = 0
        """Octets of the messages that were kept, as they came."""
        self.answers = Latencies()
        """From the end of a message to the reply."""
        self.processors: dict[str, ProcessorCounters] = {}
        self._replies: dict[int, dict[str, _Count]] = {}
        self._told_apart = 0

    def count_reply(self, reply: Reply) -> None:
        """Count a reply that was sent."""
        given: Any = reply  # what is only looked up need not be made a number of C's and back
        of_code = self._replies.get(given.code)
        count = of_code.get(given.enhanced) if of_code is not None else None
        if count is None:
            count = self._new_reply(reply.code, reply.enhanced)
        count.times += 1

    def _new_reply(self, code: int, enhanced: str) -> _Count:
        of_code = self._replies.setdefault(code, {})
        if self._told_apart >= MAX_REPLIES:
            enhanced = ""
        if enhanced not in of_code:
            of_code[enhanced] = _Count()
            self._told_apart += 1
        return of_code[enhanced]

    def count_message(self, reply: Reply, recipients: int, size: int, seconds: float) -> None:
        """Count a message that was answered, ``seconds`` after its end; the reply says what became of it."""
        self.answers.add(seconds)
        code = reply.code
        if code < 400:
            self.messages_kept += 1
            self.recipients += recipients
            self.octets_kept += size
        elif code < 500:
            self.messages_deferred += 1
        else:
            self.messages_refused += 1

    def processor(self, name: str) -> ProcessorCounters:
        """Return the numbers of the processor of this name, made when it is first asked for."""
        return self.processors.setdefault(name, ProcessorCounters())

    @property
    def uptime(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    @property
    def replies(self) -> dict[str, int]:
        """How often each reply was given, by code and enhanced code."""
        return {
            f"{code} {enhanced}".rstrip(): count.times
            for code, of_code in self._replies.items()
            for enhanced, count in of_code.items()
        }
