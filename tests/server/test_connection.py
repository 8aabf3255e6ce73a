"""A connection: the dialogue over a real socket, however its octets are cut and however the client ends it."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

import pytest

from guerrilla.backends.answer import Answer
from guerrilla.envelope import Envelope
from guerrilla.server.connection import LINGER
from guerrilla.smtp.replies import LOCAL_ERROR, NO_SUCH_USER, RECIPIENT_OK, SHUTTING_DOWN, Reply, queued
from guerrilla.testing.recording import RecordingBackend

if TYPE_CHECKING:
    from tests.server.conftest import Client, Gate, HouseMaker

WHOLE = (
    b"EHLO client.test\r\nMAIL FROM:<a@client.test>\r\nRCPT TO:<b@example.com>\r\nRCPT TO:<c@example.com>\r\n"
    b"DATA\r\nSubject: Hello\r\n\r\n..\r\n.\r\nQUIT\r\n"
)
CODES = [b"220", b"250", b"250", b"250", b"250", b"354", b"250", b"221"]


def codes(octets: bytes) -> list[bytes]:
    """Return the code of each reply."""
    return [line[:3] for line in octets.split(b"\r\n")[:-1] if line[3:4] == b" "]


def segments_received(client: Client) -> int:
    """Return how many segments with data the kernel has had for the client: ``tcpi_data_segs_in`` of tcp(7)."""
    info = client.sock.getsockopt(6, 11, 160)
    return int(struct.unpack_from("I", info, 152)[0])


async def test_a_message_is_taken_with_all_that_is_known_of_its_client(serve: HouseMaker) -> None:
    house = serve()
    client = await house.connect()
    assert await client.reply() == "220 mx.test ESMTP guerrilla"
    assert (await client.say("EHLO client.test")).startswith("250-mx.test Hello\n250-PIPELINING\n")
    await client.talk("MAIL FROM:<a@client.test>", "RCPT TO:<b@example.com>", "DATA")
    await client.send(b"Subject: Hello\r\n\r\nYou\r\n")
    assert await client.say(".") == f"250 2.0.0 OK: queued as {1:032x}"
    assert await client.say("QUIT") == "221 2.0.0 Bye"
    assert await client.rest() == b""
    (envelope,) = house.backend.envelopes
    assert (envelope.remote_ip, envelope.remote_port) == ("127.0.0.1", client.port)
    assert (envelope.helo, envelope.esmtp, envelope.tls, envelope.server) == ("client.test", True, None, "127.0.0.1:0")
    assert (str(envelope.mail_from), [str(each) for each in envelope.rcpt_to]) == ("a@client.test", ["b@example.com"])
    assert envelope.data == b"Subject: Hello\r\n\r\nYou\r\n"


async def test_a_message_is_one_line_of_the_log(serve: HouseMaker) -> None:
    house = serve()
    client = await house.greeted()
    await client.say("MAIL FROM:<>")
    for number in range(12):
        await client.say(f"RCPT TO:<user{number}@example.com>")
    await client.talk("DATA", "You\r\n.")
    (record,) = house.log
    assert record.pop("ms") >= 0
    assert record == {
        "event": "message",
        "log_level": "info",
        "outcome": "kept",
        "queued_id": f"{1:032x}",
        "client": "127.0.0.1",
        "sender": "",
        "recipients": [*(f"user{number}@example.com" for number in range(10)), "and 2 more"],
        "size": 5,
        "reply": f"250 2.0.0 OK: queued as {1:032x}",
    }


async def test_what_is_refused_is_in_the_log_with_its_reason(serve: HouseMaker) -> None:
    house = serve(max_size=10)
    client = await house.greeted()
    await client.say("RCPT TO:<b@elsewhere.test>")
    await client.talk("MAIL FROM:<a@client.test>", "RCPT TO:<b@example.com>", "DATA", "much too large\r\n.")
    command, message = house.log
    assert (command["event"], command["line"]) == ("command refused", b"RCPT TO:<b@elsewhere.test>")
    assert command["reply"] == "503 5.5.1 Send MAIL first"
    assert (message["event"], message["outcome"], message["size"]) == ("message", "refused", 16)
    assert message["reply"].startswith("552 5.3.4")


async def test_octets_one_by_one_make_the_same_dialogue(serve: HouseMaker) -> None:
    house = serve()
    client = await house.connect()
    for octet in WHOLE:
        await client.send(bytes([octet]))
    assert codes(await client.rest()) == CODES
    assert house.backend.envelopes[0].data == b"Subject: Hello\r\n\r\n.\r\n"


async def test_all_in_one_segment_makes_the_same_dialogue(serve: HouseMaker) -> None:
    house = serve()
    client = await house.connect()
    await client.send(WHOLE)
    assert codes(await client.rest()) == CODES
    assert house.backend.envelopes[0].data == b"Subject: Hello\r\n\r\n.\r\n"


async def test_the_replies_to_a_burst_leave_in_one_segment(serve: HouseMaker) -> None:
    house = serve()
    client = await house.connect()
    await client.reply()
    before = segments_received(client)
    await client.send(WHOLE.partition(b"Subject")[0])
    assert [(await client.reply())[:3] for _ in range(5)] == ["250", "250", "250", "250", "354"]
    assert segments_received(client) - before == 1


async def test_a_connection_brings_one_message_after_another(serve: HouseMaker) -> None:
    house = serve()
    client = await house.greeted()
    for number in range(3):
        assert await client.talk("MAIL FROM:<>", "RCPT TO:<b@example.com>", "DATA") == ["250", "250", "354"]
        assert (await client.say(f"{number}\r\n.")).endswith(f"{number + 1:032x}")
    assert [envelope.data for envelope in house.backend.envelopes] == [b"0\r\n", b"1\r\n", b"2\r\n"]


async def test_a_client_that_ends_its_side_after_the_dot_still_gets_its_250(serve: HouseMaker, gate: Gate) -> None:
    house = serve(gate)
    client = await house.connect()
    await client.begin()
    await client.send(b"You\r\n.\r\n")
    client.end()
    await gate.asked()
    gate.open(queued("x"))
    assert await client.rest() == b"250 2.0.0 OK: queued as x\r\n"


async def test_all_that_was_said_before_the_end_of_a_side_is_answered(serve: HouseMaker) -> None:
    house = serve()
    client = await house.connect()
    await client.send(WHOLE.removesuffix(b"QUIT\r\n"))
    client.end()
    assert codes(await client.rest()) == CODES[:-1]


@pytest.mark.parametrize("vanish", ["close", "reset", "end"])
async def test_a_client_that_vanishes_in_data_leaves_nothing(serve: HouseMaker, vanish: str) -> None:
    house = serve(spool_threshold=1000)
    client = await house.connect()
    await client.begin()
    await client.send(b"half of a message\r\n" * 1000)
    getattr(client, vanish)()
    await house.empty()
    assert house.backend.envelopes == []
    assert house.memory.held == 0


async def test_a_client_that_vanishes_in_the_middle_of_a_line_leaves_nothing(serve: HouseMaker) -> None:
    house = serve()
    client = await house.greeted()
    await client.send(b"MAIL FROM:<a@cli")
    client.reset()
    await house.empty()


@pytest.mark.parametrize("vanish", ["close", "reset"])
async def test_a_message_is_kept_though_its_client_vanishes_before_the_answer(
    serve: HouseMaker, gate: Gate, vanish: str
) -> None:
    house = serve(gate)
    client = await house.connect()
    await client.begin()
    await client.send(b"You\r\n.\r\n")
    await gate.asked()
    assert house.memory.held == 5
    client.reset() if vanish == "reset" else client.close()
    if vanish == "reset":
        await house.empty()
        assert house.memory.held == 5, "it is held until the backend has done with it"
    gate.open(queued("x"))
    await house.until(lambda: house.log)
    (record,) = house.log
    assert (record["outcome"], record["size"]) == ("kept", 5)
    assert house.memory.held == 0


async def test_a_421_of_the_backend_ends_the_dialogue(serve: HouseMaker) -> None:
    house = serve(RecordingBackendThat(SHUTTING_DOWN))
    client = await house.connect()
    await client.begin()
    assert (await client.say("You\r\n.")).startswith("421 4.3.2")
    assert await client.rest() == b""


async def test_each_recipient_is_asked_about(serve: HouseMaker) -> None:
    house = serve(RecordingBackendThat(rcpt=NO_SUCH_USER))
    client = await house.greeted()
    assert await client.talk("MAIL FROM:<>", "RCPT TO:<b@example.com>", "DATA") == ["250", "550", "503"]
    assert [record["event"] for record in house.log] == ["command refused"], "a recipient is no message"


class RecordingBackendThat:
    """A backend that always answers the same."""

    def __init__(self, message: Reply = queued("x"), rcpt: Reply | None = None) -> None:  # noqa: B008 - a value
        self._message, self._rcpt = message, rcpt

    @property
    def validates(self) -> bool:
        return self._rcpt is not None

    async def process(self, envelope: Envelope) -> Reply:
        return self._message

    async def validate_rcpt(self, envelope: Envelope) -> Reply:
        assert self._rcpt is not None
        return self._rcpt


async def raises(envelope: Envelope) -> Reply:
    raise ConnectionError("the store has gone")


def raises_at_once(envelope: Envelope) -> Awaitable[Reply]:
    raise ConnectionError("the store has gone")


async def answers_nonsense(envelope: Envelope) -> Any:
    return "250 OK"


def answers_at_once(envelope: Envelope) -> Any:
    return queued("x")  # which is nothing that can be awaited


async def cancels_itself(envelope: Envelope) -> Reply:
    raise asyncio.CancelledError


class Broken:
    """A backend with a fault."""

    validates = True

    def __init__(self, fault: Any) -> None:
        self.process = fault
        self.validate_rcpt = fault


@pytest.mark.parametrize("fault", [raises, raises_at_once, answers_nonsense, answers_at_once, cancels_itself])
async def test_a_fault_of_the_backend_is_451_for_the_client_and_an_error_in_the_log(
    serve: HouseMaker, fault: Any
) -> None:
    broken = Broken(fault)
    house = serve(broken)
    client = await house.greeted()
    assert await client.say("MAIL FROM:<>") == "250 2.1.0 Sender OK"
    assert (await client.say("RCPT TO:<b@example.com>")).startswith("451 4.3.0")
    broken.validate_rcpt = RecordingBackendThat(rcpt=Reply(250)).validate_rcpt
    assert await client.talk("RCPT TO:<b@example.com>", "DATA") == ["250", "354"]
    assert (await client.say("You\r\n.")).startswith("451 4.3.0")
    assert await client.talk("NOOP") == ["250"]
    first, second, message = house.log
    assert (first["event"], second["event"], message["outcome"]) == ("backend failed", "backend failed", "deferred")
    assert isinstance(second["exc_info"], BaseException)


async def test_one_answer_that_a_backend_gives_to_several_is_told_to_each(serve: HouseMaker) -> None:
    shared = Answer(loop=asyncio.get_running_loop())
    shared.asker = shared.work = None
    asked: list[Envelope] = []

    def ask(envelope: Envelope) -> asyncio.Future[Reply]:
        asked.append(envelope)
        return shared

    house = serve(Broken(ask))
    clients = [await house.greeted() for _ in range(3)]
    for client in clients:
        await client.send(b"MAIL FROM:<>\r\nRCPT TO:<b@example.com>\r\n")
        assert (await client.reply())[:3] == "250"
    await house.until(lambda: len(asked) == len(clients))
    shared.set_result(RECIPIENT_OK)
    assert [await client.reply() for client in clients] == [str(RECIPIENT_OK)] * 3


async def test_what_was_read_in_the_turn_that_a_client_is_cut_off_in_is_not_kept(serve: HouseMaker) -> None:
    """Nobody would tell the client, which sends it again."""
    house = serve()
    client = await house.connect()
    await client.begin()
    (connection,) = house.server.connections
    connection.data_received(b"You\r\n.\r\n")
    connection.abort()
    await house.empty()
    assert connection._answer is None, "the backend was not asked"


class Panic(BaseException):
    """As a library raises it that is written in Rust."""


def panics(envelope: Envelope) -> Awaitable[Reply]:
    raise Panic


async def test_what_one_client_brings_about_takes_no_other_its_turn(serve: HouseMaker) -> None:
    """What has come from all of them in one turn of the loop is worked off together."""
    house = serve(Broken(panics))
    before, client, behind = [await house.greeted() for _ in range(3)]
    assert await client.talk("MAIL FROM:<>") == ["250"]
    for each, octets in ((before, b"NOOP\r\n"), (client, b"RCPT TO:<b@example.com>\r\n"), (behind, b"NOOP\r\n")):
        each.sock.send(octets)  # not by the loop, which is to find all three
    assert [await before.reply(), await behind.reply()] == ["250 2.0.0 OK", "250 2.0.0 OK"]
    assert await client.rest() == b""
    (record,) = house.log
    assert record["event"] == "connection failed"
    assert isinstance(record["exc_info"], Panic)


class Spoils(RecordingBackendThat):
    """A backend that leaves on the envelope what does not belong there."""

    async def process(self, envelope: Any) -> Reply:
        envelope.rcpt_to = None
        return self._message

    async def validate_rcpt(self, envelope: Any) -> Reply:
        envelope.rcpt_to = None
        return await super().validate_rcpt(envelope)


@pytest.mark.parametrize("reply", [queued("x"), LOCAL_ERROR, NO_SUCH_USER])
async def test_what_cannot_be_told_of_is_answered_all_the_same(serve: HouseMaker, reply: Reply) -> None:
    """Nobody else would: the limits of time are the backend's, and that has answered."""
    house = serve(Spoils(reply))
    client = await house.greeted()
    await client.talk("MAIL FROM:<>", "RCPT TO:<b@example.com>", "DATA")
    assert await client.say("You\r\n.") == str(reply)
    assert await client.talk("NOOP") == ["250"]
    (record,) = house.log
    assert (record["event"], record["reply"]) == ("an answer could not be told of", str(reply))


