"""Redis keeps bodies in a real server: 250 only for what it has confirmed, and nothing that was not answered 250."""

from __future__ import annotations

import asyncio
import itertools
import mmap
import os
import tempfile
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import Any, TypeAlias

import pytest
import structlog
from pydantic import ValidationError
from structlog.testing import LogCapture
from tests.private_servers import RedisServer

import guerrilla.processors.redis
import guerrilla.stores.redis
from guerrilla.backends.base import CallNext
from guerrilla.envelope import Address, Envelope
from guerrilla.processors.redis import Redis, RedisConfig
from guerrilla.smtp.replies import LOCAL_ERROR, OK, STORAGE_NOT_AVAILABLE, Reply

Store: TypeAlias = Callable[..., AbstractAsyncContextManager[Redis]]
KEY = "0" * 31 + "1"


async def following() -> Reply:
    return OK


async def refusing() -> Reply:
    return LOCAL_ERROR


@pytest.fixture
def server(redis: RedisServer) -> Iterator[RedisServer]:
    """Give a Redis that runs and is empty; what a test changed in its settings is forgotten."""
    redis.flush()
    yield redis
    redis.start()
    redis.command("CONFIG", "SET", "maxmemory", "0", "appendfsync", "always")


@pytest.fixture
def log() -> LogCapture:
    return LogCapture()


@pytest.fixture
def opened(server: RedisServer, log: LogCapture) -> Store:
    """Opens a store on the server; on leaving, shuts it down."""

    @asynccontextmanager
    async def open_store(**config: Any) -> AsyncIterator[Redis]:
        keys = {"redis_interface": server.address, "redis_expire_seconds": 7200} | config
        store = Redis(RedisConfig.model_validate(keys))
        store.log = structlog.wrap_logger(
            structlog.PrintLogger(), processors=[log], wrapper_class=structlog.make_filtering_bound_logger(0)
        )
        try:
            await store.initialize()
            yield store
        finally:
            await store.shutdown()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    return open_store


def mail(data: bytes | mmap.mmap = b"Subject: x\r\n\r\nHi.\r\n", number: int = 1, **changes: Any) -> Envelope:
    envelope = Envelope(
        mail_from=Address("s", "example.org"),
        rcpt_to=[Address("joe", "example.com")],
        queued_id="q" * 32,
        data=data,
        hashes=[f"{number:032}"],
    )
    return replace(envelope, **changes)


async def stored(server: RedisServer, key: str = KEY) -> bytes | None:
    """Read a key over a connection of its own."""
    bodies = guerrilla.stores.redis.RedisBodies(str(server.socket_path))
    try:
        return await bodies.get(key)
    finally:
        await bodies.close()


def keys(server: RedisServer) -> set[str]:
    return set(server.command("KEYS", "*").split())


async def waiting(*tasks: asyncio.Task[Reply]) -> None:
    """Let the tasks go as far as they can without the server."""
    for _ in range(200):
        await asyncio.sleep(0)
    assert not any(task.done() for task in tasks)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(bytes(range(256)) * 3, id="every octet, NUL and 8-bit included"),
        pytest.param(os.urandom(5_000_000), id="5 MB"),
    ],
)
async def test_octet_for_octet(opened: Store, server: RedisServer, data: bytes) -> None:
    """The value is delivery header and message as they are."""
    async with opened() as store:
        assert await store.save_mail(mail(data, delivery_header=b"D: x\r\n"), following) is OK
        assert await stored(server) == b"D: x\r\n" + data


async def test_memory_map(opened: Store, server: RedisServer) -> None:
    """A message on disk is stored as one in memory."""
    octets = os.urandom(2_000_000)
    with tempfile.TemporaryFile() as file:
        file.write(octets)
        file.flush()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            async with opened() as store:
                assert await store.save_mail(mail(data), following) is OK
    assert await stored(server) == octets


class ZlibStream:
    """What Compressor leaves behind, in its shape."""

    async def data(self) -> bytes:
        return zlib.compress(b"whole message")


