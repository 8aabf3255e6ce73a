"""What is counted is told: by one process, merged over several, and the same after a way through JSON."""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guerrilla.counters import BOUNDS, MAX_REPLIES, Counters, Latencies
from guerrilla.smtp.replies import (
    LOCAL_ERROR,
    MESSAGE_TOO_LARGE,
    OK,
    SENDER_OK,
    START_MAIL,
    Reply,
)
from guerrilla.stats import Histogram, ProcessorStats, Stats

NOW = datetime(2026, 1, 1, tzinfo=UTC)

durations = st.lists(st.floats(0, 100, allow_nan=False), max_size=50)
counts = st.integers(0, 2**53)


def histogram(seconds: list[float]) -> Histogram:
    latencies = Latencies()
    for each in seconds:
        latencies.add(each)
    return Histogram.of(latencies)


histograms = durations.map(histogram)
names = st.sampled_from(["Hasher", "Header", "Sql", "package.module:Ours"])
_FIELDS: dict[str, st.SearchStrategy[Any]] = {
    field.name: counts for field in fields(Stats) if field.type == "_Count"
} | {
    "started_at": st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC)),
    "uptime": st.floats(0, 1e9),
    "loop_lag": st.floats(0, 1e3),
    "loop_lag_max": st.floats(0, 1e3),
    "replies": st.dictionaries(st.sampled_from(["250 2.0.0", "354", "451 4.3.0", "ü"]), counts),
    "answers": histograms,
    "processors": st.dictionaries(names, st.builds(ProcessorStats, counts, histograms)),
}
stats = st.fixed_dictionaries(_FIELDS).map(lambda values: Stats(**values))


def some() -> Stats:
    return Stats(started_at=NOW, uptime=1.0, processes=1)


# Counting


def test_a_process_that_has_just_begun_has_counted_nothing() -> None:
    snapshot = Stats.of(Counters())
    assert snapshot == replace(some(), started_at=snapshot.started_at, uptime=snapshot.uptime)
    assert snapshot.uptime >= 0


def test_what_is_added_to_the_counters_is_in_the_snapshot() -> None:
    counters = Counters()
    numbers = [name for name in dir(counters) if name[0] != "_" and isinstance(getattr(counters, name), int)]
    assert len(numbers) == 11
    for value, name in enumerate(numbers, 1):
        setattr(counters, name, value)
    snapshot = Stats.of(counters)
    assert [getattr(snapshot, name) for name in numbers] == list(range(1, 12))
    assert snapshot.started_at == counters.started_at


def test_a_snapshot_does_not_change_when_counting_goes_on() -> None:
    counters = Counters()
    counters.processor("Sql").latencies.add(0.1)
    counters.count_reply(OK)
    snapshot = Stats.of(counters)
    counters.processor("Sql").latencies.add(0.1)
    counters.count_reply(OK)
    counters.answers.add(1.0)
    assert (snapshot.processors["Sql"].count, snapshot.replies, snapshot.answers.count) == (1, {"250 2.0.0": 1}, 0)


def test_what_is_known_elsewhere_is_told_in_the_snapshot() -> None:
    known = {
        "queue_depth": 1,
        "workers": 2,
        "workers_busy": 3,
        "memory_in_flight": 4,
        "loop_lag": 5.0,
        "loop_lag_max": 6.0,
        "events_dropped": 7,
    }
    snapshot = Stats.of(Counters(), **known)  # type: ignore[arg-type]
    assert {name: getattr(snapshot, name) for name in known} == known


def test_replies_are_counted_by_code_and_enhanced_code() -> None:
    counters = Counters()
    for reply in (OK, SENDER_OK, Reply(250, "2.0.0", "another text"), START_MAIL):
        counters.count_reply(reply)
    assert Stats.of(counters).replies == {"250 2.0.0": 2, "250 2.1.0": 1, "354": 1}


def test_replies_that_a_processor_makes_up_do_not_fill_the_memory() -> None:
    counters = Counters()
    for number in range(MAX_REPLIES + 1000):
        counters.count_reply(Reply(250 if number % 2 else 550, f"{2 if number % 2 else 5}.9.{number % 1000}"))
        counters.count_reply(Reply(250 if number % 2 else 550, f"{2 if number % 2 else 5}.8.{number % 1000}"))
    replies = Stats.of(counters).replies
    assert len(replies) == MAX_REPLIES + 2
    assert sum(replies.values()) == 2 * (MAX_REPLIES + 1000)
    assert replies["250"] > 0 < replies["550"]


