"""TLS of a server: the context, from the names that the configuration has for it, and what a handshake has agreed on.

A context never changes. Whoever wants other settings, or other files, makes another one and lets the handshakes that
begin from then on have it; those under way keep theirs.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import ssl
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from guerrilla.config import Problem, TLSConfig
from guerrilla.envelope import ClientCertificate, TLSInfo
from guerrilla.server.key_pairs import KeyPair, TLSError, as_file, read_file

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

__all__ = ["TLSError", "fingerprint", "make_context", "openssl_name", "tls_info", "without_tracebacks"]

_VERSIONS: Final = {
    "tls1.0": ssl.TLSVersion.TLSv1,
    "tls1.1": ssl.TLSVersion.TLSv1_1,
    "tls1.2": ssl.TLSVersion.TLSv1_2,
    "tls1.3": ssl.TLSVersion.TLSv1_3,
}
_CURVES: Final = {"P256": "prime256v1", "P384": "secp384r1", "P521": "secp521r1", "X25519": "X25519"}
_CLIENT_AUTH: Final = {
    "NoClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}
_CHECKED: Final = {"RequestClientCert": "VerifyClientCertIfGiven", "RequireAnyClientCert": "RequireAndVerifyClientCert"}
"""What Python cannot do, and what comes next to it."""
_SUITES: Final = "ALL:!aNULL:!eNULL:!PSK:!SRP:!kDHE:@SECLEVEL=0"
"""What can be agreed on with a certificate and a curve, which is all that a server here has."""
_SIGNAL: Final = "TLS_FALLBACK_SCSV"
"""No suite but a signal of clients (RFC 7507), which OpenSSL obeys anyway; the Go program has it among its suites."""
_HOST_NAME: Final = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*\.?")
_SHORT: Final = {
    "commonName": "CN",
    "localityName": "L",
    "stateOrProvinceName": "ST",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "countryName": "C",
    "streetAddress": "STREET",
    "domainComponent": "DC",
    "userId": "UID",
}
"""RFC 4514 section 3."""


class _Secured(ssl.SSLObject):
    """The server's side of a TLS session."""

    server_name = ""
    """The name that the client has asked for."""


class _Context(ssl.SSLContext):
    """A context whose sessions know what name was asked for."""

    sslobject_class = _Secured


def make_context(config: TLSConfig, warn: Callable[[Problem], None] = lambda problem: None) -> ssl.SSLContext:
    """Make the context that all connections of a server share; its files are read now, each once.

    ``warn`` is told of what has no effect, by its key such as ``tls.ciphers``. Raises TLSError with what was found,
    where, and what was meant.
    """
    if config.client_auth_type in _CHECKED:
        raise TLSError(
            f"tls.client_auth_type {config.client_auth_type}: Python's ssl cannot ask for a certificate without "
            f"checking it; meant: NoClientCert, or {_CHECKED[config.client_auth_type]} with the authorities in "
            "tls.root_cas_file"
        )
    if "ssl3.0" in config.protocols:
        warn(Problem("tls.protocols", "ssl3.0: there is no such version any more, tls1.0 is the lowest", warning=True))
    suites = _suites(config, warn)
    authorities = _authorities(config)

    def context_of(pair: KeyPair) -> ssl.SSLContext:
        context = _settings(config, suites, authorities)
        pair.load_into(context)
        return context

    default = KeyPair.read("tls", config.public_key_file, config.private_key_file)
    context = context_of(default)
    by_name: dict[str, ssl.SSLContext | None] = {}
    if config.certificates:
        by_name.update(dict.fromkeys(default.names()))
    for index, files in enumerate(config.certificates):
        place = f"tls.certificates[{index}]"
        pair = KeyPair.read(place, files.public_key_file, files.private_key_file)
        names = pair.names()
        if not names:
            raise TLSError(f"{pair.where}: the certificate has no DNS name, so no client can ask for it")
        if names.issubset(by_name):
            warn(Problem(place, "no client will see it: all of its names are those of earlier ones", warning=True))
        own = context_of(pair)
        by_name.update((name, own) for name in names.difference(by_name))
    context.sni_callback = _chooser(by_name)  # type: ignore[assignment]  # it is called with a _Secured
    return context


