"""The records of the log: put in order, made safe to print, rendered, and written, one a line.

A line is written for each message, so this is on its way; what is configured, and how it is reached, is in ``log``.
"""

from __future__ import annotations

import json
import math
import os
import stat
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson
import structlog
from structlog.typing import FilteringBoundLogger

MAX_TEXT: Final = 256
"""Characters of one value, at most."""

MAX_TRACEBACK = 16384
"""Characters of a traceback, at most; its end is kept, where the cause stands."""

_MAX_DEPTH = 4

_OTHERS_AS_BLANKS: Final = bytes(
    octet if 0x20 <= octet < 0x7F and octet not in b'"\\' else 0x20 for octet in range(256)
)
"""Of ASCII, what JSON escapes, or is not printable."""

_FEW: Final = 1e-4
_MANY: Final = 1e9
"""Milliseconds that JSON writes as Python does; beyond these are some that it writes with another exponent."""

_HUNDREDTHS: Final = tuple(str(each / 100)[1:] for each in range(100))
"""What stands behind a whole number: ".0", ".01", and so on to ".99"."""

# structlog has more methods than there are levels.
_METHODS = {"warn": "warning", "exception": "error", "fatal": "critical", "msg": "info"}

_RESERVED = frozenset({"level", "timestamp", "event", "exception"})

_COLOURS = {
    "debug": "\x1b[2m",
    "info": "\x1b[32m",
    "warning": "\x1b[33m",
    "error": "\x1b[31m",
    "critical": "\x1b[1;31m",
}


class Output:
    """The file that records go to, by a descriptor of our own and without a buffer: one, or several, in one write."""

    def __init__(self, log_file: str) -> None:
        self.is_file = log_file not in ("stderr", "stdout", "off")
        self.dropped = 0
        self._path = log_file
        self._lock = threading.Lock()
        self._torn = False
        self._descriptor = self._open()
        self._takes_many = self._is_regular()

    def _is_regular(self) -> bool:
        """Whether it is a file on a disk: a pipe that is read too slowly would tear what is too large for it."""
        return self._descriptor >= 0 and stat.S_ISREG(os.fstat(self._descriptor).st_mode)

    def _open(self) -> int:
        if self.is_file:
            # A named pipe that nobody reads, or reads too slowly, must not hold up the mail.
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
            return os.open(self._path, flags, 0o640)
        # A stream that was closed before the start is None; its number may belong to a database by now.
        stream, number = (sys.__stdout__, 1) if self._path == "stdout" else (sys.__stderr__, 2)
        return -1 if stream is None or self._path == "off" else os.dup(number)

    @property
    def is_terminal(self) -> bool:
        """Whether a person looks at it, and wants colours."""
        return self._descriptor >= 0 and os.isatty(self._descriptor) and not os.environ.get("NO_COLOR")

    def write(self, octets: bytes) -> None:
        """Append a line, if the file can take it."""
        with self._lock:
            if self._torn:
                octets = b"\n" + octets
            try:
                written = os.write(self._descriptor, octets)
            except OSError:
                self.dropped += 1
                return
            # On a full disk the beginning may fit: the next record must not be glued to it.
            self._torn = written < len(octets)
            self.dropped += self._torn

    def write_all(self, lines: list[bytes]) -> None:
        """Append lines in their order, if the file can take them: all in one write, where that is well."""
        if len(lines) == 1 or not self._takes_many:
            for line in lines:
                self.write(line)
            return
        with self._lock:
            if self._torn:
                lines[0] = b"\n" + lines[0]
            try:
                written = os.write(self._descriptor, b"".join(lines))
            except OSError:
                self.dropped += len(lines)
                return
            self._torn = False
            for line in lines:
                if written < len(line):
                    self._torn = self._torn or written > 0
                    self.dropped += 1
                    written = 0
                else:
                    written -= len(line)

    def reopen(self) -> None:
        """Open the file anew. Raises OSError; then the old one stays in use."""
        if not self.is_file:
            return
        fresh = self._open()
        with self._lock:
            old, self._descriptor = self._descriptor, fresh
            self._torn = False
            self._takes_many = self._is_regular()
        if old >= 0:
            os.close(old)

    def close(self) -> None:
        """Close it. What is written afterwards is dropped, and counted."""
        with self._lock:
            old, self._descriptor = self._descriptor, -1
        if old >= 0:
            os.close(old)


