"""What proc(5) tells of a process and of all that it has started: processor time, and memory; and where they run.

Also how one is ended.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

END_SECONDS = 15.0
"""How long a process may take to end by itself before it is killed."""


def cpu_seconds(pid: int) -> dict[int, float]:
    """Return the seconds, user and system, that the process and each that it has started have used so far.

    What has ended is counted where it was started. The grain is 10 ms. Raises FileNotFoundError when there is no such
    process.
    """
    if not Path(f"/proc/{pid}").exists():
        raise FileNotFoundError(f"there is no process {pid}")
    return {each: _ticks(each) / os.sysconf("SC_CLK_TCK") for each in family(pid)}


def resident(pid: int, *, peak: bool = False) -> int:
    """Return the octets of memory that the process has now, or had at most: VmRSS, VmHWM."""
    return memory_field(Path(f"/proc/{pid}/status").read_text(), "VmHWM" if peak else "VmRSS")


def memory_field(status: str, name: str) -> int:
    """Read a field of /proc/PID/status that is in kB, and return octets."""
    for line in status.splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) * 1024
    raise ValueError(f"no {name} in the status of the process")


def family(pid: int) -> list[int]:
    """List the process, those that it has started, and those that these have."""
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        fields = stat_fields(int(folder.name))
        if fields:
            parents.setdefault(int(fields[1]), []).append(int(folder.name))
    found = [pid]
    for each in found:
        found += parents.get(each, [])
    return found


def stat_fields(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the third (state) on; none when the process has gone."""
    try:
        # "pid (name) state parent …", and the name may hold anything.
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _ticks(pid: int) -> int:
    """Add up utime, stime, and those of the children that have ended."""
    return sum(map(int, stat_fields(pid)[11:15]))


@contextmanager
def on_one_core() -> Iterator[None]:
    """Let this process, and all that it starts meanwhile, share one core, and give it away only when they wait."""
    cores, policy = os.sched_getaffinity(0), os.sched_getscheduler(0)
    os.sched_setaffinity(0, {max(cores)})
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, os.sched_param(0))
        os.sched_setaffinity(0, cores)


@contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """End the process when the block is left, however it is left: with SIGTERM, and after a while with SIGKILL."""
    try:
        yield process
    finally:
        process.terminate()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
