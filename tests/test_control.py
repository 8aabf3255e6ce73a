"""The control socket: where it is, whose it is, and that nothing a client does harms the daemon."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.control_server import answering, run_folder

from guerrilla import control
from guerrilla.config import AppConfig, load
from guerrilla.control import (
    ControlError,
    ControlSocket,
    ask,
    close_control,
    control_path,
    default_path,
    open_control,
)

__all__ = ["run_folder"]

DEADLINE = 20


@pytest.fixture
def path(run_folder: Path) -> Path:
    return run_folder / "c.sock"


@pytest.fixture
def listening(path: Path) -> Iterator[ControlSocket]:
    opened = open_control(path)
    yield opened
    close_control(opened, path)


def echo(request: dict[str, Any]) -> dict[str, Any]:
    return {"ok": True, "asked": request}


# Where it is


@pytest.fixture
def nobody_says_where(monkeypatch: pytest.MonkeyPatch, run_folder: Path) -> Path:
    """Be a user whose temporary folder is an empty one, without run folders in the environment."""
    for name in ("RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(run_folder))
    return run_folder


def be_user(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: number)


def own_folder(temporary: Path) -> Path:
    return temporary / f"guerrilla-{os.geteuid()}"


def test_off_is_no_socket() -> None:
    assert control_path(AppConfig(control_socket="off")) is None


def test_a_path_in_the_configuration_is_the_path() -> None:
    assert control_path(AppConfig(control_socket="/a/b.sock")) == Path("/a/b.sock")


def test_the_first_run_folder_of_systemd_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/first:/run/second")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert default_path(None).parent == Path("/run/first")


def test_root_has_it_in_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/0")
    be_user(0, monkeypatch)
    assert default_path(None).parent == Path("/run/guerrilla")


def test_a_user_has_it_in_the_own_run_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    be_user(7, monkeypatch)
    assert default_path(None).parent == Path("/run/user/7/guerrilla")


def as_somebody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the way of those who are not root, whoever runs the tests; what is made is theirs all the same."""
    if os.geteuid() == 0:
        monkeypatch.setattr(os, "geteuid", _TakesTurns().user)


class _TakesTurns:
    """Says first that it is somebody, and then root."""

    def __init__(self) -> None:
        self._asked = 0

    def user(self) -> int:
        self._asked += 1
        return 7 if self._asked == 1 else 0


def test_without_a_run_folder_a_private_one_is_made_in_the_temporary_folder(
    nobody_says_where: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = own_folder(nobody_says_where)
    as_somebody(monkeypatch)
    assert default_path(None).parent == folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_the_private_folder_is_used_again(nobody_says_where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = own_folder(nobody_says_where)
    folder.mkdir(0o700)
    as_somebody(monkeypatch)
    assert default_path(None).parent == folder


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda folder: (folder.mkdir(), folder.chmod(0o755)), "a folder of user"),
        (lambda folder: folder.symlink_to("/"), "something else of user"),
        (lambda folder: folder.touch(), "something else of user"),
    ],
    ids=["open to others", "a link", "a file"],
)
def test_what_is_not_ours_alone_is_no_run_folder(
    nobody_says_where: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], object], found: str
) -> None:
    make(own_folder(nobody_says_where))
    as_somebody(monkeypatch)
    with pytest.raises(ControlError, match=rf"{found}.*meant: a folder of user \d+ with mode 0700"):
        default_path(None)


