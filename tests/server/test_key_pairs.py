"""Certificates and keys: what is read from files, what is said of those that are broken, and whose names they bear."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from tests.server.certificates import Issued, issue

from guerrilla.server.key_pairs import MAX_FILE, KeyPair, TLSError, read_file

if TYPE_CHECKING:
    from tests.server.conftest import Certificate


@pytest.fixture(scope="module")
def good() -> Issued:
    return issue("mx.test")


def load(certificate: bytes, key: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    KeyPair("here", certificate, key).load_into(context)
    return context


def test_what_is_loaded_is_what_was_read_and_not_what_is_there_by_now(good: Issued, tmp_path: Path) -> None:
    files = good.write(tmp_path)
    pair = KeyPair.read("tls", **files)
    issue("other.test").write(tmp_path)
    pair.load_into(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    assert pair.names() == {"mx.test"}


def test_no_descriptor_is_left_open(good: Issued) -> None:
    before = os.listdir("/dev/fd")
    load(good.certificate, good.key)
    with pytest.raises(TLSError):
        load(good.certificate, b"")
    assert os.listdir("/dev/fd") == before


def test_where_there_are_no_files_in_memory_one_without_a_name_does(
    good: Issued, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "memfd_create")
    load(good.certificate, good.key)


def test_a_chain_is_loaded_whole(good: Issued) -> None:
    assert load(good.certificate + issue("root.test").certificate, good.key)
    assert load(b"Bag Attributes: \xc3\xa9\n" + good.certificate, b"\xff\n" + good.key)


def test_both_may_be_in_one_file(good: Issued) -> None:
    both = good.key + good.certificate
    assert load(both, both)


@pytest.mark.parametrize("other", [ec.generate_private_key(ec.SECP256R1()), rsa.generate_private_key(65537, 2048)])
def test_a_key_of_another_certificate_is_told(good: Issued, other: Any) -> None:
    with pytest.raises(TLSError, match=r"^here: the key does not belong to the certificate$"):
        load(good.certificate, issue("mx.test", key=other).key)


def half(octets: bytes) -> bytes:
    return octets[: len(octets) // 2]


def test_what_is_wrong_with_a_certificate_is_told_of_the_certificate(good: Issued) -> None:
    other = issue("other.test").certificate
    for broken in (b"", b"junk", half(good.certificate), good.key, good.certificate + half(other)):
        with pytest.raises(TLSError, match=r"^here: the certificate is not whole, or not in PEM form$"):
            load(broken, good.key)


def test_what_is_wrong_with_a_key_is_told_of_the_key(good: Issued) -> None:
    for broken in (b"", b"junk", half(good.key), good.certificate):
        with pytest.raises(TLSError, match=r"^here: the key is not whole, or not in PEM form$"):
            load(good.certificate, broken)


def test_an_encrypted_key_is_an_error_and_no_question_on_the_terminal(good: Issued) -> None:
    with pytest.raises(TLSError, match=r"^here: the key is encrypted; meant: a key without a passphrase$"):
        load(good.certificate, good.encrypted_key)


def test_a_key_that_is_too_weak_for_openssl_is_told() -> None:
    weak = issue("mx.test", key=rsa.generate_private_key(65537, 1024))
    with pytest.raises(TLSError, match=r"^here: the certificate cannot be used: ee key too small$"):
        load(weak.certificate, weak.key)


def test_only_regular_files_of_a_sane_size_are_read(tmp_path: Path) -> None:
    huge, pipe = tmp_path / "huge", tmp_path / "pipe"
    huge.touch()
    os.mkfifo(pipe)
    os.truncate(huge, MAX_FILE)
    assert len(read_file(str(huge))) == MAX_FILE
    os.truncate(huge, 1 << 40)  # a sparse one
    with pytest.raises(OSError, match="More than 1048576 octets"):
        read_file(str(huge))
    for path in (str(pipe), "/dev/zero"):
        with pytest.raises(OSError, match="Not a regular file"):
            read_file(path)
    with pytest.raises(OSError, match="Is a directory"):
        read_file(str(tmp_path))
    with pytest.raises(OSError, match="Not a path"):
        read_file("a\0b")


def test_a_file_that_cannot_be_read_is_told_with_its_key(good: Issued, tmp_path: Path) -> None:
    files = good.write(tmp_path)
    with pytest.raises(TLSError, match=r"^tls\.private_key_file '/nowhere': No such file or directory$"):
        KeyPair.read("tls", files["public_key_file"], "/nowhere")
    with pytest.raises(TLSError, match=r"^tls\.certificates\[3\]\.public_key_file '/': Is a directory$"):
        KeyPair.read("tls.certificates[3]", "/", files["private_key_file"])


def test_a_key_does_not_show_in_a_traceback(good: Issued) -> None:
    assert "PRIVATE" not in repr(KeyPair("here", good.certificate, good.key))


def names(made: Issued) -> set[str]:
    return KeyPair("here", made.certificate, made.key).names()


def test_the_names_are_the_dns_names_in_lower_case() -> None:
    assert names(issue("MX.test", "*.Example.test", "xn--bcher-kva.test")) == {
        "mx.test", "*.example.test", "xn--bcher-kva.test",
    }  # fmt: skip


def test_an_address_is_no_name(certificate: Certificate) -> None:
    assert KeyPair.read("tls", certificate.public_key_file, certificate.private_key_file).names() == {"mx.test"}


def test_a_common_name_is_no_name() -> None:
    assert names(issue(common_name="mx.test")) == set()


def test_what_cannot_be_a_host_name_is_none() -> None:
    assert names(issue("*", "a.*", "f*.test", "a b.test", "mx..test", "ok.test")) == {"ok.test"}


@pytest.mark.parametrize(
    "made",
    [
        issue("mx.test", days=(-9, -3)),
        issue("mx.test", days=(3, 9)),
        issue("mx.test", key=rsa.generate_private_key(65537, 1024)),
        issue("mx.test", key=ec.generate_private_key(ec.SECP521R1())),
        issue("mx.test", key=ed25519.Ed25519PrivateKey.generate()),
        issue("mx.test", authority=True),
        issue("mx.test", by=issue("root.test", authority=True)),
    ],
    ids=["expired", "not-yet-valid", "weak", "p521", "ed25519", "authority", "issued"],
)
def test_the_names_of_any_certificate_can_be_read_valid_or_not(made: Issued) -> None:
    assert names(made) == {"mx.test"}


def test_a_certificate_that_no_client_would_take_is_told() -> None:
    with pytest.raises(TLSError, match=r"^here: the certificate is none for a server: unsuitable certificate purpose$"):
        names(issue("mx.test", only_for_clients=True))
    with pytest.raises(TLSError, match=r"^here: the certificate is none for a server: .*decode"):
        names(issue(raw_names=bytes.fromhex("3005 8203 ffff61")))
