"""SqlWriter on real servers: all rows of a message or none; kept means committed, whatever becomes of the server."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from sqlalchemy import Connection, event, text
from structlog.testing import LogCapture
from structlog.typing import FilteringBoundLogger
from tests.private_servers import DatabaseServer
from tests.private_servers.process import wait_until
from tests.stores.sql_databases import EmptyDatabase, Letters, empty_database

from guerrilla.envelope import Envelope
from guerrilla.stores.sql_database import Database
from guerrilla.stores.sql_errors import Verdict
from guerrilla.stores.sql_writer import NotKeptError, SqlWriter

Opened: TypeAlias = Callable[..., AbstractAsyncContextManager[SqlWriter]]


@pytest.fixture
def opened(sql_log: FilteringBoundLogger) -> Opened:
    """Opens a writer on the database; on leaving, closes it."""

    @asynccontextmanager
    async def open_writer(database: EmptyDatabase, **changes: Any) -> AsyncIterator[SqlWriter]:
        writer = SqlWriter(database.settings(**changes))
        try:
            await writer.open(sql_log)
            yield writer
        finally:
            await writer.close()

    return open_writer


async def keep(writer: SqlWriter, envelope: Envelope) -> None:
    async with await writer.keep(envelope) as kept:
        kept.confirm()


async def refusal(writer: SqlWriter, envelope: Envelope) -> tuple[Verdict, str] | None:
    """Say why the message is not kept; None if it is."""
    try:
        await keep(writer, envelope)
    except NotKeptError as error:
        return error.verdict, str(error)
    return None


def server_of(database: EmptyDatabase) -> DatabaseServer:
    assert database.server is not None
    return database.server


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(bytes(range(256)) * 9, id="every octet, NUL and 8-bit included"),
        pytest.param(b"'); DROP TABLE new_mail; -- \\' %s :x $1 ?", id="what SQL is made of"),
        pytest.param(os.urandom(25_000_000), id="25 MB"),
    ],
)
async def test_octet_for_octet(opened: Opened, networked: EmptyDatabase, letter: Letters, data: bytes) -> None:
    """The column `mail` holds delivery header and message as they are, also when they share a statement."""
    async with opened(networked) as writer:
        await asyncio.gather(*(keep(writer, letter(data, delivery_header=b"D: x\r\n")) for _ in range(2)))
    octets = b"D: x\r\n" + data
    assert networked.digests() == [[str(len(octets)), hashlib.md5(octets).hexdigest()]] * 2


async def test_text_is_made_to_fit(opened: Opened, networked: EmptyDatabase, letter: Letters) -> None:
    """Text has every character that there is but NUL and lone surrogates, and is cut in characters, not octets."""
    subject = "a\0b\ud800\N{PILE OF POO}" + "\N{PILE OF POO}" * 300
    async with opened(networked) as writer:
        await keep(writer, letter(b"", subject=subject))
    octets = {"mysql": "HEX(subject)", "postgres": "upper(encode(convert_to(subject, 'UTF8'), 'hex'))"}
    stored = networked.sql(f"SELECT {octets[networked.kind]} FROM new_mail")
    assert stored == [[("ab?" + "\N{PILE OF POO}" * 251).encode().hex().upper()]]


async def test_columns(opened: Opened, database: EmptyDatabase, letter: Letters) -> None:
    """Each recipient has a row, with the same mail and its own hash; the first hash becomes the queue id."""
    envelope = letter(b"x", "ann", "bob", hashes=["A" * 32, "B" * 32])
    async with opened(database) as writer:
        await keep(writer, envelope)
    assert envelope.queued_id == "A" * 32
    rows = database.sql("SELECT date, hash, recipient, body FROM new_mail ORDER BY mail_id")
    assert [[row[0][:19], *row[1:]] for row in rows] == [
        ["2024-02-03 04:05:06", "A" * 32, "ann@example.com", ""],
        ["2024-02-03 04:05:06", "B" * 32, "bob@example.com", ""],
    ]


@pytest.mark.parametrize("hashes", [{"A" * 32, "B" * 32}, {"A" * 32: 1, "B" * 32: 2}])
async def test_hashes_of_which_none_is_the_first(
    opened: Opened, database: EmptyDatabase, letter: Letters, hashes: Any
) -> None:
    """That is found before the commit: what is not answered 250 is not there."""
    async with opened(database) as writer:
        with pytest.raises((TypeError, KeyError)):
            await writer.keep(letter(b"x", hashes=hashes))
    assert database.count() == 0


class Uncompressed:
    """What a processor in Compressor's place may leave: octets that cannot be had, or are none."""

    encoding = "gzip"

    def __init__(self, outcome: Any) -> None:
        self.outcome = outcome

    def __str__(self) -> str:
        return repr(self.outcome)

    async def data(self) -> Any:
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


