"""The octets that a store keeps of a message: the whole of it, compressed if Compressor was in the line."""

from __future__ import annotations

import asyncio
from typing import Final, Protocol, cast

from guerrilla.envelope import Envelope

_MAX_ON_LOOP: Final = 1 << 20
"""Octets that are copied at once, in well under a millisecond; more goes to a thread: it may have to come from disk."""


class Compressed(Protocol):
    """What Compressor leaves in ``values["zlib-compressor"]``; ``encoding`` may say which compression it is."""

    async def data(self) -> bytes:
        """Return the compressed message."""
        ...


def compressed_of(envelope: Envelope) -> Compressed | None:
    """Return what Compressor, or a processor in its place, has left; None if nothing is there."""
    value = envelope.values.get("zlib-compressor")
    if value is None:
        return None
    return cast(Compressed, value) if callable(getattr(value, "data", None)) else None


def body_at_hand(envelope: Envelope) -> bytes | None:
    """Return the octets that are kept of the message, if they can be had at once."""
    if len(envelope) > _MAX_ON_LOOP or compressed_of(envelope) is not None:
        return None
    return bytes(envelope)


async def body_of(envelope: Envelope) -> bytes:
    """Return the octets that are kept of the message."""
    compressed = compressed_of(envelope)
    if compressed is not None:
        return await compressed.data()
    at_hand = body_at_hand(envelope)
    return await asyncio.to_thread(bytes, envelope) if at_hand is None else at_hand
