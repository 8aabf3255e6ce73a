"""Starts that fail: one line says why, nothing that was opened stays open, and the next start may succeed."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from guerrilla import ConfigError, Daemon, Processor, ProcessorConfig, StartError
from guerrilla.doors import _why


def config(save_process: str = "Debugger", /, **keys: Any) -> dict[str, Any]:
    return {
        "servers": [{"listen_interface": "127.0.0.1:0"}],
        "log_file": "off",
        "backend_config": {"save_process": save_process},
        **keys,
    }


def descriptors() -> list[str]:
    """Return what this process has open."""
    return sorted(os.listdir("/proc/self/fd"))


@pytest.fixture
def busy() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield taken.getsockname()[1]


async def refused(daemon: Daemon) -> str:
    """Start what cannot be started; return the one line that says why."""
    before, tasks = descriptors(), asyncio.all_tasks()
    with pytest.raises(StartError) as error:
        await daemon.start()
    assert descriptors() == before
    assert asyncio.all_tasks() == tasks
    assert daemon.addresses == []
    text = str(error.value)
    assert "\n" not in text
    return text


async def test_a_port_that_is_taken_is_an_error_that_says_so(busy: int) -> None:
    servers = [{"listen_interface": "127.0.0.1:0"}, {"listen_interface": f"127.0.0.1:{busy}"}]
    daemon = Daemon(config(servers=servers))
    assert await refused(daemon) == (
        f"server 127.0.0.1:{busy}: cannot listen: Address already in use; another server is running there"
    )


async def test_a_daemon_whose_start_has_failed_can_be_started_when_the_cause_has_gone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        interface = f"127.0.0.1:{taken.getsockname()[1]}"
        daemon = Daemon(config(servers=[{"listen_interface": interface}]))
        await refused(daemon)
    async with daemon:
        assert [server.listen_interface for server, _ in daemon.addresses] == [interface]


async def test_a_certificate_that_cannot_be_read_is_an_error_with_its_name() -> None:
    tls = {"start_tls_on": True, "public_key_file": "/no/public.pem", "private_key_file": "/no/private.pem"}
    servers = [{"listen_interface": "127.0.0.1:0"}, {"listen_interface": "127.0.0.2:0", "tls": tls}]
    assert await refused(Daemon(config(servers=servers))) == (
        "server 127.0.0.2:0: tls.public_key_file '/no/public.pem': No such file or directory"
    )


class First(Processor[ProcessorConfig]):
    """Is opened before the one that fails."""

    life: list[str] = []  # noqa: RUF012 - the test looks here

    async def initialize(self) -> None:
        self.life.append("open")

    async def shutdown(self) -> None:
        self.life.append("closed")


class Fails(First):
    """Has no store."""

    async def initialize(self) -> None:
        raise ConnectionRefusedError("nobody is at home at foo:1234")


async def test_a_processor_that_cannot_be_opened_is_an_error_and_those_before_it_are_closed() -> None:
    First.life.clear()
    daemon = Daemon(config("First|Fails"))
    daemon.add_processor("First", First)
    daemon.add_processor("Fails", Fails)
    assert await refused(daemon) == "backend_config: Fails: nobody is at home at foo:1234"
    assert First.life == ["open", "closed", "closed"]


async def test_a_production_line_that_cannot_be_built_is_an_error_of_the_configuration() -> None:
    before = descriptors()
    daemon = Daemon(config("HeaderParser"))
    for _ in range(2):
        with pytest.raises(ConfigError, match="HeadersParser"):
            await daemon.start()
    assert descriptors() == before


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"spool_path": "/nowhere"}, "spool_path '/nowhere': no file can be made there: No such file or directory"),
        ({"log_file": "/nowhere/log"}, "log_file '/nowhere/log': No such file or directory"),
        ({"allowed_hosts": ["[nowhere]"]}, "allowed_hosts: 'nowhere' does not appear to be an IPv4 or IPv6 address"),
        (
            {"servers": [{"listen_interface": "127.0.0.1:0", "is_enabled": False}]},
            "servers: not one is enabled",
        ),
        (
            {"servers": [{"listen_interface": "127.0.0.1:0", "log_file": "/nowhere/log"}]},
            "server 127.0.0.1:0: log_file '/nowhere/log': No such file or directory",
        ),
        (
            {"servers": [{"listen_interface": "a" * 64 + ".test:0"}]},
            f"server {'a' * 64}.test:0: cannot listen: '{'a' * 64}.test' is no host name",
        ),
    ],
)
async def test_what_cannot_be_had_is_an_error_that_names_its_key(keys: dict[str, Any], why: str) -> None:
    assert await refused(Daemon(config(**keys))) == why


def test_a_port_that_needs_a_right_is_an_error_that_says_which() -> None:
    assert _why(PermissionError(errno.EACCES, "Permission denied")) == (
        "Permission denied; ports below 1024 need root, or the capability CAP_NET_BIND_SERVICE"
    )
    assert _why(OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")) == "Cannot assign requested address"
    assert _why(OSError("as it is")) == "as it is"


async def test_a_daemon_that_runs_cannot_be_started_again() -> None:
    async with Daemon(config()) as daemon:
        with pytest.raises(StartError, match="already running"):
            await daemon.start()
        assert len(daemon.addresses) == 1, "it is not disturbed by that"


def test_in_a_thread_a_start_that_fails_is_an_error_of_the_caller(busy: int) -> None:
    daemon = Daemon(config(servers=[{"listen_interface": f"127.0.0.1:{busy}"}]))
    with pytest.raises(StartError, match="already in use"), daemon.in_thread():
        raise AssertionError("it has not started")