class Panic(BaseException):
    """As libraries raise that are written in Rust."""


class CancelsItself:
    """What a processor in Compressor's place may leave: it cancels the task that it runs in."""

    async def data(self) -> bytes:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)
        return b""


class NeverThere:
    """What a processor in Compressor's place may leave: octets that do not come, unless they are given up."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.given_up = asyncio.Event()

    async def data(self) -> bytes:
        self.asked.set()
        await self.given_up.wait()
        return b""


OUTCOMES = [RuntimeError("x"), OSError("x"), TimeoutError(), ValueError("x"), asyncio.CancelledError(), Panic("x")]


@pytest.mark.parametrize(
    "octets", [*(Uncompressed(each) for each in (*OUTCOMES, None, "text", 5)), CancelsItself()], ids=str
)
async def test_octets_that_cannot_be_had(
    opened: Opened, database: EmptyDatabase, letter: Letters, octets: object
) -> None:
    """It is the affair of that message alone, not of its batch."""
    envelopes = [letter(b"x", subject="good") for _ in range(4)]
    envelopes[1].values["zlib-compressor"] = octets
    async with opened(database) as writer:
        outcomes = await asyncio.gather(*(refusal(writer, envelope) for envelope in envelopes))
    assert [outcome and outcome[0] for outcome in outcomes] == [None, Verdict.REFUSED, None, None]
    assert database.subjects() == {"good": 3}


async def test_octets_that_never_come_hold_nobody_up_when_nobody_waits_any_more(
    opened: Opened, networked: EmptyDatabase, letter: Letters
) -> None:
    envelope = letter(b"x", subject="bad")
    envelope.values["zlib-compressor"] = octets = NeverThere()
    async with opened(networked) as writer:
        saving = asyncio.create_task(keep(writer, envelope))
        await octets.asked.wait()
        saving.cancel()
        try:
            async with asyncio.timeout(30):
                await keep(writer, letter(b"x", subject="good"))
        finally:
            octets.given_up.set()
    assert networked.subjects() == {"good": 1}


async def test_after_redis(opened: Opened, database: EmptyDatabase, letter: Letters) -> None:
    """What Redis holds is not stored again, and every row has the hash that is its key there."""
    envelope = letter(b"x", "ann", "bob", hashes=["A" * 32, "B" * 32], values={"redis": "redis"})
    async with opened(database) as writer:
        await keep(writer, envelope)
    assert database.sql("SELECT hash, body, LENGTH(mail) FROM new_mail") == [["A" * 32, "redis", "0"]] * 2


async def test_thousand_recipients(opened: Opened, database: EmptyDatabase, letter: Letters) -> None:
    """A message to a thousand recipients is there for all of them, or after it is taken back for none."""
    users = [f"u{number}" for number in range(1000)]
    async with opened(database) as writer:
        await keep(writer, letter(b"x" * 5000, *users))
        assert database.count() == 1000
        async with await writer.keep(letter(b"y" * 5000, *users)):
            assert database.count() == 2000
        assert database.count() == 1000


async def test_refused_alone(opened: Opened, networked: EmptyDatabase, letter: Letters) -> None:
    """One message that the database refuses does not touch the 49 others in its batch."""
    async with opened(networked) as writer:
        networked.sql("ALTER TABLE new_mail ADD CONSTRAINT c CHECK (subject <> 'bad')")
        outcomes = await asyncio.gather(
            *(refusal(writer, letter(b"x", subject="bad" if number == 7 else "good")) for number in range(50))
        )
    refused = [(number, outcome[0]) for number, outcome in enumerate(outcomes) if outcome is not None]
    assert refused == [(7, Verdict.REFUSED)]
    assert networked.subjects() == {"good": 49}


async def test_larger_than_a_packet(opened: Opened, mysql_database: EmptyDatabase, letter: Letters) -> None:
    """A message that MySQL takes no packet for is refused with what to mend, and those in its batch are kept."""
    try:
        mysql_database.sql("SET GLOBAL max_allowed_packet = 1048576")
        async with opened(mysql_database) as writer:
            outcomes = await asyncio.gather(
                *(refusal(writer, letter(b"x" * size)) for size in (1_020_000, 2_000_000, 1_020_000, 10))
            )
    finally:
        mysql_database.sql("SET GLOBAL max_allowed_packet = 67108864")
    refused = (Verdict.REFUSED, "it is larger than the max_allowed_packet of the database, 1048576 octets")
    assert outcomes == [None, refused, None, None]
    assert mysql_database.count() == 3


HICCUPS = {
    "mysql": "CREATE TRIGGER t BEFORE INSERT ON new_mail FOR EACH ROW "
    "IF NEXTVAL(s) <= {times} THEN SIGNAL SQLSTATE '{state}' SET MYSQL_ERRNO = {number}; END IF",
    "postgres": "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN "
    "IF nextval('s') <= {times} THEN RAISE EXCEPTION 'no' USING ERRCODE = '{state}'; END IF; RETURN NEW; END$$; "
    "CREATE TRIGGER t BEFORE INSERT ON new_mail FOR EACH ROW EXECUTE FUNCTION f()",
}


def let_fail(database: EmptyDatabase, times: int, state: str, number: int) -> None:
    """Have the server answer the first INSERTs with an error of its own."""
    database.sql("CREATE SEQUENCE s")
    statement = HICCUPS[database.kind].format(times=times, state=state, number=number)
    database.sql(f"DELIMITER //\n{statement}" if database.kind == "mysql" else statement)


@pytest.mark.parametrize(("state", "number"), [("40001", 1213), ("40001", 1205)])
async def test_deadlock(opened: Opened, networked: EmptyDatabase, letter: Letters, state: str, number: int) -> None:
    """A transaction that the server has rolled back for a deadlock is done again, at once; nobody has to know."""
    async with opened(networked) as writer:
        let_fail(networked, 2, state, number)
        await keep(writer, letter(b"x"))
    assert networked.count() == 1


async def test_full(opened: Opened, networked: EmptyDatabase, letter: Letters) -> None:
    """A database without room says so, and it is not tried again."""
    async with opened(networked) as writer:
        let_fail(networked, 1, "53100", 1114)
        assert (await refusal(writer, letter(b"x")) or (None,))[0] is Verdict.FULL
        assert networked.count() == 0


async def test_table_lost(opened: Opened, networked: EmptyDatabase, letter: Letters) -> None:
    """A table that is gone is an outage."""
    async with opened(networked) as writer:
        networked.sql("DROP TABLE new_mail")
        assert (await refusal(writer, letter(b"x")) or (None,))[0] is Verdict.WRONG


async def fails_to_open(opened: Opened, database: EmptyDatabase, match: str, **changes: Any) -> str:
    with pytest.raises(RuntimeError, match=match) as caught:
        async with opened(database, **changes):
            pass
    return str(caught.value)


async def test_wrong_password(opened: Opened, networked: EmptyDatabase) -> None:
    """A wrong password is an error at the start, and is not shown."""
    dsn = replace(networked.dsn, connect_args={**networked.dsn.connect_args, "password": "wR0ng"})
    said = await fails_to_open(opened, networked, "cannot be used: .*(denied|failed) for user", dsn=dsn)
    assert "wR0ng" not in said


async def test_no_database(opened: Opened, networked: EmptyDatabase) -> None:
    """A database that is not there is an error at the start."""
    dsn = replace(networked.dsn, url=networked.dsn.url.set(database="nope"))
    await fails_to_open(opened, networked, "(?i)database [\"']nope[\"']", dsn=dsn)


async def test_missing_table(opened: Opened, database: EmptyDatabase) -> None:
    """Without the table, and without leave to make it, there is no start; nor with a table that lacks columns."""
    database.sql("CREATE TABLE other (x INTEGER)")
    await fails_to_open(opened, database, "there is no table new_mail", create_table=False)
    await fails_to_open(opened, database, "lacks the columns mail_id, date, from", table="other")


async def test_table_is_made_once(opened: Opened, database: EmptyDatabase, letter: Letters) -> None:
    """The table is made with its indexes, and found at the second start."""
    for _ in range(2):
        async with opened(database) as writer:
            await keep(writer, letter(b"x"))
    assert database.count() == 2


OWN_TABLE = {
    "mysql": "CREATE TABLE post (id INT AUTO_INCREMENT PRIMARY KEY, at DATETIME, recipient VARCHAR(255), "
    "hash CHAR(32), octets LONGBLOB, note TEXT)",
    "postgres": "CREATE TABLE post (id SERIAL PRIMARY KEY, at TIMESTAMP, recipient VARCHAR(255), hash CHAR(32), "
    "octets BYTEA, note TEXT)",
    "sqlite": "CREATE TABLE post (id INTEGER PRIMARY KEY, at TEXT, recipient TEXT, hash TEXT, octets BLOB, note TEXT)",
}


async def test_own_statement(opened: Opened, database: EmptyDatabase, letter: Letters) -> None:
    """The operator's own statement fills the operator's own table; the rows can be taken back from it."""
    database.sql(OWN_TABLE[database.kind])
    values = "?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?"
    if database.kind == "postgres":
        values = ", ".join(f"${number}" for number in range(1, 15))
    database.sql(
        "CREATE TABLE sink (a TEXT, b TEXT, c TEXT, d TEXT, octets "
        + {"mysql": "LONGBLOB", "postgres": "BYTEA", "sqlite": "BLOB"}[database.kind]
        + ", hash CHAR(32), e TEXT, recipient VARCHAR(255), ip "
        + {"mysql": "VARBINARY(16)", "postgres": "BYTEA", "sqlite": "BLOB"}[database.kind]
        + ", f TEXT, tls BOOLEAN, g TEXT, h TEXT, i TEXT, note TEXT)"
    )
    columns = "a, b, c, d, octets, hash, e, recipient, ip, f, tls, g, h, i, note"
    changes = {
        "table": "sink",
        "sql_insert": f"INSERT INTO sink ({columns})",
        "sql_values": f"({values}, '10:30 ? 5%')",
    }
    async with opened(database, **changes) as writer:
        await asyncio.gather(*(keep(writer, letter(b"\0x", "ann", "bob", subject="s")) for _ in range(3)))
        async with await writer.keep(letter(b"y", "eve")):
            assert database.count("sink") == 7
    assert (
        database.sql("SELECT a, b, c, recipient, note, LENGTH(octets) FROM sink WHERE recipient LIKE 'ann%'")
        == [["ann@mx.example.com", "s@example.org", "s", "ann@example.com", "10:30 ? 5%", "2"]] * 3
    )
    assert database.count("sink") == 6


async def test_away_at_the_start(
    opened: Opened, networked: EmptyDatabase, letter: Letters, sql_records: LogCapture
) -> None:
    """The writer opens although the server is away; mail is not kept then, and is when the server has come."""
    server = server_of(networked)
    server.kill()
    async with opened(networked) as writer:
        assert (await refusal(writer, letter(b"x")) or (None,))[0] is Verdict.AWAY
        server.start()
        await keep(writer, letter(b"x"))
    assert networked.count() == 1
    assert [entry["event"] for entry in sql_records.entries] == [
        "the database cannot be reached: mail is answered 451 until it can"
    ]


async def test_killed_three_times_under_load(opened: Opened, networked: EmptyDatabase, letter: Letters) -> None:
    """Each message whose sender was told yes is there exactly once; of all other attempts nothing is."""
    server = server_of(networked)
    numbers = iter(range(2000))
    done = 0
    reached = {mark: asyncio.Event() for mark in (300, 800, 1300)}

    async def send(writer: SqlWriter) -> None:
        nonlocal done
        for number in numbers:
            while await refusal(writer, letter(b"x" * 2000, "ann", "bob", subject=str(number))) is not None:
                await asyncio.sleep(0.005)  # the sender's own pause
            done += 1
            if done in reached:
                reached[done].set()

    async def disturb() -> None:
        for event_ in reached.values():
            await event_.wait()
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)

    async with opened(networked) as writer:
        await asyncio.gather(disturb(), *(send(writer) for _ in range(20)))
    assert networked.subjects() == {str(number): 2 for number in range(2000)}


async def test_frozen_while_it_commits(opened: Opened, networked: EmptyDatabase, letter: Letters) -> None:
    """When the time is over while COMMIT is on its way to a frozen server, nothing is there after the thaw.

    Others that wait behind it are not held up once the server is back.
    """
    server = server_of(networked)
    async with opened(networked) as writer:
        frozen = asyncio.Event()

        def freeze(_: object) -> None:
            if not frozen.is_set():
                server.freeze()
                frozen.set()

        event.listen(writer.database.engine, "commit", freeze)
        saving = asyncio.create_task(writer.keep(letter(b"x", subject="late")))
        await frozen.wait()
        await asyncio.sleep(0)  # COMMIT is written
        saving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await saving
        server.thaw()
        await keep(writer, letter(b"x", subject="next"))
    assert networked.subjects() == {"next": 1}


async def test_frozen_longer_than_the_limit(opened: Opened, networked: EmptyDatabase, letter: Letters) -> None:
    """Of twenty messages whose time is over on a frozen server nothing turns up; each new attempt is there once."""
    server = server_of(networked)
    async with opened(networked) as writer:
        await keep(writer, letter(b"x", subject="first"))
        server.freeze()
        saving = [asyncio.create_task(keep(writer, letter(b"x" * 100_000, subject="late"))) for _ in range(20)]
        await asyncio.wait(saving, timeout=0.5)
        for task in saving:
            task.cancel()
        await asyncio.wait(saving)
        assert all(task.cancelled() for task in saving)
        server.thaw()
        await asyncio.gather(*(keep(writer, letter(b"x", subject=f"{number}")) for number in range(20)))
    assert networked.subjects() == {"first": 1} | {f"{number}": 1 for number in range(20)}


async def test_lost_while_it_commits(opened: Opened, networked: EmptyDatabase, letter: Letters) -> None:
    """When the server dies and comes back while COMMIT is out, the message is kept, exactly once."""
    server = server_of(networked)
    async with opened(networked) as writer:
        died = False

        def die(_: object) -> None:
            nonlocal died
            if not died:
                died = True
                server.kill()
                server.start()

        event.listen(writer.database.engine, "commit", die)
        await keep(writer, letter(b"x", "ann", "bob", subject="s"))
    assert died
    assert networked.subjects() == {"s": 2}


async def test_commit_unanswered(opened: Opened, networked: EmptyDatabase, letter: Letters) -> None:
    """When the answer to COMMIT does not come in time and the server goes on, the message is kept, exactly once."""
    server = server_of(networked)
    async with opened(networked, dsn=replace(networked.dsn, answer_seconds=1.0)) as writer:
        frozen = asyncio.Event()

        def freeze(_: object) -> None:
            if not frozen.is_set():
                server.freeze()
                frozen.set()

        engine = writer.database.engine
        event.listen(engine, "commit", freeze)
        event.listen(engine.pool, "invalidate", lambda *_: server.thaw())  # when the writer has had enough
        assert await refusal(writer, letter(b"x", "ann", "bob", subject="s")) is None
        assert frozen.is_set()
    assert networked.subjects() == {"s": 2}


def once(action: Callable[[Any], object]) -> Callable[[Any], None]:
    """Do it at the first call only."""
    called = False

    def call(argument: Any) -> None:
        nonlocal called
        if not called:
            called = True
            action(argument)

    return call


async def test_committed_and_gone(opened: Opened, networked: EmptyDatabase, letter: Letters) -> None:
    """When the server dies after a COMMIT that it never answers, the message is not kept, and goes when it is back."""
    server = server_of(networked)

    def commit_and_die(connection: Connection) -> None:
        dbapi = connection.connection.dbapi_connection
        assert dbapi is not None
        dbapi.commit()
        server.kill()
        raise OSError("lost")

    async with opened(networked) as writer:
        event.listen(writer.database.engine, "commit", once(commit_and_die))
        assert await refusal(writer, letter(b"x", "ann", "bob")) == (Verdict.AWAY, "lost")
        server.start()
        assert networked.count() == 2
    assert networked.count() == 0


async def test_cancelled_among_others(opened: Opened, networked: EmptyDatabase, letter: Letters) -> None:
    """When the time of one message of a batch is over while that commits, it goes, and the others stay."""
    async with opened(networked) as writer:
        saving = [asyncio.create_task(keep(writer, letter(b"x", subject=str(number)))) for number in range(5)]
        event.listen(writer.database.engine, "commit", once(lambda _: saving[2].cancel()))
        await asyncio.wait(saving)
        assert [task.cancelled() for task in saving] == [False, False, True, False, False]
    assert networked.subjects() == {"0": 1, "1": 1, "3": 1, "4": 1}


def halt(connection: Connection) -> int:
    """Halt the one process of PostgreSQL that serves the connection: what is sent to it waits, and all others go on."""
    process = int(connection.info["session"].number)
    os.kill(process, signal.SIGSTOP)
    return process


async def gone(process: int) -> None:
    """Let the process go on, and return when it has ended."""
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGCONT)
    await asyncio.to_thread(wait_until, lambda: not Path(f"/proc/{process}").exists(), 10.0, "the session has ended")


@pytest.fixture
def postgres_database(request: pytest.FixtureRequest, tmp_path: Path) -> EmptyDatabase:
    return empty_database("postgres", request, tmp_path)


async def test_no_commit_after_the_removal(opened: Opened, postgres_database: EmptyDatabase, letter: Letters) -> None:
    """A COMMIT that one session has yet to read, when the message was answered 451 long ago, is never done."""
    halted: list[int] = []
    removing = asyncio.Event()

    def look(_: object, __: object, statement: str, *___: object) -> None:
        if "pg_terminate_backend" in statement or statement.startswith("DELETE"):
            removing.set()

    async with opened(postgres_database) as writer:
        engine = writer.database.engine
        event.listen(engine, "commit", once(lambda connection: halted.append(halt(connection))))
        event.listen(engine, "after_cursor_execute", look)
        saving = asyncio.create_task(keep(writer, letter(b"x", subject="late")))
        while not halted:
            await asyncio.sleep(0)
        await asyncio.sleep(0)  # COMMIT is written
        saving.cancel()
        await asyncio.wait((saving,))
        await removing.wait()
        await keep(writer, letter(b"x", subject="next"))
        await gone(halted[0])
    assert postgres_database.subjects() == {"next": 1}


async def test_no_second_commit(opened: Opened, postgres_database: EmptyDatabase, letter: Letters) -> None:
    """A COMMIT that was not answered is done again only when the first can never be done any more."""
    halted: list[int] = []

    def go_on(_: object, __: object, statement: str, *___: object) -> None:
        if "pg_terminate_backend" in statement:
            os.kill(halted[0], signal.SIGCONT)

    async with opened(postgres_database, dsn=replace(postgres_database.dsn, answer_seconds=0.5)) as writer:
        engine = writer.database.engine
        event.listen(engine, "commit", once(lambda connection: halted.append(halt(connection))))
        event.listen(engine, "after_cursor_execute", go_on)
        outcome = await refusal(writer, letter(b"x", subject="s"))
        await gone(halted[0])
    assert postgres_database.subjects() == ({"s": 1} if outcome is None else {})


async def test_cancelled_while_it_inserts(opened: Opened, networked: EmptyDatabase, letter: Letters) -> None:
    """A message whose time is over while another program holds the table is not stored when it lets go."""
    other = Database(networked.dsn)
    lock = "LOCK TABLES new_mail WRITE" if networked.kind == "mysql" else "LOCK TABLE new_mail IN EXCLUSIVE MODE"
    async with opened(networked) as writer:
        inserting = asyncio.Event()
        event.listen(writer.database.engine, "before_cursor_execute", lambda *_: inserting.set())

        async def cut_short() -> None:
            saving = asyncio.create_task(writer.keep(letter(b"x", subject="late")))
            await inserting.wait()
            saving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await saving

        def work(connection: Connection) -> None:
            connection.execute(text(lock))
            other.wait(cut_short())

        await other.run(work)
        await other.close()
        await keep(writer, letter(b"x", subject="next"))
    assert networked.subjects() == {"next": 1}


async def test_taken_back_though_the_server_dies(
    opened: Opened, networked: EmptyDatabase, letter: Letters, sql_records: LogCapture
) -> None:
    """What a later processor refuses while the server is down is removed when it is back."""
    server = server_of(networked)
    async with opened(networked) as writer:
        async with await writer.keep(letter(b"x")):
            server.kill()
        server.start()
    assert networked.count() == 0
    assert [entry["event"] for entry in sql_records.entries] == [
        "rows of mail that was not accepted cannot be removed: trying on"
    ]


async def test_closed_without_a_start(networked: EmptyDatabase) -> None:
    """A writer that was never opened can be closed, twice."""
    writer = SqlWriter(networked.settings())
    await writer.close()
    await writer.close()
