"""php-fpm, and as much of a FastCGI client as it takes to ask it something."""

from __future__ import annotations

import socket
import struct
from pathlib import Path
from typing import ClassVar

from .process import ANSWER_SECONDS, Over, PrivateServer


class PhpFpm(PrivateServer):
    """A private php-fpm that listens on the Unix socket and on the port.

    Each of the two has `WORKERS` workers, and a connection that is kept holds one of them.
    """

    WORKERS: ClassVar[int] = 8

    program = "php-fpm*"
    package = "php-fpm"
    account = "www-data"

    @property
    def documents(self) -> Path:
        """The folder for a test's scripts; php-fpm runs what ends in ``.php``, as it is at that moment."""
        return self.folder / "documents"

    def _fill(self) -> None:
        self.documents.mkdir()
        settings = f"[global]\nerror_log = {self.folder / 'server.log'}\n"
        for name, listen in (("socket", self.socket_path), ("tcp", self.address)):
            settings += f"[{name}]\nlisten = {listen}\nlisten.mode = 0666\nping.path = /ping\n"
            settings += f"pm = static\npm.max_children = {self.WORKERS}\ncatch_workers_output = yes\n"
        (self.folder / "php-fpm.conf").write_text(settings)

    def _command(self) -> list[str]:
        return ["--nodaemonize", "--no-php-ini", "--fpm-config", str(self.folder / "php-fpm.conf")]

    def request(self, path: str | Path, *, over: Over = "socket", seconds: float = ANSWER_SECONDS) -> bytes:
        """Have a script run, and return what it wrote, with the header; raises `OSError`, also when time runs out."""
        family, address = (
            (socket.AF_INET, (self.host, self.port)) if over == "tcp" else (socket.AF_UNIX, str(self.socket_path))
        )
        parameters = b""
        for name, value in {"REQUEST_METHOD": "GET", "SCRIPT_NAME": str(path), "SCRIPT_FILENAME": str(path)}.items():
            parameters += struct.pack("!II", len(name) | 1 << 31, len(value) | 1 << 31) + f"{name}{value}".encode()
        begin, params, stdin, stdout = 1, 4, 5, 6
        responder_then_close = struct.pack("!HB5x", 1, 0)
        with socket.socket(family) as sock:
            sock.settimeout(seconds)
            sock.connect(address)
            for kind, content in ((begin, responder_then_close), (params, parameters), (params, b""), (stdin, b"")):
                sock.sendall(struct.pack("!BBHHBx", 1, kind, 1, len(content), 0) + content)
            with sock.makefile("rb") as stream:
                answer = b""
                while header := stream.read(8):
                    _, kind, _, length, padding = struct.unpack("!BBHHBx", header)
                    content = stream.read(length + padding)[:length]
                    answer += content if kind == stdout else b""
        return answer

    def answers(self) -> bool:
        try:
            return all(self.request("/ping", over=over, seconds=2.0).endswith(b"pong") for over in ("socket", "tcp"))
        except OSError:
            return False
