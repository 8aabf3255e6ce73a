"""The numbers of a daemon: ``Counters`` live in each process and only count; ``Stats`` is what they say at one moment.

Counting is on the way of every message, so it is an addition and nothing more: no lock (each process counts on its
event loop alone), no clock, no text that is put together. What needs work is done when a snapshot is taken. A snapshot
is frozen, travels as JSON, and those of several processes can be merged into one.
"""

from __future__ import annotations

import json
import time
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from itertools import accumulate
from typing import Annotated, Any, ClassVar, Final

from pydantic import AwareDatetime, ConfigDict, Field, TypeAdapter, ValidationError

from guerrilla.smtp.replies import Reply

BOUNDS: Final[tuple[float, ...]] = (
    *(float(f"{step}e{power}") for power in range(-5, 1) for step in (1, 1.5, 2, 3, 5, 7)),
    *(10.0, 15.0, 20.0, 30.0, 50.0, 60.0),
)
"""Upper bounds of the buckets of a histogram, in seconds: 10 µs to 60 s. One more bucket takes what is longer."""

MAX_REPLIES: Final = 256
"""Replies that are told apart by their enhanced codes; further ones only by their code, since a processor may make up
as many as it likes."""

_STRICT: Final = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

_Count = Annotated[int, Field(ge=0)]
_Seconds = Annotated[float, Field(ge=0)]


# Live


class Latencies:
    """A histogram that is being filled."""

    __slots__ = ("counts", "seconds")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.seconds = 0.0

    def add(self, seconds: float) -> None:
        """Count one more thing that took so long."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.seconds += seconds

    def snapshot(self) -> Histogram:
        """Return what is counted by now."""
        return Histogram(tuple(self.counts), self.seconds)


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
        self._replies: dict[tuple[int, str], int] = {}

    def count_reply(self, reply: Reply) -> None:
        """Count a reply that was sent."""
        key = (reply.code, reply.enhanced)
        replies = self._replies
        if key in replies:
            replies[key] += 1
            return
        if len(replies) >= MAX_REPLIES:
            key = (reply.code, "")
        replies[key] = replies.get(key, 0) + 1

    def count_message(self, reply: Reply, recipients: int, size: int, seconds: float) -> None:
        """Count a message that was answered, ``seconds`` after its end; the reply says what became of it."""
        self.answers.add(seconds)
        if reply.positive:
            self.messages_kept += 1
            self.recipients += recipients
            self.octets_kept += size
        elif reply.temporary:
            self.messages_deferred += 1
        else:
            self.messages_refused += 1

    def processor(self, name: str) -> ProcessorCounters:
        """Return the numbers of the processor of this name, made when it is first asked for."""
        return self.processors.setdefault(name, ProcessorCounters())

    def snapshot(
        self,
        *,
        queue_depth: int = 0,
        workers: int = 0,
        workers_busy: int = 0,
        memory_in_flight: int = 0,
        loop_lag: float = 0.0,
        loop_lag_max: float = 0.0,
        events_dropped: int = 0,
    ) -> Stats:
        """Return what is counted by now, with what is known elsewhere."""
        return Stats(
            started_at=self.started_at,
            uptime=time.monotonic() - self._started,
            processes=1,
            connections_accepted=self.connections_accepted,
            connections_refused=self.connections_refused,
            connections_open=self.connections_open,
            tls_handshakes=self.tls_handshakes,
            tls_failures=self.tls_failures,
            messages_kept=self.messages_kept,
            messages_deferred=self.messages_deferred,
            messages_refused=self.messages_refused,
            recipients=self.recipients,
            octets_received=self.octets_received,
            octets_kept=self.octets_kept,
            events_dropped=events_dropped,
            replies={f"{code} {enhanced}".rstrip(): count for (code, enhanced), count in self._replies.items()},
            answers=self.answers.snapshot(),
            processors={
                name: ProcessorStats(each.errors, each.latencies.snapshot()) for name, each in self.processors.items()
            },
            queue_depth=queue_depth,
            workers=workers,
            workers_busy=workers_busy,
            memory_in_flight=memory_in_flight,
            loop_lag=loop_lag,
            loop_lag_max=loop_lag_max,
        )


# At one moment


@dataclass(frozen=True, slots=True)
class Histogram:
    """How long things took: for each of ``BOUNDS``, how many took no longer but longer than the one before."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    counts: Annotated[tuple[_Count, ...], Field(min_length=len(BOUNDS) + 1, max_length=len(BOUNDS) + 1)] = (0,) * (
        len(BOUNDS) + 1
    )
    seconds: _Seconds = 0.0
    """The sum of all."""

    @property
    def count(self) -> int:
        """How many things there were."""
        return sum(self.counts)

    @property
    def mean(self) -> float:
        """How long they took on average; 0 if there were none."""
        count = self.count
        return self.seconds / count if count else 0.0

    def quantile(self, q: float) -> float:
        """Return the seconds within which the part ``q`` of all ended; 0 if there were none.

        It is right to the width of a bucket, whose upper bound is at most 1.7 times the lower one; inside it, things
        are taken to be spread evenly. What took longer than a minute is told as a minute.

        Raises:
            ValueError: if q is not from 0 to 1.
        """
        if not 0 <= q <= 1:
            raise ValueError(f"found the quantile {q}; meant: from 0 to 1")
        wanted = q * self.count
        for number, below in enumerate(accumulate(self.counts)):
            inside = self.counts[number]
            if inside and below >= wanted:
                if number == len(BOUNDS):
                    break
                low = BOUNDS[number - 1] if number else 0.0
                return low + (BOUNDS[number] - low) * (wanted - (below - inside)) / inside
        else:
            return 0.0
        return BOUNDS[-1]

    @classmethod
    def merge(cls, parts: Iterable[Histogram]) -> Histogram:
        """Return the histogram of all things together."""
        parts = list(parts)
        if not parts:
            return cls()
        counts = tuple(map(sum, zip(*(each.counts for each in parts), strict=True)))
        return cls(counts, sum(each.seconds for each in parts))


