"""A message in the table says what its octets are, also when there are none."""

from __future__ import annotations

import zlib
from typing import Any

import pytest

from guerrilla.envelope import Address, Envelope, Headers
from guerrilla.processors.compressor import CompressedMail
from guerrilla.stores.sql_letter import Letter
from guerrilla.stores.sql_table import COLUMNS
from guerrilla.stores.sql_values import COPIED

BODY = COLUMNS.index("body")


async def test_an_empty_message_after_compressor_is_a_zlib_stream_of_nothing() -> None:
    envelope = Envelope(rcpt_to=[Address("a", "x")], queued_id="q" * 32)
    envelope.values["zlib-compressor"] = CompressedMail(envelope)
    letter = Letter(envelope, "mx.test")
    assert letter.rows[0][BODY] == "gzip"
    assert zlib.decompress(await letter.mail()) == b""


async def test_what_is_in_redis_is_not_in_the_table() -> None:
    envelope = Envelope(rcpt_to=[Address("a", "x")], queued_id="q" * 32, data=b"body", values={"redis": "redis"})
    letter = Letter(envelope, "mx.test")
    assert (letter.rows[0][BODY], letter.size, await letter.mail()) == ("redis", 0, b"")


async def test_a_zstd_frame_is_named_so() -> None:
    envelope = Envelope(rcpt_to=[Address("a", "x")], queued_id="q" * 32)
    envelope.values["zlib-compressor"] = compressed = CompressedMail(envelope, "zstd")
    letter = Letter(envelope, "mx.test")
    assert letter.rows[0][BODY] == "zstd"
    assert await letter.mail() == await compressed.data()


def test_recipients_and_hashes_may_be_tuples() -> None:
    envelope: Any = Envelope(queued_id="q" * 32)
    envelope.rcpt_to, envelope.hashes = (Address("a", "x"), Address("b", "x")), ("h" * 32, "i" * 32)
    assert Letter(envelope, "mx.test").keys == [("h" * 32, "a@x"), ("i" * 32, "b@x")]


class Asked(Headers):
    """A header whose fields are not where ours has them."""

    def get(self, name: str, default: str = "") -> str:
        return {"Sender": "<a@x>", "Message-ID": "<1@x>"}.get(name, default)


class Mapped:
    """A header that is none of ours, and can be asked alone."""

    get = Asked().get


@pytest.mark.parametrize("header", [Asked(), Mapped()])
def test_a_header_of_another_kind_is_asked_for_its_fields(header: Any) -> None:
    envelope = Envelope(rcpt_to=[Address("a", "x")], queued_id="q" * 32, header=header)
    [values] = Letter(envelope, "mx.test").rows
    row = dict(zip(COLUMNS, values, strict=True))
    assert (row["sender"], row["message_id"], row["reply_to"]) == ("a@x", "1@x", "")


def test_fields_may_be_lists() -> None:
    envelope: Any = Envelope(rcpt_to=[Address("a", "x")], queued_id="q" * 32)
    envelope.header = Headers()
    envelope.header.fields = [["Sender", "<a@x>"]]
    [row] = Letter(envelope, "mx.test").rows
    assert row[-1] == "a@x"


class Shortened:
    """What a processor in Compressor's place may leave."""

    def __init__(self, encoding: Any, octets: Any = b"x") -> None:
        self.encoding = encoding
        self.octets = octets

    async def data(self) -> Any:
        return self.octets


def test_an_encoding_is_made_to_fit() -> None:
    values: dict[str, object] = {"zlib-compressor": Shortened("l\0z\ud800")}
    [row] = Letter(Envelope(rcpt_to=[Address("a", "x")], queued_id="q" * 32, values=values), "mx.test").rows
    assert row[BODY] == "lz?"


@pytest.mark.parametrize("encoding", [None, 5, b"gzip", object()])
def test_an_encoding_that_is_no_text_is_the_affair_of_its_message(encoding: object) -> None:
    """It is found before the message is in a batch, which would fail as a whole."""
    values: dict[str, object] = {"zlib-compressor": Shortened(encoding)}
    with pytest.raises(TypeError):
        Letter(Envelope(rcpt_to=[Address("a", "x")], queued_id="q" * 32, values=values), "mx.test")


