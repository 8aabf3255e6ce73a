"""The clients, each a process of its own: Postfix's smtp-source, load.py, idle.py; and embedded.py, without a server.

What they need is bounded.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Final

from benchmarks.load import Job, Outcome
from benchmarks.measure import Figure
from benchmarks.processes import ended
from benchmarks.servers import BenchmarkError, Server, program

ROOT: Final = Path(__file__).parent.parent
CONNECTIONS: Final = 20
SIZE: Final = 2048
WARM_UP: Final = 200
MOST_SECONDS: Final = 300
"""For one measurement; a server that is slower than that has failed."""


def smtp_source(
    server: Server, messages: int, *, connections: int = CONNECTIONS, size: int = SIZE, kept: bool = True
) -> None:
    """Send the messages with smtp-source, and return when the last one is answered 250.

    Raises BenchmarkError, or subprocess.SubprocessError.
    """
    command = [program("smtp-source", "postfix"), "-s", str(connections), "-l", str(size), "-m", str(messages)]
    command += ["-M", "client.test", "-f", "sender@example.org", "-t", "recipient@example.com"]
    command += ["-d"] if kept else []
    subprocess.run([*command, f"127.0.0.1:{server.port}"], check=True, timeout=MOST_SECONDS)


def load(job: Job) -> Outcome:
    """Do the job with load.py. Raises BenchmarkError."""
    command = [sys.executable, "-m", "benchmarks.load", json.dumps(asdict(job))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=job.seconds + 30)
    if done.returncode:
        raise BenchmarkError(done.stderr.strip() or "load.py failed")
    outcome = Outcome(**json.loads(done.stdout))
    if outcome.messages != job.messages:
        raise BenchmarkError(f"of {job.messages} messages {outcome.messages} were answered 250")
    return outcome


@contextmanager
def idle(server: Server, connections: int) -> Iterator[None]:
    """Hold so many idle connections."""
    if not connections:
        yield
        return
    command = [sys.executable, "-m", "benchmarks.idle", str(server.port), str(connections)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with ended(process):
        assert process.stdout is not None
        if process.stdout.readline().strip() != str(connections):
            raise BenchmarkError(f"{connections} idle connections could not be held")
        yield


def by_smtp_source(
    server: Server, messages: int, *, connections: int = CONNECTIONS, size: int = SIZE, kept: bool = True
) -> Figure:
    """Warm the server up, and measure it with smtp-source."""
    warm_up = WARM_UP if size <= SIZE else WARM_UP // 4
    smtp_source(server, warm_up, connections=connections, size=size, kept=kept)

    def send() -> float:
        start = time.perf_counter()
        smtp_source(server, messages, connections=connections, size=size, kept=kept)
        return time.perf_counter() - start

    figure = _measured(server, messages, send)
    if server.log is not None and server.kept() != warm_up + messages:
        raise BenchmarkError(f"of {warm_up + messages} messages the server kept {server.kept()}")
    return figure


def embedded(messages: int, rows: int) -> Figure:
    """Measure what SQLite alone takes, with so many rows in each transaction: see embedded.py."""
    with tempfile.TemporaryDirectory(prefix="guerrilla-") as folder:
        command = [sys.executable, "-m", "benchmarks.embedded", folder, str(messages), str(rows)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=MOST_SECONDS)
    if done.returncode:
        raise BenchmarkError(done.stderr.strip() or "embedded.py failed")
    said = json.loads(done.stdout)
    return Figure(said["messages"], said["seconds"], said["cpu_seconds"], said["cpu_seconds"])


def by_load(server: Server, job: Job) -> Figure:
    """Measure the server with load.py; the seconds are those of the client, without its start."""
    return _measured(server, job.messages, lambda: load(job).seconds)


def _measured(server: Server, messages: int, send: Callable[[], float]) -> Figure:
    before = server.cpu_seconds()
    seconds = send()
    after = server.cpu_seconds()
    busiest = max(used - before.get(pid, 0.0) for pid, used in after.items())
    return Figure(messages, seconds, sum(after.values()) - sum(before.values()), busiest)
