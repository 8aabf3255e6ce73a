"""Messages per second, and per second of CPU, that the daemon takes from Postfix's smtp-source over loopback.

    python benchmarks/throughput.py [--quick]

What the figures mean is in README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

GUERRILLAD = str(Path(sysconfig.get_path("scripts")) / "guerrillad")
INSTALL = "install it with: scripts/install-debian-packages benchmarks/debian-packages.txt"

CHAINS = {
    "no store": "HeadersParser|Hasher|Header",
    "embedded store": "HeadersParser|Hasher|Header|Sql",
}
KINDS = {"kept connections": ["-d"], "a connection each": []}

CONNECTIONS = 20
SIZE = 2048
WARM_UP = 200
MOST_MESSAGES = 1_000_000
MOST_SECONDS = 300
"""For one measurement; a server that is slower than that has failed."""


class BenchmarkError(Exception):
    """It cannot be measured; the text says why."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running daemon."""

    pid: int
    port: int
    log: Path

    def cpu_seconds(self) -> float:
        """Return the seconds that all its threads have used so far, in user and in kernel mode: proc(5)."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def kept(self) -> int:
        """Count the messages that its log says were answered 250."""
        with self.log.open("rb") as log:
            return sum(b'"outcome":"kept"' in line for line in log)


@dataclass(frozen=True, slots=True)
class Figure:
    """The outcome of one round."""

    messages: int
    seconds: float
    cpu_seconds: float


@contextmanager
def running(chain: str, parent: str | None) -> Iterator[Server]:
    """Run a daemon with all defaults, in a folder of its own, with its log in a file."""
    with tempfile.TemporaryDirectory(prefix="guerrilla-", dir=parent) as name:
        folder = Path(name)
        configuration = {
            "servers": [{"listen_interface": "127.0.0.1:0"}],
            "allowed_hosts": ["."],
            "log_file": "guerrilla.log",
            "pid_file": "guerrillad.pid",
            "backend_config": {"save_process": chain},
        }
        (folder / "conf.json").write_text(json.dumps(configuration))
        command = [GUERRILLAD, "serve", "-c", "conf.json"]
        with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            said = ""
            for line in process.stdout:
                said += line
                if line.startswith("stop with "):
                    break
            try:
                match = re.search(r"receiving on 127\.0\.0\.1:([0-9]+)", said)
                if not match:
                    raise BenchmarkError("guerrillad did not start")
                yield Server(process.pid, int(match[1]), folder / "guerrilla.log")
            finally:
                process.terminate()


def send(smtp_source: str, server: Server, messages: int, options: list[str]) -> None:
    """Send the messages, and return when the last one is answered."""
    command = [smtp_source, *options, "-s", str(CONNECTIONS), "-l", str(SIZE), "-m", str(messages)]
    command += ["-M", "client.test", "-f", "sender@example.org", "-t", "recipient@example.com"]
    subprocess.run([*command, f"127.0.0.1:{server.port}"], check=True, timeout=MOST_SECONDS)


def measure(smtp_source: str, chain: str, options: list[str], messages: int, parent: str | None) -> Figure:
    """Start a server, warm it up, and measure it."""
    with running(chain, parent) as server:
        send(smtp_source, server, WARM_UP, options)
        cpu, start = server.cpu_seconds(), time.perf_counter()
        send(smtp_source, server, messages, options)
        seconds, cpu = time.perf_counter() - start, server.cpu_seconds() - cpu
        if server.kept() != WARM_UP + messages:
            raise BenchmarkError(f"of {WARM_UP + messages} messages the server kept {server.kept()}")
    return Figure(messages, seconds, cpu)


def row(chain: str, kind: str, figures: list[Figure]) -> str:
    """Write the line of the table: median, least and most of the rounds."""

    def cell(values: list[float]) -> str:
        return f"{statistics.median(values):>8,.0f} ({min(values):,.0f}–{max(values):,.0f})"

    by_clock = cell([figure.messages / figure.seconds for figure in figures])
    by_cpu = cell([figure.messages / max(figure.cpu_seconds, 0.01) for figure in figures])
    return f"{chain:<16}{kind:<20}{by_clock:<28}{by_cpu}"


def arguments(parser: argparse.ArgumentParser | None = None) -> argparse.Namespace:
    """Read the command line; the parser, if given, knows further options."""
    parser = parser or argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--messages", type=int, default=20_000, help="in one round (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="of each kind, interleaved (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="2,000 messages, one round")
    parser.add_argument("--folder", help="where logs and databases are put and removed again (the system's /tmp)")
    options = parser.parse_args()
    if options.quick:
        options.messages, options.rounds = 2_000, 1
    if not 1 <= options.messages <= MOST_MESSAGES or not 1 <= options.rounds <= 100:
        parser.error(f"meant: 1 to {MOST_MESSAGES} messages, 1 to 100 rounds")
    return options


def main() -> None:
    """Measure, and print the table."""
    options = arguments()
    # Debian has it where only root looks.
    smtp_source = shutil.which("smtp-source", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")
    if smtp_source is None:
        sys.exit(f"smtp-source is not here; it comes with Postfix: {INSTALL}")
    figures: dict[tuple[str, str], list[Figure]] = defaultdict(list)
    try:
        for _ in range(options.rounds):
            for chain, save_process in CHAINS.items():
                for kind, flags in KINDS.items():
                    figure = measure(smtp_source, save_process, flags, options.messages, options.folder)
                    figures[chain, kind].append(figure)
    except (BenchmarkError, OSError, subprocess.SubprocessError) as error:
        sys.exit(f"this cannot be measured: {error}")

    print(f"{CONNECTIONS} connections, {SIZE} octets, {options.messages:,} messages, rounds: {options.rounds}")
    folder = options.folder or tempfile.gettempdir()
    print(f"Python {platform.python_version()}, {os.cpu_count()} processors, folder {folder}")
    print()
    print(f"{'chain':<16}{'client':<20}{'messages per second':<28}messages per CPU-second")
    for (chain, kind), measured in figures.items():
        print(row(chain, kind, measured))


if __name__ == "__main__":
    main()
