"""Listening sockets: which are opened, what is accepted, and what happens when the system has no descriptor left."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from guerrilla.server.readiness import Readiness, readiness
from guerrilla.server.sockets import open_sockets
from guerrilla.server.wire import Wire

if TYPE_CHECKING:
    from tests.server.conftest import HouseMaker


@contextlib.contextmanager
def opened(host: str, port: int = 0) -> Iterator[list[socket.socket]]:
    sockets = open_sockets(host, port)
    yield sockets
    for each in sockets:
        each.close()


def test_an_address_is_one_socket_on_a_free_port() -> None:
    with opened("127.0.0.1") as (listening,):
        host, port = listening.getsockname()
        assert (host, listening.getblocking()) == ("127.0.0.1", False)
        assert port > 0
        assert not listening.get_inheritable()


def test_an_ipv6_address_is_one_socket_for_ipv6_only() -> None:
    with opened("::1") as (listening,):
        assert listening.getsockname()[0] == "::1"
        assert listening.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1


def test_no_address_is_every_address_of_both_families() -> None:
    with opened("") as (listening,):
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, listening.getsockname()[1])).close()


def test_no_address_is_every_ipv4_address_where_there_is_no_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    with opened("") as (listening,):
        assert listening.getsockname()[0] == "0.0.0.0"


def test_a_name_is_a_socket_for_each_of_its_addresses_on_the_same_port(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"127.0.0.{last}", 0)) for last in (2, 3, 2)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with opened("two.test") as sockets:
        assert [each.getsockname()[0] for each in sockets] == ["127.0.0.2", "127.0.0.3"]
        assert len({each.getsockname()[1] for each in sockets}) == 1


def test_when_one_address_of_a_name_is_taken_none_is_left_open(monkeypatch: pytest.MonkeyPatch) -> None:
    with opened("127.0.0.3") as (taken,):
        port = taken.getsockname()[1]
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"127.0.0.{last}", port)) for last in (2, 3)]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        with pytest.raises(OSError, match="in use"):
            open_sockets("two.test", port)
    with opened("127.0.0.2", port):
        pass


@pytest.mark.parametrize("host", ["no such host", "a" * 64 + ".test"])
def test_what_is_no_host_name_is_an_os_error(host: str) -> None:
    with pytest.raises(OSError, match=r"[Nn]ame"):
        open_sockets(host, 0)


async def test_the_port_that_was_chosen_is_known_also_after_the_end(serve: HouseMaker) -> None:
    server = serve().server
    host, port = server.address
    assert host == "127.0.0.1"
    assert port > 0
    await server.close()
    assert server.address == (host, port)


async def test_an_ipv6_client_is_known_by_its_address(serve: HouseMaker) -> None:
    house = serve(listen_interface="[::1]:0")
    with socket.create_connection(house.server.address[:2]) as sock:
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        whole = b"EHLO a\r\nMAIL FROM:<>\r\nRCPT TO:<b@example.com>\r\nDATA\r\n.\r\nQUIT\r\n"
        await loop.sock_sendall(sock, whole)
        while await loop.sock_recv(sock, 65536):
            pass
    assert house.backend.envelopes[0].remote_ip == "::1"


async def test_nobody_is_accepted_after_the_end_of_accepting(serve: HouseMaker) -> None:
    house = serve()
    house.server.stop_accepting()
    house.server.stop_accepting()
    with pytest.raises(ConnectionRefusedError):
        await house.connect()


async def test_the_spare_descriptor_is_given_back_at_the_end_of_accepting(serve: HouseMaker) -> None:
    house = serve()
    spare = house.server._spare
    os.fstat(spare)
    house.server.stop_accepting()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(spare)


async def test_more_than_one_burst_are_all_greeted(serve: HouseMaker) -> None:
    house = serve(max_clients=200)
    clients = [await house.connect() for _ in range(150)]
    for client in clients:
        assert (await client.reply()).startswith("220")


@contextlib.contextmanager
def no_more_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_without_a_descriptor_a_client_is_told_and_the_next_is_served_when_there_is_one(
    serve: HouseMaker,
) -> None:
    house = serve()
    client = house.client()
    with no_more_descriptors():
        await house.connect(client)
        assert await client.rest() == b"421 4.3.2 Too many connections, try again later\r\n"
    (record,) = house.log
    assert (record["event"], record["cause"]) == ("cannot accept connections", "Too many open files")
    assert (await (await house.connect()).reply()).startswith("220")


async def test_the_pause_ends_quietly_when_the_server_has_ended(
    serve: HouseMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("guerrilla.server.listener.ACCEPT_PAUSE", 0.0)
    house = serve()
    client = house.client()
    with no_more_descriptors():
        await house.connect(client)
        await client.rest()
        await house.server.close()
    assert [record["event"] for record in house.log] == ["cannot accept connections"]


async def test_who_waits_without_a_descriptor_when_the_server_ends_is_told_why(serve: HouseMaker) -> None:
    house = serve()
    clients = [house.client() for _ in range(80)]
    with no_more_descriptors():
        for client in clients:
            client.sock.connect_ex(house.server.address)  # in one turn of the loop: it has not looked at its queue yet
        house.server.stop_accepting()
        for client in clients:
            assert await client.rest() == b"421 4.3.2 Server is shutting down, try again later\r\n"
    assert house.log == []


async def test_a_spare_descriptor_that_could_not_be_had_is_opened_later(
    serve: HouseMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("guerrilla.server.listener.ACCEPT_PAUSE", 0.05)
    house = serve()
    os.close(house.server._spare)
    house.server._spare = -1
    client = house.client()
    with no_more_descriptors():
        await house.connect(client)
        await house.until(lambda: len(house.log) == 2)
        assert {record["event"] for record in house.log} == {"cannot accept connections"}
    assert (await client.reply()).startswith("220"), "there was no means to tell it anything: it has waited"
    assert house.server._spare >= 0


class Full:
    """Watches nobody: the limit of max_user_watches is reached."""

    closed = False

    def __init__(self) -> None:
        self._epoll = readiness()
        self.fileno, self.modify, self.unregister = self._epoll.fileno, self._epoll.modify, self._epoll.unregister
        self.poll = self._epoll.poll

    def register(self, *_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def close(self) -> None:
        self.closed = True
        self._epoll.close()


async def test_a_client_that_cannot_be_watched_is_told(serve: HouseMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    full = Full()
    monkeypatch.setattr("guerrilla.server.listener.readiness", lambda: full)
    house = serve()
    before = os.listdir("/proc/self/fd")
    client = await house.connect()
    assert await client.rest() == b"421 4.3.2 Too many connections, try again later\r\n"
    await house.empty()
    client.close()
    assert len(os.listdir("/proc/self/fd")) == len(before)
    (record,) = house.log
    assert (record["event"], record["cause"]) == ("connection failed", "[Errno 28] No space left on device")
    await house.server.close()
    assert full.closed


async def test_a_server_that_has_no_descriptor_to_watch_with_goes_on_when_there_is_one(
    serve: HouseMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = [OSError(errno.EMFILE, "Too many open files")]

    def make() -> Readiness:
        if failures:
            raise failures.pop()
        return readiness()

    monkeypatch.setattr("guerrilla.server.listener.readiness", make)
    monkeypatch.setattr("guerrilla.server.listener.ACCEPT_PAUSE", 0.0)
    house = serve()
    assert (await (await house.connect()).rest()).startswith(b"421 ")
    assert (await (await house.connect()).reply()).startswith("220")
    assert [record["event"] for record in house.log] == ["cannot accept connections"]


async def test_a_reply_does_not_wait_until_the_last_one_is_acknowledged(serve: HouseMaker) -> None:
    """As it would, up to 40 ms, by Nagle's algorithm (RFC 1122 section 4.2.3.4)."""
    house = serve()
    await house.greeted()
    (connection,) = house.server.connections
    assert isinstance(connection._transport, Wire)
    with socket.socket(fileno=os.dup(connection._transport._number)) as sock:
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


