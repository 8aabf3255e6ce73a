"""FastCGI records go out as the specification has them, and only a whole and proper answer is taken for one."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.processors.fake_fastcgi import PARAMS, STDERR, STDIN, STDOUT, Caller, Received, end, page, record

from guerrilla.processors.fastcgi.protocol import (
    MAX_STDERR,
    MAX_STDOUT,
    Output,
    OutputReader,
    ProtocolError,
    Response,
    request,
    response,
)


def read(data: bytes, cuts: Sequence[int] = ()) -> OutputReader:
    """Feed the data, cut at these places."""
    reader = OutputReader()
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    for start, stop in itertools.pairwise(places):
        reader.feed(data[start:stop])
    return reader


async def received(pieces: Sequence[bytes]) -> Received:
    """Return the request as the server of the tests reads it; nothing may be left over."""
    stream = asyncio.StreamReader()
    stream.feed_data(b"".join(pieces))
    stream.feed_eof()
    caller = Caller.__new__(Caller)
    caller.reader = stream
    request_read = await caller.read_request()
    assert stream.at_eof()
    return request_read


def test_a_request_octet_for_octet() -> None:
    """BEGIN_REQUEST with role and flag, PARAMS and its end, STDIN and its end: as in the specification's appendix."""
    assert b"".join(request({"A": "bc"}, [b"xyz"])) == (
        b"\x01\x01\x00\x01\x00\x08\x00\x00" + b"\x00\x01\x01\x00\x00\x00\x00\x00"
        b"\x01\x04\x00\x01\x00\x05\x00\x00" + b"\x01\x02Abc"
        b"\x01\x04\x00\x01\x00\x00\x00\x00"
        b"\x01\x05\x00\x01\x00\x03\x00\x00" + b"xyz"
        b"\x01\x05\x00\x01\x00\x00\x00\x00"
    )  # fmt: skip


@pytest.mark.parametrize("size", [0, 127, 128, 255, 256, 65_535, 70_000])
async def test_values_of_any_length(size: int) -> None:
    """A value of 128 octets and more has its length in four, and one that is longer than a record goes over several."""
    sent = {"QUERY_STRING": "x" * size, "NEXT": "y"}
    got = await received(list(request(sent)))
    assert (got.params, got.pairs, got.keep) == (sent, 2, True)


