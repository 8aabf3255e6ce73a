"""A client that does what smtp-source cannot: pipelining, BDAT, TLS, a rate of its own, and the time of each answer.

    python -m benchmarks.load '{"port": 2525, "messages": 1000, "connections": 20}'

It prints the Outcome as JSON. What is to be done is a Job: bounded in messages, connections and seconds. Any answer
that is not 2xx or 3xx ends it with an error; nothing is tried again.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, cast

import uvloop
from benchmarks.measure import quantile

PIECE: Final = 1 << 18
"""Octets that are written at once: content that the socket does not take must wait here, and is not copied."""


class LoadError(Exception):
    """The server did not do as it should; the text says what it did."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be done."""

    port: int
    messages: int
    connections: int = 20
    """At the same time; where each message has its own, they follow on each other."""
    size: int = 2048
    """Octets of a message; 0: none is sent, each of ``messages`` is a connection that only says EHLO and QUIT."""
    kept: bool = True
    """Whether a connection is kept for the next message."""
    pipelined: bool = False
    """Whether MAIL, RCPT and DATA leave in one segment (RFC 2920)."""
    chunk: int = 0
    """Octets of a BDAT chunk (RFC 3030); 0: DATA."""
    tls: Literal["", "starttls", "implicit"] = ""
    rate: float = 0.0
    """Messages a second that are begun, whatever has become of the earlier ones; 0: as the answers come."""
    seconds: float = 300.0
    """How long all may take."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was done. ``median`` and ``tail`` (99th percentile): seconds from a message's last octet to its answer."""

    messages: int
    seconds: float
    median: float = 0.0
    tail: float = 0.0


@dataclass(frozen=True, slots=True)
class Step:
    """What is sent, and how many answers are waited for before the next step."""

    octets: tuple[bytes | memoryview, ...]
    answers: int = 1
    last: bool = False
    """Whether its answer is that to the message."""


def content(size: int) -> bytes:
    """Return a message of so many octets: a header, and lines of 76."""
    header = b"From: <sender@example.org>\r\nTo: <recipient@example.com>\r\nSubject: load\r\n\r\n"
    line = b"x" * 74 + b"\r\n"
    room = max(size - len(header) - 2, 0)
    full, rest = divmod(room, len(line))
    return header + line * full + b"x" * rest + b"\r\n"


def steps(job: Job) -> tuple[Step, ...]:
    """Return the steps of one message."""
    mail, rcpt = b"MAIL FROM:<sender@example.org>\r\n", b"RCPT TO:<recipient@example.com>\r\n"
    message = content(job.size)
    if job.chunk:
        begin = [mail, rcpt]
        pieces = [memoryview(message)[at : at + job.chunk] for at in range(0, len(message), job.chunk)]
        end = [
            Step((b"BDAT %d%s\r\n" % (len(piece), b" LAST" * (piece is pieces[-1])), piece), last=piece is pieces[-1])
            for piece in pieces
        ]
    else:
        begin = [mail, rcpt, b"DATA\r\n"]
        pieces = [memoryview(message)[at : at + PIECE] for at in range(0, len(message), PIECE)]
        pieces[-1] = memoryview(bytes(pieces[-1]) + b".\r\n")
        end = [Step(tuple(pieces), last=True)]
    first = [Step((b"".join(begin),), len(begin))] if job.pipelined else [Step((line,)) for line in begin]
    return (*first, *end)


def final_lines(octets: bytes) -> list[bytes]:
    """Return the last line of each answer; ``octets`` are whole lines."""
    return [line for line in octets.split(b"\r\n") if line and line[3:4] != b"-"]


class Load:
    """What the connections share: how many messages are left, and what the answers were."""

    def __init__(self, job: Job, loop: asyncio.AbstractEventLoop) -> None:
        self.job = job
        self.loop = loop
        self.steps = steps(job)
        self.left = job.messages
        self.latencies: list[float] = []
        self.done = 0
        self.free: deque[Client] = deque()
        self._clients: set[Client] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._context = _trusting() if job.tls else None
        self._began = 0.0
        self._done: asyncio.Future[None] = loop.create_future()
        if not job.size and job.kept:
            raise LoadError("a connection that is kept needs messages: meant: kept false, or a size")

    async def run(self) -> Outcome:
        """Do the job; raises LoadError, or TimeoutError when its time is over."""
        start = time.perf_counter()
        async with asyncio.timeout(self.job.seconds):
            for _ in range(min(self.job.connections, self.left)):
                self._open_next()
            if self.job.rate:
                await self._pace()
            await self._done
        seconds = time.perf_counter() - start
        if not self.latencies:
            return Outcome(self.done, seconds)
        ordered = sorted(self.latencies)
        return Outcome(self.done, seconds, quantile(ordered, 0.5), quantile(ordered, 0.99))

    def _open_next(self) -> None:
        """Open one more connection; one that is not kept takes its message at once."""
        if not self.job.kept:
            self.left -= 1
        task = self.loop.create_task(self._open())
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    def fail(self, why: str) -> None:
        """End the job: something went wrong."""
        if not self._done.done():
            self._done.set_exception(LoadError(why))

    def next_message(self) -> bool:
        """Take a message to send, if one is left."""
        if not self.left:
            return False
        self.left -= 1
        return True

    def closed(self, client: Client) -> None:
        """Go on when a connection has come to its end."""
        self._clients.discard(client)
        if not self.job.kept and self.left:
            self._open_next()
        elif not self._clients and not self._done.done():
            self._done.set_result(None)

    async def _open(self) -> None:
        implicit = self._context if self.job.tls == "implicit" else None
        client = Client(self)
        self._clients.add(client)
        try:
            await self.loop.create_connection(lambda: client, "127.0.0.1", self.job.port, ssl=implicit)
        except OSError as error:
            self.fail(f"no connection: {error}")

    def begin_due(self) -> None:
        """Begin the messages whose time has come, as far as connections are free."""
        total = self.job.messages
        due = min(total, int((time.perf_counter() - self._began) * self.job.rate) + 1)
        while self.free and total - self.left < due and self.next_message():
            self.free.popleft().begin()

    async def secure(self, client: Client, transport: asyncio.Transport) -> asyncio.Transport:
        """Shake hands after STARTTLS (RFC 3207)."""
        assert self._context is not None
        secured = await self.loop.start_tls(transport, client, self._context)
        return cast(asyncio.Transport, secured)

    async def _pace(self) -> None:
        """Begin messages at the rate of the job; one that finds no free connection waits for it, and is not left out.

        The loop's timers have a grain of a millisecond, so what falls into one is begun at once. Spinning would be
        finer, but would take the processor that the server needs.
        """
        while len(self.free) < self.job.connections and not self._done.done():
            await asyncio.sleep(0.01)
        self._began = time.perf_counter()
        while self.left and not self._done.done():
            self.begin_due()
            await asyncio.sleep(0.001)
        while len(self.free) < self.job.connections and not self._done.done():
            await asyncio.sleep(0.001)
        for client in list(self.free):
            client.quit()


