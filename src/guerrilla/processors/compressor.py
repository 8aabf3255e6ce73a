"""Compressor: offers the message in compressed form to the stores that follow."""

from __future__ import annotations

import asyncio
import zlib
from typing import Literal

from pydantic import Field

from guerrilla.backends.processor import Envelope, Processor, ProcessorConfig

_KEY = "zlib-compressor"
"""Where it is found in ``envelope.values``: the name that the Go program's processors look for."""

_ZLIB_LEVEL = 1
"""The fastest: mail is compressed while a client waits, and much of it is compressed already (attachments)."""

_SMALL = 4096
"""Octets for which a window and tables of a few KiB do: to clear the 256 KiB of zlib's defaults takes ten times as long
as to compress so little."""

_ZSTD_LEVEL = 3
"""The default of zstd, which is smaller than zlib at its fastest, and quicker."""

_MAX_ON_LOOP = 64 * 1024
"""Octets that are compressed at once, in about a millisecond; more goes to a thread, so that the others do not wait."""


Compression = Literal["zlib", "zstd"]


class CompressorConfig(ProcessorConfig):
    """Which compression."""

    compression: Compression = Field(
        default="zlib",
        description="How mail is compressed: zlib, which every reader has, or zstd: pip install 'guerrilla[zstd]'.",
    )


class Compressor(Processor[CompressorConfig]):
    """Offers the message in compressed form to the processors that follow.

    Sets ``values["zlib-compressor"]``: its ``await data()`` returns ``delivery_header`` and ``data`` as one zlib
    stream or one zstd frame, made when it is first asked for; its ``encoding`` says which. List Header before it.
    """

    async def initialize(self) -> None:
        """Look whether the library is there. Raises RuntimeError if it is not."""
        if self.config.compression == "zstd":
            try:
                import zstandard  # noqa: F401 - only whether it is there
            except ModuleNotFoundError as error:
                raise RuntimeError(
                    f"compression: {error.name} is not installed. Meant: pip install 'guerrilla[zstd]'"
                ) from error

    def annotate(self, envelope: Envelope) -> None:
        """Leave the compressed form for the later processors."""
        envelope.values[_KEY] = CompressedMail(envelope, self.config.compression)


class CompressedMail:
    """Delivery header and message, compressed: made at first use, then kept for as long as the envelope is."""

    def __init__(self, envelope: Envelope, compression: Compression = "zlib") -> None:
        self.encoding = "zstd" if compression == "zstd" else "gzip"
        """What Sql writes into its column ``body``: "gzip" stands for zlib there, as in the Go program."""
        self._compress = _zstd if compression == "zstd" else _zlib
        self._envelope = envelope
        self._compressing: asyncio.Task[bytes] | None = None
        self._data: bytes | None = None

    async def data(self) -> bytes:
        """Return the octets. It may be called any number of times, also at the same time, and compresses once."""
        data = self.at_hand()
        if data is None:
            if self._compressing is None:
                self._compressing = asyncio.create_task(asyncio.to_thread(self._compress, self._envelope))
            # A thread cannot be stopped: who is cancelled leaves it to those who still wait.
            data = self._data = await asyncio.shield(self._compressing)
        return data

    def at_hand(self) -> bytes | None:
        """Return the octets, if they are there or soon made; None if they have to be awaited. Any thread may ask."""
        if self._data is None and len(self._envelope) <= _MAX_ON_LOOP:
            self._data = self._compress(self._envelope)
        return self._data


def _zlib(envelope: Envelope) -> bytes:
    """Compress piece by piece, so that a large message is never whole in memory."""
    if len(envelope) <= _SMALL:
        compressor = zlib.compressobj(_ZLIB_LEVEL, wbits=12, memLevel=5)
        return compressor.compress(b"".join(envelope.chunks())) + compressor.flush()
    compressor = zlib.compressobj(_ZLIB_LEVEL)
    pieces = [compressor.compress(chunk) for chunk in envelope.chunks()]
    pieces.append(compressor.flush())
    return b"".join(pieces)


def _zstd(envelope: Envelope) -> bytes:
    """Do the same with zstd. The frame says its size, for a reader that sets a limit, and has a checksum, as zlib."""
    import zstandard  # an extra

    compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=True).compressobj(size=len(envelope))
    pieces = [compressor.compress(chunk) for chunk in envelope.chunks()]
    pieces.append(compressor.flush())
    return b"".join(pieces)
