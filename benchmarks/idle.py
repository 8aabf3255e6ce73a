"""Holds connections that say EHLO and then nothing.

    python -m benchmarks.idle PORT CONNECTIONS

It prints how many it holds once all have been greeted and answered, and lets go of them when its input ends. They come
from several addresses of the loopback network, so that the ports of one do not run out.
"""

from __future__ import annotations

import resource
import socket
import sys
from typing import Final

ANSWER_SECONDS: Final = 20.0
PER_ADDRESS: Final = 5_000
SPARE: Final = 64
"""Descriptors that are needed beside those of the connections."""


def hold(port: int, number: int) -> socket.socket:
    """Open one connection, the number says from where, and bring it to rest. Raises OSError."""
    client = socket.socket()
    client.settimeout(ANSWER_SECONDS)
    client.bind((f"127.0.0.{2 + number // PER_ADDRESS}", 0))
    client.connect(("127.0.0.1", port))
    _answer(client, b"220")
    client.sendall(b"EHLO client.test\r\n")
    _answer(client, b"250")
    return client


def _answer(client: socket.socket, code: bytes) -> None:
    received = b""
    while not received.endswith(b"\r\n") or received[received.rfind(b"\n", 0, -1) + 1 :][3:4] == b"-":
        octets = client.recv(4096)
        received += octets
        if not octets:
            raise OSError(f"the server closed the connection after {received!r}")
    if not received.startswith(code):
        raise OSError(f"the server answered {received!r}")


def main() -> None:
    """Hold the connections until the input ends."""
    port, connections = map(int, sys.argv[1:])
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most < connections + SPARE:
        sys.exit(f"idle: the system allows {most} descriptors, meant: {connections + SPARE} (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        held = [hold(port, number) for number in range(connections)]
    except OSError as error:
        sys.exit(f"idle: {error}")
    print(len(held), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
