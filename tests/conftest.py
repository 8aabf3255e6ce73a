"""What all tests share: private servers, and pytest itself for the tests of plugins."""

from __future__ import annotations

import sys
from pathlib import Path

from hypothesis import settings

settings.register_profile("ours", deadline=None)  # no test is about time
settings.load_profile("ours")

# What tests share is imported under one name, by the interpreter as by mypy: tests.…
sys.path.insert(0, str(Path(__file__).parent.parent))

pytest_plugins = ["tests.private_servers", "pytester"]