@given(st.lists(st.floats(allow_nan=False) | st.sampled_from(BOUNDS), max_size=20))
def test_each_time_is_counted_in_the_bucket_that_bisect_finds_whichever_came_before(seconds: list[float]) -> None:
    expected = [0] * (len(BOUNDS) + 1)
    for each in seconds:
        expected[bisect_left(BOUNDS, each)] += 1
    latencies = Latencies()
    for each in seconds:
        latencies.add(each)
    assert latencies.counts == expected


@pytest.mark.parametrize("bound", BOUNDS)
def test_a_time_that_is_a_bound_is_in_the_bucket_below_it(bound: float) -> None:
    latencies = Latencies()
    for each in (bound, math.nextafter(bound, math.inf), bound):
        latencies.add(each)
    number = BOUNDS.index(bound)
    assert (latencies.counts[number], latencies.counts[number + 1]) == (2, 1)


def test_a_message_is_counted_by_what_became_of_it() -> None:
    counters = Counters()
    for reply in (OK, OK, LOCAL_ERROR, MESSAGE_TOO_LARGE, MESSAGE_TOO_LARGE, MESSAGE_TOO_LARGE):
        counters.count_message(reply, recipients=3, size=100, seconds=0.5)
    snapshot = Stats.of(counters)
    assert (snapshot.messages_kept, snapshot.messages_deferred, snapshot.messages_refused) == (2, 1, 3)
    assert (snapshot.recipients, snapshot.octets_kept) == (6, 200)
    assert (snapshot.answers.count, snapshot.answers.seconds) == (6, 3.0)


def test_a_processor_is_counted_under_its_name() -> None:
    counters = Counters()
    counters.processor("Sql").latencies.add(0.25)
    counters.processor("Sql").latencies.add(0.75)
    counters.processor("Sql").errors += 1
    counters.processor("Hasher")
    found = Stats.of(counters).processors
    assert (found["Sql"].count, found["Sql"].errors, found["Sql"].latencies.mean) == (2, 1, 0.5)
    assert found["Hasher"] == ProcessorStats()


# Histograms


def test_the_buckets_go_from_ten_microseconds_to_a_minute_and_each_is_at_most_twice_the_one_before() -> None:
    assert (BOUNDS[0], BOUNDS[-1]) == (1e-05, 60.0)
    assert all(low < high <= 1.7 * low for low, high in pairwise(BOUNDS))


@given(durations)
def test_a_histogram_holds_everything_that_was_added(seconds: list[float]) -> None:
    found = histogram(seconds)
    assert found.count == len(seconds)
    assert math.isclose(found.seconds, math.fsum(seconds), abs_tol=1e-9)
    assert found.mean == (found.seconds / len(seconds) if seconds else 0.0)


@given(durations.filter(bool), st.floats(0, 1))
def test_a_quantile_is_in_the_bucket_of_the_true_one(seconds: list[float], q: float) -> None:
    true = sorted(seconds)[max(math.ceil(q * len(seconds)) - 1, 0)]
    number = bisect_left(BOUNDS, true)
    low = BOUNDS[number - 1] if number else 0.0
    high = BOUNDS[min(number, len(BOUNDS) - 1)]
    assert low <= histogram(seconds).quantile(q) <= high


@given(durations, st.floats(0, 1), st.floats(0, 1))
def test_a_higher_quantile_is_never_less(seconds: list[float], one: float, other: float) -> None:
    found = histogram(seconds)
    assert found.quantile(min(one, other)) <= found.quantile(max(one, other))


def test_inside_a_bucket_things_are_spread_evenly() -> None:
    found = histogram([2.5] * 4)  # in the bucket from 2 to 3 seconds
    assert [found.quantile(q) for q in (0, 0.25, 0.5, 1)] == [2.0, 2.25, 2.5, 3.0]


def test_what_took_longer_than_a_minute_is_told_as_a_minute() -> None:
    assert histogram([0.1, 1000.0]).quantile(1) == 60.0


def test_the_quantile_of_nothing_is_nothing() -> None:
    assert Histogram().quantile(0.99) == 0.0


@pytest.mark.parametrize("q", [-0.1, 1.1, 50, math.nan])
def test_a_quantile_that_is_none_is_refused(q: float) -> None:
    with pytest.raises(ValueError, match="meant: from 0 to 1"):
        Histogram().quantile(q)


@given(st.lists(durations, max_size=4))
def test_merged_histograms_are_the_histogram_of_everything(parts: list[list[float]]) -> None:
    merged = Histogram.merge(map(histogram, parts))
    whole = histogram([each for part in parts for each in part])
    assert merged.counts == whole.counts
    assert math.isclose(merged.seconds, whole.seconds, abs_tol=1e-9)


# Merging


