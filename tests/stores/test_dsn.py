"""DSNs in the forms of Go's drivers, and URLs, say where a database is; what they cannot mean is refused."""

from __future__ import annotations

import ssl
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guerrilla.stores.dsn import Dsn, kind_of, mysql_dsn, read_dsn


def parts(dsn: Dsn) -> tuple[str | None, object, str | None, int | None, str | None, dict[str, object]]:
    """User, password, host, port, database, and the rest of the URL."""
    password = dsn.connect_args.get("password")
    if isinstance(password, bytes):
        password = password.decode()
    return dsn.url.username, password, dsn.url.host, dsn.url.port, dsn.url.database, dict(dsn.url.query)


@pytest.mark.parametrize(
    ("dsn", "expected"),
    [
        ("root:ok@tcp(127.0.0.1:3306)/gmail_mail", ("root", "ok", "127.0.0.1", 3306, "gmail_mail", {})),
        ("root:ok@tcp(127.0.0.1)/mail?readTimeout=10s&writeTimeout=10s", ("root", "ok", "127.0.0.1", 3306, "mail", {})),
        ("u:p@ss:w/rd%1(@tcp([::1]:33)/mail", ("u", "p@ss:w/rd%1(", "::1", 33, "mail", {})),
        ("u@unix(/run/my.sock)/mail", ("u", None, None, None, "mail", {"unix_socket": "/run/my.sock"})),
        ("u:pä@/my%2Fmail", ("u", "pä", "127.0.0.1", 3306, "my/mail", {})),
        ("/", (None, None, "127.0.0.1", 3306, None, {})),
        ("mysql://u:p%40w@db1:33/mail?charset=utf8", ("u", "p@w", "db1", 33, "mail", {})),
        ("mariadb+asyncmy://u@db1/mail", ("u", None, "db1", None, "mail", {})),
        ("mysql+pymysql://u@/mail?unix_socket=/s", ("u", None, None, None, "mail", {"unix_socket": "/s"})),
        ("u@/m?parseTime=true&loc=US%2FPacific&charset=utf8mb4,utf8", ("u", None, "127.0.0.1", 3306, "m", {})),
    ],
)  # fmt: skip
def test_mysql(dsn: str, expected: tuple[object, ...]) -> None:
    """Go's DSN has its password as it is, a URL has it quoted; Go's own parameters are read over."""
    read = read_dsn("mysql", dsn)
    assert parts(read) == expected
    assert read.url.drivername == "mysql+asyncmy"


def test_mysql_parameters() -> None:
    """Time limits, TLS and the session's variables are taken from the parameters."""
    dsn = read_dsn("mysql", "u@/m?timeout=1m30s&readTimeout=500ms&tls=skip-verify&innodb_lock_wait_timeout=7")
    assert (dsn.connect_seconds, dsn.answer_seconds) == (90.0, 0.5)
    context = dsn.connect_args["ssl"]
    assert isinstance(context, ssl.SSLContext)
    assert not context.check_hostname
    assert dsn.connect_args["init_command"].endswith("', SESSION innodb_lock_wait_timeout = 7")
    context = read_dsn("mysql", "u@/m?tls=true").connect_args["ssl"]
    assert context.check_hostname
    assert "ssl" not in read_dsn("mysql", "u@/m?tls=false").connect_args


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1:3306", ("127.0.0.1", 3306, {})),
        ("db1", ("db1", 3306, {})),
        ("[::1]:33", ("::1", 33, {})),
        ("/run/mysqld/mysqld.sock", (None, None, {"unix_socket": "/run/mysqld/mysqld.sock"})),
    ],
)
def test_mysql_in_parts(host: str, expected: tuple[object, ...]) -> None:
    """The older keys make the same; the host may be a path."""
    user, password, *rest = parts(mysql_dsn(host, "root", "o/k@", "mail"))
    assert (user, password, rest) == ("root", "o/k@", [*expected[:2], "mail", expected[2]])


@pytest.mark.parametrize(
    ("dsn", "expected"),
    [
        ("host=db1 user=u password=p dbname=m", ("u", "p", "db1", 5432, "m", {})),
        (r" user = u  password='it\'s \\ here' port=33 ", ("u", r"it's \ here", "localhost", 33, None, {})),
        (r"password=a\ b user=''", (None, "a b", "localhost", 5432, None, {})),
        ("host=/run/postgresql user=u", ("u", None, None, None, None, {"host": "/run/postgresql", "port": "5432"})),
        ("postgres://u:p%40w@db1:33/m?sslmode=disable", ("u", "p@w", "db1", 33, "m", {})),
        ("postgresql+asyncpg://postgres:p@/m", ("postgres", "p", "localhost", 5432, "m", {})),
        ("postgres://u@/m?host=/tmp&port=33", ("u", None, None, None, "m", {"host": "/tmp", "port": "33"})),
    ],
)
def test_postgres(dsn: str, expected: tuple[object, ...]) -> None:
    """The forms of lib/pq: words with quoted values, and URLs."""
    read = read_dsn("postgres", dsn)
    assert parts(read) == expected
    assert read.url.drivername == "postgresql+asyncpg"


@pytest.mark.parametrize(
    ("dsn", "mode"),
    [
        ("host=db1", "require"),
        ("host=/tmp", False),
        ("host=db1 sslmode=disable", False),
        ("host=db1 sslmode=prefer", "prefer"),
        ("postgres://db1/m", "require"),
        ("postgresql+asyncpg://db1/m", "prefer"),
    ],
)
def test_postgres_tls(dsn: str, mode: object) -> None:
    """TLS is required unless the DSN says otherwise, as with lib/pq; SQLAlchemy's own form has its own default."""
    assert read_dsn("postgres", dsn).connect_args["ssl"] == mode