@pytest.mark.parametrize("size", [1, 65_535, 65_536, 200_000])
async def test_bodies_of_any_length(size: int) -> None:
    """A piece that is longer than a record goes over several, and no piece that is sent is longer than two."""
    body = bytes(range(256)) * (size // 256) + b"z" * (size % 256)
    pieces = list(request({}, [body, b"", b"tail"]))
    assert (await received(pieces)).stdin == body + b"tail"
    assert max(map(len, pieces)) <= 65_535 + 24


@given(value=st.text(st.characters(codec="utf-8")))
@example(value="x\0\r\n\x01\x04")
def test_no_value_becomes_a_name(value: str) -> None:
    """Lengths stand in front, so a value may hold anything."""
    assert asyncio.run(received(list(request({"A": value, "B": "b"})))).params == {"A": value, "B": "b"}


def test_the_last_piece_holds_the_end() -> None:
    """It holds the last octets of the body, so that an answer before it is one to a body that was not read."""
    assert list(request({}, [b"a", b"b"]))[-1] == record(STDIN, b"b") + record(STDIN)


ANSWER = (
    record(STDOUT, b"X: y\r\n\r\nSA", padding=255)
    + record(STDERR, b"one ", padding=1)
    + record(STDOUT, b"VED")
    + record(STDERR, b"two")
    + record(STDOUT)
    + record(STDERR)
    + end()
)


@given(cuts=st.lists(st.integers(min_value=0)))
@example(cuts=list(range(len(ANSWER))))
def test_an_answer_cut_anywhere(cuts: list[int]) -> None:
    """Records may come in any pieces, with padding, STDERR in between, and the verdict split over two of them."""
    reader = read(ANSWER, cuts)
    assert reader.output == Output(b"X: y\r\n\r\nSAVED", b"one two", 0)
    assert reader.clean


def test_an_answer_cut_short() -> None:
    """Nothing less than the whole is an answer."""
    for length in range(len(ANSWER)):
        reader = read(ANSWER[:length])
        assert reader.output is None
        assert not reader.clean


def test_what_comes_after_the_answer() -> None:
    """It is not part of it, and the connection is not clean."""
    reader = read(ANSWER + b"\x01")
    assert reader.output is not None
    assert not reader.clean


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(record(STDOUT, b"x", version=0), id="version 0"),
        pytest.param(record(STDOUT, b"x", version=2), id="version 2"),
        pytest.param(record(STDOUT, b"x", request_id=0), id="request id 0, management"),
        pytest.param(record(STDOUT, b"x", request_id=2), id="another request's id"),
        pytest.param(record(STDIN, b"x"), id="a record that only clients send"),
        pytest.param(record(PARAMS), id="parameters"),
        pytest.param(record(11, b"\x63" + bytes(7)), id="unknown type"),
        pytest.param(record(3, bytes(7)), id="END_REQUEST too short"),
        pytest.param(record(3, bytes(9)), id="END_REQUEST too long"),
        pytest.param(record(3), id="END_REQUEST empty"),
        pytest.param(page(b"SAVED")[: -len(end())] + end(protocol_status=1), id="CANT_MPX_CONN"),
        pytest.param(page(b"SAVED")[: -len(end())] + end(protocol_status=2), id="OVERLOADED"),
        pytest.param(page(b"SAVED")[: -len(end())] + end(protocol_status=255), id="a status that there is not"),
        pytest.param(b"HTTP/1.1 200 OK\r\n\r\nSAVED", id="HTTP"),
        pytest.param(record(STDOUT, bytes(MAX_STDOUT // 2)) * 2 + record(STDOUT, b"x"), id="one octet over the cap"),
    ],
)
def test_what_is_no_answer(data: bytes) -> None:
    """It is refused where it is seen, however much may follow."""
    with pytest.raises(ProtocolError):
        read(data)


def test_the_largest_answer() -> None:
    """64 kB are taken."""
    reader = read(record(STDOUT, bytes(MAX_STDOUT // 2)) * 2 + end())
    assert reader.output is not None
    assert len(reader.output.stdout) == MAX_STDOUT


def test_endless_stderr() -> None:
    """It is cut, not refused: the script may have kept the message, and must not keep it twice for being talkative."""
    reader = read(record(STDERR, b"e" * 65_535) * 10 + page(b"SAVED"))
    assert reader.output is not None
    assert reader.output.stderr == b"e" * MAX_STDERR
    assert response(reader.output).body == b"SAVED"


@given(st.lists(st.binary()))
def test_anything_at_all(pieces: list[bytes]) -> None:
    """Whatever comes, nothing but ProtocolError is raised."""
    reader = OutputReader()
    with suppress(ProtocolError):
        for piece in pieces:
            reader.feed(piece)


@pytest.mark.parametrize(
    ("stdout", "expected"),
    [
        (b"Content-type: text/html\r\n\r\nPASSED", Response(200, b"PASSED")),
        (b"Content-type: text/html\n\nPASSED", Response(200, b"PASSED")),
        (b"Status: 404 Not Found\r\nX:y\r\n\r\n", Response(404, b"")),
        (b"status:503\r\n\r\nx\r\n\r\ny", Response(503, b"x\r\n\r\ny")),
        (b"Content-Length: 2\r\nContent-Encoding: identity\r\n\r\nab", Response(200, b"ab")),
    ],
)
def test_responses(stdout: bytes, expected: Response) -> None:
    """Status and body are those of RFC 3875 section 6; without Status it is 200."""
    assert response(Output(stdout, b"", 0)) == expected


@pytest.mark.parametrize(
    "stdout",
    [
        pytest.param(b"", id="nothing: STDERR only"),
        pytest.param(b"PASSED", id="no header"),
        pytest.param(b"Content-type: text/html\r\nPASSED", id="the header does not end"),
        pytest.param(b"\r\nPASSED\r\n\r\n", id="an empty header"),
        pytest.param(b"hello world\r\n\r\nPASSED", id="a header that is none"),
        pytest.param(b"A b: c\r\n\r\nPASSED", id="a blank in a name"),
        pytest.param(b"Status: 2000\r\n\r\nPASSED", id="a status of four digits"),
        pytest.param(b"Status: 200OK\r\n\r\nPASSED", id="a status without a blank"),
        pytest.param(b"Status: \xd9\xa2\xd9\xa0\xd9\xa0\r\n\r\nPASSED", id="Arabic digits"),
        pytest.param(b"Status:\r\n\r\nPASSED", id="an empty status"),
        pytest.param(b"Content-Length: 7\r\n\r\nPASSED", id="too long a length"),
        pytest.param(b"Content-Length: 5\r\n\r\nPASSED", id="too short a length"),
        pytest.param(b"Content-Length: +6\r\n\r\nPASSED", id="a length with a sign"),
        pytest.param(b"Content-Encoding: gzip\r\n\r\n\x1f\x8bPASSED", id="packed"),
    ],
)
def test_what_is_no_response(stdout: bytes) -> None:
    """An answer that CGI does not have, or that was cut, decides nothing."""
    with pytest.raises(ProtocolError):
        response(Output(stdout, b"", 0))


def test_exit_status() -> None:
    """A script that failed has decided nothing, whatever it wrote before."""
    with pytest.raises(ProtocolError, match="status 255"):
        response(Output(b"X: y\r\n\r\nSAVED", b"", 255))


@given(st.binary())
def test_any_output(stdout: bytes) -> None:
    """Whatever a script writes, nothing but ProtocolError is raised."""
    with suppress(ProtocolError):
        response(Output(stdout, b"", 0))
