"""What a client has sent: cut into lines whatever the reads were, and bounded."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from guerrilla.smtp.input import Input
from guerrilla.smtp.settings import MAX_COMMAND_LINE


def lines_of(*reads: bytes) -> list[bytes]:
    """Return the lines that come of the reads."""
    received = Input()
    lines = []
    for read in reads:
        received.append(read)
        while (line := received.next_line()) is not None:
            lines.append(line)
    return lines


def test_a_line_is_returned_with_its_end_once_it_is_whole() -> None:
    assert lines_of(b"a") == []
    assert lines_of(b"a", b"b\r", b"\nc\nd") == [b"ab\r\n", b"c\n"]


def test_a_line_at_the_limit_is_whole_and_one_octet_more_is_too_long() -> None:
    fits = b"x" * (MAX_COMMAND_LINE - 2) + b"\r\n"
    assert lines_of(fits) == [fits]
    assert lines_of(b"x" + fits) == [b""]


def test_the_tail_of_a_line_that_is_too_long_is_no_line() -> None:
    for tail in (b"y" * 10, b"y" * 5000):
        assert lines_of(b"x" * 5000, tail, b"QUIT\r\nNOOP\r\n") == [b"", b"NOOP\r\n"]


def test_a_line_that_is_too_long_costs_no_memory() -> None:
    received = Input()
    for _ in range(100):
        received.append(b"x" * 100_000)
        assert received.next_line() is None
        assert len(received) == 0


@given(st.lists(st.sampled_from([b"\n", b"\r\n", b"a", b"x" * 1000, b"x" * 1048, b"x" * 2046]), max_size=30), st.data())
def test_lines_do_not_depend_on_the_reads(parts: list[bytes], data: st.DataObject) -> None:
    octets = b"".join(parts)
    edges = sorted(data.draw(st.lists(st.integers(0, len(octets)), max_size=8)))
    reads = [octets[a:b] for a, b in zip([0, *edges], [*edges, len(octets)], strict=True)]
    assert lines_of(*reads) == lines_of(octets)


def test_octets_can_be_taken_and_skipped_between_lines() -> None:
    received = Input()
    received.append(b"BDAT\r\nabcdefNOOP\r\n")
    assert received.rest() == b"BDAT\r\nabcdefNOOP\r\n"
    assert received.next_line() == b"BDAT\r\n"
    assert received.take(4) == b"abcd"
    assert received.rest() == b"efNOOP\r\n"
    received.skip(2)
    assert len(received) == 6
    assert received.next_line() == b"NOOP\r\n"
    assert received.take(9) == b""


def test_what_is_cleared_is_forgotten() -> None:
    received = Input()
    received.append(b"a\nb")
    received.clear()
    assert len(received) == 0
    received.append(b"c\n")
    assert received.next_line() == b"c\n"
