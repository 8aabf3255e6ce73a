"""The TLS context of a server, from the names that the configuration has for it."""

from __future__ import annotations

import ssl
import warnings
from typing import Final

from guerrilla.config import TLSConfig

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


class TLSError(Exception):
    """The TLS settings cannot be used; the text says which and why."""


def make_context(config: TLSConfig) -> ssl.SSLContext:
    """Make the context that all connections of a server share; its files are read now.

    Raises TLSError with what was found, where, and what was meant.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    if not config.prefer_server_cipher_suites:
        context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE  # which Python sets by itself
    _set_versions(context, config)
    _set_ciphers(context, config)
    if config.curves:
        # Python can set one curve; the first is the one that is preferred.
        context.set_ecdh_curve(_CURVES[config.curves[0]])
    _load_files(context, config)
    return context


def _set_versions(context: ssl.SSLContext, config: TLSConfig) -> None:
    lowest = config.protocols[0] if config.protocols else "tls1.2"
    highest = config.protocols[-1] if len(config.protocols) == 2 else "tls1.3"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TLS 1.0 was asked for by name
        context.minimum_version = _VERSIONS[lowest]
        context.maximum_version = _VERSIONS[highest]
    if lowest in ("tls1.0", "tls1.1"):
        context.set_ciphers("DEFAULT:@SECLEVEL=0")  # OpenSSL 3 has no cipher for them at a higher level


def _set_ciphers(context: ssl.SSLContext, config: TLSConfig) -> None:
    # Suites of TLS 1.3 are not for choosing, here as in the Go program.
    names = [openssl_name(name) for name in config.ciphers if "_WITH_" in name or not name.startswith("TLS_")]
    if not names:
        return
    try:
        context.set_ciphers(":".join(names) + ":@SECLEVEL=0")
    except ssl.SSLError as error:
        raise TLSError(f"tls.ciphers: none of {', '.join(config.ciphers)} is known to {ssl.OPENSSL_VERSION}") from error


def openssl_name(name: str) -> str:
    """Return OpenSSL's name of a cipher suite that has its IANA name; its own name stays as it is."""
    if not name.startswith("TLS_"):
        return name
    exchange, _, cipher = name.removeprefix("TLS_").partition("_WITH_")
    cipher = cipher.replace("3DES_EDE_CBC", "DES-CBC3").replace("RC4_128", "RC4")
    cipher = cipher.replace("CHACHA20_POLY1305_SHA256", "CHACHA20_POLY1305")
    cipher = cipher.replace("_CBC_", "_").replace("AES_", "AES").replace("_", "-")
    return cipher if exchange == "RSA" else f"{exchange.replace('_', '-')}-{cipher}"


def _load_files(context: ssl.SSLContext, config: TLSConfig) -> None:
    where = f"tls.public_key_file {config.public_key_file!r} with tls.private_key_file {config.private_key_file!r}"
    try:
        # An empty password, so that an encrypted key is an error and not a question on the terminal.
        context.load_cert_chain(config.public_key_file, config.private_key_file, password="")
    except ssl.SSLError as error:
        raise TLSError(f"{where}: they are not a certificate and its key in PEM form ({error.reason})") from error
    except OSError as error:
        raise TLSError(f"{where}: {error.strerror}") from error
    if config.client_auth_type not in _CLIENT_AUTH:
        raise TLSError(
            f"tls.client_auth_type {config.client_auth_type}: Python's ssl cannot ask for a certificate without "
            f"checking it; meant: {', '.join(_CLIENT_AUTH)}"
        )
    context.verify_mode = _CLIENT_AUTH[config.client_auth_type]
    if context.verify_mode is ssl.CERT_NONE:
        return
    try:
        if config.root_cas_file:
            context.load_verify_locations(config.root_cas_file)
        else:
            context.load_default_certs(ssl.Purpose.CLIENT_AUTH)
    except (OSError, ssl.SSLError) as error:
        raise TLSError(f"tls.root_cas_file {config.root_cas_file!r}: {error}") from error
