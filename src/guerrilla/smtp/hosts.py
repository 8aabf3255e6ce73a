"""For which domains mail is taken: ``allowed_hosts``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import ip_address

from guerrilla.envelope import Address


def _a_label(name: str) -> str:
    """Return the ASCII form of an internationalised name, or the name itself when it has none."""
    try:
        return name.encode("idna").decode("ascii")
    except UnicodeError:
        return name


def _literal(text: str) -> str:
    """Return an address literal in the canonical form that Address.host has.

    Raises ValueError if there is no IP address in the brackets.
    """
    if not text.endswith("]"):
        raise ValueError(f"{text!r} does not end with its bracket")
    inner = text[1:-1]
    address = ip_address(inner[5:] if inner.lower().startswith("ipv6:") else inner)
    return f"[IPv6:{address}]" if address.version == 6 else f"[{address}]"


def _pattern(name: str) -> str:
    """Return a regular expression for a wildcard name, matched label by label.

    A leading ``*.`` stands for one label or more, as it does in the Go program; another ``*`` never crosses a dot, so
    that ``*.la`` cannot be reached from ``evil.la.example.com``.
    """
    if name == "*":
        return r"[^\[].*"
    head = ""
    if name.startswith("*."):
        head, name = r"(?:[^.\[]+\.)+", name[2:]
    return head + "".join("[^.]*" if c == "*" else "[^.]" if c == "?" else re.escape(c) for c in name)


class AllowedHosts:
    """The domains whose mail is ours: exact names, wildcards like ``*.example.com``, literals like ``[192.0.2.1]``.

    A single ``.`` allows any. Upper and lower case are the same, and so are the two forms of an internationalised name.

    Raises:
        ValueError: if a name in brackets is no IP address.
    """

    __slots__ = ("_any", "_exact", "_wildcard")

    def __init__(self, names: Sequence[str]) -> None:
        self._any = "." in names
        exact: set[str] = set()
        patterns: list[str] = []
        for name in (name.lower() for name in names):
            if name.startswith("["):
                exact.add(_literal(name))
            elif "*" in name or "?" in name:
                patterns.append(_pattern(name))
            else:
                exact.update((name, _a_label(name)))
        self._exact = frozenset(exact)
        self._wildcard = re.compile("|".join(patterns)) if patterns else None

    def allows(self, address: Address) -> bool:
        """Tell whether mail for the address is taken. ``<postmaster>`` without a domain always is (RFC 5321 4.5.1)."""
        host = address.host
        if self._any or not host or host in self._exact:
            return True
        if not host.isascii() and _a_label(host) in self._exact:
            return True
        return self._wildcard is not None and self._wildcard.fullmatch(host) is not None
