"""Real clients deliver real mail, in clear, with STARTTLS and with implicit TLS, and it is kept octet for octet."""

from __future__ import annotations

import base64
import random
import smtplib
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import pytest

if TYPE_CHECKING:
    from tests.e2e.conftest import KeyPair, Launch, RunningDaemon

SENDER = "sender@example.org"
CLEAR, STARTTLS, IMPLICIT = "clear", "STARTTLS", "implicit TLS"
Find: TypeAlias = Callable[[str], str]

LINES = [
    f"From: Grace <{SENDER}>",
    "To: Alan <alan@example.com>",
    "Date: Tue, 24 Nov 2026 10:00:00 +0000",
    "Message-ID: <1@example.org>",
    "Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?= with an attachment",
    "MIME-Version: 1.0",
    'Content-Type: multipart/mixed;\n boundary="=_part"',
    "",
    "This line is for those who do not know MIME.",
    "--=_part",
    "Content-Type: text/plain; charset=utf-8",
    "Content-Transfer-Encoding: 8bit",
    "",
    ".one dot, then two, then one alone, then a blank at the end of a line:",
    "..",
    ".",
    "eight bits: Grüße, Ελλάδα, 日本 ",
    "a line beyond the 998 octets of RFC 5322: " + "x" * 2000,
    "",
    "--=_part",
    "Content-Type: application/octet-stream",
    "Content-Transfer-Encoding: base64",
    'Content-Disposition: attachment; filename="random.bin"',
    "",
    base64.encodebytes(random.Random(1).randbytes(150_000)).decode("ascii").rstrip("\n"),
    "--=_part--",
]
UNIX_MAIL = "\n".join([*LINES, ""]).encode()
"""As it is in a file of this system."""
MAIL = UNIX_MAIL.replace(b"\n", b"\r\n")
"""As it must arrive (RFC 5321 section 2.3.8)."""


@pytest.fixture(scope="module")
def daemon(launch: Launch, tmp_path_factory: pytest.TempPathFactory, key_pair: KeyPair) -> RunningDaemon:
    """Run a daemon with two servers: one in clear that offers STARTTLS, one that begins with TLS."""
    files = {"private_key_file": key_pair.key, "public_key_file": key_pair.certificate}
    config = {
        "servers": [
            {"listen_interface": "127.0.0.1:0", "tls": {"start_tls_on": True, **files}},
            {"listen_interface": "127.0.0.1:0", "tls": {"tls_always_on": True, **files}},
        ],
        "allowed_hosts": ["example.com"],
        "pid_file": "guerrillad.pid",
        "backend_config": {"save_process": "HeadersParser|Hasher|Header|Sql"},
    }
    return launch(tmp_path_factory.mktemp("clients"), config)


# The clients: each is given the port, the recipient, and the certificate to trust; none is told to trust blindly.


def send_with_smtplib(find: Find, security: str, port: int, recipient: str, certificate: str) -> None:
    context = ssl.create_default_context(cafile=certificate)
    if security == IMPLICIT:
        client: smtplib.SMTP = smtplib.SMTP_SSL("127.0.0.1", port, "client.test", context=context)
    else:
        client = smtplib.SMTP("127.0.0.1", port, "client.test")
    with client:
        if security == STARTTLS:
            client.starttls(context=context)
        client.sendmail(SENDER, [recipient], MAIL, mail_options=["BODY=8BITMIME"])


def send_with_swaks(find: Find, security: str, port: int, recipient: str, certificate: str) -> None:
    command = [find("swaks"), "--server", f"127.0.0.1:{port}", "--from", SENDER, "--to", recipient, "--data", "-"]
    if security != CLEAR:
        command += ["--tls" if security == STARTTLS else "--tls-on-connect"]
        command += ["--tls-verify", "--tls-ca-path", certificate]
    run(command, UNIX_MAIL[:-1])  # swaks ends the last line itself


def send_with_curl(find: Find, security: str, port: int, recipient: str, certificate: str) -> None:
    scheme = "smtps" if security == IMPLICIT else "smtp"
    command = [find("curl"), "--silent", "--show-error", f"{scheme}://127.0.0.1:{port}/client.test"]
    command += ["--mail-from", SENDER, "--mail-rcpt", recipient, "--upload-file", "-"]
    if security != CLEAR:
        command += ["--cacert", certificate]
    if security == STARTTLS:
        command.append("--ssl-reqd")
    run(command, MAIL)


def send_with_msmtp(find: Find, security: str, port: int, recipient: str, certificate: str) -> None:
    command = [find("msmtp"), "--host=127.0.0.1", f"--port={port}", f"--from={SENDER}"]
    if security != CLEAR:
        command += ["--tls=on", f"--tls-trust-file={certificate}"]
        command.append("--tls-starttls=on" if security == STARTTLS else "--tls-starttls=off")
    run([*command, recipient], UNIX_MAIL)


def run(command: list[str], standard_input: bytes) -> None:
    done = subprocess.run(command, input=standard_input, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    assert done.returncode == 0, f"{command[0]} failed:\n{done.stdout.decode(errors='replace')[-2000:]}"


@pytest.mark.parametrize("security", [CLEAR, STARTTLS, IMPLICIT])
@pytest.mark.parametrize("send", [send_with_smtplib, send_with_swaks, send_with_curl, send_with_msmtp])
def test_what_a_client_sends_is_in_the_database_octet_for_octet(
    send: Callable[[Find, str, int, str, str], None],
    security: str,
    daemon: RunningDaemon,
    tool: Find,
    key_pair: KeyPair,
) -> None:
    sqlite3 = tool("sqlite3")
    recipient = f"{send.__name__}-{security.replace(' ', '-')}@example.com"
    send(tool, security, daemon.ports[security == IMPLICIT], recipient, key_pair.certificate)

    select = f"SELECT is_tls, subject, message_id, hex(mail) FROM new_mail WHERE recipient = '{recipient}'"
    done = subprocess.run(
        [sqlite3, "-readonly", str(daemon.folder / "guerrilla.db"), select], capture_output=True, check=True
    )
    [row] = done.stdout.decode().splitlines()
    is_tls, subject, message_id, mail = row.split("|")
    assert is_tls == str(int(security != CLEAR))
    assert (subject, message_id) == ("Grüße with an attachment", "1@example.org")
    delivery_header, stored = divide(bytes.fromhex(mail))
    assert delivery_header.startswith(b"Delivered-To: "), delivery_header
    assert b"\r\nReceived: from " in delivery_header
    assert b"\r\n\r\n" not in delivery_header
    assert stored == MAIL


def divide(mail: bytes) -> tuple[bytes, bytes]:
    """Return the delivery header and what the client has sent, which begins with From."""
    start = mail.index(b"\r\nFrom: ") + 2
    return mail[:start], mail[start:]


def test_a_client_that_is_refused_learns_why(daemon: RunningDaemon, tool: Find, tmp_path: Path) -> None:
    command = [tool("swaks"), "--server", f"127.0.0.1:{daemon.ports[0]}", "--from", SENDER, "--to", "a@elsewhere.test"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 24  # swaks: no recipient was accepted
    assert "550 5.7.1" in done.stdout
