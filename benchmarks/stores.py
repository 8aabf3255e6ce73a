"""What keeping a message costs: messages per second into each store, beside what the disk alone would allow.

    python -m benchmarks.stores [--quick] [--store "MariaDB + Redis"]

Run it in the project's folder: the servers are those of the tests. What the figures mean is in README.md beside this
file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.throughput import (
    CONNECTIONS,
    GUERRILLAD,
    INSTALL,
    KINDS,
    SIZE,
    WARM_UP,
    BenchmarkError,
    Figure,
    Server,
    arguments,
    row,
    send,
)
from tests.private_servers import DatabaseServer, MariaDB, PostgreSQL, RedisServer
from tests.private_servers.process import ProgramMissingError, find_program

Settings = Mapping[str, object]
"""Keys of ``backend_config``."""

SYNC_SECONDS = 1.0
"""How long the disk alone is measured, once before each measurement."""


@dataclass(frozen=True, slots=True)
class Store:
    """One line of the table."""

    chain: str
    prepare: Callable[[Path], Settings]
    """Make an empty store, for a server that runs in the folder, and say where it is."""
    disk: Callable[[Path], float]
    """Measure in the folder how many messages a second the disk takes, one after the other."""


def per_second(once: Callable[[int], None]) -> float:
    """Call it with 0, 1, 2, … for `SYNC_SECONDS`, and return the calls per second."""
    number, start = 0, time.perf_counter()
    while (seconds := time.perf_counter() - start) < SYNC_SECONDS:
        once(number)
        number += 1
    return number / seconds


def appended(folder: Path, files: int = 1) -> float:
    """Append each message to each of the files and sync it, as the log of a database is written."""
    with ExitStack() as stack:
        logs = [stack.enter_context((folder / f"log-{number}").open("wb", buffering=0)) for number in range(files)]

        def once(_: int) -> None:
            for log in logs:
                log.write(bytes(SIZE))
                os.fsync(log.fileno())

        return per_second(once)


def delivered(folder: Path) -> float:
    """Write each message to a file of its own and sync it, move it to another folder and sync that."""
    for name in ("tmp", "new"):
        (folder / name).mkdir()
    new = os.open(folder / "new", os.O_RDONLY | os.O_DIRECTORY)

    def once(number: int) -> None:
        path = folder / "tmp" / str(number)
        with path.open("wb", buffering=0) as file:
            file.write(bytes(SIZE))
            os.fsync(file.fileno())
        path.rename(folder / "new" / path.name)
        os.fsync(new)

    try:
        return per_second(once)
    finally:
        os.close(new)


def in_database(server: DatabaseServer, driver: str, _: Path) -> Settings:
    """Make a new database."""
    return {"sql_driver": driver, "sql_dsn": server.go_dsn(server.create_database()), "sql_create_table": True}


def in_redis_and_database(redis: RedisServer, server: DatabaseServer, driver: str, folder: Path) -> Settings:
    """Make a new database, and empty Redis."""
    redis.flush()
    return {"redis_interface": redis.url(), "redis_expire_seconds": 3600, **in_database(server, driver, folder)}


def in_file(_: Path) -> Settings:
    """SQLite makes its file in the server's folder by itself."""
    return {}


def in_maildir(folder: Path) -> Settings:
    """Make the Maildir of the recipient of `send`."""
    (folder / "mail/recipient/Maildir").mkdir(parents=True)
    return {"maildir_path": f"{folder}/mail/[user]/Maildir"}


def stores(mariadb: MariaDB, postgres: PostgreSQL, redis: RedisServer) -> dict[str, Store]:
    """Return the lines of the table."""
    line = "HeadersParser|Hasher|Header"
    rows = f"{line}|Sql"
    both = partial(in_redis_and_database, redis, mariadb, "mysql")
    return {
        "MariaDB + Redis": Store(f"{line}|Compressor|Redis|Sql", both, partial(appended, files=2)),
        "MariaDB": Store(rows, partial(in_database, mariadb, "mysql"), appended),
        "PostgreSQL": Store(rows, partial(in_database, postgres, "postgres"), appended),
        "SQLite": Store(rows, in_file, appended),
        "MailDir": Store(f"{line}|MailDir", in_maildir, delivered),
    }


