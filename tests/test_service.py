"""The process around a daemon: what it tells systemd, what it is handed, and whom it becomes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.private_servers.process import free_port

from guerrilla.control import ask

SERVE = [sys.executable, "-m", "guerrilla", "serve", "-c", "guerrilla.json"]


def configure(folder: Path, port: int, **keys: Any) -> None:
    settings = {
        "servers": [{"listen_interface": f"127.0.0.1:{port}", "host_name": "mx.test"}],
        "allowed_hosts": ["."],
        "pid_file": str(folder / "pid"),
        "log_file": str(folder / "log"),
        "control_socket": str(folder / "control"),
        "backend_config": {"save_process": "HeadersParser"},
        **keys,
    }
    (folder / "guerrilla.json").write_text(json.dumps(settings))


@contextlib.contextmanager
def serving(folder: Path, command: list[str] = SERVE, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run it, and whatever happens leave nothing of it behind."""
    options.setdefault("stdout", subprocess.PIPE)
    with subprocess.Popen(command, cwd=folder, start_new_session=True, **options) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def greeting(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.settimeout(20)
        return client.recv(3)


@pytest.mark.parametrize("processes", [1, 2])
def test_systemd_hears_of_the_start_a_reload_a_heartbeat_and_the_end(tmp_path: Path, processes: int) -> None:
    port = free_port()
    configure(tmp_path, port, processes=processes)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(20)
        environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"}

        def wait_for(word: bytes) -> None:
            while word not in manager.recv(4096):
                pass

        with serving(tmp_path, env=environment) as process:
            wait_for(b"READY=1")
            assert greeting(port) == b"220"
            process.send_signal(signal.SIGHUP)
            wait_for(b"RELOADING=1")
            wait_for(b"READY=1")
            wait_for(b"WATCHDOG=1")
            process.send_signal(signal.SIGTERM)
            wait_for(b"STOPPING=1")
            assert process.wait(30) == 0
    assert not (tmp_path / "pid").exists()
    assert not (tmp_path / "control").exists()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_socket_that_systemd_has_opened_is_served(tmp_path: Path, processes: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        configure(tmp_path, port, processes=processes)
        script = f"os.dup2({listening.fileno()}, 3); os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1')"
        run = f"import os, sys; {script}; os.execv({sys.executable!r}, {SERVE!r})"
        command = [sys.executable, "-c", run]
        with serving(tmp_path, command, pass_fds=[listening.fileno()]) as process:
            assert greeting(port) == b"220"  # it waits in the queue until somebody accepts
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Give a folder that everybody can go into; pytest closes its own, again and again."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another")
@pytest.mark.parametrize("processes", [1, 2])
def test_after_the_ports_are_open_it_is_the_user_of_the_configuration(open_folder: Path, processes: int) -> None:
    port = free_port()
    (open_folder / "logs").mkdir()
    os.chown(open_folder / "logs", 65534, 65534)
    configure(
        open_folder, port, user="nobody", processes=processes, log_file=str(open_folder / "logs" / "log"), pid_file="",
        control_socket=str(open_folder / "run" / "control"),
    )  # fmt: skip
    command = [*SERVE, "-p", str(open_folder / "logs" / "pid")]
    with serving(open_folder, command) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        assert greeting(port) == b"220"
        pids = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split() or [str(process.pid)]
        for pid in pids:
            assert Path(f"/proc/{pid}").stat().st_uid == 65534
        become = "import os, pathlib, sys, guerrilla.control; os.setresgid(*[65534] * 3); os.setresuid(*[65534] * 3)"
        script = f"{become}; guerrilla.control.ask(pathlib.Path(sys.argv[1]), 'stats', 20)"
        subprocess.run([sys.executable, "-c", script, open_folder / "run" / "control"], check=True)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert list((open_folder / "run").iterdir()) == []


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"pid_file": "/nowhere/pid"}, "pid_file '/nowhere/pid': No such file or directory"),
        ({"user": "no-such-user"}, "user: there is no user 'no-such-user', meant: a name or a number"),
    ],
)
def test_a_reload_to_what_cannot_be_had_says_so_and_changes_nothing(
    tmp_path: Path, processes: int, keys: dict[str, Any], why: str
) -> None:
    port = free_port()
    configure(tmp_path, port, processes=processes)
    with serving(tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        assert greeting(port) == b"220"
        configure(tmp_path, port, processes=processes, **keys)
        assert ask(tmp_path / "control", "reload", 30) == {"ok": False, "problems": [why]}
        assert (tmp_path / "pid").read_text() == f"{process.pid}\n"
        configure(tmp_path, port, processes=processes, pid_file=str(tmp_path / "other"))
        assert ask(tmp_path / "control", "reload", 30)["ok"]
        assert (tmp_path / "other").read_text() == f"{process.pid}\n"
        assert not (tmp_path / "pid").exists()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert not (tmp_path / "other").exists()


def test_a_start_of_several_processes_that_fails_says_why(tmp_path: Path) -> None:
    configure(tmp_path, free_port(), processes=2, spool_path="/nowhere")
    done = subprocess.run(SERVE, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "spool_path '/nowhere'" in done.stderr
    assert "Traceback" not in done.stderr


def test_when_the_supervisor_is_killed_its_processes_end(tmp_path: Path) -> None:
    port = free_port()
    configure(tmp_path, port, processes=2)
    with serving(tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.kill()
        process.stdout.read()  # to its end: nobody has it open any more
    with pytest.raises(ConnectionRefusedError):
        greeting(port)
