"""What a supervisor does by itself: its processes do nothing but wait."""

from __future__ import annotations

import os
import signal
from collections.abc import Container

import pytest
from tests.test_processes import Multiplied, configuration, obedient

from guerrilla.config import AppConfig
from guerrilla.generation import Place, StartError
from guerrilla.processes import Process, Processes
from guerrilla.supervisor import Supervisor


def test_the_sockets_are_closed_before_the_processes_that_take_who_still_waits_are_told_to_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[str] = []

    class WithSockets(Multiplied):
        def close_sockets(self, config: AppConfig | None) -> None:
            done.append(f"closed but for {config}")

    def leave_all(processes: Processes) -> None:
        done.append("told to end")
        really(processes)

    really = Processes.leave_all
    monkeypatch.setattr(Processes, "leave_all", leave_all)
    config = configuration("127.0.0.1:1")
    supervisor = Supervisor(WithSockets(config), count=2, work=obedient, read_config=lambda: config)
    supervisor.run(on_started=lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert done == ["closed but for None", "told to end"]


class Recorded(Multiplied):
    """One whose steps are written down."""

    def __init__(self, config: AppConfig, steps: list[object]) -> None:
        super().__init__(config)
        self._steps = steps

    def close_sockets(self, config: AppConfig | None) -> None:
        self._steps.append(config)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What was done, in its order."""
    steps: list[object] = []

    def end_servers(processes: Processes, staying: Container[Place]) -> None:
        steps.append("what has ended is known")
        end(processes, staying)

    def leave(processes: Processes, process: Process) -> None:
        steps.append("told to leave")
        really(processes, process)

    end, really = Processes.end_servers, Processes.leave
    monkeypatch.setattr(Processes, "end_servers", end_servers)
    monkeypatch.setattr(Processes, "leave", leave)
    return steps


def supervise(daemon: Recorded, config: AppConfig) -> None:
    """Run two processes, have the configuration loaded, and end them."""
    Supervisor(
        daemon,
        count=2,
        work=obedient,
        read_config=lambda: config,
        on_reload=lambda begins: None if begins else os.kill(os.getpid(), signal.SIGTERM),
    ).run(on_started=lambda: os.kill(os.getpid(), signal.SIGHUP))


def test_at_a_reload_that_removes_a_server_its_sockets_are_closed_before_the_last_of_the_old_processes_is_told_to_leave(
    steps: list[object],
) -> None:
    less = configuration("127.0.0.1:1")
    supervise(Recorded(configuration("127.0.0.1:1", "127.0.0.1:2"), steps), less)
    assert steps[:5] == ["told to leave", less, "what has ended is known", "told to leave", less]


def test_when_a_reload_cannot_hold_the_sockets_that_it_has_opened_are_closed_before_its_process_is_told_to_leave(
    steps: list[object],
) -> None:
    class Unmovable(Recorded):
        def watch(self) -> None:
            raise StartError("the pid file cannot be moved")

    before, more = configuration("127.0.0.1:1"), configuration("127.0.0.1:1", "127.0.0.1:2")
    supervise(Unmovable(before, steps), more)
    assert steps[:3] == [before, "what has ended is known", "told to leave"]
