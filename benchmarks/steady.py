"""Reloads under load: whether anybody is disturbed, anything is lost, or anything grows.

    python -m benchmarks.steady --reloads 50 --processes 2

20 clients send all the time, while the configuration is replaced once a second by another one that differs in all that
a reload can change, and back again. A line is printed for each reload, a verdict at the end; the exit code is 1 if it
is a bad one. With several processes a client may be told 421 between two messages, since each process is replaced.

Memory, descriptors, threads and tasks are compared between equal configurations: the median of those in the second
fifth of the run, when caches are filled, and in the last fifth.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import smtplib
import socket
import sqlite3
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.processes import ended, family, resident
from benchmarks.servers import GUERRILLAD, HERE, KeyPair, key_pair
from tests.e2e.messages import id_of, recipients_of
from tests.e2e.observed import descriptors
from tests.e2e.steady import DIALOGUE, Steady
from tests.private_servers.process import free_port

from guerrilla.control import ask

CONNECTIONS: Final = 20
REST_SECONDS: Final = 0.05
"""How long a client rests between two messages: the load is steady, and not as heavy as it can be."""
PATIENCE_SECONDS: Final = 30.0
HOLD_SECONDS: Final = 5.0
"""How long a configuration may take to hold everywhere, once the daemon has said that it does."""
SHUTTING_DOWN: Final = 421
WORKERS: Final = 64
"""Of the gateway, in the first configuration: so many tasks more may be those of an old one that is still drained."""

Configuration = dict[str, Any]


# The two configurations


@dataclass(frozen=True, slots=True)
class House:
    """Where everything is."""

    folder: Path
    processes: int
    pairs: tuple[KeyPair, KeyPair]
    ports: tuple[int, int, int, int]
    """The port of the load; one that is switched off in the second configuration; and one that moves to the next."""

    def configuration(self, number: int) -> Configuration:
        """Return the first (0) or the second (1): they differ in all but what the load needs."""
        second = number == 1
        load, switched, *moving = (f"127.0.0.1:{port}" for port in self.ports)
        return {
            "servers": [
                self._server(load, number),
                {"listen_interface": switched, "is_enabled": not second},
                {"listen_interface": moving[number], "proxy_on": second, "trusted_proxies": ["127.0.0.0/8"]},
            ],
            "allowed_hosts": ["example.com", "*.example.org"] if second else ["example.com", "example.net"],
            "pid_file": self._path("pid", number),
            "log_file": self._path("log", number),
            "log_level": "debug" if second else "info",
            "log_format": "console" if second else "json",
            "spool_threshold": 2_000 if second else 100_000,
            "spool_path": self._path("spool", number),
            "memory_limit": 30_000_000 if second else 60_000_000,
            "shutdown_timeout": "20s" if second else "30s",
            "processes": self.processes,
            "control_socket": str(self.folder / "control"),
            "backend_config": self._backend(number),
        }

    def _server(self, interface: str, number: int) -> Configuration:
        second, pair = number == 1, self.pairs[number]
        return {
            "listen_interface": interface,
            "host_name": host_name(number),
            "max_size": max_size(number),
            "timeout": 40 if second else 30,
            "max_clients": 60 if second else 90,
            "max_clients_per_address": 50 if second else 0,
            "max_recipients": 20 if second else 50,
            "min_data_rate": 2000 if second else 1000,
            "bare_newline": "normalize" if second else "reject",
            "log_file": self._path("server-log", number),
            "log_level": "info" if second else "warning",
            "xclient_on": second,
            "tls": {
                "start_tls_on": True,
                "private_key_file": str(pair.key),
                "public_key_file": str(pair.certificate),
                "protocols": ["tls1.2"] if second else ["tls1.2", "tls1.3"],
                "ciphers": ["ECDHE-ECDSA-AES128-GCM-SHA256"] if second else ["ECDHE-ECDSA-AES256-GCM-SHA384"],
                "curves": ["P384"] if second else ["P256"],
                "client_auth_type": "VerifyClientCertIfGiven" if second else "NoClientCert",
                "root_cas_file": str(pair.certificate) if second else "",
            },
        }

    def _backend(self, number: int) -> Configuration:
        second = number == 1
        line = ["HeadersParser", "Debugger", "Header", "Hasher"] if second else ["HeadersParser", "Hasher", "Header"]
        return {
            "save_process": "|".join([*line, "benchmarks.census:Census", "Sql"]),
            "save_workers_size": 24 if second else WORKERS,
            "gw_save_timeout": "25s" if second else "30s",
            **({"log_received_mails": False} if second else {}),
            "primary_mail_host": host_name(number),
            "census_folder": str(self.folder),
            "sql_driver": "sqlite",
            "sql_dsn": self._path("db", number),
        }

    def _path(self, name: str, number: int) -> str:
        return str(self.folder / f"{name}-{number}")


def host_name(number: int) -> str:
    """Return what the server of the load is called."""
    return f"mx{number}.example.net"


def max_size(number: int) -> int:
    """Return the octets that a message may have."""
    return (5_000_000, 9_000_000)[number]


def holds(house: House, number: int) -> bool:
    """Tell whether it is this configuration, and all of it, that a new client meets."""
    _, switched, *moving = house.ports
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with smtplib.SMTP("127.0.0.1", house.ports[0], timeout=PATIENCE_SECONDS) as client:
            client.ehlo()
            told = client.esmtp_features.get("size") == str(max_size(number))
            client.starttls(context=context)
            assert isinstance(client.sock, ssl.SSLSocket)
            shown = client.sock.getpeercert(binary_form=True)
    except (smtplib.SMTPException, OSError):
        return False  # a process that drains
    certificate = ssl.PEM_cert_to_DER_cert(house.pairs[number].certificate.read_text())
    doors = (is_open(switched), is_open(moving[0]), is_open(moving[1]))
    return told and shown == certificate and doors == (number == 0, number == 0, number == 1)


def is_open(port: int) -> bool:
    """Tell whether somebody listens."""
    try:
        with contextlib.closing(socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS)):
            return True
    except ConnectionRefusedError:
        return False


# What is looked at


@dataclass(frozen=True, slots=True)
class Look:
    """What all processes of the daemon together have."""

    resident: int
    """Octets of memory; what processes share is counted in each."""
    descriptors: int
    threads: int
    tasks: int
    """Of the event loop that has most of them."""

    def __str__(self) -> str:
        megabytes = self.resident / 1e6
        return f"{megabytes:7.1f} MB {self.descriptors:4} descriptors {self.threads:3} threads {self.tasks:4} tasks"


def look(pid: int, folder: Path) -> Look:
    """Look at the daemon."""
    pids = family(pid)
    counts = [folder / f"tasks-{each}" for each in pids]
    return Look(
        sum(resident(each) for each in pids),
        sum(len(descriptors(each)) for each in pids),
        sum(len(os.listdir(f"/proc/{each}/task")) for each in pids),
        max((int(count.read_text() or 0) for count in counts if count.exists()), default=0),
    )


def growth(looks: Sequence[Look]) -> Iterator[str]:
    """Say what has grown between the second and the last fifth, by more than its noise."""
    fifth = max(len(looks) // 5, 1)
    early, late = looks[fifth : 2 * fifth], looks[-fifth:]
    allowed = {"resident": (1.05, 0), "descriptors": (1.0, 8), "threads": (1.0, 2), "tasks": (1.0, WORKERS)}
    for name, (factor, more) in allowed.items():
        before, after = (statistics.median(getattr(each, name) for each in some) for some in (early, late))
        print(f"{name}: {before:,.0f}, at the end {after:,.0f}")
        if after > before * factor + more:
            yield f"{name} has grown from {before:,.0f} to {after:,.0f}"


def unkept(load: Steady, folder: Path) -> Iterator[str]:
    """Say what is not kept as it was answered, in both databases together."""
    found: dict[str, Counter[str]] = {}
    for number in (0, 1):
        with contextlib.closing(sqlite3.connect(folder / f"db-{number}")) as database:
            for recipient, mail in database.execute("SELECT recipient, mail FROM new_mail"):
                found.setdefault(id_of(mail), Counter())[recipient] += 1
    print(f"messages accepted: {load.accepted}, kept: {len(found)}")
    for message_id, answer in load.answers.items():
        wanted = Counter(recipients_of(message_id)) if answer == 250 else Counter()
        kept = found.get(message_id, Counter())
        if answer and kept != wanted:
            yield f"{message_id} was answered {answer} and is kept for {dict(kept)}"


def disturbed(load: Steady, processes: int) -> Iterator[str]:
    """Say what has happened to clients that should not."""
    print(f"replies: {dict(sorted(load.codes.items()))}")
    if odd := load.codes.keys() - DIALOGUE - ({SHUTTING_DOWN} if processes > 1 else set()):
        yield f"replies that the dialogue does not allow: {sorted(odd)}"
    if load.cut:
        yield f"{len(load.cut)} connections were cut without a word"
    if load.refused:
        yield f"{len(load.refused)} clients were refused: {load.refused[0]}"


# The run


async def run(house: House, pid: int, reloads: int) -> list[str]:
    """Reload so often, once a second, under load; return what was wrong."""
    problems: list[str] = []
    looks: list[Look] = []
    load = Steady(house.ports[0], CONNECTIONS, pause=REST_SECONDS)
    start = time.monotonic()
    async with load.running(reloads * 2 + PATIENCE_SECONDS):
        for reload in range(1, reloads + 1):
            number = reload % 2
            (house.folder / "conf.json").write_text(json.dumps(house.configuration(number)))
            answer = await asyncio.to_thread(ask, house.folder / "control", "reload", PATIENCE_SECONDS)
            if not answer["ok"]:
                problems.append(f"reload {reload}: {answer['problems']}")
            if not await eventually_holds(house, number):
                problems.append(f"reload {reload}: the configuration does not hold")
            await asyncio.sleep(max(0.0, start + reload - time.monotonic()))
            found = look(pid, house.folder)
            if number == 0:
                looks.append(found)
            print(f"{reload:4} {load.accepted:7} messages {found}", flush=True)
    print(f"{time.monotonic() - start:.1f} s")
    return [*problems, *disturbed(load, house.processes), *growth(looks), *unkept(load, house.folder)]


async def eventually_holds(house: House, number: int) -> bool:
    """Tell whether a configuration comes to hold: processes that are about to drain may accept a last client."""
    end = time.monotonic() + HOLD_SECONDS
    while not await asyncio.to_thread(holds, house, number):
        if time.monotonic() > end:
            return False
    return True


def serve(house: House) -> subprocess.Popen[str]:
    """Start the daemon, and return when it receives."""
    (house.folder / "conf.json").write_text(json.dumps(house.configuration(0)))
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    command = [GUERRILLAD, "serve", "-c", "conf.json"]
    process = subprocess.Popen(command, cwd=house.folder, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for said in process.stdout:
        if said.startswith("stop with "):
            return process
    process.wait()
    sys.exit("guerrillad did not start")


def main() -> None:
    """Do as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.steady", description=__doc__.partition("\n")[0])
    parser.add_argument("--reloads", type=int, default=50, help="how many, one a second (default 50)")
    parser.add_argument("--processes", type=int, default=1, help="of the daemon (default 1)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="guerrilla-") as name:
        folder = Path(name)
        for each in ("tls-0", "tls-1", "spool-0", "spool-1"):
            (folder / each).mkdir()
        pairs = (key_pair(folder / "tls-0"), key_pair(folder / "tls-1"))
        house = House(folder, options.processes, pairs, (free_port(), free_port(), free_port(), free_port()))
        with ended(serve(house)) as process:
            problems = asyncio.run(run(house, process.pid, options.reloads))
            process.terminate()
            if code := process.wait(PATIENCE_SECONDS):
                problems.append(f"guerrillad ended with exit code {code}")
    print(*(f"BAD: {each}" for each in problems[:20]), sep="\n", end="\n" if problems else "")
    print("not good" if problems else "good: nobody was disturbed, nothing is lost, nothing grows")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
