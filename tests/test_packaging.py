"""The files under ``packaging/``: read by the programs that they are for, and in step with the command line."""

from __future__ import annotations

import getpass
import grp
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.main import get_group

from guerrilla.cli import app
from guerrilla.config import AppConfig, ServerConfig
from guerrilla.systemd import sockets_for

ROOT = Path(__file__).parent.parent
FILES = ROOT / "packaging"
PROGRAM = "/opt/guerrilla/bin/guerrillad"


def values(name: str, key: str) -> list[str]:
    """Return what a unit says of a key, or a Containerfile after an instruction, in their order."""
    text = (FILES / name).read_text().replace("\\\n", " ")
    return re.findall(rf"^{key}[ =](.*)$", text, flags=re.MULTILINE)


def check_arguments(arguments: list[str]) -> None:
    """Let the command line read them, without running anything; it raises for what it does not know."""
    name, *rest = arguments
    get_group(app).commands[name].make_context(name, rest)


def test_the_unit_runs_what_the_command_line_knows() -> None:
    commands = [shlex.split(each) for key in ("ExecStart", "ExecReload") for each in values("guerrillad.service", key)]
    ours = [arguments for program, *arguments in commands if program == PROGRAM]
    assert [arguments[0] for arguments in ours] == ["serve", "reload"]
    for arguments in ours:
        check_arguments(arguments)
        assert arguments[1:3] == ["--config", "/etc/guerrilla/guerrilla.toml"], "the socket is named after it"


def test_the_container_runs_what_the_command_line_knows_as_another_user_than_root() -> None:
    (entry,), (command,) = values("Containerfile", "ENTRYPOINT"), values("Containerfile", "CMD")
    assert json.loads(entry) == ["guerrillad"]
    check_arguments(json.loads(command))
    (user,) = values("Containerfile", "USER")
    assert any(each.endswith(f" {user}") for each in values("Containerfile", "RUN") if each.startswith("useradd "))


def test_the_container_is_made_of_files_that_are_there_and_of_extras_that_are_known() -> None:
    copied = [each.split()[:-1] for each in values("Containerfile", "COPY") if not each.startswith("--from")]
    assert all((ROOT / source).exists() for sources in copied for source in sources)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (extras,) = values("Containerfile", "ARG")
    assert set(extras.removeprefix("EXTRAS=").split(",")) <= project["optional-dependencies"].keys()
    assert {project["readme"], *project["license-files"]} <= {source for sources in copied for source in sources}


def test_systemd_waits_longer_for_the_end_than_the_daemon_does() -> None:
    (seconds,) = values("guerrillad.service", "TimeoutStopSec")
    assert float(seconds) > AppConfig().shutdown_timeout


def test_there_are_descriptors_for_all_clients_of_a_large_server() -> None:
    (limit,) = values("guerrillad.service", "LimitNOFILE")
    assert int(limit) >= 2 * 30_000


def test_the_socket_is_the_one_that_the_comment_names() -> None:
    text = (FILES / "guerrillad.socket").read_text()
    found = re.search(r'listen_interface, here "(.*)"', text)
    assert found is not None
    server = ServerConfig(listen_interface=found[1])

    class Bound:
        def getsockname(self) -> tuple[str, int]:
            host, _, port = values("guerrillad.socket", "ListenStream")[0].rpartition(":")
            return host.strip("[]"), int(port)

    assert sockets_for(server.host, server.port, [Bound()])  # type: ignore[list-item]


def named_signals() -> set[signal.Signals]:
    """Return the signals that the files send or speak of: to reload, to open the logs anew, and to end."""
    reload = re.findall(r"kill -(\w+) ", (FILES / "guerrillad.service").read_text())
    rotate = re.findall(r"--signal=SIG(\w+)", (FILES / "guerrillad.logrotate").read_text())
    assert reload
    assert rotate
    return {signal.Signals[f"SIG{each}"] for each in (*reload, *rotate)} | {signal.SIGTERM}


def test_each_signal_that_is_sent_is_one_that_the_daemon_handles(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('pid_file = "a.pid"\n[[servers]]\nlisten_interface = "127.0.0.1:0"\n')
    command = [sys.executable, "-m", "guerrilla", "serve", "-c", "a.toml"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            while not (line := server.stdout.readline()).startswith(b"stop with "):
                assert line, server.communicate()[1].decode()
            status = Path(f"/proc/{server.pid}/status").read_text()
            server.send_signal(signal.SIGTERM)
            server.communicate(timeout=60)
        finally:
            server.kill()
    found = re.search(r"^SigCgt:\s*([0-9a-f]+)$", status, flags=re.MULTILINE)
    assert found is not None
    caught = int(found[1], 16)
    assert {each for each in named_signals() if not caught & 1 << (each - 1)} == set()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    program = tmp_path / "guerrillad"
    program.symlink_to(sys.executable)
    for name in ("guerrillad.service", "guerrillad.socket"):
        (tmp_path / name).write_text((FILES / name).read_text().replace(PROGRAM, str(program)))
    command = ["systemd-analyze", "verify", "--man=no", "guerrillad.service", "guerrillad.socket"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.skipif(shutil.which("logrotate") is None, reason="logrotate is not installed")
def test_logrotate_renames_the_log_and_then_sends_the_signal(tmp_path: Path) -> None:
    user, group = getpass.getuser(), grp.getgrgid(os.getegid()).gr_name
    text = (FILES / "guerrillad.logrotate").read_text()
    text = text.replace("/var/log/guerrilla/", f"{tmp_path}/").replace("su guerrilla guerrilla", f"su {user} {group}")
    text = text.replace("systemctl ", f"ls {tmp_path} > {tmp_path}/sent; echo ")
    (tmp_path / "rotate").write_text(text)
    os.chmod(tmp_path / "rotate", 0o644)
    (tmp_path / "guerrilla.log").write_text("a line\n")
    command = [shutil.which("logrotate") or "", "--force", "--verbose", "--state", f"{tmp_path}/state", "rotate"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "error" not in result.stderr
    assert (tmp_path / "guerrilla.log.1").read_text() == "a line\n"
    assert not (tmp_path / "guerrilla.log").exists()
    assert "guerrilla.log.1\n" in (tmp_path / "sent").read_text()
    assert "kill --kill-whom=main --signal=SIGUSR1 guerrillad.service" in result.stdout


def test_what_is_built_is_built_anew_when_any_of_its_sources_has_changed() -> None:
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "src").rglob("*.[cp]*") if path.suffix in (".c", ".py")}
    command = ["make", "--no-print-directory", "--eval", "print: ; @echo $(SOURCES)", "print"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert sources <= set(shown)


def test_the_source_in_c_is_handed_on_also_by_who_does_not_compile_it() -> None:
    """It is known to setuptools only as part of what it builds, and with ``GUERRILLA_COMPILE=0`` it builds nothing."""
    handed_on = (ROOT / "MANIFEST.in").read_text().splitlines()
    assert {f"include {path.relative_to(ROOT)}" for path in (ROOT / "src").rglob("*.c")} == set(handed_on)


def test_the_files_that_the_architecture_speaks_of_are_there() -> None:
    named = re.findall(r"`([\w/]+\.(?:py|c))`", (ROOT / "ARCHITECTURE.md").read_text())
    assert len(named) > 10
    assert [name for name in named if not ((ROOT / "src/guerrilla" / name).exists() or (ROOT / name).exists())] == []
