"""Makes certificates for tests: of an authority or of nobody, for any names, in any state of repair."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID

PEM = serialization.Encoding.PEM
PKCS8 = serialization.PrivateFormat.PKCS8
SIGNS_CERTIFICATES = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)


@dataclass(frozen=True)
class Issued:
    """A certificate and its key."""

    made: x509.Certificate
    private: Any

    @property
    def certificate(self) -> bytes:
        return self.made.public_bytes(PEM)

    @property
    def key(self) -> bytes:
        octets: bytes = self.private.private_bytes(PEM, PKCS8, serialization.NoEncryption())
        return octets

    @property
    def der(self) -> bytes:
        return self.made.public_bytes(serialization.Encoding.DER)

    @property
    def encrypted_key(self) -> bytes:
        octets: bytes = self.private.private_bytes(PEM, PKCS8, serialization.BestAvailableEncryption(b"secret"))
        return octets

    def write(self, folder: Path, name: str = "pair") -> dict[str, str]:
        """Write both files, and return the keys of the configuration that name them."""
        public, private = folder / f"{name}.crt", folder / f"{name}.key"
        public.write_bytes(self.certificate)
        private.write_bytes(self.key)
        return {"public_key_file": str(public), "private_key_file": str(private)}

    def client_context(self, folder: Path) -> ssl.SSLContext:
        """Return the context of a client that shows this certificate if asked, and believes whatever it is shown."""
        files = self.write(folder, "shown")
        context = gullible()
        context.load_cert_chain(files["public_key_file"], files["private_key_file"])
        return context


def gullible() -> ssl.SSLContext:
    """Return the context of a client that believes whatever it is shown."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def issue(
    *names: str,
    by: Issued | None = None,
    key: Any = None,
    common_name: str = "test",
    days: tuple[int, int] = (-1, 1),
    authority: bool = False,
    only_for_clients: bool = False,
    raw_names: bytes = b"",
) -> Issued:
    """Make a certificate for DNS names. ``days`` are the first and the last of its validity, from today."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Test"), x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    )
    now = datetime.now(UTC)
    first, last = (now + timedelta(days=day) for day in days)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by.made.subject if by else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(first)
        .not_valid_after(last)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    signer = by.private if by else key
    if by:
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(by.made.public_key())  # type: ignore[arg-type]
        builder = builder.add_extension(issuer, critical=False)
    if authority:
        builder = builder.add_extension(SIGNS_CERTIFICATES, critical=True)
    if raw_names:
        odd = x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, raw_names)
        builder = builder.add_extension(odd, critical=False)
    elif names:
        dns = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
        builder = builder.add_extension(dns, critical=False)
    if only_for_clients:
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
    algorithm = (
        hashes.SHA256() if isinstance(signer, ec.EllipticCurvePrivateKey) or hasattr(signer, "key_size") else None
    )
    return Issued(builder.sign(signer, algorithm), key)
