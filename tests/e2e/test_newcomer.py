"""What the first hour with guerrilla promises: one command, a processor of one's own, the file of the Go program."""

from __future__ import annotations

import contextlib
import json
import os
import re
import smtplib
import socket
import sqlite3
import subprocess
import sys
import sysconfig
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.e2e.conftest import KeyPair, Launch

MAIL = b"From: <grace@example.org>\r\nSubject: hello\r\n\r\n.a dot, and eight bits: \xe2\x82\xac\r\n"

# Port 2525 may be in use: in a network of its own nothing is. The loopback device of a new one is down.
LOOPBACK_UP = 'ip link set lo up && exec "$@"'
SEND = f"""
import smtplib
with smtplib.SMTP("127.0.0.1", 2525, "client.test") as client:
    client.sendmail("grace@example.org", "a@b.test", {MAIL!r})
"""


@pytest.fixture
def own_network() -> list[str]:
    """Return the command that runs another in a network of its own; nothing where the system does not allow that."""
    unshare = ["unshare", "--net", "--map-root-user", "sh", "-c", LOOPBACK_UP, "sh"]
    with contextlib.suppress(OSError):
        if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode == 0:
            return unshare
    with contextlib.closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", 2525))
        except OSError:
            pytest.skip("port 2525 is in use, and no network can be made in which it is not")
    return []


def rows(folder: Path, columns: str) -> list[Any]:
    """Return the columns of all mail that is kept there."""
    with contextlib.closing(sqlite3.connect(folder / "guerrilla.db")) as database:
        return database.execute(f"SELECT {columns} FROM new_mail ORDER BY mail_id").fetchall()


