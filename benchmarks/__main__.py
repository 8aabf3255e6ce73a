"""Measure the server beside others, print one table, and write it as JSON and as a picture.

    python -m benchmarks [--quick] [--rounds N] [--only NAME…] [--folder FOLDER] [--output FOLDER]

Run it in the project's folder. What the figures mean is in README.md beside this file.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import FrameType

from benchmarks import burden, latency, rates, tls
from benchmarks.goals import verdicts
from benchmarks.measure import Extent, Results, Scenario, measure
from benchmarks.picture import draw
from benchmarks.report import as_json, machine, table
from benchmarks.servers import BenchmarkError

RESULTS = Path(__file__).parent / "results"
PANELS = {
    "kept": "2 kB, connections kept",
    "each": "2 kB, a connection each",
    "large": "100 kB, connections kept",
}


def everything() -> dict[str, Scenario]:
    """Return all scenarios by their names, in the order in which they are measured."""
    found = [*rates.scenarios(), *tls.scenarios(), *latency.scenarios(), *burden.scenarios()]
    return {scenario.name: scenario for scenario in found}


def arguments(names: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="of each scenario (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="one round, a tenth of the messages: about a minute")
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=f"of {', '.join(names)}")
    parser.add_argument("--folder", help="where logs, databases and spool files are put and removed again (/tmp)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where JSON and picture go (%(default)s)")
    options = parser.parse_args()
    if not 1 <= options.rounds <= 100:
        parser.error("meant: 1 to 100 rounds")
    if not options.output.is_dir():
        parser.error(f"there is no folder {options.output}")
    return options


def main() -> None:
    """Measure what the command line says, and tell."""
    scenarios = everything()
    options = arguments(list(scenarios))
    if options.folder:
        tempfile.tempdir = options.folder
    extent = Extent(1 if options.quick else options.rounds, quick=options.quick)
    chosen = [scenarios[name] for name in options.only or scenarios]
    signal.signal(signal.SIGTERM, _end)
    described, results, failure = machine(extent), Results(), ""
    try:
        measure(chosen, extent, results, lambda what: _say(f"\r\033[K{what}"))
    except (BenchmarkError, OSError, subprocess.SubprocessError) as error:
        failure = f"this cannot be measured: {error}"
    except KeyboardInterrupt:
        failure = "given up"
    judged = list(verdicts(results))
    _say("\r\033[K")
    print(table(described, chosen, results, judged))
    if failure:
        sys.exit(f"\n{failure}")
    # Only a full run is worth keeping under the name that documents point to.
    name = "quick" if options.quick or options.only else "bench"
    (options.output / f"{name}.json").write_text(as_json(described, results, judged) + "\n")
    title = "Messages per second of the server's processor time"
    (options.output / f"{name}.svg").write_text(draw(results, PANELS, title=title))
    print(f"\nwritten: {options.output / name}.json and .svg")


def _say(what: str) -> None:
    print(what, end="", file=sys.stderr, flush=True)


def _end(number: int, frame: FrameType | None) -> None:
    """End what was started before this process ends, as Ctrl-C does."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
