"""A reload: all of the new configuration holds or none of it, and mail flows on meanwhile."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import ssl
import struct
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.private_servers.process import free_port
from tests.server.certificates import issue

from guerrilla import CallNext, ConfigError, Daemon, Envelope, Processor, ProcessorConfig, Reply, StartError
from guerrilla.server import policy
from guerrilla.server.tls import make_context
from guerrilla.testing.recording import RecordingBackend


class Marks(Processor[ProcessorConfig]):
    """Keeps count of its instances, and may be held up."""

    opened: list[Marks] = []  # noqa: RUF012 - the test looks here
    gate = asyncio.Event()
    entered = asyncio.Event()

    async def initialize(self) -> None:
        self.opened.append(self)

    async def shutdown(self) -> None:
        self.opened.remove(self)

    async def save_mail(self, envelope: Envelope, call_next: CallNext) -> Reply:
        type(self).entered.set()
        await type(self).gate.wait()
        return Reply(250, "2.0.0", f"kept by {id(self)}")


class Refuses(Processor[ProcessorConfig]):
    """Has no store."""

    async def initialize(self) -> None:
        raise RuntimeError("foo_password: Foo refuses us")


@pytest.fixture(autouse=True)
def fresh() -> None:
    Marks.opened = []
    Marks.gate = asyncio.Event()
    Marks.gate.set()
    Marks.entered = asyncio.Event()


def config(*servers: dict[str, Any], **keys: Any) -> dict[str, Any]:
    return {
        "servers": [{"host_name": "mx.test", **server} for server in servers],
        "allowed_hosts": ["example.com"],
        "log_file": "off",
        "backend_config": {"save_process": "Marks"},
        **keys,
    }


def daemon_with(settings: dict[str, Any]) -> Daemon:
    daemon = Daemon(settings)
    daemon.add_processor("Marks", Marks)
    daemon.add_processor("Refuses", Refuses)
    return daemon


class Caller:
    """A client that says one line at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def call(cls, port: int) -> Caller:
        caller = cls(*await asyncio.open_connection("127.0.0.1", port))
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

    async def begin(self) -> None:
        for line in ("MAIL FROM:<a@client.test>", "RCPT TO:<b@example.com>", "DATA"):
            assert (await self.say(line))[0] in "23"

    def reset(self) -> None:
        """Vanish with a reset."""
        linger = struct.pack("ii", 1, 0)
        self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._writer.transport.abort()

    async def close(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()


async def test_a_transaction_ends_on_the_configuration_it_began_with_and_the_next_has_the_new_one() -> None:
    port = free_port()
    server = {"listen_interface": f"127.0.0.1:{port}"}
    async with daemon_with(config(server)) as daemon:
        (old,) = Marks.opened
        caller = await Caller.call(port)
        await caller.begin()
        await daemon.reload_config(config({**server, "max_size": 1000}, allowed_hosts=["other.test"]))
        (new,) = set(Marks.opened) - {old}
        assert (await caller.say("x" * 2000 + "\r\n.")).endswith(f"kept by {id(old)}")
        assert (await caller.say("MAIL FROM:<> SIZE=1001")).startswith("552")
        await caller.say("MAIL FROM:<>")
        assert (await caller.say("RCPT TO:<b@example.com>")).startswith("550 5.7.1")
        await caller.say("RCPT TO:<b@other.test>")
        await caller.say("DATA")
        assert (await caller.say(".")).endswith(f"kept by {id(new)}")
        async with asyncio.timeout(20):
            while old in Marks.opened:
                await asyncio.sleep(0)
        await caller.close()


async def test_an_idle_client_has_the_new_timeout_at_once_and_is_not_cut_off() -> None:
    port = free_port()
    server = {"listen_interface": f"127.0.0.1:{port}"}
    async with daemon_with(config({**server, "timeout": 300})) as daemon:
        caller = await Caller.call(port)
        await daemon.reload_config(config({**server, "timeout": 1}))
        assert (await caller.reply()).startswith("421 4.4.2")
        await caller.close()


async def test_servers_are_added_moved_and_removed_and_the_others_keep_their_clients() -> None:
    stays, goes, comes = free_port(), free_port(), free_port()
    one, two, three = ({"listen_interface": f"127.0.0.1:{each}"} for each in (stays, goes, comes))
    async with daemon_with(config(one, two)) as daemon:
        first, second = await Caller.call(stays), await Caller.call(goes)
        await second.begin()
        await daemon.reload_config(config(one, three))
        assert [address[1] for _, address in daemon.addresses] == [stays, comes]
        third = await Caller.call(comes)
        assert (await first.say("NOOP")).startswith("250")
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", goes)
        assert (await second.say(".")).startswith("250"), "what was under way is taken"
        assert (await second.reply()).startswith("421 4.3.2")
        for caller in (first, second, third):
            await caller.close()


@pytest.mark.parametrize(
    ("before", "after"), [("127.0.0.1:{}", ":{}"), (":{}", "0.0.0.0:{}"), ("0.0.0.0:{}", "127.0.0.1:{}")]
)
async def test_a_server_moves_between_addresses_that_overlap(before: str, after: str) -> None:
    port = free_port()
    old, new = ({"listen_interface": each.format(port)} for each in (before, after))
    async with daemon_with(config(old)) as daemon:
        stays = await Caller.call(port)
        await stays.begin()
        with pytest.raises(StartError, match="Refuses"):
            await daemon.reload_config(config(new, backend_config={"save_process": "Refuses"}))
        await (await Caller.call(port)).close()
        await daemon.reload_config(config(new))
        assert [server.listen_interface for server, _ in daemon.addresses] == [after.format(port)]
        await (await Caller.call(port)).close()
        assert (await stays.say(".")).startswith("250"), "what was under way is taken"
        await stays.close()


async def test_nothing_takes_the_place_of_a_socket_that_whoever_started_us_keeps_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as kept:
        port = kept.getsockname()[1]
        kept.setblocking(False)
        daemon = daemon_with(config({"listen_interface": f"127.0.0.1:{port}"}))
        daemon.inherit([kept.dup()])
        async with daemon:
            with pytest.raises(StartError, match=f"server :{port}: cannot listen: Address already in use"):
                await daemon.reload_config(config({"listen_interface": f":{port}"}))


async def test_a_server_on_a_socket_that_was_inherited_comes_and_goes_by_reloads() -> None:
    with socket.create_server(("127.0.0.1", 0)) as kept:
        port = kept.getsockname()[1]
        server, other = {"listen_interface": f"127.0.0.1:{port}"}, {"listen_interface": "127.0.0.1:0"}
        daemon = daemon_with(config(other, {**server, "is_enabled": False}))
        inherited = kept.dup()
        inherited.setblocking(False)
        daemon.inherit([inherited])
        async with daemon:
            for _ in range(2):
                await daemon.reload_config(config(other, server))
                await (await Caller.call(port)).close()
                await daemon.reload_config(config(other, {**server, "is_enabled": False}))
        assert inherited.fileno() < 0


async def test_who_waits_at_a_socket_that_was_inherited_waits_for_the_next_start() -> None:
    with socket.create_server(("127.0.0.1", 0)) as kept, ExitStack() as stack:
        port = kept.getsockname()[1]
        kept.setblocking(False)
        daemon = daemon_with(config({"listen_interface": f"127.0.0.1:{port}"}))
        daemon.inherit([kept.dup()])
        await daemon.start()
        waiting = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(3)]
        await daemon.shutdown()  # all in one turn of the loop, in which it stops to accept
        for client in waiting:
            accepted, address = kept.accept()
            accepted.close()
            assert address == client.getsockname()


