"""The envelope and what is written on it: addresses as text, header fields by name, and the octets in pieces."""

from __future__ import annotations

import copy
import mmap
import pickle  # noqa: TID251 - only what is written here is read
from dataclasses import FrozenInstanceError, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guerrilla.envelope import EPOCH, NULL_PATH, Address, Envelope, Headers, mailbox
from guerrilla.smtp.address import parse_path


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (NULL_PATH, ""),
        (Address("postmaster"), "postmaster"),
        (Address("a", "b.test"), "a@b.test"),
        (Address("a.b", "c"), "a.b@c"),
        (Address("", "c"), '""@c'),
        (Address("a b", "c"), '"a b"@c'),
        (Address("a@b", "c"), '"a@b"@c'),
        (Address("a..b", "c"), '"a..b"@c'),
        (Address(".a", "c"), '".a"@c'),
        (Address("a\n", "c"), '"a\n"@c'),
        (Address('a"\\', "c"), '"a\\"\\\\"@c'),
        (Address("ü", "ü.test"), "ü@ü.test"),
        (Address("a", "[192.0.2.1]"), "a@[192.0.2.1]"),
    ],
)
def test_an_address_is_written_with_quotes_where_it_needs_them(address: Address, text: str) -> None:
    assert str(address) == text


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60))
def test_an_address_that_is_written_is_read_as_the_same(user: str) -> None:
    address = Address(user, "b.test")
    assert parse_path(f"<{address}>".encode()) == (address, b"")


def test_the_same_user_at_another_host_is_quoted_where_it_must_be() -> None:
    assert Address("a.b", "x.org").at("y.org") == "a.b@y.org"
    assert Address("a b", "x.org").at("y.org") == '"a b"@y.org'
    assert Address("", "x.org").at("y.org") == '""@y.org'
    assert Address("postmaster").at("") == "postmaster"


def test_an_address_that_is_made_in_less_time_is_as_any_other() -> None:
    address, plain = mailbox("a", "b.test"), Address("a", "b.test")
    assert type(address) is Address
    assert (address, hash(address), repr(address), str(address)) == (plain, hash(plain), repr(plain), str(plain))
    assert (address.ip, address.route) == (None, ())
    assert replace(address, user="c") == Address("c", "b.test")
    assert copy.copy(address) == copy.deepcopy(address) == pickle.loads(pickle.dumps(address)) == plain
    with pytest.raises(FrozenInstanceError):
        address.user = "c"  # type: ignore[misc]


def test_the_null_path_has_neither_user_nor_host() -> None:
    assert NULL_PATH.null_path
    assert not Address("a").null_path
    assert not Address("", "b").null_path


def test_an_address_is_ascii_if_both_its_parts_are() -> None:
    assert Address("a", "b").is_ascii
    assert not Address("ü", "b").is_ascii
    assert not Address("a", "ü").is_ascii


def test_header_fields_keep_their_order_and_are_found_in_any_case() -> None:
    headers = Headers([("To", "a"), ("X", "1"), ("TO", "b")])
    assert list(headers) == [("To", "a"), ("X", "1"), ("TO", "b")]
    assert headers.fields == tuple(headers)
    assert len(headers) == 3
    assert headers.get("to") == "a"
    assert headers.get_all("tO") == ["a", "b"]
    assert "x" in headers
    assert repr(headers) == "Headers([('To', 'a'), ('X', '1'), ('TO', 'b')])"


def test_a_header_field_that_is_not_there_has_a_default() -> None:
    headers = Headers()
    assert headers.get("to") == ""
    assert headers.get("to", "nobody") == "nobody"
    assert headers.get_all("to") == []
    assert "to" not in headers


def test_the_values_of_a_header_field_can_be_changed_without_harm() -> None:
    headers = Headers([("A", "1")])
    headers.get_all("A").append("2")
    assert headers.get_all("A") == ["1"]


def test_an_envelope_is_true_also_when_it_is_empty() -> None:
    assert Envelope()
    assert len(Envelope()) == 0
    assert list(Envelope().chunks()) == []
    assert Envelope().received_at == EPOCH


def test_two_envelopes_are_the_same_only_if_they_are_one() -> None:
    one = Envelope()
    assert one == one
    assert one != Envelope()


def test_two_envelopes_share_nothing() -> None:
    one, other = Envelope(), Envelope()
    one.rcpt_to.append(NULL_PATH)
    one.values["a"] = 1
    one.hashes.append("h")
    assert (other.rcpt_to, other.values, other.hashes) == ([], {}, [])


@given(st.binary(max_size=20), st.binary(min_size=1, max_size=50), st.integers(1, 60), st.booleans())
def test_a_message_in_pieces_is_the_delivery_header_and_its_octets(
    header: bytes, octets: bytes, size: int, mapped: bool
) -> None:
    data: bytes | mmap.mmap = octets
    if mapped:
        data = mmap.mmap(-1, len(octets))
        data.write(octets)
    envelope = Envelope(data=data, delivery_header=header)
    pieces = list(envelope.chunks(size))
    assert b"".join(pieces) == bytes(envelope) == header + octets
    assert len(envelope) == len(header + octets)
    assert all(0 < len(piece) <= max(size, len(header)) for piece in pieces)
