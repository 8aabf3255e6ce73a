"""What a configuration is read from: a regular file, or a pipe that somebody writes to."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

import pytest

from guerrilla.config import ConfigError
from guerrilla.config_source import read


def test_what_comes_through_a_pipe_is_read_until_its_writer_ends() -> None:
    reader, writer = os.pipe()

    def write() -> None:
        with contextlib.suppress(BrokenPipeError), open(writer, "wb") as file:
            file.write(b" " * 4_000_000 + b'{"pid_file": "x"}')  # the reader has to wait for more, again and again

    thread = threading.Thread(target=write)
    thread.start()
    try:
        assert read(f"/dev/fd/{reader}")[0] == {"pid_file": "x"}
    finally:
        os.close(reader)
        thread.join()


def test_a_pipe_that_nobody_writes_to_is_empty_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="the file is empty"):
        read(tmp_path / "pipe")


def test_a_device_is_no_configuration() -> None:
    with pytest.raises(ConfigError, match="/dev/zero: cannot be read: Neither a regular file nor a pipe"):
        read("/dev/zero")
