"""For the tests of the server: servers on free ports, clients that send exactly what they are told to, a certificate.

All of it runs on uvloop and on asyncio's own loop, and whatever a test does: at its end nobody may be counted, no
memory be held, no task be left, and nothing have gone wrong that only the event loop saw.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from structlog.testing import LogCapture

from guerrilla.backends.base import Backend
from guerrilla.config import ServerConfig
from guerrilla.counters import Counters
from guerrilla.envelope import Envelope
from guerrilla.event_bus import EventBus
from guerrilla.server.connection import Connection
from guerrilla.server.limits import Memory
from guerrilla.server.listener import Server
from guerrilla.server.policy import Policy
from guerrilla.server.sockets import open_sockets
from guerrilla.server.spool import Spool
from guerrilla.server.wire import Wire
from guerrilla.server.witness import Witness
from guerrilla.smtp.hosts import AllowedHosts
from guerrilla.smtp.replies import Reply
from guerrilla.testing.recording import RecordingBackend

PATIENCE = 20.0
"""Seconds after which a test that waits for what never comes is a failure; no test comes near it."""


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}


async def until(condition: Callable[[], object]) -> None:
    """Let the loop turn until the condition holds."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0)


class Client:
    """A client over a socket of its own, in clear or in TLS."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.was_reset = False
        self._loop = asyncio.get_running_loop()
        self._received = b""
        self._tls: ssl.SSLObject | None = None
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()

    @property
    def port(self) -> int:
        return int(self.sock.getsockname()[1])

    async def send(self, octets: bytes) -> None:
        """Send octets as they are."""
        if self._tls is not None:
            self._tls.write(octets)
            await self.flush()
            return
        async with asyncio.timeout(PATIENCE):
            await self._loop.sock_sendall(self.sock, octets)

    async def flush(self) -> None:
        """Send what TLS has to say."""
        async with asyncio.timeout(PATIENCE):
            await self._loop.sock_sendall(self.sock, self._outgoing.read())

    async def receive(self) -> bytes:
        """Return what comes next; nothing at the end of the connection, however it ends."""
        while True:
            if self._tls is not None:
                try:
                    return self._tls.read(65536)
                except ssl.SSLWantReadError:
                    pass
            async with asyncio.timeout(PATIENCE):
                try:
                    octets = await self._loop.sock_recv(self.sock, 65536)
                except ConnectionResetError:
                    self.was_reset = True
                    return b""
            if self._tls is None or not octets:
                return octets
            self._incoming.write(octets)

    async def reply(self) -> str:
        """Return the next reply, all lines of it."""
        lines: list[str] = []
        while not lines or lines[-1][3:4] == "-":
            while b"\r\n" not in self._received:
                octets = await self.receive()
                assert octets, f"the server has hung up after {lines}"
                self._received += octets
            line, _, self._received = self._received.partition(b"\r\n")
            lines.append(line.decode("ascii"))
        return "\n".join(lines)

    async def say(self, line: str) -> str:
        """Send a line, and return the reply to it."""
        await self.send(line.encode() + b"\r\n")
        return await self.reply()

    async def talk(self, *lines: str) -> list[str]:
        """Send lines one by one, and return the codes of the replies."""
        return [(await self.say(line))[:3] for line in lines]

    async def begin(self) -> None:
        """Read the greeting, and go on up to the 354 of a message."""
        assert (await self.reply())[:4] == "220 "
        assert await self.talk("EHLO client.test", *TRANSACTION) == ["250", "250", "250", "354"]

    async def rest(self) -> bytes:
        """Return all that comes up to the end of the connection."""
        parts, self._received = [self._received], b""
        while octets := await self.receive():
            parts.append(octets)
        return b"".join(parts)

    async def secure(
        self,
        context: ssl.SSLContext,
        *,
        early: bytes = b"",
        server_name: str | None = "mx.test",
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        """Do the TLS handshake; ``early`` leaves in one segment with its last octets."""
        tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_name, session=session)
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    await self._loop.sock_sendall(self.sock, self._outgoing.read())
                    octets = await self._loop.sock_recv(self.sock, 65536)
                    if not octets:
                        raise ConnectionResetError("the server has hung up in the handshake") from None
                    self._incoming.write(octets)
            if early:
                tls.write(early)
            await self._loop.sock_sendall(self.sock, self._outgoing.read())
        self._tls = tls
        return tls

    def end(self) -> None:
        """Send no more, but go on reading."""
        self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.sock.close()

    def reset(self) -> None:
        """Vanish with a reset."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


class Gate:
    """A backend whose answer is given by hand: ``answer`` is a future once it is asked."""

    validates = False

    def __init__(self) -> None:
        self.answer: asyncio.Future[Reply] | None = None
        self.asked_for = 0
        """How many messages it has been asked about."""
        self.size = 0
        """Octets of the last one."""

    def process(self, envelope: Envelope) -> asyncio.Future[Reply]:
        self.answer = asyncio.get_running_loop().create_future()
        self.asked_for += 1
        self.size = len(envelope.data)
        return self.answer

    def validate_rcpt(self, envelope: Envelope) -> asyncio.Future[Reply]:
        raise AssertionError("nobody is to be asked about")

    async def asked(self) -> None:
        """Wait until a message is here."""
        await until(lambda: self.answer)

    def open(self, reply: Reply) -> None:
        assert self.answer is not None
        self.answer.set_result(reply)


