"""What looks at every octet of a message: for newlines that are none, for a dot that leads a line, for header fields.

Where there is a C compiler it is in C (``_scan.c``): what Python's own searches take for a message of 100 kB is more
than all else that is done with it, and a header is searched anew for each of its fields. Both pass the same tests.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

_LEADING_DOT: Final = re.compile(rb"\.(?<=\r\n\.)")
_SMALL: Final = 4096
"""Octets below which one search takes less time than several quicker ones."""


def plain_only_crlf(octets: bytes, /) -> bool:
    """Tell whether each CR and each LF is half of a CRLF."""
    # A search for one octet takes a quarter of the time of one for two, so this is not octets.count(b"\r\n").
    return octets.replace(b"\r", b"").replace(b"\n", b"\r\n") == octets


def plain_leading_dot(octets: bytes, /) -> int:
    """Return where the first CRLF stands that a dot follows, or the length of the octets if there is none.

    Among many octets it is looked for dots first: there are fewer of them than of line ends, base64 has none, and to
    find the next one takes no time. Where there are many, this ends before it has taken longer than the search, which
    takes them all.
    """
    if len(octets) < _SMALL:
        at = octets.find(b"\r\n.")
        return at if at >= 0 else len(octets)
    at = octets.find(b".")
    for _ in range(len(octets) >> 8):
        if at < 0:
            return len(octets)
        if at > 1 and octets[at - 2 : at] == b"\r\n":
            return at - 2
        at = octets.find(b".", at + 1)
    if at >= 0 and (leading := _LEADING_DOT.search(octets, at)) is not None:
        return leading.start() - 2
    return len(octets)


def plain_empty_line(octets: bytes, most: int, /) -> int:
    """Return where the first CRLF stands that a CRLF follows, both among the first ``most`` octets; -1: there is none.

    In C it is looked for octets, not for four at once, which takes Python longer than to read what stands before them.
    """
    return octets.find(b"\r\n\r\n", 0, most)


def plain_ordinary_fields(octets: bytes, lines: int, name: int, value: int, /) -> list[tuple[str, str]] | None:
    """Return the fields of a header, up to its empty line, if all in it is as it mostly is; None if something is not.

    As it mostly is: plain text, in at most ``lines`` lines (unfolded) that end with CRLF, each of them a field whose
    name has no blank and at most ``name`` octets, and its value at most ``value``. Python would read it no quicker than
    any header, and leaves all to who reads those.
    """
    return None


try:
    from guerrilla import _scan
except ImportError:
    _scan = None  # type: ignore[assignment]  # it was not built

empty_line: Callable[[bytes, int], int] = getattr(_scan, "empty_line", plain_empty_line)
leading_dot: Callable[[bytes], int] = getattr(_scan, "leading_dot", plain_leading_dot)
only_crlf: Callable[[bytes], bool] = getattr(_scan, "only_crlf", plain_only_crlf)
ordinary_fields: Callable[[bytes, int, int, int], list[tuple[str, str]] | None] = getattr(
    _scan, "ordinary_fields", plain_ordinary_fields
)
