"""RedisBodies keeps bodies in a real Redis: what it confirmed is there, and what it gave up is not."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from redis.asyncio import SSLConnection
from redis.exceptions import AuthenticationError, NoPermissionError, OutOfMemoryError, RedisError, ResponseError
from tests.private_servers import RedisServer
from tests.private_servers.process import free_port

import guerrilla.stores.redis
from guerrilla.stores.redis import RedisBodies, parse_interface


@pytest.fixture
def server(redis: RedisServer) -> RedisServer:
    """Give a Redis that runs and is empty."""
    redis.flush()
    return redis


@pytest.fixture
async def opened(server: RedisServer) -> AsyncIterator[Callable[..., RedisBodies]]:
    """Opens a store; after the test, when the server runs, all of them are closed and have left nothing undone."""
    stores: list[RedisBodies] = []

    def open_store(interface: str = "") -> RedisBodies:
        stores.append(RedisBodies(interface or server.address))
        return stores[-1]

    yield open_store
    await asyncio.to_thread(server.start)
    assert [await store.close() for store in stores] == [0] * len(stores)
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.fixture
def configured(server: RedisServer) -> Iterator[Callable[..., None]]:
    """Changes the server's settings until the end of the test: ``configured("maxmemory", "1000")``."""
    before: dict[str, str] = {}

    def configure(*settings: str) -> None:
        for name in settings[::2]:
            before.setdefault(name, server.command("CONFIG", "GET", name).split("\n")[1])
        server.command("CONFIG", "SET", *settings)

    yield configure
    if before:
        server.start()
        server.command("CONFIG", "SET", *(word for setting in before.items() for word in setting))


def statistic(server: RedisServer, section: str, name: str) -> int:
    for line in server.command("INFO", section).split("\n"):
        if line.startswith(f"{name}:"):
            return int(line.rstrip("\r").rpartition(":")[2])
    raise LookupError(name)


async def until_gone(server: RedisServer, key: str) -> None:
    async with asyncio.timeout(20):
        while await asyncio.to_thread(server.command, "EXISTS", key) != "0\n":
            pass


async def begun(call: asyncio.Task[object]) -> None:
    """Let the call go as far as it can without the server."""
    for _ in range(100):
        await asyncio.sleep(0)
    assert not call.done()


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(bytes(range(256)) * 3, id="every octet"),
        pytest.param(b"\r\n$3\r\nfoo\r\n*1\r\n", id="what looks like the protocol"),
        pytest.param(os.urandom(5_000_000), id="5 MB"),
    ],
)
async def test_octet_for_octet(opened: Callable[..., RedisBodies], body: bytes) -> None:
    """A body comes back as it was."""
    store = opened()
    assert await store.set_many([("key", body)], 100) == [None]
    assert await store.get("key") == body


async def test_nothing(opened: Callable[..., RedisBodies]) -> None:
    """A key that is not there is None, and deleting says how many were there."""
    store = opened()
    await store.set_many([("a", b"1"), ("b", b"2")], 100)
    assert await store.get("c") is None
    assert await store.delete(["a", "b", "c"]) == 2
    assert await store.get("a") is None


@pytest.mark.parametrize("password", [False, True])
@pytest.mark.parametrize("over", ["tcp", "socket"])
async def test_url(opened: Callable[..., RedisBodies], server: RedisServer, over: str, password: bool) -> None:
    """A URL says server, user, password and database; the password is not in the place that is logged."""
    store = opened(server.url(3, over="tcp" if over == "tcp" else "socket", password=password))
    await store.set_many([("key", b"body")], 100)
    assert server.command("-n", "3", "GET", "key") == "body\n"
    assert server.command("-n", "0", "EXISTS", "key") == "0\n"
    assert store.place == (server.address if over == "tcp" else str(server.socket_path))


@pytest.mark.parametrize("form", ["{0.address}", "{0.socket_path}", "unix:{0.socket_path}", "unix://{0.socket_path}"])
async def test_plain_interface(opened: Callable[..., RedisBodies], server: RedisServer, form: str) -> None:
    """host:port and the path of a socket stand for database 0."""
    await opened(form.format(server)).set_many([("key", b"body")], 100)
    assert server.command("GET", "key") == "body\n"


