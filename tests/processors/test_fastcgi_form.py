"""A form is encoded piece by piece, and its size is known beforehand."""

from __future__ import annotations

from urllib.parse import parse_qsl, unquote_to_bytes

from hypothesis import example, given
from hypothesis import strategies as st

from guerrilla.processors.fastcgi.form import encode, encode_fields, encoded_length

EVERY_OCTET = bytes(range(256))


@given(st.binary())
@example(EVERY_OCTET)
@example(b"plain text with a few = signs & more\r\n" * 10)
def test_what_is_encoded_is_decoded_the_same(octets: bytes) -> None:
    """Any decoder gets the octets back, and no octet has a meaning in a form."""
    encoded = encode(octets)
    assert unquote_to_bytes(encoded.replace(b"+", b" ")) == octets
    assert not set(encoded) & set(b"&=;\r\n\0 ")
    assert encoded.isascii()


@given(st.one_of(st.binary(), st.text("ab=\r\n ", max_size=50).map(str.encode)))
@example(EVERY_OCTET)
@example(b"")
def test_the_size_is_counted_right(octets: bytes) -> None:
    """It is that of the encoded value, for text and for what is better escaped as a whole."""
    assert encoded_length(octets) == len(encode(octets))


def test_text_stays_short() -> None:
    """Ordinary mail grows by little, since PHP's post_max_size counts what is sent."""
    text = b"Dear Joe, this is a line as they are in mail; the next one is empty.\r\n\r\n" * 100
    assert len(encode(text)) < 1.2 * len(text)


@given(st.lists(st.tuples(st.sampled_from(["rcpt_to_0", "helo"]), st.text(st.characters(codec="utf-8"))), max_size=5))
def test_fields_are_kept_apart(fields: list[tuple[str, str]]) -> None:
    """Whatever a client says, it makes no field of its own."""
    assert parse_qsl(encode_fields(fields).decode(), keep_blank_values=True, strict_parsing=bool(fields)) == fields


def test_what_is_no_text_becomes_a_question_mark() -> None:
    """A lone surrogate cannot be written in UTF-8, and raises nothing."""
    assert encode_fields([("helo", "plain\udc80")]) == b"helo=plain%3F"
