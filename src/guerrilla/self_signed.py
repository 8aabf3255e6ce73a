"""A key and a certificate that nobody but itself vouches for: enough to encrypt, until there is a real one.

It needs the package ``cryptography``, which a server does not: it comes with ``guerrilla[tls]``.
"""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from cryptography import x509

DAYS: Final = 825
"""How long it is valid; some clients take none that is valid for longer."""


class MissingLibraryError(Exception):
    """The package that makes certificates is not installed. ``str()`` says how to get it."""


def self_signed(host_name: str) -> tuple[bytes, bytes]:
    """Return a key (EC P-256, PKCS #8) and a certificate for the host name, both PEM.

    ``host_name`` may be an IP address, in brackets as mail has it or without. Raises MissingLibraryError.
    """
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
    except ImportError:
        raise MissingLibraryError(
            "the package cryptography is not installed, meant: pip install 'guerrilla[tls]'"
        ) from None
    key = ec.generate_private_key(ec.SECP256R1())
    # RFC 5280, appendix A: a common name has 64 characters at most. Who checks the name looks at the extension.
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host_name[:64])])
    begin = datetime.now(UTC) - timedelta(hours=1)  # for clients whose clock is late
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + timedelta(days=DAYS))
        .add_extension(x509.SubjectAlternativeName([_general_name(host_name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return private, certificate.public_bytes(pem)


def _general_name(host_name: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host_name.strip("[]").removeprefix("IPv6:")))
    except ValueError:
        return x509.DNSName(host_name)
