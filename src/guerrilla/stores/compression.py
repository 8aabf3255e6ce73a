"""Undoing what Compressor did to a message before it was stored."""

from __future__ import annotations

import asyncio
import zlib
from typing import Final

_MAX_ON_LOOP: Final = 64 * 1024
"""Octets that are decompressed at once; more goes to a thread."""

_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
"""How a zstd frame begins (RFC 8878, section 3.1.1); no zlib stream does."""

_MAX_OUTPUT: Final = 1 << 30
"""Octets that a message may become: a few that a client sent could stand for a thousand times as many."""


async def decompressed(octets: bytes) -> bytes:
    """Decompress one zlib stream or one zstd frame, which its first octets tell.

    Raises:
        zlib.error: if it is neither, or damaged, or a frame that does not say its size, or is of more than 1 GiB.
        RuntimeError: if it is a zstd frame, and the library is not installed.
    """
    decompress = _zstd if octets.startswith(_ZSTD_MAGIC) else _zlib
    if len(octets) <= _MAX_ON_LOOP:
        return decompress(octets)
    return await asyncio.to_thread(decompress, octets)


async def decompressed_body(octets: bytes) -> bytes:
    """Return the message whose body was stored so, where nothing says whether Compressor was in the line.

    Raises:
        RuntimeError: as ``decompressed``.
    """
    try:
        return await decompressed(octets)
    except zlib.error:
        return octets  # a header line is no zlib stream, and no zstd frame


def _zlib(octets: bytes) -> bytes:
    """Decompress one zlib stream, to its end."""
    stream = zlib.decompressobj()
    message = stream.decompress(octets, _MAX_OUTPUT)
    if not stream.eof:
        raise zlib.error(f"the zlib stream is cut short, or of more than {_MAX_OUTPUT} octets")
    return message


def _zstd(octets: bytes) -> bytes:
    """Decompress one zstd frame, as Compressor makes it: with its size in front."""
    try:
        import zstandard  # an extra
    except ModuleNotFoundError as error:
        raise RuntimeError(
            f"the message is compressed, and {error.name} is not installed. Meant: pip install 'guerrilla[zstd]'"
        ) from error
    try:
        size = zstandard.frame_content_size(octets)  # -1 if it does not say
        if not 0 <= size <= _MAX_OUTPUT:
            raise zlib.error(f"a zstd frame that says its size, {_MAX_OUTPUT} octets at most, is meant: it says {size}")
        return zstandard.ZstdDecompressor().decompress(octets, allow_extra_data=True)
    except zstandard.ZstdError as error:
        raise zlib.error(str(error)) from error
