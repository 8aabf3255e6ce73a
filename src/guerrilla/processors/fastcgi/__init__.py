"""FastCGI: hands mail to a script, as a web server hands over a request; php-fpm is the usual other end."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Literal

from pydantic import field_validator, model_validator

from guerrilla.backends.processor import CallNext, Envelope, Field, Processor, ProcessorConfig, Reply
from guerrilla.processors.fastcgi.client import Client, Connection
from guerrilla.processors.fastcgi.form import encode, encode_fields, encoded_length
from guerrilla.processors.fastcgi.protocol import ProtocolError, Response, request, response
from guerrilla.smtp.replies import NO_SUCH_USER, STORAGE_NOT_AVAILABLE

_TCP_ADDRESS = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+)):([0-9]{1,5})")

_BLANK = b" \t\r\n"

_MAX_ON_LOOP = 1 << 20
"""Octets that are counted at once, in about a millisecond; more goes to a thread: it may have to come from disk."""


class FastCGIConfig(ProcessorConfig):
    """The keys of FastCGI."""

    fcgi_script_filename_save: str = Field(
        min_length=1, description="The script that keeps a message, by its full path where the FastCGI server runs."
    )
    fcgi_script_filename_validate: str = Field(
        min_length=1, description="The script that knows the recipients, by its full path."
    )
    fcgi_connection_type: Literal["unix", "tcp"] = Field(
        description='How the FastCGI server is reached: "unix" for a socket in the file system, or "tcp".'
    )
    fcgi_connection_address: str = Field(
        description="Where it is: the full path of the socket, or host:port; an IPv6 address stands in brackets."
    )
    fcgi_max_connections: int = Field(
        default=16,
        ge=1,
        description="How many requests are on their way at a time. No more than there are processes to take them "
        "(pm.max_children of php-fpm): the others would only wait there.",
    )

    @field_validator("fcgi_script_filename_save", "fcgi_script_filename_validate", "fcgi_connection_address")
    @classmethod
    def _check_text(cls, value: str) -> str:
        if "\0" in value:
            raise ValueError("there is a NUL in it")
        return value

    @model_validator(mode="after")
    def _check_address(self) -> FastCGIConfig:
        if self.fcgi_connection_type == "unix":
            if not PurePosixPath(self.fcgi_connection_address).is_absolute():
                raise ValueError("fcgi_connection_address: the full path of a socket is meant, as in /run/php-fpm.sock")
        else:
            _host_and_port(self.fcgi_connection_address)
        return self


class FastCGI(Processor[FastCGIConfig]):
    """Hands the message to a script, and asks a script about recipients, over FastCGI.

    Reads ``delivery_header``, ``data``, ``subject`` and what the dialogue learnt; sets nothing. List HeadersParser and
    Header before it, and list it last, as with the Go program: what a script has kept cannot be taken back when a
    later processor refuses the message.

    *The save script* gets a POST with the fields ``rcpt_to_0``, ``rcpt_to_1`` and so on, ``remote_ip``, ``subject``,
    ``tls_on`` ("true" or "false"), ``helo``, ``mail_from`` (empty for a bounce) and, as the last one, ``body``: the
    whole message, octet for octet. It writes ``SAVED`` as the first line when it has the message safely, and nothing
    else counts as a yes. PHP drops what goes beyond its ``post_max_size`` and ``max_input_vars``, and takes a request
    that ends too early because our time was over; it runs the script all the same. So a script keeps a message only
    if there is a ``body``, and ``php://input`` is as long as ``CONTENT_LENGTH`` says; ``examples/save.php`` does so.

    *The validate script* gets a GET with ``rcpt_to``. It writes ``PASSED`` and nothing else for a yes. Any other answer
    is a no, 550.

    A script refuses in words of its own by a reply with its enhanced code as the first line, such as
    ``550 5.7.1 No, thank you``. Whatever else comes is our fault, not the sender's, and is answered 451: no connection,
    a broken answer, an exit status, an HTTP status that is not 2yz. So ``display_errors`` must be off, as it is in
    production, or PHP answers "200 OK" when the script has crashed. What a script writes to STDERR is logged.
    """

    def __init__(self, config: FastCGIConfig) -> None:
        super().__init__(config)
        self._client = Client(self._connect, maximum=config.fcgi_max_connections)

    async def initialize(self) -> None:
        """See that the server is there.

        Raises:
            RuntimeError: if it is not, with what is wrong and what is meant.
        """
        try:
            await self._client.probe()
        except OSError as error:
            raise RuntimeError(
                f"fcgi_connection_address: nobody answers at {self.config.fcgi_connection_address}: "
                f"{error.strerror or error}. A running FastCGI server is meant that this user may connect to."
            ) from error

    async def shutdown(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def validate_rcpt(self, envelope: Envelope, call_next: CallNext) -> Reply:
        """Ask the validate script about the last recipient; pass on if it says PASSED."""
        params = _params(self.config.fcgi_script_filename_validate) | {
            "REQUEST_METHOD": "GET",
            "QUERY_STRING": encode_fields([("rcpt_to", str(envelope.rcpt_to[-1]))]).decode(),
        }
        try:
            answer = await self._ask(lambda: request(params), repeatable=True)
        except (OSError, ProtocolError) as error:
            self.log.error("the validate script did not answer", cause=str(error))
            return STORAGE_NOT_AVAILABLE
        if answer.body.strip(_BLANK) == b"PASSED":
            return await call_next()
        return _reply_in(answer) or NO_SUCH_USER

    async def save_mail(self, envelope: Envelope, call_next: CallNext) -> Reply:
        """Hand the message to the save script; pass on if it says SAVED."""
        head = encode_fields(_fields(envelope)) + b"&body="
        if len(envelope) <= _MAX_ON_LOOP:
            size = _size(envelope)
        else:
            size = await asyncio.to_thread(_size, envelope)
        params = _params(self.config.fcgi_script_filename_save) | {
            "REQUEST_METHOD": "POST",
            "CONTENT_TYPE": "application/x-www-form-urlencoded",
            "CONTENT_LENGTH": str(len(head) + size),
        }

        def form() -> Iterator[bytes]:
            yield head
            yield from map(encode, envelope.chunks())

        try:
            answer = await self._ask(lambda: request(params, form()), repeatable=False)
        except (OSError, ProtocolError) as error:
            self.log.error("the save script did not answer", queued_id=envelope.queued_id, cause=str(error))
            return STORAGE_NOT_AVAILABLE
        if _first_line(answer) == b"SAVED":
            return await call_next()
        refusal = _reply_in(answer)
        if refusal is None:
            self.log.error(
                "the save script did not keep the message",
                queued_id=envelope.queued_id,
                found=repr(_first_line(answer)[:80]),
                meant="SAVED, or a reply such as 550 5.7.1 No, thank you",
            )
        return refusal or STORAGE_NOT_AVAILABLE

    async def _connect(self, protocol: Callable[[], Connection]) -> tuple[object, Connection]:
        loop = asyncio.get_running_loop()
        address = self.config.fcgi_connection_address
        if self.config.fcgi_connection_type == "unix":
            return await loop.create_unix_connection(protocol, address)
        return await loop.create_connection(protocol, *_host_and_port(address))

    async def _ask(self, make_request: Callable[[], Iterator[bytes]], *, repeatable: bool) -> Response:
        output = await self._client.request(make_request, repeatable=repeatable)
        if output.stderr:
            self.log.warning("the script wrote to STDERR", text=output.stderr.decode("utf-8", "replace"))
        answer = response(output)
        if not 200 <= answer.status <= 299:
            raise ProtocolError(f"HTTP status {answer.status}")
        return answer


def _params(script: str) -> dict[str, str]:
    """Return the parameters that both requests have. Nothing here comes from a client."""
    return {
        "GATEWAY_INTERFACE": "CGI/1.1",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_SOFTWARE": "guerrilla",
        "REMOTE_ADDR": "127.0.0.1",
        "SCRIPT_FILENAME": script,
        "SCRIPT_NAME": script,
        "QUERY_STRING": "",
    }


def _host_and_port(address: str) -> tuple[str, int]:
    match = _TCP_ADDRESS.fullmatch(address)
    if match is None or not 1 <= int(match[3]) <= 65535:
        raise ValueError("fcgi_connection_address: host:port is meant, as in 127.0.0.1:9000 or [::1]:9000")
    return match[1] or match[2], int(match[3])


def _fields(envelope: Envelope) -> list[tuple[str, str]]:
    """Return the fields of the form but for the body, named as in the Go program."""
    return [
        *((f"rcpt_to_{number}", str(recipient)) for number, recipient in enumerate(envelope.rcpt_to)),
        ("remote_ip", envelope.remote_ip),
        ("subject", envelope.subject),
        ("tls_on", "true" if envelope.tls is not None else "false"),
        ("helo", envelope.helo),
        ("mail_from", str(envelope.mail_from)),
    ]


def _size(envelope: Envelope) -> int:
    """Return the encoded size of the message."""
    return sum(map(encoded_length, envelope.chunks()))


def _first_line(answer: Response) -> bytes:
    """Return the first line that is not blank: an empty line before ``<?php`` is a script's commonest slip."""
    return answer.body.lstrip(_BLANK).partition(b"\n")[0].rstrip(_BLANK)


def _reply_in(answer: Response) -> Reply | None:
    """Return the refusal that the script has worded itself, if it has.

    The enhanced code is asked for: a program that says "500 Internal Server Error" has decided nothing. 421 is not a
    script's to say, since it ends the dialogue.
    """
    try:
        reply = Reply.parse(_first_line(answer).decode("ascii", "replace"))
    except ValueError:
        return None
    return reply if reply.code >= 400 and reply.code != 421 and reply.enhanced else None
