"""FastCGI in both lines: two PHP scripts beside this program know the recipients and keep the mail.

python examples/fastcgi_server.py /run/php/php-fpm.sock
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from guerrilla import Daemon

SCRIPTS = Path(__file__).resolve().parent


def configuration(socket: str, listen: str) -> dict[str, Any]:
    """Return the configuration: the keys of the file, as a dict."""
    return {
        "servers": [{"listen_interface": listen}],
        "allowed_hosts": ["."],
        "backend_config": {
            "save_process": "HeadersParser|Hasher|Header|FastCGI",
            "validate_process": "FastCGI",
            "fcgi_script_filename_save": str(SCRIPTS / "save.php"),
            "fcgi_script_filename_validate": str(SCRIPTS / "validate.php"),
            "fcgi_connection_type": "unix",
            "fcgi_connection_address": socket,
        },
    }


def main() -> None:
    """Receive mail until SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("socket", help="the Unix socket of php-fpm")
    parser.add_argument("--listen", default="127.0.0.1:2525", help="address and port, default 127.0.0.1:2525")
    arguments = parser.parse_args()
    Daemon(configuration(arguments.socket, arguments.listen)).run()


if __name__ == "__main__":
    main()
