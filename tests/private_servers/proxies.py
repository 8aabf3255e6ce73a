"""HAProxy and nginx, in front of a mail server that listens on ports of 127.0.0.1."""

from __future__ import annotations

import contextlib
import csv
import socket
from collections.abc import Mapping, Sequence

from .process import PrivateServer, free_port


def _accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 2.0):
        return True
    return False


class HAProxy(PrivateServer):
    """A private HAProxy: for each name in ``servers`` a port that leads to what its ``server`` line says.

    ``option smtpchk`` is on: a server is up when it has answered EHLO.
    """

    program = "haproxy"
    package = "haproxy"
    account = "haproxy"

    def __init__(self, servers: Mapping[str, str]) -> None:
        super().__init__()
        self.ports = {name: free_port() for name in servers}
        self._servers = servers

    def _fill(self) -> None:
        settings = f"""\
            global
                stats socket {self.socket_path} mode 666
            defaults
                mode tcp
                option smtpchk EHLO haproxy.test
                unique-id-format %[uuid()]
                timeout connect 5s
                timeout client 1m
                timeout server 1m
                timeout check 5s
            """
        for name, port in self.ports.items():
            settings += f"listen {name}\nbind 127.0.0.1:{port}\nserver guerrilla {self._servers[name]}\n"
        (self.folder / "haproxy.cfg").write_text(settings)

    def _command(self) -> list[str]:
        return ["-db", "-f", str(self.folder / "haproxy.cfg")]

    def health(self, name: str) -> str:
        """Return what the last check of a server has found, such as ``L7OK``."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(2.0)
            sock.connect(str(self.socket_path))
            sock.sendall(b"show stat\n")
            with sock.makefile() as stream:
                rows = list(csv.DictReader(stream))
        return next(row["check_status"] for row in rows if row["# pxname"] == name and row["svname"] == "guerrilla")

    def answers(self) -> bool:
        return all(map(_accepts, self.ports.values()))


class Nginx(PrivateServer):
    """A private nginx as an SMTP proxy: for each name in ``servers`` a port, an upstream port and settings.

    What it asks by ``auth_http`` it answers itself.
    """

    program = "nginx"
    package = "nginx and libnginx-mod-mail"
    account = "www-data"

    def __init__(self, servers: Mapping[str, tuple[int, Sequence[str]]]) -> None:
        super().__init__()
        self.ports = {name: free_port() for name in servers}
        self._servers = servers

    def _fill(self) -> None:
        settings = f"""\
            load_module /usr/lib/nginx/modules/ngx_mail_module.so;
            daemon off;
            worker_processes 1;
            error_log stderr info;
            pid {self.folder}/nginx.pid;
            events {{}}
            """
        http = "access_log off;\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"):
            http += f"{kind}_temp_path {self.folder / kind};\n"
        mail = "server_name nginx.test;\nsmtp_auth none;\nproxy_pass_error_message on;\n"
        http += f"server {{ listen unix:{self.socket_path};\n"
        for name, (upstream, more) in self._servers.items():
            http += f"location /{name} {{ add_header Auth-Status OK; add_header Auth-Server 127.0.0.1;\n"
            http += f"add_header Auth-Port {upstream}; return 200; }}\n"
            mail += f"server {{ listen 127.0.0.1:{self.ports[name]}; protocol smtp; {' '.join(more)}\n"
            mail += f"auth_http unix:{self.socket_path}:/{name}; }}\n"
        http += "}\n"
        (self.folder / "nginx.conf").write_text(f"{settings}http {{\n{http}}}\nmail {{\n{mail}}}\n")

    def _command(self) -> list[str]:
        return ["-e", "stderr", "-c", str(self.folder / "nginx.conf")]

    def answers(self) -> bool:
        return all(map(_accepts, self.ports.values()))
