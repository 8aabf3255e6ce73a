"""The end of a daemon: what is under way comes to its answer, what hangs is cut, and a second signal hurries."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from typing import Any

import pytest

from guerrilla import Daemon, Envelope, Processor, ProcessorConfig, Reply, StartError
from guerrilla.smtp.replies import queued
from guerrilla.testing.recording import RecordingBackend

SHUTTING_DOWN = b"421 4.3.2 Server is shutting down, try again later\r\n"


class Slow(RecordingBackend):
    """Answers when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()
        self.go_on = asyncio.Event()

    async def process(self, envelope: Envelope) -> Reply:
        self.asked.set()
        await self.go_on.wait()
        return queued("x")


def config(**keys: Any) -> dict[str, Any]:
    return {
        "servers": [{"listen_interface": "127.0.0.1:0", "host_name": "mx.test"}],
        "allowed_hosts": ["."],
        "log_file": "off",
        "backend_config": {"save_process": "Debugger"},
        **keys,
    }


async def connect(daemon: Daemon, octets: bytes, last: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a connection, send octets, and read up to the line that begins with ``last``."""
    reader, writer = await asyncio.open_connection(*daemon.addresses[0][1])
    writer.write(octets)
    async with asyncio.timeout(20):
        while not (await reader.readline()).startswith(last):
            pass
    return reader, writer


BEGIN = b"EHLO a\r\nMAIL FROM:<>\r\nRCPT TO:<b@example.com>\r\nDATA\r\n"


async def rest(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(20):
        return await reader.read()


async def test_a_transaction_under_way_comes_to_its_250_and_an_idle_client_is_told_at_once() -> None:
    backend = RecordingBackend()
    daemon = Daemon(config(), backend=backend)
    await daemon.start()
    busy, sender = await connect(daemon, BEGIN, b"354")
    idle, leaver = await connect(daemon, b"EHLO a\r\n", b"250 ")
    ending = asyncio.create_task(daemon.shutdown())
    assert await rest(idle) == SHUTTING_DOWN
    leaver.close()
    assert not ending.done()
    sender.write(b"You\r\n.\r\n")
    assert await rest(busy) == f"250 2.0.0 OK: queued as {1:032x}\r\n".encode() + SHUTTING_DOWN
    sender.close()
    await ending
    assert len(backend.envelopes) == 1


async def test_what_hangs_is_told_and_cut_after_the_shutdown_timeout() -> None:
    daemon = Daemon(config(shutdown_timeout="50ms"))
    await daemon.start()
    reader, writer = await connect(daemon, BEGIN, b"354")
    await daemon.shutdown()
    assert await rest(reader) == SHUTTING_DOWN
    writer.close()


async def test_a_message_that_the_backend_never_answers_is_cut_after_the_shutdown_timeout() -> None:
    backend = Slow()
    daemon = Daemon(config(shutdown_timeout="50ms"), backend=backend)
    await daemon.start()
    reader, writer = await connect(daemon, BEGIN + b".\r\n", b"354")
    await backend.asked.wait()
    await daemon.shutdown()
    assert await rest(reader) == SHUTTING_DOWN
    writer.close()


async def test_hurry_cuts_a_shutdown_short() -> None:
    daemon = Daemon(config(shutdown_timeout="1h"))
    await daemon.start()
    reader, writer = await connect(daemon, BEGIN, b"354")
    ending = asyncio.create_task(daemon.shutdown())
    await asyncio.sleep(0)
    daemon.hurry()
    assert await rest(reader) == SHUTTING_DOWN
    await ending
    writer.close()


async def test_a_second_shutdown_waits_for_the_first() -> None:
    backend = Slow()
    daemon = Daemon(config(), backend=backend)
    await daemon.start()
    reader, writer = await connect(daemon, BEGIN + b".\r\n", b"354")
    await backend.asked.wait()
    first, second = asyncio.create_task(daemon.shutdown()), asyncio.create_task(daemon.shutdown())
    await asyncio.sleep(0)
    backend.go_on.set()
    assert await rest(reader) == b"250 2.0.0 OK: queued as x\r\n" + SHUTTING_DOWN
    writer.close()
    await asyncio.gather(first, second)
    await daemon.shutdown()


async def test_a_shutdown_that_is_cancelled_still_closes_everything() -> None:
    daemon = Daemon(config(shutdown_timeout="1h"))
    await daemon.start()
    address = daemon.addresses[0][1]
    reader, writer = await connect(daemon, BEGIN, b"354")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await daemon.shutdown()
    assert await rest(reader) == SHUTTING_DOWN
    writer.close()
    assert daemon.addresses == []
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*address)


async def test_who_is_not_accepted_yet_is_told_too() -> None:
    daemon = Daemon(config())
    await daemon.start()
    with socket.create_connection(daemon.addresses[0][1]) as client:
        await daemon.shutdown()  # in the same turn of the loop: nobody has looked at who has come
        client.settimeout(30)
        with client.makefile("rb") as replies:
            assert replies.read().endswith(SHUTTING_DOWN)


async def test_a_daemon_that_does_not_run_may_be_shut_down() -> None:
    await Daemon(config()).shutdown()


def test_run_returns_after_a_signal_and_gives_the_signals_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)]
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        daemon = Daemon(config())
        daemon.run(lambda running, number=number: os.kill(os.getpid(), number))  # type: ignore[misc]
        assert daemon.addresses == []
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)] == before


def test_a_signal_that_comes_in_the_middle_of_the_start_is_not_lost() -> None:
    class Impatient(Processor[ProcessorConfig]):
        async def initialize(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    daemon = Daemon(config(backend_config={"save_process": "Impatient"}))
    daemon.add_processor("Impatient", Impatient)
    daemon.run()
    assert daemon.addresses == []


def test_run_raises_what_the_start_raises() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        interface = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(StartError, match="already in use"):
            Daemon(config(servers=[{"listen_interface": interface}])).run()


def test_run_closes_everything_when_the_one_who_is_told_fails() -> None:
    def fail(daemon: Daemon) -> None:
        raise BrokenPipeError("nobody reads what is printed")

    daemon = Daemon(config())
    with pytest.raises(BrokenPipeError):
        daemon.run(fail)
    assert daemon.addresses == []


A_PROCESS = """
import sys
from guerrilla import Daemon

servers = [{"listen_interface": "127.0.0.1:0"}]
config = {"servers": servers, "allowed_hosts": ["."], "log_file": "off", "backend_config": {"save_process": "Debugger"}}
Daemon({**config, "shutdown_timeout": "1h"}).run(lambda daemon: print(daemon.addresses[0][1][1], flush=True))
"""


def receive_up_to(client: socket.socket, last: bytes) -> bytes:
    seen = b""
    while last not in seen:
        octets = client.recv(4096)
        assert octets, seen
        seen += octets
    return seen


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_after_a_signal_a_message_under_way_is_taken_and_after_a_second_one_it_is_not(number: signal.Signals) -> None:
    for signals in (1, 2):
        with subprocess.Popen([sys.executable, "-c", A_PROCESS], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            address = ("127.0.0.1", int(process.stdout.readline()))
            with socket.create_connection(address, timeout=30) as busy, socket.create_connection(address) as idle:
                receive_up_to(idle, b"220 ")
                busy.sendall(BEGIN)
                receive_up_to(busy, b"354 ")
                process.send_signal(number)
                receive_up_to(idle, SHUTTING_DOWN)  # so that the first signal has come before the second
                if signals == 2:
                    process.send_signal(number)
                else:
                    busy.sendall(b"You\r\n.\r\n")
                said = receive_up_to(busy, SHUTTING_DOWN)
                assert (b"250 2.0.0 OK: queued" in said) is (signals == 1)
            assert process.wait(timeout=30) == 0


DEAF = """
import asyncio, sys
import guerrilla.backends.gateway, guerrilla.service
from guerrilla import Daemon, Processor, ProcessorConfig

guerrilla.backends.gateway.GRACE = guerrilla.service.LAST_RESORT = 0.1

class Deaf(Processor[ProcessorConfig]):
    async def save_mail(self, envelope, call_next):
        print("reached", flush=True)
        while True:
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                pass

config = {
    "servers": [{"listen_interface": "127.0.0.1:0"}], "allowed_hosts": ["."], "shutdown_timeout": "10ms",
    "backend_config": {"save_process": "Deaf", "gw_save_timeout": "1h"},
}
daemon = Daemon(config)
daemon.add_processor("Deaf", Deaf)
daemon.run(lambda daemon: print(daemon.addresses[0][1][1], flush=True))
"""


def test_a_processor_that_swallows_its_cancellation_holds_the_end_no_longer_than_it_is_given() -> None:
    command = [sys.executable, "-c", DEAF]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            address = ("127.0.0.1", int(process.stdout.readline()))
            with socket.create_connection(address, timeout=30) as client:
                client.sendall(BEGIN + b".\r\n")
                assert process.stdout.readline() == "reached\n"
                process.terminate()
                receive_up_to(client, SHUTTING_DOWN)
            _, log = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 0, log
    assert "a processor does not end although it is cancelled" in log


HANGS_AT_A_RELOAD = """
import asyncio, os, signal
from guerrilla import Daemon, Processor, ProcessorConfig

times = 0

class Hangs(Processor[ProcessorConfig]):
    async def initialize(self):
        global times
        times += 1
        if times == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.Event().wait()

servers = [{"listen_interface": "127.0.0.1:0"}]
daemon = Daemon({"servers": servers, "log_file": "off", "backend_config": {"save_process": "Hangs"}})
daemon.add_processor("Hangs", Hangs)
daemon.run(lambda daemon: os.kill(os.getpid(), signal.SIGHUP), read_config=lambda: daemon.config)
print("ended")
"""


def test_a_reload_that_hangs_does_not_hold_the_end() -> None:
    command = [sys.executable, "-c", HANGS_AT_A_RELOAD]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("ended\n", "", 0)
