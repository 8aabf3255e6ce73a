"""SqlStore reads back what SqlWriter wrote, octet for octet, whatever compression or store holds it."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime
from typing import Any

import pytest
import zstandard
from structlog.typing import FilteringBoundLogger
from tests.stores.sql_databases import EmptyDatabase, Letters

from guerrilla.envelope import Envelope
from guerrilla.processors.compressor import CompressedMail
from guerrilla.stores.base import MailStore, MailSummary
from guerrilla.stores.sql import SqlStore
from guerrilla.stores.sql_writer import SqlWriter


class Compressed:
    """What Compressor leaves behind, in its shape."""

    def __init__(self, data: bytes) -> None:
        self._data = zlib.compress(data)

    async def data(self) -> bytes:
        return self._data


class Bodies(dict[str, bytes]):
    """A Redis with what somebody else stored in it."""

    closed = 0

    async def get(self, key: str) -> bytes | None:  # type: ignore[override]
        return super().get(key)

    async def delete(self, keys: Iterable[str]) -> int:
        return sum(self.pop(key, None) is not None for key in keys)

    async def close(self) -> None:
        self.closed += 1


@pytest.fixture
async def writer(database: EmptyDatabase, sql_log: FilteringBoundLogger) -> AsyncIterator[SqlWriter]:
    writer = SqlWriter(database.settings())
    await writer.open(sql_log)
    yield writer
    await writer.close()


@pytest.fixture
def bodies() -> Bodies:
    return Bodies()


@pytest.fixture
async def store(database: EmptyDatabase, bodies: Bodies) -> AsyncIterator[SqlStore]:
    store = SqlStore(database.dsn, "new_mail", bodies)
    yield store
    await store.close()


async def keep(writer: SqlWriter, *envelopes: Envelope) -> None:
    for envelope in envelopes:
        async with await writer.keep(envelope) as kept:
            kept.confirm()


def test_is_a_mail_store(store: SqlStore) -> None:
    """It is what the console knows."""
    known: MailStore = store
    assert known is store


OCTETS = b"\0\xff" * 100_000 + b"'\\\r\n"


@pytest.mark.parametrize("data", [b"", b"Subject: x\r\n\r\n", OCTETS])
async def test_get(writer: SqlWriter, store: SqlStore, bodies: Bodies, letter: Letters, data: bytes) -> None:
    """The message comes back with its delivery header, plain, compressed, and from Redis in either form."""
    message = b"D: x\r\n" + data
    values: list[dict[str, Any]] = [
        {},
        {"zlib-compressor": Compressed(message)},
        {"redis": "redis"},
        {"redis": "redis", "zlib-compressor": Compressed(message)},
    ]
    envelopes = [letter(data, delivery_header=b"D: x\r\n", values=each) for each in values]
    bodies[envelopes[2].queued_id] = message
    bodies[envelopes[3].queued_id] = zlib.compress(message)
    await keep(writer, *envelopes)
    for envelope in envelopes:
        assert await store.get(envelope.queued_id) == message


@pytest.mark.parametrize("data", [b"", b"Subject: x\r\n\r\n", OCTETS])
async def test_get_zstd(writer: SqlWriter, store: SqlStore, bodies: Bodies, letter: Letters, data: bytes) -> None:
    """The message comes back from the zstd frame of Compressor, in the row and in Redis."""
    in_row, in_redis = (letter(data, delivery_header=b"D: x\r\n", values=each) for each in ({}, {"redis": "redis"}))
    in_row.values["zlib-compressor"] = CompressedMail(in_row, "zstd")
    bodies[in_redis.queued_id] = zstandard.compress(bytes(in_redis))
    await keep(writer, in_row, in_redis)
    for envelope in (in_row, in_redis):
        assert await store.get(envelope.queued_id) == b"D: x\r\n" + data


async def test_get_what_is_not_there(
    database: EmptyDatabase, writer: SqlWriter, store: SqlStore, letter: Letters
) -> None:
    """A key that is not there gives None, whatever it is; so does a body that Redis has let go, or no Redis at all."""
    envelope = letter(values={"redis": "redis"})
    await keep(writer, envelope)
    without = SqlStore(database.dsn, "new_mail")
    assert await without.get(envelope.queued_id) is None
    await without.close()
    for key in (envelope.queued_id, "", "x", "' OR 1=1 --", "\0\ud800", "%"):
        assert await store.get(key) is None


@pytest.mark.parametrize("surplus", ["0", "\0", "\ud800"])
async def test_a_key_that_no_column_holds(writer: SqlWriter, store: SqlStore, letter: Letters, surplus: str) -> None:
    """A key that is longer than the column, or has what it cannot hold, is no other message's key."""
    older, newer = letter(b"x"), letter(b"x")
    await keep(writer, older, newer)
    key = newer.queued_id + surplus
    assert await store.get(key) is None
    assert await store.list(before=key) == []
    assert not await store.delete(key)
    assert [summary.key for summary in await store.list()] == [newer.queued_id, older.queued_id]


