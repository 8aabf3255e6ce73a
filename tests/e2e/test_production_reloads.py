"""The program that watches a daemon through many reloads, for a few: that it works, and finds nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("processes", [1, 2])
def test_reloads_of_all_that_can_change_disturb_no_client_lose_nothing_and_leave_nothing(processes: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.steady", "--reloads", "6", "--processes", str(processes)],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout
    assert "good: nobody was disturbed" in done.stdout
