"""A processor whose shutdown never ends is given up, and those before it are shut down all the same."""

from __future__ import annotations

import asyncio

import pytest
import structlog
from structlog.testing import LogCapture

from guerrilla.backends import gateway
from guerrilla.backends.gateway import Gateway
from guerrilla.backends.processor import Processor, ProcessorConfig
from guerrilla.backends.registry import Registry


class First(Processor[ProcessorConfig]):
    """Is shut down last."""

    ended = False

    async def shutdown(self) -> None:
        type(self).ended = True


class Hangs(Processor[ProcessorConfig]):
    """Never ends."""

    async def shutdown(self) -> None:
        await asyncio.Event().wait()


async def test_a_shutdown_that_hangs_is_given_up_and_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "CLOSING", 0.01)
    capture = LogCapture()
    registry = Registry()
    registry.add("First", First)
    registry.add("Hangs", Hangs)
    log = structlog.wrap_logger(None, processors=[capture]).bind()
    closing = Gateway(registry.build({"save_process": "First|Hangs"}), log)
    await closing.initialize()
    await closing.start()
    await closing.shutdown()
    assert First.ended
    assert [(entry["event"], entry["processor"]) for entry in capture.entries] == [
        ("processor failed to shut down", "Hangs")
    ]