async def test_tls(opened: Callable[..., RedisBodies], server: RedisServer, configured: Callable[..., None]) -> None:
    """rediss:// is TLS, with a certificate that is checked."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "redis.test")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(server.host))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = server.folder / "cert.pem", server.folder / "key.pem"
    files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    port = free_port()
    settings = {
        "tls-cert-file": files[0], "tls-key-file": files[1], "tls-ca-cert-file": files[0], "tls-auth-clients": "no",
    }  # fmt: skip
    configured(*(str(word) for setting in settings.items() for word in setting))
    server.command("CONFIG", "SET", "tls-port", str(port))
    try:
        store = opened(f"rediss://{server.host}:{port}/1?ssl_ca_certs={files[0]}")
        await store.set_many([("key", b"body" * 1_000_000)], 100)
        assert await store.get("key") == b"body" * 1_000_000
        with pytest.raises(RedisError, match="certificate verify failed"):
            await opened(f"rediss://{server.host}:{port}").get("key")
    finally:
        server.command("CONFIG", "SET", "tls-port", "0")


@pytest.mark.parametrize("over", ["tcp", "socket"])
async def test_wrong_password(opened: Callable[..., RedisBodies], server: RedisServer, over: str) -> None:
    """A wrong password is refused, again at the next call."""
    url = server.url(over="tcp" if over == "tcp" else "socket", password=True)
    store = opened(url.replace("guerrilla:", "guerrilla:x"))
    for _ in range(2):
        with pytest.raises(AuthenticationError, match="invalid username-password pair"):
            await store.get("key")


@pytest.mark.parametrize("over", ["tcp", "socket"])
async def test_wrong_database(opened: Callable[..., RedisBodies], server: RedisServer, over: str) -> None:
    """A database that there is not is refused, again at the next call: nothing goes to database 0 instead."""
    store = opened(server.url(99, over="tcp" if over == "tcp" else "socket"))
    for _ in range(2):
        with pytest.raises(ResponseError, match="DB index is out of range"):
            await store.set_many([("key", b"body")], 100)
    assert server.command("EXISTS", "key") == "0\n"


async def test_expires(opened: Callable[..., RedisBodies], server: RedisServer) -> None:
    """Every key has its time to live from the beginning."""
    await opened().set_many([("a", b"1"), ("b", b"2")], 7200)
    assert {server.command("TTL", key) for key in "ab"} <= {"7200\n", "7199\n", "7198\n"}


async def test_one_round_trip(opened: Callable[..., RedisBodies], server: RedisServer) -> None:
    """Many bodies leave together: the server reads far less often than it is told to set."""
    store = opened()
    await store.set_many([("first", b"")], 100)
    before = statistic(server, "stats", "total_reads_processed")
    await store.set_many([(f"{number}", b"x" * 100) for number in range(32)], 100)
    assert statistic(server, "stats", "total_reads_processed") - before < 10
    assert server.command("DBSIZE") == "33\n"


async def test_refused_alone(opened: Callable[..., RedisBodies], server: RedisServer) -> None:
    """What the server refuses fails alone; the others are stored, and the connection stays in step."""
    server.command("ACL", "SETUSER", "narrow", "on", ">narrow", "~good*", "+@all")
    store = opened(f"redis://narrow:narrow@{server.address}")
    refusals = await store.set_many([("good1", b"1"), ("bad", b"2"), ("good2", b"3")], 100)
    assert [type(refusal) for refusal in refusals] == [type(None), NoPermissionError, type(None)]
    assert await store.get("good2") == b"3"
    with pytest.raises(NoPermissionError):
        await store.get("bad")
    with pytest.raises(NoPermissionError):
        await store.delete(["bad"])


async def test_out_of_memory(
    opened: Callable[..., RedisBodies], server: RedisServer, configured: Callable[..., None]
) -> None:
    """A body for which there is no memory is refused, and taken when there is."""
    store = opened()
    configured("maxmemory", str(statistic(server, "memory", "used_memory") + 4_000_000))
    body = b"x" * 20_000_000
    assert [type(refusal) for refusal in await store.set_many([("big", body)], 100)] == [OutOfMemoryError]
    configured("maxmemory", "0")
    assert await store.set_many([("big", body)], 100) == [None]


async def test_cut_short(opened: Callable[..., RedisBodies], server: RedisServer) -> None:
    """The answer to a call that was cancelled is nobody's: its connection is closed, the next call gets its own."""
    store = opened()
    await store.set_many([("a", b"of a"), ("b", b"of b")], 100)
    connections = statistic(server, "stats", "total_connections_received")
    server.freeze()
    call = asyncio.create_task(store.get("a"))
    await begun(call)
    call.cancel()
    await asyncio.wait((call,))
    assert call.cancelled()
    server.thaw()
    assert await store.get("b") == b"of b"
    clients = statistic(server, "stats", "total_connections_received") - connections
    assert clients >= 2  # that of the second call, and of the program that asks


