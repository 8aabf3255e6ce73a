"""FastCGI hands mail to a script: 250 only for SAVED, a no only for a decision, 451 for whatever goes wrong."""

from __future__ import annotations

import asyncio
import binascii
import mmap
import os
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import parse_qsl

import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from structlog.testing import LogCapture
from tests.processors.fake_fastcgi import STDERR, STDOUT, Caller, FakeFastCGI, end, page, record

from guerrilla.envelope import Address, Envelope, TLSInfo
from guerrilla.processors.fastcgi import FastCGI, FastCGIConfig
from guerrilla.smtp.replies import NO_SUCH_USER, OK, STORAGE_NOT_AVAILABLE, Reply

SAVE, VALIDATE = "/scripts/save.php", "/scripts/validate.php"
EVERY_OCTET = bytes(range(256))


async def following() -> Reply:
    return OK


async def never() -> Reply:
    raise AssertionError("passed on")


@pytest.fixture
def log() -> LogCapture:
    return LogCapture()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[FakeFastCGI]:
    fake = FakeFastCGI(tmp_path / "s")
    await fake.start()
    try:
        yield fake
    finally:
        await fake.stop()


def made(log: LogCapture, **keys: Any) -> FastCGI:
    fastcgi = FastCGI(
        FastCGIConfig(**{"fcgi_script_filename_save": SAVE, "fcgi_script_filename_validate": VALIDATE} | keys)
    )
    fastcgi.log = structlog.wrap_logger(
        structlog.PrintLogger(), processors=[log], wrapper_class=structlog.make_filtering_bound_logger(0)
    )
    return fastcgi


@pytest.fixture
async def fastcgi(server: FakeFastCGI, log: LogCapture) -> AsyncIterator[FastCGI]:
    fastcgi = made(log, fcgi_connection_type="unix", fcgi_connection_address=str(server.path))
    try:
        await fastcgi.initialize()
        yield fastcgi
    finally:
        await fastcgi.shutdown()


def mail(data: bytes | mmap.mmap = b"Subject: x\r\n\r\nHi.\r\n", *users: str, **changes: Any) -> Envelope:
    envelope = Envelope(
        remote_ip="192.0.2.1",
        helo="client.example.org",
        mail_from=Address("s", "example.org"),
        rcpt_to=[Address(user, "example.com") for user in users or ("joe",)],
        queued_id="q" * 32,
        subject="x",
        data=data,
    )
    return replace(envelope, **changes)


async def test_what_the_save_script_gets(server: FakeFastCGI, fastcgi: FastCGI) -> None:
    """A POST with the fields of the Go program's processor, the recipients counted from 0, the body as the last one."""
    server.answer = page(b"SAVED")
    envelope = mail(
        EVERY_OCTET,
        "joe",
        "jane",
        helo="a&rcpt_to_9=x",
        subject="Grüße =&%",
        tls=TLSInfo("TLSv1.3", "x"),
        delivery_header=b"Delivered-To: joe@example.com\r\n",
    )
    assert await fastcgi.save_mail(envelope, following) is OK
    (received,) = server.requests
    assert parse_qsl(received.stdin.decode(), keep_blank_values=True, encoding="latin-1") == [
        ("rcpt_to_0", "joe@example.com"),
        ("rcpt_to_1", "jane@example.com"),
        ("remote_ip", "192.0.2.1"),
        ("subject", "Grüße =&%".encode().decode("latin-1")),
        ("tls_on", "true"),
        ("helo", "a&rcpt_to_9=x"),
        ("mail_from", "s@example.org"),
        ("body", (b"Delivered-To: joe@example.com\r\n" + EVERY_OCTET).decode("latin-1")),
    ]
    assert received.params == {
        "GATEWAY_INTERFACE": "CGI/1.1",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_SOFTWARE": "guerrilla",
        "REMOTE_ADDR": "127.0.0.1",
        "SCRIPT_FILENAME": SAVE,
        "SCRIPT_NAME": SAVE,
        "QUERY_STRING": "",
        "REQUEST_METHOD": "POST",
        "CONTENT_TYPE": "application/x-www-form-urlencoded",
        "CONTENT_LENGTH": str(len(received.stdin)),
    }


