"""The header of a message, read in one linear pass, whatever was sent: its fields, and what encoded words say.

Everything here is bounded and nothing raises: a header that makes no sense is left out, a word that cannot be decoded
stays as it came. The email package of the standard library is not used: crafted headers hold it for seconds.
"""

from __future__ import annotations

import binascii
import re
from typing import Any, Final

from guerrilla.envelope import Body, Headers
from guerrilla.scan import empty_line, ordinary_fields

_MAX_BLOCK: Final = 1 << 20
"""Octets of header that are read: a hundred times what a long one has. What lies beyond is stored, but not read."""

_MAX_LINES: Final = 1_000
"""Unfolded lines that are looked at, malformed ones included: so a megabyte of tiny ones costs no time."""

_MAX_NAME: Final = 998
"""Characters in the name of a field: it cannot be folded, so it cannot be longer than a line (RFC 5322 2.1.1)."""

_MAX_VALUE: Final = 100_000
"""Characters kept of one value: the length at which Postfix cuts a header (header_size_limit, 102400)."""

_MAX_TEXT: Final = 998
"""Characters kept of a decoded value: one whole line of RFC 5322 section 2.1.1."""

_MAX_ENCODED: Final = 20_000
"""Characters of a value that are decoded: what ``_MAX_TEXT`` takes in its longest encoding (Q, four octets for
a character)."""

_PLAIN: Final = bytes(octet if octet in b"\t\r\n" or 0x20 <= octet <= 0x7E else 0x20 for octet in range(256))
"""Makes blanks of all octets but those of lines of plain text."""

_NAME: Final = re.compile(rf"[!-9;-~]{{1,{_MAX_NAME}}}")
_CONTROLS: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")

# RFC 2047 section 2, with the language of RFC 2231 section 5. A "?" ends each part, so a scan never goes back. Blanks
# inside of the text are not allowed, but are seen.
_ENCODED_WORD: Final = re.compile(r"=\?([!-)+->@-~]{1,40})(?:\*[!->@-~]{0,40})?\?([BbQq])\?([^?]*)\?=")
_BLANKS: Final = re.compile(r"[ \t]*")

# What a client may name. Only character sets: Python's codecs also know punycode, idna (both quadratic), utf-7,
# unicode_escape and others that a message must not choose.
_CHARSET: Final = re.compile(
    r"utf-?8|(?:us-)?ascii|iso-?8859-(?:[1-9]|1[013-6])|(?:windows-|cp)(?:125[0-8]|874)|koi8-[rut]"
    r"|gb2312|gbk|gb18030|big5(?:-hkscs)?|euc-(?:jp|kr)|ks_c_5601-1987|iso-2022-(?:jp(?:-[12])?|kr)"
    r"|shift[_-]jis|cp932|windows-31j|tis-620",
    re.ASCII | re.IGNORECASE,
)
_CODEC: Final = {"gb2312": "gb18030", "windows-874": "cp874", "windows-31j": "cp932"}
"""Python's name, where it has another, or where what is sent under a name is in truth the larger set."""


def parse_header(data: Body) -> Headers:
    """Return the header fields of the message: what stands before the first empty line (RFC 5322 section 2.1).

    A value is UTF-8 if it can be, otherwise ISO 8859-1; it is unfolded (section 2.2.3), without outer blanks and
    without control characters. What is no field (a line without a colon, with blanks in its name, the ``From`` line
    of an mbox) is left out, its continuation lines too.
    """
    given: Any = data  # a processor may have put a bytearray there
    end = empty_line(given, _MAX_BLOCK) if type(given) is bytes else given.find(b"\r\n\r\n", 0, _MAX_BLOCK)
    block = bytes(given[: end if end >= 0 else _MAX_BLOCK])
    fields = ordinary_fields(block, _MAX_LINES, _MAX_NAME, _MAX_VALUE)
    return Headers(_fields(block) if fields is None else fields)


