"""A control socket with somebody behind it, for the tests of both its sides."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from guerrilla.control import Control, close_control, open_control

Answer = Callable[[dict[str, Any]], dict[str, Any]]


@pytest.fixture
def run_folder() -> Iterator[Path]:
    """Give a folder whose path is short enough for that of a socket."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@contextlib.contextmanager
def answering(path: Path, answer: Answer) -> Iterator[None]:
    """Answer at this path, from an event loop in a thread."""
    listening = open_control(path)
    loop = asyncio.new_event_loop()
    ended = asyncio.Event()

    async def answer_soon(request: dict[str, Any]) -> dict[str, Any]:
        return answer(request)

    async def serve() -> None:
        control = Control(listening, answer_soon)
        control.start()
        await ended.wait()
        await control.close()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(20)
        loop.close()
        close_control(listening, path)
