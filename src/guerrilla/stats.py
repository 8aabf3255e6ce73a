"""The numbers of a daemon at one moment, as its processes have counted them in their ``counters``.

A snapshot is frozen, travels as JSON, and those of several processes can be merged into one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from itertools import accumulate
from typing import Annotated, Any, ClassVar, Final

from pydantic import AwareDatetime, ConfigDict, Field, TypeAdapter, ValidationError

from guerrilla.counters import BOUNDS, Counters, Latencies

_STRICT: Final = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

_Count = Annotated[int, Field(ge=0)]
_Seconds = Annotated[float, Field(ge=0)]


@dataclass(frozen=True, slots=True)
class Histogram:
    """How long things took: for each of ``BOUNDS``, how many took no longer but longer than the one before."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    counts: Annotated[tuple[_Count, ...], Field(min_length=len(BOUNDS) + 1, max_length=len(BOUNDS) + 1)] = (0,) * (
        len(BOUNDS) + 1
    )
    seconds: _Seconds = 0.0
    """The sum of all."""

    @classmethod
    def of(cls, latencies: Latencies) -> Histogram:
        """Return what is counted by now."""
        return cls(tuple(latencies.counts), latencies.seconds)

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

    @classmethod
    def of(
        cls,
        counters: Counters,
        *,
        queue_depth: int = 0,
        workers: int = 0,
        workers_busy: int = 0,
        memory_in_flight: int = 0,
        loop_lag: float = 0.0,
        loop_lag_max: float = 0.0,
        events_dropped: int = 0,
    ) -> Stats:
        """Return what a process has counted by now, with what is known elsewhere."""
        return cls(
            started_at=counters.started_at,
            uptime=counters.uptime,
            processes=1,
            connections_accepted=counters.connections_accepted,
            connections_refused=counters.connections_refused,
            connections_open=counters.connections_open,
            tls_handshakes=counters.tls_handshakes,
            tls_failures=counters.tls_failures,
            messages_kept=counters.messages_kept,
            messages_deferred=counters.messages_deferred,
            messages_refused=counters.messages_refused,
            recipients=counters.recipients,
            octets_received=counters.octets_received,
            octets_kept=counters.octets_kept,
            events_dropped=events_dropped,
            replies=counters.replies,
            answers=Histogram.of(counters.answers),
            processors={
                name: ProcessorStats(each.errors, Histogram.of(each.latencies))
                for name, each in counters.processors.items()
            },
            queue_depth=queue_depth,
            workers=workers,
            workers_busy=workers_busy,
            memory_in_flight=memory_in_flight,
            loop_lag=loop_lag,
            loop_lag_max=loop_lag_max,
        )

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
