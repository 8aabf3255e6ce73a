"""FastCGI with a real php-fpm and two small scripts: what was answered 250 is there, once, octet for octet."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from base64 import b64decode
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import structlog
from structlog.testing import LogCapture
from tests.private_servers import PhpFpm, serve

from guerrilla.envelope import Address, Envelope
from guerrilla.processors.fastcgi import FastCGI, FastCGIConfig
from guerrilla.processors.fastcgi.protocol import request
from guerrilla.smtp.replies import NO_SUCH_USER, OK, STORAGE_NOT_AVAILABLE, Reply

SCRIPTS = Path(__file__).parent / "php"
EVERY_OCTET = bytes(range(256))


class MailPhpFpm(PhpFpm):
    """A php-fpm that is set up as for mail; over TCP, its workers leave after a few requests each."""

    def _fill(self) -> None:
        super()._fill()
        with (self.folder / "php-fpm.conf").open("a") as file:
            file.write("pm.max_requests = 5\n")  # in the last section, [tcp]

    def _command(self) -> list[str]:
        php = {"display_errors": "0", "log_errors": "1", "memory_limit": "1G", "post_max_size": "100M"}
        php["max_input_vars"] = "1100"
        return [*super()._command(), *(f"-d{name}={value}" for name, value in php.items())]


@pytest.fixture(scope="module")
def php_of_module() -> Iterator[MailPhpFpm]:
    yield from serve(MailPhpFpm)


@pytest.fixture
def php(php_of_module: MailPhpFpm) -> MailPhpFpm:
    """A php-fpm that runs."""
    php_of_module.start()
    return php_of_module


@pytest.fixture
def scripts(php: MailPhpFpm, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder with the scripts, and an empty one where they keep mail."""
    folder = php.documents / "test"
    shutil.copytree(SCRIPTS, folder)
    (folder / "kept").mkdir()
    (folder / "kept").chmod(0o777)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def log() -> LogCapture:
    return LogCapture()


Opened: TypeAlias = Callable[..., AbstractAsyncContextManager[FastCGI]]


@pytest.fixture
def opened(php: MailPhpFpm, scripts: Path, log: LogCapture) -> Opened:
    """Opens a FastCGI on the server; on leaving, shuts it down."""

    @asynccontextmanager
    async def open_fastcgi(over: str = "unix", **keys: Any) -> AsyncIterator[FastCGI]:
        config = {
            "fcgi_script_filename_save": str(scripts / "save.php"),
            "fcgi_script_filename_validate": str(scripts / "validate.php"),
            "fcgi_connection_type": over,
            "fcgi_connection_address": php.address if over == "tcp" else str(php.socket_path),
        }
        fastcgi = FastCGI(FastCGIConfig(**config | keys))
        fastcgi.log = structlog.wrap_logger(
            structlog.PrintLogger(), processors=[log], wrapper_class=structlog.make_filtering_bound_logger(0)
        )
        try:
            await fastcgi.initialize()
            yield fastcgi
        finally:
            await fastcgi.shutdown()

    return open_fastcgi


def kept(scripts: Path) -> list[dict[str, bytes]]:
    """Return the fields of each message that is kept."""
    return [
        {name: b64decode(value) for name, value in json.loads(path.read_bytes()).items()}
        for path in (scripts / "kept").iterdir()
        if not path.suffix
    ]


def subjects(scripts: Path) -> Counter[str]:
    """Return how often a message of each subject is kept."""
    return Counter(fields["subject"].decode() for fields in kept(scripts))


def mail(data: bytes = b"Hi.\r\n", subject: str = "x", *, recipients: int = 1) -> Envelope:
    return Envelope(
        remote_ip="192.0.2.1",
        helo="client.example.org",
        mail_from=Address("s", "example.org"),
        rcpt_to=[Address(f"joe+{number}", "example.com") for number in range(recipients)],
        subject=subject,
        data=data,
        delivery_header=b"Delivered-To: joe\r\n",
    )


async def following() -> Reply:
    return OK


async def save(fastcgi: FastCGI, envelope: Envelope) -> Reply:
    async with asyncio.timeout(60):
        return await fastcgi.save_mail(envelope, following)


