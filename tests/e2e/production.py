"""What the tests of a daemon in production share: its configuration, and a client that waits for each reply."""

from __future__ import annotations

import socket
import ssl
from typing import TYPE_CHECKING, Any, Final

from tests.e2e.messages import envelope_of, recipients_of

if TYPE_CHECKING:
    from tests.e2e.conftest import KeyPair

SOON: Final = 30.0
"""Seconds after which what a client waits for is taken to never come."""


def config(**changes: Any) -> dict[str, Any]:
    """Return a configuration that keeps mail in one database, and logs to a file."""
    base: dict[str, Any] = {
        "servers": [{"listen_interface": "127.0.0.1:0"}],
        "allowed_hosts": ["example.com"],
        "log_file": "guerrillad.log",
        "pid_file": "guerrillad.pid",
        "control_socket": "control",
        "backend_config": {"save_process": "HeadersParser|Hasher|Header|Sql"},
    }
    return base | changes


class Client:
    """A client that waits for each reply. ``with`` closes it."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), SOON)
        self._replies = self._socket.makefile("rb")
        self.port: int = self._socket.getsockname()[1]

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._replies.close()
        self._socket.close()

    def secure(self, pair: KeyPair) -> None:
        """Shake hands."""
        context = ssl.create_default_context(cafile=pair.certificate)
        self._replies.close()
        self._socket = context.wrap_socket(self._socket, server_hostname="localhost")
        self._replies = self._socket.makefile("rb")

    def send(self, octets: bytes) -> None:
        self._socket.sendall(octets)

    def code(self) -> str:
        """Return the code of the next reply; empty at the end of the connection."""
        try:
            while (line := self._replies.readline())[3:4] == b"-":
                pass
        except ConnectionResetError:
            return ""
        return line[:3].decode()

    def hears(self, *codes: str) -> None:
        """Check the codes of the next replies."""
        for code in codes:
            assert (heard := self.code()) == code, f"{code!r} is meant, {heard!r} came"

    def says(self, octets: bytes, *codes: str) -> None:
        """Send, and check the codes of the replies."""
        self.send(octets)
        self.hears(*codes)

    def begins(self, message_id: str) -> None:
        """Greet, and send the commands before the content."""
        self.hears("220")
        self.says(b"EHLO client.test\r\n", "250")
        self.says(envelope_of(message_id), "250", *["250"] * len(recipients_of(message_id)))


def is_closed(port: int) -> bool:
    """Tell whether a new client is refused.

    One that a process accepts before it has heard is no such client, nor one that comes while the socket is closed.
    """
    try:
        socket.create_connection(("127.0.0.1", port), SOON).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        pass
    return False
