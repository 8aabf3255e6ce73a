"""What the processor contract is made with: the subject, one message on its way, and looking at what is kept.

The checks themselves are in ``contract.py``.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Protocol, TypeVar

from guerrilla.backends.base import Process, Task
from guerrilla.backends.processor import Processor, end_of_line
from guerrilla.envelope import Address, Body, Envelope
from guerrilla.smtp.replies import Reply

T = TypeVar("T")

PAUSE: Final = 0.01
"""Seconds between two looks at something that is waited for."""


class Server(Protocol):
    """The server that a store stands on, as something that can fail. A method may also be a plain one that blocks."""

    def freeze(self) -> Awaitable[None] | None:
        """Halt it: it takes connections, and answers nothing."""

    def thaw(self) -> Awaitable[None] | None:
        """Let it go on."""

    def kill(self) -> Awaitable[None] | None:
        """End it at once, as a power cut does."""

    def start(self) -> Awaitable[None] | None:
        """Start it again, with all that it had confirmed; return when it answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A processor that is examined, and how to look at what it keeps."""

    make: Callable[[], Processor[Any]]
    """Makes a new one that is not initialized; all that are made share one store."""
    stored: Callable[[Envelope], Awaitable[Sequence[bytes]]]
    """Reads what the store holds of the envelope at this moment: each copy, whole and raw, delivery header first. Each
    of its ``hashes``, and its ``delivery_header``, is its alone. It is asked also after the processor has shut down, so
    it reads in a way of its own, and leaves nothing open."""
    recipients: Sequence[Address] = tuple(Address(user, "example.com") for user in ("joe", "ann", "bob"))
    """To whom mail can be stored; at least two."""
    copy_per_recipient: bool = True
    """Whether there is one copy for each recipient, or one for the message."""
    takes_back: bool = True
    """Whether what it has stored is within its reach. A script that was handed the message has it for good: then
    nothing is asked about what is left of messages that were not answered positively."""
    refusable: Callable[[], Envelope] | None = None
    """Makes a message that it has to refuse with a reply, if there is such a message."""
    server: Server | None = None
    """The server behind it, if there is one."""
    patience: float = 30.0
    """Seconds after which what has not come is taken to never come."""
    outage: float = 1.0
    """Seconds that an outage lasts before the messages in it are cancelled."""

    def envelope(self, data: Body = b"Subject: x\r\n\r\nHello.\r\n", recipients: int | None = None) -> Envelope:
        """Return a new envelope, as HeadersParser, Hasher and Header leave it."""
        rcpt_to = list(self.recipients[:recipients])
        queued_id = secrets.token_hex(16)
        return Envelope(
            remote_ip="192.0.2.1",
            remote_port=4321,
            server="127.0.0.1:25",
            helo="client.example.org",
            esmtp=True,
            mail_from=Address("sender", "example.org"),
            rcpt_to=rcpt_to,
            data=data,
            queued_id=queued_id,
            received_at=datetime.now(UTC),
            subject="x",
            hashes=[secrets.token_hex(16) for _ in rcpt_to],
            delivery_header=f"Received: from client.example.org by mx.example.com id {queued_id}\r\n".encode(),
        )

    def wait(self) -> Iterator[None]:
        """Yield as long as there is patience, at least once."""
        end = time.monotonic() + self.patience
        yield
        while time.monotonic() < end:
            yield

    async def in_time(self, doing: Awaitable[T], what: str) -> T:
        """Return what is awaited. Raises AssertionError if it raises, or has not ended when the patience has."""
        try:
            async with asyncio.timeout(self.patience) as limit:
                return await doing
        except Exception as error:
            if limit.expired():
                raise AssertionError(f"{what} has not ended after {self.patience:g} seconds") from None
            raise AssertionError(f"{what} raised {error!r}") from error

    @asynccontextmanager
    async def started(self) -> AsyncIterator[Processor[Any]]:
        """Give a processor that is initialized, and shut it down."""
        processor = self.make()
        try:
            await self.in_time(processor.initialize(), "initialize")
            yield processor
        finally:
            await self.in_time(processor.shutdown(), "shutdown")

    async def half_started(self, seconds: float) -> Processor[Any]:
        """Return a processor whose initialize was cancelled after so much time, if it had not ended or failed."""
        processor = self.make()
        initializing = asyncio.get_running_loop().create_task(processor.initialize())
        initializing.add_done_callback(_look_at)
        await asyncio.wait((initializing,), timeout=seconds)
        initializing.cancel()
        await asyncio.wait((initializing,), timeout=self.patience)
        require(initializing.done(), f"{self.patience:g} seconds after it was cancelled, initialize has not ended")
        return processor

    async def all_gone(self, envelopes: Iterable[Envelope], why: str) -> None:
        """Wait until nothing is stored of the envelopes; what must go may go in the background."""
        if not self.takes_back:
            return
        for envelope in envelopes:
            copies: Sequence[bytes] = ()
            for _ in self.wait():
                copies = await self.stored(envelope)
                if not copies:
                    break
                await asyncio.sleep(PAUSE)
            require(not copies, f"{why}, and yet {len(copies)} copies of the message are stored")


class Saving:
    """One message on its way through the processor, and, after it, through the rest of the line."""

    def __init__(self, subject: Subject, processor: Processor[Any], envelope: Envelope, rest: Process = end_of_line):
        async def save() -> Reply:
            return await processor.decorate(rest)(envelope, Task.SAVE_MAIL)

        self.envelope = envelope
        self.octets = bytes(envelope)
        self.task = asyncio.get_running_loop().create_task(save())
        self.task.add_done_callback(_look_at)
        self._subject = subject
        self._cancelled = False

    def cancel(self) -> None:
        """Make it void, as the gateway does when the time of the message is over."""
        self._cancelled |= self.task.cancel()

    async def ended(self) -> Reply | BaseException:
        """Return the answer, or what was raised instead.

        Raises AssertionError if there is none in time, if it is no reply, or if it is positive though the message was
        cancelled.
        """
        await asyncio.wait((self.task,), timeout=self._subject.patience)
        if not self.task.done():
            self.task.cancel()
            raise AssertionError(f"a message has no answer after {self._subject.patience:g} seconds")
        if self.task.cancelled():
            return asyncio.CancelledError()
        error = self.task.exception()
        if error is not None:
            return error
        answer: object = self.task.result()
        if not isinstance(answer, Reply):
            raise AssertionError(f"the answer is {answer!r}, and no Reply")
        require(not (self._cancelled and answer.positive), f"a message that was cancelled is answered {answer}")
        return answer

    async def positive(self) -> bool:
        """Return whether it was answered positively; raises as ``ended`` does."""
        answer = await self.ended()
        return isinstance(answer, Reply) and answer.positive

    async def kept(self, case: str) -> None:
        """Check that it was answered positively, and that exactly the copies are stored that must be."""
        answer = await self.ended()
        if isinstance(answer, BaseException):
            raise AssertionError(f"{case}: {answer!r} came, and not a positive reply") from answer
        require(answer.positive, f"{case}: {answer} came, and not a positive reply")
        await self.still_kept(case)

    async def still_kept(self, case: str) -> None:
        """Check that exactly the copies are stored that must be."""
        copies = await self._subject.stored(self.envelope)
        wanted = len(self.envelope.rcpt_to) if self._subject.copy_per_recipient else 1
        require(len(copies) == wanted, f"{case}: {wanted} copies are meant, {len(copies)} are stored")
        for copy in copies:
            require(copy == self.octets, f"{case}: {_difference(copy, self.octets)}")


def require(condition: bool, text: str) -> None:
    """Raise AssertionError with the text unless the condition holds; ``assert`` is gone under ``python -O``."""
    if not condition:
        raise AssertionError(text)


@asynccontextmanager
async def during(begin: Callable[[], object], end: Callable[[], object]) -> AsyncIterator[None]:
    """Hold as long as the ``with`` block lasts what ``begin`` begins and ``end`` ends; both may block."""
    try:
        await _call(begin)
        yield
    finally:
        await _call(end)


def _look_at(task: asyncio.Task[Any]) -> None:
    """Keep the loop from complaining of an exception that nobody has asked for: the check has failed before."""
    if not task.cancelled():
        task.exception()


def _difference(stored: bytes, sent: bytes) -> str:
    shorter = min(len(stored), len(sent))
    place = next((place for place in range(shorter) if stored[place] != sent[place]), shorter)
    shown = f"{stored[place : place + 20]!r} is stored, {sent[place : place + 20]!r} was sent"
    return f"from octet {place} on (of {len(stored)} stored, {len(sent)} sent) {shown}"


async def _call(function: Callable[[], object]) -> None:
    result = await asyncio.to_thread(function)
    if inspect.isawaitable(result):
        await result


def descriptors() -> set[tuple[str, str]]:
    """Return the open file descriptors of this process, each with what it is. It is empty but on Linux."""
    found = set()
    with suppress(FileNotFoundError):
        for number in os.listdir("/proc/self/fd"):
            with suppress(FileNotFoundError):  # the one that the listing itself had open
                found.add((number, os.readlink(f"/proc/self/fd/{number}")))
    return found
