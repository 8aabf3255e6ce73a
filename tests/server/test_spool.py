"""The spool: large messages are in a file without a name, memory is bounded, and a full disk is 452 for the client."""

from __future__ import annotations

import contextlib
import mmap
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guerrilla.envelope import Body, Envelope
from guerrilla.server.limits import Memory
from guerrilla.server.spool import Spool, default_folder
from guerrilla.smtp.data import BodyError
from guerrilla.smtp.replies import INSUFFICIENT_STORAGE, Reply, queued

if TYPE_CHECKING:
    from tests.server.conftest import HouseMaker


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    spool = Spool(Memory(1000), 100, str(tmp_path))
    yield spool
    assert spool.memory.held == 0
    assert not os.listdir(tmp_path)


def open_files(folder: Path) -> list[str]:
    """Return the files of the folder that this process has open."""
    links = []
    for each in Path("/proc/self/fd").iterdir():
        try:
            link = str(each.readlink())
        except FileNotFoundError:
            continue
        if link.startswith(str(folder)):
            links.append(link)
    return links


@contextlib.contextmanager
def no_more_descriptors() -> Iterator[None]:
    """Let the process have not one descriptor more, as long as the block lasts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_small_body_is_in_memory(spool: Spool) -> None:
    body = spool.open_body()
    body.write(b"a" * 60)
    body.write(b"b" * 40)
    assert body.finish() == b"a" * 60 + b"b" * 40
    assert spool.memory.held == 100
    body.discard()


def test_a_small_body_that_came_in_one_piece_is_not_copied(spool: Spool) -> None:
    body, octets = spool.open_body(), b"a" * 100
    body.write(octets)
    assert body.finish() is octets
    body.discard()


def test_an_empty_body_is_empty(spool: Spool) -> None:
    assert spool.open_body().finish() == b""


def test_a_large_body_is_a_read_only_map_of_a_file_without_a_name(spool: Spool, tmp_path: Path) -> None:
    body = spool.open_body()
    body.write(b"a" * 60)
    body.write(b"b" * 41)
    body.write(b"c" * 5000)
    assert spool.memory.held == 0
    assert len(open_files(tmp_path)) == 1
    assert not os.listdir(tmp_path)
    found = body.finish()
    assert isinstance(found, mmap.mmap)
    assert found[:] == b"a" * 60 + b"b" * 41 + b"c" * 5000
    with pytest.raises(TypeError):
        found[0] = 0
    body.discard()
    assert found[-1:] == b"c", "the map outlives the body"
    assert len(open_files(tmp_path)) == 1
    found.close()
    assert open_files(tmp_path) == []


@given(parts=st.lists(st.binary(min_size=1, max_size=80), max_size=20), threshold=st.integers(0, 200))
def test_what_is_written_is_what_is_found_however_it_is_kept(
    tmp_path_factory: pytest.TempPathFactory, parts: list[bytes], threshold: int
) -> None:
    spool = Spool(Memory(100), threshold, str(tmp_path_factory.getbasetemp()))
    body = spool.open_body()
    for part in parts:
        body.write(part)
    assert body.finish()[:] == b"".join(parts)
    body.discard()
    assert spool.memory.held == 0


def test_when_there_is_no_memory_a_small_body_goes_to_a_file_too(spool: Spool) -> None:
    spool.memory.take(950)
    body = spool.open_body()
    body.write(b"a" * 40)
    body.write(b"b" * 40)
    assert spool.memory.held == 950
    assert body.finish()[:] == b"a" * 40 + b"b" * 40
    body.discard()
    spool.memory.give_back(950)


def test_a_body_that_is_thrown_away_leaves_nothing_even_if_it_is_done_twice(spool: Spool, tmp_path: Path) -> None:
    for size in (50, 500):
        body = spool.open_body()
        body.write(b"a" * size)
        body.discard()
        body.discard()
    assert open_files(tmp_path) == []


def test_a_folder_that_cannot_be_written_to_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Spool(Memory(1000), 100, str(tmp_path / "nowhere"))


def test_the_default_folder_is_on_a_disk_where_there_is_one() -> None:
    assert default_folder() == "/var/tmp"
    assert Spool(Memory(1), 1).folder == Path("/var/tmp")


def test_when_there_is_no_descriptor_for_the_file_the_client_is_to_try_again(spool: Spool) -> None:
    body = spool.open_body()
    body.write(b"a" * 100)
    with no_more_descriptors(), pytest.raises(BodyError) as error:
        body.write(b"b")
    assert error.value.reply is INSUFFICIENT_STORAGE
    body.discard()


def test_when_there_is_no_descriptor_for_the_map_the_client_is_to_try_again(spool: Spool) -> None:
    body = spool.open_body()
    body.write(b"a" * 101)
    with no_more_descriptors(), pytest.raises(BodyError) as error:
        body.finish()
    assert error.value.reply is INSUFFICIENT_STORAGE
    body.discard()


class Keeper:
    """A backend that keeps the bodies as they come."""

    validates = False

    def __init__(self) -> None:
        self.bodies: list[Body] = []

    async def process(self, envelope: Envelope) -> Reply:
        self.bodies.append(envelope.data)
        return queued("x")

    async def validate_rcpt(self, envelope: Envelope) -> Reply:
        raise AssertionError("nobody is to be asked about")


async def test_a_large_message_reaches_the_backend_as_a_map(serve: HouseMaker, tmp_path: Path) -> None:
    keeper = Keeper()
    house = serve(keeper, spool_threshold=1000)
    client = await house.connect()
    await client.begin()
    content = b"".join(b"line %d\r\n" % number for number in range(50000))
    await client.send(content + b".\r\n")
    assert (await client.reply()).startswith("250")
    (body,) = keeper.bodies
    assert isinstance(body, mmap.mmap)
    assert body[:] == content
    assert not os.listdir(tmp_path)


async def test_when_memory_is_full_new_transactions_wait_until_there_is_room(serve: HouseMaker) -> None:
    house = serve(memory_limit=10)
    first = await house.connect()
    await first.begin()
    await first.send(b"1234567890")
    await house.until(lambda: house.memory.held == 10)
    second = await house.greeted()
    assert (await second.say("MAIL FROM:<>")).startswith("452 4.3.1")
    assert (await first.say("\r\n.")).startswith("250")
    assert await second.talk("MAIL FROM:<>", "RCPT TO:<b@example.com>", "DATA") == ["250", "250", "354"]
    assert (await second.say("much more than there is memory for\r\n.")).startswith("250")


ON_A_FULL_DISK = """
import resource, signal, smtplib, sys
from guerrilla import Daemon
from guerrilla.testing.recording import RecordingBackend

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
backend = RecordingBackend()
config = {
    "servers": [{"listen_interface": "127.0.0.1:0"}],
    "allowed_hosts": ["."], "log_file": "off", "spool_threshold": 1000, "spool_path": sys.argv[1],
}
with Daemon(config, backend=backend).in_thread() as daemon:
    with smtplib.SMTP(*daemon.addresses[0][1]) as client:
        client.ehlo()
        for size in (200_000, 50_000):
            client.mail("a@example.com")
            client.rcpt("b@example.com")
            code, text = client.data(b"x" * size)
            print(code, text.decode().split()[0])
print([len(envelope.data) for envelope in backend.envelopes])
"""


def test_a_full_disk_is_452_and_the_dialogue_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ON_A_FULL_DISK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["452 4.3.1", "250 2.0.0", "[50002]"]