async def test_a_bounce_in_clear(server: FakeFastCGI, fastcgi: FastCGI) -> None:
    """The null path is an empty mail_from, and tls_on is "false"."""
    server.answer = page(b"SAVED")
    assert await fastcgi.save_mail(mail(mail_from=Address()), following) is OK
    fields = dict(parse_qsl(server.requests[0].stdin.decode(), keep_blank_values=True))
    assert (fields["mail_from"], fields["tls_on"]) == ("", "false")


@pytest.mark.parametrize("address", ["joe@example.com", "a&b=c%+@example.com", "grüße@example.com"])
async def test_what_the_validate_script_gets(server: FakeFastCGI, fastcgi: FastCGI, address: str) -> None:
    """A GET with the last recipient, and no other, in the query."""
    server.answer = page(b"PASSED")
    user, _, host = address.partition("@")
    envelope = mail(rcpt_to=[Address("first", "example.com"), Address(user, host)])
    assert await fastcgi.validate_rcpt(envelope, following) is OK
    (received,) = server.requests
    assert parse_qsl(received.params["QUERY_STRING"]) == [("rcpt_to", address)]
    assert received.params["SCRIPT_FILENAME"] == VALIDATE
    assert received.params["REQUEST_METHOD"] == "GET"
    assert received.stdin == b""


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(text=st.text())
def test_nothing_that_a_client_says_is_a_parameter(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    """The names that are sent, and the script, are the same whatever the client says."""

    async def run() -> None:
        server = FakeFastCGI(tmp_path_factory.mktemp("s") / "s", page(b"SAVED"))
        await server.start()
        fastcgi = made(LogCapture(), fcgi_connection_type="unix", fcgi_connection_address=str(server.path))
        try:
            envelope = mail(text.encode("utf-8", "replace"), helo=text, subject=text, remote_ip=text)
            assert await fastcgi.save_mail(replace(envelope, mail_from=Address(text, text)), following) is OK
            (received,) = server.requests
            assert received.pairs == len(received.params) == 10
            assert received.params["SCRIPT_FILENAME"] == SAVE
            assert [name for name, _ in parse_qsl(received.stdin.decode(), keep_blank_values=True)] == [
                "rcpt_to_0", "remote_ip", "subject", "tls_on", "helo", "mail_from", "body"
            ]  # fmt: skip
        finally:
            await fastcgi.shutdown()
            await server.stop()

    asyncio.run(run())


@pytest.mark.parametrize("size", [0, 1, 65_536, 1 << 20, (1 << 20) + 1, 25_000_000])
async def test_messages_of_any_size(server: FakeFastCGI, fastcgi: FastCGI, size: int) -> None:
    """A message on disk comes whole, with the length that was said before."""
    server.answer = page(b"SAVED")
    octets = (os.urandom(size // 2) + b"Dear Joe, = & +.\r\n" * (size // 30 + 1))[:size]
    with tempfile.TemporaryFile() as file:
        file.write(octets)
        file.flush()
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        assert await fastcgi.save_mail(mail(data), following) is OK
        if isinstance(data, mmap.mmap):
            data.close()
    (received,) = server.requests
    assert received.params["CONTENT_LENGTH"] == str(len(received.stdin))
    body = received.stdin.partition(b"&body=")[2]
    # Quoted-printable is the same code with another sign, and its decoder is quick.
    assert binascii.a2b_qp(body.replace(b"+", b" ").replace(b"%", b"=")) == octets


REFUSED = Reply(550, "5.7.1", "No, thank you")
FULL = Reply(452, "4.2.2", "Mailbox full")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"SAVED", OK),
        (b"SAVED\n", OK),
        (b"SAVED \r\nin /var/mail\r\n", OK),
        (b"\r\n SAVED", OK),
        (b"SAVEDX", STORAGE_NOT_AVAILABLE),
        (b"SAVED X", STORAGE_NOT_AVAILABLE),
        (b"saved", STORAGE_NOT_AVAILABLE),
        (b"NOT SAVED", STORAGE_NOT_AVAILABLE),
        (b"Warning: x\nSAVED", STORAGE_NOT_AVAILABLE),
        (b"\xef\xbb\xbfSAVED", STORAGE_NOT_AVAILABLE),
        (b"SAVED\0", STORAGE_NOT_AVAILABLE),
        (b"SAVED\x0b", STORAGE_NOT_AVAILABLE),
        (b"SAVED\x85", STORAGE_NOT_AVAILABLE),
        (b"PASSED", STORAGE_NOT_AVAILABLE),
        (b"", STORAGE_NOT_AVAILABLE),
        (b"550 5.7.1 No, thank you", REFUSED),
        (b"\n550 5.7.1 No, thank you\r\nSAVED", REFUSED),
        (b"452 4.2.2 Mailbox full", FULL),
        (b"550 5.7.1 \xff\x1b[31m", Reply(550, "5.7.1", "??[31m")),
        (b"500 Internal Server Error", STORAGE_NOT_AVAILABLE),
        (b"250 2.0.0 OK", STORAGE_NOT_AVAILABLE),
        (b"354 Go ahead", STORAGE_NOT_AVAILABLE),
        (b"421 4.3.2 Go away", STORAGE_NOT_AVAILABLE),
        (b"550 4.7.1 of two classes", STORAGE_NOT_AVAILABLE),
        (b"650 6.0.0 of none", STORAGE_NOT_AVAILABLE),
    ],
)
async def test_what_the_save_script_says(server: FakeFastCGI, fastcgi: FastCGI, body: bytes, expected: Reply) -> None:
    """Only SAVED, alone on the first line, passes on; only a reply with its enhanced code refuses."""
    server.answer = page(body)
    reply = await fastcgi.save_mail(mail(), following if expected is OK else never)
    assert reply.wire == expected.wire


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"PASSED", OK),
        (b" \r\nPASSED\t\n", OK),
        (b"PASS", NO_SUCH_USER),
        (b"PASSEDX", NO_SUCH_USER),
        (b"PASSED X", NO_SUCH_USER),
        (b"PASSED\nPASSED", NO_SUCH_USER),
        (b"passed", NO_SUCH_USER),
        (b"\xc2\xa0PASSED", NO_SUCH_USER),
        (b"PASSED\x0c", NO_SUCH_USER),
        (b"SAVED", NO_SUCH_USER),
        (b"no", NO_SUCH_USER),
        (b"", NO_SUCH_USER),
        (b"452 4.2.2 Mailbox full", FULL),
        (b"550 5.7.1 No, thank you", REFUSED),
        (b"250 2.0.0 OK", NO_SUCH_USER),
    ],
)
async def test_what_the_validate_script_says(
    server: FakeFastCGI, fastcgi: FastCGI, body: bytes, expected: Reply
) -> None:
    """Only PASSED and nothing else passes on; all else is a no, in the script's words if it has some."""
    server.answer = page(body)
    reply = await fastcgi.validate_rcpt(mail(), following if expected is OK else never)
    assert reply.wire == expected.wire


