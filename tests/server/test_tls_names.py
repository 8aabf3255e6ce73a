"""Several certificates on one port: each client gets the one of the name that it asks for (SNI)."""

from __future__ import annotations

import json
import re
import socket
import ssl
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from tests.server.certificates import Issued, gullible, issue
from tests.server.tls_clients import WAYS, refused, secured, tls_of_a_message

from guerrilla.config import Problem, TLSConfig
from guerrilla.server.tls import TLSError, make_context, without_tracebacks

if TYPE_CHECKING:
    from tests.server.conftest import House, HouseMaker


@pytest.fixture(scope="module")
def issued() -> dict[str, Issued]:
    return {
        "default": issue("mx.test", "*.default.test"),
        "one": issue("one.test", "Two.test"),
        "wild": issue("*.wild.test", "x.default.test"),
        "exact": issue("exact.wild.test", "xn--bcher-kva.test", "mx.test", "one.test"),
    }


def settings(issued: dict[str, Issued], folder: Path, way: str = "start_tls_on", **keys: Any) -> dict[str, Any]:
    files = {name: made.write(folder, name) for name, made in issued.items()}
    default = files.pop("default")
    return {way: True, **default, "certificates": list(files.values()), **keys}


@pytest.fixture(params=WAYS)
async def house(request: pytest.FixtureRequest, serve: HouseMaker, issued: dict[str, Issued], tmp_path: Path) -> House:
    return serve(tls=settings(issued, tmp_path, request.param))


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        ("one.test", "one"),
        ("ONE.TEST", "one"),
        ("one.test.", "one"),
        ("two.test", "one"),
        ("a.wild.test", "wild"),
        ("A.Wild.test", "wild"),
        ("exact.wild.test", "exact"),
        ("bücher.test", "exact"),
        ("mx.test", "default"),
        ("a.default.test", "default"),
        ("x.default.test", "wild"),
        ("b.a.wild.test", "default"),
        ("wild.test", "default"),
        ("*.wild.test", "default"),
        ("unknown.test", "default"),
        ("test", "default"),
        ("127.0.0.1", "default"),
        ("a b\x1b[1m.test", "default"),
        ("a" * 63 + ".test", "default"),
        (None, "default"),
    ],
)
async def test_the_certificate_is_that_of_the_name(
    house: House, issued: dict[str, Issued], asked: str | None, shown: str
) -> None:
    client, tls = await secured(house, gullible(), server_name=asked)
    assert tls.getpeercert(binary_form=True) == issued[shown].der
    assert (await client.say("NOOP"))[:3] == "250"


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("Unknown.test", "Unknown.test"),
        ("one.test", "one.test"),
        ("bücher.test", "xn--bcher-kva.test"),
        ("a b\x1b[1m.test", ""),
        ("*.wild.test", ""),
        ("127.0.0.1", ""),  # an address is not asked for by SNI
        (None, ""),
    ],
)
async def test_the_envelope_says_what_name_was_asked_for(house: House, asked: str | None, told: str) -> None:
    client, tls = await secured(house, gullible(), server_name=asked)
    found = await tls_of_a_message(house, client)
    cipher = tls.cipher()
    assert cipher is not None
    assert (found.version, found.cipher, found.server_name) == ("TLSv1.3", cipher[0], told)
    assert found.client_certificate is None


async def test_the_name_is_told_where_there_is_one_certificate_too(serve: HouseMaker) -> None:
    house = serve(start_tls_on=True)
    client, _ = await secured(house, gullible(), server_name="any.test")
    assert (await tls_of_a_message(house, client)).server_name == "any.test"


def odd_hello() -> bytes:
    """Return what a client says first that asks for a name that is not ASCII."""
    outgoing = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        gullible().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="aa.test").do_handshake()
    hello = outgoing.read()
    assert hello.count(b"aa.test") == 1
    return hello.replace(b"aa.test", b"\xc3\xa9.test")


