"""The contract passes a store that keeps it, and finds each way to break it, in the check that is about it."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest

from guerrilla.backends.base import CallNext
from guerrilla.backends.processor import Processor, ProcessorConfig
from guerrilla.envelope import Envelope
from guerrilla.smtp.replies import BARE_NEWLINE, OK, STORAGE_NOT_AVAILABLE, Reply
from guerrilla.testing import Subject, processor_contract
from guerrilla.testing.contract import CHECKS

PATIENCE = 2.0
"""Seconds that are waited for what never comes, and that all that comes has: also where the machine has much to do."""

OUTAGE = 1.0
"""Seconds that a server is away: four times as long as the one waits for it that says yes all the same."""


class MemoryServer:
    """Keeps copies by name, as a server does: what has come to it is done, though nobody waits for the answer."""

    def __init__(self) -> None:
        self.copies: dict[str, list[bytes]] = {}
        self.left_open: list[socket.socket] = []
        self.left_running: list[asyncio.Task[Any]] = []
        self._loop = asyncio.get_running_loop()
        self.up = asyncio.Event()
        self.up.set()
        self._going = asyncio.Event()
        self._going.set()
        self._requests: asyncio.Queue[tuple[Callable[[], object], asyncio.Future[None]]] = asyncio.Queue()

    async def ask(self, action: Callable[[], object]) -> None:
        """Have the server do something, after all that it was asked before."""
        if not self.up.is_set():
            raise ConnectionRefusedError
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._requests.put_nowait((action, answer))
        await answer

    async def run(self) -> None:
        while True:
            action, answer = await self._requests.get()
            for _ in range(3):  # to do it takes a while
                await asyncio.sleep(0)
            await self._going.wait()
            if self.up.is_set():
                action()
                if not answer.done():
                    answer.set_result(None)
            elif not answer.done():
                answer.set_exception(ConnectionResetError())

    async def freeze(self) -> None:
        self._going.clear()

    async def thaw(self) -> None:
        self._going.set()

    async def kill(self) -> None:
        self.up.clear()

    def start(self) -> None:
        """Start again; this one is called in a thread, as a real server's would be, and may block."""
        self._loop.call_soon_threadsafe(self.up.set)


class Store(Processor[ProcessorConfig]):
    """Keeps the contract. Those that do not are made of it."""

    def __init__(self, server: MemoryServer) -> None:
        super().__init__(ProcessorConfig())
        self.server = server
        self.sockets: Sequence[socket.socket] = ()
        self.background: set[asyncio.Task[None]] = set()

    async def initialize(self) -> None:
        self.sockets = socket.socketpair()

    async def shutdown(self) -> None:
        if self.background:
            await asyncio.wait(self.background)
        for sock in self.sockets:
            sock.close()

    async def save_mail(self, envelope: Envelope, call_next: CallNext) -> Reply:
        if envelope.subject == "junk":
            return BARE_NEWLINE
        try:
            await self.put(envelope)
        except BaseException as error:
            self.give_up(envelope, error)
            if isinstance(error, ConnectionError):
                return STORAGE_NOT_AVAILABLE
            raise
        try:
            reply = await call_next()
        except BaseException as error:
            self.take_back(envelope, error)
            raise
        if not reply.positive:
            self.take_back(envelope, reply)
        return reply

    async def put(self, envelope: Envelope) -> None:
        copies = {key: [bytes(envelope)] for key in envelope.hashes}
        await self.server.ask(lambda: self.server.copies.update(copies))

    def give_up(self, envelope: Envelope, error: BaseException) -> None:
        """Remove what may have been stored, though it was not confirmed."""
        self.leave_to_the_background(self.delete(envelope.hashes))

    def take_back(self, envelope: Envelope, why: object) -> None:
        """Remove what was stored; ``why`` is what the rest of the line answered or raised."""
        self.leave_to_the_background(self.delete(envelope.hashes))

    async def delete(self, keys: Sequence[str]) -> None:
        while True:
            try:
                await self.server.ask(lambda: [self.server.copies.pop(key, None) for key in keys])
                return
            except ConnectionError:
                await self.server.up.wait()

    def leave_to_the_background(self, doing: Any) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(doing)
        self.background.add(task)
        task.add_done_callback(self.background.discard)


