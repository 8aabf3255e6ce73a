"""How the control socket is answered, with an event loop and without: nothing that a client does harms the daemon."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import socket
import struct
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.control_server import answering, run_folder

from guerrilla import control
from guerrilla.control import (
    MAX_CONNECTIONS,
    MAX_REQUEST,
    Control,
    ControlSocket,
    answer_blocking,
    ask,
    close_control,
    open_control,
)

__all__ = ["run_folder"]

DEADLINE = 20


@pytest.fixture
def path(run_folder: Path) -> Path:
    return run_folder / "c.sock"


@pytest.fixture
def listening(path: Path) -> Iterator[ControlSocket]:
    opened = open_control(path)
    yield opened
    close_control(opened, path)


def echo(request: dict[str, Any]) -> dict[str, Any]:
    return {"ok": True, "asked": request}


# Both ways to answer


def answer_next(listening: socket.socket, answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Accept one connection and answer it."""
    connection, _ = listening.accept()
    with connection:
        answer_blocking(connection, answer)


@contextlib.contextmanager
def answering_blocking(path: Path, answer: Callable[[dict[str, Any]], dict[str, Any]]) -> Iterator[None]:
    """Answer one connection, from a thread without a loop."""
    listening = open_control(path)
    listening.settimeout(DEADLINE)
    thread = threading.Thread(target=answer_next, args=(listening, answer))
    thread.start()
    try:
        yield
    finally:
        thread.join(DEADLINE)
        assert not thread.is_alive()
        close_control(listening, path)


both = pytest.mark.parametrize("server", [answering, answering_blocking])
Server = Callable[
    [Path, Callable[[dict[str, Any]], dict[str, Any]]],
    contextlib.AbstractContextManager[None],
]


