"""What systemd is told, and what is taken over from it: with a socket of ours in its place, and with its own tool."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from guerrilla.systemd import InheritedError, Notifier, listen_sockets, sockets_for, watchdog_interval

PID = str(os.getpid())


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """Listen as the manager does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(20)
        yield listening


@pytest.fixture
def notifier(manager: socket.socket) -> Iterator[Notifier]:
    notifier = Notifier({"NOTIFY_SOCKET": manager.getsockname()})
    yield notifier
    notifier.close()


def heard(manager: socket.socket) -> list[str]:
    return manager.recv(4096).decode().split("\n")


def test_each_state_is_told_in_the_words_of_the_protocol(manager: socket.socket, notifier: Notifier) -> None:
    assert notifier.active
    notifier.ready()
    assert heard(manager) == ["READY=1"]
    notifier.ready("receiving on :25")
    assert heard(manager) == ["READY=1", "STATUS=receiving on :25"]
    notifier.stopping()
    assert heard(manager) == ["STOPPING=1"]
    notifier.watchdog()
    assert heard(manager) == ["WATCHDOG=1"]
    notifier.main_pid(4711)
    assert heard(manager) == ["MAINPID=4711"]
    notifier.status("draining")
    assert heard(manager) == ["STATUS=draining"]


def test_a_reload_is_told_with_the_time_of_the_monotonic_clock(manager: socket.socket, notifier: Notifier) -> None:
    before = time.monotonic_ns() // 1000
    notifier.reloading()
    state, moment = heard(manager)
    assert state == "RELOADING=1"
    assert before <= int(moment.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000


def test_a_line_break_in_the_status_is_no_assignment_of_its_own(manager: socket.socket, notifier: Notifier) -> None:
    notifier.status("a\nMAINPID=1\x00\ud800" + "b" * 1000)
    (line,) = heard(manager)
    assert line == "STATUS=a MAINPID=1  " + "b" * 243


def test_an_abstract_socket_is_reached() -> None:
    name = f"guerrilla-test-{PID}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(f"\0{name}")
        listening.settimeout(20)
        notifier = Notifier({"NOTIFY_SOCKET": f"@{name}"})
        notifier.ready()
        assert heard(listening) == ["READY=1"]
        notifier.close()


@pytest.mark.parametrize("address", ["", "vsock:2:1", "relative"])
def test_where_no_manager_can_be_nothing_is_opened_and_nothing_said(address: str) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": address} if address else {})
    assert not notifier.active
    notifier.ready()
    notifier.close()


@pytest.mark.parametrize("address", ["/no/such/folder/notify", "/a" * 200, "/nul\0nul", "@" + "a" * 200])
def test_a_manager_that_cannot_be_reached_harms_nobody(address: str) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": address})
    notifier.ready()
    notifier.close()
    notifier.ready()
    assert not notifier.active


def test_a_manager_that_does_not_read_holds_nobody(manager: socket.socket, notifier: Notifier) -> None:
    for _ in range(10_000):
        notifier.watchdog()
    assert heard(manager) == ["WATCHDOG=1"]


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": PID}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "\u0663"}, None),
    ],
)
def test_the_watchdog_is_fed_in_half_the_time_that_systemd_allows(
    environment: dict[str, str], seconds: float | None
) -> None:
    assert watchdog_interval(environment) == seconds


# Sockets


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


@pytest.fixture
def free() -> Iterator[int]:
    """Return a descriptor's number high above what is open; two from there on are closed in the end."""
    first = 900
    yield first
    for number in (first, first + 1):
        with contextlib.suppress(OSError):
            os.close(number)


def activated(count: object = 1, pid: str = PID, names: str = "") -> dict[str, str]:
    environment = {"LISTEN_PID": pid, "LISTEN_FDS": str(count), "OTHER": "stays"}
    return {**environment, "LISTEN_FDNAMES": names} if names else environment


def test_inherited_sockets_are_taken_once_and_no_child_gets_them(listening: socket.socket, free: int) -> None:
    os.dup2(listening.fileno(), free, inheritable=True)
    os.dup2(listening.fileno(), free + 1, inheritable=True)
    environment = activated(2, names="smtp:submission")
    sockets = listen_sockets(environment, free)
    assert environment == {"OTHER": "stays"}
    assert [each.fileno() for each in sockets] == [free, free + 1]
    assert listen_sockets(environment, free) == []
    for each in sockets:
        assert each.getsockname() == listening.getsockname()
        assert each.family == socket.AF_INET
        assert not each.get_inheritable()
        assert not each.getblocking()
        each.close()


