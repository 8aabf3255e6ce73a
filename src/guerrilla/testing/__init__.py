"""Test doubles for those who build on guerrilla, used by its own tests: nothing here opens a socket by itself."""

from guerrilla.testing.dialogue import Dialogue, OpenHouse

__all__ = ["Dialogue", "OpenHouse"]