def _fields(block: bytes) -> list[tuple[str, str]]:
    """Return the fields of any header, ordinary or not."""
    if block.startswith(b"\r\n"):
        return []
    unfolded = block.decode("latin-1").replace("\r\n ", " ")
    if "\t" in unfolded:
        unfolded = unfolded.replace("\r\n\t", "\t")
    plain = block.translate(_PLAIN) == block  # as most headers are: seen quicker at once than field by field
    fields: list[tuple[str, str]] = []
    for line in unfolded.split("\r\n", _MAX_LINES)[:_MAX_LINES]:
        colon = line.find(":")
        if colon < 0:
            continue
        ordinary = plain and "\r" not in line and "\n" not in line
        if name := _name(line[:colon], ordinary):
            fields.append((name, _value(line, colon + 1, ordinary)))
    return fields


def _name(name: str, ordinary: bool) -> str:
    """Return the name of a field, in which there is no colon; nothing if it cannot be one."""
    # In plain text, this is what the pattern has to say.
    if ordinary and len(name) <= _MAX_NAME and (name.isalnum() or (" " not in name and "\t" not in name)):
        return name
    # RFC 5322 section 4.5 (obsolete syntax): blanks may stand before the colon.
    name = name.rstrip(" \t")
    return name if _NAME.fullmatch(name) else ""


def _value(line: str, start: int, ordinary: bool) -> str:
    """Return the value that starts there, without outer blanks and control characters."""
    value = line[start:] if ordinary else _text(line[start:])
    return value.strip(" \t")[:_MAX_VALUE]


def _text(value: str) -> str:
    """Return the value, whose octets were read as ISO 8859-1, as text without control characters."""
    if not value.isascii():
        value = _utf8(value)
    return value if value.isprintable() else _CONTROLS.sub("", value)


def text_of(header: Headers, name: str) -> str:
    """Return the first value of a field as people read it: encoded words decoded, at most 998 characters.

    It is empty if there is no such field.
    """
    wanted = name.lower()
    # One look at each name costs less than the index that get() makes for many questions.
    for each, value in header.fields:
        if len(each) == len(wanted) and each.lower() == wanted:
            return decode_encoded_words(value[:_MAX_ENCODED])[:_MAX_TEXT]
    return ""


def _utf8(text: str) -> str:
    """Return the text, whose octets were read as ISO 8859-1, as UTF-8 if that is what they are (RFC 6532)."""
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeDecodeError:
        return text


def decode_encoded_words(text: str) -> str:
    """Return an unfolded header value with its encoded words decoded (RFC 2047), and control characters removed.

    Blanks between two encoded words go (section 6.2). The octets of neighbours in one character set are joined before
    they are decoded, since many programs cut a character in two. Words of an unknown character set, and words that do
    not decode, stay as they came.
    """
    if "=?" not in text:
        return text
    parts: list[str] = []
    run = _Run()
    end = 0
    for match in _ENCODED_WORD.finditer(text):
        start = match.start()
        octets = _octets(match)
        if octets is None:
            continue
        charset = match[1].lower()
        if not (run.charset and _BLANKS.fullmatch(text, end, start)):
            parts += run.decoded(text), text[end:start]
            run = _Run(charset, start)
        elif charset != run.charset:
            parts.append(run.decoded(text))
            run = _Run(charset, start)
        run.octets += octets
        run.end = end = match.end()
    parts += run.decoded(text), text[end:]
    return _CONTROLS.sub("", "".join(parts))


class _Run:
    """Encoded words that stand side by side in one character set, as octets, and where they stand in the text."""

    __slots__ = ("charset", "end", "octets", "start")

    def __init__(self, charset: str = "", start: int = 0) -> None:
        self.charset = charset
        self.start = self.end = start
        self.octets = bytearray()

    def decoded(self, text: str) -> str:
        """Return what the words say, or the words themselves if the octets are not of their character set."""
        try:
            return self.octets.decode(_CODEC.get(self.charset, self.charset or "ascii"))
        except (LookupError, UnicodeError):  # a small build of Python lacks some character sets
            return text[self.start : self.end]


def _octets(word: re.Match[str]) -> bytes | None:
    """Return the octets of an encoded word, or None if the character set or the encoding is not to be had."""
    charset, encoding, text = word.groups()
    if not text.isascii() or not _CHARSET.fullmatch(charset):
        return None
    if encoding in "Qq":
        return binascii.a2b_qp(text, header=True)
    digits = text.replace(" ", "").rstrip("=")
    try:
        return binascii.a2b_base64(digits + "=" * (-len(digits) % 4), strict_mode=True)
    except binascii.Error:
        return None
