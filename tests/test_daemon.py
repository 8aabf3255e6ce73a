"""The daemon: what it opens it closes, whatever happens in between; and it is an object, not a place in a program."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import resource
import smtplib
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import structlog
from structlog.testing import LogCapture

from guerrilla import (
    NO_SUCH_USER,
    AppConfig,
    CallNext,
    ConfigError,
    Daemon,
    Envelope,
    Field,
    Processor,
    ProcessorConfig,
    Reply,
    processor,
)
from guerrilla.smtp.replies import queued
from guerrilla.testing.recording import RecordingBackend


def config(save_process: str = "Debugger", /, **keys: Any) -> dict[str, Any]:
    """Return a configuration for one server on a free port, which takes mail for example.com."""
    return {
        "servers": [{"listen_interface": "127.0.0.1:0", "host_name": "mx.test"}],
        "allowed_hosts": ["example.com"],
        "log_file": "off",
        "backend_config": {"save_process": save_process},
        **keys,
    }


def port(daemon: Daemon) -> int:
    return daemon.addresses[0][1][1]


class Caller:
    """A client on the loop of the daemon."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def call(cls, daemon: Daemon) -> Caller:
        """Connect, and say EHLO."""
        caller = cls(*await asyncio.open_connection("127.0.0.1", port(daemon)))
        await caller.reply()
        await caller.say("EHLO client.test")
        return caller

    async def reply(self) -> str:
        async with asyncio.timeout(20):
            while True:
                line = (await self._reader.readline()).decode()
                if line[3:4] != "-":
                    return line.removesuffix("\r\n")

    async def say(self, line: str) -> str:
        self._writer.write(line.encode() + b"\r\n")
        return await self.reply()

    async def deliver(self) -> str:
        """Send a message, and return the answer to it."""
        for line in ("MAIL FROM:<a@client.test>", "RCPT TO:<b@example.com>", "DATA"):
            assert (await self.say(line))[0] in "23"
        return await self.say("Subject: Hello\r\n\r\nYou\r\n.")

    async def rest(self) -> str:
        async with asyncio.timeout(20):
            return (await self._reader.read()).decode()

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()


async def deliver(daemon: Daemon) -> str:
    caller = await Caller.call(daemon)
    answer = await caller.deliver()
    await caller.close()
    return answer


def descriptors() -> list[str]:
    """Return what this process has open."""
    return sorted(os.listdir("/proc/self/fd"))


# What it is for


async def test_mail_goes_down_the_production_line() -> None:
    async with Daemon(config("HeadersParser|Hasher|Header|Debugger")) as daemon:
        assert (await deliver(daemon)).startswith("250 2.0.0 OK: queued as ")


class FooConfig(ProcessorConfig):
    foo_dsn: str = Field(description="Where Foo is.")
    foo_strict: bool = True


class Foo(Processor[FooConfig]):
    """Saves mail in a list, and knows one user."""

    saved: list[tuple[str, bytes]] = []  # noqa: RUF012 - the test looks here

    async def validate_rcpt(self, envelope: Envelope, call_next: CallNext) -> Reply:
        if self.config.foo_strict and envelope.rcpt_to[-1].user != "b":
            return NO_SUCH_USER
        return await call_next()

    async def save_mail(self, envelope: Envelope, call_next: CallNext) -> Reply:
        self.saved.append((self.config.foo_dsn, bytes(envelope)))
        return await call_next()


async def test_a_processor_of_ones_own_is_used_by_its_name_with_its_own_keys() -> None:
    Foo.saved.clear()
    backend = {"save_process": "MyFoo", "validate_process": "MyFoo", "foo_dsn": "foo:1234"}
    daemon = Daemon(config(backend_config=backend))
    daemon.add_processor("MyFoo", Foo)
    async with daemon:
        assert (await deliver(daemon)).startswith("250")
        caller = await Caller.call(daemon)
        await caller.say("MAIL FROM:<>")
        assert (await caller.say("RCPT TO:<nobody@example.com>")).startswith("550 5.1.1")
        await caller.close()
    assert Foo.saved == [("foo:1234", b"Subject: Hello\r\n\r\nYou\r\n")]


async def test_two_daemons_in_one_process_do_not_know_of_each_other() -> None:
    @processor
    async def no(envelope: Envelope) -> Reply | None:
        return Reply(554, "5.7.1", "No, thank you")

    @processor
    async def yes(envelope: Envelope) -> Reply | None:
        return None

    one, two = Daemon(config("Gate")), Daemon(config("Gate"))
    one.add_processor("Gate", no)
    two.add_processor("Gate", yes)
    async with one, two:
        assert await deliver(one) == "554 5.7.1 No, thank you"
        assert (await deliver(two)).startswith("250")
        await one.shutdown()
        assert (await deliver(two)).startswith("250")