def test_postgres_tls_verified() -> None:
    """verify-full checks certificate and name, verify-ca the certificate alone."""
    full = read_dsn("postgres", "sslmode=verify-full").connect_args["ssl"]
    ca = read_dsn("postgres", "sslmode=verify-ca").connect_args["ssl"]
    assert (full.verify_mode, full.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert (ca.verify_mode, ca.check_hostname) == (ssl.CERT_REQUIRED, False)


def test_postgres_parameters() -> None:
    """Time limit and settings are taken over; parameters that mean nothing here are read over."""
    dsn = read_dsn("pgx", "connect_timeout=3 search_path=mail application_name='g' binary_parameters=yes")
    assert dsn.connect_seconds == dsn.connect_args["timeout"] == 3.0
    assert dsn.connect_args["server_settings"] == {"search_path": "mail", "application_name": "g"}


@pytest.mark.parametrize(
    ("dsn", "path"),
    [
        ("guerrilla.db", "guerrilla.db"),
        ("/var/mail/a b.db", "/var/mail/a b.db"),
        ("sqlite:///mail.db", "mail.db"),
        ("sqlite:////var/mail.db", "/var/mail.db"),
        ("sqlite+aiosqlite:///mail.db", "mail.db"),
        ("file:mail.db?cache=shared&mode=rwc&_journal_mode=WAL", "mail.db"),
    ],
)
def test_sqlite(dsn: str, path: str) -> None:
    """The DSN is a path, also as Go's driver has it, or a URL of one."""
    assert str(read_dsn("sqlite3", dsn)) == str(Path.cwd() / path)


@pytest.mark.parametrize(
    ("driver", "dsn", "meant"),
    [
        ("mysql", "", "user:password@tcp"),
        ("mysql", "secret@tcp(h:1)", "user:password@tcp"),
        ("mysql", "u:secret@tcp(h:99999)/m", "host:3306 is meant"),
        ("mysql", "u:secret@pipe(h)/m", r"tcp\(host:3306\) or unix"),
        ("mysql", "postgres://u:secret@h/m", "a DSN of MySQL is meant"),
        ("mysql", "mysql://u:p@h:secret/m", "%40 for an @"),
        ("mysql", "u:secret@/m?readTimout=1s", "unknown parameter readTimout; readTimeout is meant"),
        ("mysql", "u:secret@/m?readTimeout=1x", "readTimeout: a duration"),
        ("mysql", "u:secret@/m?tls=maybe", "tls: true, skip-verify or false"),
        ("mysql", "u:secret@/m?wait_timeout=1;DROP", "wait_timeout: a whole number"),
        ("mysql", "u:secret@/m?wait_timeout", "key=value is meant"),
        ("mysql", "u:p@/m?ssl_ca=%2Fnone%2Fsecret", "ssl_ca, ssl_cert, ssl_key: a file cannot be used: No such file"),
        ("postgres", "", "it is empty"),
        ("postgres", "host", "cannot be read"),
        ("postgres", "password='secret", "cannot be read"),
        ("postgres", "password='secret'x=1", "cannot be read"),
        ("postgres", "passwd=secret", "unknown parameter passwd"),
        ("postgres", "password=secret port=x", "port: a whole number"),
        ("postgres", "password=secret sslmode=yes", "sslmode: disable, allow"),
        ("postgres", "password=secret pool_max_conns=3", "sql_max_open_conns"),
        ("postgres", "mysql://u:secret@h/m", "a DSN of PostgreSQL is meant"),
        ("postgres", "postgres://u:p@h:secret/m", "%40 for an @"),
        ("sqlite", "mail.db?secret=1", "the path of a file is meant"),
        ("sqlite", "file:mail.db?mode=memory", "in memory would be lost"),
        ("oracle", "secret", "mysql, mariadb, postgres, postgresql, pgx, sqlite, sqlite3"),
    ],
)
def test_refused(driver: str, dsn: str, meant: str) -> None:
    """What cannot be used is refused with what is meant, and what the DSN says is not shown."""
    with pytest.raises(ValueError, match=meant) as caught:
        read_dsn(driver, dsn)
    if "parameter" not in str(caught.value):
        assert "secret" not in str(caught.value)


@given(st.sampled_from(["mysql", "postgres", "sqlite"]), st.text())
def test_any_text(driver: str, dsn: str) -> None:
    """Whatever it is, it is read, or refused with a ValueError."""
    with suppress(ValueError):
        assert read_dsn(driver, dsn).kind == kind_of(driver)


SECRETS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(SECRETS)
def test_any_password_of_mysql(password: str) -> None:
    """A password of any characters is taken as it is, and never shown."""
    dsn = read_dsn("mysql", f"u:{password}@tcp(h:1)/m")
    assert dsn.connect_args["password"] == password.encode()
    assert str(dsn) == "mysql at h:1, database m"
    assert repr(dsn) == repr(read_dsn("mysql", "u@tcp(h:1)/m"))


@given(SECRETS)
def test_any_password_of_postgres(password: str) -> None:
    """A quoted password of any characters is taken as it is, and never shown."""
    quoted = password.replace("\\", "\\\\").replace("'", "\\'")
    dsn = read_dsn("postgres", f"host=h password='{quoted}' dbname=m")
    assert dsn.connect_args["password"] == password
    assert str(dsn) == "postgres at h:5432, database m"
