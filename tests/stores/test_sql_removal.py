"""The Remover tries until what must go is gone, and says at the end what it had to leave."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from structlog.testing import LogCapture
from structlog.typing import FilteringBoundLogger

from guerrilla.stores.sql_database import Session
from guerrilla.stores.sql_removal import Removal, Remover

TRYING = "rows of mail that was not accepted cannot be removed: trying on"
LEFT = "rows of mail that was not accepted are left in the table"


class Away:
    """A database that is away as often as it is told, and remembers what it removed."""

    def __init__(self, times: int) -> None:
        self.times = times
        self.attempts: list[list[Removal]] = []

    async def remove(self, removals: Sequence[Removal]) -> None:
        self.attempts.append(list(removals))
        if len(self.attempts) <= self.times:
            raise OSError("away")


def removal(key: str, session: Session | None = None) -> Removal:
    return Removal([(key, "joe@example.com")], session)


async def test_removed(sql_log: FilteringBoundLogger, sql_records: LogCapture) -> None:
    """What is added is removed at once, with its session, and nobody has to read of it."""
    away = Away(0)
    remover = Remover(away.remove)
    remover.log = sql_log
    await remover.add(removal("a", Session(1, "x")))
    assert away.attempts == [[removal("a", Session(1, "x"))]]
    await remover.close()
    assert sql_records.entries == []


async def test_tried_again(sql_log: FilteringBoundLogger, sql_records: LogCapture) -> None:
    """It is tried again, with what was added meanwhile, whose adding does not wait; the outage is told once."""
    away = Away(2)
    remover = Remover(away.remove)
    remover.log = sql_log
    await remover.add(removal("a"))
    await remover.add(removal("b"))
    while len(away.attempts) < 3:
        await asyncio.sleep(0.01)
    assert away.attempts[1:] == [[removal("a"), removal("b")]] * 2
    await remover.close()
    assert [(entry["event"], entry["cause"], entry["hashes"]) for entry in sql_records.entries] == [
        (TRYING, "away", ["a"])
    ]


async def test_closed_while_away(sql_log: FilteringBoundLogger, sql_records: LogCapture) -> None:
    """At the end there is one last attempt, without a pause; what is left then is named."""
    away = Away(1000)
    remover = Remover(away.remove)
    remover.log = sql_log
    await remover.add(removal("a"))
    await remover.close()
    assert len(away.attempts) == 2
    assert [(entry["event"], entry["messages"]) for entry in sql_records.entries] == [(TRYING, 1), (LEFT, 1)]
    await remover.close()


async def test_full() -> None:
    """With a hundred thousand rows to remove it is full, so that nothing more need be added."""
    away = Away(1)
    remover = Remover(away.remove)
    await remover.add(Removal([("a", str(number)) for number in range(99_999)]))
    states = [remover.full]
    remover.add(removal("b"))
    states.append(remover.full)
    await remover.close()
    assert [*states, remover.full] == [False, True, False]
