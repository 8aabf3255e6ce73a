"""MailDir in both lines: recipients who have a Maildir are accepted, and their mail goes there.

mkdir -p mail/joe/Maildir
python examples/maildir_server.py mail
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from guerrilla import Daemon


def configuration(folder: Path, listen: str) -> dict[str, Any]:
    """Return the configuration: the keys of the file, as a dict."""
    return {
        "servers": [{"listen_interface": listen}],
        "allowed_hosts": ["."],
        "backend_config": {
            "save_process": "HeadersParser|Hasher|Header|MailDir",
            "validate_process": "MailDir",
            "maildir_path": f"{folder.absolute()}/[user]/Maildir",
        },
    }


def main() -> None:
    """Receive mail until SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the folder with a folder for each user")
    parser.add_argument("--listen", default="127.0.0.1:2525", help="address and port, default 127.0.0.1:2525")
    arguments = parser.parse_args()
    Daemon(configuration(arguments.folder, arguments.listen)).run()


if __name__ == "__main__":
    main()
