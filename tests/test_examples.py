"""The examples do what examples/README.md says: each is run as a program, and sent mail."""

from __future__ import annotations

import json
import re
import shutil
import smtplib
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from tests.private_servers import PhpFpm

from guerrilla.backends.registry import Registry
from guerrilla.config import load, parse

EXAMPLES = Path(__file__).parent.parent / "examples"
SAMPLE = EXAMPLES / "maildiranasaurus" / "maildiranasaurus.conf"
MAIL = b"From: <grace@example.org>\r\nSubject: hello\r\n\r\nEight bits: \xe2\x82\xac\r\n"

_RECEIVING = re.compile(r"receiving +address=127\.0\.0\.1:([0-9]+)")


@dataclass(frozen=True, slots=True)
class RunningExample:
    """A program that has said that it receives."""

    process: subprocess.Popen[str]
    port: int

    def send(self, *recipients: str) -> dict[str, tuple[int, bytes]]:
        """Send the message, and return the recipients that were refused. Raises what smtplib does if all were."""
        with smtplib.SMTP("127.0.0.1", self.port, "client.test") as client:
            return client.sendmail("grace@example.org", recipients, MAIL)

    def stop(self) -> str:
        """End it with SIGTERM, see that it ends well, and return what it has logged since."""
        self.process.terminate()
        _, log = self.process.communicate()
        assert self.process.returncode == 0
        return log