async def test_a_backend_of_ones_own_takes_the_place_of_the_gateway() -> None:
    class Empty:
        """A backend that looks false."""

        validates = False

        def __len__(self) -> int:
            return 0

        async def process(self, envelope: Envelope) -> Reply:
            return queued("mine")

        async def validate_rcpt(self, envelope: Envelope) -> Reply:
            raise AssertionError("nobody is to be asked about")

    async with Daemon(config("NoSuchProcessor"), backend=Empty()) as daemon:
        assert await deliver(daemon) == "250 2.0.0 OK: queued as mine"


async def test_each_server_has_its_address_and_one_that_is_off_has_none() -> None:
    servers = [
        {"listen_interface": "127.0.0.1:0"},
        {"listen_interface": "127.0.0.2:0"},
        {"listen_interface": "127.0.0.3:0", "is_enabled": False},
    ]
    daemon = Daemon(config(servers=servers))
    assert daemon.addresses == []
    async with daemon:
        assert [address for _, (address, _) in daemon.addresses] == ["127.0.0.1", "127.0.0.2"]
        assert daemon.addresses[0][0].listen_interface == "127.0.0.1:0"
        assert all(number for _, (_, number) in daemon.addresses)
    assert daemon.addresses == []


def test_without_a_configuration_it_is_the_embedded_default() -> None:
    assert Daemon().config == AppConfig.embedded()


def test_what_is_no_configuration_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="max_clients"):
        Daemon({"servers": [{"listen_interface": "127.0.0.1:0", "max_clients": "many"}]})


async def test_mail_is_taken_for_the_name_of_the_machine_when_no_host_is_named() -> None:
    backend = RecordingBackend()
    async with Daemon(config(allowed_hosts=[]), backend=backend) as daemon:
        caller = await Caller.call(daemon)
        await caller.say("MAIL FROM:<>")
        assert (await caller.say(f"RCPT TO:<b@{socket.gethostname()}>")).startswith("250")
        assert (await caller.say("RCPT TO:<b@example.com>")).startswith("550 5.7.1")
        await caller.close()


# Logs


async def test_a_server_may_have_a_log_of_its_own(tmp_path: Path) -> None:
    main, own = tmp_path / "main.log", tmp_path / "own.log"
    servers = [{"listen_interface": "127.0.0.1:0", "log_file": str(own)}]
    async with Daemon(config(servers=servers, log_file=str(main))) as daemon:
        await deliver(daemon)
    events = [[json.loads(line)["event"] for line in path.read_text().splitlines()] for path in (main, own)]
    assert events == [["receiving", "mail received"], ["message"]]


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
async def test_where_mail_is_received_is_in_the_log_as_it_would_be_configured(host: str) -> None:
    capture = LogCapture()
    log = structlog.wrap_logger(None, processors=[capture]).bind()
    async with Daemon(config(servers=[{"listen_interface": f"{host}:0"}]), log=log) as daemon:
        [(_, (_, port))] = daemon.addresses
    assert capture.entries[0]["address"] == f"{host}:{port}"


async def test_what_is_probably_not_meant_is_in_the_log() -> None:
    capture = LogCapture()
    log = structlog.wrap_logger(None, processors=[capture]).bind()
    values = config(backend_config={"save_process": "Debugger", "primary_mail_host": "mx.test"}, dashboard={})
    async with Daemon(values, log=log):
        pass
    problems = [entry["problem"] for entry in capture.entries if entry["event"] == "configuration"]
    assert ["dashboard" in problems[0], "primary_mail_host" in problems[1], len(problems)] == [True, True, 2]


# The process


async def test_as_many_descriptors_as_clients_are_asked_for() -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
        async with Daemon(config(servers=[{"listen_interface": "127.0.0.1:0", "max_clients": 300}])):
            assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 2 * 300 + 64
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


async def test_the_pid_file_is_there_as_long_as_mail_is_received(tmp_path: Path) -> None:
    path = tmp_path / "guerrillad.pid"
    async with Daemon(config(pid_file=str(path))):
        assert path.read_text() == f"{os.getpid()}\n"
    assert not path.exists()


@pytest.mark.parametrize("content", ["1\n", "nonsense\n", "\xff"])
async def test_a_pid_file_that_has_become_anothers_is_left_to_it(tmp_path: Path, content: str) -> None:
    path = tmp_path / "guerrillad.pid"
    async with Daemon(config(pid_file=str(path))):
        path.write_text(content, encoding="latin-1")
    assert path.read_text(encoding="latin-1") == content


async def test_a_pid_file_that_cannot_be_written_is_a_warning() -> None:
    capture = LogCapture()
    log = structlog.wrap_logger(None, processors=[capture]).bind()
    async with Daemon(config(pid_file="/nowhere/guerrillad.pid"), log=log):
        pass
    warning = capture.entries[-1]
    assert (warning["event"], warning["cause"]) == ("cannot write the pid file", "No such file or directory")