@dataclass(frozen=True, slots=True)
class ProcessorStats:
    """The numbers of one processor of the line, its saving and validating taken together."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    errors: _Count = 0
    """How often it raised, or gave no reply."""
    latencies: Histogram = Histogram()
    """How long it took."""

    @property
    def count(self) -> int:
        """How often it was called."""
        return self.latencies.count


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """The numbers of a daemon at one moment, over all its processes.

    Those down to ``processors`` only grow, but for ``connections_open``; those after it are of this moment.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    started_at: AwareDatetime
    """When the first process of those counted began, UTC."""
    uptime: _Seconds
    """Seconds since then."""
    processes: _Count
    connections_accepted: _Count = 0
    connections_refused: _Count = 0
    connections_open: _Count = 0
    tls_handshakes: _Count = 0
    tls_failures: _Count = 0
    messages_kept: _Count = 0
    """Messages answered 250."""
    messages_deferred: _Count = 0
    """Messages answered 4xx."""
    messages_refused: _Count = 0
    """Messages answered 5xx."""
    recipients: _Count = 0
    """Recipients of the messages that were kept."""
    octets_received: _Count = 0
    octets_kept: _Count = 0
    events_dropped: _Count = 0
    """Events that subscribers lost because they did not keep up."""
    replies: dict[str, _Count] = field(default_factory=dict)
    """How often each reply was given, by code and enhanced code: ``"250 2.1.0"``."""
    answers: Histogram = Histogram()
    """From the end of a message to the reply."""
    processors: dict[str, ProcessorStats] = field(default_factory=dict)

    queue_depth: _Count = 0
    """Submissions that wait for a worker."""
    workers: _Count = 0
    workers_busy: _Count = 0
    memory_in_flight: _Count = 0
    """Octets of messages in memory."""
    loop_lag: _Seconds = 0.0
    """Seconds that the event loop was late the last time; of several processes, the worst."""
    loop_lag_max: _Seconds = 0.0
    """The same, the worst of the last minute."""

    def as_dict(self) -> dict[str, Any]:
        """Return what JSON can hold; ``from_dict`` takes it back."""
        found: dict[str, Any] = _STATS.dump_python(self, mode="json")
        return found

    def as_json(self) -> bytes:
        """Return JSON; ``from_json`` takes it back."""
        return _STATS.dump_json(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Stats:
        """Read what ``as_dict`` gave. Raises ValueError if it is anything else."""
        try:
            return cls.from_json(json.dumps(value).encode())
        except TypeError as error:
            raise ValueError(f"these are no statistics: {error}") from None

    @classmethod
    def from_json(cls, octets: bytes) -> Stats:
        """Read what ``as_json`` gave. Raises ValueError if it is anything else."""
        try:
            return _STATS.validate_json(octets)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"])) or "the whole"
            raise ValueError(f"these are no statistics: {place}: {first['msg']}") from None

    @classmethod
    def merge(cls, parts: Iterable[Stats]) -> Stats:
        """Return the numbers of all together: sums, but the worst lag, and the time since the first start.

        Raises:
            ValueError: if there is nothing to merge.
        """
        parts = list(parts)
        if not parts:
            raise ValueError("there are no statistics to merge")
        started_at = min(each.started_at for each in parts)
        now = max(each.started_at.timestamp() + each.uptime for each in parts)
        processors: dict[str, list[ProcessorStats]] = {}
        replies: dict[str, int] = {}
        for part in parts:
            for name, processor in part.processors.items():
                processors.setdefault(name, []).append(processor)
            for reply, count in part.replies.items():
                replies[reply] = replies.get(reply, 0) + count
        return cls(
            started_at=started_at,
            uptime=now - started_at.timestamp(),
            replies=replies,
            answers=Histogram.merge(each.answers for each in parts),
            processors={
                name: ProcessorStats(sum(each.errors for each in of), Histogram.merge(each.latencies for each in of))
                for name, of in processors.items()
            },
            loop_lag=max(each.loop_lag for each in parts),
            loop_lag_max=max(each.loop_lag_max for each in parts),
            **{name: sum(getattr(each, name) for each in parts) for name in _SUMS},
        )

    def departed(self) -> Stats:
        """Return what is left of it when its process has ended: what only grows stays, what is of the moment is 0."""
        return replace(
            self,
            processes=0,
            connections_open=0,
            queue_depth=0,
            workers=0,
            workers_busy=0,
            memory_in_flight=0,
            loop_lag=0.0,
            loop_lag_max=0.0,
        )


_SUMS: Final = tuple(each.name for each in fields(Stats) if each.type == "_Count")
_STATS: Final = TypeAdapter(Stats)