@pytest.fixture
async def server() -> AsyncIterator[MemoryServer]:
    memory = MemoryServer()
    others = {*asyncio.all_tasks(), running := asyncio.create_task(memory.run())}
    yield memory
    # A store that was found out may be in the middle of something, and begins another thing when it is cancelled.
    memory.up.set()
    await memory.thaw()
    while left := asyncio.all_tasks() - others - {asyncio.current_task()}:
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=0.01)
    running.cancel()
    for sock in memory.left_open:
        sock.close()


def subject_of(kind: type[Store], server: MemoryServer, **changes: Any) -> Subject:
    async def stored(envelope: Envelope) -> list[bytes]:
        return [copy for key in envelope.hashes for copy in server.copies.get(key, ())]

    def refusable() -> Envelope:
        envelope = subject.envelope()
        envelope.subject = "junk"
        return envelope

    subject = Subject(make=lambda: kind(server), stored=stored, refusable=refusable, server=server, outage=OUTAGE)
    return dataclasses.replace(subject, **changes)


async def test_a_store_that_keeps_it_passes(server: MemoryServer) -> None:
    await processor_contract(subject_of(Store, server))


class StartsOnce(Store):
    async def initialize(self) -> None:
        await super().initialize()
        if self.server.copies.setdefault("the table", []):
            raise ValueError("there is a table already")
        self.server.copies["the table"].append(b"")


class NeverStarts(Store):
    async def initialize(self) -> None:
        await asyncio.Event().wait()


class AnswersBeforeItStores(Store):
    async def put(self, envelope: Envelope) -> None:
        async def later() -> None:
            for _ in range(10):
                await asyncio.sleep(0)
            await Store.put(self, envelope)

        self.leave_to_the_background(later())


class DoesNotWaitForever(Store):
    """Takes a server that is slow for one that has done it."""

    async def put(self, envelope: Envelope) -> None:
        putting = asyncio.create_task(super().put(envelope))
        self.background.add(putting)
        putting.add_done_callback(self.background.discard)
        await asyncio.wait((putting,), timeout=OUTAGE / 4)
        if putting.done():
            putting.result()


class StoresTwice(Store):
    async def put(self, envelope: Envelope) -> None:
        copies = {key: [bytes(envelope)] * 2 for key in envelope.hashes}
        await self.server.ask(lambda: self.server.copies.update(copies))


class StoresForTheFirstRecipient(Store):
    async def put(self, envelope: Envelope) -> None:
        await self.server.ask(lambda: self.server.copies.update({envelope.hashes[0]: [bytes(envelope)]}))


class ChangesOctets(Store):
    wrong: Callable[[bytes], bytes]

    async def put(self, envelope: Envelope) -> None:
        copies = {key: [type(self).wrong(bytes(envelope))] for key in envelope.hashes}
        await self.server.ask(lambda: self.server.copies.update(copies))


class ChangesLineEnds(ChangesOctets):
    wrong = staticmethod(lambda octets: octets.replace(b"\r\n", b"\n"))


class DropsNul(ChangesOctets):
    wrong = staticmethod(lambda octets: octets.replace(b"\0", b""))


class ReadsText(ChangesOctets):
    wrong = staticmethod(lambda octets: octets.decode("utf-8", "replace").encode())


class CutsAtAMegabyte(ChangesOctets):
    wrong = staticmethod(lambda octets: octets[: 1 << 20])


class DoesNotKeepNothing(Store):
    async def put(self, envelope: Envelope) -> None:
        if envelope.data:
            await super().put(envelope)


class DoesNotPassOn(Store):
    async def save_mail(self, envelope: Envelope, call_next: CallNext) -> Reply:
        await self.put(envelope)
        return OK


class PassesOnTwice(Store):
    async def save_mail(self, envelope: Envelope, call_next: CallNext) -> Reply:
        await super().save_mail(envelope, call_next)
        return await call_next()


