"""What is kept of a message is the whole of it, or what a processor like Compressor has made of it."""

from __future__ import annotations

import pytest

from guerrilla.envelope import Envelope
from guerrilla.processors.compressor import CompressedMail
from guerrilla.stores.body import body_of, compressed_of


@pytest.mark.parametrize("size", [0, 10, (1 << 20) + 1])
async def test_the_whole_message(size: int) -> None:
    """Delivery header and message, a large one too, octet for octet."""
    envelope = Envelope(delivery_header=b"Delivered-To: a@b\r\n", data=b"\0" * size)
    assert await body_of(envelope) == b"Delivered-To: a@b\r\n" + b"\0" * size


async def test_the_compressed_form() -> None:
    """Whatever has an asynchronous ``data()`` is taken; anything else that stands there is not."""

    class Other:
        async def data(self) -> bytes:
            return b"smaller"

    envelope = Envelope(data=b"x")
    for value in (CompressedMail(envelope), Other()):
        envelope.values["zlib-compressor"] = value
        assert compressed_of(envelope) is value
        assert await body_of(envelope) == await value.data()
    for nothing in (None, "data", memoryview(b"y")):
        envelope.values["zlib-compressor"] = nothing
        assert compressed_of(envelope) is None
        assert await body_of(envelope) == b"x"
