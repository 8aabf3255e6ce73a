"""Redis as a store of bodies: one key for each message, which expires by itself.

Only what talks to Redis is here; what is stored, and what a client is answered, is for the processors to say. Of
redis-py we use the connections and their pool, not its client, which tries again by itself: whether a SET that was
sent has been done is not known when the connection is lost, and must not be guessed.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine, Iterable, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

from redis.asyncio import BlockingConnectionPool, Connection, UnixDomainSocketConnection
from redis.asyncio.connection import AbstractConnection, ConnectionPoolInterface, parse_url
from redis.exceptions import RedisError, ResponseError

_Command: TypeAlias = tuple[str | bytes | int, ...]

_MEANT: Final = "host:port is meant, the path of a Unix socket, or a URL: redis://, rediss:// (TLS) or unix://"

_TCP = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s\[\]:/@?#]+):([0-9]{1,5})")
_UNIX = re.compile(r"(?:unix:)?(/[^\0]+)")
_DATABASE = re.compile(r"/?|/[0-9]{1,9}")
_URL_OPTIONS = frozenset({"connection_class", "host", "port", "path", "db", "username", "password", "client_name"})
"""What a URL may say, besides ``ssl_…``: other options of redis-py would try again, decode or cut short."""

_CONNECTIONS: Final = 4
"""At most so many, and so many batches in memory. One is busy with a batch; the others are for what is taken back, and
for calls that nobody waits for any more."""

_CONNECT_SECONDS: Final = 5.0
_FORSAKEN_SECONDS: Final = 60.0
"""How long the answer to a SET is waited for when its caller has gone."""
_VOID_SECONDS: Final = 10.0
"""How long the background may take to delete some keys before it begins anew, on another connection."""
_PAUSE_SECONDS: Final = 1.0
_CLOSE_SECONDS: Final = 5.0
_MAX_VOID: Final = 100_000
"""Keys that may wait to be deleted; they are some 100 octets each."""


class _UnixConnection(UnixDomainSocketConnection):
    """A connection over a Unix socket that is as strict as one over TCP.

    redis-py's own shakes hands twice, and when the first time fails (a database that there is not) it stays open and
    is used all the same.
    """

    async def _connect(self) -> None:
        async with asyncio.timeout(self.socket_connect_timeout):
            self._reader, self._writer = await asyncio.open_unix_connection(path=self.path)


def parse_interface(interface: str) -> dict[str, Any]:
    """Return how to connect, as the arguments of redis-py's pool.

    ``127.0.0.1:6379``, ``[::1]:6379``; ``/run/redis.sock``, ``unix:/run/redis.sock``;
    ``redis://user:password@host:6379/2``, ``rediss://…?ssl_ca_certs=/path``, ``unix://:password@/run/redis.sock?db=2``.

    Raises:
        ValueError: if it is none of these. The text does not repeat it: there may be a password in it.
    """
    if "://" in interface:
        return _parse_url(interface)
    if unix := _UNIX.fullmatch(interface):
        return {"connection_class": _UnixConnection, "path": unix[1]}
    if (tcp := _TCP.fullmatch(interface)) and 0 < int(tcp[2]) < 65536:
        return {"connection_class": Connection, "host": tcp[1].strip("[]"), "port": int(tcp[2])}
    raise ValueError(_MEANT)


def _parse_url(url: str) -> dict[str, Any]:
    try:
        parts = urlsplit(url)
        options: dict[str, Any] = dict(parse_url(url))
    except ValueError:
        raise ValueError(_MEANT) from None
    for name in options:
        if name not in _URL_OPTIONS and not name.startswith("ssl_"):
            raise ValueError(f"the URL has an unknown option, {name}")
    kind: type[AbstractConnection] = options.pop("connection_class", Connection)
    if parts.scheme == "unix":
        kind = _UnixConnection
        if parts.hostname or "path" not in options:
            raise ValueError("three slashes are meant: unix:///path")
    else:
        options = {"host": "localhost", "port": 6379} | options
        if not _DATABASE.fullmatch(parts.path):
            raise ValueError("the number of a database is meant after the last slash of the URL")
    try:
        kind(**options)
    except (TypeError, ValueError, RedisError):
        meant = "an option of the URL has a bad value, or begins with ssl_ without rediss://"
        raise ValueError(meant) from None
    return {"connection_class": kind, **options}


class RedisBodies:
    """Bodies of messages in Redis, each under its key: a few connections, made when they are needed.

    A connection that was lost is made anew at the next call. A call that is cancelled never leaves its answer to the
    next one. There is no time limit but the caller's, save for five seconds to connect.

    Every method but ``void`` and ``close`` raises RedisError when Redis is away or refuses.
    """

    def __init__(self, interface: str) -> None:
        """Connect to nothing yet. Raises ValueError as ``parse_interface`` does."""
        options = parse_interface(interface)
        self.place: str = options.get("path") or f"{options['host']}:{options['port']}"
        """Where Redis is, without the password: for the log."""
        self._pool: ConnectionPoolInterface = BlockingConnectionPool(
            max_connections=_CONNECTIONS,
            timeout=None,
            socket_timeout=None,
            socket_connect_timeout=_CONNECT_SECONDS,
            protocol=2,  # every Redis speaks it, and asks for no handshake
            **options,
        )
        self._to_void: dict[str, None] = {}
        self._voiding = False
        self._given_up = 0
        self._tasks: set[asyncio.Task[Any]] = set()

    async def weaknesses(self) -> list[str]:
        """Return why this server may lose what it has confirmed, as far as it tells: CONFIG may be forbidden."""
        names = ("appendonly", "appendfsync", "maxmemory", "maxmemory-policy")
        answers = await self._ask([("CONFIG", "GET", name) for name in names])
        settings = {
            name: answer[1].decode("utf-8", "replace")
            for name, answer in zip(names, answers, strict=True)
            if isinstance(answer, list) and len(answer) == 2
        }
        found = []
        if settings.get("appendonly") == "no":
            found.append("appendonly is no: mail does not outlive the server")
        elif settings.get("appendfsync") == "no":
            found.append("appendfsync is no: mail of the last half minute does not outlive the machine")
        if settings.get("maxmemory", "0") != "0" and settings.get("maxmemory-policy", "noeviction") != "noeviction":
            found.append(f"maxmemory-policy is {settings['maxmemory-policy']}: mail goes when the memory is full")
        return found

    async def set_many(self, bodies: Sequence[tuple[str, bytes]], expire_seconds: int) -> list[ResponseError | None]:
        """Store each body under its key, all in one round trip; return for each None, or why Redis refuses it.

        When it raises, or is cancelled, none is kept: whatever of it Redis does all the same is deleted again.
        """
        end = b"\r\n$2\r\nEX\r\n$%d\r\n%d\r\n" % (len(str(expire_seconds)), expire_seconds)
        packed: list[bytes] = []
        for key, body in bodies:
            name = key.encode()
            packed += b"*5\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n" % (len(name), name, len(body)), body, end
        connection = await self._pool.get_connection()
        call = self._start(self._exchange(connection, packed, len(bodies)))
        try:
            answers = await asyncio.shield(call)
        except asyncio.CancelledError:
            self._start(self._forsake(call, [key for key, _ in bodies]))
            raise
        except RedisError:
            self.void(key for key, _ in bodies)
            raise
        return [answer if isinstance(answer, ResponseError) else None for answer in answers]

    async def get(self, key: str) -> bytes | None:
        """Return the body as it was stored; None if it is not there, or not any more."""
        body: bytes | ResponseError | None = (await self._ask([("GET", key)]))[0]
        if isinstance(body, ResponseError):
            raise body
        return body

    async def delete(self, keys: Iterable[str]) -> int:
        """Delete the keys, and return how many of them were there."""
        number: int | ResponseError = (await self._ask([("DEL", *keys)]))[0]
        if isinstance(number, ResponseError):
            raise number
        return number

    def void(self, keys: Iterable[str]) -> None:
        """Delete the keys in the background, again and again until it works.

        It ends when the store is closed. A key that is left then, or after a crash, expires by itself.
        """
        self._to_void.update(dict.fromkeys(keys))
        surplus = len(self._to_void) - _MAX_VOID
        for key in list(islice(self._to_void, max(surplus, 0))):
            del self._to_void[key]
            self._given_up += 1
        if self._to_void and not self._voiding:
            self._voiding = True
            self._start(self._void_all())

    async def close(self) -> int:
        """Finish what is under way in the background, within five seconds, and close the connections.

        Returns how many keys are left that should have been deleted. It may be called twice.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                while self._tasks:
                    await asyncio.wait(self._tasks)
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)
        with suppress(RedisError):  # a server that is frozen does not say goodbye
            await self._pool.aclose()
        given_up, self._given_up = self._given_up + len(self._to_void), 0
        self._to_void.clear()
        return given_up

    async def _ask(self, commands: Sequence[_Command]) -> list[Any]:
        connection = await self._pool.get_connection()
        return await self._exchange(connection, connection.pack_commands(commands), len(commands))

    async def _exchange(self, connection: AbstractConnection, packed: Sequence[bytes], number: int) -> list[Any]:
        """Send so many commands at once, and return their answers; give the connection back.

        When it is cut short, redis-py closes the connection before it goes back: late answers are nobody's.
        """
        try:
            await connection.send_packed_command(packed)
            return [await _answer(connection) for _ in range(number)]
        finally:
            await self._pool.release(connection)

    async def _forsake(self, call: asyncio.Task[list[Any]], keys: Sequence[str]) -> None:
        """Delete the keys once the SET that nobody waits for any more has been done.

        Were its connection closed at once, a server that hangs could read the DEL first, from another one, and then
        the SET.
        """
        try:
            await asyncio.wait((call,), timeout=_FORSAKEN_SECONDS)
        finally:
            call.cancel()
            self.void(keys)
        with suppress(asyncio.CancelledError, RedisError):
            await call

    async def _void_all(self) -> None:
        try:
            while self._to_void:
                keys = list(islice(self._to_void, 1000))
                for key in keys:
                    del self._to_void[key]
                try:
                    async with asyncio.timeout(_VOID_SECONDS):
                        await self.delete(keys)
                except BaseException as error:
                    self._to_void.update(dict.fromkeys(keys))
                    if not isinstance(error, (RedisError, TimeoutError)):
                        raise
                    await asyncio.sleep(_PAUSE_SECONDS)
        finally:
            self._voiding = False

    def _start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _answer(connection: AbstractConnection) -> Any:
    """Return the next answer; what Redis refuses by itself (no memory, read only) is an answer too."""
    try:
        return await connection.read_response()
    except ResponseError as error:
        return error