async def test_a_name_that_is_not_ascii_harms_only_who_asks_for_it(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", seen.append)
    with without_tracebacks():
        client = await house.connect()
        if not house.server.policy.tls_always_on:
            await client.reply()
            await client.say("STARTTLS")
        await client.send(odd_hello())
        await client.rest()
        await house.empty()
    assert seen == []
    (record,) = house.log
    assert "CALLBACK_FAILED" in record["cause"]
    client, _ = await secured(house, gullible(), server_name="one.test")
    assert (await client.say("NOOP"))[:3] == "250"


def raised(error: Exception, about: object = None, text: str | None = None) -> Any:
    """Return what the interpreter tells of an error that nobody can catch."""
    return SimpleNamespace(exc_type=type(error), exc_value=error, exc_traceback=None, err_msg=text, object=about)


def test_other_errors_that_nobody_can_catch_are_told_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", seen.append)
    odd = UnicodeDecodeError("ascii", b"\xc3\xa9", 0, 1, "ordinal not in range(128)")
    others = [raised(ValueError(), b"\xc3\xa9"), raised(odd, b"another"), raised(odd, text="in __del__")]
    with without_tracebacks():
        for each in (raised(odd, b"\xc3\xa9"), raised(odd, text="in ssl servername callback while ..."), *others):
            sys.unraisablehook(each)
    assert seen == others
    assert sys.unraisablehook == seen.append


def test_guerrillad_writes_no_traceback_for_a_name_that_is_not_ascii(issued: dict[str, Issued], tmp_path: Path) -> None:
    server = {"listen_interface": "127.0.0.1:0", "tls": settings(issued, tmp_path, "tls_always_on")}
    (tmp_path / "a.json").write_text(json.dumps({"pid_file": "a.pid", "control_socket": "off", "servers": [server]}))
    command = [sys.executable, "-m", "guerrilla", "serve", "-c", "a.json"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as daemon:
        try:
            assert daemon.stdout is not None
            found = next(match for line in daemon.stdout if (match := re.search(r"127\.0\.0\.1:(\d+)", line)))
            with socket.create_connection(("127.0.0.1", int(found[1])), 30) as client:
                client.sendall(odd_hello())
                while client.recv(4096):
                    pass
            daemon.terminate()
            _, told = daemon.communicate(timeout=60)
        finally:
            daemon.kill()
    assert "CALLBACK_FAILED" in told
    assert "Traceback" not in told
    assert daemon.returncode == 0


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_session_that_is_taken_up_again_has_its_name_too(house: House, version: ssl.TLSVersion) -> None:
    context = gullible()
    context.maximum_version = version
    client, tls = await secured(house, context, server_name="one.test")
    await client.say("QUIT")
    client, again = await secured(house, context, server_name="one.test", session=tls.session)
    assert again.session_reused
    assert (await tls_of_a_message(house, client)).server_name == "one.test"


async def test_the_settings_are_the_same_for_all_names(
    serve: HouseMaker, issued: dict[str, Issued], tmp_path: Path
) -> None:
    root = issue(authority=True, common_name="root")
    (tmp_path / "root.pem").write_bytes(root.certificate)
    house = serve(
        tls=settings(
            issued, tmp_path, protocols=["tls1.2", "tls1.2"], ciphers=["TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"],
            curves=["P256"], client_auth_type="RequireAndVerifyClientCert", root_cas_file=str(tmp_path / "root.pem"),
        )
    )  # fmt: skip
    known = issue(by=root, common_name="known").client_context(tmp_path)
    for name in ("mx.test", "one.test", "a.wild.test"):
        client, _ = await secured(house, known, server_name=name)
        tls = await tls_of_a_message(house, client)
        assert (tls.version, tls.cipher, tls.server_name) == ("TLSv1.2", "ECDHE-ECDSA-AES128-GCM-SHA256", name)
        assert tls.client_certificate is not None
        await client.say("QUIT")
        client.close()
        await house.empty()
        assert "PEER_DID_NOT_RETURN_A_CERTIFICATE" in await refused(house, gullible(), server_name=name)
        other_curve = gullible()
        other_curve.set_ecdh_curve("secp384r1")
        assert "NO_SHARED_CIPHER" in await refused(house, other_curve, server_name=name)


def test_a_certificate_that_nobody_can_ask_for_is_an_error(issued: dict[str, Issued], tmp_path: Path) -> None:
    config = settings({**issued, "nameless": issue(common_name="mx.test")}, tmp_path)
    with pytest.raises(TLSError, match=r"^tls\.certificates\[3\]\.public_key_file '.*the certificate has no DNS name"):
        make_context(TLSConfig(**config))


def test_a_broken_pair_among_several_is_told_by_its_place(issued: dict[str, Issued], tmp_path: Path) -> None:
    config = settings(issued, tmp_path)
    (tmp_path / "wild.key").write_bytes(issued["one"].key)
    with pytest.raises(TLSError, match=r"^tls\.certificates\[1\]\..*wild\.key'.*does not belong to the certificate$"):
        make_context(TLSConfig(**config))


def test_a_certificate_whose_names_are_all_taken_is_told(
    serve: HouseMaker, issued: dict[str, Issued], tmp_path: Path
) -> None:
    told: list[Problem] = []
    config = settings({**issued, "late": issue("one.test", "mx.test")}, tmp_path)
    make_context(TLSConfig(**config), told.append)
    assert [str(each) for each in told] == [
        "warning: tls.certificates[3]: no client will see it: all of its names are those of earlier ones"
    ]


async def test_what_has_no_effect_is_in_the_log_of_the_server(
    serve: HouseMaker, issued: dict[str, Issued], tmp_path: Path
) -> None:
    house = serve(tls=settings(issued, tmp_path, ciphers=["AES128-SHA", "NONE"]))
    (record,) = house.log
    assert (record["event"], record["log_level"]) == ("configuration", "warning")
    assert record["problem"].startswith("warning: tls.ciphers: NONE: not known to OpenSSL")