async def test_two_servers_cannot_have_the_same_address_by_a_reload_either() -> None:
    port = free_port()
    servers = [{"listen_interface": f"{host}:{port}"} for host in ("127.0.0.1", "")]
    async with daemon_with(config(servers[0])) as daemon:
        with pytest.raises(StartError, match=f"server :{port}: cannot listen: Address already in use"):
            await daemon.reload_config(config(*servers))


async def test_a_server_is_disabled_and_enabled_again() -> None:
    port = free_port()
    server = {"listen_interface": f"127.0.0.1:{port}"}
    async with daemon_with(config(server)) as daemon:
        await daemon.reload_config(config({**server, "is_enabled": False}))
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        await daemon.reload_config(config(server))
        await (await Caller.call(port)).close()


async def test_fewer_clients_are_allowed_from_now_on_and_those_who_are_there_stay() -> None:
    port = free_port()
    server = {"listen_interface": f"127.0.0.1:{port}"}
    async with daemon_with(config({**server, "max_clients": 10})) as daemon:
        callers = [await Caller.call(port) for _ in range(3)]
        await daemon.reload_config(config({**server, "max_clients": 2, "max_clients_per_address": 2}))
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert (await reader.readline()).startswith(b"421 4.3.2")
        writer.close()
        await writer.wait_closed()
        for caller in callers:
            assert (await caller.say("NOOP")).startswith("250")
            await caller.close()
        async with asyncio.timeout(20):
            while True:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                line = await reader.readline()
                writer.close()
                await writer.wait_closed()
                if line.startswith(b"220"):
                    break


