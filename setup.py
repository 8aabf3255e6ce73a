"""Compiles what every message passes through, with mypyc; all else about the package is in pyproject.toml.

The compiled form is made of the same source, and of a few functions in C (``_scan.c``, ``server/_system_calls.c``). It
does the same, faster.
Where there is no C compiler, or Python's own header files are not installed, the package is built without it and runs
as it stands. ``GUERRILLA_COMPILE=0`` leaves it out too, and ``GUERRILLA_COMPILE=1`` makes its failure an error.
``guerrillad version`` says which form it is.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from mypyc.build import include_dir, mypycify
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError

PACKAGE = Path("src/guerrilla")
# Not among them are envelope and smtp.replies, the values that a processor is given, copies, derives from and prints:
# compiled, they do that otherwise, and would save one message in forty. Nor is backends.base: who writes a backend may
# derive it from Backend.
COMPILED = [
    "backends/deadlines.py",
    "backends/gateway.py",
    "backends/hooks.py",
    "backends/measure.py",
    "copy_keys.py",
    "counters.py",
    "event_bus.py",
    "header.py",
    "log_records.py",
    "server/connection.py",
    "server/limits.py",
    "server/listener.py",
    "server/policy.py",
    "server/questions.py",
    "server/spool.py",
    "server/turn.py",
    "server/wire.py",
    "server/witness.py",
    "smtp/address.py",
    "smtp/commands.py",
    "smtp/conversation.py",
    "smtp/data.py",
    "smtp/events.py",
    "smtp/hosts.py",
    "smtp/input.py",
    "smtp/patience.py",
    "smtp/proxy.py",
    "smtp/session.py",
    "smtp/settings.py",
    "smtp/transaction.py",
    "smtp/xclient.py",
    "stores/sql_letter.py",
    "stores/sql_values.py",
    "trace_header.py",
    "written.py",
]
WISH = os.environ.get("GUERRILLA_COMPILE", "")
# How a compiled coroutine hands an exception, mostly a cancellation, on to what it awaits; and how that is done from
# Python 3.12 on. There the first form is deprecated, and where warnings are errors, the warning took the place of the
# cancellation. To be left out when mypyc does it: https://github.com/mypyc/mypyc/issues/1214
THROW_OF_THREE = "PyObject_CallFunctionObjArgs(_m, type, value, traceback, NULL)"
THROW_OF_ONE = "PyObject_CallOneArg(_m, value)"


class BuildAllOrNothing(build_ext):
    """Builds the extensions; if one cannot be built, none is left, since each is of no use without the others."""

    def run(self) -> None:
        """Build them."""
        built = self.get_outputs()
        try:
            super().run()
        except (BaseError, CCompilerError) as error:
            if WISH == "1":
                raise
            self.warn(f"guerrilla is not compiled, and runs as it stands: {error}")
            for path in built:
                Path(path).unlink(missing_ok=True)
            self.extensions.clear()


def mended_runtime() -> list[str]:
    """Return the directories to search before that of mypyc's own runtime: that of its file with the newer call."""
    if sys.version_info < (3, 12):
        return []
    name = "misc_ops.c"
    text = (Path(include_dir()) / name).read_text(encoding="utf-8")
    if THROW_OF_THREE not in text:  # a mypyc that does it otherwise: a test says if that is not well
        return []
    directory = Path("build/mypyc-runtime")
    directory.mkdir(parents=True, exist_ok=True)
    (directory / name).write_text(text.replace(THROW_OF_THREE, THROW_OF_ONE), encoding="utf-8")
    return [str(directory)]


def extensions() -> list[object]:
    """Translate the modules to C. What they import is not there yet, and its types are not needed."""
    options = ["--config-file=", "--ignore-missing-imports"]
    paths = [str(PACKAGE / name) for name in COMPILED]
    try:
        # What is smaller is faster here: a message passes through more code than the processor's cache holds.
        built = mypycify([*options, *paths], opt_level="2", debug_level="0", group_name="guerrilla")
    except SystemExit as error:  # it finds a type wrong: a later mypy may know more than the one that we had
        if WISH == "1":
            raise
        sys.stderr.write(f"guerrilla is not compiled, and runs as it stands: {error}\n")
        return []
    runtime = mended_runtime()
    for extension in built:
        extension.include_dirs = [*runtime, *extension.include_dirs]
    if sys.platform == "linux":  # calls that go straight to where they lead, there and here
        for extension in built:
            # Not +=: all of them share one list.
            extension.extra_compile_args = [*extension.extra_compile_args, "-fno-plt", "-fno-semantic-interposition"]
    optimized = [] if sys.platform == "win32" else ["-O3"]
    by_hand = [Extension("guerrilla._scan", [f"{PACKAGE}/_scan.c"], extra_compile_args=optimized)]
    if sys.platform == "linux":
        by_hand.append(Extension("guerrilla.server._system_calls", [f"{PACKAGE}/server/_system_calls.c"]))
    return [*built, *by_hand]


setup(ext_modules=[] if WISH == "0" else extensions(), cmdclass={"build_ext": BuildAllOrNothing})