async def test_compressed(opened: Store, server: RedisServer) -> None:
    """With Compressor before it, the compressed form is stored."""
    async with opened() as store:
        await store.save_mail(mail(b"x", values={"zlib-compressor": ZlibStream()}), following)
    assert await stored(server) == zlib.compress(b"whole message")


async def test_marks_the_envelope(opened: Store) -> None:
    """The next processor finds the mark for Sql, and the key as the queue id."""
    envelope = mail(hashes=["a" * 32, "b" * 32])
    seen = []

    async def look() -> Reply:
        seen.append((envelope.values, envelope.queued_id))
        return OK

    async with opened() as store:
        await store.save_mail(envelope, look)
    assert seen == [({"redis": "redis"}, "a" * 32)]


async def test_without_hasher(opened: Store, server: RedisServer) -> None:
    """Without Hasher in the line the key is the queue id, which stays."""
    envelope = mail(b"x", hashes=[])
    async with opened() as store:
        await store.save_mail(envelope, following)
    assert envelope.queued_id == "q" * 32
    assert await stored(server, "q" * 32) == b"x"


async def test_key_is_ours(opened: Store, server: RedisServer) -> None:
    """No key is made of what the client said."""
    evil = "x\r\n*1\r\n$8\r\nFLUSHALL\r\n"
    async with opened() as store:
        await store.save_mail(mail(evil.encode(), subject=evil, helo=evil, mail_from=Address(evil, evil)), following)
    assert keys(server) == {KEY}


async def test_expires(opened: Store, server: RedisServer) -> None:
    """The key lives as long as it is configured."""
    async with opened(redis_expire_seconds=1000) as store:
        await store.save_mail(mail(), following)
    assert 990 < int(server.command("TTL", KEY)) <= 1000


async def test_stored_before_passed_on(opened: Store, server: RedisServer) -> None:
    """When the next processor runs, another connection finds the body."""
    seen = []

    async def look() -> Reply:
        seen.append(await stored(server))
        return OK

    async with opened() as store:
        await store.save_mail(mail(b"x"), look)
    assert seen == [b"x"]


async def test_share_round_trips(opened: Store, server: RedisServer) -> None:
    """Messages that come at the same time share round trips, and all are there."""

    def reads() -> int:
        return int(server.command("INFO", "stats").partition("total_reads_processed:")[2].split()[0])

    async with opened() as store:
        before = reads()
        replies = await asyncio.gather(*(store.save_mail(mail(b"x", number), following) for number in range(200)))
        assert replies == [OK] * 200
        assert reads() - before < 40
    assert keys(server) == {f"{number:032}" for number in range(200)}


async def raising() -> Reply:
    raise ValueError("a bug")


async def cancelled() -> Reply:
    raise asyncio.CancelledError


@pytest.mark.parametrize(("rest", "error"), [(raising, ValueError), (cancelled, asyncio.CancelledError)])
async def test_undone_when_the_rest_raises(
    opened: Store, server: RedisServer, rest: CallNext, error: type[BaseException]
) -> None:
    """When the rest of the line raises or is cancelled, the key of the message goes, and no other."""
    async with opened() as store:
        await store.save_mail(mail(b"kept", 1), following)
        with pytest.raises(error):
            await store.save_mail(mail(b"lost", 2), rest)
    assert keys(server) == {KEY}


async def test_undone_when_the_rest_refuses(opened: Store, server: RedisServer) -> None:
    """When a later processor answers no, the key is gone before the answer is passed on."""
    async with opened() as store:
        await store.save_mail(mail(b"kept", 1), following)
        assert await store.save_mail(mail(b"lost", 2), refusing) is LOCAL_ERROR
        assert keys(server) == {KEY}


async def test_undo_in_an_outage(opened: Store, server: RedisServer) -> None:
    """When Redis is away in the moment of the undo, the answer is passed on, and the key goes when it is back."""

    async def killing() -> Reply:
        await asyncio.to_thread(server.kill)
        return LOCAL_ERROR

    async with opened() as store:
        assert await store.save_mail(mail(), killing) is LOCAL_ERROR
        await asyncio.to_thread(server.start)
        assert keys(server) == {KEY}
    assert keys(server) == set()


