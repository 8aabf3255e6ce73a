"""The TLS context: what the names of the configuration become, and what is said of files that cannot be used."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from guerrilla.config import Problem, TLSConfig
from guerrilla.server.tls import TLSError, fingerprint, make_context, openssl_name

if TYPE_CHECKING:
    from tests.server.conftest import Certificate


def configuration(certificate: Certificate, **keys: Any) -> TLSConfig:
    files = {"public_key_file": certificate.public_key_file, "private_key_file": certificate.private_key_file}
    return TLSConfig(**{"start_tls_on": True, **files, **keys})


def unexpected(problem: Problem) -> None:
    pytest.fail(str(problem))


def context(certificate: Certificate, warn: Callable[[Problem], None] = unexpected, **keys: Any) -> ssl.SSLContext:
    return make_context(configuration(certificate, **keys), warn)


def suites(made: ssl.SSLContext) -> list[str]:
    """Return the suites up to TLS 1.2."""
    return [suite["name"] for suite in made.get_ciphers() if suite["protocol"] != "TLSv1.3"]


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


def test_ssl_3_of_an_old_file_is_the_lowest_version_that_there_still_is(certificate: Certificate) -> None:
    warnings: list[Problem] = []
    made = context(certificate, warnings.append, protocols=["ssl3.0", "tls1.2"])
    assert (made.minimum_version, made.maximum_version) == (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_2)
    assert handshake(made, old_client(certificate, ssl.TLSVersion.TLSv1)).version() == "TLSv1"
    assert [str(problem) for problem in warnings] == [
        "warning: tls.protocols: ssl3.0: there is no such version any more, tls1.0 is the lowest"
    ]


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
    with pytest.raises(TLSError, match=r"^tls\.ciphers: none of TLS_NO_WITH_SUCH, NONE is known to OpenSSL"):
        context(certificate, ciphers=["TLS_NO_WITH_SUCH", "NONE"])
    with pytest.raises(TLSError, match=r"^tls\.ciphers: none of TLS_AES_512_GCM_SHA512 is known to OpenSSL"):
        context(certificate, ciphers=["TLS_AES_512_GCM_SHA512"])


def test_an_unknown_cipher_among_known_ones_is_told_and_left_out(certificate: Certificate) -> None:
    told: list[Problem] = []
    known = ["TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", "ECDHE-RSA-AES128-GCM-SHA256"]
    made = context(certificate, told.append, ciphers=[known[0], "TLS_NO_WITH_SUCH", known[1], "NONE"])
    assert suites(made) == ["ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-RSA-AES128-GCM-SHA256"]
    assert [str(each) for each in told] == [
        f"warning: tls.ciphers: TLS_NO_WITH_SUCH, NONE: not known to {ssl.OPENSSL_VERSION}"
    ]


@pytest.mark.parametrize(
    "name", ["ALL", "HIGH", "!ECDHE", "@SECLEVEL=0", "aNULL", "NULL-SHA256", "ADH-AES128-SHA", "", "a:b"]
)
def test_what_is_no_cipher_suite_with_a_certificate_is_unknown(certificate: Certificate, name: str) -> None:
    with pytest.raises(TLSError, match=r"^tls\.ciphers: none of "):
        context(certificate, ciphers=[name])


GO_CIPHERS = [
    "TLS_FALLBACK_SCSV",
    "TLS_RSA_WITH_RC4_128_SHA",
    "TLS_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA",
    "TLS_RSA_WITH_AES_256_CBC_SHA",
    "TLS_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305",
]


def test_the_ciphers_of_the_go_program_load_and_only_the_broken_ones_are_told(certificate: Certificate) -> None:
    told: list[Problem] = []
    made = context(certificate, told.append, ciphers=[*GO_CIPHERS, "TLS_AES_128_GCM_SHA256"])
    assert len(suites(made)) >= 14
    for problem in told:  # OpenSSL can be built with these
        names = problem.message.partition(": ")[0].split(", ")
        assert names
        assert all("RC4" in name or "3DES" in name for name in names)
    assert handshake(made, certificate.client_context()).version() == "TLSv1.3"


def test_ciphers_do_not_lower_what_is_asked_of_keys(certificate: Certificate) -> None:
    assert context(certificate, ciphers=["AES128-SHA"]).security_level == context(certificate).security_level > 0
    assert context(certificate, protocols=["tls1.0"], ciphers=["AES128-SHA"]).security_level == 0


CURVES = {"P256": "prime256v1", "P384": "secp384r1", "P521": "secp521r1", "X25519": "X25519"}


def python_can_set(curve: str) -> bool:
    """Tell whether this Python can set the curve alone, at either end: 3.11.2 cannot set X25519."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).set_ecdh_curve(CURVES[curve])
    except ssl.SSLError as error:
        if (curve, error.reason) != ("X25519", "UNKNOWN_GROUP"):
            raise
        return False
    return True


SETTABLE = [curve for curve in CURVES if python_can_set(curve)]


def agrees_on(made: ssl.SSLContext, certificate: Certificate, curve: str) -> bool:
    client = certificate.client_context()
    client.set_ecdh_curve(CURVES[curve])
    try:
        handshake(made, client)
    except ssl.SSLError as error:
        if error.reason != "NO_SUITABLE_KEY_SHARE":
            raise
        return False
    return True


@pytest.mark.parametrize("curve", SETTABLE)
def test_one_curve_is_the_only_one(certificate: Certificate, curve: str) -> None:
    for made in (context(certificate, curves=[curve]), context(certificate, curves=[curve, curve])):
        assert [each for each in SETTABLE if agrees_on(made, certificate, each)] == [curve]


