"""A FastCGI client keeps its connections, sends nothing twice that may have been seen, and leaves no socket behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from tests.processors.fake_fastcgi import STDERR, STDOUT, Caller, FakeFastCGI, end, page, record

from guerrilla.processors.fastcgi.client import Client, Connection, UnansweredError
from guerrilla.processors.fastcgi.protocol import ProtocolError, request

LIMIT = 20.0
"""Seconds after which a test that hangs fails; none takes one."""
FOR_EVER = 1000.0
"""The lifetime of a connection that is not to end by its age."""


def connector(path: Path) -> Any:
    async def connect(protocol: Callable[[], Connection]) -> tuple[object, Connection]:
        return await asyncio.get_running_loop().create_unix_connection(protocol, str(path))

    return connect


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[FakeFastCGI]:
    fake = FakeFastCGI(tmp_path / "s", page(b"yes"))
    await fake.start()
    try:
        yield fake
    finally:
        await fake.stop()


@pytest.fixture
async def client(server: FakeFastCGI) -> AsyncIterator[Client]:
    client = Client(connector(server.path), maximum=4, lifetime=FOR_EVER)
    try:
        yield client
    finally:
        await client.close()


async def ask(client: Client, body: Iterable[bytes] = (b"body",), *, repeatable: bool = False) -> bytes:
    pieces = list(body)
    async with asyncio.timeout(LIMIT):
        output = await client.request(lambda: request({"A": "b"}, pieces), repeatable=repeatable)
    return output.stdout.partition(b"\r\n\r\n")[2]


async def ended(server: FakeFastCGI) -> None:
    """Wait until the server has seen the end of a connection."""
    async with asyncio.timeout(LIMIT):
        await server.ended.get()


async def test_a_connection_is_kept(server: FakeFastCGI, client: Client) -> None:
    """One connection carries one request after the other."""
    for _ in range(5):
        assert await ask(client) == b"yes"
    assert [(received.stdin, received.keep) for received in server.requests] == [(b"body", True)] * 5
    assert server.accepted == 1


async def test_a_large_body(server: FakeFastCGI, client: Client) -> None:
    """It comes whole, in order, through a full socket."""
    body = [bytes((number,)) * 100_000 for number in range(50)]
    assert await ask(client, body) == b"yes"
    assert server.requests[0].stdin == b"".join(body)


async def test_a_connection_that_the_server_closed(server: FakeFastCGI, client: Client) -> None:
    """It is found before anything is sent, so each request is sent once and answered: php-fpm's pm.max_requests."""
    server.handler = server.once
    for number in range(1, 5):
        assert await ask(client) == b"yes"
        await ended(server)
        assert len(server.requests) == number


async def test_a_server_that_went_away_between_two_requests(server: FakeFastCGI, client: Client) -> None:
    """The next request goes to the server that has come back."""
    assert await ask(client) == b"yes"
    await server.stop()
    with pytest.raises(OSError):
        await ask(client)
    await server.start()
    assert await ask(client) == b"yes"
    assert len(server.requests) == 2


async def test_a_server_that_speaks_unasked(server: FakeFastCGI, client: Client) -> None:
    """What it says is no answer to the next request, whether it comes with the last answer or after it."""
    server.answer = page(b"yes") + page(b"no")
    assert await ask(client) == b"yes"
    assert await ask(client) == b"yes"
    assert server.accepted == 2


async def test_a_server_that_speaks_later(server: FakeFastCGI, client: Client) -> None:
    """An idle connection on which something comes is closed."""
    speak = asyncio.Event()

    async def late(caller: Caller) -> None:
        await server.once(caller)
        await speak.wait()
        await caller.write(page(b"no"))
        await caller.read_record()

    server.handler = late
    assert await ask(client) == b"yes"
    speak.set()
    await ended(server)
    server.handler = server.serve
    assert await ask(client) == b"yes"


async def second_is_dropped(server: FakeFastCGI, client: Client) -> None:
    """Have a kept connection whose next request is read and not answered."""

    async def handler(caller: Caller) -> None:
        await server.once(caller)
        server.handler = server.serve
        await server.hang_up(caller)

    server.handler = handler
    assert await ask(client) == b"yes"


async def test_what_may_have_been_seen_is_not_sent_again(server: FakeFastCGI, client: Client) -> None:
    """A request that the server has read is not repeated: it may have been carried out."""
    await second_is_dropped(server, client)
    with pytest.raises(UnansweredError):
        await ask(client)
    assert len(server.requests) == 2


async def test_a_question_is_repeated_once(server: FakeFastCGI, client: Client) -> None:
    """A repeatable request whose kept connection was dead goes out again over a new one."""
    await second_is_dropped(server, client)
    assert await ask(client, repeatable=True) == b"yes"
    assert len(server.requests) == 3