async def test_list(writer: SqlWriter, store: SqlStore, letter: Letters) -> None:
    """The newest message comes first, with what is known of it; `before` goes on where the last page ended."""
    envelopes = [letter(b"x" * number, "ann", subject=f"Grüße {number}") for number in range(5)]
    await keep(writer, *envelopes)
    assert await store.list(limit=1) == [
        MailSummary(
            envelopes[4].queued_id,
            datetime(2024, 2, 3, 4, 5, 6, tzinfo=UTC),
            "s@example.org",
            "ann@example.com",
            "Grüße 4",
            4,
        )
    ]
    pages = [await store.list(limit=2)]
    while pages[-1]:
        pages.append(await store.list(limit=2, before=pages[-1][-1].key))
    keys = [envelope.queued_id for envelope in reversed(envelopes)]
    assert [[summary.key for summary in page] for page in pages] == [keys[:2], keys[2:4], keys[4:], []]
    assert await store.list(before="no such key") == []


async def test_list_of_one_key(writer: SqlWriter, store: SqlStore, letter: Letters) -> None:
    """Recipients who share a key are one message in the list, and several where each has a key."""
    await keep(writer, letter(b"x", "ann", "bob"), letter(b"x", "eve", "joe", hashes=["A" * 32, "B" * 32]))
    recipients = [summary.recipient.partition("@")[0] for summary in await store.list()]
    assert recipients == ["joe", "eve", "ann"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("ANN@", ["0"]),
        ("example.org", ["2", "1", "0"]),
        ("mx.example", ["2", "1", "0"]),
        ("50%", ["50% off_"]),
        ("f_", ["50% off_"]),
        ("_", ["50% off_"]),
        ("%", ["50% off_"]),
        ("/", []),
        ("\\", []),
        ("' OR 1=1 --", []),
        ("x\0\ud800", []),
    ],
)
async def test_search(writer: SqlWriter, store: SqlStore, letter: Letters, text: str, found: list[str]) -> None:
    """Text is found in sender, recipient and subject, without regard to case, as it is and not as a pattern."""
    await keep(writer, letter(b"x", "ann", subject="0"), letter(b"x", "bob", subject="1"))
    await keep(writer, letter(b"x", "bob", subject="50% off_" if found == ["50% off_"] else "2"))
    assert [summary.subject for summary in await store.search(text)] == found


async def test_search_of_several_recipients(writer: SqlWriter, store: SqlStore, letter: Letters) -> None:
    """A message is found by any of its recipients, and is there once."""
    await keep(writer, letter(b"x", "ann", "bob", "eve"))
    assert [summary.recipient for summary in await store.search("bob")] == ["bob@example.com"]
    assert len(await store.search("example.com")) == 1


async def test_delete(
    database: EmptyDatabase, writer: SqlWriter, store: SqlStore, bodies: Bodies, letter: Letters
) -> None:
    """A message goes for good, for all who share its key and from Redis too, and no other goes with it."""
    first, second, third = letter(b"x", "ann", "bob"), letter(b"x"), letter(b"x", values={"redis": "redis"})
    bodies[third.queued_id] = bodies["other"] = b"x"
    await keep(writer, first, second, third)
    assert await store.delete(first.queued_id)
    assert await store.delete(third.queued_id)
    assert not await store.delete(first.queued_id)
    assert not await store.delete("%")
    assert [summary.key for summary in await store.list()] == [second.queued_id]
    assert list(bodies) == ["other"]
    assert database.count() == 1


async def test_close(database: EmptyDatabase, bodies: Bodies) -> None:
    """It may be closed twice, and closes Redis."""
    store = SqlStore(database.dsn, "new_mail", bodies)
    await store.close()
    await store.close()
    assert bodies.closed == 2