def test_x25519_alone_holds_where_python_can_set_it_and_is_an_error_where_it_cannot(certificate: Certificate) -> None:
    if python_can_set("X25519"):
        made = context(certificate, curves=["X25519"])
        assert [each for each in CURVES if agrees_on(made, certificate, each)] == ["X25519"]
    else:
        with pytest.raises(
            TLSError,
            match=r"^tls\.curves: found X25519; Python 3\.11.* cannot set it alone, .*; meant: another one, or all ",
        ):
            context(certificate, curves=["X25519"])


@pytest.mark.parametrize("curves", [[], ["P256", "P384", "P521", "X25519"]])
def test_all_curves_can_be_agreed_on(certificate: Certificate, curves: list[str]) -> None:
    made = context(certificate, curves=curves)
    assert all(agrees_on(made, certificate, each) for each in SETTABLE)


def test_some_curves_hold_where_python_can_set_them_and_are_an_error_where_it_cannot(certificate: Certificate) -> None:
    curves = ["P384", "P521"]
    if hasattr(ssl.SSLContext, "set_groups"):
        made = context(certificate, curves=curves)
        assert [each for each in CURVES if agrees_on(made, certificate, each)] == curves
    else:
        with pytest.raises(
            TLSError, match=r"^tls\.curves: found P384, P521; before 3\.15, .*; meant: one, or all of P256"
        ):
            context(certificate, curves=curves)


def test_several_curves_are_set_in_their_order(certificate: Certificate, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str] = []
    monkeypatch.setattr(ssl.SSLContext, "set_groups", lambda made, groups: given.append(groups), raising=False)
    context(certificate, curves=["X25519", "P256"])
    assert given == ["X25519:prime256v1"]


def test_a_curve_that_the_library_does_not_have_is_told(
    certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(ssl.SSLContext, "set_groups", raising=False)
    monkeypatch.setattr("guerrilla.server.tls._CURVES", {"X25519": "none"})
    with pytest.raises(TLSError, match=r"^tls\.curves: OpenSSL .* cannot use X25519: unknown elliptic curve name"):
        context(certificate, curves=["X25519"])


def test_a_pair_that_cannot_be_used_is_told_with_its_keys_and_paths(certificate: Certificate) -> None:
    with pytest.raises(TLSError) as caught:
        context(certificate, private_key_file=certificate.encrypted_key_file)
    assert str(caught.value) == (
        f"tls.public_key_file '{certificate.public_key_file}' with tls.private_key_file "
        f"'{certificate.encrypted_key_file}': the key is encrypted; meant: a key without a passphrase"
    )


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


@pytest.mark.parametrize(
    ("kind", "meant"),
    [("RequestClientCert", "VerifyClientCertIfGiven"), ("RequireAnyClientCert", "RequireAndVerifyClientCert")],
)
def test_what_python_cannot_do_is_an_error_that_says_what_can_be_done(
    certificate: Certificate, kind: str, meant: str
) -> None:
    with pytest.raises(TLSError, match=f"^tls.client_auth_type {kind}: .*; meant: NoClientCert, or {meant} with "):
        context(certificate, client_auth_type=kind)


def test_a_file_of_authorities_that_cannot_be_read_is_an_error_with_its_name(certificate: Certificate) -> None:
    with pytest.raises(TLSError, match=r"^tls\.root_cas_file '/nowhere\.pem': "):
        context(certificate, client_auth_type="VerifyClientCertIfGiven", root_cas_file="/nowhere.pem")


@pytest.mark.parametrize("held", ["", "junk", "-----BEGIN CERTIFICATE-----\n"])
def test_a_file_of_authorities_that_holds_none_is_an_error_and_not_those_of_the_system(
    certificate: Certificate, tmp_path: Path, held: str
) -> None:
    (tmp_path / "root.pem").write_text(held)
    with pytest.raises(TLSError, match=r"^tls\.root_cas_file '.*root\.pem': no certificates in PEM form$"):
        context(certificate, client_auth_type="VerifyClientCertIfGiven", root_cas_file=str(tmp_path / "root.pem"))


def test_the_files_of_a_context_have_a_fingerprint(certificate: Certificate, tmp_path: Path) -> None:
    root = tmp_path / "root.pem"
    more = {"public_key_file": str(tmp_path / "more.pem"), "private_key_file": "a\0b"}
    config = configuration(certificate, root_cas_file=str(root), certificates=[more])
    first = fingerprint(config)
    assert [each[0] for each in first] == [
        certificate.public_key_file, certificate.private_key_file, str(root), more["public_key_file"], "a\0b",
    ]  # fmt: skip
    assert first[2:] == ((str(root), 0, 0, 0), (more["public_key_file"], 0, 0, 0), ("a\0b", 0, 0, 0))
    assert fingerprint(config) == first
    root.write_bytes(b"a")
    second = fingerprint(config)
    assert second != first
    (tmp_path / "renamed").write_bytes(b"b")
    state = os.stat(root)
    os.utime(tmp_path / "renamed", ns=(state.st_atime_ns, state.st_mtime_ns))
    os.rename(tmp_path / "renamed", root)
    assert fingerprint(config) != second


def test_where_tls_is_off_no_file_is_looked_at(certificate: Certificate) -> None:
    assert fingerprint(configuration(certificate, start_tls_on=False)) == ()
    assert len(fingerprint(configuration(certificate, start_tls_on=False, tls_always_on=True))) == 2