@contextmanager
def running(store: Store) -> Iterator[Server]:
    """Run a daemon in a folder of its own, all settings but the store's at their defaults."""
    with tempfile.TemporaryDirectory(prefix="guerrilla-") as name:
        folder = Path(name)
        configuration = {
            "servers": [{"listen_interface": "127.0.0.1:0"}],
            "allowed_hosts": ["."],
            "log_file": "guerrilla.log",
            "pid_file": "guerrillad.pid",
            "backend_config": {"save_process": store.chain, **store.prepare(folder)},
        }
        (folder / "conf.json").write_text(json.dumps(configuration))
        command = [GUERRILLAD, "serve", "-c", "conf.json"]
        with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                for said in process.stdout:
                    if match := re.search(r"receiving on 127\.0\.0\.1:([0-9]+)", said):
                        yield Server(process.pid, int(match[1]), folder / "guerrilla.log")
                        return
                raise BenchmarkError("guerrillad did not start")
            finally:
                process.terminate()


def measure(smtp_source: str, store: Store, messages: int) -> tuple[float, Figure]:
    """Measure the disk, then start a server, warm it up, and measure it."""
    with tempfile.TemporaryDirectory(prefix="guerrilla-") as folder:
        disk = store.disk(Path(folder))
    options = KINDS["kept connections"]
    with running(store) as server:
        send(smtp_source, server, WARM_UP, options)
        cpu, start = server.cpu_seconds(), time.perf_counter()
        send(smtp_source, server, messages, options)
        seconds, cpu = time.perf_counter() - start, server.cpu_seconds() - cpu
        if server.kept() != WARM_UP + messages:
            raise BenchmarkError(f"of {WARM_UP + messages} messages the server kept {server.kept()}")
    return disk, Figure(messages, seconds, cpu)


NAMES = ("MariaDB + Redis", "MariaDB", "PostgreSQL", "SQLite", "MailDir")


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--store", action="append", choices=NAMES, help="only this one; may be given several times")
    options = arguments(parser)
    wanted = options.store or NAMES
    if options.folder:
        tempfile.tempdir = options.folder  # where the databases' servers put their folders, too
    disks: dict[str, list[float]] = defaultdict(list)
    figures: dict[str, list[Figure]] = defaultdict(list)
    try:
        smtp_source = find_program("smtp-source", "postfix")
        with closing(MariaDB()) as mariadb, closing(PostgreSQL()) as postgres, closing(RedisServer()) as redis:
            for server in (mariadb, postgres, redis):
                if any(type(server).__name__.removesuffix("Server") in name for name in wanted):
                    server.start()
            chosen = stores(mariadb, postgres, redis)
            for _ in range(options.rounds):
                for name in wanted:
                    store = chosen[name]
                    disk, figure = measure(smtp_source, store, options.messages)
                    disks[name].append(disk)
                    figures[name].append(figure)
    except ProgramMissingError as error:
        sys.exit(f"{error}; {INSTALL} tests/debian-packages.txt")
    except (BenchmarkError, OSError, RuntimeError, subprocess.SubprocessError) as error:
        sys.exit(f"this cannot be measured: {error}")

    print(f"{CONNECTIONS} connections, {SIZE} octets, {options.messages:,} messages, rounds: {options.rounds}")
    print(f"Python {platform.python_version()}, {os.cpu_count()} processors, folder {tempfile.gettempdir()}")
    print()
    print(f"{'store':<16}{'disk alone':<20}{'messages per second':<28}messages per CPU-second")
    for name, measured in figures.items():
        alone = disks[name]
        print(row(name, f"{statistics.median(alone):,.0f} ({min(alone):,.0f}–{max(alone):,.0f})", measured))


if __name__ == "__main__":
    main()
