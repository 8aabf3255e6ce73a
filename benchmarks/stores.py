"""What keeping a message costs: messages per second into each store, beside what the disk alone would allow.

    python -m benchmarks.stores [--quick] [--store "MariaDB + Redis"]

Run it in the project's folder: the servers are those of the tests. What the figures mean is in README.md beside this
file.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.clients import CONNECTIONS, SIZE, by_smtp_source
from benchmarks.measure import PER_CPU, PER_SECOND, Figure, Spread
from benchmarks.servers import CHAIN, INSTALL, STORE, BenchmarkError, guerrilla
from tests.private_servers import DatabaseServer, MariaDB, PostgreSQL, RedisServer
from tests.private_servers.process import ProgramMissingError

Settings = Mapping[str, object]
"""Keys of ``backend_config``."""

SYNC_SECONDS = 1.0
"""How long the disk alone is measured, once before each measurement."""
MOST_MESSAGES = 1_000_000


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


def in_redis_and_database(
    redis: RedisServer, server: DatabaseServer, driver: str, folder: Path, *, durable: bool = True
) -> Settings:
    """Make a new database, and empty Redis. ``durable`` says whether Redis writes to disk before it answers."""
    redis.flush()
    redis.command("CONFIG", "SET", "appendonly", "yes" if durable else "no")
    return {"redis_interface": redis.url(), "redis_expire_seconds": 3600, **in_database(server, driver, folder)}


def in_file(_: Path) -> Settings:
    """SQLite makes its file in the server's folder by itself."""
    return {}


def in_maildir(folder: Path) -> Settings:
    """Make the Maildir of the recipient of `smtp_source`."""
    (folder / "mail/recipient/Maildir").mkdir(parents=True)
    return {"maildir_path": f"{folder}/mail/[user]/Maildir"}


def stores(mariadb: MariaDB, postgres: PostgreSQL, redis: RedisServer) -> dict[str, Store]:
    """Return the lines of the table."""
    both = partial(in_redis_and_database, redis, mariadb, "mysql")
    chain = f"{CHAIN}|Compressor|Redis|Sql"
    return {
        "MariaDB + Redis": Store(chain, both, partial(appended, files=2)),
        "MariaDB + Redis in memory": Store(chain, partial(both, durable=False), appended),
        "MariaDB": Store(STORE, partial(in_database, mariadb, "mysql"), appended),
        "PostgreSQL": Store(STORE, partial(in_database, postgres, "postgres"), appended),
        "SQLite": Store(STORE, in_file, appended),
        "SQLite, compressed": Store(f"{CHAIN}|Compressor|Sql", in_file, appended),
        "MailDir": Store(f"{CHAIN}|MailDir", in_maildir, delivered),
    }


def measure(store: Store, messages: int) -> tuple[float, Figure]:
    """Measure the disk, then start a server, warm it up, and measure it."""
    with tempfile.TemporaryDirectory(prefix="guerrilla-") as name:
        folder = Path(name)
        disk = store.disk(folder)
        with guerrilla(store.chain, backend=store.prepare(folder)) as server:
            return disk, by_smtp_source(server, messages)


NAMES = (
    "MariaDB + Redis",
    "MariaDB + Redis in memory",
    "MariaDB",
    "PostgreSQL",
    "SQLite",
    "SQLite, compressed",
    "MailDir",
)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--store", action="append", choices=NAMES, help="only this one; may be given several times")
    parser.add_argument("--messages", type=int, default=5_000, help="in one round (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of each store, interleaved (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="2,000 messages, one round")
    parser.add_argument("--folder", help="where logs and databases are put and removed again (the system's /tmp)")
    options = parser.parse_args()
    if options.quick:
        options.messages, options.rounds = 2_000, 1
    if not 1 <= options.messages <= MOST_MESSAGES or not 1 <= options.rounds <= 100:
        parser.error(f"meant: 1 to {MOST_MESSAGES} messages, 1 to 100 rounds")
    return options


def whole(values: Sequence[float]) -> str:
    """Write the median, and in brackets the least and the most, as whole numbers."""
    spread = Spread.of(values)
    return f"{spread.median:,.0f} ({spread.least:,.0f}–{spread.most:,.0f})"


def main() -> None:
    """Measure, and print the table."""
    options = arguments()
    wanted = options.store or NAMES
    if options.folder:
        tempfile.tempdir = options.folder  # where the databases' servers put their folders, too
    disks: dict[str, list[float]] = defaultdict(list)
    figures: dict[str, list[Figure]] = defaultdict(list)
    try:
        with closing(MariaDB()) as mariadb, closing(PostgreSQL()) as postgres, closing(RedisServer()) as redis:
            for server in (mariadb, postgres, redis):
                if any(type(server).__name__.removesuffix("Server") in name for name in wanted):
                    server.start()
            chosen = stores(mariadb, postgres, redis)
            for _ in range(options.rounds):
                for name in wanted:
                    store = chosen[name]
                    disk, figure = measure(store, options.messages)
                    disks[name].append(disk)
                    figures[name].append(figure)
    except ProgramMissingError as error:
        sys.exit(f"{error}; {INSTALL} tests/debian-packages.txt")
    except (BenchmarkError, OSError, RuntimeError, subprocess.SubprocessError) as error:
        sys.exit(f"this cannot be measured: {error}")

    print(f"{CONNECTIONS} connections, {SIZE} octets, {options.messages:,} messages, rounds: {options.rounds}")
    print(f"Python {platform.python_version()}, {os.cpu_count()} processors, folder {tempfile.gettempdir()}")
    print()
    print(f"{'store':<26}{'disk alone':<24}{'messages per second':<28}messages per CPU-second")
    for name, measured in figures.items():
        rates = [whole([figure.rates[metric] for figure in measured]) for metric in (PER_SECOND, PER_CPU)]
        print(f"{name:<26}{whole(disks[name]):<24}{rates[0]:<28}{rates[1]}")


if __name__ == "__main__":
    main()
