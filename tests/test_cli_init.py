"""``guerrillad init``: what it writes is a configuration, explains every key, and replaces nothing by accident."""

from __future__ import annotations

import os
import re
import signal
import smtplib
import ssl
import stat
import subprocess
import sys
import tomllib
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from typer.testing import CliRunner, Result

from guerrilla.backends.registry import Registry
from guerrilla.cli import app, configuration_schema
from guerrilla.config import AppConfig, load, parse
from guerrilla.self_signed import self_signed


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder, and leave ``sys.path`` as it was."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


def init(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["init", *arguments])


def written(name: str = "guerrilla.toml") -> AppConfig:
    return load(name, Registry().check)


def test_what_is_written_passes_check_and_says_what_to_do_next() -> None:
    result = init("--host-name", "mx.example.com")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == (
        "wrote guerrilla.toml\n"
        "It takes mail for mx.example.com: set allowed_hosts to the domains that mail comes for. Then:\n"
        "  guerrillad check\n"
        "  guerrillad serve\n"
    )
    checked = CliRunner().invoke(app, ["check"])
    assert (checked.exit_code, checked.stderr) == (0, "")
    assert checked.stdout.startswith("OK: guerrilla.toml: 127.0.0.1:2525; HeadersParser → ")
    assert stat.S_IMODE(os.stat("guerrilla.toml").st_mode) & 0o007 == 0


def test_the_options_are_what_the_file_says() -> None:
    assert init("--host-name", "mx.example.com", "--listen", "[::1]:25").exit_code == 0
    config = written()
    assert config.allowed_hosts == ["mx.example.com"]
    assert (config.servers[0].host_name, config.servers[0].listen_interface) == ("mx.example.com", "[::1]:25")
    assert config.backend_config == {"primary_mail_host": "mx.example.com"}
    assert not config.servers[0].tls.start_tls_on


def test_without_options_it_takes_mail_for_this_machine_on_this_machine_only() -> None:
    assert init().exit_code == 0
    config = written()
    assert config.servers == AppConfig().servers
    assert config.allowed_hosts == [config.servers[0].host_name]


def test_each_key_stands_there_once_with_its_description_and_its_default() -> None:
    init()
    text = Path("guerrilla.toml").read_text()
    # The one key without a default has no value to take the "#" from.
    text = text.replace("#sql_create_table =\n", "#sql_create_table = true\n")
    values = tomllib.loads(re.sub(r"^#(?=[a-z_]+ = )", "", text, flags=re.MULTILINE))
    schema = configuration_schema(Registry())
    (server,) = values["servers"]
    parts: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (values, schema["properties"]),
        (server, schema["$defs"]["ServerConfig"]["properties"]),
        (server["tls"], schema["$defs"]["TLSConfig"]["properties"]),
    ]
    for keys, properties in parts:
        assert keys.keys() == properties.keys()
    assert {"save_process", "gw_save_timeout", "mail_table", "sql_dsn", "primary_mail_host"} <= (
        values["backend_config"].keys()
    )
    assert "redis_interface" not in values["backend_config"]
    words = " ".join(text.replace("\n#", "").split())
    for keys, properties in (*parts, (values["backend_config"], schema["properties"]["backend_config"]["properties"])):
        assert all(" ".join(properties[key]["description"].split()) in words for key in keys)
    config = parse(values, Registry().check)
    defaults = AppConfig()
    assert (
        config.model_copy(
            update={key: getattr(defaults, key) for key in ("allowed_hosts", "pid_file", "backend_config")}
        )
        == defaults
    )
    assert max(map(len, text.splitlines())) <= 120


def test_a_self_signed_pair_is_made_and_starttls_is_on(folder: Path) -> None:
    result = init("--host-name", "mx.example.com", "--self-signed")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith(
        f"wrote {folder}/guerrilla.key\nwrote {folder}/guerrilla.crt\nwrote guerrilla.toml\n"
    )
    tls = written().servers[0].tls
    assert tls.start_tls_on
    assert (tls.private_key_file, tls.public_key_file) == (str(folder / "guerrilla.key"), str(folder / "guerrilla.crt"))
    assert stat.S_IMODE(os.stat("guerrilla.key").st_mode) == 0o600
    assert CliRunner().invoke(app, ["check"]).exit_code == 0


def test_the_certificate_is_for_the_host_name_and_the_key_is_its_own() -> None:
    key_pem, certificate_pem = self_signed("mx.example.com")
    key, certificate = load_pem_private_key(key_pem, None), x509.load_pem_x509_certificate(certificate_pem)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.curve.name == "secp256r1"
    assert key.public_key() == certificate.public_key()
    assert certificate.not_valid_after_utc - certificate.not_valid_before_utc <= timedelta(days=825)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["mx.example.com"]