BUSY = "a port that is taken"


@pytest.mark.parametrize(
    ("keys", "error", "why"),
    [
        ({"backend_config": {"save_process": "HeaderParser"}}, ConfigError, "backend_config.save_process"),
        ({"backend_config": {"save_process": "Refuses"}}, StartError, "foo_password"),
        ({"spool_path": "/nowhere"}, StartError, "spool_path"),
        ({"log_file": "/nowhere/log"}, StartError, "log_file"),
        ({"pid_file": "/nowhere/pid"}, StartError, "pid_file '/nowhere/pid': No such file or directory"),
        ({"user": "no-such-user"}, StartError, "user: there is no user 'no-such-user'"),
        ({"servers": BUSY}, StartError, "Address already in use"),
        ({"servers": [{"listen_interface": "x"}]}, ConfigError, "listen_interface"),
    ],
)
async def test_nothing_of_a_broken_configuration_takes_effect(
    keys: dict[str, Any], error: type[Exception], why: str
) -> None:
    port = free_port()
    server = {"listen_interface": f"127.0.0.1:{port}"}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        if keys.get("servers") == BUSY:
            keys = {"servers": [server, {"listen_interface": f"127.0.0.1:{taken.getsockname()[1]}"}]}
        async with daemon_with(config(server)) as daemon:
            before, files, marks = daemon.config, len(os.listdir("/proc/self/fd")), list(Marks.opened)
            with pytest.raises(error, match=why):
                await daemon.reload_config({**config(server, allowed_hosts=["other.test"]), **keys})
            assert (daemon.config, Marks.opened) == (before, marks)
            assert len(os.listdir("/proc/self/fd")) == files
            caller = await Caller.call(port)
            await caller.begin()
            assert (await caller.say(".")).startswith("250")
            await caller.close()


async def test_logs_levels_and_the_pid_file_move(tmp_path: Path) -> None:
    port = free_port()
    server = {"listen_interface": f"127.0.0.1:{port}"}
    old, new, own = (tmp_path / name for name in ("old.log", "new.log", "own.log"))
    first = config(server, log_file=str(old), pid_file=str(tmp_path / "old.pid"))
    second = config(
        {**server, "log_file": str(own), "log_level": "debug"}, log_file=str(new), pid_file=str(tmp_path / "new.pid")
    )
    async with daemon_with(first) as daemon:
        await daemon.reload_config(second)
        assert not (tmp_path / "old.pid").exists()
        assert (tmp_path / "new.pid").read_text() == f"{os.getpid()}\n"
        caller = await Caller.call(port)
        await caller.say("GIBBERISH")
        assert "command refused" in own.read_text()
        own.rename(tmp_path / "own.log.1")
        daemon.reopen_logs()
        await caller.say("GIBBERISH")
        assert "command refused" in own.read_text()
        await caller.close()
    assert not (tmp_path / "new.pid").exists()