class Client(asyncio.Protocol):
    """One connection."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._transport: asyncio.Transport | None = None
        self._rest = b""
        self._waits = 1
        self._todo: Iterator[Step] = iter(())
        self._then = self._greeted
        self._pieces: deque[bytes | memoryview] = deque()
        self._blocked = False
        self._message_ends = False
        self._sent_at = 0.0
        self._quits = False
        self._securing: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the greeting."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Count answers, and go on when all are there that are waited for."""
        if self._rest:
            data = self._rest + data
        if data[-2:] != b"\r\n":
            end = data.rfind(b"\r\n") + 2 if b"\r\n" in data else 0
            data, self._rest = data[:end], data[end:]
        else:
            self._rest = b""
        for line in final_lines(data):
            if line[:1] not in b"23":
                self._load.fail(f"the server answered {line!r}")
                return
            self._waits -= 1
        if not self._waits:
            self._then()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell that this connection has ended."""
        if not self._quits:
            self._load.fail(f"the server closed the connection: {exc}")
        self._load.closed(self)

    def pause_writing(self) -> None:
        """Hold back what the socket does not take."""
        self._blocked = True

    def resume_writing(self) -> None:
        """Go on with what was held back."""
        self._blocked = False
        self._write()

    def begin(self) -> None:
        """Begin a message."""
        self._todo = iter(self._load.steps)
        self._then = self._next
        self._next()

    def quit(self) -> None:
        """Say good-bye."""
        self._quits = True
        self._say(b"QUIT\r\n", self._close)

    def _say(self, octets: bytes, then: Any) -> None:
        self._waits, self._then = 1, then
        self._pieces.append(octets)
        self._write()

    def _greeted(self) -> None:
        self._say(b"EHLO client.test\r\n", self._introduced)

    def _introduced(self) -> None:
        if self._load.job.tls == "starttls" and self._securing is None:
            self._say(b"STARTTLS\r\n", self._secure)
        elif self._load.job.rate:
            self._load.free.append(self)
        elif self._load.job.kept:
            self._go_on()
        elif self._load.job.size:
            self.begin()
        else:
            self._load.done += 1
            self.quit()

    def _go_on(self) -> None:
        if self._load.next_message():
            self.begin()
        else:
            self.quit()

    def _secure(self) -> None:
        self._securing = self._load.loop.create_task(self._shake_hands())

    async def _shake_hands(self) -> None:
        assert self._transport is not None
        try:
            self._transport = await self._load.secure(self, self._transport)
        except (OSError, asyncio.IncompleteReadError) as error:
            self._load.fail(f"no TLS: {error}")
        else:
            self._greeted()

    def _next(self) -> None:
        if self._message_ends:
            self._message_ends = False
            self._ended()
            return
        step = next(self._todo)
        self._waits = step.answers
        self._message_ends = step.last
        self._pieces.extend(step.octets)
        self._write()

    def _ended(self) -> None:
        load = self._load
        load.done += 1
        load.latencies.append(time.perf_counter() - self._sent_at)
        if load.job.rate:
            load.free.append(self)
            load.begin_due()  # one that waits for a free connection
        elif load.job.kept:
            self._go_on()
        else:
            self.quit()

    def _write(self) -> None:
        assert self._transport is not None
        while self._pieces and not self._blocked:
            piece = self._pieces.popleft()
            if not self._pieces:
                self._sent_at = time.perf_counter()
            self._transport.write(piece)

    def _close(self) -> None:
        assert self._transport is not None
        self._transport.close()


def _trusting() -> ssl.SSLContext:
    """Return what a client needs that encrypts and does not ask who the server is, as mail servers do."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def run(job: Job) -> Outcome:
    """Do the job. Raises LoadError, or TimeoutError."""
    return await Load(job, asyncio.get_running_loop()).run()


def main() -> None:
    """Do the job of the command line, and print the outcome."""
    try:
        print(json.dumps(asdict(uvloop.run(run(Job(**json.loads(sys.argv[1])))))))
    except (LoadError, TimeoutError) as error:
        sys.exit(f"load: {error or 'its time is over'}")


if __name__ == "__main__":
    main()
