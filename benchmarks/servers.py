"""The servers that are measured: each is started as a process of its own on 127.0.0.1, and ended by its number.

guerrilla runs with all settings at their defaults but those that a measurement names; its log, level info, goes to a
file.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from benchmarks.processes import cpu_seconds, ended, resident

GUERRILLAD: Final = str(Path(sysconfig.get_path("scripts")) / "guerrillad")
HERE: Final = Path(__file__).parent
INSTALL: Final = "install it with: scripts/install-debian-packages"
PACKAGES: Final = "benchmarks/debian-packages.txt"
CHAIN: Final = "HeadersParser|Hasher|Header"
"""Dialogue, gateway and the parsing; nothing is kept."""
STORE: Final = f"{CHAIN}|Sql"
"""The embedded store: SQLite, every message committed and on disk before its 250."""
START_SECONDS: Final = 20.0

TLS = Literal["", "starttls", "implicit"]


class BenchmarkError(Exception):
    """It cannot be measured; the text says why."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running server. ``log`` is that of guerrilla, and is in the folder that it runs in."""

    pid: int
    port: int
    log: Path | None = None

    def cpu_seconds(self) -> dict[int, float]:
        """Return the seconds that each of its processes has used so far, all its threads, in user and kernel mode."""
        return cpu_seconds(self.pid)

    def resident(self, *, peak: bool = False) -> int:
        """Return the octets of memory that it has now, or had at most."""
        return resident(self.pid, peak=peak)

    def kept(self) -> int:
        """Count the messages that guerrilla's log says were answered 250."""
        if self.log is None:
            raise BenchmarkError("only guerrilla writes down what it has kept")
        with self.log.open("rb") as log:
            return sum(b'"outcome":"kept"' in line for line in log)

    def busiest_share(self) -> float:
        """Return which share of guerrilla's messages the process has kept that has kept most.

        The digits in the middle of a ``queued_id`` are those of the process.
        """
        if self.log is None:
            raise BenchmarkError("only guerrilla writes down what it has kept")
        made_by = re.findall(rb'"outcome":"kept","queued_id":"[0-9a-f]{12}([0-9a-f]{12})', self.log.read_bytes())
        if not made_by:
            raise BenchmarkError("the server has kept nothing")
        return max(Counter(made_by).values()) / len(made_by)

    def commits(self) -> int:
        """Return how many transactions the embedded store has made: the counter in the index of SQLite's log."""
        if self.log is None:
            raise BenchmarkError("only guerrilla has an embedded store")
        try:
            index = (self.log.parent / "guerrilla.db-shm").read_bytes()[:12]
        except FileNotFoundError:
            return 0
        return int.from_bytes(index[8:12], sys.byteorder)


@dataclass(frozen=True, slots=True)
class KeyPair:
    """PEM files of a key and a certificate that vouches for itself: EC, P-256."""

    key: Path
    certificate: Path