Run: TypeAlias = Callable[..., RunningExample]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Runs Python with the arguments, in a folder."""
    processes: list[subprocess.Popen[str]] = []

    def start(*arguments: str | Path, folder: Path = tmp_path) -> RunningExample:
        command = [sys.executable, *map(str, arguments)]
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stderr is not None
        said = ""
        for line in process.stderr:
            said += line
            if match := _RECEIVING.search(line):
                return RunningExample(process, int(match[1]))
        raise AssertionError(f"it did not start: {said}")

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def scripts(php_fpm: PhpFpm) -> Iterator[Path]:
    """A copy of the examples where php-fpm may read them, and may write mail."""
    folder = php_fpm.documents / "examples"
    shutil.copytree(EXAMPLES, folder)
    (folder / "mail").mkdir()
    (folder / "mail").chmod(0o777)
    yield folder
    shutil.rmtree(folder)


def messages(folder: Path) -> list[bytes]:
    """Return what is kept in files that are not hidden."""
    return [path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")]


def test_funky_logger_logs_for_both_tasks(run: Run, tmp_path: Path) -> None:
    """It logs its own text for the recipient and for the message, which is kept."""
    example = run(EXAMPLES / "funky_logger.py", "--listen", "127.0.0.1:0")
    assert example.send("joe@example.com") == {}
    lines = [line for line in example.stop().split("\n") if "We want the funk" in line]
    validate, save = lines
    assert 'task="validate recipient" recipient=joe@example.com' in validate
    assert 'task="save mail" sender=grace@example.org' in save
    with closing(sqlite3.connect(tmp_path / "guerrilla.db")) as database:
        assert database.execute("SELECT recipient FROM new_mail").fetchall() == [("joe@example.com",)]


def test_maildir_server_takes_mail_for_those_who_have_a_maildir(run: Run, tmp_path: Path) -> None:
    """Who has none is refused at RCPT, and the others get the message."""
    (tmp_path / "mail/joe/Maildir").mkdir(parents=True)
    example = run(EXAMPLES / "maildir_server.py", "mail", "--listen", "127.0.0.1:0")
    assert [(who, code) for who, (code, _) in example.send("joe@a.test", "nobody@a.test").items()] == [
        ("nobody@a.test", 550)
    ]
    (message,) = messages(tmp_path / "mail/joe/Maildir/new")
    assert message.startswith(b"Delivered-To: ")
    assert message.endswith(MAIL)
    example.stop()


def test_fastcgi_server_hands_mail_to_the_scripts(run: Run, php_fpm: PhpFpm, scripts: Path) -> None:
    """validate.php refuses whom it does not know, in its own words, and save.php keeps the message."""
    example = run(scripts / "fastcgi_server.py", php_fpm.socket_path, "--listen", "127.0.0.1:0")
    assert example.send("joe@example.com", "nobody@example.com") == {
        "nobody@example.com": (550, b"5.1.1 Nobody of that name lives here")
    }
    (message,) = messages(scripts / "mail")
    assert message.endswith(MAIL)
    assert list((scripts / "mail").glob(".*")) == []
    example.stop()


def test_fastcgi_server_says_try_again_when_the_script_cannot_keep_it(run: Run, php_fpm: PhpFpm, scripts: Path) -> None:
    """A script that finds no folder does not say SAVED, and the client is answered 451."""
    (scripts / "mail").rmdir()
    example = run(scripts / "fastcgi_server.py", php_fpm.socket_path, "--listen", "127.0.0.1:0")
    with pytest.raises(smtplib.SMTPDataError, match="451"):
        example.send("joe@example.com")
    example.stop()


def dinosaur(folder: Path, php_fpm: PhpFpm, scripts: Path) -> Path:
    """Write the sample configuration with users, paths and ports of the test, and return its path."""
    values = json.loads(SAMPLE.read_text())
    values["pid_file"] = str(folder / "pid")
    values["backend_config"] |= {
        "maildir_user_map": "joe=-1:-1,ann=-1:-1,bob=-1:-1",
        "maildir_path": f"{folder}/[user]/Maildir",
        "fcgi_script_filename_save": str(scripts / "save.php"),
        "fcgi_script_filename_validate": str(scripts / "validate.php"),
        "fcgi_connection_address": str(php_fpm.socket_path),
    }
    del values["servers"][1]
    values["servers"][0] |= {"listen_interface": "127.0.0.1:0", "start_tls_on": False}
    for user in ("joe", "ann", "bob"):
        (folder / user / "Maildir").mkdir(parents=True)
    path = folder / "maildiranasaurus.conf"
    path.write_text(json.dumps(values))
    return path


def test_maildiranasaurus_serves(run: Run, php_fpm: PhpFpm, scripts: Path, tmp_path: Path) -> None:
    """A message goes into the Maildirs and to the script; a recipient must be known to both."""
    configuration = dinosaur(tmp_path, php_fpm, scripts)
    example = run("-m", "maildiranasaurus", "serve", "-c", configuration, folder=EXAMPLES)
    refused = example.send("joe@example.com", "ann@example.com", "bob@example.com", "eve@example.com")
    assert {who: code for who, (code, _) in refused.items()} == {"bob@example.com": 550, "eve@example.com": 550}
    for place in (tmp_path / "joe/Maildir/new", tmp_path / "ann/Maildir/new", scripts / "mail"):
        (message,) = messages(place)
        assert message.endswith(MAIL)
    assert (tmp_path / "pid").read_text() == f"{example.process.pid}\n"
    example.stop()


def test_maildiranasaurus_keeps_nothing_that_the_script_has_not(
    run: Run, php_fpm: PhpFpm, scripts: Path, tmp_path: Path
) -> None:
    """When the script does not keep the message, the client is answered 451, and no Maildir has it."""
    configuration = dinosaur(tmp_path, php_fpm, scripts)
    (scripts / "mail").rmdir()
    example = run("-m", "maildiranasaurus", "serve", "-c", configuration, folder=EXAMPLES)
    with pytest.raises(smtplib.SMTPDataError, match="451"):
        example.send("joe@example.com")
    assert messages(tmp_path / "joe/Maildir/new") == []
    example.stop()


def test_maildiranasaurus_says_what_is_wrong(tmp_path: Path) -> None:
    """Without its configuration it ends with 1, and says so in a line; it has a version."""
    command = [sys.executable, "-m", "maildiranasaurus"]
    failed = subprocess.run(
        [*command, "serve", "-c", tmp_path / "none"], cwd=EXAMPLES, capture_output=True, text=True, check=False
    )
    assert failed.returncode == 1
    assert failed.stderr.count("\n") == 1
    assert str(tmp_path / "none") in failed.stderr
    said = subprocess.run([*command, "version"], cwd=EXAMPLES, capture_output=True, text=True, check=True)
    assert re.fullmatch(r"MailDiranasaurus, made of guerrilla [0-9.]+\n", said.stdout)


def test_the_sample_configuration_loads() -> None:
    """Nothing in it is wrong, and nothing is left unread."""
    config = load(SAMPLE, Registry().check)
    assert config.warnings == ()
    assert [server.tls.start_tls_on for server in config.servers] == [True, False]
    assert [server.tls.tls_always_on for server in config.servers] == [False, True]


def test_the_dead_keys_of_the_go_sample_are_reported() -> None:
    """A configuration that names its line as an old sample of the Go program does loads, and is told about each key."""
    values: dict[str, Any] = json.loads(SAMPLE.read_text()) | {"backend_name": "guerrilla-db-redis"}
    for dead, key in (("save_processors", "save_process"), ("validate_processors", "validate_process")):
        values["backend_config"][dead] = values["backend_config"].pop(key)
    config = parse(values, Registry().check)
    assert {"backend_name", "backend_config.save_processors", "backend_config.validate_processors"} <= {
        problem.place for problem in config.warnings
    }