class Lines:
    """Lines about messages that one turn of the loop answers: held, they are written together, in their order.

    Who holds them writes them before it sends a reply, and before it returns to the loop.
    """

    __slots__ = ("_lines", "_output", "held")

    def __init__(self) -> None:
        self.held = False
        self._output: Output | None = None
        self._lines: list[bytes] = []

    def put(self, output: Output, line: bytes) -> None:
        """Write the line to the output, or hold it back."""
        if not self.held:
            output.write(line)
            return
        if output is not self._output:
            self.write()
            self._output = output
        self._lines.append(line)

    def write(self) -> None:
        """Write what was held back."""
        if self._lines and self._output is not None:
            lines, self._lines = self._lines, []
            self._output.write_all(lines)


class Records:
    """Puts each record in order, makes it safe, renders it, and writes it.

    ``informs``: those of level info are wanted. Only ``log_message`` asks; whoever else writes has looked at the level.
    """

    def __init__(self, render: Callable[[dict[str, Any]], bytes], output: Output, *, informs: bool = True) -> None:
        self.informs = informs
        self._render = render
        self._json = render is json_line
        self._output = output
        self._second = (-1, "")
        """The latest second, and how it is written: a busy log has many records in one."""

    def write(self, method: str, event: object, fields: dict[str, Any]) -> None:
        """Write what a method of the logger was given."""
        try:
            line = self._render(self.record(method, event, fields))
        except Exception:  # a value that cannot be written must not fail the mail it belongs to
            self._output.dropped += 1
        else:
            self._output.write(line)

    def write_message(
        self,
        outcome: str,
        queued_id: object,
        client: object,
        sender: str,
        recipients: list[str],
        size: int,
        reply: str,
        ms: float,
        lines: Lines | None = None,
    ) -> bool:
        """Write the line of a message, if it is JSON and nothing in it has to be made safe, and return whether.

        It is what ``write`` makes of these fields, put together by hand. It is put to ``lines`` if there are others.
        """
        if not (self._json and type(queued_id) is str and type(client) is str and recipients):
            return False
        if type(sender) is not str or type(reply) is not str or (ms and not _FEW <= ms < _MANY):
            return False
        texts = f"{queued_id}{client}{sender}{''.join(recipients)}{reply}"
        if len(texts) > MAX_TEXT or not texts.isascii():
            return False
        octets = texts.encode()
        if octets.translate(_OTHERS_AS_BLANKS) != octets:
            return False
        names = '","'.join(recipients)
        line = (
            f'{{"level":"info","timestamp":"{self._timestamp()}","event":"message","outcome":"{outcome}",'
            f'"queued_id":"{queued_id}","client":"{client}","sender":"{sender}","recipients":["{names}"],'
            f'"size":{size},"reply":"{reply}","ms":{_number(ms)}}}\n'
        )
        if lines is None:
            self._output.write(line.encode())
        else:
            lines.put(self._output, line.encode())
        return True

    def record(self, method: str, event: object, fields: dict[str, Any]) -> dict[str, Any]:
        """Return level, time, event, then the fields, all of it safe to print."""
        traceback = _traceback(fields) if "exc_info" in fields else ""
        record = {"level": _METHODS.get(method, method), "timestamp": self._timestamp(), "event": _safe(event)}
        for name, value in fields.items():
            name = _escaped(name)
            record[name + "_" if name in _RESERVED else name] = _safe(value)
        if traceback:
            record["exception"] = traceback
        return record

    def _timestamp(self) -> str:
        """Return the time in UTC, in milliseconds."""
        milliseconds = time.time_ns() // 1_000_000
        second = milliseconds // 1000
        latest, written = self._second  # the two in one: threads write here, each in a second of its own
        if second != latest:
            written = time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(second))
            self._second = second, written
        return f"{written}{str(1000 + milliseconds % 1000)[1:]}Z"


def _number(value: float) -> str:
    """Return ``str(value)``, in a fifth of the time if it has two decimal places at most."""
    hundredths = int(value * 100 + 0.5)
    return f"{hundredths // 100}{_HUNDREDTHS[hundredths % 100]}" if hundredths / 100 == value else str(value)