async def test_a_pid_file_that_is_a_pipe_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    capture = LogCapture()
    log = structlog.wrap_logger(None, processors=[capture]).bind()
    async with Daemon(config(pid_file=str(path)), log=log):
        pass
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    async with Daemon(config(pid_file=str(path)), log=log):
        pass
    os.close(reader)
    causes = [entry["cause"] for entry in capture.entries if entry["event"] == "cannot write the pid file"]
    assert causes == ["No such device or address", "Not a regular file"]
    assert path.is_fifo()


async def test_who_means_several_processes_and_starts_one_is_told() -> None:
    capture = LogCapture()
    log = structlog.wrap_logger(None, processors=[capture]).bind()
    async with Daemon(config(processes=3), log=log):
        pass
    assert [entry["processes"] for entry in capture.entries if "only Daemon.run" in entry["event"]] == [3]


async def test_twenty_lives_leave_nothing_behind() -> None:
    backend = RecordingBackend()
    daemon = Daemon(config(), backend=backend)
    async with daemon:
        await deliver(daemon)
    before, tasks = descriptors(), asyncio.all_tasks()
    for _ in range(20):
        async with daemon:
            await deliver(daemon)
    assert descriptors() == before
    assert asyncio.all_tasks() == tasks
    assert len(backend.envelopes) == 21


def test_a_daemon_may_live_on_one_loop_after_another() -> None:
    daemon = Daemon(config())

    async def live() -> str:
        async with daemon:
            return await deliver(daemon)

    for _ in range(2):
        assert asyncio.run(live()).startswith("250")


def test_in_a_thread_it_serves_a_program_without_a_loop() -> None:
    backend = RecordingBackend()
    daemon = Daemon(config(), backend=backend)
    for number in (1, 2):
        with daemon.in_thread() as running, smtplib.SMTP("127.0.0.1", port(running)) as client:
            client.sendmail("a@client.test", ["b@example.com"], b"Subject: Hello\r\n\r\nYou\r\n")
        assert len(backend.envelopes) == number


def test_in_a_thread_it_ends_also_when_the_block_fails() -> None:
    daemon = Daemon(config())
    with pytest.raises(KeyError), daemon.in_thread():
        raise KeyError
    assert daemon.addresses == []


INTERRUPTED = """
import asyncio, os, signal
from guerrilla import Daemon, Processor, ProcessorConfig

class Slow(Processor[ProcessorConfig]):
    async def initialize(self):
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.Event().wait()

    async def shutdown(self):
        print("closed")

servers = [{"listen_interface": "127.0.0.1:0"}]
daemon = Daemon({"servers": servers, "log_file": "off", "backend_config": {"save_process": "Slow"}})
daemon.add_processor("Slow", Slow)
try:
    with daemon.in_thread():
        print("started")
except KeyboardInterrupt:
    print("interrupted")
"""


def test_an_interrupt_during_a_start_in_a_thread_ends_it() -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("closed\ninterrupted\n", "")


def test_a_call_runs_on_the_loop_of_the_daemon_and_one_from_there_is_refused() -> None:
    daemon = Daemon(config())

    async def call_itself() -> None:
        daemon.call(asyncio.sleep(0))

    with daemon.in_thread():
        assert daemon.call(asyncio.sleep(0, "done")) == "done"
        with pytest.raises(RuntimeError, match="await the coroutine"):
            daemon.call(call_itself())
    with pytest.raises(RuntimeError, match="does not run"):
        daemon.call(asyncio.sleep(0))


async def test_a_logger_of_the_standard_library_may_take_the_place_of_the_logs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    logger = logging.getLogger("mail")
    with caplog.at_level(logging.INFO, "mail"):
        async with Daemon(config(), log=logger) as daemon:
            await deliver(daemon)
            daemon.log.debug("not heard")
            daemon.log.warning(5)  # type: ignore[arg-type]
            try:
                raise ValueError("two\nlines")
            except ValueError:
                daemon.log.bind(name="a", msg="x\ny").exception("a\nb", args=1)
    texts = [(record.name, record.levelname, record.getMessage()) for record in caplog.records]
    assert texts[0][:2] == ("mail", "INFO")
    assert texts[0][2].startswith("receiving address=127.0.0.1:")
    assert texts[-2] == ("mail", "WARNING", "5")
    assert texts[-1][:2] == ("mail", "ERROR")
    assert texts[-1][2].startswith("a\\x0ab name=a msg=x\\x0ay args=1\n    Traceback")
    assert texts[-1][2].endswith("\n    ValueError: two\n    lines")


def test_what_is_no_logger_is_refused() -> None:
    with pytest.raises(TypeError, match="found <class 'object'> for a log; meant: a logger of structlog"):
        Daemon(config(), log=object)  # type: ignore[arg-type]