Answer: TypeAlias = Callable[[bytes], bytes]
BROKEN: dict[str, Answer] = {
    "no reply: closed after the request": lambda word: b"",
    "half a record": lambda word: page(word)[:5],
    "no end": lambda word: page(word)[: -len(end())],
    "half an end": lambda word: page(word)[:-1],
    "STDERR only": lambda word: record(STDERR, word) + end(),
    "an end and nothing else": lambda word: end(),
    "no header": lambda word: record(STDOUT, word) + end(),
    "wrong version": lambda word: record(STDOUT, b"X: y\r\n\r\n" + word, version=2) + end(),
    "the answer to another": lambda word: record(STDOUT, b"X: y\r\n\r\n" + word, request_id=2) + end(),
    "exit status": lambda word: record(STDOUT, b"X: y\r\n\r\n" + word) + end(exit_status=1),
    "overloaded": lambda word: record(STDOUT, b"X: y\r\n\r\n" + word) + end(protocol_status=2),
    "too long": lambda word: record(STDOUT, b"X: y\r\n\r\n" + word) + record(STDOUT, b"\n" * 60_000) * 9 + end(),
    "the length lies": lambda word: page(word, b"Content-Length: 99"),
    "packed": lambda word: page(word, b"Content-Encoding: gzip"),
    "HTTP 500": lambda word: page(word, b"Status: 500 Internal Server Error"),
    "HTTP 503": lambda word: page(word, b"Status: 503"),
    "no script": lambda word: page(b"File not found.", b"Status: 404 Not Found"),
    "sent elsewhere": lambda word: page(word, b"Status: 302 Found\r\nLocation: /"),
    "a refusal with HTTP 500": lambda word: page(b"550 5.7.1 No", b"Status: 500"),
}