IN_A_SMALL_PROCESS = """
import resource, sys
from guerrilla import Daemon
from guerrilla.testing.recording import RecordingBackend

resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
config = {
    "servers": [{"listen_interface": "127.0.0.1:0", "max_clients": 1000}],
    "allowed_hosts": ["."],
    "log_format": "json",
}
Daemon(config, backend=RecordingBackend()).run(lambda daemon: print(daemon.addresses[0][1][1], flush=True))
"""


def first_word_of(address: tuple[str, int]) -> bytes:
    with socket.create_connection(address, timeout=30) as client:
        return client.recv(1000)[:3]


def test_a_process_without_descriptors_answers_all_keeps_calm_and_recovers() -> None:
    command = [sys.executable, "-c", IN_A_SMALL_PROCESS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = ("127.0.0.1", int(process.stdout.readline()))
        clients = [socket.create_connection(address, timeout=30) for _ in range(200)]
        firsts = [client.recv(1000)[:3] for client in clients]
        assert set(firsts) == {b"220", b"421"}
        assert firsts.count(b"220") > 10
        for client in clients:
            client.close()
        while first_word_of(address) != b"220":  # as long as the others are being buried
            pass
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=30)
        assert process.returncode == 0
    assert log.count("cannot accept connections") <= 20
    assert "Traceback" not in log