def guerrillad(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run another command of the daemon in the folder."""
    command = [f"{sysconfig.get_path('scripts')}/guerrillad", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_without_a_configuration_it_says_what_it_does_and_keeps_mail(
    launch: Launch, tmp_path: Path, own_network: list[str]
) -> None:
    daemon = launch(tmp_path, prefix=own_network)
    said = "\n".join(daemon.announced)
    assert "receiving on 127.0.0.1:2525 (any recipient)" in said
    assert "storing in guerrilla.db" in said
    assert "stop with Ctrl-C or SIGTERM" in said

    client = [sys.executable, "-c", SEND]
    if own_network:
        target = str(daemon.process.pid)
        client = ["nsenter", "--target", target, "--net", "--user", "--preserve-credentials", *client]
    subprocess.run(client, check=True)

    [(sender, recipient, subject, mail)] = rows(tmp_path, '"from", recipient, subject, mail')
    assert (sender, recipient, subject) == ("grace@example.org", "a@b.test", "hello")
    assert mail.startswith(b"Delivered-To: a@")
    assert mail.endswith(b"\r\n" + MAIL)
    assert daemon.stop() == 0


def test_the_command_that_it_prints_for_looking_at_mail_works(
    launch: Launch, tmp_path: Path, own_network: list[str]
) -> None:
    daemon = launch(tmp_path, prefix=own_network)
    [command] = [line.partition("try  ")[2] for line in daemon.announced if "try  " in line]
    statement = re.fullmatch(r"sqlite3 guerrilla\.db '([^']+)'", command)
    assert statement
    with contextlib.closing(sqlite3.connect(tmp_path / "guerrilla.db")) as database:
        assert database.execute(statement[1]).fetchall() == []


def test_the_other_commands_run_in_an_empty_folder(tmp_path: Path) -> None:
    check, version, processors, schema = (
        guerrillad(tmp_path, command) for command in ("check", "version", "processors", "schema")
    )
    for done in (check, version, processors, schema):
        assert (done.returncode, done.stderr) == (0, "")
    assert check.stdout.startswith("OK: no configuration file")
    assert version.stdout.startswith("guerrilla ")
    names = {line.split()[0] for line in processors.stdout.splitlines()}
    assert names >= {"HeadersParser", "Hasher", "Header", "Debugger", "Compressor", "Sql"}
    assert "save_process" in json.loads(schema.stdout)["properties"]["backend_config"]["properties"]
    assert os.listdir(tmp_path) == []


MY_FOO = '''
from guerrilla.backends.processor import CallNext, Envelope, Field, Processor, ProcessorConfig, Reply
from guerrilla.smtp.replies import NO_SUCH_USER


class MyFooConfig(ProcessorConfig):
    foo_path: str = Field(description="Where Foo is.")
    foo_strict: bool = True


class MyFoo(Processor[MyFooConfig]):
    """Saves mail in Foo, and refuses recipients that Foo does not know."""

    async def initialize(self) -> None:
        self.foo = open(self.config.foo_path, "a", encoding="utf-8")

    async def shutdown(self) -> None:
        self.foo.write("closed\\n")
        self.foo.close()

    async def validate_rcpt(self, envelope: Envelope, call_next: CallNext) -> Reply:
        if self.config.foo_strict and envelope.rcpt_to[-1].user != "known":
            return NO_SUCH_USER
        return await call_next()

    async def save_mail(self, envelope: Envelope, call_next: CallNext) -> Reply:
        self.foo.write(f"{envelope.subject}\\n")
        return await call_next()
'''


@pytest.fixture
def my_foo(tmp_path: Path) -> dict[str, Any]:
    """Put a module with a processor in the folder, and return a configuration that has it in both lines."""
    (tmp_path / "my_foo.py").write_text(MY_FOO)
    return {
        "servers": [{"listen_interface": "127.0.0.1:0"}],
        "allowed_hosts": ["."],
        "pid_file": "guerrillad.pid",
        "backend_config": {
            "save_process": "HeadersParser|my_foo:MyFoo|Hasher|Header|Sql",
            "validate_process": "my_foo:MyFoo",
            "foo_path": "foo.txt",
        },
    }


def test_a_processor_in_the_working_folder_works_by_its_import_path(
    launch: Launch, tmp_path: Path, my_foo: dict[str, Any]
) -> None:
    daemon = launch(tmp_path, my_foo)
    assert "production line: HeadersParser → my_foo:MyFoo → Hasher → Header → Sql" in daemon.announced
    with smtplib.SMTP("127.0.0.1", daemon.ports[0], "client.test") as client:
        refused = client.sendmail("grace@example.org", ["known@b.test", "nobody@b.test"], MAIL)
    assert [(recipient, code) for recipient, (code, _) in refused.items()] == [("nobody@b.test", 550)]
    assert daemon.stop() == 0
    assert rows(tmp_path, "recipient, subject") == [("known@b.test", "hello")]
    assert (tmp_path / "foo.txt").read_text() == "hello\nclosed\n"


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"foo_strict": "yes"}, 'backend_config.foo_strict: found "yes", meant: true or false'),
        ({"foo_strickt": False}, "backend_config.foo_strickt: unknown key, did you mean foo_strict?"),
    ],
)
def test_the_keys_of_ones_own_processor_are_checked_like_all_others(
    tmp_path: Path, my_foo: dict[str, Any], keys: dict[str, Any], said: str
) -> None:
    my_foo["backend_config"] |= keys
    (tmp_path / "goguerrilla.conf.json").write_text(json.dumps(my_foo))
    for command in ("check", "serve"):
        done = guerrillad(tmp_path, command)
        assert done.returncode == 1
        assert said in done.stderr


def go_configuration(key_pair: KeyPair) -> dict[str, Any]:
    """Return a file of the Go program with every key that it knows, and the processors of its own example."""
    files = {"private_key_file": key_pair.key, "public_key_file": key_pair.certificate}
    return {
        "log_file": "daemon.log",
        "log_level": "info",
        "allowed_hosts": ["sharklasers.com", "*.guerrillamail.com", "[192.0.2.1]"],
        "pid_file": "go-guerrilla.pid",
        "servers": [
            {
                "is_enabled": True,
                "host_name": "mail.test.com",
                "max_size": 1000000,
                "timeout": 180,
                "listen_interface": "127.0.0.1:0",
                "max_clients": 1000,
                "log_file": "server.log",
                "xclient_on": False,
                "proxyon": False,
                "tls": {
                    "start_tls_on": True,
                    "tls_always_on": False,
                    **files,
                    "root_cas_file": key_pair.certificate,
                    "client_auth_type": "VerifyClientCertIfGiven",
                    "prefer_server_cipher_suites": True,
                    "protocols": ["tls1.2", "tls1.3"],
                    "ciphers": [
                        "TLS_RSA_WITH_AES_128_CBC_SHA",
                        "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
                        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305",
                        "TLS_AES_128_GCM_SHA256",
                    ],
                    "curves": ["P256", "P384", "P521", "X25519"],
                },
            },
            {"is_enabled": False, "listen_interface": "127.0.0.1:1", "tls": {"tls_always_on": True, **files}},
        ],
        "backend_config": {
            "save_process": "HeadersParser|Debugger|Hasher|Header|Compressor|Sql",
            "validate_process": "Debugger",
            "save_workers_size": 1,
            "gw_save_timeout": "30s",
            "gw_val_rcpt_timeout": "1m3s",
            "log_received_mails": True,
            "mysql_db": "gmail_mail",
            "mysql_host": "127.0.0.1:3306",
            "mysql_pass": "ok",
            "mysql_user": "root",
            "mail_table": "new_mail",
            "redis_interface": "127.0.0.1:6379",
            "redis_expire_seconds": 7200,
            "primary_mail_host": "sharklasers.com",
        },
    }


UNREAD = ["mysql_db", "mysql_host", "mysql_pass", "mysql_user", "redis_interface", "redis_expire_seconds"]


def test_the_configuration_file_of_the_go_program_works_unchanged(
    launch: Launch, tmp_path: Path, key_pair: KeyPair
) -> None:
    configuration = go_configuration(key_pair)
    daemon = launch(tmp_path, configuration)
    assert daemon.announced[1].endswith("(recipients at sharklasers.com, *.guerrillamail.com, [192.0.2.1]; STARTTLS)")
    with smtplib.SMTP("127.0.0.1", daemon.ports[0], "client.test") as client:
        client.starttls()
        client.sendmail("grace@example.org", ["a@sharklasers.com", "b@grr.guerrillamail.com"], MAIL)
    assert (tmp_path / "go-guerrilla.pid").read_text() == f"{daemon.process.pid}\n"
    assert daemon.stop() == 0

    first, second = rows(tmp_path, '"to", recipient, body, is_tls, mail')
    assert first[:4] == ("a@sharklasers.com", "a@sharklasers.com", "gzip", 1)
    assert second[:4] == ("b@sharklasers.com", "b@grr.guerrillamail.com", "gzip", 1)
    for row in (first, second):
        mail = zlib.decompress(row[4])
        assert mail.startswith(b"Delivered-To: a@sharklasers.com\r\nReceived: from client.test ([127.0.0.1])\r\n")
        assert mail.endswith(b"\r\n" + MAIL)
    logged = [json.loads(line) for line in (tmp_path / "daemon.log").read_text().splitlines()]
    assert "mail received" in [record["event"] for record in logged]
    assert "message" in (tmp_path / "server.log").read_text()


def test_keys_of_the_go_program_that_nobody_reads_are_named_by_check_and_by_the_log(
    launch: Launch, tmp_path: Path, key_pair: KeyPair
) -> None:
    launch(tmp_path, go_configuration(key_pair)).stop()
    logged = [json.loads(line) for line in (tmp_path / "daemon.log").read_text().splitlines()]
    warnings = [str(record.get("problem")) for record in logged if record["level"] == "warning"]
    checked = guerrillad(tmp_path, "check", "-c", "conf.json")
    assert checked.returncode == 0
    for key in UNREAD:
        said = f"warning: backend_config.{key}: nothing in this line reads this key"
        assert warnings.count(said) == 1, warnings
        assert re.search(rf"^conf\.json:[0-9]+: {re.escape(said)}$", checked.stderr, re.MULTILINE)
    assert len(checked.stderr.splitlines()) == len(UNREAD)