async def test_a_question_is_not_repeated_for_ever(server: FakeFastCGI, client: Client) -> None:
    """On a new connection there is one attempt."""
    server.handler = server.hang_up
    with pytest.raises(UnansweredError):
        await ask(client, repeatable=True)
    assert len(server.requests) == 1


async def test_half_an_answer_is_not_asked_for_again(server: FakeFastCGI, client: Client) -> None:
    """Once anything of an answer has come, the server lives, and the request was seen."""

    async def half(caller: Caller) -> None:
        await server.once(caller)
        server.answer = page(b"yes")[:-1]
        await server.once(caller)

    server.handler = half
    assert await ask(client) == b"yes"
    with pytest.raises(ConnectionError) as caught:
        await ask(client, repeatable=True)
    assert not isinstance(caught.value, UnansweredError)
    assert len(server.requests) == 2


async def test_a_server_that_closes_after_accept(server: FakeFastCGI, client: Client) -> None:
    """It is an error at once, also with a body that is larger than the socket holds."""

    async def close(_: Caller) -> None:
        return

    server.handler = close
    for size in (10, 10_000_000):
        with pytest.raises(ConnectionError):
            await ask(client, [bytes(size)])


async def test_a_server_that_closes_before_we_look(server: FakeFastCGI) -> None:
    """A connection that is over before the request is sent is an error, not a wait without end."""

    async def close(_: Caller) -> None:
        return

    async def connect(protocol: Callable[[], Connection]) -> tuple[object, Connection]:
        _, connection = await asyncio.get_running_loop().create_unix_connection(protocol, str(server.path))
        await connection.lost.wait()
        return None, connection

    server.handler = close
    client = Client(connect, maximum=1)
    with pytest.raises(ConnectionError):
        await ask(client)


async def test_a_server_that_reads_slowly(server: FakeFastCGI, client: Client) -> None:
    """What it does not take is not made: a large message is never whole in memory."""
    made = 0

    def body() -> Iterator[bytes]:
        nonlocal made
        for _ in range(500):
            made += 1
            yield bytes(60_000)

    async def slow(caller: Caller) -> None:
        for _ in range(1000):  # turns of the loop, in each of which the client might write
            await asyncio.sleep(0)
        assert made < 20
        await server.serve(caller)

    server.handler = slow
    async with asyncio.timeout(LIMIT):
        await client.request(lambda: request({}, body()), repeatable=False)
    assert len(server.requests[0].stdin) == 500 * 60_000


async def test_no_server(tmp_path: Path) -> None:
    """It is an OSError, to probe and to ask."""
    client = Client(connector(tmp_path / "nobody"), maximum=1)
    with pytest.raises(OSError):
        await client.probe()
    for _ in range(3):
        with pytest.raises(OSError):
            await ask(client)
    await client.close()


async def test_probe(server: FakeFastCGI, client: Client) -> None:
    """It connects, sends nothing, and leaves no connection."""
    await client.probe()
    await ended(server)
    assert (server.accepted, server.requests) == (1, [])


async def test_an_answer_before_the_body_was_read(server: FakeFastCGI, client: Client) -> None:
    """It cannot be an answer to the message, and the connection is closed."""
    given_up = asyncio.Event()

    async def hasty(caller: Caller) -> None:
        await caller.read_record()
        await caller.write(page(b"SAVED"))
        await given_up.wait()
        await caller.reader.read()

    server.handler = hasty
    with pytest.raises(ProtocolError, match="before the whole request"):
        await ask(client, [bytes(100_000)] * 100)
    given_up.set()
    await ended(server)


async def test_a_talkative_server(server: FakeFastCGI, client: Client) -> None:
    """One that fills the socket before it reads the body is listened to meanwhile: nobody waits for the other."""

    async def talkative(caller: Caller) -> None:
        for _ in range(100):
            await caller.write(record(STDERR, bytes(50_000)))
        await server.serve(caller)

    server.handler = talkative
    assert await ask(client, [bytes(100_000)] * 100) == b"yes"


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(record(STDOUT, b"SAVED", version=9) + end(), id="wrong version"),
        pytest.param(record(STDOUT, bytes(60_000)) * 1_000, id="60 MB"),
        pytest.param(end(protocol_status=2), id="overloaded"),
    ],
)
async def test_a_broken_answer(server: FakeFastCGI, client: Client, answer: bytes) -> None:
    """The connection is closed at once, whatever the server still has to say, and the next request has a new one."""
    server.answer = answer
    with pytest.raises(ProtocolError):
        await ask(client)
    await ended(server)
    server.answer = page(b"yes")
    assert await ask(client) == b"yes"
    assert server.accepted == 2


