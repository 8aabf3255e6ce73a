"""The octets that a store keeps of a message: the whole of it, compressed if Compressor was in the line."""

from __future__ import annotations

import asyncio
from typing import Final, Protocol, cast

from guerrilla.envelope import Envelope

MAX_ON_LOOP: Final = 1 << 20
"""Octets that are copied at once, in well under a millisecond; more goes to a thread: it may have to come from disk."""


class Compressed(Protocol):
    """What Compressor leaves in ``values["zlib-compressor"]``.

    ``encoding`` may say which compression it is, and ``at_hand()`` return the octets without a wait, or None; it is
    called in a thread.
    """

    async def data(self) -> bytes:
        """Return the compressed message."""
        ...


def compressed_of(envelope: Envelope) -> Compressed | None:
    """Return what Compressor, or a processor in its place, has left; None if nothing is there."""
    value = envelope.values.get("zlib-compressor")
    if value is None:
        return None
    return cast(Compressed, value) if callable(getattr(value, "data", None)) else None


async def body_of(envelope: Envelope) -> bytes:
    """Return the octets that are kept of the message."""
    return await body_in(envelope, compressed_of(envelope))


async def body_in(envelope: Envelope, compressed: Compressed | None) -> bytes:
    """Return the octets of the message in the compressed form that it was found to have, or as it is."""
    if compressed is not None:
        octets = await compressed.data()
        return octets if type(octets) is bytes else bytes(memoryview(octets))  # text, a number or None has none
    return bytes(envelope) if len(envelope) <= MAX_ON_LOOP else await asyncio.to_thread(bytes, envelope)