class AnswersNoReply(Store):
    async def save_mail(self, envelope: Envelope, call_next: CallNext) -> Any:
        return str(await super().save_mail(envelope, call_next))


class KeepsWhatTheRestRefuses(Store):
    def take_back(self, envelope: Envelope, why: object) -> None:
        if not isinstance(why, Reply):
            super().take_back(envelope, why)


class KeepsWhenTheRestFails(Store):
    def take_back(self, envelope: Envelope, why: object) -> None:
        if not isinstance(why, Exception):
            super().take_back(envelope, why)


class KeepsWhenTheRestIsCancelled(Store):
    def take_back(self, envelope: Envelope, why: object) -> None:
        if not isinstance(why, asyncio.CancelledError):
            super().take_back(envelope, why)


class SaysYesForTheRest(Store):
    async def save_mail(self, envelope: Envelope, call_next: CallNext) -> Reply:
        await super().save_mail(envelope, call_next)
        return OK


class TakesJunk(Store):
    async def save_mail(self, envelope: Envelope, call_next: CallNext) -> Reply:
        envelope.subject = ""
        return await super().save_mail(envelope, call_next)


class KeepsJunk(Store):
    async def save_mail(self, envelope: Envelope, call_next: CallNext) -> Reply:
        if envelope.subject == "junk":
            await self.put(envelope)
        return await super().save_mail(envelope, call_next)


class RaisesOnJunk(Store):
    async def save_mail(self, envelope: Envelope, call_next: CallNext) -> Reply:
        if envelope.subject == "junk":
            raise ValueError("junk")
        return await super().save_mail(envelope, call_next)


class MixesMessagesUp(Store):
    """Has the message that is on its way in an attribute, as if there were one at a time."""

    async def put(self, envelope: Envelope) -> None:
        self.current = envelope
        await self.server.ask(lambda: None)
        copies = {key: [bytes(self.current)] for key in self.current.hashes}
        await self.server.ask(lambda: self.server.copies.update(copies))


class IsTooBusy(Store):
    busy = 0

    async def put(self, envelope: Envelope) -> None:
        if self.busy > 50:
            raise ConnectionError
        self.busy += 1
        try:
            await super().put(envelope)
        finally:
            self.busy -= 1


class KeepsWhatWasCancelled(Store):
    """Forgets that the server does what it was asked, though nobody waits for the answer."""

    def give_up(self, envelope: Envelope, error: BaseException) -> None:
        if not isinstance(error, asyncio.CancelledError):
            super().give_up(envelope, error)


class StoresWhatWasCancelled(Store):
    """Does at the end what it did not come to before."""

    def __init__(self, server: MemoryServer) -> None:
        super().__init__(server)
        self.unfinished: list[Envelope] = []

    def give_up(self, envelope: Envelope, error: BaseException) -> None:
        super().give_up(envelope, error)
        self.unfinished.append(envelope)

    async def shutdown(self) -> None:
        for envelope in self.unfinished:
            await self.put(envelope)
        await super().shutdown()


class SwallowsCancellation(Store):
    async def put(self, envelope: Envelope) -> None:
        try:
            await super().put(envelope)
        except asyncio.CancelledError:
            return


class FailsBesideACancelledMessage(Store):
    cancelled = False

    async def put(self, envelope: Envelope) -> None:
        try:
            await super().put(envelope)
        except asyncio.CancelledError:
            type(self).cancelled = True
            raise
        if self.cancelled:
            raise ConnectionError


class HangsOnAFrozenServer(Store):
    """Waits for the server before it lets itself be cancelled."""

    async def put(self, envelope: Envelope) -> None:
        putting = asyncio.create_task(super().put(envelope))
        try:
            await asyncio.shield(putting)
        except asyncio.CancelledError:
            await asyncio.wait((putting,))
            raise


class SaysNeverTryAgain(Store):
    async def save_mail(self, envelope: Envelope, call_next: CallNext) -> Reply:
        reply = await super().save_mail(envelope, call_next)
        return Reply(554, "5.5.0", "Storage failed") if reply is STORAGE_NOT_AVAILABLE else reply


