"""The path of MAIL and RCPT: from the octets after the colon to an Address and the parameters behind it.

The grammar is that of RFC 5321 section 4.1.2, with the UTF-8 of RFC 6531 section 3.3. Real devices are met
where it changes no meaning: spaces before the path, no angle brackets, an underscore inside a label of a
domain. Whether a host is ours, whether SMTPUTF8 was said and what the parameters mean is the business of
the caller.

Everything here is linear in the length of what it reads. In the regular expressions, what follows a
repetition never begins with what is repeated, so there is no second way to match, and nothing to try again.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address
from typing import Final
from unicodedata import category, normalize

from guerrilla.envelope import NULL_PATH, Address, mailbox
from guerrilla.smtp.replies import (
    BAD_RECIPIENT,
    BAD_SENDER,
    DOMAIN_TOO_LONG,
    LOCAL_PART_TOO_LONG,
    PATH_TOO_LONG,
    Reply,
)

MAX_PATH: Final = 512
"""Octets between the brackets. RFC 5321 section 4.5.3.1.3 asks for 254; source routes and UTF-8 need room."""

MAX_LOCAL_PART: Final = 128
"""Octets of a local part, unquoted. RFC 5321 section 4.5.3.1.1 asks for 64; the Go program takes 128."""

MAX_DOMAIN: Final = 255
"""Octets of a domain (RFC 5321 section 4.5.3.1.2)."""

_MAX_LABEL: Final = 63
"""Characters of a label (RFC 1035 section 2.3.4, in octets). A U-label has fewer than its A-label."""

_ATEXT = r"-A-Za-z0-9!#$%&'*+/=?^_`{|}~"  # RFC 5322 section 3.2.3

_DOT: Final = 46
_HYPHEN: Final = 45
_MARKS_AS_LETTERS: Final = bytes.maketrans(b"-!#$%&'*+/=?^_`{|}~", b"a" * 19)
"""Of atext, those that are neither letters nor digits."""
_PLAIN_PARAMETERS: Final = re.compile(r" [ !#-'*+\--;=?A-~]*")
"""Those that _NO_PARAMETER has nothing to do with: printable, and without its marks."""

# A path ends where its bracket does, or without brackets at a space; neither counts inside quotes.
_PATH = r'[^"<> ]*(?:"(?:[^"\\]|\\.)*"[^"<> ]*)*'
_ARGUMENT = re.compile(rf"(?:<(?P<path>{_PATH})>|(?P<bare>{_PATH}))(?: (?P<rest>.*))?")

# RFC 5321 section 4.1.2, Local-part. RFC 6531 section 3.3: atext and qtextSMTP may be any UTF-8 beyond ASCII.
_ATOM = rf"[{_ATEXT}\u00a0-\U0010ffff]+"
_MAILBOX = re.compile(rf'(?:(?P<atoms>{_ATOM}(?:\.{_ATOM})*)|"(?P<quoted>(?:[^"\\]|\\[\x20-\x7e])*)")@(?P<domain>.*)')
_QUOTED_PAIR = re.compile(r"\\(.)")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")

# No esmtp-keyword holds these (RFC 5321 section 4.1.2): what does is a second address, or a comment.
_NO_PARAMETER = re.compile(rb'[^ ="(),<>@]*["(),<>@]')


class AddressError(ValueError):
    """A path that cannot be taken. ``reply`` is for the client; the text says what is wrong, for the log."""

    def __init__(self, reply: Reply, cause: str) -> None:
        super().__init__(cause)
        self.reply = reply


def parse_path(data: bytes, *, forward: bool = False) -> tuple[Address, bytes]:
    """Read the path at the start of ``data``; return it, and the parameters behind it without spaces around.

    ``data`` is what stands after ``MAIL FROM:`` or ``RCPT TO:``, one command line without its CRLF; the
    caller limits its length. ``forward`` says which it is: a forward-path (RCPT) may be ``<postmaster>``,
    in any case of letters and without a domain, and may not be null; a reverse-path (MAIL) may be null, and
    else has a domain.

    Raises:
        AddressError: if there is no path, it is malformed or too long, or another or a comment follows it.
            Its ``reply`` is BAD_SENDER, BAD_RECIPIENT, PATH_TOO_LONG, LOCAL_PART_TOO_LONG or
            DOMAIN_TOO_LONG.
    """
    try:
        address, rest = _parse_ordinary(data)
        return (address, rest) if address is not None else _parse_carefully(data, forward)
    except AddressError:
        raise
    except ValueError as error:
        raise AddressError(BAD_RECIPIENT if forward else BAD_SENDER, str(error)) from error


def _parse_ordinary(data: bytes) -> tuple[Address | None, bytes]:
    """Read what nearly every client sends: one path of ASCII atoms in brackets, and perhaps parameters.

    No address: it is something else, or wrong, or so rare that there is no hurry. It is done without regular
    expressions, each of which would take as long as all of this, and as text, of which compiled code can ask much
    without a call of a method.
    """
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError:
        return None, b""
    if text.startswith(" "):
        text = text.lstrip(" ")
    at, end = text.find("@"), text.find(">")
    if at < 1 or end < at or text[0] != "<":
        return None, b""
    user, host = text[1:at], text[at + 1 : end]
    # A domain that is no longer than a label has no label that is too long.
    if len(user) > MAX_LOCAL_PART or len(host) > _MAX_LABEL:
        return None, b""
    if not user.isalnum() and not _are_atoms(user):
        return None, b""
    if not _is_plain_domain(host):
        host = host.lower()
        if not _is_plain_domain(host):
            return None, b""
    rest = text[end + 1 :]
    if not rest:
        return mailbox(user, host), b""
    if not _PLAIN_PARAMETERS.fullmatch(rest):
        return None, b""
    return mailbox(user, host), rest.strip(" ").encode("ascii")


def _are_atoms(user: str) -> bool:
    """Whether the text, which is ASCII, is atoms with single dots between."""
    letters = user.encode().translate(_MARKS_AS_LETTERS).decode("ascii")
    return all(word.isalnum() for word in letters.split("."))


def _is_plain_domain(host: str) -> bool:
    """Whether it is small letters and digits, with hyphens between these, and single dots between the labels."""
    before = _DOT  # 0: a letter or a digit
    for index in range(len(host)):
        octet = ord(host[index])
        if 97 <= octet <= 122 or 48 <= octet <= 57:
            before = 0
        elif (octet == _HYPHEN and before != _DOT) or (octet == _DOT and before == 0):
            before = octet
        else:
            return False
    return before == 0


# From here on, a fault of grammar is a plain ValueError that says what it is; parse_path() adds the reply.


def _parse_carefully(data: bytes, forward: bool) -> tuple[Address, bytes]:
    """Do the whole work of parse_path(), for the ordinary path too."""
    text = data.decode("utf-8")  # strict: overlong forms and surrogates are errors
    if _CONTROL.search(text):
        raise ValueError("a control character")
    argument = _ARGUMENT.fullmatch(text.lstrip(" "))
    if not argument:
        raise ValueError("brackets or quotes that do not match, or something close behind the path")
    path, bare, rest = argument.group("path", "bare", "rest")
    if bare == "":
        raise ValueError("no path")
    address = _read_path(bare or path, forward)
    return address, _parameters((rest or "").encode())


def _parameters(rest: bytes) -> bytes:
    """Return what stands behind the path without the spaces around it, if it can be parameters."""
    rest = rest.strip(b" ")
    if _NO_PARAMETER.match(rest):
        raise ValueError("a second address or a comment behind the path")
    return rest


def _read_path(text: str, forward: bool) -> Address:
    """Read what stands between the brackets."""
    octets = text.encode()
    if len(octets) > MAX_PATH:
        raise AddressError(PATH_TOO_LONG, f"a path of {len(octets)} octets")
    if not octets and not forward:
        return NULL_PATH
    # RFC 5321 section 4.1.1.3: "<Postmaster>" is a recipient without a domain, in any case; no other name is.
    if forward and octets.lower() == b"postmaster":
        return Address("postmaster")
    route: tuple[str, ...] = ()
    if text.startswith("@"):
        hops, _, text = text.partition(":")
        route = tuple(_read_hop(hop) for hop in hops.split(","))
    address = _read_mailbox(text, route)
    # A domain can grow as it is normalised: what str() writes is a path too.
    if len(str(address).encode()) > MAX_PATH:
        raise AddressError(PATH_TOO_LONG, "a path that is too long once its domain is normalised")
    return address


def _read_hop(text: str) -> str:
    """Read one hop of a source route (RFC 5321 section 4.1.2, At-domain)."""
    if not text.startswith("@"):
        raise ValueError("a hop of a source route without @")
    return _read_domain(text[1:])


def _read_mailbox(text: str, route: tuple[str, ...]) -> Address:
    """Read ``local-part@domain``. No domain holds an @, so it is what follows the last one outside quotes."""
    mailbox = _MAILBOX.fullmatch(text)
    if not mailbox:
        raise ValueError(
            "no mailbox: it is local-part@domain, the local part atoms with single dots between, or quoted"
        )
    atoms, quoted, domain = mailbox.group("atoms", "quoted", "domain")
    # RFC 5321 section 4.1.2: a quoted string and what it quotes are the same mailbox.
    user = _QUOTED_PAIR.sub(r"\1", quoted) if atoms is None else atoms
    if len(user.encode()) > MAX_LOCAL_PART:
        raise AddressError(LOCAL_PART_TOO_LONG, f"a local part of {len(user.encode())} octets")
    if domain.startswith("["):
        ip = _read_literal(domain)
        return Address(user, f"[IPv6:{ip}]" if ip.version == 6 else f"[{ip}]", ip, route)
    return Address(user, _read_domain(domain), None, route)


def _read_literal(text: str) -> IPv4Address | IPv6Address:
    """Read an address literal in its brackets (RFC 5321 section 4.1.3), of IPv4 or IPv6."""
    if not text.endswith("]"):
        raise ValueError("an address literal that does not end with its bracket")
    literal = text[1:-1]
    if literal[:5].lower() != "ipv6:":
        return IPv4Address(literal)
    # A scope means something on one machine only, and IPv6Address takes any text for it.
    if "%" in literal:
        raise ValueError("an address literal with a scope")
    return IPv6Address(literal[5:])


def _read_domain(text: str) -> str:
    """Read a domain (RFC 5321 section 2.3.5, RFC 6531 section 3.3); return it in lower case, in NFC."""
    host = normalize("NFC", text.lower())
    if len(host.encode()) > MAX_DOMAIN:
        raise AddressError(DOMAIN_TOO_LONG, f"a domain of {len(host.encode())} octets")
    # The Kelvin sign becomes a k: a UTF-8 domain must not pass for an ASCII one.
    if host.isascii() and not text.isascii():
        raise ValueError("a domain that is ASCII in disguise")
    if not all(_is_label(label) for label in host.split(".")):
        raise ValueError("a domain with an empty or malformed label")
    return host


def _is_label(label: str) -> bool:
    """Whether it is letters and digits, with marks behind them and hyphens or underscores between them."""
    return (
        0 < len(label) <= _MAX_LABEL
        and label[0].isalnum()
        and label[-1] not in "-_"
        and all(char.isalnum() or char in "-_" or category(char).startswith("M") for char in label)
    )