def sent(path: Path, octets: bytes) -> bytes:
    """Send octets and nothing more; return all that comes."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(DEADLINE)
        client.connect(str(path))
        with contextlib.suppress(OSError):
            client.sendall(octets)
            client.shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while more := client.recv(65536):
                answer += more
        return answer


@both
def test_a_request_is_answered(path: Path, server: Server) -> None:
    with server(path, echo):
        assert ask(path, "reload", DEADLINE) == {"ok": True, "asked": {"command": "reload"}}


@both
def test_a_large_answer_arrives_whole(path: Path, server: Server) -> None:
    with server(path, lambda request: {"ok": True, "text": "x" * 1_000_000}):
        assert len(ask(path, "stats", DEADLINE)["text"]) == 1_000_000


@both
@pytest.mark.parametrize("request_line", [b"hello\n", b"[]\n", b"[" * 4000 + b"\n", b'"x"\n', b"\xff\n"], ids=range(5))
def test_what_is_no_object_is_told_so(path: Path, server: Server, request_line: bytes) -> None:
    with server(path, echo):
        assert json.loads(sent(path, request_line)) == {"ok": False, "problems": ["the request is no JSON object"]}


@both
@pytest.mark.parametrize(
    "request_line", [b'{"command": "stats"}', b" " * (MAX_REQUEST - 1) + b"{}\n", b"{}\n{}"], ids=range(3)
)
def test_what_is_no_line_is_told_so(path: Path, server: Server, request_line: bytes) -> None:
    with server(path, echo):
        assert json.loads(sent(path, request_line))["problems"] == ["the request is no line of at most 4096 octets"]


@both
def test_a_client_that_sends_without_end_is_not_read_to_the_end(path: Path, server: Server) -> None:
    with server(path, echo):
        assert b"asked" not in sent(path, b" " * 1_000_000)


@both
def test_a_client_that_says_nothing_gets_nothing(path: Path, server: Server) -> None:
    with server(path, echo):
        assert sent(path, b"") == b""


@both
def test_an_answer_that_fails_is_told_as_a_problem(path: Path, server: Server) -> None:
    def fail(request: dict[str, Any]) -> dict[str, Any]:
        raise RuntimeError("no\nluck")

    with server(path, fail):
        assert ask(path, "stats", DEADLINE) == {"ok": False, "problems": ["RuntimeError: no", "luck"]}


@both
def test_an_answer_that_is_no_json_is_told_as_a_problem(path: Path, server: Server) -> None:
    with server(path, lambda request: {"ok": object()}):
        assert not ask(path, "stats", DEADLINE)["ok"]


class Stranger(socket.socket):
    """A connection from another user."""

    def getsockopt(self, *_: object) -> Any:
        return struct.pack("iII", 1, os.geteuid() + 1, 0)


class StrangersSocket(socket.socket):
    """A socket that another user connects to."""

    def accept(self) -> tuple[socket.socket, Any]:
        connection, address = super().accept()
        return Stranger(fileno=connection.detach()), address


def test_another_user_is_refused(listening: ControlSocket, path: Path) -> None:
    strangers = StrangersSocket(fileno=os.dup(listening.fileno()))
    asked: list[object] = []

    def note(request: dict[str, Any]) -> dict[str, Any]:
        asked.append(request)
        return {"ok": True}

    with strangers, socket.socket(socket.AF_UNIX) as client:
        client.settimeout(DEADLINE)
        client.connect(str(path))
        client.sendall(b'{"command": "stats"}\n')
        answer_next(strangers, note)
        answer = json.loads(client.recv(65536))
    assert not asked
    assert not answer["ok"]
    assert answer["problems"][0].startswith(f"found user {os.geteuid() + 1}; meant: user {os.geteuid()}, ")


# Without a loop


def test_a_client_that_waits_is_left(listening: ControlSocket, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "BLOCKING_TIMEOUT", 0.05)
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(DEADLINE)
        client.connect(str(path))
        client.sendall(b"{")
        answer_next(listening, echo)
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""


def test_a_client_that_drips_has_no_more_time(listening: ControlSocket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "BLOCKING_TIMEOUT", 0.0)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(listening.getsockname())
        client.sendall(b"{}\n")
        answer_next(listening, echo)
        client.settimeout(DEADLINE)
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""


def test_a_client_that_does_not_read_is_left(listening: ControlSocket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "BLOCKING_TIMEOUT", 0.05)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(listening.getsockname())
        client.sendall(b"{}\n")
        answer_next(listening, lambda request: {"ok": True, "text": "x" * 10_000_000})


# On a loop


@contextlib.asynccontextmanager
async def controlled(listening: ControlSocket, answer: control.AsyncAnswer) -> AsyncIterator[Control]:
    served = Control(listening, answer)
    served.start()
    try:
        yield served
    finally:
        await served.close()


async def echo_soon(request: dict[str, Any]) -> dict[str, Any]:
    return echo(request)


async def connected(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_unix_connection(path)


async def test_beyond_the_most_connections_clients_wait(listening: ControlSocket, path: Path) -> None:
    begun, all_begun, go_on = 0, asyncio.Event(), asyncio.Event()

    async def work(request: dict[str, Any]) -> dict[str, Any]:
        nonlocal begun
        begun += 1
        if begun == MAX_CONNECTIONS:
            all_begun.set()
        await go_on.wait()
        return {"ok": True}

    async with asyncio.timeout(DEADLINE), controlled(listening, work):
        clients = [await connected(path) for _ in range(MAX_CONNECTIONS + 1)]
        for _, writer in clients:
            writer.write(b"{}\n")
        await all_begun.wait()
        for _ in range(50):  # turns of the loop, in which the last one would have been accepted and read
            await asyncio.sleep(0)
        assert begun == MAX_CONNECTIONS
        go_on.set()
        for reader, writer in clients:
            assert json.loads(await reader.readline())["ok"]
            writer.close()


async def test_a_client_that_sends_nothing_is_left_after_a_while(
    listening: ControlSocket, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "REQUEST_TIMEOUT", 0.05)
    async with asyncio.timeout(DEADLINE), controlled(listening, echo_soon):
        reader, writer = await connected(path)
        assert await reader.read() == b""
        writer.close()


async def test_the_end_waits_for_what_is_being_done(listening: ControlSocket, path: Path) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def work(request: dict[str, Any]) -> dict[str, Any]:
        begun.set()
        await go_on.wait()
        return {"ok": True}

    async with asyncio.timeout(DEADLINE), controlled(listening, work) as served:
        idle_reader, idle_writer = await connected(path)
        reader, writer = await connected(path)
        writer.write(b"{}\n")
        await begun.wait()
        closing = asyncio.create_task(served.close())
        assert await idle_reader.read() == b""
        go_on.set()
        assert json.loads(await reader.readline()) == {"ok": True}
        await closing
        for each in (writer, idle_writer):
            each.close()


async def test_the_end_does_not_wait_for_ever(
    listening: ControlSocket, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "CLOSE_TIMEOUT", 0.05)
    begun = asyncio.Event()

    async def hang(request: dict[str, Any]) -> dict[str, Any]:
        begun.set()
        await asyncio.get_running_loop().create_future()
        return {}

    async with asyncio.timeout(DEADLINE), controlled(listening, hang) as served:
        reader, writer = await connected(path)
        writer.write(b"{}\n")
        await begun.wait()
        await served.close()
        assert await reader.read() == b""
        writer.close()


class ScarceSocket(socket.socket):
    """A socket that finds no descriptor free, not even when one was given up, and then nobody."""

    def __init__(self, fileno: int) -> None:
        super().__init__(fileno=fileno)
        self.errors: list[OSError] = [*[OSError(24, "Too many open files")] * 2, BlockingIOError()]
        self.found_none = asyncio.Event()

    def accept(self) -> tuple[socket.socket, Any]:
        if self.errors:
            if len(self.errors) == 2:
                self.found_none.set()
            raise self.errors.pop(0)
        return super().accept()


async def test_when_no_descriptor_is_left_it_tries_again(
    listening: ControlSocket, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "ACCEPT_PAUSE", 0.01)
    scarce = ScarceSocket(os.dup(listening.fileno()))
    with scarce:
        async with asyncio.timeout(DEADLINE):
            served = Control(scarce, echo_soon)
            served.start()
            reader, writer = await connected(path)
            writer.write(b"{}\n")
            assert json.loads(await reader.readline())["ok"]
            writer.close()
            await served.close()
    assert not scarce.errors


async def test_the_end_comes_also_while_no_descriptor_is_left(listening: ControlSocket, path: Path) -> None:
    scarce = ScarceSocket(os.dup(listening.fileno()))
    with scarce:
        async with asyncio.timeout(DEADLINE):
            served = Control(scarce, echo_soon)
            served.start()
            _, writer = await connected(path)
            await scarce.found_none.wait()
            await served.close()
            writer.close()


async def test_who_asks_while_all_descriptors_are_in_use_has_an_answer(listening: ControlSocket, path: Path) -> None:
    loop = asyncio.get_running_loop()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    clients = [socket.socket(socket.AF_UNIX) for _ in range(2)]
    async with asyncio.timeout(DEADLINE), controlled(listening, echo_soon):
        try:
            highest = max(int(name) for name in os.listdir("/proc/self/fd"))
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, limits[1]))
            with contextlib.suppress(OSError):
                while True:
                    taken.append(os.dup(0))
            for client in clients:
                client.setblocking(False)
                await loop.sock_connect(client, os.fspath(path))
                await loop.sock_sendall(client, b"{}\n")
                assert json.loads(await loop.sock_recv(client, 4096))["ok"]
                assert await loop.sock_recv(client, 1) == b""
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for descriptor in taken:
                os.close(descriptor)
            for client in clients:
                client.close()
