"""What ``guerrillad check`` finds outside of the file: as ``serve`` would, and without making anything."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.server.certificates import issue
from typer.testing import CliRunner

from guerrilla.backends.registry import Registry
from guerrilla.cli import app
from guerrilla.cli_check import outside
from guerrilla.config import parse


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder, and leave ``sys.path`` as it was."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


def found(**keys: Any) -> list[str]:
    settings = parse({"servers": [{"listen_interface": "127.0.0.1:0"}], **keys})
    before = sorted(os.listdir())
    problems = [str(problem) for problem in outside(settings, Registry())]
    assert sorted(os.listdir()) == before
    return problems


def test_what_serve_would_end_with_has_exit_code_1() -> None:
    Path("goguerrilla.conf").write_text(json.dumps({"log_file": "none/a.log", "log_level": "info"}))
    result = CliRunner().invoke(app, ["check"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "goguerrilla.conf:1: log_file: none/a.log cannot be written: No such file or directory\n"


@pytest.mark.parametrize("log_file", ["stderr", "stdout", "off", "new.log", "old.log"])
def test_a_log_that_can_be_opened_is_no_problem(log_file: str) -> None:
    Path("old.log").touch()
    assert found(log_file=log_file) == []


def test_a_log_that_cannot_be_opened_is_told_with_the_cause() -> None:
    Path("file").touch()
    assert found(log_file="none/a.log") == ["log_file: none/a.log cannot be written: No such file or directory"]
    assert found(log_file="file/a.log") == ["log_file: file/a.log cannot be written: Not a directory"]
    assert found(log_file=".") == ["log_file: . cannot be written: Is a directory"]


def test_a_file_or_folder_that_may_not_be_written_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("old.log").touch()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert found(log_file="old.log")[0] == "log_file: old.log cannot be written: Permission denied"
    assert found(log_file="new.log")[0] == "log_file: new.log cannot be written: Permission denied"


def test_the_log_of_a_server_is_looked_at_if_it_is_on() -> None:
    servers = [
        {"listen_interface": "127.0.0.1:1", "log_file": "none/a.log", "is_enabled": False},
        {"listen_interface": "127.0.0.1:2", "log_file": "none/b.log"},
    ]
    assert found(servers=servers) == [
        "servers[1].log_file: none/b.log cannot be written: No such file or directory",
    ]


def test_the_folder_of_an_embedded_database_is_told_once(folder: Path) -> None:
    line = {
        "save_process": "HeadersParser|Hasher|Sql|GuerrillaDbRedis",
        "sql_dsn": "none/mail.db",
        "redis_interface": "127.0.0.1:6379",
        "redis_expire_seconds": 60,
    }
    told = f"backend_config.sql_dsn: {folder}/none/mail.db cannot be written: No such file or directory"
    assert found(backend_config=line) == [told]
    assert found(backend_config={**line, "sql_dsn": "mail.db"}) == []


@pytest.mark.parametrize(
    "line",
    [
        {"save_process": "Sql", "sql_driver": "postgres", "sql_dsn": "host=none/db user=a dbname=b"},
        {"save_process": "HeadersParser|Debugger"},
    ],
)
def test_no_other_store_is_looked_at(line: dict[str, Any]) -> None:
    assert found(backend_config=line) == []


def test_a_user_that_is_not_there_is_told_at_its_key() -> None:
    assert found(user="no-such-user") == ["user: there is no user 'no-such-user', meant: a name or a number"]
    assert found(group="daemon") == ["group: found 'daemon' without a user, meant: user and group, or user alone"]
    assert found(user="nobody") == []


def test_the_files_of_further_certificates_are_read_too() -> None:
    pair = {"private_key_file": "none.key", "public_key_file": "none.crt"}
    tls = {"start_tls_on": True, **pair, "certificates": [pair]}
    places = ["private_key_file", "public_key_file", "certificates[0].private_key_file"]
    problems = found(servers=[{"listen_interface": "127.0.0.1:0", "tls": tls}])
    assert [each.partition(": ")[0] for each in problems] == [
        *(f"servers[0].tls.{place}" for place in places),
        "servers[0].tls.certificates[0].public_key_file",
    ]


def test_what_has_no_effect_on_tls_is_a_warning_with_its_place(folder: Path) -> None:
    pair = issue("mx.test").write(folder)
    tls = {"start_tls_on": True, **pair, "ciphers": ["AES128-SHA", "NONE"], "certificates": [pair]}
    problems = found(servers=[{"listen_interface": "127.0.0.1:0", "tls": tls}])
    assert [each.split(": ")[:2] for each in problems] == [
        ["warning", "servers[0].tls.ciphers"],
        ["warning", "servers[0].tls.certificates[0]"],
    ]


def test_a_tls_file_that_is_no_file_does_not_hold_the_check_up(folder: Path) -> None:
    os.mkfifo("pipe")
    tls = {"start_tls_on": True, "private_key_file": "pipe", "public_key_file": "/dev/zero"}
    assert found(servers=[{"listen_interface": "127.0.0.1:0", "tls": tls}]) == [
        "servers[0].tls.private_key_file: pipe cannot be read: Not a regular file",
        "servers[0].tls.public_key_file: /dev/zero cannot be read: Not a regular file",
    ]


def test_a_folder_for_large_messages_that_is_not_there_is_told() -> None:
    assert found(spool_path="none") == ["spool_path: no file can be made in none, meant: a folder to write in"]


def test_a_domain_in_brackets_is_told() -> None:
    (problem,) = found(allowed_hosts=["[example.com]"])
    assert problem.startswith("allowed_hosts: ")