class Held:
    """A handler that reads requests and answers each when it is told to."""

    def __init__(self, server: FakeFastCGI) -> None:
        self._server = server
        self.arrived: asyncio.Queue[asyncio.Event] = asyncio.Queue()
        self.now = self.most = 0

    async def __call__(self, caller: Caller) -> None:
        while True:
            self._server.requests.append(await caller.read_request())
            self.now += 1
            self.most = max(self.most, self.now)
            go = asyncio.Event()
            self.arrived.put_nowait(go)
            await go.wait()
            self.now -= 1
            await caller.write(self._server.answer)


async def test_requests_at_a_time(server: FakeFastCGI, client: Client) -> None:
    """There are no more than ``maximum``; the others wait, and all are answered."""
    held = server.handler = Held(server)
    asking = [asyncio.create_task(ask(client)) for _ in range(20)]
    first = [await held.arrived.get() for _ in range(4)]
    for go in first:
        go.set()
    for _ in range(16):
        (await held.arrived.get()).set()
    assert await asyncio.gather(*asking) == [b"yes"] * 20
    assert held.most == 4


@pytest.mark.parametrize("body", [[b"small"], [bytes(100_000)] * 100], ids=["while it waits", "while it sends"])
async def test_cancelled(server: FakeFastCGI, client: Client, body: list[bytes]) -> None:
    """The connection is closed and never used again, and the place is free for another."""
    started, given_up = asyncio.Event(), asyncio.Event()

    async def frozen(caller: Caller) -> None:
        await caller.read_record()
        started.set()
        await given_up.wait()
        await caller.reader.read()

    assert await ask(client) == b"yes"
    await client.close()
    await ended(server)
    server.handler = frozen
    for _ in range(8):
        started.clear()
        given_up.clear()
        asking = asyncio.create_task(ask(client, body))
        await started.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        given_up.set()
        await ended(server)
    server.handler = server.serve
    assert await ask(client) == b"yes"


async def test_a_server_of_one_process(server: FakeFastCGI, client: Client) -> None:
    """One that serves one connection until it is closed, as php-fpm does, shuts out none of our own requests."""
    process = asyncio.Lock()

    async def serve_alone(caller: Caller) -> None:
        async with process:
            await server.serve(caller)

    server.handler = serve_alone
    assert await asyncio.gather(*(ask(client) for _ in range(20))) == [b"yes"] * 20
    accepted = server.accepted
    for _ in range(5):
        assert await ask(client) == b"yes"
    assert server.accepted <= accepted + 1


async def test_an_old_connection_is_let_go(server: FakeFastCGI) -> None:
    """An idle one is closed when its time is over, so that the server's process is free for others."""
    client = Client(connector(server.path), maximum=1, lifetime=0.01)
    assert await ask(client) == b"yes"
    await ended(server)
    assert await ask(client) == b"yes"
    await client.close()


async def test_an_old_connection_ends_its_request(server: FakeFastCGI) -> None:
    """A request that is under way when the time is over is answered; then the connection is closed."""
    held = server.handler = Held(server)
    client = Client(connector(server.path), maximum=1, lifetime=0.0)
    asking = asyncio.create_task(ask(client))
    (await held.arrived.get()).set()
    assert await asking == b"yes"
    await ended(server)
    await client.close()


async def test_close(server: FakeFastCGI, client: Client) -> None:
    """It closes what is kept and what waits, may be called twice, and leaves nothing open."""
    await asyncio.gather(*(ask(client) for _ in range(3)))
    arrived = asyncio.Event()

    async def silent(caller: Caller) -> None:
        arrived.set()
        await caller.reader.read()

    server.handler = silent
    asking = [asyncio.create_task(ask(client)) for _ in range(4)]
    await arrived.wait()
    await client.close()
    for result in await asyncio.gather(*asking, return_exceptions=True):
        assert result == b"yes" or isinstance(result, ConnectionError)
    await client.close()
    for _ in range(server.accepted):
        await ended(server)


def test_on_uvloop(tmp_path: Path) -> None:
    """All of it holds on the loop that the daemon runs on."""

    async def run() -> None:
        server = FakeFastCGI(tmp_path / "s", page(b"yes"))
        await server.start()
        client = Client(connector(server.path), maximum=4, lifetime=FOR_EVER)
        for test in (
            test_a_connection_that_the_server_closed,
            test_a_large_body,
            test_what_may_have_been_seen_is_not_sent_again,
            test_an_answer_before_the_body_was_read,
            test_a_talkative_server,
            test_a_server_that_closes_after_accept,
            test_a_server_of_one_process,
        ):
            server.handler = server.serve
            await client.close()
            while not server.ended.empty():
                server.ended.get_nowait()
            server.requests.clear()
            await test(server, client)
        await client.close()
        await server.stop()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