@pytest.mark.parametrize("size", [10, 1_000_000])
async def test_cancelled_while_frozen(opened: Callable[..., RedisBodies], server: RedisServer, size: int) -> None:
    """A batch that is given up while the server hangs leaves nothing, however much of it had been sent.

    Others are served before that is done.
    """
    store = opened()
    await store.set_many([("before", b"1")], 100)
    server.freeze()
    call = asyncio.create_task(store.set_many([(f"lost{number}", b"x" * size) for number in range(32)], 1000))
    await begun(call)
    call.cancel()
    await asyncio.wait((call,))
    assert call.cancelled()
    server.thaw()
    assert await store.get("before") == b"1"
    assert await store.set_many([("after", b"2")], 100) == [None]
    assert await store.close() == 0
    assert set(server.command("KEYS", "*").split()) == {"before", "after"}


async def test_forsaken_too_long(
    opened: Callable[..., RedisBodies], server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that does not come is not waited for without end: the connection is closed, the keys are deleted."""
    monkeypatch.setattr(guerrilla.stores.redis, "_FORSAKEN_SECONDS", 0.01)
    store = opened()
    await store.set_many([("before", b"1")], 100)
    server.freeze()
    call = asyncio.create_task(store.set_many([("lost", b"2")], 1000))
    await begun(call)
    call.cancel()
    await asyncio.wait((call,))
    while "_forsake" in {task.get_coro().__name__ for task in asyncio.all_tasks()}:  # type: ignore[union-attr]
        await asyncio.sleep(0)
    server.thaw()
    assert await store.close() == 0
    assert server.command("KEYS", "*") == "before\n"


async def test_killed_and_back(opened: Callable[..., RedisBodies], server: RedisServer) -> None:
    """When the server is gone calls fail at once, and the first call after its return is served."""
    store = opened()
    await store.set_many([("key", b"body")], 100)
    await asyncio.to_thread(server.kill)
    for _ in range(2):
        with pytest.raises(RedisError):
            await store.get("key")
    await asyncio.to_thread(server.start)
    assert await store.get("key") == b"body"


async def test_killed_while_storing(opened: Callable[..., RedisBodies], server: RedisServer) -> None:
    """When the connection is lost before the answer, the call fails, and what was stored all the same is deleted."""
    store = opened()
    await store.set_many([("before", b"1")], 100)
    server.freeze()
    call = asyncio.create_task(store.set_many([("lost", b"2")], 100))
    await begun(call)
    await asyncio.to_thread(server.kill)
    with pytest.raises(RedisError):
        await call
    await asyncio.to_thread(server.start)
    server.command("SET", "lost", "as if it had been stored before the kill")
    await until_gone(server, "lost")
    assert server.command("KEYS", "*") == "before\n"


async def test_void(opened: Callable[..., RedisBodies], server: RedisServer) -> None:
    """What is to be deleted while the server is away is deleted when it is back."""
    store = opened()
    await store.set_many([(f"{number}", b"x") for number in range(3000)], 100)
    await asyncio.to_thread(server.kill)
    store.void(f"{number}" for number in range(2999))
    with pytest.raises(RedisError):
        await store.get("1")
    await asyncio.to_thread(server.start)
    await until_gone(server, "1")
    assert await store.close() == 0
    assert server.command("KEYS", "*") == "2999\n"


async def test_close_gives_up(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing ends while the server is away, and says how many keys are left; a second time there is nothing to do."""
    monkeypatch.setattr(guerrilla.stores.redis, "_CLOSE_SECONDS", 0.01)
    store = RedisBodies(server.address)
    await store.set_many([("a", b"x")], 100)
    await asyncio.to_thread(server.kill)
    store.void(["a", "b"])
    assert await store.close() == 2
    assert await store.close() == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_close_while_frozen(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing ends while the server hangs, with calls that nobody waits for and keys to delete under way."""
    monkeypatch.setattr(guerrilla.stores.redis, "_CLOSE_SECONDS", 0.01)
    store = RedisBodies(server.address)
    await store.set_many([("a", b"x")], 100)
    server.freeze()
    call = asyncio.create_task(store.set_many([("b", b"x")], 100))
    await begun(call)
    call.cancel()
    store.void(["a"])
    with suppress(asyncio.CancelledError):
        await call
    assert await store.close() == 2
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_void_is_bounded(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more keys than may wait, the oldest are given up, and counted."""
    monkeypatch.setattr(guerrilla.stores.redis, "_CLOSE_SECONDS", 0.01)
    monkeypatch.setattr(guerrilla.stores.redis, "_MAX_VOID", 10)
    await asyncio.to_thread(server.kill)
    store = RedisBodies(server.address)
    store.void(f"{number}" for number in range(25))
    assert len(store._to_void) == 10
    assert await store.close() == 25


async def test_more_calls_than_connections(opened: Callable[..., RedisBodies], server: RedisServer) -> None:
    """Calls wait for one of four connections, and each gets its own answer."""
    store = opened()
    await store.set_many([(f"{number}", b"%d" % number) for number in range(100)], 100)
    assert await asyncio.gather(*(store.get(f"{number}") for number in range(100))) == [b"%d" % n for n in range(100)]
    assert server.command("CLIENT", "LIST").count(f"laddr={server.address}") == 4


@pytest.mark.parametrize(
    ("settings", "weakness"),
    [
        ((), []),
        (("appendfsync", "everysec"), []),
        (("appendfsync", "no"), ["appendfsync is no: mail of the last half minute does not outlive the machine"]),
        (("appendonly", "no"), ["appendonly is no: mail does not outlive the server"]),
        (("maxmemory-policy", "allkeys-lru"), []),
        (
            ("maxmemory-policy", "volatile-lru", "maxmemory", "100000000"),
            ["maxmemory-policy is volatile-lru: mail goes when the memory is full"],
        ),
    ],
)
async def test_weaknesses(
    opened: Callable[..., RedisBodies], configured: Callable[..., None], settings: tuple[str, ...], weakness: list[str]
) -> None:
    """A server that may lose what it has confirmed is known by its settings."""
    if settings:
        configured(*settings)
    assert await opened().weaknesses() == weakness


async def test_weaknesses_untold(opened: Callable[..., RedisBodies], server: RedisServer) -> None:
    """Where CONFIG is forbidden, nothing is said."""
    server.command("ACL", "SETUSER", "plain", "on", ">plain", "~*", "+set", "+get", "+del")
    assert await opened(f"redis://plain:plain@{server.address}").weaknesses() == []


@pytest.mark.parametrize(
    ("interface", "options"),
    [
        ("127.0.0.1:6379", {"host": "127.0.0.1", "port": 6379}),
        ("redis.example.com:1", {"host": "redis.example.com", "port": 1}),
        ("[::1]:65535", {"host": "::1", "port": 65535}),
        ("/run/redis.sock", {"path": "/run/redis.sock"}),
        ("unix:/run/redis.sock", {"path": "/run/redis.sock"}),
        ("unix:///run/a%20b.sock?db=2", {"path": "/run/a b.sock", "db": 2}),
        ("unix://:p%40ss@/run/redis.sock", {"path": "/run/redis.sock", "password": "p@ss"}),
        ("redis://", {"host": "localhost", "port": 6379}),
        ("redis://h/", {"host": "h", "port": 6379}),
        ("redis://u:p%2Fw@h:1/2", {"host": "h", "port": 1, "username": "u", "password": "p/w", "db": 2}),
        ("redis://[::1]:1?client_name=x", {"host": "::1", "port": 1, "client_name": "x"}),
    ],
)
def test_interface(interface: str, options: dict[str, object]) -> None:
    """Each form says where Redis is."""
    found = parse_interface(interface)
    found.pop("connection_class")
    assert found == options


def test_tls_interface() -> None:
    """rediss:// takes the options that redis-py has for TLS."""
    found = parse_interface("rediss://h?ssl_ca_certs=/ca.pem&ssl_check_hostname=false")
    assert found["connection_class"] is SSLConnection
    assert (found["ssl_ca_certs"], found["ssl_check_hostname"]) == ("/ca.pem", False)


@pytest.mark.parametrize(
    ("interface", "meant"),
    [
        ("", "host:port is meant"),
        ("localhost", "host:port is meant"),
        (":6379", "host:port is meant"),
        ("h:0", "host:port is meant"),
        ("h:65536", "host:port is meant"),
        ("h:6379\n", "host:port is meant"),
        ("h:٣", "host:port is meant"),
        ("::1:6379", "host:port is meant"),
        ("run/redis.sock", "host:port is meant"),
        ("/run/\0", "host:port is meant"),
        ("http://h:6379", "host:port is meant"),
        ("redis://h:secret", "host:port is meant"),
        ("redis://:sec#ret@h:1", "host:port is meant"),
        ("redis://[::1:1", "host:port is meant"),
        ("redis://h?db=secret", "host:port is meant"),
        ("redis://h/secret", "number of a database"),
        ("redis://h/1/2", "number of a database"),
        ("redis://h?decode_responses=secret", "unknown option, decode_responses"),
        ("redis://h?retry_on_timeout=secret", "unknown option, retry_on_timeout"),
        ("redis://h?ssl_ca_certs=secret", "without rediss://"),
        ("rediss://h?ssl_secret=1", "bad value"),
        ("rediss://h?ssl_cert_reqs=secret", "bad value"),
        ("unix://run/redis.sock", "three slashes"),
        ("unix://", "three slashes"),
    ],
)
def test_bad_interface(interface: str, meant: str) -> None:
    """What cannot be meant is refused with what is, and without what may be a password."""
    with pytest.raises(ValueError, match=meant) as caught:
        parse_interface(interface)
    assert "secret" not in str(caught.value).replace("ssl_secret", "")
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
