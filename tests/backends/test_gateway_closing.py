"""What a gateway lets go: a processor whose shutdown never ends, and a message that is answered."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest
import structlog
from structlog.testing import LogCapture

from guerrilla.backends import gateway
from guerrilla.backends.gateway import Gateway
from guerrilla.backends.processor import Processor, ProcessorConfig
from guerrilla.backends.registry import Registry
from guerrilla.envelope import Envelope


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


class Load:
    """Something that a message holds."""


async def test_a_message_that_is_answered_is_held_by_nobody() -> None:
    registry = Registry()
    registry.add("First", First)
    gateway_ = Gateway(registry.build({"save_process": "First"}), structlog.get_logger())
    await gateway_.initialize()
    await gateway_.start()
    load = Load()
    held = weakref.ref(load)
    envelope = Envelope(values={"load": load})
    gc.disable()
    try:
        assert (await gateway_.process(envelope)).positive
        del envelope, load
        await asyncio.sleep(0)  # the worker comes to its rest
        assert held() is None
    finally:
        gc.enable()
        await gateway_.shutdown()
