"""What a supervisor does by itself: its processes do nothing but wait."""

from __future__ import annotations

import os
import signal

import pytest
from tests.test_processes import Multiplied, configuration, obedient

from guerrilla.config import AppConfig
from guerrilla.processes import Processes
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
