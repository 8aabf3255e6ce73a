"""The seed's own example runs unchanged on a real MariaDB and a real Redis, and the mail comes back octet for octet."""

from __future__ import annotations

import smtplib
import subprocess
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

from tests.private_servers import MariaDB, RedisServer

if TYPE_CHECKING:
    from tests.e2e.conftest import Launch

MAIL = b"Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\n\r\n.a dot\r\neight bits: \xe2\x82\xac\r\n" + b"x" * 70 + b"\r\n"


def test_the_example_keeps_mail_that_is_read_back(
    launch: Launch, tmp_path: Path, mariadb: MariaDB, redis: RedisServer
) -> None:
    database = mariadb.create_database()
    schema = subprocess.run(
        [f"{sysconfig.get_path('scripts')}/guerrillad", "schema-sql", "--driver", "mysql"],
        capture_output=True,
        text=True,
        check=True,
    )
    mariadb.sql(schema.stdout, database)
    daemon = launch(
        tmp_path,
        {
            "servers": [{"listen_interface": "127.0.0.1:0", "is_enabled": True}],
            "allowed_hosts": ["sharklasers.com"],
            "log_file": "stderr",
            "pid_file": str(tmp_path / "pid"),
            "backend_config": {
                "save_process": "HeadersParser|Debugger|Hasher|Header|Compressor|Redis|MySql",
                "save_workers_size": 1,
                "log_received_mails": True,
                "mysql_db": database,
                "mysql_host": f"127.0.0.1:{mariadb.port}",
                "mysql_pass": mariadb.password,
                "mysql_user": mariadb.user,
                "mail_table": "new_mail",
                "redis_interface": f"127.0.0.1:{redis.port}",
                "redis_expire_seconds": 7200,
                "primary_mail_host": "sharklasers.com",
            },
        },
    )
    with smtplib.SMTP("127.0.0.1", daemon.ports[0]) as client:
        client.ehlo()
        client.mail("grace@example.org")
        client.rcpt("a@sharklasers.com")
        code, text = client.data(MAIL)
    assert code == 250
    key = text.decode().rpartition(" ")[2]
    assert mariadb.sql(f"SELECT body, length(mail), `from` FROM new_mail WHERE hash = '{key}'", database).split() == [
        "redis",
        "0",
        "grace@example.org",
    ]
    read_back = subprocess.run(
        [f"{sysconfig.get_path('scripts')}/guerrillad", "cat", key, "-c", "conf.json"],
        cwd=tmp_path,
        capture_output=True,
        check=True,
    )
    assert read_back.stdout.startswith(b"Delivered-To: a@sharklasers.com\r\nReceived: from ")
    assert read_back.stdout.endswith(b"\r\n" + MAIL)
    assert daemon.stop() == 0
