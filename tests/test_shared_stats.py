"""The snapshots of all processes can be read by all; a process that dies takes nothing back that it has counted."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pytest

from guerrilla.shared_stats import SLOT_SIZE, SharedStats
from guerrilla.stats import Histogram, ProcessorStats, Stats

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def stats(kept: int = 0, **processors: int) -> Stats:
    """A snapshot of one process with one open connection."""
    return Stats(
        started_at=NOW,
        uptime=1.0,
        processes=1,
        connections_open=1,
        messages_kept=kept,
        processors={name: ProcessorStats(errors, Histogram()) for name, errors in processors.items()},
    )


@pytest.fixture
def shared() -> Iterator[SharedStats]:
    shared = SharedStats(4)
    yield shared
    shared.close()


@contextlib.contextmanager
def child(body: Callable[[], None]) -> Iterator[int]:
    """Run the body in a child process, which is killed at the end if it lives still."""
    pid = os.fork()
    if not pid:
        try:
            body()
        finally:
            os._exit(0)
    try:
        yield pid
    finally:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def test_before_anything_was_written_there_is_nothing(shared: SharedStats) -> None:
    assert shared.read_all() == []
    assert shared.total() is None


def test_what_was_written_last_is_read(shared: SharedStats) -> None:
    for kept in range(5):
        shared.write(1, stats(kept))
        assert shared.read_all() == [stats(kept)]


def test_each_process_has_its_own_slot(shared: SharedStats) -> None:
    for slot in range(4):
        shared.write(slot, stats(slot))
    assert shared.read_all() == [stats(slot) for slot in range(4)]
    total = shared.total()
    assert total is not None
    assert (total.messages_kept, total.connections_open, total.processes) == (6, 4, 4)


@pytest.mark.parametrize("slot", [-1, 4])
def test_a_slot_that_does_not_exist_is_refused(shared: SharedStats, slot: int) -> None:
    with pytest.raises(IndexError, match="meant: 0 to 3"):
        shared.write(slot, stats())
    with pytest.raises(IndexError, match="meant: 0 to 3"):
        shared.clear(slot)
    with pytest.raises(IndexError, match="meant: 0 to 3"):
        shared.retire(slot)


def test_what_a_child_writes_is_read_by_its_parent(shared: SharedStats) -> None:
    with child(lambda: shared.write(2, stats(7))) as pid:
        assert os.waitpid(pid, 0) == (pid, 0)
        assert shared.read_all() == [stats(7)]


def test_while_a_child_writes_whole_snapshots_are_read_and_they_never_go_back(shared: SharedStats) -> None:
    def write() -> None:
        kept = 0
        while True:
            kept += 1
            # Of a length that changes, and with a number at the end that must agree with the one in front.
            shared.write(0, stats(kept, **{"x" * (kept % 5000): kept}))

    last, seen = 0, 0
    with child(write):
        while seen < 200:
            for found in shared.read_all():
                assert {each.errors for each in found.processors.values()} == {found.messages_kept}
                assert found.messages_kept >= last
                seen += found.messages_kept > last
                last = found.messages_kept


def test_a_child_that_is_killed_while_it_writes_leaves_a_snapshot_and_its_slot_can_be_used_again(
    shared: SharedStats,
) -> None:
    def write() -> None:
        kept = 0
        while True:
            kept += 1
            shared.write(0, stats(kept))

    gone = 0
    for _ in range(20):
        with child(write) as pid:
            while not shared.read_all():
                pass
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        (left,) = shared.read_all()
        gone += left.messages_kept
        shared.retire(0)
        total = shared.total()
        assert total is not None
        assert (total.messages_kept, total.connections_open, total.processes) == (gone, 0, 0)


def test_what_an_ended_process_has_counted_stays_in_the_total_and_what_is_of_the_moment_does_not(
    shared: SharedStats,
) -> None:
    shared.write(0, stats(5, Sql=1))
    shared.write(1, stats(7, Sql=2))
    shared.retire(0)
    shared.retire(0)  # nothing is counted twice
    shared.write(0, stats(1, Hasher=3))
    shared.retire(1)
    total = shared.total()
    assert total is not None
    assert (total.messages_kept, total.connections_open, total.processes) == (13, 1, 1)
    assert {name: each.errors for name, each in total.processors.items()} == {"Sql": 3, "Hasher": 3}
    assert shared.read_all() == [stats(1, Hasher=3)]


def test_a_slot_that_was_cleared_is_empty_and_counted_nowhere(shared: SharedStats) -> None:
    shared.write(0, stats(5))
    assert shared.read_all()
    shared.clear(0)
    assert shared.read_all() == []
    assert shared.total() is None


def test_the_total_never_goes_down_while_processes_end(shared: SharedStats) -> None:
    def live_and_end() -> None:
        while True:
            shared.write(0, stats(1))
            shared.retire(0)

    last, seen = 0, 0
    with child(live_and_end):
        while seen < 200:
            total = shared.total()
            kept = 0 if total is None else total.messages_kept
            assert kept >= last
            seen += kept > last
            last = kept


def test_a_reader_does_not_count_what_is_being_moved(shared: SharedStats) -> None:
    shared.write(0, stats(5))
    before = shared.total()
    shared._numbers[0] += 1  # the supervisor was stopped in the middle of it
    shared.write(0, stats(6))
    assert shared.total() == before


def test_a_snapshot_that_is_too_large_goes_without_its_processors(shared: SharedStats) -> None:
    shared.write(0, stats(7, **{"x" * SLOT_SIZE: 1}))
    assert shared.read_all() == [stats(7)]


def test_a_torn_snapshot_is_not_read_and_the_last_good_one_is(shared: SharedStats) -> None:
    shared.write(0, stats(7))
    assert shared.read_all() == [stats(7)]
    shared.write(0, stats(8))
    numbers, halves = shared._place(0)
    start = halves + (shared._numbers[numbers] % 2) * SLOT_SIZE
    shared._octets[start + 5] ^= 1
    assert shared.read_all() == [stats(7)]


def test_a_length_beyond_the_slot_is_not_believed(shared: SharedStats) -> None:
    shared.write(0, stats(7))
    numbers, _ = shared._place(0)
    shared._numbers[numbers + 1 + shared._numbers[numbers] % 2] = 2**63
    assert shared.read_all() == []
