"""Behind the real HAProxy and nginx the client's own address arrives; what a stranger claims does not."""

from __future__ import annotations

import json
import re
import smtplib
import sqlite3
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.private_servers import HAProxy, Nginx, serve
from tests.private_servers.process import find_program, wait_until

from guerrilla.config import ServerConfig

if TYPE_CHECKING:
    from tests.e2e.conftest import KeyPair, Launch, RunningDaemon

CLIENT = "127.0.0.5"
"""Whom the proxies serve. They themselves are 127.0.0.1."""
STRANGER = "127.0.0.9"
"""A proxy that is not trusted."""
HOW_TO = Path(__file__).parents[2] / "docs" / "how-to" / "behind-a-proxy.md"
HEADER, TLS, XCLIENT, DISTRUST = range(4)
"""The servers, in the order of the configuration."""


@pytest.fixture(scope="module")
def daemon(launch: Launch, tmp_path_factory: pytest.TempPathFactory, key_pair: KeyPair) -> RunningDaemon:
    anywhere, trusted = {"listen_interface": "127.0.0.1:0"}, {"trusted_proxies": ["127.0.0.1"]}
    tls = {"tls_always_on": True, "private_key_file": key_pair.key, "public_key_file": key_pair.certificate}
    config = {
        "servers": [
            {**anywhere, **trusted, "proxy_on": True},
            {**anywhere, **trusted, "proxy_on": True, "tls": tls},
            {**anywhere, **trusted, "xclient_on": True},
            {**anywhere, "xclient_on": True, "trusted_proxies": ["192.0.2.1"]},
        ],
        "allowed_hosts": ["example.com"],
        "pid_file": "guerrillad.pid",
        "backend_config": {"save_process": "HeadersParser|Hasher|Header|Sql"},
    }
    return launch(tmp_path_factory.mktemp("proxies"), config)


@pytest.fixture(scope="module")
def haproxy(daemon: RunningDaemon) -> Iterator[HAProxy]:
    header, tls = (f"127.0.0.1:{daemon.ports[server]}" for server in (HEADER, TLS))
    more = "proxy-v2-options crc32c,unique-id,authority,ssl"
    servers = {
        "v1": f"{header} send-proxy check inter 100ms",
        "v2": f"{header} send-proxy-v2 check inter 100ms",
        "v2-checksum": f"{header} send-proxy-v2 {more} check inter 100ms",
        "v1-checked-elsewhere": f"{header} send-proxy check check-send-proxy port {daemon.ports[HEADER]} inter 100ms",
        "v1-tls": f"{tls} send-proxy",
        "v2-tls": f"{tls} send-proxy-v2",
        "stranger-v1": f"{header} send-proxy source {STRANGER}",
        "stranger-v2": f"{header} send-proxy-v2 source {STRANGER}",
    }
    for server in serve(partial(HAProxy, servers)):
        server.start()
        yield server


@pytest.fixture(scope="module")
def nginx(daemon: RunningDaemon) -> Iterator[Nginx]:
    servers = {
        "xclient": (daemon.ports[XCLIENT], ["xclient on;"]),
        "distrusted": (daemon.ports[DISTRUST], ["xclient on;"]),
        "header": (daemon.ports[HEADER], ["xclient off;", "proxy_protocol on;"]),
    }
    for server in serve(partial(Nginx, servers)):
        server.start()
        yield server


def send(port: int, recipient: str, *, tls: ssl.SSLContext | None = None, source: str = CLIENT) -> None:
    """Deliver a message as the client at the address."""
    client: smtplib.SMTP
    if tls is None:
        client = smtplib.SMTP("127.0.0.1", port, "client.test", timeout=20, source_address=(source, 0))
    else:
        client = smtplib.SMTP_SSL("127.0.0.1", port, "client.test", timeout=20, source_address=(source, 0), context=tls)
    with client:
        client.sendmail("a@client.test", [recipient], "Subject: Hello\r\n\r\nHello\r\n")


def kept(daemon: RunningDaemon, recipient: str) -> tuple[str, str]:
    """Return the address that the one message for the recipient came from, and its delivery header."""
    with closing(sqlite3.connect(Path(daemon.folder / "guerrilla.db"))) as database:
        [(address, mail)] = database.execute("SELECT ip_addr, mail FROM new_mail WHERE recipient = ?", [recipient])
    return str(ip_address(address)), mail.partition(b"Subject:")[0].decode()


