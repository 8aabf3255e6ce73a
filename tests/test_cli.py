"""The command line: what each command prints, where, and with which exit code."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import smtplib
import socket
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from typer.testing import CliRunner, Result

from guerrilla.backends.processor import Duration, Field, ProcessorConfig
from guerrilla.backends.registry import GatewayConfig, Registry
from guerrilla.cli import (
    DEFAULT_PID_FILE,
    _explained,
    _say,
    announcement,
    app,
    configuration_schema,
    hold_standard_descriptors,
    with_options,
)
from guerrilla.config import AppConfig, ServerConfig, Source, TLSConfig, parse


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder, and leave ``sys.path`` as it was."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def configure(values: object, name: str = "goguerrilla.conf.json") -> None:
    Path(name).write_text(json.dumps(values))


def write_pair(key_file: str, certificate_file: str, *, password: bytes | None = None) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
    certificate = builder.sign(key, hashes.SHA256())
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    Path(key_file).write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    )
    Path(certificate_file).write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def test_a_terminal_that_has_no_arrow_is_no_trouble(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "guerrilla", "check"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        check=True,
    )
    assert result.stdout.endswith(b" Header \\u2192 Sql\n")


def test_version_names_guerrilla_its_form_python_and_the_loop() -> None:
    result = run("version")
    assert result.exit_code == 0
    form = r"(compiled with mypyc|not compiled: .*)"
    assert re.fullmatch(rf"guerrilla \S+\n{form}\nPython 3\.\S+\n(uvloop \S+|asyncio .*)\n", result.stdout)


def test_the_help_documents_the_exit_codes() -> None:
    result = run("--help")
    assert result.exit_code == 0
    assert "Exit codes: 0 fine; 1 bad configuration" in " ".join(result.stdout.split())


@pytest.mark.parametrize("arguments", [("nope",), ("serve", "--nope"), ("check", "-c"), ()])
def test_wrong_use_has_exit_code_2_and_is_told_without_a_traceback(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    assert result.output


def test_check_without_a_file_checks_the_embedded_default() -> None:
    result = run("check")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == (
        "OK: no configuration file, the embedded default: 127.0.0.1:2525; HeadersParser → Hasher → Header → Sql\n"
    )


def test_the_default_files_are_those_of_the_go_program_in_its_order() -> None:
    configure({"servers": [{"listen_interface": "127.0.0.1:26"}]})
    assert run("check").stdout.startswith("OK: goguerrilla.conf.json: 127.0.0.1:26;")
    configure({"servers": [{"listen_interface": "127.0.0.1:25"}]}, "goguerrilla.conf")
    assert run("check").stdout.startswith("OK: goguerrilla.conf: 127.0.0.1:25;")
    configure({"servers": [{"listen_interface": "127.0.0.1:27"}]}, "c.json")
    assert run("check", "-c", "c.json").stdout.startswith("OK: c.json: 127.0.0.1:27;")


@pytest.mark.parametrize("command", ["check", "serve"])
def test_a_bad_configuration_is_told_on_stderr_with_exit_code_1(command: str) -> None:
    configure({"max": 1, "backend_config": {"save_process": "Hadersparser"}})
    result = run(command)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "goguerrilla.conf.json:1: max: unknown key\n" in result.stderr
    assert "backend_config.save_process: unknown processor 'Hadersparser', did you mean HeadersParser?" in result.stderr


def test_a_file_that_is_not_there_is_told_with_exit_code_1() -> None:
    result = run("check", "--config", "none.json")
    assert (result.exit_code, result.stderr) == (1, "none.json: there is no such file\n")


def test_check_tells_warnings_and_is_content() -> None:
    configure({"backend_name": "x", "servers": [{"listen_interface": "127.0.0.1:1", "is_enabled": False}]})
    result = run("check")
    assert result.exit_code == 0
    assert result.stdout.startswith("OK: goguerrilla.conf.json: no server; ")
    assert result.stderr.startswith("goguerrilla.conf.json:1: warning: backend_name: is not used any more")
    assert "warning: servers: no server is enabled" in result.stderr


def test_check_finds_a_processor_by_import_path_in_this_folder_with_its_own_keys() -> None:
    Path("cli_own_processor.py").write_text(
        "from guerrilla.backends.processor import Field, Processor, ProcessorConfig\n"
        "class KeepConfig(ProcessorConfig):\n"
        "    keep_where: str = Field(description='Where.')\n"
        "class Keep(Processor[KeepConfig]):\n"
        "    '''Keeps.'''\n"
    )
    line = {"save_process": "HeadersParser | cli_own_processor:Keep"}
    configure({"backend_config": {**line, "keep_where": "here"}})
    result = run("check")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.endswith("; HeadersParser → cli_own_processor:Keep\n")
    configure({"backend_config": line})
    result = run("check")
    assert result.exit_code == 1
    assert "backend_config.keep_where: this key is missing" in result.stderr


def test_a_file_in_this_folder_does_not_stand_before_a_module_of_python() -> None:
    run("check")
    run("check")
    assert sys.path[-1] == os.getcwd()
    assert sys.path.count(os.getcwd()) == 1


def test_check_tells_an_address_that_is_none() -> None:
    configure({"servers": [{"listen_interface": "no.such.host.invalid:25"}]})
    result = run("check")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "servers[0].listen_interface: no.such.host.invalid is no address of a machine: " in result.stderr


def check_tls(**tls: object) -> Result:
    configure({"servers": [{"listen_interface": "127.0.0.1:25", "tls": {"start_tls_on": True, **tls}}]})
    return run("check")


def test_check_reads_the_tls_files() -> None:
    write_pair("a.key", "a.crt")
    result = check_tls(private_key_file="a.key", public_key_file="a.crt", root_cas_file="a.crt")
    assert (result.exit_code, result.stderr) == (0, "")


def test_check_tells_each_tls_file_that_cannot_be_read() -> None:
    result = check_tls(private_key_file="none.key", public_key_file=".")
    assert result.exit_code == 1
    assert result.stderr == (
        "goguerrilla.conf.json:1: servers[0].tls.private_key_file: none.key cannot be read: No such file or directory\n"
        "goguerrilla.conf.json:1: servers[0].tls.public_key_file: . cannot be read: Is a directory\n"
    )


def test_check_tells_a_key_that_does_not_fit_the_certificate() -> None:
    write_pair("a.key", "a.crt")
    write_pair("b.key", "b.crt")
    result = check_tls(private_key_file="a.key", public_key_file="b.crt")
    assert result.exit_code == 1
    assert result.stderr.startswith("goguerrilla.conf.json:1: servers[0].tls: ")
    assert "the key does not belong to the certificate" in result.stderr


def test_check_tells_what_else_of_tls_would_keep_the_server_from_starting() -> None:
    write_pair("a.key", "a.crt")
    result = check_tls(private_key_file="a.key", public_key_file="a.crt", ciphers=["TLS_NONE_WITH_NONE"])
    assert result.exit_code == 1
    assert "servers[0].tls: tls.ciphers: none of TLS_NONE_WITH_NONE is known" in result.stderr


def test_check_asks_nobody_for_a_passphrase() -> None:
    write_pair("a.key", "a.crt", password=b"secret")
    result = check_tls(private_key_file="a.key", public_key_file="a.crt")
    assert result.exit_code == 1
    assert "the key is encrypted" in result.stderr


def test_check_does_not_read_the_files_of_a_server_that_is_off() -> None:
    tls = {"start_tls_on": True, "private_key_file": "none", "public_key_file": "none"}
    servers = [{"listen_interface": "127.0.0.1:25"}, {"listen_interface": ":26", "is_enabled": False, "tls": tls}]
    configure({"servers": servers})
    assert run("check").exit_code == 0


def test_processors_lists_each_with_its_first_line() -> None:
    result = run("processors")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert {"HeadersParser", "Hasher", "Header", "Debugger", "Compressor", "Sql"} <= {line.split()[0] for line in lines}
    assert all(len(line.split()) > 3 for line in lines)


def test_processors_explains_one_by_its_name_in_any_case() -> None:
    result = run("processors", "sql")
    assert result.exit_code == 0
    assert result.stdout.startswith("Sql\n\nKeeps the message in a database")
    assert 'mail_table: text, default "new_mail"\n    The table: ' in result.stdout


def test_processors_says_when_one_has_no_keys() -> None:
    assert run("processors", "Hasher").stdout.endswith("\nIt has no keys.\n")


def test_a_key_is_explained_with_type_default_and_meaning() -> None:
    class OwnConfig(ProcessorConfig):
        own_dsn: str = Field(description="Where it is.")
        own_wait: Duration = Field(default=90.0, description="How long.")
        own_mode: Literal["a", "b"] = "a"
        own_size: int | None = None
        own_names: list[str] = Field(default_factory=lambda: ["x"])
        own_map: dict[str, int] = Field(default={})

    assert list(_explained(OwnConfig)) == [
        "own_dsn: text, required",
        "    Where it is.",
        'own_wait: duration such as "1m30s", default "90s"',
        "    How long.",
        'own_mode: "a" or "b", default "a"',
        "own_size: whole number or null, default null",
        'own_names: list, default ["x"]',
        "own_map: object, default {}",
    ]


@pytest.mark.parametrize(
    ("name", "hint"), [("Sqll", "did you mean Sql?"), ("xyzzy", "guerrillad processors lists all")]
)
def test_a_wrong_name_of_a_processor_says_what_was_meant(name: str, hint: str) -> None:
    result = run("processors", name)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"there is no processor {name!r}, {hint}\n"


def test_the_schema_has_every_key_and_its_description() -> None:
    result = run("schema")
    assert result.exit_code == 0
    schema = json.loads(result.stdout)
    assert schema == configuration_schema(Registry())
    for part, model in (
        (schema, AppConfig),
        (schema["$defs"]["ServerConfig"], ServerConfig),
        (schema["$defs"]["TLSConfig"], TLSConfig),
        (schema["properties"]["backend_config"], GatewayConfig),
    ):
        assert set(model.model_fields) <= set(part["properties"])
        assert all(each.get("description") for each in part["properties"].values())
    assert {"mail_table", "primary_mail_host"} <= set(schema["properties"]["backend_config"]["properties"])


def test_the_schema_writes_the_default_of_a_duration_as_a_duration() -> None:
    schema = configuration_schema(Registry())
    assert schema["properties"]["shutdown_timeout"]["default"] == "60s"
    assert schema["properties"]["backend_config"]["properties"]["gw_save_timeout"]["default"] == "30s"


def test_the_default_of_each_key_in_the_schema_is_accepted() -> None:
    def defaults(part: dict[str, object]) -> dict[str, object]:
        properties = part["properties"]
        assert isinstance(properties, dict)
        return {key: each["default"] for key, each in properties.items() if "default" in each}

    schema = configuration_schema(Registry())
    server = {
        **defaults(schema["$defs"]["ServerConfig"]),
        "listen_interface": ":1",
        "tls": defaults(schema["$defs"]["TLSConfig"]),
    }
    backend = defaults(schema["properties"]["backend_config"])
    config = parse({**defaults(schema), "servers": [server], "backend_config": backend}, Registry().check)
    assert config.servers[0].max_clients == 100


def test_the_options_of_serve_win_over_the_configuration() -> None:
    settings = AppConfig(pid_file="own.pid", log_level="error")
    assert with_options(settings, "", verbose=False) == settings
    changed = with_options(settings, "given.pid", verbose=True)
    assert (changed.pid_file, changed.log_level) == ("given.pid", "debug")


def test_the_pid_file_of_the_go_program_is_the_default_of_a_configuration_file_only() -> None:
    assert with_options(parse({}, source=Source("f")), "", verbose=False).pid_file == DEFAULT_PID_FILE
    assert with_options(AppConfig.embedded(), "", verbose=False).pid_file == ""


def test_the_first_lines_say_what_runs_where_and_how_to_look_at_the_mail() -> None:
    settings = AppConfig.embedded()
    lines = announcement(settings, [(settings.servers[0], ("127.0.0.1", 2525))], "HeadersParser → Sql")
    assert lines[0].startswith("guerrilla ")
    assert lines[1:] == [
        "receiving on 127.0.0.1:2525 (any recipient)",
        "production line: HeadersParser → Sql",
        "storing in guerrilla.db (SQLite, table new_mail): "
        "try  sqlite3 guerrilla.db 'SELECT \"from\", recipient, subject FROM new_mail'",
        "stop with Ctrl-C or SIGTERM",
    ]


def test_the_first_lines_of_a_configured_server_say_hosts_and_tls() -> None:
    tls = {"private_key_file": "k", "public_key_file": "c"}
    settings = parse({"allowed_hosts": ["a.com", "*.b.com", "c.com", "d.com", "e.com"]}, source=Source("f"))
    start, always, plain = (
        ServerConfig.model_validate({"listen_interface": ":1", "tls": each})
        for each in ({**tls, "start_tls_on": True}, {**tls, "tls_always_on": True}, {})
    )
    lines = announcement(settings, [(start, ("::1", 25)), (always, ("0.0.0.0", 465))], "Sql")
    assert lines[1:] == [
        "receiving on [::1]:25 (recipients at a.com, *.b.com, c.com and 2 more; STARTTLS)",
        "receiving on 0.0.0.0:465 (recipients at a.com, *.b.com, c.com and 2 more; TLS)",
        "production line: Sql",
        "stop with Ctrl-C or SIGTERM",
    ]
    lines = announcement(parse({}), [(plain, ("127.0.0.1", 25))], "Sql")
    assert lines[1] == f"receiving on 127.0.0.1:25 (recipients at {socket.gethostname()})"


def test_mail_goes_on_when_nobody_reads_the_first_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as closed_pipe:
        monkeypatch.setattr(sys, "stdout", closed_pipe)
        _say(["guerrilla"])
        print("goes nowhere", flush=True)  # noqa: T201


def test_a_server_that_cannot_start_has_exit_code_1_and_says_why() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        configure({"pid_file": "a.pid", "servers": [{"listen_interface": f"127.0.0.1:{port}"}]})
        result = run("serve")
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"127.0.0.1:{port}" in result.stderr
    assert "Traceback" not in result.stderr


MESSAGE = b"From: a@example.com\r\nSubject: h\xc3\xa9llo\r\n\r\n.dot\r\nthe end\r\n"


@pytest.mark.parametrize("module", ["guerrilla", "guerrilla.cli"])
def test_serve_takes_in_mail_and_ends_well_at_sigterm(folder: Path, module: str) -> None:
    configure({"servers": [{"listen_interface": "127.0.0.1:0"}], "allowed_hosts": ["."]})
    command = [sys.executable, "-m", module, "serve", "-p", "a.pid"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            lines: list[str] = []
            while not lines or not lines[-1].startswith("stop with "):
                lines.append(server.stdout.readline().decode())
                assert lines[-1], server.communicate()[1].decode()
            found = re.fullmatch(r"receiving on 127\.0\.0\.1:([0-9]+) \(any recipient\)\n", lines[1])
            assert found is not None
            assert lines[2] == "production line: HeadersParser → Hasher → Header → Sql\n"
            assert (folder / "a.pid").read_text().strip() == str(server.pid)
            with smtplib.SMTP("127.0.0.1", int(found[1])) as client:
                assert client.sendmail("a@example.com", ["b@example.com"], MESSAGE) == {}
            server.send_signal(signal.SIGTERM)
            _, errors = server.communicate(timeout=60)
        finally:
            server.kill()
    assert server.returncode == 0, errors.decode()
    assert b"Traceback" not in errors
    assert not (folder / "a.pid").exists()
    store = sqlite3.connect(folder / "guerrilla.db")
    ((mail, recipient),) = store.execute("SELECT mail, recipient FROM new_mail").fetchall()
    store.close()
    assert mail.endswith(MESSAGE)
    assert recipient == "b@example.com"


def test_a_server_without_standard_streams_ends_well_at_sigterm(folder: Path) -> None:
    os.mkfifo("log")
    configure({"servers": [{"listen_interface": "127.0.0.1:0"}], "log_file": "log"})
    log = os.open("log", os.O_RDONLY | os.O_NONBLOCK)
    command = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-m", "guerrilla", "serve", "-p", "a.pid"]
    with subprocess.Popen(command, cwd=folder) as server:
        try:
            assert select.select([log], [], [], 60)[0]
            assert b'"event":"receiving"' in os.read(log, 10_000)
            held = {os.readlink(f"/proc/{server.pid}/fd/{number}") for number in (0, 1, 2)}
            server.send_signal(signal.SIGTERM)
            server.wait(timeout=60)
        finally:
            server.kill()
            os.close(log)
    assert held == {os.devnull}
    assert server.returncode == 0


def test_what_is_open_of_the_standard_streams_stays_as_it_is() -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    hold_standard_descriptors()
    assert sorted(os.listdir("/proc/self/fd")) == before
