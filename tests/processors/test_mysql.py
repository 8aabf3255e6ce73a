"""MySql, the older name, keeps mail in a real MariaDB with the keys of the Go program's example."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeAlias

import pytest
import structlog
from pydantic import ValidationError
from structlog.testing import LogCapture
from tests.private_servers import MariaDB

from guerrilla.config import problems_of
from guerrilla.envelope import Address, Envelope
from guerrilla.processors.mysql import MySql, MySqlConfig
from guerrilla.smtp.replies import INSUFFICIENT_STORAGE, LOCAL_ERROR, OK, STORAGE_NOT_AVAILABLE, Reply

Opened: TypeAlias = Callable[..., AbstractAsyncContextManager[MySql]]
KEYS = {"mysql_user": "root", "mysql_pass": "ok", "mysql_db": "gmail_mail"}


@pytest.fixture
def records() -> LogCapture:
    return LogCapture()


@pytest.fixture
def place(mariadb: MariaDB) -> str:
    """The name of an empty database."""
    return mariadb.create_database()


@pytest.fixture
def opened(mariadb: MariaDB, place: str, records: LogCapture) -> Opened:
    """Starts the processor; on leaving, shuts it down."""

    @asynccontextmanager
    async def open_mysql(**changes: Any) -> AsyncIterator[MySql]:
        keys = {
            "mail_table": "new_mail",
            "mysql_db": place,
            "mysql_host": mariadb.address,
            "mysql_pass": mariadb.password,
            "mysql_user": mariadb.user,
            "primary_mail_host": "sharklasers.com",
            "sql_create_table": True,
        }
        processor = MySql(MySqlConfig.model_validate(keys | changes))
        processor.log = structlog.wrap_logger(
            structlog.PrintLogger(), processors=[records], wrapper_class=structlog.make_filtering_bound_logger(0)
        )
        try:
            await processor.initialize()
            yield processor
        finally:
            await processor.shutdown()

    return open_mysql


def mail(number: int = 1, subject: str = "") -> Envelope:
    return Envelope(
        mail_from=Address("s", "example.org"),
        rcpt_to=[Address("ann", "example.com"), Address("bob", "example.com")],
        queued_id=f"{number:032}",
        data=b"Hi.\r\n",
        subject=subject,
    )


async def following() -> Reply:
    return OK


async def refusing() -> Reply:
    return LOCAL_ERROR


@pytest.mark.parametrize("over", ["tcp", "socket"])
async def test_kept(opened: Opened, mariadb: MariaDB, place: str, over: str) -> None:
    """A message that the line keeps has its rows, one that it refuses has none; a host may be a path."""
    host = mariadb.address if over == "tcp" else str(mariadb.socket_path)
    async with opened(mysql_host=host) as processor:
        assert await processor.save_mail(mail(1), following) is OK
        assert await processor.save_mail(mail(2), refusing) is LOCAL_ERROR
    assert mariadb.sql("SELECT hash, `to`, recipient, HEX(mail) FROM new_mail ORDER BY mail_id", place) == "".join(
        f"{1:032}\t{user}@sharklasers.com\t{user}@example.com\t48692E0D0A\n" for user in ("ann", "bob")
    )
    assert mariadb.sql("SELECT COUNT(*), COUNT(DISTINCT hash) FROM new_mail", place) == "2\t1\n"


async def test_group_commit(opened: Opened, mariadb: MariaDB, place: str) -> None:
    """Messages that come at the same time share a transaction."""
    async with opened() as processor:

        def commits() -> int:
            return int(mariadb.sql("SHOW GLOBAL STATUS LIKE 'Com_commit'").split()[1])

        before = commits()
        envelopes = [mail(number) for number in range(50)]
        assert await asyncio.gather(*(processor.save_mail(each, following) for each in envelopes)) == [OK] * 50
        assert commits() - before < 10
    assert mariadb.sql("SELECT COUNT(*) FROM new_mail", place) == "100\n"


@pytest.mark.parametrize(
    ("trouble", "reply", "event"),
    [
        ("ALTER TABLE new_mail ADD CHECK (subject <> 'bad')", LOCAL_ERROR, "the database refuses the message"),
        ("DROP TABLE new_mail", STORAGE_NOT_AVAILABLE, "the message was not stored"),
        (
            "CREATE TRIGGER t BEFORE INSERT ON new_mail FOR EACH ROW SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = 1114",
            INSUFFICIENT_STORAGE,
            "the message was not stored",
        ),
    ],
)
async def test_answers(
    opened: Opened, mariadb: MariaDB, place: str, records: LogCapture, trouble: str, reply: Reply, event: str
) -> None:
    """Whatever the database says, the sender is told to try again, and the operator what it was."""
    async with opened() as processor:
        mariadb.sql(trouble, place)
        assert await processor.save_mail(mail(subject="bad"), following) is reply
    assert [(entry["event"], entry["queued_id"]) for entry in records.entries] == [(event, f"{1:032}")]


async def test_table_is_not_made_unasked(opened: Opened) -> None:
    """Without sql_create_table there is no start without the table, and it is said what to do."""
    with pytest.raises(RuntimeError, match=r"there is no table new_mail in mysql at .* let sql_create_table be true"):
        async with opened(sql_create_table=False):
            pass


def test_example_of_the_go_program() -> None:
    """The keys of the example are all there are to be given."""
    config = MySqlConfig.model_validate(
        KEYS | {"mail_table": "new_mail", "mysql_host": "127.0.0.1:3306", "primary_mail_host": "mail.example.com"}
    )
    assert str(config.settings().dsn) == "mysql at 127.0.0.1:3306, database gmail_mail"
    assert config.settings() == MySqlConfig.model_validate(KEYS | {"primary_mail_host": "mail.example.com"}).settings()
    assert "ok" not in repr(config)


@pytest.mark.parametrize(
    ("key", "value", "meant"),
    [
        ("mysql_host", "127.0.0.1:x", "host:3306 is meant"),
        ("mysql_pass", 12345, "a text in double quotes is meant"),
        ("mysql_db", "", "at least 1 character"),
        ("mail_table", "a b", "a table name is meant"),
    ],
)
def test_bad_configuration(key: str, value: object, meant: str) -> None:
    """A value that cannot be meant is refused, with what is, and without the password."""
    with pytest.raises(ValidationError, match=meant) as caught:
        MySqlConfig.model_validate(KEYS | {key: value})
    assert [problem["loc"] for problem in caught.value.errors()] == [(key,)]
    assert not any("12345" in str(each) for each in (caught.value, *problems_of(caught.value, MySqlConfig)))
