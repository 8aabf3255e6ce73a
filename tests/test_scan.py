"""The searches of the content: in Python, and as they are used here, which is in C where the package is compiled."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import guerrilla.smtp.session as session
from guerrilla import scan

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
def test_the_first_dot_that_leads_a_line_is_found(leading_dot: Callable[[bytes], int], octets: bytes) -> None:
    found = re.search(rb"\r\n\.", octets)
    assert leading_dot(octets) == (found.start() if found else len(octets))


def test_what_is_compiled_searches_in_c() -> None:
    compiled = not str(session.__file__).endswith(".py")
    assert (scan.only_crlf is not scan.plain_only_crlf) is compiled
    assert (scan.leading_dot is not scan.plain_leading_dot) is compiled


def test_what_is_no_bytes_is_not_searched() -> None:
    for search in (scan.only_crlf, scan.leading_dot):
        with pytest.raises((TypeError, AttributeError)):
            search(1)  # type: ignore[arg-type]


def test_the_searches_in_c_are_those_that_the_stub_names() -> None:
    folder = Path(__file__).parents[1] / "src/guerrilla"
    named = re.findall(r"def (\w+)", (folder / "_scan.pyi").read_text())
    assert named == re.findall(r'^    \{"(\w+)"', (folder / "_scan.c").read_text(), flags=re.MULTILINE)