@pytest.mark.parametrize(
    ("name", "address"),
    [("[192.0.2.1]", "192.0.2.1"), ("192.0.2.1", "192.0.2.1"), ("[IPv6:2001:db8::1]", "2001:db8::1")],
)
def test_the_certificate_of_an_address_is_for_the_address(name: str, address: str) -> None:
    certificate = x509.load_pem_x509_certificate(self_signed(name)[1])
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.IPAddress) == [ip_address(address)]


def test_a_long_host_name_is_a_name_all_the_same() -> None:
    name = "a" * 63 + ".example.com"
    certificate = x509.load_pem_x509_certificate(self_signed(name)[1])
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [name]


def test_without_the_library_the_error_says_how_to_get_it_and_nothing_is_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    result = init("--self-signed")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        "--self-signed: the package cryptography is not installed, meant: pip install 'guerrilla[tls]'\n"
    )
    assert os.listdir(folder) == []


@pytest.mark.parametrize("there", ["guerrilla.toml", "guerrilla.key", "guerrilla.crt"])
def test_nothing_is_written_when_one_of_the_files_is_there(folder: Path, there: str) -> None:
    Path(there).write_text("mine")
    result = init("--self-signed")
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"{there}: is already there, meant: another name with --output, or --force\n" in result.stderr
    assert os.listdir(folder) == [there]
    assert Path(there).read_text() == "mine"


@pytest.mark.parametrize("arguments", [(), ("--force",)])
def test_a_symbolic_link_is_never_followed(folder: Path, arguments: tuple[str, ...]) -> None:
    Path("target").write_text("mine")
    Path("guerrilla.toml").symlink_to("target")
    assert init(*arguments).exit_code == (0 if arguments else 1)
    assert Path("target").read_text() == "mine"
    assert Path("guerrilla.toml").is_symlink() == (not arguments)


def test_force_replaces_what_is_there_and_leaves_nothing_else(folder: Path) -> None:
    Path("guerrilla.toml").write_text("old")
    assert init("--force", "--self-signed").exit_code == 0
    assert written().servers[0].tls.start_tls_on
    assert sorted(os.listdir(folder)) == ["guerrilla.crt", "guerrilla.key", "guerrilla.toml"]


def test_a_file_that_cannot_be_written_is_told_without_a_traceback(folder: Path) -> None:
    result = init("--output", "none/a.toml")
    assert (result.exit_code, result.stderr) == (1, "none/a.toml: cannot be written: No such file or directory\n")
    Path("a.toml").mkdir()
    result = init("--output", "a.toml", "--force")
    assert (result.exit_code, result.stderr) == (1, "a.toml: cannot be written: Is a directory\n")
    assert os.listdir(folder) == ["a.toml"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--listen", "25"), '--listen: found "25", meant: "127.0.0.1:25", "[::1]:25" or ":25"\n'),
        (("--host-name", "a b"), '--host-name: found "a b", meant: a host name in ASCII, without spaces\n'),
        (("--host-name", "."), "--host-name: found '.', meant: a domain, or an IP address in brackets\n"),
        (("--host-name", "*.a.com"), "--host-name: found '*.a.com', meant: a domain, or an IP address in brackets\n"),
        (("--host-name", "[nope]"), "--host-name: 'nope' does not appear to be an IPv4 or IPv6 address, meant: a "),
        (("--output", "a.conf"), '--output: found a.conf, meant: a name that ends in ".toml"\n'),
    ],
)
def test_a_wrong_option_is_wrong_use(folder: Path, arguments: tuple[str, ...], told: str) -> None:
    result = init(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith(told)
    assert os.listdir(folder) == []


def test_another_file_is_named_in_what_to_do_next() -> None:
    assert "guerrillad serve -c 'my mail.toml'\n" in init("-o", "my mail.toml").stdout
    Path("goguerrilla.conf").write_text("{}")
    assert "guerrillad serve -c guerrilla.toml\n" in init().stdout


def test_serve_runs_with_it_and_speaks_tls_that_its_certificate_vouches_for(folder: Path) -> None:
    assert init("--host-name", "localhost", "--listen", "127.0.0.1:0", "--self-signed").exit_code == 0
    command = [sys.executable, "-m", "guerrilla", "serve"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            lines = [server.stdout.readline().decode() for _ in range(2)]
            found = re.fullmatch(
                r"receiving on 127\.0\.0\.1:([0-9]+) \(recipients at localhost; STARTTLS\)\n", lines[1]
            )
            assert found is not None, server.communicate()[1].decode()
            context = ssl.create_default_context(cafile=folder / "guerrilla.crt")
            context.verify_flags |= ssl.VERIFY_X509_STRICT
            with smtplib.SMTP("127.0.0.1", int(found[1])) as client:
                client._host = "localhost"  # type: ignore[attr-defined]  # the name that is checked
                client.starttls(context=context)
                assert client.sendmail("a@example.com", ["b@localhost"], b"Subject: x\r\n\r\nx\r\n") == {}
            server.send_signal(signal.SIGTERM)
            errors = server.communicate(timeout=60)[1]
        finally:
            server.kill()
    assert server.returncode == 0, errors.decode()