def test_somebody_elses_folder_is_no_run_folder(nobody_says_where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    us, them = os.geteuid(), os.geteuid() + 1
    (nobody_says_where / f"guerrilla-{them}").mkdir(0o700)
    be_user(them, monkeypatch)
    with pytest.raises(ControlError, match=f"found at .*: a folder of user {us} with mode 0700; meant: .*user {them} "):
        default_path(None)


def test_a_run_folder_that_cannot_be_made_is_told(nobody_says_where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(nobody_says_where / "missing"))
    as_somebody(monkeypatch)
    with pytest.raises(ControlError, match=r"cannot make the run folder .*: No such file or directory"):
        default_path(None)


def test_each_configuration_has_its_own_name(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/x")
    monkeypatch.chdir(run_folder)
    for name in ("one.json", "two.json"):
        Path(name).write_text("{}")
    paths = {control_path(load("one.json")), control_path(load("two.json")), control_path(AppConfig.embedded())}
    assert len(paths) == 3
    assert control_path(load(run_folder / "one.json")) == control_path(load("one.json"))
    assert control_path(AppConfig.embedded()) == default_path(run_folder)


# The side of the daemon


def test_only_its_user_can_open_the_socket(run_folder: Path) -> None:
    path = run_folder / "made" / "c.sock"
    mask = os.umask(0o022)
    try:
        listening = open_control(path)
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(mask)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    close_control(listening, path)
    assert not path.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give something away")
def test_socket_and_new_folder_are_those_of_the_user_that_root_will_be(path: Path) -> None:
    def owner(of: Path) -> tuple[int, int]:
        return of.stat().st_uid, of.stat().st_gid

    below = path.parent / "new" / "c.sock"
    for opened in (path, below):
        close_control(open_control(opened, (65534, 12345)), Path("elsewhere"))
    assert owner(path) == owner(below) == owner(below.parent) == (65534, 12345)
    assert owner(path.parent) == (0, 0), "a folder that was there stays as it was"
    assert stat.S_IMODE(below.parent.stat().st_mode) == 0o700


def test_a_socket_that_nobody_listens_at_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(path))
    with answering(path, echo):
        assert ask(path, "stats", DEADLINE) == {"ok": True, "asked": {"command": "stats"}}


def test_a_daemon_that_runs_keeps_its_socket(path: Path) -> None:
    with answering(path, echo):
        with pytest.raises(ControlError, match=r"another guerrillad is running and listens at .*c\.sock"):
            open_control(path)
        assert ask(path, "stats", DEADLINE)["ok"]


def test_a_daemon_that_is_asked_by_many_keeps_its_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
        busy.bind(str(path))
        busy.listen(0)
        waiting.connect(str(path))
        with pytest.raises(ControlError, match="another guerrillad is running"):
            open_control(path)
        with pytest.raises(ControlError, match=r"gave no answer within 0\.1 s"):
            ask(path, "stats", 0.1)


def test_a_file_in_the_place_of_the_socket_stays(path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(ControlError, match="something that is no socket; meant: a free path"):
        open_control(path)
    assert path.read_text() == "precious"


def test_a_path_that_is_too_long_is_told(run_folder: Path) -> None:
    with pytest.raises(ControlError, match="longer than the 107 octets"):
        open_control(run_folder / ("x" * 108))


@pytest.mark.parametrize("name", ["a\0b", "file/c.sock"])
def test_a_path_that_cannot_be_is_told(run_folder: Path, name: str) -> None:
    (run_folder / "file").touch()
    with pytest.raises(ControlError, match=r"cannot listen at .*: "):
        open_control(run_folder / name)


def test_a_socket_that_cannot_be_bound_is_closed(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_remove_stale", lambda path: None)
    (run_folder / "c.sock").touch()
    with pytest.raises(ControlError, match=r"cannot listen at .*: Address already in use"):
        open_control(run_folder / "c.sock")


def test_another_daemons_socket_is_not_removed(path: Path) -> None:
    first = open_control(path)
    path.unlink()
    second = open_control(path)
    close_control(first, path)
    assert path.exists()
    close_control(second, path)
    close_control(second, path)
    assert not path.exists()


# The side of the client


def test_a_socket_that_is_not_there_is_told(path: Path) -> None:
    with pytest.raises(ControlError, match=r"there is no socket .*c\.sock: is guerrillad running"):
        ask(path, "stats", DEADLINE)


def test_a_socket_that_nobody_listens_at_is_told(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(path))
        with pytest.raises(ControlError, match=r"nobody listens at .*c\.sock: guerrillad is not running"):
            ask(path, "stats", DEADLINE)


def test_a_path_that_is_none_is_told(run_folder: Path) -> None:
    with pytest.raises(ControlError, match=r"cannot ask at .*: AF_UNIX path too long"):
        ask(run_folder / ("x" * 108), "stats", DEADLINE)
    (run_folder / "file").touch()
    with pytest.raises(ControlError, match=r"cannot ask at .*: Not a directory"):
        ask(run_folder / "file" / "c.sock", "stats", DEADLINE)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may all")
def test_a_socket_that_may_not_be_opened_is_told(listening: ControlSocket, path: Path) -> None:  # pragma: no cover
    path.chmod(0)
    with pytest.raises(
        ControlError, match=r"permission denied at .*; meant: the user that guerrillad runs as, or root"
    ):
        ask(path, "stats", DEADLINE)


def test_no_permission_is_told_with_who_has_it(path: Path) -> None:
    told = control._unanswered(path, PermissionError(13, "Permission denied"), DEADLINE)
    assert told == f"permission denied at {path}; meant: the user that guerrillad runs as, or root"


def test_an_answer_that_does_not_come_is_told(listening: ControlSocket, path: Path) -> None:
    with pytest.raises(ControlError, match=r"gave no answer within 0\.05 s"):
        ask(path, "stats", 0.05)


@pytest.mark.parametrize(
    ("octets", "told"),
    [
        (b"", "ended the connection before its answer was whole"),
        (b'{"ok": true', "ended the connection before its answer was whole"),
        (b"[]\n", r"what came from .*c\.sock is no JSON object"),
    ],
)
def test_an_answer_that_is_none_is_told(path: Path, octets: bytes, told: str) -> None:
    def serve(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(octets)

    with socket.socket(socket.AF_UNIX) as listening:
        listening.settimeout(DEADLINE)
        listening.bind(str(path))
        listening.listen()
        thread = threading.Thread(target=serve, args=(listening,))
        thread.start()
        with pytest.raises(ControlError, match=told):
            ask(path, "stats", DEADLINE)
        thread.join(DEADLINE)
