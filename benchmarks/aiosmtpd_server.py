"""aiosmtpd on uvloop, with a handler that takes every message and does nothing with it: a program of its own.

    python -m benchmarks.aiosmtpd_server [--log FILE] [--max-size OCTETS]
                                         [--tls implicit|starttls --key FILE --certificate FILE]

It listens on a free port of 127.0.0.1, prints the port, and ends with SIGTERM. All settings are aiosmtpd's defaults.
With ``--log``, what it says at level info is written to that file, by Python's own ``logging.basicConfig``.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import ssl

import uvloop
from aiosmtpd.smtp import SMTP, Envelope, Session


class TakesAll:
    """The handler."""

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        """Take a message."""
        return "250 Taken"


async def serve(options: argparse.Namespace) -> None:
    """Serve until the task is cancelled."""
    context = None
    if options.tls:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(options.certificate, options.key)
    starttls = context if options.tls == "starttls" else None
    implicit = context if options.tls == "implicit" else None
    handler = TakesAll()

    def protocol() -> SMTP:
        return SMTP(handler, hostname="aiosmtpd", data_size_limit=options.max_size, tls_context=starttls)

    loop = asyncio.get_running_loop()
    server = await loop.create_server(protocol, "127.0.0.1", 0, ssl=implicit, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> None:
    """Read the command line, and serve."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--log")
    parser.add_argument("--max-size", type=int, default=33_554_432)
    parser.add_argument("--tls", choices=["implicit", "starttls"])
    parser.add_argument("--key")
    parser.add_argument("--certificate")
    options = parser.parse_args()
    if options.log:
        logging.basicConfig(filename=options.log, level=logging.INFO)
    uvloop.run(serve(options))


if __name__ == "__main__":
    main()