async def test_compressed_octets_of_another_kind() -> None:
    values: dict[str, object] = {"zlib-compressor": Shortened("gzip", bytearray(b"x"))}
    letter = Letter(Envelope(rcpt_to=[Address("a", "x")], queued_id="q" * 32, values=values), "mx.test")
    mail = await letter.mail()
    assert type(mail) is bytes
    assert mail == b"x"


class Octets(bytes):
    """Those of a library, which may be anything as plain ones."""


class Ready(Shortened):
    """One that has its octets at hand, or says so."""

    def at_hand(self) -> Any:
        return self.octets


@pytest.mark.parametrize(
    ("compressed", "octets"),
    [
        (Ready("gzip", b"ready"), b"ready"),
        (Ready("gzip", None), None),
        (Ready("gzip", "text"), None),
        (Ready("gzip", Octets(b"x")), None),
        (Shortened("gzip"), None),
    ],
)
def test_compressed_octets_need_not_be_awaited_where_they_are_at_hand(compressed: Any, octets: bytes | None) -> None:
    values: dict[str, object] = {"zlib-compressor": compressed}
    letter = Letter(Envelope(rcpt_to=[Address("a", "x")], queued_id="q" * 32, values=values), "mx.test")
    assert letter.mail_at_hand() == octets


async def test_the_octets_are_those_that_the_row_says_they_are() -> None:
    """Also when somebody has changed the envelope meanwhile."""
    envelope = Envelope(rcpt_to=[Address("a", "x")], queued_id="q" * 32, data=b"x" * 100_000)
    envelope.values["zlib-compressor"] = CompressedMail(envelope)
    letter = Letter(envelope, "mx.test")
    envelope.values.clear()
    assert letter.rows[0][BODY] == "gzip"
    assert zlib.decompress(await letter.mail()) == bytes(envelope)


class Signed(Envelope):
    """One that a processor has put in the place of ours."""

    def __bytes__(self) -> bytes:
        return b"signed"


def test_octets_that_are_few_and_in_an_envelope_of_ours_are_made_ready_for_sqlite() -> None:
    envelope = Envelope(rcpt_to=[Address("a", "x")], queued_id="q" * 32, delivery_header=b"header\r\n", data=b"\0x\r\n")
    letter = Letter(envelope, "mx.test")
    assert letter.for_sqlite() == letter.mail_at_hand() == b"header\r\n\0x\r\n"


@pytest.mark.parametrize(
    "changes",
    [{"data": b"x" * COPIED}, {"values": {"redis": "redis"}}, {"values": {"zlib-compressor": Shortened("gzip")}}],
    ids=["many", "elsewhere", "compressed"],
)
def test_other_octets_are_not_made_ready_for_sqlite(changes: dict[str, Any]) -> None:
    letter = Letter(Envelope(rcpt_to=[Address("a", "x")], queued_id="q" * 32, **changes), "mx.test")
    assert letter.for_sqlite() is None


def test_what_another_envelope_says_its_octets_are_is_kept() -> None:
    letter = Letter(Signed(rcpt_to=[Address("a", "x")], queued_id="q" * 32, data=b"x"), "mx.test")
    assert (letter.for_sqlite(), letter.mail_at_hand()) == (None, b"signed")


@pytest.mark.parametrize(
    ("recipient", "to"),
    [
        (Address("a1", "x"), "a1@mx.test"),
        (Address("a b", "x"), '"a b"@mx.test'),
        (Address("a.b", "x"), "a.b@mx.test"),
        (Address("\u00e9", "x"), "\u00e9@mx.test"),
    ],
)
def test_to_is_the_recipient_at_our_host(recipient: Address, to: str) -> None:
    letter = Letter(Envelope(rcpt_to=[recipient], queued_id="q" * 32), "mx.test")
    assert letter.rows[0][COLUMNS.index("to")] == to == recipient.at("mx.test")


@pytest.mark.parametrize(
    ("sender", "column"),
    [("A <a@x>", "a@x"), ("a@x", "a@x"), ("<a@x", "a@x"), ("<b@y> <a@x> c", "a@x"), (">a@x<", ""), ("a@x>", "a@x>")],
)
def test_of_an_address_field_what_is_in_the_last_brackets_is_kept(sender: str, column: str) -> None:
    envelope = Envelope(rcpt_to=[Address("a", "x")], queued_id="q" * 32, header=Headers([("SENDER", sender)]))
    assert Letter(envelope, "mx.test").rows[0][COLUMNS.index("sender")] == column
