"""FastCGI 1.0 as a web server speaks it: a request in records, and the answer read from records. Bytes in, bytes out.

No sockets, no clock, no log. The sections named here are those of the FastCGI specification of 1996. One request at a
time is on a connection, as with every web server, so its id is always the same.

Written here because no kept library is a client: on PyPI there are fcgi-client (one release, blocking, whole answers
without bounds) and gevent-fastcgi (2019, gevent); the others are servers.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

MAX_STDOUT: Final = 64 * 1024
"""Octets of answer, its header included, that are taken: a verdict is one line."""

MAX_STDERR: Final = 64 * 1024
"""Octets of STDERR that are kept; what lies beyond is dropped: it is for the log, and decides nothing."""

_MAX_CONTENT = 65_535
"""Section 3.3: the content of a record."""

_VERSION = 1
_REQUEST_ID = 1
_HEADER = struct.Struct(">BBHHBx")
"""Section 3.3: version, type, request id, content length, padding length, reserved."""

_BEGIN_BODY = struct.pack(">HB5x", 1, 1)
"""Section 5.1: the role FCGI_RESPONDER, and the flag FCGI_KEEP_CONN."""

_END_BODY = struct.Struct(">IB3x")
"""Section 5.5: application status, protocol status."""

_STATUS = re.compile(rb"([1-5][0-9]{2})(?: [^\r\n]*)?")
_LENGTH = re.compile(rb"[0-9]{1,9}")
_FIELD = re.compile(rb"([!-9;-~]+):([^\r\n]*)")
_END_OF_HEADER = re.compile(rb"\r?\n\r?\n")


class RecordType(IntEnum):
    """The types of record that are used here (section 8)."""

    BEGIN_REQUEST = 1
    END_REQUEST = 3
    PARAMS = 4
    STDIN = 5
    STDOUT = 6
    STDERR = 7


class ProtocolError(Exception):
    """The server did not keep to FastCGI or CGI, or did not bring the request to its end; the text says how."""


@dataclass(frozen=True, slots=True)
class Output:
    """All that a script has put out, and how it ended."""

    stdout: bytes
    stderr: bytes
    exit_status: int


@dataclass(frozen=True, slots=True)
class Response:
    """What a script has answered: an HTTP status and a body."""

    status: int
    body: bytes


def request(params: Mapping[str, str], body: Iterable[bytes] = ()) -> Iterator[bytes]:
    """Yield a request as it is sent, a piece at a time, so that a large body is never whole in memory.

    ``body`` is the STDIN of the script, in pieces of any size. Who gets an answer before the last piece is sent, gets
    it from a script that has not read all of the body.
    """
    pairs = b"".join(_pair(name.encode(), value.encode()) for name, value in params.items())
    begin = _record(RecordType.BEGIN_REQUEST, _BEGIN_BODY)
    piece = b"".join((begin, *_stream(RecordType.PARAMS, pairs), _record(RecordType.PARAMS)))
    for content in body:
        for record in _stream(RecordType.STDIN, content):
            yield piece
            piece = record
    # Section 3.3: an empty record ends a stream.
    yield piece + _record(RecordType.STDIN)


def _stream(record_type: RecordType, content: bytes) -> Iterator[bytes]:
    for start in range(0, len(content), _MAX_CONTENT):
        yield _record(record_type, content[start : start + _MAX_CONTENT])


def _record(record_type: RecordType, content: bytes = b"") -> bytes:
    return _HEADER.pack(_VERSION, record_type, _REQUEST_ID, len(content), 0) + content


def _pair(name: bytes, value: bytes) -> bytes:
    """Section 3.4: both lengths go in front, so that no value can become a name."""
    return b"".join((_length(name), _length(value), name, value))


def _length(octets: bytes) -> bytes:
    size = len(octets)
    return bytes((size,)) if size < 128 else struct.pack(">I", size | 1 << 31)


class OutputReader:
    """Reads the answer to one request: ``feed`` it what comes until ``output`` is there."""

    def __init__(self) -> None:
        self.output: Output | None = None
        """The answer, once it is whole."""
        self._input = bytearray()
        self._stdout = bytearray()
        self._stderr = bytearray()
        self.started = False
        """Whether anything has come."""

    @property
    def clean(self) -> bool:
        """Whether the answer is whole and nothing came after it, so that the connection can take another request."""
        return self.output is not None and not self._input

    def feed(self, data: bytes) -> None:
        """Take what came, cut anywhere.

        Raises:
            ProtocolError: if it is not the answer to our request, is too long, or says that the request failed.
        """
        self.started = True
        self._input += data
        while self.output is None and len(self._input) >= _HEADER.size:
            version, record_type, request_id, length, padding = _HEADER.unpack_from(self._input)
            if version != _VERSION:
                raise ProtocolError(f"a record of version {version}, where FastCGI has {_VERSION}")
            if request_id != _REQUEST_ID:
                raise ProtocolError(f"a record for request {request_id}, where there is only {_REQUEST_ID}")
            end = _HEADER.size + length
            if len(self._input) < end + padding:
                return
            content = bytes(self._input[_HEADER.size : end])
            del self._input[: end + padding]
            self._take(record_type, content)

    def _take(self, record_type: int, content: bytes) -> None:
        match record_type:
            case RecordType.STDOUT:
                if len(self._stdout) + len(content) > MAX_STDOUT:
                    raise ProtocolError(f"an answer of more than {MAX_STDOUT} octets")
                self._stdout += content
            case RecordType.STDERR:
                self._stderr += content[: MAX_STDERR - len(self._stderr)]
            case RecordType.END_REQUEST:
                self._end(content)
            case _:
                raise ProtocolError(f"a record of type {record_type}, which answers nothing")

    def _end(self, content: bytes) -> None:
        if len(content) != _END_BODY.size:
            raise ProtocolError(f"an END_REQUEST of {len(content)} octets, where it has {_END_BODY.size}")
        exit_status, protocol_status = _END_BODY.unpack(content)
        if protocol_status:
            # Section 5.5: 1 no second request on this connection, 2 overloaded, 3 unknown role.
            raise ProtocolError(f"the request was not carried out: protocol status {protocol_status}")
        self.output = Output(bytes(self._stdout), bytes(self._stderr), exit_status)


def response(output: Output) -> Response:
    """Read the CGI response (RFC 3875 section 6) in the output of a script.

    Raises:
        ProtocolError: if there is none, if it was cut short, or if the script failed.
    """
    if output.exit_status:
        raise ProtocolError(f"the script ended with status {output.exit_status}")
    end = _END_OF_HEADER.search(output.stdout)
    if end is None:
        raise ProtocolError("an answer without a CGI header")
    body = output.stdout[end.end() :]
    header: dict[bytes, bytes] = {}
    for line in output.stdout[: end.start()].split(b"\n"):
        match = _FIELD.fullmatch(line.removesuffix(b"\r"))
        if match is None:
            raise ProtocolError("an answer whose CGI header is none")
        header[match[1].lower()] = match[2].strip(b" \t")
    status = _STATUS.fullmatch(header.get(b"status", b"200"))
    if status is None:
        raise ProtocolError("an answer whose Status is none")
    length = header.get(b"content-length")
    if length is not None and not (_LENGTH.fullmatch(length) and int(length) == len(body)):
        raise ProtocolError("an answer whose Content-Length is not that of its body")
    if header.get(b"content-encoding", b"identity").lower() != b"identity":
        raise ProtocolError("an encoded answer, which was not asked for")  # and is not unpacked: it may be a bomb
    return Response(int(status[1]), body)
