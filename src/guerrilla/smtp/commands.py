"""The arguments of the commands, read as octets (RFC 5321 section 4.1.1). Addresses have a file of their own."""

from __future__ import annotations

import re
from typing import Final, TypeAlias

from guerrilla.envelope import Address
from guerrilla.smtp.address import AddressError, parse_path
from guerrilla.smtp.replies import (
    BAD_BDAT,
    BAD_HELO,
    BAD_MAIL,
    BAD_PARAMETER_VALUE,
    BAD_RCPT,
    NEEDS_SMTPUTF8,
    UNKNOWN_PARAMETER,
    Reply,
)

# int() takes signs, underscores, spaces and digits of every script: only what matches here is given to it.
_NUMBER = re.compile(rb"[0-9]{1,20}")
_MAX_SIZE_WORD: Final = 25
"""Octets of SIZE with such a number."""
_BODIES: Final = {b"BODY=7BIT": "7BIT", b"BODY=8BITMIME": "8BITMIME"}
_PARAMETER = re.compile(rb"([A-Za-z0-9][A-Za-z0-9-]*)(?:=([\x21-\x3c\x3e-\x7e]+))?")
_MAX_HELO: Final = 255
# What a chunk announces is read to its end, and nobody sends a petabyte.
_BDAT = re.compile(rb"([0-9]{1,15})(?: +([Ll][Aa][Ss][Tt]))? *")

_FOREIGN = frozenset({b"GET", b"POST", b"PUT", b"HEAD", b"DELETE", b"OPTIONS", b"PATCH", b"CONNECT", b"TRACE"})


class CommandError(Exception):
    """The argument is not what the command takes; ``reply`` is for the client."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(str(reply))
        self.reply = reply


Mail: TypeAlias = tuple[Address, int, str, bool]
"""What MAIL has said: the sender, SIZE (RFC 1870; 0 if the client did not say), BODY, whether SMTPUTF8 was there."""


def is_foreign(verb: bytes) -> bool:
    """Tell whether it is a verb of HTTP, or a header field, so that what follows must not be taken for commands.

    A browser can be led here, and a careless client sends its message although DATA was refused.
    """
    return verb in _FOREIGN or verb.endswith(b":")


def parse_helo(argument: bytes) -> str:
    """Read the name of the client. Any printable ASCII word will do: many honest devices do not know their name."""
    name = argument.strip(b" ")
    if not 0 < len(name) <= _MAX_HELO or not _is_visible(name):
        raise CommandError(BAD_HELO)
    return name.decode("ascii")


def _is_visible(word: bytes) -> bool:
    """Whether all of it is visible ASCII."""
    for index in range(len(word)):
        octet = word[index]
        if not 0x21 <= octet <= 0x7E:
            return False
    return True


def parse_mail(argument: bytes) -> Mail:
    """Read ``FROM:<sender> [SIZE=…] [BODY=…] [SMTPUTF8]``."""
    if not argument.startswith(b"FROM:") and argument[:5].upper() != b"FROM:":
        raise CommandError(BAD_MAIL)
    try:
        sender, rest = parse_path(argument[5:])
    except AddressError as error:
        raise CommandError(error.reply) from None
    size, body, smtputf8 = _extensions(rest) if rest else (0, "7BIT", False)
    if not smtputf8 and not _is_ascii(sender, argument):
        raise CommandError(NEEDS_SMTPUTF8)
    return sender, size, body, smtputf8


def _is_ascii(address: Address, argument: bytes) -> bool:
    """Tell whether the address is ASCII: it is where the argument is that it was read from."""
    return argument.isascii() or address.is_ascii


def _extensions(rest: bytes) -> tuple[int, str, bool]:
    """Read what the parameters say of SIZE, BODY and SMTPUTF8: SIZE alone most often, perhaps with BODY."""
    size, body = -1, ""
    for word in rest.split(b" "):
        if size < 0 and word.startswith(b"SIZE=") and len(word) <= _MAX_SIZE_WORD and word[5:].isdigit():
            size = int(word[5:])
        elif not body and word in _BODIES:
            body = _BODIES[word]
        else:
            return _any_extensions(rest)
    return max(size, 0), body or "7BIT", False


def _any_extensions(rest: bytes) -> tuple[int, str, bool]:
    """Read the parameters, whatever they are."""
    given = _parameters(rest)
    size = given.pop(b"SIZE", b"0")
    if size is None or not _NUMBER.fullmatch(size):
        raise CommandError(BAD_PARAMETER_VALUE)
    body = given.pop(b"BODY", b"7BIT")
    body = b"" if body is None else body.upper()
    if body not in (b"7BIT", b"8BITMIME", b"BINARYMIME"):
        raise CommandError(BAD_PARAMETER_VALUE)
    smtputf8 = b"SMTPUTF8" in given
    if given.pop(b"SMTPUTF8", None) is not None:  # RFC 6531 section 3.4: it takes no value
        raise CommandError(BAD_PARAMETER_VALUE)
    if given:
        raise CommandError(UNKNOWN_PARAMETER)
    return int(size), body.decode("ascii"), smtputf8


def _parameters(rest: bytes) -> dict[bytes, bytes | None]:
    """Split ESMTP parameters (RFC 5321 section 4.1.2); one that comes twice is an error."""
    given: dict[bytes, bytes | None] = {}
    for word in rest.split(b" "):
        if not word:
            continue
        match = _PARAMETER.fullmatch(word)
        if not match:
            raise CommandError(BAD_PARAMETER_VALUE)
        keyword = match[1].upper()
        if keyword in given:
            raise CommandError(BAD_PARAMETER_VALUE)
        given[keyword] = match[2]
    return given


def parse_rcpt(argument: bytes, *, smtputf8: bool) -> Address:
    """Read ``TO:<recipient>``. We offer no extension that gives RCPT a parameter."""
    if not argument.startswith(b"TO:") and argument[:3].upper() != b"TO:":
        raise CommandError(BAD_RCPT)
    try:
        recipient, rest = parse_path(argument[3:], forward=True)
    except AddressError as error:
        raise CommandError(error.reply) from None
    if rest:
        _parameters(rest)  # a malformed one is 501, a well-formed one 555
        raise CommandError(UNKNOWN_PARAMETER)
    if not smtputf8 and not _is_ascii(recipient, argument):
        raise CommandError(NEEDS_SMTPUTF8)
    return recipient


def parse_bdat(argument: bytes) -> tuple[int, bool]:
    """Read ``size [LAST]`` (RFC 3030 section 2)."""
    match = _BDAT.fullmatch(argument)
    if not match:
        raise CommandError(BAD_BDAT)
    return int(match[1]), match[2] is not None
