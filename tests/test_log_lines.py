"""Lines of the log that are written together: all of them, in their order, and those that find no place are counted."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from guerrilla.log import Log
from guerrilla.log_records import Lines, Output, log_message


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log"


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """Let the disk be full where files are of this size."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_lines_are_written_in_their_order_when_it_is_said_and_at_once_where_they_are_not_held(path: Path) -> None:
    output, lines = Output(str(path)), Lines()
    lines.put(output, b"1\n")
    assert path.read_bytes() == b"1\n"
    lines.held = True
    lines.put(output, b"2\n")
    lines.put(output, b"3\n")
    assert path.read_bytes() == b"1\n"
    lines.write()
    lines.write()
    assert path.read_bytes() == b"1\n2\n3\n"
    output.close()


def test_lines_of_two_files_stay_in_the_order_in_which_they_came(tmp_path: Path) -> None:
    """A reload may change the file between two of them."""
    lines = Lines()
    lines.held = True
    old, new = Output(str(tmp_path / "old")), Output(str(tmp_path / "new"))
    for output, line in [(old, b"1\n"), (old, b"2\n"), (new, b"3\n"), (old, b"4\n")]:
        lines.put(output, line)
    lines.write()
    assert (tmp_path / "old").read_bytes() == b"1\n2\n4\n"
    assert (tmp_path / "new").read_bytes() == b"3\n"
    old.close()
    new.close()


@pytest.mark.parametrize(
    ("room", "there", "dropped"),
    [(0, b"", 3), (2, b"aa", 3), (4, b"aaa\n", 2), (5, b"aaa\nb", 2), (8, b"aaa\nbbb\n", 1), (11, b"aaa\nbbb\nccc", 1)],
)
def test_on_a_full_disk_the_lines_that_are_not_whole_are_counted_and_the_next_is_not_glued_to_them(
    path: Path, room: int, there: bytes, dropped: int
) -> None:
    output = Output(str(path))
    with no_file_larger_than(room):
        output.write_all([b"aaa\n", b"bbb\n", b"ccc\n"])
    assert (path.read_bytes(), output.dropped) == (there, dropped)
    output.write_all([b"ddd\n", b"eee\n"])
    assert path.read_bytes() == there + (b"\n" if there and not there.endswith(b"\n") else b"") + b"ddd\neee\n"
    assert output.dropped == dropped
    output.close()


def test_of_a_file_that_is_closed_every_line_is_counted(path: Path) -> None:
    output = Output(str(path))
    output.close()
    output.write_all([b"a\n", b"b\n"])
    assert output.dropped == 2


@pytest.mark.parametrize("rotated", [False, True])
def test_a_pipe_is_given_one_line_at_a_time_so_that_none_is_torn(path: Path, rotated: bool) -> None:
    """Also one that has taken the place of a file."""
    if rotated:
        output = Output(str(path))
        path.unlink()
    os.mkfifo(path)
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if rotated:
        output.reopen()
    else:
        output = Output(str(path))
    line = b"x" * 999 + b"\n"
    while not output.dropped:
        output.write_all([line] * 100)
    text = os.read(reading, 1 << 20)
    assert text == line * (len(text) // len(line))
    output.close()
    os.close(reading)


def message(**changes: Any) -> dict[str, Any]:
    fields = {"outcome": "kept", "queued_id": "0f", "client": "192.0.2.1", "sender": "a@example.com"}
    return {**fields, "recipients": ["b@example.com"], "size": 2, "reply": "250 2.0.0 OK", "ms": 0.5, **changes}


def test_a_message_whose_line_takes_the_long_way_is_told_after_those_before_it(path: Path) -> None:
    log, lines = Log(str(path)), Lines()
    lines.held = True
    log_message(log.logger, **message(size=1), lines=lines)
    log_message(log.logger, **message(size=2, sender='"a b"@example.com'), lines=lines)
    log_message(log.logger, **message(size=3), lines=lines)
    lines.write()
    log.close()
    assert [line.split(b'"size":')[1][:1] for line in path.read_bytes().splitlines()] == [b"1", b"2", b"3"]