async def test_the_pid_file_stays_where_it_can_be_and_a_reload_that_leaves_the_key_alone_does_not_fail_by_it(
    tmp_path: Path,
) -> None:
    server = {"listen_interface": f"127.0.0.1:{free_port()}"}
    path = tmp_path / "pid"
    async with daemon_with(config(server, pid_file=str(path))) as daemon:
        with pytest.raises(StartError, match="pid_file '/nowhere/pid'"):
            await daemon.reload_config(config(server, pid_file="/nowhere/pid"))
        assert path.read_text() == f"{os.getpid()}\n"
        other_name = tmp_path / "link"
        other_name.symlink_to(path)
        await daemon.reload_config(config(server, pid_file=str(other_name)))
        assert path.read_text() == f"{os.getpid()}\n"
        await daemon.reload_config(config(server))
        assert not other_name.is_symlink()
    async with daemon_with(config(server, pid_file="/nowhere/pid")) as daemon:
        await daemon.reload_config(config(server, pid_file="/nowhere/pid", allowed_hosts=["other.test"]))
        assert daemon.config.allowed_hosts == ["other.test"]


async def test_fifty_reloads_leave_nothing_behind() -> None:
    ports = [free_port(), free_port()]
    server = {"listen_interface": f"127.0.0.1:{ports[0]}"}
    one = config(server, {"listen_interface": f"127.0.0.1:{ports[1]}", "is_enabled": False})
    two = config({**server, "timeout": 77}, {"listen_interface": f"127.0.0.1:{ports[1]}"}, allowed_hosts=["."])
    async with daemon_with(one) as daemon:
        caller = await Caller.call(ports[0])
        await daemon.reload_config(two)
        await daemon.reload_config(one)
        async with asyncio.timeout(20):
            while len(Marks.opened) > 1:
                await asyncio.sleep(0)
        gc.collect()
        tasks, files = len(asyncio.all_tasks()), len(os.listdir("/proc/self/fd"))
        for _ in range(25):
            await daemon.reload_config(two)
            await caller.begin()
            await daemon.reload_config(one)
            assert (await caller.say(".")).startswith("250")
        async with asyncio.timeout(20):
            while len(Marks.opened) > 1:
                await asyncio.sleep(0)
        assert (len(asyncio.all_tasks()), len(os.listdir("/proc/self/fd"))) == (tasks, files)
        await caller.close()


async def test_a_shutdown_waits_for_the_message_of_an_earlier_configuration() -> None:
    port = free_port()
    server = {"listen_interface": f"127.0.0.1:{port}"}
    daemon = daemon_with(config(server))
    async with daemon:
        Marks.gate.clear()
        caller = await Caller.call(port)
        await caller.begin()
        answer = asyncio.create_task(caller.say("."))
        await Marks.entered.wait()
        await daemon.reload_config(config(server))
        Marks.gate.set()
    assert (await answer).startswith("250")
    await caller.close()
    assert Marks.opened == []


async def test_a_backend_of_ones_own_stays_when_the_configuration_changes() -> None:
    port = free_port()
    server = {"listen_interface": f"127.0.0.1:{port}"}
    backend = RecordingBackend()
    async with Daemon(config(server), backend=backend) as daemon:
        await daemon.reload_config(config({**server, "timeout": 5}))
        caller = await Caller.call(port)
        await caller.begin()
        assert (await caller.say(".")).startswith("250")
        await caller.close()
    assert len(backend.envelopes) == 1


def times_open(path: Path) -> int:
    """Count our descriptors of the file."""
    descriptors = Path("/proc/self/fd")
    return sum(os.path.realpath(descriptors / each) == str(path) for each in os.listdir(descriptors))


