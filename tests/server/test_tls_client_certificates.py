"""Certificates that clients show: which are let in, and what the envelope says of them."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from tests.server.certificates import Issued, gullible, issue
from tests.server.tls_clients import WAYS, refused, secured, tls_of_a_message

from guerrilla.envelope import ClientCertificate
from guerrilla.server.tls import distinguished_name

if TYPE_CHECKING:
    from tests.server.conftest import Certificate, House, HouseMaker

OPTIONAL, REQUIRED = "VerifyClientCertIfGiven", "RequireAndVerifyClientCert"


@pytest.fixture(scope="module")
def root() -> Issued:
    return issue(authority=True, common_name="Root")


@pytest.fixture
def start(serve: HouseMaker, certificate: Certificate, root: Issued, tmp_path: Path) -> Callable[..., House]:
    """Give the function that starts a server which takes certificates of the root."""
    (tmp_path / "root.pem").write_bytes(root.certificate)

    def start(client_auth_type: str, way: str = "start_tls_on") -> House:
        return serve(
            tls={
                way: True,
                "public_key_file": certificate.public_key_file,
                "private_key_file": certificate.private_key_file,
                "client_auth_type": client_auth_type,
                "root_cas_file": str(tmp_path / "root.pem"),
            }
        )

    return start


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", [OPTIONAL, REQUIRED])
async def test_the_envelope_has_the_certificate_that_was_verified(
    start: Callable[..., House], root: Issued, tmp_path: Path, way: str, kind: str
) -> None:
    known = issue(by=root, common_name="known")
    house = start(kind, way)
    client, _ = await secured(house, known.client_context(tmp_path))
    assert (await tls_of_a_message(house, client)).client_certificate == ClientCertificate(
        subject="CN=known,O=Test",
        issuer="CN=Root,O=Test",
        serial_number=f"{known.made.serial_number:X}".zfill(len(f"{known.made.serial_number:X}") + 1 & ~1),
        fingerprint=hashlib.sha256(known.der).hexdigest(),
        der=known.der,
    )


async def test_a_client_may_have_none_where_none_is_required(start: Callable[..., House]) -> None:
    house = start(OPTIONAL)
    client, _ = await secured(house, gullible())
    assert (await tls_of_a_message(house, client)).client_certificate is None


async def test_a_client_without_one_is_refused_where_it_is_required(start: Callable[..., House]) -> None:
    assert "PEER_DID_NOT_RETURN_A_CERTIFICATE" in await refused(start(REQUIRED), gullible())


@pytest.mark.parametrize("kind", [OPTIONAL, REQUIRED])
@pytest.mark.parametrize("wrong", ["self-signed", "expired", "forged"])
async def test_what_cannot_be_verified_is_refused(
    start: Callable[..., House], root: Issued, tmp_path: Path, kind: str, wrong: str
) -> None:
    shown = {
        "self-signed": issue(common_name="known"),
        "expired": issue(by=root, days=(-9, -3)),
        "forged": issue(by=Issued(root.made, ec.generate_private_key(ec.SECP256R1()))),
    }[wrong]
    assert "CERTIFICATE_VERIFY_FAILED" in await refused(start(kind), shown.client_context(tmp_path))


@pytest.mark.parametrize("way", WAYS)
async def test_where_none_is_asked_for_a_client_may_have_any_and_nothing_is_said_of_it(
    start: Callable[..., House], tmp_path: Path, way: str
) -> None:
    house = start("NoClientCert", way)
    client, _ = await secured(house, issue(common_name="stranger").client_context(tmp_path))
    assert (await tls_of_a_message(house, client)).client_certificate is None


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_session_that_is_taken_up_again_has_its_certificate_too(
    start: Callable[..., House], root: Issued, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    house = start(REQUIRED)
    context = issue(by=root, common_name="known").client_context(tmp_path)
    context.maximum_version = version
    client, tls = await secured(house, context)
    first = await tls_of_a_message(house, client)
    client, again = await secured(house, context, session=tls.session)
    assert again.session_reused
    assert await tls_of_a_message(house, client) == first
    assert first.client_certificate is not None


@pytest.mark.parametrize("way", WAYS)
async def test_a_certificate_that_python_cannot_decode_harms_only_who_shows_it(
    start: Callable[..., House], root: Issued, tmp_path: Path, way: str
) -> None:
    seen_by_the_loop: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: seen_by_the_loop.append(context))
    house = start(REQUIRED, way)
    odd = issue(by=root, raw_names=bytes.fromhex("3005 8203 ffff61"))
    assert "decode" in await refused(house, odd.client_context(tmp_path))
    client, _ = await secured(house, issue(by=root).client_context(tmp_path))
    assert (await client.say("NOOP"))[:3] == "250"
    assert len(seen_by_the_loop) == 1


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("Bücher AG", "Bücher AG"),
        ("a,CN=root", r"a\,CN=root"),
        ('a+b"c;<d>\\', r"a\+b\"c\;\<d\>\\"),
        (" a ", r"\ a\ "),
        ("#a", r"\#a"),
        ("a\r\nb\x1b", r"a\0d\0ab\1b"),
        ("\u2028\u202e", r"\e2\80\a8\e2\80\ae"),
        (" ", r"\ "),
        ("", ""),
    ],
)
def test_what_could_be_mistaken_in_a_name_is_escaped(value: str, written: str) -> None:
    assert distinguished_name(((("commonName", value),),)) == f"CN={written}"


def test_a_name_is_written_from_the_last_part_to_the_first() -> None:
    name = ((("countryName", "CH"),), (("commonName", "a"), ("emailAddress", "b@c.test")))
    assert distinguished_name(name) == "CN=a+emailAddress=b@c.test,C=CH"