@pytest.mark.parametrize("answer", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("word", [b"SAVED", b"PASSED"])
async def test_a_broken_answer(
    server: FakeFastCGI, fastcgi: FastCGI, log: LogCapture, answer: Answer, word: bytes
) -> None:
    """It is 451 with the cause in the log, whatever it says besides; and the next one is answered as ever."""
    ask: Callable[..., Awaitable[Reply]] = fastcgi.save_mail if word == b"SAVED" else fastcgi.validate_rcpt
    server.answer = answer(word)
    server.handler = server.once
    assert await ask(mail(), never) is STORAGE_NOT_AVAILABLE
    assert log.entries[-1]["cause"]
    server.answer = page(word)
    server.handler = server.serve
    assert await ask(mail(), following) is OK


async def test_an_outage(server: FakeFastCGI, fastcgi: FastCGI, log: LogCapture) -> None:
    """It is 451 for as long as it lasts, and no longer."""
    server.answer = page(b"SAVED")
    assert await fastcgi.save_mail(mail(), following) is OK
    await server.stop()
    for _ in range(3):
        assert await fastcgi.save_mail(mail(), never) is STORAGE_NOT_AVAILABLE
        assert await fastcgi.validate_rcpt(mail(), never) is STORAGE_NOT_AVAILABLE
    assert log.entries[-1]["cause"]
    await server.start()
    assert await fastcgi.save_mail(mail(), following) is OK
    server.answer = page(b"PASSED")
    assert await fastcgi.validate_rcpt(mail(), following) is OK


async def test_a_message_is_sent_once(server: FakeFastCGI, fastcgi: FastCGI) -> None:
    """A kept connection that dies with the message is 451, and the script does not get it a second time."""

    async def handler(caller: Caller) -> None:
        await server.once(caller)
        await server.hang_up(caller)

    server.handler = handler
    server.answer = page(b"SAVED")
    assert await fastcgi.save_mail(mail(), following) is OK
    assert await fastcgi.save_mail(mail(), never) is STORAGE_NOT_AVAILABLE
    assert len(server.requests) == 2


async def test_a_recipient_is_asked_about_again(server: FakeFastCGI, fastcgi: FastCGI) -> None:
    """A kept connection that dies with the question does not matter: it is asked again over a new one."""

    async def handler(caller: Caller) -> None:
        await server.once(caller)
        server.handler = server.serve
        await server.hang_up(caller)

    server.handler = handler
    server.answer = page(b"PASSED")
    assert await fastcgi.validate_rcpt(mail(), following) is OK
    assert await fastcgi.validate_rcpt(mail(), following) is OK
    assert len(server.requests) == 3


async def test_cancelled(server: FakeFastCGI, fastcgi: FastCGI) -> None:
    """When the time is over the connection is closed, so that the script can know it."""
    arrived = asyncio.Event()

    async def silent(caller: Caller) -> None:
        await caller.read_request()
        arrived.set()
        assert await caller.reader.read() == b""

    server.handler = silent
    await server.ended.get()  # that of initialize
    for hook in (fastcgi.save_mail, fastcgi.validate_rcpt):
        arrived.clear()
        asking = asyncio.create_task(hook(mail(), never))
        await arrived.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await server.ended.get()


async def test_stderr_is_logged(server: FakeFastCGI, fastcgi: FastCGI, log: LogCapture) -> None:
    """What a script writes there is for the operator, and decides nothing, also when the answer is broken."""
    server.answer = record(STDERR, b"no \xff room", padding=255) + page(b"SAVED")
    assert await fastcgi.save_mail(mail(), following) is OK
    assert [entry["text"] for entry in log.entries] == ["no \ufffd room"]
    server.answer = record(STDERR, b"why") + end()
    assert await fastcgi.save_mail(mail(), never) is STORAGE_NOT_AVAILABLE
    assert [entry.get("text") for entry in log.entries[1:]] == ["why", None]


async def test_over_tcp(log: LogCapture, tmp_path: Path) -> None:
    """It works over TCP as well, on IPv6 too."""
    fake = FakeFastCGI(tmp_path / "unused", page(b"SAVED"))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await fake.once(Caller(reader, writer))
        writer.close()

    for host, shown in (("127.0.0.1", "localhost"), ("::1", "[::1]")):
        listener = await asyncio.start_server(serve, host)
        port = listener.sockets[0].getsockname()[1]
        fastcgi = made(log, fcgi_connection_type="tcp", fcgi_connection_address=f"{shown}:{port}")
        assert await fastcgi.save_mail(mail(), following) is OK
        await fastcgi.shutdown()
        listener.close()


@pytest.mark.parametrize("kind", ["unix", "tcp"])
async def test_no_server_at_the_start(log: LogCapture, tmp_path: Path, kind: str) -> None:
    """The gateway does not start, and is told the key and the address."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = str(tmp_path / "nobody") if kind == "unix" else f"127.0.0.1:{closed.getsockname()[1]}"
        fastcgi = made(log, fcgi_connection_type=kind, fcgi_connection_address=address)
        with pytest.raises(RuntimeError, match=f"fcgi_connection_address: nobody answers at {address}"):
            await fastcgi.initialize()
    await fastcgi.shutdown()
    await fastcgi.shutdown()


GOOD = {
    "fcgi_script_filename_save": SAVE,
    "fcgi_script_filename_validate": VALIDATE,
    "fcgi_connection_type": "unix",
    "fcgi_connection_address": "/tmp/php-fpm.sock",
}


def test_the_keys_of_the_go_program() -> None:
    """Its example loads as it is."""
    assert FastCGIConfig(**GOOD).fcgi_max_connections == 16  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {"fcgi_script_filename_save": ""},
        {"fcgi_script_filename_validate": "/a\0b"},
        {"fcgi_connection_type": "udp"},
        {"fcgi_connection_address": "php-fpm.sock"},
        {"fcgi_connection_address": ""},
        {"fcgi_connection_address": "127.0.0.1:9000"},
        {"fcgi_connection_type": "tcp"},
        {"fcgi_connection_type": "tcp", "fcgi_connection_address": "9000"},
        {"fcgi_connection_type": "tcp", "fcgi_connection_address": "localhost:0"},
        {"fcgi_connection_type": "tcp", "fcgi_connection_address": "localhost:65536"},
        {"fcgi_connection_type": "tcp", "fcgi_connection_address": "localhost:9000\n"},
        {"fcgi_connection_type": "tcp", "fcgi_connection_address": "::1:9000"},
        {"fcgi_max_connections": 0},
    ],
)
def test_keys_that_make_no_sense(change: dict[str, Any]) -> None:
    """They are refused when the configuration is read."""
    with pytest.raises(ValidationError):
        FastCGIConfig(**GOOD | change)


@pytest.mark.parametrize("key", GOOD)
def test_keys_that_are_missing(key: str) -> None:
    """All four are needed."""
    with pytest.raises(ValidationError):
        FastCGIConfig(**{name: value for name, value in GOOD.items() if name != key})  # type: ignore[arg-type]