async def test_a_message_that_a_backend_of_ones_own_keeps_after_client_and_configuration_went_is_in_the_log(
    tmp_path: Path,
) -> None:
    """The log of its configuration is closed by then: no connection lives by it."""
    answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
    asked = asyncio.Event()

    class Own(RecordingBackend):
        async def process(self, envelope: Envelope) -> Reply:
            asked.set()
            return await answer

    settings = config({"listen_interface": "127.0.0.1:0"}, log_file=str(tmp_path / "log"))
    async with Daemon(settings, backend=Own()) as daemon:
        caller = await Caller.call(daemon.addresses[0][1][1])
        await caller.begin()
        answering = asyncio.create_task(caller.say("."))
        await asked.wait()
        caller.reset()
        assert await answering == ""
        while daemon.stats().connections_open:
            await asyncio.sleep(0)
        before = times_open(tmp_path / "log")
        await daemon.reload_config(settings)
        while times_open(tmp_path / "log") > before:  # the new one's log, and the old one's
            await asyncio.sleep(0)
        answer.set_result(Reply(250, "2.0.0", "kept"))
    assert (tmp_path / "log").read_text().count('"outcome":"kept"') == 1


async def test_a_configuration_is_read_again_from_its_file(tmp_path: Path) -> None:
    port = free_port()
    file = tmp_path / "guerrilla.toml"
    text = f'servers = [{{listen_interface = "127.0.0.1:{port}", host_name = "HOST"}}]\nlog_file = "off"\n'
    text += '[backend_config]\nsave_process = "Debugger"\n'
    file.write_text(text.replace("HOST", "one.test"))
    daemon = Daemon()
    daemon.set_config(daemon.load_config(file))
    async with daemon:
        with pytest.raises(RuntimeError, match="reload_config"):
            daemon.set_config({})
        file.write_text(text.replace("HOST", "two.test"))
        await daemon.reload_config_file()
        caller = await Caller.call(port)
        assert (await caller.say("HELO a")).startswith("250 two.test")
        await caller.close()


async def test_without_a_file_there_is_nothing_to_read_again() -> None:
    with pytest.raises(ConfigError, match="did not come from a file"):
        await Daemon().reload_config_file()


async def test_mail_flows_on_while_certificates_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    server = {"listen_interface": f"127.0.0.1:{port}"}
    reading, answered = threading.Event(), threading.Event()

    def read_slowly(*arguments: Any) -> ssl.SSLContext:
        reading.set()
        assert answered.wait(20)
        return make_context(*arguments)

    monkeypatch.setattr(policy, "make_context", read_slowly)
    async with daemon_with(config(server)) as daemon:
        tls = {"start_tls_on": True, **issue("mx.test").write(tmp_path)}
        reload = asyncio.create_task(daemon.reload_config(config({**server, "tls": tls})))
        assert await asyncio.to_thread(reading.wait, 20)
        caller = await Caller.call(port)
        assert (await caller.say("STARTTLS")).startswith("50")
        answered.set()
        await reload
        assert (await caller.say("STARTTLS")).startswith("220")
        await caller.close()


class Late(Processor[ProcessorConfig]):
    """Is there when somebody opens the gate, or never."""

    gate = asyncio.Event()
    fails = False

    async def initialize(self) -> None:
        await self.gate.wait()
        if self.fails:
            raise RuntimeError("nobody is there")


@pytest.mark.parametrize("fails", [False, True])
async def test_a_reload_that_comes_before_the_end_of_the_start_waits_for_it(fails: bool) -> None:
    Late.gate, Late.fails = asyncio.Event(), fails
    server = {"listen_interface": "127.0.0.1:0"}
    daemon = daemon_with(config(server, backend_config={"save_process": "Late"}))
    daemon.add_processor("Late", Late)
    starting = asyncio.create_task(daemon.start())
    while not daemon.addresses:
        await asyncio.sleep(0)
    reload = asyncio.create_task(daemon.reload_config(config(server, allowed_hosts=["other.test"])))
    await asyncio.sleep(0)
    Late.gate.set()
    started, reloaded = await asyncio.gather(starting, reload, return_exceptions=True)
    await daemon.shutdown()
    if fails:
        assert "nobody is there" in str(started)
        assert isinstance(reloaded, StartError)
    else:
        assert (started, reloaded) == (None, None)
        assert daemon.config.allowed_hosts == ["other.test"]