class SpoolsInMemory(Store):
    """Says yes while the server is away, and stores when it is back."""

    async def put(self, envelope: Envelope) -> None:
        try:
            await super().put(envelope)
        except ConnectionError:
            self.leave_to_the_background(self.later(envelope))

    async def later(self, envelope: Envelope) -> None:
        await self.server.up.wait()
        await super().put(envelope)


class StoresWhatItHasPutOff(Store):
    """Says try again, and does it itself as well."""

    def give_up(self, envelope: Envelope, error: BaseException) -> None:
        super().give_up(envelope, error)
        if isinstance(error, ConnectionError):
            self.leave_to_the_background(self.later(envelope))

    async def later(self, envelope: Envelope) -> None:
        await self.server.up.wait()
        await self.put(envelope)


class NeverConnectsAgain(Store):
    broken = False

    async def put(self, envelope: Envelope) -> None:
        if self.broken:
            raise ConnectionError
        try:
            await super().put(envelope)
        except ConnectionError:
            self.broken = True
            raise


class CannotShutDownTwice(Store):
    async def shutdown(self) -> None:
        await super().shutdown()
        if self.sockets:
            del self.sockets


class CannotShutDownUnstarted(Store):
    async def shutdown(self) -> None:
        await super().shutdown()
        self.sockets[0].fileno()


class LeavesASocket(Store):
    async def shutdown(self) -> None:
        self.server.left_open += self.sockets[1:]
        self.sockets = self.sockets[:1]
        await super().shutdown()


class LeavesASocketWhenCancelled(Store):
    async def put(self, envelope: Envelope) -> None:
        try:
            await super().put(envelope)
        except asyncio.CancelledError:
            self.server.left_open.append(socket.socket())
            raise


class LeavesATask(Store):
    async def initialize(self) -> None:
        await super().initialize()
        self.server.left_running.append(asyncio.create_task(asyncio.Event().wait()))


