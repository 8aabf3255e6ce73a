"""FunkyLogger: a processor with a configuration of its own, and a program that puts it into both lines.

python examples/funky_logger.py
"""

from __future__ import annotations

import argparse
from typing import Any

from guerrilla import CallNext, Daemon, Envelope, Field, Processor, ProcessorConfig, Reply


class FunkyLoggerConfig(ProcessorConfig):
    """The keys of FunkyLogger."""

    funky_text: str = Field(default="Get on up", description="What is logged.")


class FunkyLogger(Processor[FunkyLoggerConfig]):
    """Logs a funky line for each recipient that is asked about, and for each message."""

    async def validate_rcpt(self, envelope: Envelope, call_next: CallNext) -> Reply:
        """Log the recipient in question, which is the last one."""
        self.log.info(self.config.funky_text, task="validate recipient", recipient=str(envelope.rcpt_to[-1]))
        return await call_next()

    async def save_mail(self, envelope: Envelope, call_next: CallNext) -> Reply:
        """Log the message."""
        self.log.info(self.config.funky_text, task="save mail", sender=str(envelope.mail_from), size=len(envelope))
        return await call_next()


def configuration(listen: str) -> dict[str, Any]:
    """Return the configuration: the keys of the file, as a dict."""
    return {
        "servers": [{"listen_interface": listen}],
        "allowed_hosts": ["."],
        "backend_config": {
            "save_process": "HeadersParser|FunkyLogger|Hasher|Header|Sql",
            "validate_process": "FunkyLogger",
            "funky_text": "We want the funk",
        },
    }


def main() -> None:
    """Receive mail until SIGTERM or Ctrl-C; it is kept in guerrilla.db, in the working folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen", default="127.0.0.1:2525", help="address and port, default 127.0.0.1:2525")
    daemon = Daemon(configuration(parser.parse_args().listen))
    daemon.add_processor("FunkyLogger", FunkyLogger)
    daemon.run()


if __name__ == "__main__":
    main()