async def test_undo_cut_short(opened: Store, server: RedisServer) -> None:
    """When our time ends during the undo because the server hangs, we end too, and the key goes afterwards."""

    async def freezing() -> Reply:
        server.freeze()
        frozen.set()
        return LOCAL_ERROR

    frozen = asyncio.Event()
    async with opened() as store:
        saving = asyncio.create_task(store.save_mail(mail(), freezing))
        await frozen.wait()
        await waiting(saving)
        saving.cancel()
        await asyncio.wait((saving,))
        assert saving.cancelled()
        server.thaw()
    assert keys(server) == set()


async def test_failed_undo_is_logged(
    opened: Store, server: RedisServer, log: LogCapture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When we end before Redis is back, the operator reads how many keys are left to expire."""
    monkeypatch.setattr(guerrilla.stores.redis, "_CLOSE_SECONDS", 0.01)

    async def killing() -> Reply:
        await asyncio.to_thread(server.kill)
        return LOCAL_ERROR

    async with opened() as store:
        await store.save_mail(mail(), killing)
    assert [(entry["event"], entry["keys"]) for entry in log.entries] == [
        ("mail that was not accepted could not be deleted: it stays until it expires", 1)
    ]


async def test_cancelled_while_waiting(opened: Store, server: RedisServer) -> None:
    """A message whose time is over before its batch begins is not stored; those around it are."""
    async with opened() as store:
        tasks = [asyncio.create_task(store.save_mail(mail(b"x", number), following)) for number in range(4)]
        await asyncio.sleep(0)
        tasks[2].cancel()
        await asyncio.wait(tasks)
        assert [task.cancelled() for task in tasks] == [False, False, True, False]
    assert keys(server) == {f"{number:032}" for number in (0, 1, 3)}


async def test_cancelled_in_company(opened: Store, server: RedisServer) -> None:
    """A message whose time is over while its batch is under way goes again; the others of the batch stay."""
    async with opened() as store:
        await store.save_mail(mail(b"before", 0), following)
        server.freeze()
        tasks = [asyncio.create_task(store.save_mail(mail(b"x", number), following)) for number in (1, 2)]
        await waiting(*tasks)
        tasks[1].cancel()
        await waiting(tasks[0])
        server.thaw()
        assert await tasks[0] is OK
        assert tasks[1].cancelled()
    assert keys(server) == {f"{number:032}" for number in (0, 1)}


async def test_frozen(opened: Store, server: RedisServer) -> None:
    """While the server hangs, messages whose time is over free their workers; after it, mail is stored again.

    Of the messages that were given up none is there, be it that they had been sent or not.
    """
    async with opened() as store:
        await store.save_mail(mail(b"before", 0), following)
        server.freeze()
        for attempt in range(3):
            tasks = [
                asyncio.create_task(store.save_mail(mail(os.urandom(50_000), 100 + attempt * 50 + number), following))
                for number in range(50)
            ]
            await waiting(*tasks)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            assert all(task.cancelled() for task in tasks)
        server.thaw()
        assert await store.save_mail(mail(b"after", 1), following) is OK
        assert await stored(server) == b"after"
    assert keys(server) == {f"{number:032}" for number in (0, 1)}


async def test_killed_under_load(opened: Store, server: RedisServer) -> None:
    """What was answered 250 is there after a kill, octet for octet; what was not, is not.

    200 messages are under way at any time while the server is killed and started three times.
    """
    numbers = itertools.count()
    kept: dict[str, bytes] = {}
    refused = 0
    done = False

    async def client(store: Redis) -> None:
        nonlocal refused
        while not done:
            number = next(numbers)
            data = b"%d\r\n" % number * 100
            reply = await store.save_mail(mail(data, number), following)
            if reply is OK:
                kept[f"{number:032}"] = data
            else:
                assert reply is STORAGE_NOT_AVAILABLE
                refused += 1
                await up.wait()

    up = asyncio.Event()
    up.set()
    async with opened() as store:
        clients = [asyncio.create_task(client(store)) for _ in range(200)]
        for _ in range(3):
            already = len(kept)
            while len(kept) < already + 1000:
                await asyncio.sleep(0)
            up.clear()
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            up.set()
        done = True
        await asyncio.gather(*clients)
    assert refused
    assert keys(server) == set(kept)
    bodies = guerrilla.stores.redis.RedisBodies(server.address)
    assert {key: await bodies.get(key) for key in kept} == kept
    await bodies.close()


async def test_outage(opened: Store, server: RedisServer, log: LogCapture) -> None:
    """While Redis is away mail is answered 451, with the cause in the log, and the first one after it is stored."""
    async with opened() as store:
        await store.save_mail(mail(b"x", 0), following)
        await asyncio.to_thread(server.kill)
        for number in range(2, 4):
            assert await store.save_mail(mail(b"x", number), following) is STORAGE_NOT_AVAILABLE
        await asyncio.to_thread(server.start)
        assert await store.save_mail(mail(b"x", 1), following) is OK
    assert keys(server) == {f"{number:032}" for number in range(2)}
    assert {(entry["event"], entry["queued_id"]) for entry in log.entries} == {("the message was not stored", "q" * 32)}
    assert "Connect call failed" in log.entries[-1]["cause"]


async def test_away_at_the_start(opened: Store, server: RedisServer, log: LogCapture) -> None:
    """Redis need not be up when we start: a warning says so, and mail is stored when it is there."""
    await asyncio.to_thread(server.kill)
    async with opened() as store:
        assert await store.save_mail(mail(b"x", 2), following) is STORAGE_NOT_AVAILABLE
        await asyncio.to_thread(server.start)
        assert await store.save_mail(mail(b"x", 1), following) is OK
    assert (log.entries[0]["log_level"], log.entries[0]["event"], log.entries[0]["place"]) == (
        "warning",
        "Redis is away: mail is answered 451 until it is back",
        server.address,
    )


async def test_frozen_at_the_start(
    opened: Store, server: RedisServer, log: LogCapture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Redis that hangs does not keep us from starting."""
    monkeypatch.setattr(guerrilla.processors.redis, "_START_SECONDS", 0.01)
    server.freeze()
    async with opened() as store:
        server.thaw()
        assert await store.save_mail(mail(), following) is OK
    assert [entry["cause"] for entry in log.entries] == ["TimeoutError"]


async def test_out_of_memory(opened: Store, server: RedisServer, log: LogCapture) -> None:
    """A Redis without memory answers nothing but 451, and the operator reads why."""
    async with opened() as store:
        server.command("CONFIG", "SET", "maxmemory", "1")
        assert await store.save_mail(mail(), following) is STORAGE_NOT_AVAILABLE
        server.command("CONFIG", "SET", "maxmemory", "0")
        assert await store.save_mail(mail(), following) is OK
    assert [entry["cause"] for entry in log.entries] == ["command not allowed when used memory > 'maxmemory'."]


async def test_read_only(opened: Store, server: RedisServer, log: LogCapture) -> None:
    """A replica, after a failover the wrong way round, is an outage."""
    async with opened() as store:
        server.command("REPLICAOF", "127.0.0.1", "1")
        try:
            assert await store.save_mail(mail(), following) is STORAGE_NOT_AVAILABLE
        finally:
            server.command("REPLICAOF", "NO", "ONE")
        assert await store.save_mail(mail(), following) is OK
    assert [entry["cause"] for entry in log.entries] == ["You can't write against a read only replica."]


async def test_refused_alone(opened: Store, server: RedisServer) -> None:
    """A message that Redis refuses fails alone; those in its batch are stored."""
    server.command("ACL", "SETUSER", "narrow", "on", ">narrow", "~*1", "+@all")
    async with opened(redis_interface=f"redis://narrow:narrow@{server.address}") as store:
        replies = await asyncio.gather(*(store.save_mail(mail(b"x", number), following) for number in (1, 2, 11)))
    assert replies == [OK, STORAGE_NOT_AVAILABLE, OK]
    assert keys(server) == {f"{number:032}" for number in (1, 11)}


async def test_body_that_cannot_be_made(opened: Store, server: RedisServer) -> None:
    """What goes wrong with one message before it is sent is its own affair, and raised as it is."""

    class Broken:
        async def data(self) -> bytes:
            raise ValueError("a bug")

    async with opened() as store:
        broken = mail(b"x", 2, values={"zlib-compressor": Broken()})
        outcomes = await asyncio.gather(
            *(store.save_mail(envelope, following) for envelope in (mail(), broken)), return_exceptions=True
        )
        with pytest.raises(ValueError, match="a bug"):
            await store.save_mail(broken, following)
    assert outcomes[0] is OK
    assert isinstance(outcomes[1], ValueError)
    assert keys(server) == {KEY}


@pytest.mark.parametrize(
    ("url", "cause"),
    [
        ("redis://guerrilla:wrong@{0.address}", "invalid username-password pair or user is disabled."),
        ("redis://nobody:wrong@{0.address}", "invalid username-password pair or user is disabled."),
        ("unix://guerrilla:wrong@{0.socket_path}", "invalid username-password pair or user is disabled."),
        ("redis://{0.address}/99", "DB index is out of range"),
        ("unix://{0.socket_path}?db=99", "DB index is out of range"),
    ],
)
async def test_refused_at_the_start(opened: Store, server: RedisServer, url: str, cause: str) -> None:
    """A wrong user, password or database keeps us from starting, and is named without the password."""
    with pytest.raises(RuntimeError, match=cause) as caught:
        async with opened(redis_interface=url.format(server)):
            pass
    assert "wrong" not in str(caught.value)
    assert str(caught.value).startswith("redis_interface: ")


async def test_password_missing(opened: Store, server: RedisServer) -> None:
    """A server that wants a password, and is given none, keeps us from starting."""
    server.command("ACL", "SETUSER", "default", "resetpass", ">secret")
    try:
        with pytest.raises(RuntimeError, match="refuses us: Authentication required"):
            async with opened():
                pass
    finally:
        server.command("--user", "guerrilla", "--pass", server.password, "ACL", "SETUSER", "default", "nopass")


async def test_weak_server(opened: Store, server: RedisServer, log: LogCapture) -> None:
    """A server that may lose what it has confirmed is warned of once, at the start; a durable one is not."""
    async with opened() as store:
        await store.save_mail(mail(), following)
    assert log.entries == []
    server.command("CONFIG", "SET", "appendfsync", "no")
    async with opened() as store:
        await store.save_mail(mail(), following)
    assert [(entry["log_level"], entry["event"]) for entry in log.entries] == [
        ("warning", "this Redis may lose mail that was answered 250")
    ]
    assert log.entries[0]["cause"].startswith("appendfsync is no")


async def test_shutdown_without_a_start() -> None:
    """A store that was never started can be shut down, twice."""
    store = Redis(RedisConfig(redis_interface="127.0.0.1:1", redis_expire_seconds=1))
    await store.shutdown()
    await store.shutdown()


@pytest.mark.parametrize(
    ("key", "value", "meant"),
    [
        ("redis_interface", "localhost", "host:port is meant"),
        ("redis_interface", "http://localhost:6379", "host:port is meant"),
        ("redis_interface", 6379, "valid string"),
        ("redis_expire_seconds", 0, "greater than or equal to 1"),
        ("redis_expire_seconds", "7200", "valid integer"),
        ("redis_expire_seconds", 1e12, "valid integer"),
        ("redis_expire_seconds", 10**12, "less than or equal to"),
    ],
)
def test_bad_configuration(key: str, value: object, meant: str) -> None:
    """A value that cannot be meant is refused, with what is."""
    with pytest.raises(ValidationError, match=meant) as caught:
        RedisConfig.model_validate({"redis_interface": "127.0.0.1:6379", "redis_expire_seconds": 7200} | {key: value})
    assert [problem["loc"] for problem in caught.value.errors()] == [(key,)]


def test_required() -> None:
    """Both keys are required, as in the Go program."""
    with pytest.raises(ValidationError) as caught:
        RedisConfig.model_validate({})
    assert [problem["type"] for problem in caught.value.errors()] == ["missing"] * 2


def test_a_password_in_the_address_is_not_shown() -> None:
    assert "s3cret" not in repr(RedisConfig(redis_interface="redis://:s3cret@127.0.0.1:6379", redis_expire_seconds=1))
