"""The TLS context: what the names of the configuration become, and what is said of files that cannot be used."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from guerrilla.config import TLSConfig
from guerrilla.server.tls import TLSError, make_context, openssl_name

if TYPE_CHECKING:
    from tests.server.conftest import Certificate


def context(certificate: Certificate, **keys: Any) -> ssl.SSLContext:
    files = {"public_key_file": certificate.public_key_file, "private_key_file": certificate.private_key_file}
    return make_context(TLSConfig(**{"start_tls_on": True, **files, **keys}))


def handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> ssl.SSLObject:
    """Let the two agree, without a socket, and return the client's side."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        client.wrap_bio(to_client, to_server, server_hostname="mx.test"),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    open_sides = list(sides)
    while open_sides:
        for side in list(open_sides):
            try:
                side.do_handshake()
                open_sides.remove(side)
            except ssl.SSLWantReadError:
                pass
    return sides[0]


def old_client(certificate: Certificate, version: ssl.TLSVersion) -> ssl.SSLContext:
    client = certificate.client_context()
    client.set_ciphers("DEFAULT:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        client.minimum_version = client.maximum_version = version
    return client


def test_tls_1_2_and_later_is_the_default(certificate: Certificate) -> None:
    made = context(certificate)
    assert (made.minimum_version, made.maximum_version) == (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
    assert handshake(made, certificate.client_context()).version() == "TLSv1.3"
    for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
        with pytest.raises(ssl.SSLError, match="UNSUPPORTED_PROTOCOL"):
            handshake(made, old_client(certificate, version))


@pytest.mark.parametrize(
    ("protocols", "lowest", "highest"),
    [
        (["tls1.3"], ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_3),
        (["tls1.2"], ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3),
        (["tls1.0", "tls1.2"], ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_2),
    ],
)
def test_protocols_are_the_lowest_and_the_highest_version(
    certificate: Certificate, protocols: list[str], lowest: ssl.TLSVersion, highest: ssl.TLSVersion
) -> None:
    made = context(certificate, protocols=protocols)
    assert (made.minimum_version, made.maximum_version) == (lowest, highest)


def test_old_tls_can_be_asked_for_by_name_and_works(certificate: Certificate) -> None:
    made = context(certificate, protocols=["tls1.1", "tls1.3"])
    assert handshake(made, old_client(certificate, ssl.TLSVersion.TLSv1_1)).version() == "TLSv1.1"


def test_renegotiation_and_compression_are_off(certificate: Certificate) -> None:
    made = context(certificate)
    assert made.options & ssl.OP_NO_RENEGOTIATION
    assert made.options & ssl.OP_NO_COMPRESSION


@pytest.mark.parametrize("ours", [True, False])
def test_the_cipher_is_chosen_by_our_order_only_where_that_is_asked_for(certificate: Certificate, ours: bool) -> None:
    made = context(
        certificate,
        prefer_server_cipher_suites=ours,
        protocols=["tls1.2", "tls1.2"],
        ciphers=["TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"],
    )
    client = certificate.client_context()
    client.set_ciphers("ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384")
    cipher = handshake(made, client).cipher()
    assert cipher is not None
    assert cipher[0] == ("ECDHE-ECDSA-AES256-GCM-SHA384" if ours else "ECDHE-ECDSA-AES128-GCM-SHA256")


@pytest.mark.parametrize(
    ("iana", "openssl"),
    [
        ("TLS_RSA_WITH_RC4_128_SHA", "RC4-SHA"),
        ("TLS_RSA_WITH_3DES_EDE_CBC_SHA", "DES-CBC3-SHA"),
        ("TLS_RSA_WITH_AES_128_CBC_SHA", "AES128-SHA"),
        ("TLS_RSA_WITH_AES_256_GCM_SHA384", "AES256-GCM-SHA384"),
        ("TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256", "ECDHE-RSA-AES128-SHA256"),
        ("TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", "ECDHE-ECDSA-AES256-GCM-SHA384"),
        ("TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA", "ECDHE-RSA-DES-CBC3-SHA"),
        ("TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256", "ECDHE-RSA-CHACHA20-POLY1305"),
        ("TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305", "ECDHE-RSA-CHACHA20-POLY1305"),
        ("ECDHE-RSA-AES128-GCM-SHA256", "ECDHE-RSA-AES128-GCM-SHA256"),
    ],
)
def test_a_cipher_suite_is_known_by_its_iana_name(iana: str, openssl: str) -> None:
    assert openssl_name(iana) == openssl


def test_suites_of_tls_1_3_are_not_for_choosing(certificate: Certificate) -> None:
    made = context(certificate, ciphers=["TLS_AES_128_GCM_SHA256"])
    assert made.get_ciphers() == context(certificate).get_ciphers()


def test_ciphers_that_nobody_knows_are_an_error_with_their_names(certificate: Certificate) -> None:
    with pytest.raises(TLSError, match=r"^tls\.ciphers: none of TLS_NO_WITH_SUCH is known to OpenSSL"):
        context(certificate, ciphers=["TLS_NO_WITH_SUCH"])


@pytest.mark.parametrize("curve", ["P256", "P384", "P521", "X25519"])
def test_each_curve_can_be_chosen(certificate: Certificate, curve: str) -> None:
    assert handshake(context(certificate, curves=[curve]), certificate.client_context()).version() == "TLSv1.3"


def test_a_file_that_is_not_there_is_an_error_with_its_name(certificate: Certificate) -> None:
    with pytest.raises(TLSError, match=r"^tls\.public_key_file '/nowhere\.pem' .*: No such file or directory$"):
        context(certificate, public_key_file="/nowhere.pem")


def test_a_file_that_holds_something_else_is_an_error(certificate: Certificate, tmp_path: Path) -> None:
    (tmp_path / "junk.pem").write_text("junk")
    with pytest.raises(TLSError, match=r"junk\.pem'.* are not a certificate and its key in PEM form"):
        context(certificate, public_key_file=str(tmp_path / "junk.pem"))


def test_a_key_of_another_certificate_is_an_error(certificate: Certificate, tmp_path: Path) -> None:
    other = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (tmp_path / "other.pem").write_bytes(other)
    with pytest.raises(TLSError, match="KEY_VALUES_MISMATCH"):
        context(certificate, private_key_file=str(tmp_path / "other.pem"))


def test_an_encrypted_key_is_an_error_and_no_question_on_the_terminal(certificate: Certificate) -> None:
    with pytest.raises(TLSError, match=r"encrypted\.pem'.* are not a certificate and its key"):
        context(certificate, private_key_file=certificate.encrypted_key_file)


def test_clients_are_not_asked_for_a_certificate_by_default(certificate: Certificate) -> None:
    assert context(certificate).verify_mode is ssl.CERT_NONE


def test_clients_can_be_held_to_a_certificate_of_an_authority(certificate: Certificate) -> None:
    made = context(
        certificate, client_auth_type="RequireAndVerifyClientCert", root_cas_file=certificate.public_key_file
    )
    client = certificate.client_context()
    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        handshake(made, client)
    client.load_cert_chain(certificate.public_key_file, certificate.private_key_file)
    assert handshake(made, client).version() == "TLSv1.3"


def test_a_certificate_that_is_given_is_verified_by_the_authorities_of_the_system(certificate: Certificate) -> None:
    made = context(certificate, client_auth_type="VerifyClientCertIfGiven")
    assert made.verify_mode is ssl.CERT_OPTIONAL
    client = certificate.client_context()
    assert handshake(made, client).version() == "TLSv1.3"
    client.load_cert_chain(certificate.public_key_file, certificate.private_key_file)
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        handshake(made, client)


@pytest.mark.parametrize("kind", ["RequestClientCert", "RequireAnyClientCert"])
def test_what_python_cannot_do_is_an_error_that_says_what_can_be_done(certificate: Certificate, kind: str) -> None:
    with pytest.raises(TLSError, match=f"^tls.client_auth_type {kind}: .*; meant: NoClientCert, Verify.*"):
        context(certificate, client_auth_type=kind)


def test_a_file_of_authorities_that_cannot_be_read_is_an_error_with_its_name(certificate: Certificate) -> None:
    with pytest.raises(TLSError, match=r"^tls\.root_cas_file '/nowhere\.pem': "):
        context(certificate, client_auth_type="VerifyClientCertIfGiven", root_cas_file="/nowhere.pem")
