"""Undoing what Compressor did to a message before it was stored."""

from __future__ import annotations

import asyncio
import zlib
from typing import Final

_MAX_ON_LOOP: Final = 64 * 1024
"""Octets that are decompressed at once; more goes to a thread."""


async def decompressed(octets: bytes) -> bytes:
    """Decompress one zlib stream.

    Raises:
        zlib.error: if it is none.
    """
    if len(octets) <= _MAX_ON_LOOP:
        return zlib.decompress(octets)
    return await asyncio.to_thread(zlib.decompress, octets)


async def decompressed_body(octets: bytes) -> bytes:
    """Return the message whose body was stored so, where nothing says whether Compressor was in the line."""
    try:
        return await decompressed(octets)
    except zlib.error:
        return octets  # a header line is no zlib stream