@pytest.mark.parametrize("environment", [{}, activated(1, pid="1"), activated("")])
def test_sockets_that_are_meant_for_another_process_are_left_alone(
    environment: dict[str, str], listening: socket.socket, free: int
) -> None:
    os.dup2(listening.fileno(), free)
    assert listen_sockets(environment, free) == []
    assert "LISTEN_FDS" not in environment
    os.fstat(free)


def refused(descriptor: int, free: int, names: str = "") -> str:
    os.dup2(descriptor, free)
    with pytest.raises(InheritedError) as error:
        listen_sockets(activated(names=names), free)
    return str(error.value)


def test_what_is_no_listening_tcp_socket_is_told_with_its_number_and_name(tmp_path: Path, free: int) -> None:
    what = f"LISTEN_FDS: file descriptor {free}"
    with open(tmp_path / "file", "w") as file:
        assert refused(file.fileno(), free, "web") == f"{what} (web) is no socket"
    with socket.socket() as idle:
        assert refused(idle.fileno(), free) == f"{what} does not listen, meant: a listening TCP socket"
    with socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        assert refused(datagrams.fileno(), free) == f"{what} is no stream, meant: a listening TCP socket"
    with socket.socket(socket.AF_UNIX) as local:
        assert refused(local.fileno(), free) == f"{what} is not of the internet, meant: a listening TCP socket"


def test_a_number_that_is_not_open_is_told_and_those_before_it_are_closed(listening: socket.socket, free: int) -> None:
    os.dup2(listening.fileno(), free)
    with pytest.raises(InheritedError, match=f"descriptor {free + 1} cannot be used: Bad file descriptor"):
        listen_sockets(activated(2), free)
    with pytest.raises(OSError):
        os.fstat(free)


def test_a_count_that_is_no_number_is_told() -> None:
    with pytest.raises(InheritedError, match="LISTEN_FDS: found 'two', meant: the number of sockets"):
        listen_sockets(activated("two"))


def test_a_server_gets_the_sockets_that_are_bound_to_its_address() -> None:
    with contextlib.ExitStack() as opened:

        def listen(host: str, family: socket.AddressFamily = socket.AF_INET, port: int = 0) -> socket.socket:
            return opened.enter_context(socket.create_server((host, port), family=family))

        loopback, everywhere = listen("127.0.0.1"), listen("0.0.0.0")
        inherited = [loopback, everywhere]
        port, wild = loopback.getsockname()[1], everywhere.getsockname()[1]
        assert sockets_for("127.0.0.1", port, inherited) == [loopback]
        assert sockets_for("localhost", port, inherited) == [loopback]
        assert sockets_for("", wild, inherited) == [everywhere]
        assert sockets_for("0.0.0.0", wild, inherited) == [everywhere]
        assert sockets_for("127.0.0.1", wild, inherited) == []
        assert sockets_for("", port, inherited) == []
        assert sockets_for("127.0.0.2", port, inherited) == []
        assert sockets_for("127.0.0.1", 1, inherited) == []
        assert sockets_for("no.such.host.invalid", port, inherited) == []
        assert sockets_for("a" * 100, port, inherited) == []
        if socket.has_ipv6:
            six = listen("::", socket.AF_INET6)
            assert sockets_for("", six.getsockname()[1], [six]) == [six]
            assert sockets_for("0:0::0", six.getsockname()[1], [six]) == [six]


@pytest.mark.skipif(shutil.which("systemd-socket-activate") is None, reason="systemd is not installed")
def test_systemd_itself_hands_over_a_socket() -> None:
    with socket.create_server(("127.0.0.1", 0)) as chosen:
        port = chosen.getsockname()[1]
    code = (
        "from guerrilla.systemd import listen_sockets, sockets_for\n"
        f"(taken,) = sockets_for('127.0.0.1', {port}, listen_sockets())\n"
        "taken.accept()[0].sendall(b'220 here')\n"
    )
    command = [
        "systemd-socket-activate",
        "--listen",
        f"127.0.0.1:{port}",
        "--fdname",
        "smtp",
        sys.executable,
        "-c",
        code,
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as activating:
        try:
            assert activating.stderr is not None
            assert b"Listening on" in activating.stderr.readline()
            with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
                assert client.recv(100) == b"220 here"
            activating.communicate(timeout=20)
        finally:
            activating.kill()
    assert activating.returncode == 0
