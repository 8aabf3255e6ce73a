"""What is asked of the system for a connection: by both forms, that of Python and that in C."""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from guerrilla.server import system_calls

FORMS = {
    "python": SimpleNamespace(
        accept=system_calls.plain_accept, receive=system_calls.plain_receive, send=system_calls.plain_send
    ),
    "c": SimpleNamespace(accept=system_calls.accept, receive=system_calls.receive, send=system_calls.send),
}
in_c = pytest.mark.skipif(system_calls.accept is system_calls.plain_accept, reason="it was not built")


@pytest.fixture(params=["python", pytest.param("c", marks=in_c)])
def calls(request: pytest.FixtureRequest) -> SimpleNamespace:
    return FORMS[request.param]


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


Pair = tuple[socket.socket, socket.socket]


def test_what_has_come_is_read_as_far_as_there_is_room_and_the_end_is_nothing(
    calls: SimpleNamespace, pair: Pair
) -> None:
    ours, theirs = pair
    theirs.sendall(b"EHLO\r\n\0")
    buffer = bytearray(5)
    assert [calls.receive(ours.fileno(), buffer) for _ in range(3)] == [b"EHLO\r", b"\n\0", None]
    theirs.close()
    assert calls.receive(ours.fileno(), buffer) == b""


def test_as_much_is_sent_as_the_system_takes(calls: SimpleNamespace, pair: Pair) -> None:
    ours, theirs = pair
    assert calls.send(ours.fileno(), b"250 OK\r\n") == 8
    assert theirs.recv(100) == b"250 OK\r\n"
    much = bytes(1 << 24)
    taken = calls.send(ours.fileno(), much)
    assert 0 < taken < len(much)
    while more := calls.send(ours.fileno(), much):
        taken += more
    assert taken < len(much)


def test_a_broken_connection_is_an_error(calls: SimpleNamespace, pair: Pair) -> None:
    ours, theirs = pair
    theirs.close()
    with pytest.raises(BrokenPipeError):
        calls.send(ours.fileno(), b"250 OK\r\n")
    number = ours.fileno()
    ours.close()
    with pytest.raises(OSError) as caught:
        calls.receive(number, bytearray(5))
    assert caught.value.errno == errno.EBADF


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_a_connection_is_accepted_with_the_address_and_the_port_of_its_client(
    calls: SimpleNamespace, family: int, host: str
) -> None:
    with socket.create_server((host, 0), family=family) as listening, socket.socket(family) as client:
        listening.setblocking(False)
        assert calls.accept(listening) is None
        client.connect(listening.getsockname()[:2])
        number, address, port = calls.accept(listening)
        try:
            assert (address, port) == client.getsockname()[:2]
            assert not os.get_blocking(number)
            assert not os.get_inheritable(number)
            assert calls.accept(listening) is None
        finally:
            os.close(number)


def test_who_comes_over_a_unix_socket_has_no_address(calls: SimpleNamespace, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as client:
        listening.bind(str(tmp_path / "s"))
        listening.listen()
        listening.setblocking(False)
        client.connect(str(tmp_path / "s"))
        number, address, port = calls.accept(listening)
        os.close(number)
        assert (address, port) == ("", 0)


def test_what_does_not_listen_cannot_accept(calls: SimpleNamespace, pair: Pair) -> None:
    with pytest.raises(OSError) as caught:
        calls.accept(pair[0])
    assert caught.value.errno == errno.EINVAL


@in_c
def test_arguments_of_another_number_or_kind_are_refused() -> None:
    no_buffers: list[tuple[Any, ...]] = [(), (1,), (1, b""), (b"", bytearray()), (1, bytearray(), 2), (1, None)]
    for arguments in no_buffers:
        with pytest.raises(TypeError):
            system_calls.receive(*arguments)
    no_octets: list[tuple[Any, ...]] = [(), (1,), (1, ""), (1, bytearray()), (None, b""), (1, b"", 2)]
    for arguments in no_octets:
        with pytest.raises(TypeError):
            system_calls.send(*arguments)
    for number in (-1, 1 << 31):
        with pytest.raises(ValueError, match="a descriptor is meant"):
            system_calls.send(number, b"")
    with pytest.raises(OverflowError):
        system_calls.send(1 << 64, b"")
    with pytest.raises(TypeError):
        system_calls.accept("25")  # type: ignore[arg-type]


def test_the_calls_in_c_are_those_that_the_stub_names() -> None:
    folder = Path(__file__).parents[2] / "src/guerrilla/server"
    named = re.findall(r"def (\w+)", (folder / "_system_calls.pyi").read_text())
    assert named == re.findall(r'^    \{"(\w+)"', (folder / "_system_calls.c").read_text(), flags=re.MULTILINE)