def log_message(
    log: FilteringBoundLogger,
    outcome: str,
    queued_id: object,
    client: object,
    sender: str,
    recipients: list[str],
    size: int,
    reply: str,
    ms: float,
    lines: Lines | None = None,
) -> None:
    """Do what ``log.info("message", outcome=outcome, …)`` does, mostly in less time: it is done for each message.

    It may be held back with other ``lines``; none about a message is written before those that came before it.
    """
    ours: Any = log
    records = getattr(ours, "_logger", None)
    if (
        isinstance(records, Records)
        and records.informs
        and not ours._context
        and records.write_message(outcome, queued_id, client, sender, recipients, size, reply, ms, lines)
    ):
        return
    if lines is not None:
        lines.write()
    log.info(
        "message",
        outcome=outcome,
        queued_id=queued_id,
        client=client,
        sender=sender,
        recipients=recipients,
        size=size,
        reply=reply,
        ms=ms,
    )


def _traceback(fields: dict[str, Any]) -> str:
    """Take ``exc_info`` out of the fields, and return what it stands for."""
    if not fields["exc_info"]:
        del fields["exc_info"]
        return ""
    return _lines(structlog.processors.format_exc_info(None, "", fields).pop("exception", ""))


def _safe(value: Any, depth: int = 0) -> Any:
    """Return the value as JSON may have it, with every text in it printable and short."""
    kind = type(value)
    if kind is str:
        return value if len(value) <= MAX_TEXT and value.isprintable() else _escaped(value)
    if value is None or kind is int or kind is bool:
        return value
    if kind is list and depth < _MAX_DEPTH:
        return [_safe(item, depth + 1) for item in value]
    if isinstance(value, str):
        return _escaped(value)
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, bytes | bytearray):
        return _escaped(value[: MAX_TEXT + 1].decode("ascii", "backslashreplace"))
    if isinstance(value, list | tuple | set | frozenset | Mapping):
        if depth == _MAX_DEPTH:
            return "…"
        if isinstance(value, Mapping):
            return {_safe(str(name)): _safe(item, depth + 1) for name, item in value.items()}
        return [_safe(item, depth + 1) for item in value]
    return _escaped(str(value))


def _escaped(text: str) -> str:
    r"""Write what is not printable as ``\xNN``, ``\uNNNN`` or ``\UNNNNNNNN``, and cut the text."""
    cut = len(text) > MAX_TEXT
    text = text[:MAX_TEXT]
    if not text.isprintable():
        text = "".join(each if each.isprintable() else _escape(ord(each)) for each in text)
    return text[: MAX_TEXT - 1] + "…" if cut or len(text) > MAX_TEXT else text


def _escape(code: int) -> str:
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _lines(traceback: str) -> str:
    return "\n".join(_escaped(line) for line in traceback[-MAX_TRACEBACK:].split("\n"))


_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


_dumps: Final = orjson.dumps  # a name of this module is found sooner than that of another
_NEWLINE: Final = orjson.OPT_APPEND_NEWLINE


def json_line(record: object) -> bytes:
    """Render a record, or a part of one, for a program."""
    try:
        return _dumps(record, None, _NEWLINE)
    except TypeError:  # a number that does not fit into 64 bits
        return _octets(_encode(record) + "\n")


def _octets(line: str) -> bytes:
    return line.encode("utf-8", "backslashreplace")


class Console:
    """One line a record; a traceback follows it indented, so that no line of it can pass for a record."""

    def __init__(self, *, colours: bool) -> None:
        self._levels = {
            level: f"{colour}{level:<8}\x1b[0m" if colours else f"{level:<8}" for level, colour in _COLOURS.items()
        }

    def __call__(self, record: dict[str, Any]) -> bytes:
        """Render a record for a person."""
        level = self._levels[record.pop("level")]
        return _octets(f"{record.pop('timestamp')} {level} {plain(record)}\n")


def plain(record: dict[str, Any]) -> str:
    """Render the event and the fields: what is left of a record without level and timestamp."""
    traceback = record.pop("exception", "")
    line = f"{record.pop('event')}"
    for name, value in record.items():
        line += f" {name}={_word(value)}"
    if traceback:
        line += "\n    " + traceback.replace("\n", "\n    ")
    return line


def _word(value: Any) -> str:
    """Write a value so that it ends where it seems to: quoted if it holds a space, a quote or an equals sign."""
    if isinstance(value, str) and value and not any(each in value for each in ' "='):
        return value
    return _encode(value)
