"""What looks at every octet: in Python, and as it is used here, which is in C where the package is compiled."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import guerrilla.smtp.session as session
from guerrilla import scan
from guerrilla.header import parse_header

MOSTLY_ENDS = st.lists(st.sampled_from([b"\r\n", b"\r\n", b"\r", b"\n", b".", b"a", b"\x00", b"a" * 40])).map(b"".join)
LARGE = st.tuples(MOSTLY_ENDS, st.integers(0, 20), MOSTLY_ENDS).map(
    lambda parts: parts[0] + b"a.b\r\n" * (1000 * parts[1]) + parts[2]
)
CONTENT = MOSTLY_ENDS | LARGE

only_crlf = pytest.mark.parametrize("only_crlf", [scan.plain_only_crlf, scan.only_crlf])
leading_dot = pytest.mark.parametrize("leading_dot", [scan.plain_leading_dot, scan.leading_dot])


@only_crlf
@given(CONTENT)
@example(b"")
@example(b"\n")
@example(b"\r")
@example(b"\n\r")
@example(b"\r\r\n")
@example(b"\r\n\n")
def test_a_newline_that_is_no_crlf_is_found(only_crlf: Callable[[bytes], bool], octets: bytes) -> None:
    assert only_crlf(octets) is (re.search(rb"\r(?!\n)|(?<!\r)\n", octets) is None)


@only_crlf
@pytest.mark.parametrize("size", [*range(70), 4096, 100_001])
def test_it_is_found_wherever_it_stands(only_crlf: Callable[[bytes], bool], size: int) -> None:
    octets = bytearray(b"a" * size)
    for place in {*range(min(size, 70)), *range(max(0, size - 70), size)}:
        for newline in b"\r\n":
            octets[place] = newline
            assert not only_crlf(bytes(octets))
        octets[place] = ord("a")
    assert only_crlf(bytes(octets))


@leading_dot
@given(CONTENT)
@example(b"")
@example(b".")
@example(b"\r\n.")
@example(b"\n.\r\n.")
@example(b"a" * 4096)
@example(b"\r\n." + b"a" * 4096)
@example(b"a.b\r\n" * 1000 + b"\r\n.")
def test_the_first_dot_that_leads_a_line_is_found(leading_dot: Callable[[bytes], int], octets: bytes) -> None:
    found = re.search(rb"\r\n\.", octets)
    assert leading_dot(octets) == (found.start() if found else len(octets))


in_c = pytest.mark.skipif(
    scan.ordinary_fields is scan.plain_ordinary_fields,
    reason="the package is not compiled, and Python reads all headers",
)
LIMITS = (1_000, 998, 100_000)


def any_fields(block: bytes) -> list[tuple[str, str]]:
    """Return the fields as they are read where not all is ordinary: a field stands before them that is not."""
    return list(parse_header(b"X: \xff\r\n" + block))[1:]


@in_c
@pytest.mark.parametrize(
    ("block", "fields"),
    [
        pytest.param(b"", [], id="no field"),
        pytest.param(b"A: b", [("A", "b")], id="a field"),
        pytest.param(b"A: b\r\n", [("A", "b")], id="a field and the end of its line"),
        pytest.param(b"A: b\r\na: c", [("A", "b"), ("a", "c")], id="fields of one name"),
        pytest.param(b"A:b:c\r\nD:e", [("A", "b:c"), ("D", "e")], id="no blank before the value"),
        pytest.param(b"!~;9: ~!", [("!~;9", "~!")], id="the first and the last octets of a name and of a value"),
        pytest.param(b"A: b\r\n c\r\n\td\r\nE: f", [("A", "b c\td"), ("E", "f")], id="folds with blank and tab"),
        pytest.param(b"A: b\r\n \t c\r\n", [("A", "b \t c")], id="a fold with several"),
        pytest.param(b"A:\r\n b\r\n", [("A", "b")], id="a value that begins behind a fold"),
        pytest.param(b"A: b\r\n \r\n\t\r\nC: d", [("A", "b"), ("C", "d")], id="folds of blanks behind the value"),
        pytest.param(b"A: b\r\n \r\n c", [("A", "b  c")], id="and inside of it"),
        pytest.param(b"A: b\r\n ", [("A", "b")], id="a fold at the end"),
        pytest.param(b"A: \t b\tc \t", [("A", "b\tc")], id="outer blanks"),
        pytest.param(b"A:\r\nB: \r\nC: \t\r\n \r\nD:", [*zip("ABCD", [""] * 4, strict=True)], id="empty values"),
    ],
)
def test_ordinary_fields_are_read(block: bytes, fields: list[tuple[str, str]]) -> None:
    assert scan.ordinary_fields(block, *LIMITS) == fields == any_fields(block)


@in_c
@pytest.mark.parametrize("length", [1, 15, 16, 17, 255, 997])
def test_a_field_of_any_length_is_read(length: int) -> None:
    name, value = "A" * length, "b" * length
    for fold, blank in ("", ""), ("\r\n ", " "), ("\r\n\t\t", "\t\t"):
        block = f"{name}: {fold}{value}{fold}{value}{fold}\r\nC: d"
        assert scan.ordinary_fields(block.encode(), *LIMITS) == [(name, value + blank + value), ("C", "d")]


def test_what_is_not_ordinary_is_left_to_who_reads_any_header() -> None:
    no_fields = b"junk", b":", b": b", b"A b: c", b"A : b", b"A\t: b", b"A\r\n : b", b"\r\n", b"\r\nA: b"
    no_lines = b"A: b\r\n\r\n", b"A: b\r\n\r\nC: d", b"\r", b"A: b\r", b"A: b\n", b"A: b\nC: d", b"A: b\n\rC: d"
    for block in (*no_fields, *no_lines):
        assert scan.ordinary_fields(block, *LIMITS) is None
        assert scan.ordinary_fields(b"X: y\r\n" + block, *LIMITS) is None
    for block in (b" A: b", b"\tA: b"):
        assert scan.ordinary_fields(block, *LIMITS) is None


@in_c
def test_an_octet_that_is_no_plain_text_is_seen_wherever_it_stands() -> None:
    for size in (1, 15, 16, 17, 100):
        block = bytearray(b"A:" + b"b" * size)
        for place in range(len(block)):
            kept = block[place]
            for octet in (0, 8, 10, 11, 13, 31, 127, 128, 0xE9, 255):
                block[place] = octet
                assert scan.ordinary_fields(bytes(block), *LIMITS) is None
            block[place] = kept
        assert scan.ordinary_fields(bytes(block), *LIMITS) == [("A", "b" * size)]


@in_c
def test_what_is_beyond_a_limit_is_not_ordinary() -> None:
    """A fold counts neither as a line nor for the length of a value, and outer blanks do not either."""
    for block, lines, name, value in (
        (b"A: b\r\n c\r\nD: e\r\n", 2, 1, 3),
        (b"A: b\r\nDef: g", 2, 3, 1),
        (b"A: \r\n bcd\r\n\t \r\nE:", 2, 1, 3),
    ):
        assert scan.ordinary_fields(block, lines, name, value) == any_fields(block)
        assert scan.ordinary_fields(block, lines - 1, name, value) is None
        assert scan.ordinary_fields(block, lines, name - 1, value) is None
        assert scan.ordinary_fields(block, lines, name, value - 1) is None


@in_c
def test_the_limits_of_a_header_are_the_same_for_both() -> None:
    for block in (b"A: b\r\n" * 1_000, b"A" * 998 + b": x\r\nB: c", b"A: " + b"x" * 100_000 + b" \r\nB: c"):
        assert (fields := scan.ordinary_fields(block, *LIMITS)) is not None
        assert list(parse_header(block)) == fields
        assert any_fields(block) == fields[:999]


PIECES = [
    b"a",
    b":",
    b" ",
    b"\t",
    b"\r",
    b"\n",
    b"\r\n",
    b"\r\n ",
    b"\r\n\t",
    b"\xe9",
    b"A: b",
    b"\r\nSubject: ",
    b"x" * 70,
]


@given(st.lists(st.sampled_from(PIECES)).map(b"".join))
def test_fields_are_read_as_they_are_in_any_header_or_not_at_all(block: bytes) -> None:
    fields = scan.ordinary_fields(block, *LIMITS)
    assert fields is None or fields == any_fields(block)


VISIBLE = [chr(octet) for octet in range(0x21, 0x7F)]
BLANKS = st.sampled_from(["", " ", "\t", "\r\n ", "\r\n\t", " \r\n  \r\n "])
FIELD = st.tuples(
    st.text([each for each in VISIBLE if each != ":"], min_size=1),
    st.lists(BLANKS | st.text(VISIBLE)).map("".join),
).map(":".join)


@in_c
@given(st.lists(FIELD, max_size=20).map("\r\n".join), st.sampled_from(["", "\r\n"]))
def test_fields_of_plain_text_are_ordinary(fields: str, end: str) -> None:
    block = (fields + end if fields else "").encode()
    assert scan.ordinary_fields(block, *LIMITS) == any_fields(block)


@pytest.mark.parametrize("empty_line", [scan.plain_empty_line, scan.empty_line])
@given(st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b"a", b"a" * 70])).map(b"".join), st.integers(0, 20))
@example(b"\r\n\r\n", 4)
@example(b"\r\n\r\n", 3)
@example(b"a" * 70 + b"\r\r\n\r\n\r\n", 0)
@example(b"\r\n\r", 0)
def test_the_empty_line_is_found_where_it_ends_within_the_limit(
    empty_line: Callable[[bytes, int], int], octets: bytes, left_out: int
) -> None:
    most = len(octets) - left_out
    if most < 0:
        most = 1 << 20
    match = re.search(rb"\r\n\r\n", octets[:most])
    assert empty_line(octets, most) == (match.start() if match else -1)


@in_c
def test_an_empty_line_is_looked_for_among_octets_that_are_there() -> None:
    for most in (-5, -1, 0, 3):
        assert scan.empty_line(b"\r\n\r\n", most) == -1
    with pytest.raises(OverflowError):
        scan.empty_line(b"", 1 << 64)
    wrong: list[tuple[object, ...]] = [(), (b"",), (b"", 1, 2), ("", 1), (b"", None), (bytearray(), 1)]
    for arguments in wrong:
        with pytest.raises(TypeError):
            scan.empty_line(*arguments)  # type: ignore[arg-type]


def test_what_is_compiled_searches_in_c() -> None:
    compiled = not str(session.__file__).endswith(".py")
    assert (scan.only_crlf is not scan.plain_only_crlf) is compiled
    assert (scan.empty_line is not scan.plain_empty_line) is compiled
    assert (scan.leading_dot is not scan.plain_leading_dot) is compiled
    assert (scan.ordinary_fields is not scan.plain_ordinary_fields) is compiled


def test_what_is_no_bytes_is_not_searched() -> None:
    for search in (scan.only_crlf, scan.leading_dot):
        with pytest.raises((TypeError, AttributeError)):
            search(1)  # type: ignore[arg-type]


@in_c
def test_arguments_of_another_number_or_kind_are_refused() -> None:
    wrong: list[tuple[object, ...]] = [(), (b"",), (b"", 1, 2, 3, 4), ("", 1, 2, 3), (bytearray(), 1, 2, 3)]
    for arguments in (*wrong, (b"", None, 2, 3), (b"", 1, "2", 3), (b"", 1, 2, b"3")):
        with pytest.raises(TypeError):
            scan.ordinary_fields(*arguments)  # type: ignore[arg-type]
    with pytest.raises(OverflowError):
        scan.ordinary_fields(b"", 1 << 64, 2, 3)


def test_the_searches_in_c_are_those_that_the_stub_names() -> None:
    folder = Path(__file__).parents[1] / "src/guerrilla"
    named = re.findall(r"def (\w+)", (folder / "_scan.pyi").read_text())
    assert named == re.findall(r'^    \{"(\w+)"', (folder / "_scan.c").read_text(), flags=re.MULTILINE)
