"""Test doubles for those who build on guerrilla, used by its own tests: nothing here opens a socket by itself."""

from guerrilla.testing.contract import processor_contract
from guerrilla.testing.custody import Subject
from guerrilla.testing.dialogue import Dialogue, OpenHouse
from guerrilla.testing.recording import RecordingBackend

__all__ = ["Dialogue", "OpenHouse", "RecordingBackend", "Subject", "processor_contract"]