TRANSACTION = ("MAIL FROM:<a@client.test>", "RCPT TO:<b@example.com>", "DATA")


class House:
    """A running server, what it was made of, and its clients."""

    def __init__(self, server: Server, backend: Backend, memory: Memory, log: LogCapture) -> None:
        self.server = server
        self.memory = memory
        self.log = log.entries
        self._backend = backend
        self._clients: list[Client] = []

    @property
    def backend(self) -> RecordingBackend:
        assert isinstance(self._backend, RecordingBackend)
        return self._backend

    def client(self, *, source: str = "127.0.0.1") -> Client:
        """Make a client that has yet to connect."""
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)  # so that it takes little to overwhelm a client
        sock.setblocking(False)
        sock.bind((source, 0))
        client = Client(sock)
        self._clients.append(client)
        return client

    async def connect(self, client: Client | None = None, *, source: str = "127.0.0.1") -> Client:
        """Open a connection; nothing is read yet."""
        client = client or self.client(source=source)
        await asyncio.get_running_loop().sock_connect(client.sock, self.server.address)
        return client

    async def greeted(self) -> Client:
        """Open a connection, and say EHLO."""
        client = await self.connect()
        await client.reply()
        await client.say("EHLO client.test")
        return client

    def narrow(self, connection: Connection) -> None:
        """Have the system hold little of what is sent to a client: so it takes little to fill it."""
        assert isinstance(connection._transport, Wire)
        with socket.socket(fileno=os.dup(connection._transport._number)) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)

    async def until(self, condition: Callable[[], object]) -> None:
        await until(condition)

    async def empty(self) -> None:
        """Wait until no client is left."""
        await until(lambda: not self.server.connections)

    async def close(self) -> None:
        await self.server.close()
        for client in self._clients:
            client.close()


class HouseMaker:
    """Starts servers. ``timeout`` may be less than the second that a configuration allows."""

    def __init__(self, certificate: Certificate, folder: Path) -> None:
        self.houses: list[House] = []
        self._certificate = certificate
        self._folder = folder

    def __call__(
        self,
        backend: Backend | None = None,
        *,
        timeout: float | None = None,
        memory_limit: int = 1 << 27,
        spool_threshold: int = 131072,
        start_tls_on: bool = False,
        tls_always_on: bool = False,
        **config: Any,
    ) -> House:
        backend = backend or RecordingBackend()
        memory = Memory(memory_limit)
        capture = LogCapture()
        if start_tls_on or tls_always_on:
            config["tls"] = {
                "start_tls_on": start_tls_on,
                "tls_always_on": tls_always_on,
                "public_key_file": self._certificate.public_key_file,
                "private_key_file": self._certificate.private_key_file,
            }
        policy = Policy(
            ServerConfig(**{"listen_interface": "127.0.0.1:0", "host_name": "mx.test", **config}),
            hosts=AllowedHosts(["example.com"]),
            backend=backend,
            spool=Spool(memory, spool_threshold, str(self._folder)),
            log=structlog.wrap_logger(
                None, processors=[capture], wrapper_class=structlog.make_filtering_bound_logger(0)
            ).bind(),
        )
        if timeout is not None:
            policy.timeout = timeout
        server = Server(policy, open_sockets(policy.config.host, policy.config.port), Witness(Counters(), EventBus()))
        server.start()
        house = House(server, backend, memory, capture)
        self.houses.append(house)
        return house


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
async def serve(certificate: Certificate, tmp_path: Path) -> AsyncIterator[HouseMaker]:
    """Give the function that starts a server."""
    loop = asyncio.get_running_loop()
    seen_by_the_loop: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: seen_by_the_loop.append(context))
    tasks = asyncio.all_tasks()
    maker = HouseMaker(certificate, tmp_path)
    yield maker
    for house in maker.houses:
        await house.close()
        assert not house.server.connections
        assert not house.server._clients
        assert house.server._refusing == 0
        assert house.memory.held == 0
    assert asyncio.all_tasks() - tasks == {asyncio.current_task()}
    assert seen_by_the_loop == []


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate for mx.test and 127.0.0.1, in files, and what a client needs to trust it."""

    public_key_file: str
    private_key_file: str
    encrypted_key_file: str

    def client_context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.public_key_file)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    folder = tmp_path_factory.mktemp("certificate")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mx.test")])
    now = datetime.now(UTC)
    names = [x509.DNSName("mx.test"), x509.IPAddress(ipaddress.IPv4Address("127.0.0.1"))]
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    public, private, encrypted = folder / "public.pem", folder / "private.pem", folder / "encrypted.pem"
    public.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    private.write_bytes(key.private_bytes(pem, form, serialization.NoEncryption()))
    encrypted.write_bytes(key.private_bytes(pem, form, serialization.BestAvailableEncryption(b"secret")))
    return Certificate(str(public), str(private), str(encrypted))
