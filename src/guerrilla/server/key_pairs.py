"""Certificates and their keys: each file is read once, the two are checked as a pair, and loaded from what was read.

Between two reads of a path, an ACME client may have renamed another file to it. What is trusted here is what the
administrator has put there; still, no file can hold a server up: only regular files of a sane size are read.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import ssl
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from guerrilla.files import without_waiting

MAX_FILE: Final = 1 << 20
"""Octets of a file, at most; the authorities of a whole system are a quarter of it."""

_NAME: Final = re.compile(r"(?:\*\.)?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*")
_MISMATCH: Final = frozenset({"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"})
"""What OpenSSL says of a key that is another's; the last, when it is of another type."""
_NO_CHECK_TIME: Final = ssl.VerifyFlags(0x200000)
"""X509_V_FLAG_NO_CHECK_TIME, for which Python has no name."""


class TLSError(Exception):
    """The TLS settings cannot be used; the text says which and why."""


def read_file(path: str) -> bytes:
    """Return what is in a regular file of at most MAX_FILE octets.

    Raises OSError, whose ``strerror`` says why it cannot be had.
    """
    try:
        with open(path, "rb", opener=without_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError(errno.EINVAL, "Not a regular file")
            octets = file.read(MAX_FILE + 1)
    except ValueError as error:  # a NUL in the path
        raise OSError(errno.EINVAL, "Not a path") from error
    if len(octets) > MAX_FILE:
        raise OSError(errno.EFBIG, f"More than {MAX_FILE} octets")
    return octets


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate with its chain, and its key, as they were read; PEM both."""

    where: str
    """The keys of the configuration and the paths, for messages."""
    certificate: bytes = field(repr=False)
    key: bytes = field(repr=False)

    @classmethod
    def read(cls, place: str, public_key_file: str, private_key_file: str) -> KeyPair:
        """Read the two files. ``place`` is the section of the configuration that names them, such as ``tls``.

        Raises TLSError.
        """
        found = {}
        for key, path in (("public_key_file", public_key_file), ("private_key_file", private_key_file)):
            try:
                found[key] = read_file(path)
            except OSError as error:
                raise TLSError(f"{place}.{key} {path!r}: {error.strerror}") from error
        where = f"{place}.public_key_file {public_key_file!r} with {place}.private_key_file {private_key_file!r}"
        return cls(where, found["public_key_file"], found["private_key_file"])

    def load_into(self, context: ssl.SSLContext) -> None:
        """Let the context show this certificate. Raises TLSError that says which of the two is wrong, and why."""
        with as_file(self.certificate) as certificate, as_file(self.key) as key:
            try:
                # An empty password, so that an encrypted key is an error and not a question on the terminal.
                context.load_cert_chain(certificate, key, password="")
            except ssl.SSLError as error:
                raise TLSError(f"{self.where}: {self._complaint(error)}") from error

    def names(self) -> set[str]:
        """Return the DNS names that the certificate is for, in lower case; ``*.`` stands for one label.

        Python reads the names of a certificate that the other side has shown, and in no other way: so it is shown.
        Raises TLSError for a certificate that no client would take from a server.
        """
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname = False
        client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        for context in (client, server):
            context.set_ciphers("ALL:@SECLEVEL=0")
        with as_file(self.certificate) as certificate:
            client.load_verify_locations(certificate)
        self.load_into(server)
        try:
            shown = _shown(client, server)
        except (ssl.SSLError, ValueError) as error:
            cause = getattr(error, "verify_message", None) or error
            raise TLSError(f"{self.where}: the certificate is none for a server: {cause}") from error
        names = [str(value).lower() for kind, value in shown.get("subjectAltName", ()) if kind == "DNS"]
        return {name for name in names if _NAME.fullmatch(name)}

    def _complaint(self, error: ssl.SSLError) -> str:
        if error.reason in _MISMATCH:
            return "the key does not belong to the certificate"
        try:
            with as_file(self.certificate) as certificate:
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(certificate)
        except ssl.SSLError:
            return "the certificate is not whole, or not in PEM form"
        if error.reason:  # such as EE_KEY_TOO_SMALL
            return f"the certificate cannot be used: {error.reason.lower().replace('_', ' ')}"
        if b"ENCRYPTED" in self.key:
            return "the key is encrypted; meant: a key without a passphrase"
        return "the key is not whole, or not in PEM form"


@contextlib.contextmanager
def as_file(octets: bytes) -> Iterator[str]:
    """Give octets a path, since OpenSSL takes keys from files only: of a file without a name, in memory if possible."""
    with os.fdopen(os.memfd_create("pem"), "w+b") if hasattr(os, "memfd_create") else tempfile.TemporaryFile() as file:
        file.write(octets)
        file.seek(0)
        yield f"/dev/fd/{file.fileno()}"


def _shown(client: ssl.SSLContext, server: ssl.SSLContext) -> dict[str, Any]:
    """Let the two shake hands in memory; return the certificate that the client has seen."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = client.wrap_bio(to_client, to_server)
    answering = server.wrap_bio(to_server, to_client, server_side=True)
    for side in (asking, answering) * 3:  # no version of TLS has more flights
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    return asking.getpeercert() or {}
