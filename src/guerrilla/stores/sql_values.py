"""What a driver takes for the values of a row. It is compiled: this is done for each message that a database keeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias

Row: TypeAlias = list[Any]
"""The values of one row, in the order of the columns."""

Adapter: TypeAlias = Callable[[Any], Any]

_FIRST: Final = datetime.min.replace(tzinfo=UTC)
_LAST: Final = datetime.max.replace(tzinfo=UTC)
COPIED: Final = 1 << 16
"""Octets below which to copy them takes less time than to have SQLite's driver look for what adapts bytes."""


class Adapters:
    """Makes of values what a driver takes; of ``adapters`` there is one for each column, None where it takes them."""

    __slots__ = ("_adapters",)

    def __init__(self, adapters: Sequence[Adapter | None]) -> None:
        self._adapters = [(at, each) for at, each in enumerate(adapters) if each is not None]

    def of_row(self, row: Row) -> tuple[Any, ...]:
        """Return what is bound to the placeholders for one row."""
        return tuple(self.of_rows([row]))

    def of_rows(self, rows: Sequence[Row]) -> list[Any]:
        """Return what is bound to the placeholders for several rows, one after the other."""
        values: list[Any] = []
        for row in rows:
            begin = len(values)
            values += row
            for at, adapt in self._adapters:
                values[begin + at] = adapt(values[begin + at])
        return values


class Moments:
    """Writes moments as SQLAlchemy does for SQLite. It remembers the latest second: much mail comes in one."""

    __slots__ = ("_begin", "_end", "_written")

    def __init__(self) -> None:
        self._begin, self._end = _LAST, _FIRST  # nothing is between them yet
        self._written = ""

    def write(self, moment: datetime) -> str:
        """Return the moment, which is in UTC, as text that does not say so."""
        if not self._begin <= moment <= self._end:
            self._written = without_zone(moment).isoformat(" ", "seconds")
            self._begin = moment.replace(microsecond=0)
            self._end = moment.replace(microsecond=999_999)
        return f"{self._written}.{str(1_000_000 + moment.microsecond)[1:]}"  # {:06} takes twice as long


def without_zone(moment: datetime) -> datetime:
    """Return a moment in UTC as the column has it: it does not say so there."""
    return datetime.combine(moment.date(), moment.time())  # replace(tzinfo=None) takes six times as long


def octets(value: bytes | bytearray) -> bytes | bytearray:
    """Return octets as SQLite's driver takes them in the least time."""
    return value if isinstance(value, bytearray) or len(value) >= COPIED else bytearray(value)
