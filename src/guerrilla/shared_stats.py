"""The statistics of all processes, in memory that they share.

Each process has a slot, and writes its snapshot into it about once a second; everybody can read all slots. Nobody waits
for anybody. A slot has two halves: a snapshot is written into the one that is not read, and then, with one store, that
one is the one to read. So a process that is killed while it writes leaves the snapshot before, and only a reader that
was passed by twice has to read again. A checksum tells what no order of the stores can promise.

What ended processes have counted is kept in one more slot, so that totals never go down.
"""

from __future__ import annotations

import mmap
import zlib
from dataclasses import replace
from typing import Final

from guerrilla.stats import Stats

SLOT_SIZE: Final = 65536
"""Octets of one snapshot, at most."""

_TRIES: Final = 100
_LINE: Final = 64
"""Octets in front of each slot, for its numbers; slots do not share a cache line."""
_TURN, _LENGTHS, _SUMS = 0, 1, 3
_NUMBERS: Final = _LINE // 8
_STRIDE: Final = _LINE + 2 * SLOT_SIZE


class SharedStats:
    """The slots of ``slots`` processes. Made by the supervisor before it forks, and inherited.

    Memory that nobody has written to costs nothing, so there may be more slots than processes.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        # In front: the turn of the supervisor; at the end: those who have departed.
        self._memory = mmap.mmap(-1, _STRIDE * (slots + 1) + _LINE)
        self._octets = memoryview(self._memory)
        self._numbers = self._octets.cast("Q")
        self._last: dict[int, Stats] = {}
        self._last_total: Stats | None = None

    def write(self, slot: int, stats: Stats) -> None:
        """Let others see this snapshot. Only the process whose slot it is may write.

        One that is too large goes without the numbers of the single processors.

        Raises:
            IndexError: if there is no such slot.
        """
        self._put(self._checked(slot), _encoded(stats))

    def clear(self, slot: int) -> None:
        """Forget a process that has ended, with all that it has counted. For the supervisor.

        Raises:
            IndexError: if there is no such slot.
        """
        self._forget(self._checked(slot))

    def retire(self, slot: int) -> None:
        """Clear the slot of a process that has ended, and keep what it has counted. For the supervisor.

        Raises:
            IndexError: if there is no such slot.
        """
        stats = self._get(self._checked(slot))
        if stats is None:
            self._forget(slot)
            return
        gone = self._get(self.slots)
        octets = _encoded(stats.departed() if gone is None else Stats.merge((gone, stats.departed())))
        self._numbers[0] += 1  # odd: between the two stores, readers would count something twice
        self._put(self.slots, octets)
        self._forget(slot)
        self._numbers[0] += 1

    def read_all(self) -> list[Stats]:
        """Return the last snapshot of each process that has written one."""
        return [stats for stats in map(self._get, range(self.slots)) if stats is not None]

    def total(self) -> Stats | None:
        """Return the numbers of all processes together, ended ones too; None before the first snapshot."""
        for _ in range(_TRIES):
            turn = self._numbers[0]
            found = [stats for stats in map(self._get, range(self.slots + 1)) if stats is not None]
            if turn % 2 == 0 and self._numbers[0] == turn:
                self._last_total = Stats.merge(found) if found else None
                break
        return self._last_total

    def close(self) -> None:
        """Give the memory back, as far as this process is concerned."""
        self._numbers.release()
        self._octets.release()
        self._memory.close()

    def _checked(self, slot: int) -> int:
        if not 0 <= slot < self.slots:
            raise IndexError(f"there is no slot {slot}; meant: 0 to {self.slots - 1}")
        return slot

    def _place(self, slot: int) -> tuple[int, int]:
        """Return where the numbers of the slot are, in numbers, and where its first half is, in octets."""
        start = _LINE + slot * _STRIDE
        return start // 8, start + _LINE

    def _put(self, slot: int, octets: bytes) -> None:
        numbers, halves = self._place(slot)
        turn = self._numbers[numbers + _TURN] + 1
        half = turn % 2
        start = halves + half * SLOT_SIZE
        self._octets[start : start + len(octets)] = octets
        self._numbers[numbers + _LENGTHS + half] = len(octets)
        self._numbers[numbers + _SUMS + half] = zlib.crc32(octets)
        self._numbers[numbers + _TURN] = turn

    def _forget(self, slot: int) -> None:
        numbers, _ = self._place(slot)
        turn = self._numbers[numbers + _TURN] + 1
        self._numbers[numbers + _LENGTHS + turn % 2] = 0
        self._numbers[numbers + _TURN] = turn
        self._last.pop(slot, None)

    def _get(self, slot: int) -> Stats | None:
        """Return what stands in a slot; when it cannot be read, what was read there last."""
        numbers, halves = self._place(slot)
        for _ in range(_TRIES):
            turn = self._numbers[numbers + _TURN]
            half = turn % 2
            length = self._numbers[numbers + _LENGTHS + half]
            checksum = self._numbers[numbers + _SUMS + half]
            start = halves + half * SLOT_SIZE
            octets = bytes(self._octets[start : start + length])
            if self._numbers[numbers + _TURN] != turn:
                continue
            if not length:
                self._last.pop(slot, None)
                return None
            if zlib.crc32(octets) == checksum:
                self._last[slot] = Stats.from_json(octets)
                return self._last[slot]
        return self._last.get(slot)


def _encoded(stats: Stats) -> bytes:
    octets = stats.as_json()
    return octets if len(octets) <= SLOT_SIZE else replace(stats, processors={}).as_json()