def _chooser(by_name: dict[str, ssl.SSLContext | None]) -> Callable[[_Secured, str | None, ssl.SSLContext], None]:
    """Return what is called in each handshake with the name that the client asks for (RFC 6066 section 3).

    A name that nobody has, or none, gets the default certificate, as does what has None in ``by_name``.
    """

    def choose(secured: _Secured, asked: str | None, _: ssl.SSLContext) -> None:
        secured.server_name = asked if asked is not None and _HOST_NAME.fullmatch(asked) else ""
        name = secured.server_name.lower().removesuffix(".")
        # A wildcard stands for one label, the first (RFC 9525 section 6.3).
        for candidate in (name, "*." + name.partition(".")[2]):
            if candidate in by_name:
                context = by_name[candidate]
                if context is not None:
                    secured.context = context
                return

    return choose


@contextmanager
def without_tracebacks() -> Iterator[None]:
    """Let no client write a traceback to our stderr, by asking for a name that is not ASCII (RFC 6066 section 3).

    Python decodes the name before it calls us. It fails the handshake then, which the log tells, and gives the error to
    ``sys.unraisablehook``, where this one is dropped. The hook is the whole process's: this is for its owner.
    """
    before = sys.unraisablehook

    def hook(unraisable: UnraisableHookArgs) -> None:
        error = unraisable.exc_value
        # Up to Python 3.13 the name is the object in question; later the message has it.
        if not isinstance(error, UnicodeDecodeError) or (
            error.object != unraisable.object and "ssl servername callback" not in (unraisable.err_msg or "")
        ):
            before(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


# The settings, which are the same for all certificates of a server.


def _settings(config: TLSConfig, suites: str, authorities: bytes | None) -> ssl.SSLContext:
    context = _Context(ssl.PROTOCOL_TLS_SERVER)
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    if not config.prefer_server_cipher_suites:
        context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE  # which Python sets by itself
    lowest, highest = _versions(config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TLS 1.0 was asked for by name
        context.minimum_version = _VERSIONS[lowest]
        context.maximum_version = _VERSIONS[highest]
    if suites:
        context.set_ciphers(suites)
    _set_curves(context, list(dict.fromkeys(config.curves)))
    context.verify_mode = _CLIENT_AUTH[config.client_auth_type]
    if authorities is not None:
        _load_authorities(context, config, authorities)
    elif context.verify_mode is not ssl.CERT_NONE:
        context.load_default_certs(ssl.Purpose.CLIENT_AUTH)
    return context


def _versions(config: TLSConfig) -> tuple[str, str]:
    lowest = config.protocols[0] if config.protocols else "tls1.2"
    # There is no SSL 3.0 any more (RFC 7568): what is left of what was asked for.
    lowest = "tls1.0" if lowest == "ssl3.0" else lowest
    return lowest, config.protocols[1] if len(config.protocols) == 2 else "tls1.3"


def _suites(config: TLSConfig, warn: Callable[[Problem], None]) -> str:
    """Return the cipher suites in OpenSSL's notation; empty: Python's own choice."""
    # OpenSSL 3 has no suite for the old versions at a higher level.
    level = ":@SECLEVEL=0" if _versions(config)[0] in ("tls1.0", "tls1.1") else ""
    library = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    library.set_ciphers(_SUITES)
    # Suites of TLS 1.3 are not for choosing, here as in the Go program.
    known = {suite["name"]: suite["protocol"] != "TLSv1.3" for suite in library.get_ciphers()} | {_SIGNAL: False}
    found = {name: openssl_name(name) for name in config.ciphers}
    unknown = [name for name, meant in found.items() if meant not in known]
    chosen = [meant for meant in found.values() if known.get(meant)]
    if unknown and not chosen:
        raise TLSError(f"tls.ciphers: none of {', '.join(config.ciphers)} is known to {ssl.OPENSSL_VERSION}")
    if unknown:
        warn(Problem("tls.ciphers", f"{', '.join(unknown)}: not known to {ssl.OPENSSL_VERSION}", warning=True))
    if chosen:
        return ":".join(chosen) + level
    return "DEFAULT" + level if level else ""


def openssl_name(name: str) -> str:
    """Return OpenSSL's name of a cipher suite that has its IANA name; its own name stays as it is."""
    exchange, _, cipher = name.removeprefix("TLS_").partition("_WITH_")
    if not name.startswith("TLS_") or not cipher:
        return name  # those of TLS 1.3 have but one name
    cipher = cipher.replace("3DES_EDE_CBC", "DES-CBC3").replace("RC4_128", "RC4")
    cipher = cipher.replace("CHACHA20_POLY1305_SHA256", "CHACHA20_POLY1305")
    cipher = cipher.replace("_CBC_", "_").replace("AES_", "AES").replace("_", "-")
    return cipher if exchange == "RSA" else f"{exchange.replace('_', '-')}-{cipher}"


def _set_curves(context: ssl.SSLContext, curves: list[str]) -> None:
    """Let these and no others be agreed on, in the order of preference.

    Up to Python 3.14 one can be set, or none. All of them is what the library takes by itself, by its own preference,
    and with it those that have been invented since. The first versions of Python 3.11 hand a curve over as
    an EC_KEY, which X25519 is not, and so cannot set that one alone, whatever the library can do.
    """
    try:
        if not curves:
            return
        if hasattr(context, "set_groups"):
            context.set_groups(":".join(_CURVES[curve] for curve in curves))
        elif len(curves) == 1:
            context.set_ecdh_curve(_CURVES[curves[0]])
        elif len(curves) < len(_CURVES):
            raise TLSError(
                f"tls.curves: found {', '.join(curves)}; before 3.15, Python can set one curve and not some; "
                f"meant: one, or all of {', '.join(_CURVES)}"
            )
    except (ValueError, ssl.SSLError) as error:
        if curves == ["X25519"] and isinstance(error, ssl.SSLError) and error.reason == "UNKNOWN_GROUP":
            raise TLSError(
                f"tls.curves: found X25519; Python {platform.python_version()} cannot set it alone, later ones can; "
                f"meant: another one, or all of {', '.join(_CURVES)}"
            ) from error
        raise TLSError(f"tls.curves: {ssl.OPENSSL_VERSION} cannot use {', '.join(curves)}: {error}") from error


def _authorities(config: TLSConfig) -> bytes | None:
    """Read the authorities that client certificates are checked against; None: those of the system."""
    if not config.root_cas_file:
        return None
    try:
        return read_file(config.root_cas_file)
    except OSError as error:
        raise TLSError(f"tls.root_cas_file {config.root_cas_file!r}: {error.strerror}") from error


def _load_authorities(context: ssl.SSLContext, config: TLSConfig, authorities: bytes) -> None:
    try:
        with as_file(authorities) as path:
            context.load_verify_locations(path)
    except ssl.SSLError as error:
        raise TLSError(f"tls.root_cas_file {config.root_cas_file!r}: no certificates in PEM form") from error


def fingerprint(config: TLSConfig) -> tuple[tuple[str, int, int, int], ...]:
    """Return the files that a context is made of: path, inode, size, and time of change in nanoseconds; 0 for none.

    When it differs from what it was before the last ``make_context``, the next one may find something else. Nothing is
    read where TLS is off.
    """
    if not (config.start_tls_on or config.tls_always_on):
        return ()
    paths = [config.public_key_file, config.private_key_file, config.root_cas_file]
    for more in config.certificates:
        paths += [more.public_key_file, more.private_key_file]
    return tuple(_state(path) for path in paths if path)


def _state(path: str) -> tuple[str, int, int, int]:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return path, 0, 0, 0
    return path, found.st_ino, found.st_size, found.st_mtime_ns


# What was agreed on.


def tls_info(secured: ssl.SSLObject) -> TLSInfo:
    """Say what the handshake has agreed on, and who the client is, if its certificate was verified."""
    cipher = secured.cipher()
    return TLSInfo(
        version=secured.version() or "",
        cipher=cipher[0] if cipher else "",
        server_name=secured.server_name if isinstance(secured, _Secured) else "",
        client_certificate=_client_certificate(secured),
    )


def _client_certificate(secured: ssl.SSLObject) -> ClientCertificate | None:
    """Return what the client has shown; without verification Python tells nothing of it, and neither do we."""
    shown: dict[str, Any] = secured.getpeercert() or {}
    der = secured.getpeercert(binary_form=True)
    if not shown or der is None:
        return None
    return ClientCertificate(
        subject=distinguished_name(shown["subject"]),
        issuer=distinguished_name(shown["issuer"]),
        serial_number=str(shown["serialNumber"]),
        fingerprint=hashlib.sha256(der).hexdigest(),
        der=der,
    )


def distinguished_name(name: Any) -> str:
    """Write a name of X.509 as RFC 4514 has it: the last part first, and what could be mistaken, escaped."""
    parts = ["+".join(f"{_SHORT.get(kind, kind)}={_escaped(value)}" for kind, value in part) for part in name]
    return ",".join(reversed(parts))


def _escaped(value: str) -> str:
    """Escape a value by RFC 4514 section 2.4, and whatever does not print besides."""
    text = "".join(map(_printed, value))
    if text.endswith(" "):
        text = text[:-1] + "\\ "
    return "\\" + text if text.startswith((" ", "#")) else text


def _printed(character: str) -> str:
    if character in '"+,;<>\\':
        return "\\" + character
    return character if character.isprintable() else "".join(f"\\{octet:02x}" for octet in character.encode())