@pytest.mark.parametrize("way", ["v1", "v2", "v2-checksum", "v1-checked-elsewhere", "v1-tls", "v2-tls"])
def test_behind_haproxy_the_envelope_has_the_client_s_address(
    daemon: RunningDaemon, haproxy: HAProxy, key_pair: KeyPair, way: str
) -> None:
    recipient = f"haproxy-{way}@example.com"
    tls = ssl.create_default_context(cafile=key_pair.certificate) if way.endswith("-tls") else None
    send(haproxy.ports[way], recipient, tls=tls)
    address, header = kept(daemon, recipient)
    assert address == CLIENT
    assert f"Received: from client.test ([{CLIENT}])" in header
    assert CLIENT in daemon.errors, "the log has it too"


@pytest.mark.parametrize("way", ["v1", "v2", "v2-checksum", "v1-checked-elsewhere"])
def test_haproxy_finds_the_server_healthy(haproxy: HAProxy, way: str) -> None:
    wait_until(lambda: haproxy.health(way) == "L7OK", 20, f"{way} is up; {haproxy.health(way)}")


@pytest.mark.parametrize("way", ["stranger-v1", "stranger-v2"])
def test_from_a_stranger_a_header_changes_nothing(daemon: RunningDaemon, haproxy: HAProxy, way: str) -> None:
    recipient = f"{way}@example.com"
    with smtplib.SMTP("127.0.0.1", haproxy.ports[way], "client.test", timeout=20, source_address=(CLIENT, 0)) as client:
        client.putcmd("")  # ends what is left of a binary header
        client.putcmd("RSET")
        answers = [client.getreply()[0]]
        while answers[-1] != 250:
            answers.append(client.getreply()[0])
        assert set(answers) == {500, 250}
        client.sendmail("a@client.test", [recipient], "Subject: Hello\r\n\r\nHello\r\n")
    assert kept(daemon, recipient)[0] == STRANGER


@pytest.mark.parametrize(("way", "helo"), [("xclient", "client.test"), ("header", "nginx.test")])
def test_behind_nginx_the_envelope_has_the_client_s_address(
    daemon: RunningDaemon, nginx: Nginx, way: str, helo: str
) -> None:
    recipient = f"nginx-{way}@example.com"
    send(nginx.ports[way], recipient)
    address, header = kept(daemon, recipient)
    assert address == CLIENT
    assert f"Received: from {helo} ([{CLIENT}])" in header


def test_nginx_passes_on_what_a_client_is_refused_for(nginx: Nginx) -> None:
    with pytest.raises(smtplib.SMTPRecipientsRefused) as refused:
        send(nginx.ports["xclient"], "a@elsewhere.test")
    [(code, text)] = refused.value.recipients.values()
    assert (code, text[:5]) == (550, b"5.7.1")


def test_an_nginx_that_is_not_trusted_speaks_for_nobody(daemon: RunningDaemon, nginx: Nginx) -> None:
    recipient = "distrusted@example.com"
    with pytest.raises(smtplib.SMTPException):
        send(nginx.ports["distrusted"], recipient)
    with pytest.raises(ValueError, match="not enough values"):
        kept(daemon, recipient)


def test_a_client_that_is_not_trusted_speaks_for_itself(daemon: RunningDaemon) -> None:
    recipient = "stranger@example.com"
    with smtplib.SMTP("127.0.0.1", daemon.ports[XCLIENT], source_address=(STRANGER, 0), timeout=20) as client:
        client.ehlo("client.test")
        assert "xclient" not in client.esmtp_features
        assert client.docmd("XCLIENT", "ADDR=198.51.100.7")[0] == 500
        client.sendmail("a@client.test", [recipient], "Subject: Hello\r\n\r\nHello\r\n")
    assert kept(daemon, recipient)[0] == STRANGER


def test_the_configurations_of_the_how_to_are_valid(haproxy: HAProxy, nginx: Nginx, tmp_path: Path) -> None:
    blocks = re.findall(r"```[a-z]*\n(.*?)```", HOW_TO.read_text(), re.DOTALL)
    (tmp_path / "haproxy.cfg").write_text(blocks[0])
    (tmp_path / "nginx.conf").write_text(blocks[2])
    pid_file = f"pid {tmp_path / 'nginx.pid'};"
    for command in (
        [find_program("haproxy", "haproxy"), "-c", "-f", str(tmp_path / "haproxy.cfg")],
        [find_program("nginx", "nginx"), "-t", "-e", "stderr", "-c", str(tmp_path / "nginx.conf"), "-g", pid_file],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    for block in (blocks[1], blocks[3]):
        [server] = json.loads(block)["servers"]
        ServerConfig(**server)
