"""The pytest fixture ``guerrilla_server``: a running server, and the envelopes that it has received.

    def test_my_program_sends_mail(guerrilla_server):
        my_program.notify("it is done", smtp=(guerrilla_server.host, guerrilla_server.port))
        [envelope] = guerrilla_server.envelopes
        assert b"it is done" in envelope.data

It runs in a thread of its own on a free port of 127.0.0.1, so that the test may block. Pytest finds the plugin when
guerrilla is installed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from guerrilla.daemon import Daemon
from guerrilla.envelope import Envelope
from guerrilla.testing.recording import RecordingBackend


@dataclass(frozen=True, slots=True)
class RunningServer:
    """Where the server listens, and what it has received."""

    host: str
    port: int
    backend: RecordingBackend

    @property
    def envelopes(self) -> list[Envelope]:
        """The messages so far, in the order of their 250."""
        return self.backend.envelopes


@pytest.fixture
def guerrilla_server() -> Iterator[RunningServer]:
    """Give a running server that takes every message for any recipient."""
    backend = RecordingBackend()
    config = {
        "servers": [{"listen_interface": "127.0.0.1:0", "host_name": "mx.test"}],
        "allowed_hosts": ["."],
        "log_file": "off",
    }
    with Daemon(config, backend=backend).in_thread() as daemon:
        [(_, (host, port))] = daemon.addresses
        yield RunningServer(host, port, backend)