@functools.cache
def program(name: str, package: str) -> str:
    """Find a program, also where Debian has those of root. Raises BenchmarkError."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")
    if found is None:
        raise BenchmarkError(f"{name} is not here; Debian has it in {package}: {INSTALL} {PACKAGES}")
    return found


def key_pair(folder: Path) -> KeyPair:
    """Make a key and a certificate in the folder."""
    from guerrilla.self_signed import self_signed

    pair = KeyPair(folder / "key.pem", folder / "certificate.pem")
    key, certificate = self_signed("localhost")
    pair.key.write_bytes(key)
    pair.certificate.write_bytes(certificate)
    return pair


@contextmanager
def guerrilla(
    chain: str = CHAIN,
    *,
    server: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    backend: Mapping[str, Any] | None = None,
    tls: TLS = "",
) -> Iterator[Server]:
    """Run guerrillad in a folder of its own. ``server``, ``settings`` and ``backend`` are keys beside the defaults."""
    with tempfile.TemporaryDirectory(prefix="guerrilla-") as name:
        folder = Path(name)
        configuration = {
            "servers": [{"listen_interface": "127.0.0.1:0", **_guerrilla_tls(tls, folder), **(server or {})}],
            "allowed_hosts": ["."],
            "log_file": "guerrilla.log",
            "pid_file": "guerrillad.pid",
            "backend_config": {"save_process": chain, **(backend or {})},
            **(settings or {}),
        }
        (folder / "conf.json").write_text(json.dumps(configuration))
        command = [GUERRILLAD, "serve", "-c", "conf.json"]
        with ended(subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)) as process:
            assert process.stdout is not None
            port = 0
            for said in process.stdout:
                if match := re.search(r"receiving on 127\.0\.0\.1:([0-9]+)", said):
                    port = int(match[1])
                if said.startswith("stop with "):
                    break
            if not port:
                raise BenchmarkError("guerrillad did not start")
            yield Server(process.pid, port, folder / "guerrilla.log")


def _guerrilla_tls(tls: TLS, folder: Path) -> dict[str, Any]:
    if not tls:
        return {}
    pair = key_pair(folder)
    switch = "start_tls_on" if tls == "starttls" else "tls_always_on"
    return {"tls": {switch: True, "private_key_file": str(pair.key), "public_key_file": str(pair.certificate)}}


@contextmanager
def aiosmtpd(*, tls: TLS = "", log: bool = False) -> Iterator[Server]:
    """Run aiosmtpd on uvloop. ``log``: what it says at level info goes to a file."""
    with tempfile.TemporaryDirectory(prefix="guerrilla-") as name:
        options = ["--log", str(Path(name) / "aiosmtpd.log")] if log else []
        if tls:
            pair = key_pair(Path(name))
            options += ["--tls", tls, "--key", str(pair.key), "--certificate", str(pair.certificate)]
        with _saying_its_port([sys.executable, "-m", "benchmarks.aiosmtpd_server", *options]) as server:
            yield server


@contextmanager
def limit() -> Iterator[Server]:
    """Compile limit.c, and run it."""
    with (
        tempfile.TemporaryDirectory(prefix="guerrilla-") as folder,
        _saying_its_port([compiled_limit(Path(folder))]) as server,
    ):
        yield server


def compiled_limit(folder: Path) -> str:
    """Compile limit.c into the folder, and return the program. Raises BenchmarkError."""
    result = str(folder / "limit")
    command = [program("cc", "gcc"), "-O2", "-o", result, str(HERE / "limit.c")]
    try:
        subprocess.run(command, check=True, timeout=60, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        raise BenchmarkError(f"limit.c does not compile: {error.stderr}") from None
    return result


@contextmanager
def smtp_sink() -> Iterator[Server]:
    """Run Postfix's smtp-sink."""
    port = _free_port()
    command = [program("smtp-sink", "postfix")]
    if os.geteuid() == 0:
        command += ["-u", "nobody"]  # it does not run as root
    process = subprocess.Popen([*command, f"127.0.0.1:{port}", "4096"], stdout=subprocess.PIPE, text=True)
    with ended(process):
        _wait_until_it_greets(process, port)
        yield Server(process.pid, port)


@contextmanager
def _saying_its_port(command: Sequence[str]) -> Iterator[Server]:
    process = subprocess.Popen(command, cwd=HERE.parent, stdout=subprocess.PIPE, text=True)
    with ended(process):
        assert process.stdout is not None
        said = process.stdout.readline().strip()
        if not re.fullmatch(r"[0-9]{1,5}", said):
            raise BenchmarkError(f"{command[0]} did not start: {said!r}")
        yield Server(process.pid, int(said))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _wait_until_it_greets(process: subprocess.Popen[str], port: int) -> None:
    """Return when the server greets; it does not say by itself that it has started."""
    for _ in range(int(START_SECONDS / 0.1)):
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=START_SECONDS) as client:
                client.recv(512)
                client.sendall(b"QUIT\r\n")
                return
        except ConnectionRefusedError:
            try:
                process.wait(0.1)
            except subprocess.TimeoutExpired:
                continue
            break
    raise BenchmarkError("smtp-sink did not start")