@given(st.lists(stats, min_size=1, max_size=4))
def test_merged_statistics_are_sums_but_for_lag_and_time(parts: list[Stats]) -> None:
    merged = Stats.merge(parts)
    for field in fields(Stats):
        values = [getattr(part, field.name) for part in parts]
        if field.type == "_Count":
            assert getattr(merged, field.name) == sum(values)
    assert merged.loop_lag == max(part.loop_lag for part in parts)
    assert merged.loop_lag_max == max(part.loop_lag_max for part in parts)
    assert merged.started_at == min(part.started_at for part in parts)
    for key in {key for part in parts for key in part.replies}:
        assert merged.replies[key] == sum(part.replies.get(key, 0) for part in parts)
    for name in {name for part in parts for name in part.processors}:
        found = [part.processors[name] for part in parts if name in part.processors]
        assert merged.processors[name].errors == sum(each.errors for each in found)
        assert merged.processors[name].count == sum(each.count for each in found)


@given(stats)
def test_one_alone_merged_is_itself(one: Stats) -> None:
    assert replace(Stats.merge([one]), uptime=one.uptime) == one


@given(stats, stats, stats)
def test_it_makes_no_difference_in_which_order_statistics_are_merged(one: Stats, two: Stats, three: Stats) -> None:
    left = Stats.merge([Stats.merge([one, two]), three])
    right = Stats.merge([three, Stats.merge([two, one])])
    assert math.isclose(left.uptime, right.uptime, rel_tol=1e-6, abs_tol=1e-3)
    assert _without_sums_of_seconds(left) == _without_sums_of_seconds(right)


def _without_sums_of_seconds(stats: Stats) -> Stats:
    """Leave out what floating point rounds by the order of the parts."""
    return replace(
        stats,
        uptime=0.0,
        answers=replace(stats.answers, seconds=0.0),
        processors={
            name: replace(each, latencies=replace(each.latencies, seconds=0.0))
            for name, each in stats.processors.items()
        },
    )


def test_the_time_is_that_since_the_first_start() -> None:
    first = replace(some(), started_at=NOW, uptime=10.0)  # it has ended
    second = replace(some(), started_at=NOW + timedelta(seconds=15), uptime=5.0)
    assert Stats.merge([second, first]).uptime == 20.0


def test_to_merge_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="no statistics to merge"):
        Stats.merge([])


@given(stats)
def test_of_a_process_that_has_departed_what_only_grows_is_left(one: Stats) -> None:
    left = one.departed()
    momentary = {
        "processes",
        "connections_open",
        "queue_depth",
        "workers",
        "workers_busy",
        "memory_in_flight",
        "loop_lag",
        "loop_lag_max",
    }
    for field in fields(Stats):
        value = getattr(left, field.name)
        assert value == (0 if field.name in momentary else getattr(one, field.name))


# Travelling


@given(stats)
def test_statistics_are_the_same_after_a_way_through_json(one: Stats) -> None:
    assert Stats.from_dict(json.loads(json.dumps(one.as_dict()))) == one
    assert Stats.from_json(one.as_json()) == one


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"messages_kept": "1"}, "messages_kept"),
        ({"messages_kept": 1.0}, "messages_kept"),
        ({"messages_kept": True}, "messages_kept"),
        ({"messages_kept": -1}, "messages_kept"),
        ({"uptime": math.nan}, "uptime"),
        ({"uptime": -1.0}, "uptime"),
        ({"surprise": 1}, "surprise"),
        ({"replies": {"250": -1}}, "replies.250"),
        ({"answers": {"counts": [0], "seconds": 0.0}}, "answers.counts"),
        ({"answers": {"counts": [0] * (len(BOUNDS) + 2), "seconds": 0.0}}, "answers.counts"),
        ({"processors": {"Sql": {"errors": 0, "extra": 1}}}, "processors.Sql.extra"),
        ({"started_at": "2026-01-01T00:00:00"}, "started_at"),
        ({"started_at": "yesterday"}, "started_at"),
    ],
)
def test_what_is_no_statistics_is_refused_with_its_place(change: dict[str, Any], place: str) -> None:
    with pytest.raises(ValueError, match=f"these are no statistics: {place}: "):
        Stats.from_dict(some().as_dict() | change)


def test_what_is_missing_is_told() -> None:
    value = some().as_dict()
    del value["processes"]
    with pytest.raises(ValueError, match="these are no statistics: processes: "):
        Stats.from_dict(value)


@pytest.mark.parametrize("octets", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000])
def test_octets_that_are_no_statistics_are_refused(octets: bytes) -> None:
    with pytest.raises(ValueError, match="these are no statistics: the whole: "):
        Stats.from_json(octets)


def test_what_json_cannot_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="these are no statistics: "):
        Stats.from_dict({"started_at": NOW})