@pytest.mark.parametrize("over", ["unix", "tcp"])
@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(EVERY_OCTET, id="every octet"),
        pytest.param(b"a=b&c%41+d\r\n.\r\n\n\r\r\n&body=x", id="what means something in a form"),
        pytest.param(os.urandom(25_000_000), id="25 MB"),
    ],
)
async def test_octet_for_octet(opened: Opened, scripts: Path, over: str, data: bytes) -> None:
    """The script has delivery header and message as they are, and the fields of the Go program's processor."""
    async with opened(over) as fastcgi:
        assert await save(fastcgi, mail(data, "Grüße & Küsse")) is OK
    (fields,) = kept(scripts)
    assert fields.pop("body") == b"Delivered-To: joe\r\n" + data
    assert {name: value.decode() for name, value in fields.items()} == {
        "rcpt_to_0": "joe+0@example.com",
        "remote_ip": "192.0.2.1",
        "subject": "Grüße & Küsse",
        "tls_on": "false",
        "helo": "client.example.org",
        "mail_from": "s@example.org",
    }


async def test_a_thousand_recipients(opened: Opened, scripts: Path) -> None:
    """All of them arrive, where max_input_vars allows it."""
    async with opened() as fastcgi:
        assert await save(fastcgi, mail(recipients=1000)) is OK
    (fields,) = kept(scripts)
    assert [fields[f"rcpt_to_{number}"].decode() for number in range(1000)] == [
        f"joe+{number}@example.com" for number in range(1000)
    ]


@pytest.mark.parametrize(
    "envelope",
    [
        pytest.param(mail(recipients=2000), id="more fields than max_input_vars"),
        pytest.param(mail(bytes(35_000_000)), id="longer than post_max_size"),
    ],
)
async def test_what_php_drops(opened: Opened, scripts: Path, envelope: Envelope) -> None:
    """A script that looks for the body, the last field, does not say SAVED for a part of the message."""
    async with opened() as fastcgi:
        assert await save(fastcgi, envelope) is STORAGE_NOT_AVAILABLE
        assert await save(fastcgi, mail()) is OK
    assert len(kept(scripts)) == 1


@pytest.mark.parametrize("over", ["unix", "tcp"])
@pytest.mark.parametrize("missing", [0, 1, 1000])
async def test_a_body_that_is_cut_short(php: MailPhpFpm, scripts: Path, over: str, missing: int) -> None:
    """PHP takes it for the whole; a script that compares its length does not."""
    form = b"subject=x&body=" + b"a" * 2000
    params = {
        "SCRIPT_FILENAME": str(scripts / "save.php"),
        "REQUEST_METHOD": "POST",
        "CONTENT_TYPE": "application/x-www-form-urlencoded",
        "CONTENT_LENGTH": str(len(form)),
    }
    octets = b"".join(request(params, [form]))
    if over == "tcp":
        reader, writer = await asyncio.open_connection(php.host, php.port)
    else:
        reader, writer = await asyncio.open_unix_connection(php.socket_path)
    writer.write(octets[: -8 - missing])  # 8 octets say that the form has ended
    writer.write_eof()
    async with asyncio.timeout(60):
        answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    assert (b"SAVED" in answer, len(kept(scripts))) == ((False, 0) if missing else (True, 1))


async def test_a_refusal(opened: Opened, scripts: Path) -> None:
    """The script's own words reach the sender."""
    async with opened() as fastcgi:
        reply = await save(fastcgi, mail(subject="no, thank you"))
    assert (reply.code, reply.enhanced, reply.text) == (550, "5.7.1", "No, thank you")
    assert kept(scripts) == []


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("joe", OK),
        ("jo+e &=%", OK),
        ("logged", OK),
        ("jane", NO_SUCH_USER),
        ("full", Reply(452, "4.2.2", "Mailbox full")),
        ("outage", STORAGE_NOT_AVAILABLE),
        ("crash", STORAGE_NOT_AVAILABLE),
    ],
)
async def test_recipients(opened: Opened, user: str, expected: Reply) -> None:
    """PASSED is a yes, HTTP 503 and a crash of the script are outages, the rest is a no."""
    async with opened() as fastcgi:
        envelope = Envelope(rcpt_to=[Address("joe", "example.com"), Address(user, "example.com")])
        assert await fastcgi.validate_rcpt(envelope, following) == expected


async def test_what_a_script_logs(opened: Opened, log: LogCapture) -> None:
    """It comes to our log: php-fpm hands it over as STDERR."""
    async with opened() as fastcgi:
        await fastcgi.validate_rcpt(Envelope(rcpt_to=[Address("logged", "example.com")]), following)
        await fastcgi.validate_rcpt(Envelope(rcpt_to=[Address("crash", "example.com")]), following)
    texts = [entry["text"] for entry in log.entries if "text" in entry]
    assert "somebody asks" in texts[0]
    assert "undefined function no_such_function()" in texts[1]


