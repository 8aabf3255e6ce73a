"""What Compressor made is undone, whichever it was; what it cannot have made is refused, and a frame has a limit."""

from __future__ import annotations

import os
import sys
import zlib

import pytest
import zstandard

from guerrilla.envelope import Envelope
from guerrilla.processors.compressor import CompressedMail, Compression
from guerrilla.stores.compression import decompressed, decompressed_body

FRAME = zstandard.ZstdCompressor(write_checksum=True).compress(b"Subject: x\r\n\r\n" * 100)
UNSIZED = zstandard.ZstdCompressor(write_content_size=False).compress(b"x" * 100)
TOO_LARGE = FRAME[:4] + b"\xe0" + ((1 << 30) + 1).to_bytes(8, "little") + b"\x01\0\0"
REFUSED = {
    "cut": FRAME[:-5],
    "checksum": FRAME[:-1] + bytes([FRAME[-1] ^ 1]),
    "magic alone": FRAME[:4],
    "unsized": UNSIZED,
    "too large": TOO_LARGE,
    "plain": b"Subject: x\r\n",
}


@pytest.mark.parametrize("compression", ["zlib", "zstd"])
@pytest.mark.parametrize("size", [0, 10, 200_000])
async def test_what_compressor_made_comes_back(compression: Compression, size: int) -> None:
    """Octet for octet, on the loop and in a thread, whether it is known to be compressed or not."""
    data = os.urandom(size)
    octets = await CompressedMail(Envelope(data=data), compression).data()
    assert await decompressed(octets) == data
    assert await decompressed_body(octets) == data


@pytest.mark.parametrize("octets", REFUSED.values(), ids=REFUSED.keys())
async def test_anything_else_is_an_error_and_as_a_body_the_message_itself(octets: bytes) -> None:
    with pytest.raises(zlib.error):
        await decompressed(octets)
    assert await decompressed_body(octets) == octets


async def test_the_limit_is_looked_at_before_anything_is_decompressed() -> None:
    """A frame that says more than 1 GiB is refused for that."""
    with pytest.raises(zlib.error, match="1073741825"):
        await decompressed(TOO_LARGE)


async def test_a_missing_library_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A zstd frame is not taken for the message when the library is missing: it says what to install."""
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(RuntimeError, match=r"pip install 'guerrilla\[zstd\]'"):
        await decompressed_body(FRAME)
