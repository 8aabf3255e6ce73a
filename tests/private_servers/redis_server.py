"""Redis."""

from __future__ import annotations

import subprocess
from urllib.parse import quote

from .process import ANSWER_SECONDS, PASSWORD, Over, PrivateServer, find_program


class RedisServer(PrivateServer):
    """A private Redis. The default user needs no password; ``user`` has one, and may do the same."""

    program = "redis-server"
    package = "redis-server"
    account = "redis"
    user = "guerrilla"
    password = PASSWORD

    def _fill(self) -> None:
        settings = f"""\
            bind {self.host}
            port {self.port}
            unixsocket {self.socket_path}
            unixsocketperm 777
            dir {self.folder}
            save ""
            appendonly yes
            appendfsync always
            user {self.user} on >{self.password} ~* &* +@all
            """
        (self.folder / "redis.conf").write_text(settings)

    def _command(self) -> list[str]:
        return [str(self.folder / "redis.conf")]

    def command(self, *words: str, seconds: float = ANSWER_SECONDS) -> str:
        """Run a command with the server's own client, and return the answer as it prints it for programs.

        Raises `subprocess.CalledProcessError` and `subprocess.TimeoutExpired`.
        """
        client = find_program("redis-cli", "redis-tools")
        return self._run([client, "-e", "-s", str(self.socket_path), *words], seconds=seconds)

    def flush(self) -> None:
        """Remove all keys from all databases."""
        self.command("FLUSHALL")

    def url(self, database: int = 0, *, over: Over = "tcp", password: bool = False) -> str:
        """Return the URL of the database, on request with the user and the password."""
        login = f"{self.user}:{quote(self.password, safe='')}@" if password else ""
        if over == "tcp":
            return f"redis://{login}{self.address}/{database}"
        return f"unix://{login}{self.socket_path}?db={database}"

    def answers(self) -> bool:
        try:
            return self.command("PING", seconds=2.0) == "PONG\n"
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            return False
