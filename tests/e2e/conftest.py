"""For the tests from outside: the daemon as a process of its own, and what its clients need."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

GUERRILLAD = str(Path(sysconfig.get_path("scripts")) / "guerrillad")
"""The command as it is installed for the interpreter that runs the tests."""

_RECEIVING = re.compile(r"receiving on 127\.0\.0\.1:([0-9]+) \(.*\)")


@dataclass(frozen=True, slots=True)
class RunningDaemon:
    """A ``guerrillad serve`` that has said that it receives."""

    process: subprocess.Popen[str]
    folder: Path
    announced: list[str]
    """The lines that it has printed."""

    @property
    def ports(self) -> list[int]:
        """The port of each server, in the order of the configuration."""
        return [int(match[1]) for line in self.announced if (match := _RECEIVING.fullmatch(line))]

    @property
    def errors(self) -> str:
        """What it has written to stderr so far."""
        return (self.folder / "stderr.txt").read_text()

    def stop(self) -> int:
        """End it as an administrator does, with SIGTERM, and return its exit code."""
        self.process.terminate()
        return self.process.wait()


class Launch(Protocol):
    """Starts a daemon in a folder; without a configuration, as a newcomer does. ``prefix`` runs it in another place."""

    def __call__(
        self, folder: Path, config: Mapping[str, Any] | None = None, *, prefix: Sequence[str] = ()
    ) -> RunningDaemon: ...


@pytest.fixture(scope="module")
def launch() -> Iterator[Launch]:
    """Give the function that starts daemons; those that still run at the end are killed."""
    processes: list[subprocess.Popen[str]] = []

    def start(folder: Path, config: Mapping[str, Any] | None = None, *, prefix: Sequence[str] = ()) -> RunningDaemon:
        command = [*prefix, GUERRILLAD, "serve"]
        if config is not None:
            (folder / "conf.json").write_text(json.dumps(config))
            command += ["-c", "conf.json"]
        with (folder / "stderr.txt").open("wb") as errors:
            process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=errors, text=True)
        processes.append(process)
        assert process.stdout is not None
        announced: list[str] = []
        for line in process.stdout:
            announced.append(line.rstrip("\n"))
            if line.startswith("stop with "):
                return RunningDaemon(process, folder, announced)
        raise AssertionError(f"guerrillad did not start: {(folder / 'stderr.txt').read_text()}")

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def tool() -> Callable[[str], str]:
    """Give the function that finds a program of the system: without it the test is skipped, in CI it fails."""

    def find(name: str) -> str:
        path = shutil.which(name)
        if path is None:
            reason = f"{name} is not installed: scripts/install-debian-packages tests/debian-packages.txt"
            if os.environ.get("CI") == "true":
                pytest.fail(reason)
            pytest.skip(reason)
        return path

    return find


@dataclass(frozen=True, slots=True)
class KeyPair:
    """The PEM files of a key and of its certificate, which is its own authority, for localhost and 127.0.0.1."""

    key: str
    certificate: str


@pytest.fixture(scope="session")
def key_pair(tmp_path_factory: pytest.TempPathFactory) -> KeyPair:
    """Make a key and a certificate."""
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.IPv4Address("127.0.0.1"))])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(hours=1), now + timedelta(days=1))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "key.pem").write_bytes(private)
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return KeyPair(str(folder / "key.pem"), str(folder / "certificate.pem"))