async def test_no_such_script(opened: Opened, scripts: Path, log: LogCapture) -> None:
    """It is 451, and the log says what php-fpm says."""
    async with opened(fcgi_script_filename_save=str(scripts / "none.php")) as fastcgi:
        assert await save(fastcgi, mail()) is STORAGE_NOT_AVAILABLE
    assert log.entries[-1]["cause"] == "HTTP status 404"


@pytest.mark.parametrize("over", ["unix", "tcp"])
async def test_more_requests_than_workers(opened: Opened, scripts: Path, over: str) -> None:
    """Twice as many connections as php-fpm has workers shut out none of one another's requests."""
    async with opened(over, fcgi_max_connections=2 * PhpFpm.WORKERS) as fastcgi:
        names = [f"mail {number}" for number in range(100)]
        replies = await asyncio.gather(*(save(fastcgi, mail(subject=name)) for name in names))
    assert subjects(scripts) == Counter(name for name, reply in zip(names, replies, strict=True) if reply is OK)
    assert over == "tcp" or all(reply is OK for reply in replies)


async def test_workers_that_leave(opened: Opened, scripts: Path) -> None:
    """A worker that ends after pm.max_requests takes no message with it; at worst one is answered 451."""
    async with opened("tcp") as fastcgi:
        for number in range(100):
            while await save(fastcgi, mail(subject=f"mail {number}")) is not OK:
                pass
    assert subjects(scripts) == Counter(f"mail {number}" for number in range(100))


async def test_a_restart(opened: Opened, scripts: Path, php: MailPhpFpm) -> None:
    """Kept connections to the server that was are not used: the first message after it is kept."""
    async with opened() as fastcgi:
        for number in range(3):
            assert await save(fastcgi, mail(subject=f"mail {number}")) is OK
            await asyncio.to_thread(php.kill)
            assert await save(fastcgi, mail(subject="outage")) is STORAGE_NOT_AVAILABLE
            await asyncio.to_thread(php.start)
        assert await save(fastcgi, mail(subject="mail 3")) is OK
    assert subjects(scripts) == Counter(f"mail {number}" for number in range(4))


async def test_kills_under_load(opened: Opened, scripts: Path, php: MailPhpFpm) -> None:
    """Whatever was answered 250 while the server was killed three times is there; in the end all are.

    A message whose worker was killed between keeping it and saying so is there once more: only the script could tell.
    """
    attempts: Counter[str] = Counter()
    progress: asyncio.Queue[None] = asyncio.Queue()
    up = asyncio.Event()
    up.set()
    async with opened() as fastcgi:

        async def send(name: str) -> None:
            reply = None
            while reply is not OK:
                await up.wait()
                attempts[name] += 1
                reply = await save(fastcgi, mail(subject=name))
            assert name in subjects(scripts)
            progress.put_nowait(None)

        names = [f"mail {number}" for number in range(200)]
        sending = [asyncio.create_task(send(name)) for name in names]
        for _ in range(3):
            for _ in range(50):
                await progress.get()
            up.clear()
            await asyncio.to_thread(php.kill)
            await asyncio.to_thread(php.start)
            up.set()
        await asyncio.gather(*sending)
    found = subjects(scripts)
    assert set(found) == set(names)
    assert all(count <= attempts[name] for name, count in found.items())


@pytest.mark.parametrize("over", ["unix", "tcp"])
async def test_frozen(opened: Opened, scripts: Path, php: MailPhpFpm, over: str) -> None:
    """A message whose time was over while the server was frozen does not turn up later."""
    async with opened(over) as fastcgi:
        assert await save(fastcgi, mail(subject="before")) is OK
        await asyncio.to_thread(php.freeze)
        for number in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await fastcgi.save_mail(mail(subject=f"given up {number}"), following)
        await asyncio.to_thread(php.thaw)
        deferred = 0
        for number in range(2 * PhpFpm.WORKERS):
            # A worker that was halted in the middle may end its connection, each once: the client comes again.
            while (reply := await save(fastcgi, mail(subject=f"after {number}"))) is not OK:
                assert reply.temporary
                deferred += 1
                assert deferred <= PhpFpm.WORKERS
    assert set(subjects(scripts)) == {"before", *(f"after {number}" for number in range(2 * PhpFpm.WORKERS))}