@pytest.mark.parametrize("reply", [Reply(250), NO_SUCH_USER])
async def test_a_client_that_cannot_be_answered_is_cut_off(serve: HouseMaker, reply: Reply) -> None:
    house = serve(Spoils(rcpt=reply))
    client = await house.greeted()
    await client.send(b"MAIL FROM:<>\r\nRCPT TO:<b@example.com>\r\n")
    assert codes(await client.rest()) in ([b"250"], []), "a reset may sweep away what is not read yet"
    (record,) = house.log
    assert record["event"] == "a client could not be answered"


async def test_a_recipient_that_a_processor_has_struck_out_itself_is_refused(serve: HouseMaker) -> None:
    def strike_out(envelope: Envelope) -> Reply:
        envelope.rcpt_to.pop()
        return NO_SUCH_USER

    house = serve(RecordingBackend(on_rcpt=strike_out))
    client = await house.greeted()
    await client.talk("MAIL FROM:<>")
    assert await client.talk("RCPT TO:<nobody@example.com>", "NOOP") == ["550", "250"]
    assert house.log == [], "it could be told of"


async def test_a_client_that_talks_on_reads_why_it_was_sent_away(serve: HouseMaker) -> None:
    house = serve()
    client = await house.connect()
    await client.send(b"POST / HTTP/1.1\r\n" + b"Host: mx.test\r\n" * 20000)
    assert codes(await client.rest()) == [b"220", b"554"]
    assert not client.was_reset, "a reset may sweep away what is not read yet"


async def test_a_client_that_talks_on_after_the_last_word_is_cut_off_in_the_end(serve: HouseMaker) -> None:
    house = serve()
    client = await house.connect()
    await client.send(b"GET / HTTP/1.1\r\n")
    await client.rest()
    await client.send(b"Host: mx.test\r\n")
    (connection,) = house.server.connections
    connection.check(house.server.clock() + LINGER + 0.1)
    await house.empty()
    assert house.backend.envelopes == []
