"""Reads a configuration file, and remembers on which line each value stands.

What is here knows JSON, TOML and the words for their faults; what the keys mean is in ``guerrilla.config``.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import stat
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from guerrilla.config_problems import ConfigError, Problem, Source
from guerrilla.files import without_waiting

MAX_OCTETS = 16 * 1024 * 1024
"""More than any configuration is long: a device or a mail store given by mistake is not read to its end."""

MAX_DEPTH = 100


class _SyntaxFaultError(Exception):
    """The text is not JSON from ``offset`` on."""

    def __init__(self, offset: int, message: str) -> None:
        super().__init__(message)
        self.offset = offset
        self.message = message


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], Source]:
    """Read a file: TOML if its name ends in ``.toml``, else JSON.

    Raises:
        ConfigError: if it cannot be read, is not UTF-8, is not JSON or TOML, or names a key twice.
    """
    name = os.fspath(path)
    text = _text(name)
    parser = _toml if Path(name).suffix.lower() == ".toml" else _json
    values, lines, problems = parser(name, text)
    source = Source(name, lines)
    if problems:
        raise ConfigError(problems, source)
    return values, source


def _text(name: str) -> str:
    try:
        octets = _octets(name)
    except FileNotFoundError:
        raise ConfigError([Problem("", "there is no such file")], Source(name)) from None
    except IsADirectoryError:
        raise ConfigError([Problem("", "this is a folder", "meant: a file")], Source(name)) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError([Problem("", f"cannot be read: {reason}")], Source(name)) from None
    if len(octets) > MAX_OCTETS:
        raise ConfigError([Problem("", "is larger than 16 MiB", "meant: a configuration file")], Source(name))
    try:
        return octets.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = octets.count(b"\n", 0, error.start) + 1
        raise ConfigError([Problem("", f"line {line} is not UTF-8 text", "meant: a text file")], Source(name)) from None


def _octets(name: str) -> bytes:
    """Return what is in a file, or comes through a pipe until its writers end, as in ``-c <(...)``.

    A pipe without a writer is empty: a daemon that reloads does not wait for one.
    """
    with open(name, "rb", opener=without_waiting) as file:
        mode = os.fstat(file.fileno()).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
            raise OSError(errno.EINVAL, "Neither a regular file nor a pipe")
        os.set_blocking(file.fileno(), True)
        return file.read(MAX_OCTETS + 1)


def _at(text: str, offset: int) -> tuple[int, int]:
    """Return line and column, both counted from 1."""
    return text.count("\n", 0, offset) + 1, offset - text.rfind("\n", 0, offset)


_Parsed = tuple[dict[str, Any], dict[str, int], list[Problem]]


# JSON


def _json(name: str, text: str) -> _Parsed:
    reader = _JSONReader(text)
    try:
        value = reader.document()
    except _SyntaxFaultError as fault:
        line, column = _at(text, fault.offset)
        problem = Problem("", f"line {line}, column {column}: {fault.message}")
        raise ConfigError([problem], Source(name)) from None
    if not isinstance(value, dict):
        raise ConfigError([Problem("", "the file is not one JSON object", "meant: { … }")], Source(name))
    return value, reader.lines, reader.problems


def _not_a_number(word: str) -> float:
    raise ValueError(f"{word} is not a number in JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError("the number is too large")
    return value


_SPACE = re.compile(r"[ \t\r\n]*")
_SCALAR_START = re.compile(r'["\-0-9tfnNI]')


class _JSONReader:
    """RFC 8259: words are read by the standard library, objects and lists here, for the sake of positions."""

    def __init__(self, text: str) -> None:
        self.lines: dict[str, int] = {}
        self.problems: list[Problem] = []
        self._text = text
        self._offset = 0
        self._line = 1
        self._counted = 0
        self._scalars = json.JSONDecoder(parse_constant=_not_a_number, parse_float=_finite)

    def document(self) -> Any:
        """Read the one value that a text holds."""
        if not self._peek():
            self._fault("the file is empty")
        value = self._value("", 0)
        if self._peek():
            self._fault("something follows after the end of the configuration")
        return value

    def _fault(self, message: str, offset: int | None = None) -> None:
        raise _SyntaxFaultError(self._offset if offset is None else offset, message)

    def _peek(self) -> str:
        """Skip white space; return the next character, or nothing at the end."""
        space = _SPACE.match(self._text, self._offset)
        assert space is not None
        self._offset = space.end()
        if self._text.startswith(("//", "/*", "#"), self._offset):
            self._fault("JSON has no comments; use a .toml file for that")
        return self._text[self._offset : self._offset + 1]

    def _mark(self, place: str) -> None:
        self._line += self._text.count("\n", self._counted, self._offset)
        self._counted = self._offset
        self.lines.setdefault(place, self._line)

    def _value(self, place: str, depth: int) -> Any:
        if depth > MAX_DEPTH:
            self._fault("objects and lists are nested too deep")
        first = self._peek()
        self._mark(place)
        if first == "{":
            return self._object(place, depth)
        if first == "[":
            return self._list(place, depth)
        return self._scalar(first)

    def _scalar(self, first: str) -> Any:
        if not first:
            self._fault("the file ends in the middle: a value is missing")
        if first == "'":
            self._fault('text stands between double quotes, "like this"')
        if not _SCALAR_START.match(first):
            self._fault(f"a value is missing before {first!r}" if first in ",]}:" else f"found {first!r} for a value")
        start = self._offset
        try:
            value, self._offset = self._scalars.raw_decode(self._text, start)
        except json.JSONDecodeError as error:
            self._fault(_PLAIN_WORDS.get(error.msg, error.msg), error.pos)
        except ValueError as error:  # from the two functions above, or a whole number of thousands of digits
            self._fault(str(error) if "digits" not in str(error) else "the number is too large", start)
        if isinstance(value, str) and not _encodable(value):
            self._fault("the text holds half of a \\u surrogate pair", start)
        return value

    def _object(self, place: str, depth: int) -> dict[str, Any]:
        self._offset += 1
        result: dict[str, Any] = {}
        while self._peek() != "}":
            if result:
                self._separator("}")
            if self._peek() != '"':
                self._fault(_NO_KEY.get(self._peek(), "a key is missing: it stands between double quotes"))
            start = self._offset
            key = self._scalar('"')
            here = f"{place}.{key}" if place else key
            if key in result:
                line = _at(self._text, start)[0]
                self.problems.append(Problem(here, f"stands here a second time on line {line}", "keep one of them"))
            self._mark(here)
            if self._peek() != ":":
                self._fault(f"a colon is missing after the key {json.dumps(key, ensure_ascii=False)}")
            self._offset += 1
            result[key] = self._value(here, depth + 1)
        self._offset += 1
        return result

    def _list(self, place: str, depth: int) -> list[Any]:
        self._offset += 1
        result: list[Any] = []
        while self._peek() != "]":
            if result:
                self._separator("]")
                if self._peek() == "]":
                    self._fault("there is a comma after the last entry")
            result.append(self._value(f"{place}[{len(result)}]", depth + 1))
        self._offset += 1
        return result

    def _separator(self, closing: str) -> None:
        found = self._peek()
        if not found:
            self._fault(f"the file ends in the middle: {closing!r} is missing")
        if found != ",":
            self._fault(f"a comma is missing before {found!r}, or {closing!r}")
        self._offset += 1


_NO_KEY = {"}": "there is a comma after the last entry", "": "the file ends in the middle: '}' is missing"}

_PLAIN_WORDS = {
    "Unterminated string starting at": "the closing double quote of this text is missing",
    "Invalid control character at": "a control character in a text: is its closing double quote missing?",
    "Expecting value": "a value is missing or misspelt: text stands between double quotes",
}


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# TOML


_HEADER = re.compile(r"[ \t]*(\[\[?)[ \t]*([A-Za-z0-9_.\-]+)[ \t]*\]")
_KEY = re.compile(r"[ \t]*([A-Za-z0-9_.\-]+)[ \t]*=")
_TOML_PLACE = re.compile(r" \(at (?:line ([0-9]+), column ([0-9]+)|end of document)\)")


def _toml(name: str, text: str) -> _Parsed:
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        # The standard library has the place at the end of its message only.
        found = _TOML_PLACE.search(str(error))
        message = _TOML_PLACE.sub("", str(error))
        where = f"line {found[1]}, column {found[2]}: " if found and found[1] else "at the end: "
        raise ConfigError([Problem("", f"{where}{message}")], Source(name)) from None
    except (RecursionError, ValueError):
        problem = Problem("", "tables are nested too deep, or a number is too large")
        raise ConfigError([problem], Source(name)) from None
    return values, _toml_lines(text), list(_infinite(values, ""))


def _toml_lines(text: str) -> dict[str, int]:
    """Find table headers and keys. Best effort: what is quoted or inside a multi-line value may be missed."""
    lines = {"": 1}
    counts: dict[str, int] = {}
    table = ""
    for number, line in enumerate(text.split("\n"), 1):
        if header := _HEADER.match(line):
            # A table below a list of tables belongs to its last entry.
            parts = header[2].split(".")
            table = ""
            for index, part in enumerate(parts):
                table = f"{table}.{part}" if table else part
                if header[1] == "[[" and index == len(parts) - 1:
                    counts[table] = counts.get(table, -1) + 1
                if table in counts:
                    table = f"{table}[{counts[table]}]"
            lines.setdefault(table, number)
        elif key := _KEY.match(line):
            lines.setdefault(f"{table}.{key[1]}" if table else key[1], number)
    return lines


def _infinite(value: object, place: str) -> Iterable[Problem]:
    """Find the inf and nan that TOML allows: no key means either."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _infinite(item, f"{place}.{key}" if place else key)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _infinite(item, f"{place}[{index}]")
    elif isinstance(value, float) and not math.isfinite(value):
        yield Problem(place, f"found {value}", "meant: a number")
