"""MariaDB and PostgreSQL."""

from __future__ import annotations

import itertools
import signal
import subprocess
from abc import abstractmethod
from collections.abc import Sequence
from urllib.parse import quote

from sqlalchemy import URL

from .process import ANSWER_SECONDS, PASSWORD, START_SECONDS, Over, PrivateServer, find_program


class DatabaseServer(PrivateServer):
    """What MariaDB and PostgreSQL have in common: a user who may do anything, and databases."""

    user = "guerrilla"
    password = PASSWORD
    database: str
    """The database that is always there."""

    def __init__(self, options: Sequence[str] = ()) -> None:
        super().__init__(options)
        self._numbers = itertools.count(1)

    @abstractmethod
    def sql(self, statement: str, database: str | None = None, *, seconds: float = ANSWER_SECONDS) -> str:
        """Run a statement with the server's own client, and return the rows: one a line, tabs between the columns.

        Raises `subprocess.CalledProcessError` (``stderr`` says why) and `subprocess.TimeoutExpired`.
        """

    @abstractmethod
    def url(self, database: str | None = None, *, over: Over = "tcp") -> str:
        """Return the URL of SQLAlchemy, with the asynchronous driver."""

    @abstractmethod
    def go_dsn(self, database: str | None = None, *, over: Over = "tcp") -> str:
        """Return the data source name as Go's driver takes it."""

    def create_database(self) -> str:
        """Make an empty database, and return its name. It stays until the server is removed."""
        name = f"test_{next(self._numbers)}"
        self.sql(f"CREATE DATABASE {name}")
        return name

    def answers(self) -> bool:
        try:
            return self.sql("SELECT 1", seconds=2.0) == "1\n"
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            return False


class MariaDB(DatabaseServer):
    """A private MariaDB; it takes statements of up to 64 MiB, as a message of 25 MB needs."""

    program = "mariadbd"
    package = "mariadb-server"
    account = "mysql"
    database = "guerrilla"

    def _fill(self) -> None:
        install = find_program("mariadb-install-db", self.package)
        extra = self.folder / "extra.sql"
        extra.write_text(
            f"FLUSH PRIVILEGES;\nCREATE DATABASE {self.database};\n"
            f"GRANT ALL ON *.* TO '{self.user}'@'%' IDENTIFIED BY '{self.password}' WITH GRANT OPTION;\n"
        )
        arguments = ["--no-defaults", f"--datadir={self.folder / 'data'}", f"--extra-file={extra}"]
        self._run(
            [install, *arguments, "--skip-test-db", "--skip-name-resolve", "--auth-root-authentication-method=normal"],
            seconds=START_SECONDS,
        )

    def _command(self) -> list[str]:
        return [
            "--no-defaults",
            f"--datadir={self.folder / 'data'}",
            f"--socket={self.socket_path}",
            f"--pid-file={self.folder / 'pid'}",
            f"--bind-address={self.host}",
            f"--port={self.port}",
            "--skip-name-resolve",
            "--innodb-buffer-pool-size=64M",
            "--innodb-flush-log-at-trx-commit=1",
            "--max-allowed-packet=64M",
        ]

    def sql(self, statement: str, database: str | None = None, *, seconds: float = ANSWER_SECONDS) -> str:
        client = find_program("mariadb", "mariadb-client")
        arguments = ["--no-defaults", f"--socket={self.socket_path}", f"--user={self.user}", "--batch", "--raw"]
        arguments += ["--skip-column-names", f"--database={database or self.database}", f"--execute={statement}"]
        return self._run([client, *arguments], seconds=seconds, MYSQL_PWD=self.password)

    def url(self, database: str | None = None, *, over: Over = "tcp") -> str:
        url = URL.create("mysql+asyncmy", self.user, self.password, database=database or self.database)
        if over == "tcp":
            url = url.set(host=self.host, port=self.port)
        else:
            url = url.set(query={"unix_socket": str(self.socket_path)})
        return url.render_as_string(hide_password=False)

    def go_dsn(self, database: str | None = None, *, over: Over = "tcp") -> str:
        where = f"tcp({self.address})" if over == "tcp" else f"unix({self.socket_path})"
        return f"{self.user}:{self.password}@{where}/{database or self.database}"


class PostgreSQL(DatabaseServer):
    """A private PostgreSQL; passwords are asked for as SCRAM-SHA-256."""

    program = "postgres"
    package = "postgresql"
    account = "postgres"
    stop_signal = signal.SIGINT
    socket_name = ".s.PGSQL.{port}"
    database = "postgres"

    def _fill(self) -> None:
        initdb = find_program("initdb", self.package)
        password = self.folder / "password"
        password.write_text(self.password)
        arguments = [f"--pgdata={self.folder / 'data'}", f"--username={self.user}", f"--pwfile={password}"]
        arguments += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync", "--no-instructions"]
        self._run([initdb, *arguments], seconds=START_SECONDS)

    def _command(self) -> list[str]:
        settings = {
            "listen_addresses": self.host,
            "port": self.port,
            "unix_socket_directories": self.folder,
            "shared_buffers": "64MB",
            "fsync": "on",
            "synchronous_commit": "on",
            # After kill() one call makes all databases durable, instead of one for each of their hundreds of files.
            "recovery_init_sync_method": "syncfs",
        }
        return ["-D", str(self.folder / "data"), *(f"--{name}={value}" for name, value in settings.items())]

    def sql(self, statement: str, database: str | None = None, *, seconds: float = ANSWER_SECONDS) -> str:
        client = find_program("psql", "postgresql-client")
        arguments = [f"--host={self.folder}", f"--port={self.port}", f"--username={self.user}", "--no-psqlrc"]
        arguments += ["--quiet", "--no-align", "--tuples-only", "--field-separator=\t", "--set=ON_ERROR_STOP=1"]
        arguments += [f"--dbname={database or self.database}", f"--command={statement}"]
        return self._run([client, *arguments], seconds=seconds, PGPASSWORD=self.password)

    def url(self, database: str | None = None, *, over: Over = "tcp") -> str:
        url = URL.create("postgresql+asyncpg", self.user, self.password, database=database or self.database)
        if over == "tcp":
            url = url.set(host=self.host, port=self.port)
        else:
            url = url.set(query={"host": str(self.folder), "port": str(self.port)})
        return url.render_as_string(hide_password=False)

    def go_dsn(self, database: str | None = None, *, over: Over = "tcp") -> str:
        login = f"postgres://{self.user}:{quote(self.password, safe='')}@"
        name = database or self.database
        if over == "tcp":
            return f"{login}{self.address}/{name}?sslmode=disable"
        return f"{login}/{name}?host={self.folder}&port={self.port}&sslmode=disable"