@pytest.mark.parametrize(
    ("kind", "check", "seen"),
    [
        (StartsOnce, "starts", "initialize raised ValueError"),
        (NeverStarts, "starts", f"initialize has not ended after {PATIENCE:g} seconds"),
        (AnswersBeforeItStores, "saves_and_passes_on", "text, to 1: 1 copies are meant, 0 are stored"),
        (StoresTwice, "saves_and_passes_on", "text, to 1: 1 copies are meant, 2 are stored"),
        (StoresForTheFirstRecipient, "saves_and_passes_on", "text, to 3: 3 copies are meant, 1 are stored"),
        (ChangesLineEnds, "saves_and_passes_on", r"text, to 1: from octet .* b'\\n.* is stored, b'\\r\\n.* was sent"),
        (DropsNul, "saves_and_passes_on", r"every octet, NUL and 8-bit, to 1: .* b'\\x00.* was sent"),
        (ReadsText, "saves_and_passes_on", r"every octet, NUL and 8-bit, to 1: .* b'\\x80.* was sent"),
        (CutsAtAMegabyte, "saves_and_passes_on", "2 MB, to 1: from octet 1048576"),
        (DoesNotKeepNothing, "saves_and_passes_on", "nothing, to 1: 1 copies are meant, 0"),
        (DoesNotPassOn, "saves_and_passes_on", "the rest of the line was called 0 times"),
        (PassesOnTwice, "saves_and_passes_on", "the rest of the line was called 2 times"),
        (AnswersNoReply, "saves_and_passes_on", "the answer is '250 2.0.0 OK.*', and no Reply"),
        (KeepsWhatTheRestRefuses, "takes_back", "the rest of the line refused the message, and yet 3 copies"),
        (KeepsWhenTheRestFails, "takes_back", "the rest of the line failed, and yet 3 copies"),
        (KeepsWhenTheRestIsCancelled, "takes_back", "the rest of the line was cancelled, and yet 3 copies"),
        (SaysYesForTheRest, "takes_back", "the rest of the line refused the message, and the answer is positive"),
        (MixesMessagesUp, "many_at_once", "1 copies are meant, 0 are stored"),
        (IsTooBusy, "many_at_once", "451 4.3.0 .* came, and not a positive reply"),
        (TakesJunk, "refuses", "a reply that refuses is meant, not Reply.*250"),
        (RaisesOnJunk, "refuses", "a reply that refuses is meant, not ValueError"),
        (KeepsJunk, "refuses", "it was refused, and yet 3 copies"),
        (KeepsWhatWasCancelled, "survives_cancellation", "it was cancelled, and yet 3 copies"),
        (StoresWhatWasCancelled, "survives_cancellation", "it was cancelled, the processor has shut down, and yet 3"),
        (SwallowsCancellation, "survives_cancellation", "a message that was cancelled is answered 250"),
        (FailsBesideACancelledMessage, "survives_cancellation", "beside a message that is cancelled: 451"),
        (DoesNotWaitForever, "survives_a_frozen_server", "is answered positively while the server is away"),
        (HangsOnAFrozenServer, "survives_a_frozen_server", f"a message has no answer after {PATIENCE:g} seconds"),
        (SpoolsInMemory, "survives_a_killed_server", "is answered positively while the server is away"),
        (SaysNeverTryAgain, "survives_a_killed_server", "an outage is answered 554 5.5.0 .*, and 4yz is meant"),
        (StoresWhatItHasPutOff, "survives_a_killed_server", "at the time of an outage, and yet 3 copies"),
        (NeverConnectsAgain, "survives_a_killed_server", "after the return of the server: 451"),
        (CannotShutDownTwice, "shuts_down_twice", "the second shutdown, after a message, raised AttributeError"),
        (CannotShutDownUnstarted, "shuts_down_twice", "the first shutdown, without initialize, raised IndexError"),
        (LeavesASocket, "leaks_nothing", r"left after shutdown: descriptor [0-9]+, socket:"),
        (LeavesASocketWhenCancelled, "leaks_nothing", r"left after shutdown: descriptor [0-9]+, socket:"),
        (LeavesATask, "leaks_nothing", r"left after shutdown: task <Task pending .*Event.wait"),
    ],
)
async def test_what_breaks_it_is_found(server: MemoryServer, kind: type[Store], check: str, seen: str) -> None:
    """Each store breaks one clause; that check fails, and says what it has seen."""
    with pytest.raises(AssertionError, match=f"^{check}: .*{seen}"):
        await processor_contract(subject_of(kind, server, patience=PATIENCE))


def test_every_check_has_a_store_that_breaks_it() -> None:
    [mark] = test_what_breaks_it_is_found.pytestmark  # type: ignore[attr-defined]
    assert {check.__name__ for check in CHECKS} == {check for _, check, _ in mark.args[1]}


async def test_what_is_out_of_reach_may_stay(server: MemoryServer) -> None:
    """A processor that cannot take back need not, but must not say yes."""
    for kind in (KeepsWhatTheRestRefuses, KeepsWhatWasCancelled):
        await processor_contract(subject_of(kind, server, takes_back=False))
    with pytest.raises(AssertionError, match=r"^survives_cancellation: a message that was cancelled is answered 250"):
        await processor_contract(subject_of(SwallowsCancellation, server, takes_back=False))


async def test_one_copy_for_all(server: MemoryServer) -> None:
    """A store may keep a message once, whoever it is for; then it must not keep more."""
    await processor_contract(subject_of(StoresForTheFirstRecipient, server, copy_per_recipient=False))
    with pytest.raises(AssertionError, match=r"^saves_and_passes_on: text, to 3: 1 copies are meant, 3 are stored"):
        await processor_contract(subject_of(Store, server, copy_per_recipient=False))


async def test_what_the_subject_does_not_have(server: MemoryServer) -> None:
    """Without a server behind it and a message to refuse, these are not asked about."""
    await processor_contract(dataclasses.replace(subject_of(TakesJunk, server), server=None, refusable=None))
