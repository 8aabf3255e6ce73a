"""Compressor: offers the message in compressed form to the stores that follow."""

from __future__ import annotations

import asyncio
import zlib

from guerrilla.backends.processor import CallNext, Envelope, Processor, ProcessorConfig, Reply

_KEY = "zlib-compressor"
"""Where it is found in ``envelope.values``: the name that the Go program's processors look for."""

_LEVEL = 1
"""The fastest: mail is compressed while a client waits, and much of it is compressed already (attachments)."""

_MAX_ON_LOOP = 64 * 1024
"""Octets that are compressed at once, in about a millisecond; more goes to a thread, so that the others do not wait."""


class Compressor(Processor[ProcessorConfig]):
    """Offers the message in compressed form to the processors that follow.

    Sets ``values["zlib-compressor"]``: its ``await data()`` returns ``delivery_header`` and ``data`` as one zlib
    stream, made when it is first asked for. List Header before it.
    """

    async def save_mail(self, envelope: Envelope, call_next: CallNext) -> Reply:
        """Leave the compressed form for the later processors, and pass on."""
        envelope.values[_KEY] = CompressedMail(envelope)
        return await call_next()


class CompressedMail:
    """Delivery header and message as one zlib stream: made at first use, then kept for as long as the envelope is."""

    def __init__(self, envelope: Envelope) -> None:
        self._envelope = envelope
        self._compressing: asyncio.Task[bytes] | None = None
        self._data: bytes | None = None

    async def data(self) -> bytes:
        """Return the stream. It may be called any number of times, also at the same time, and compresses once."""
        if self._data is None:
            if len(self._envelope) <= _MAX_ON_LOOP:
                self._data = _compress(self._envelope)
            else:
                if self._compressing is None:
                    self._compressing = asyncio.create_task(asyncio.to_thread(_compress, self._envelope))
                # A thread cannot be stopped: who is cancelled leaves it to those who still wait.
                self._data = await asyncio.shield(self._compressing)
        return self._data


def _compress(envelope: Envelope) -> bytes:
    """Compress piece by piece, so that a large message is never whole in memory."""
    compressor = zlib.compressobj(_LEVEL)
    pieces = [compressor.compress(chunk) for chunk in envelope.chunks()]
    pieces.append(compressor.flush())
    return b"".join(pieces)
