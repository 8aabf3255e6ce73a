"""Compressor offers one zlib stream or zstd frame to every later processor, any number of times."""

from __future__ import annotations

import asyncio
import mmap
import os
import sys
import tempfile
import threading
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
import zstandard

from guerrilla.envelope import Envelope
from guerrilla.processors.compressor import CompressedMail, Compression, Compressor, CompressorConfig
from guerrilla.smtp.replies import OK, Reply


class Counting:
    """Stands before zlib's own compressor: counts how often one is made, by whom, and can hold the maker."""

    def __init__(self) -> None:
        self.made = 0
        self.maker = 0
        self.gate = threading.Event()
        self.gate.set()
        self._compressobj = zlib.compressobj

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.made += 1
        self.maker = threading.get_ident()
        self.gate.wait(60)
        return self._compressobj(*arguments, **options)


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counting]:
    counting = Counting()
    monkeypatch.setattr(zlib, "compressobj", counting)
    yield counting
    counting.gate.set()


async def compressed(envelope: Envelope, compression: Compression = "zlib") -> CompressedMail:
    async def following() -> Reply:
        return OK

    assert await Compressor(CompressorConfig(compression=compression)).save_mail(envelope, following) is OK
    value = envelope.values["zlib-compressor"]
    assert isinstance(value, CompressedMail)
    return value


@pytest.mark.parametrize("size", [0, 1, 4_000, 5_000, 65_536, 65_537, 5_000_000])
async def test_the_stream_is_the_whole_message(size: int) -> None:
    """It unpacks to delivery header and message, octet for octet, each time that it is asked for."""
    envelope = Envelope(delivery_header=b"Delivered-To: a@b\r\n", data=os.urandom(size))
    value = await compressed(envelope)
    first = await value.data()
    assert zlib.decompress(first) == bytes(envelope)
    assert await value.data() == first


async def test_what_comes_again_far_behind_is_seen() -> None:
    """Only a short message has a small window: of a longer one, a second half that is like the first costs little."""
    assert len(await (await compressed(Envelope(data=os.urandom(8_000) * 2))).data()) < 9_000


async def test_a_memory_map_is_compressed() -> None:
    """A message on disk gives the same stream as one in memory."""
    octets = b"\0\xff line\r\n" * 50_000
    with tempfile.TemporaryFile() as file:
        file.write(octets)
        file.flush()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            value = await compressed(Envelope(data=data))
            assert zlib.decompress(await value.data()) == octets


async def test_made_at_first_use(counting: Counting) -> None:
    """Nothing is compressed unless someone asks."""
    await compressed(Envelope(data=b"x"))
    assert counting.made == 0


@pytest.mark.parametrize("size", [10, 200_000])
async def test_made_once(size: int, counting: Counting) -> None:
    """Any number of users at the same time compress once."""
    value = await compressed(Envelope(data=b"x" * size))
    streams = await asyncio.gather(*(value.data() for _ in range(5)))
    assert len(set(streams)) == 1
    assert counting.made == 1


@pytest.mark.parametrize(("size", "in_thread"), [(65_536, False), (65_537, True)])
async def test_a_large_message_is_compressed_in_a_thread(size: int, in_thread: bool, counting: Counting) -> None:
    """Above 64 KiB the event loop does not wait."""
    value = await compressed(Envelope(data=b"x" * size))
    await value.data()
    assert (counting.maker != threading.get_ident()) is in_thread


@pytest.mark.parametrize(("size", "soon"), [(10, True), (65_536, True), (65_537, False)])
async def test_what_is_soon_made_can_be_had_without_a_wait(size: int, soon: bool, counting: Counting) -> None:
    """Whoever asks, and the others then have it; of a large message only when somebody has waited for it."""
    value = await compressed(Envelope(data=b"x" * size))
    octets = await asyncio.to_thread(value.at_hand)
    assert (octets is not None) is soon
    assert counting.made == soon
    assert zlib.decompress(await value.data()) == b"x" * size
    assert value.at_hand() == await value.data()
    assert counting.made == 1


async def test_one_cancelled_user_leaves_the_others(counting: Counting) -> None:
    """When the first user is cancelled, the second still gets the stream, of the same compression."""
    value = await compressed(Envelope(data=b"x" * 200_000))
    counting.gate.clear()
    first = asyncio.create_task(value.data())
    second = asyncio.create_task(value.data())
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    counting.gate.set()
    assert zlib.decompress(await second) == b"x" * 200_000
    assert counting.made == 1


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, 5_000_000])
async def test_the_zstd_frame_is_the_whole_message(size: int) -> None:
    """With ``compression: zstd`` it is one frame that says its size, has a checksum, and names its encoding."""
    envelope = Envelope(delivery_header=b"Delivered-To: a@b\r\n", data=os.urandom(size))
    value = await compressed(envelope, "zstd")
    frame = await value.data()
    parameters = zstandard.get_frame_parameters(frame)
    assert (parameters.content_size, parameters.has_checksum) == (len(envelope), True)
    assert zstandard.decompress(frame) == bytes(envelope)
    assert value.encoding == "zstd"


async def test_zlib_is_what_is_not_said_otherwise() -> None:
    """Without the key it is zlib, which the column `body` calls gzip."""
    assert CompressorConfig().compression == "zlib"
    assert (await compressed(Envelope(data=b"x"))).encoding == "gzip"


async def test_a_missing_library_is_told_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its extra, zstd keeps the gateway from starting, and says what to install; zlib needs nothing."""
    monkeypatch.setitem(sys.modules, "zstandard", None)
    await Compressor(CompressorConfig()).initialize()
    with pytest.raises(RuntimeError, match=r"pip install 'guerrilla\[zstd\]'"):
        await Compressor(CompressorConfig(compression="zstd")).initialize()


async def test_the_installed_library_is_found() -> None:
    """With its extra, zstd starts."""
    await Compressor(CompressorConfig(compression="zstd")).initialize()
