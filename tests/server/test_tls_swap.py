"""A server whose certificate changes while clients come: none of them notices, whatever the administrator does."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.server.certificates import Issued, issue
from tests.server.tls_clients import WAYS, secured

from guerrilla.config import TLSConfig
from guerrilla.server.tls import TLSError, fingerprint, make_context

if TYPE_CHECKING:
    from tests.server.conftest import House, HouseMaker

SWAPS = 200
CLIENTS = 8


def swap(house: House, context: ssl.SSLContext) -> None:
    """Let the handshakes that begin from now on have this context."""
    house.server.policy.tls_context = context


def renew(folder: Path, number: int, pairs: list[Issued]) -> bool:
    """Write other files, as an ACME client does; every fourth time they are broken. Tell whether they are whole."""
    pair, other = pairs[number % len(pairs)], pairs[(number + 1) % len(pairs)]
    certificate, key = pair.certificate, pair.key
    broken = number % 4 == 3
    if broken:
        certificate = certificate[:300] if number % 8 == 3 else other.certificate
    for name, octets in (("pair.crt", certificate), ("pair.key", key)):
        (folder / "new").write_bytes(octets)
        (folder / "new").rename(folder / name)
    return not broken


@pytest.mark.parametrize("way", WAYS)
async def test_no_client_fails_while_certificates_are_swapped_and_broken_ones_offered(
    serve: HouseMaker, tmp_path: Path, way: str
) -> None:
    root = issue(authority=True, common_name="root")
    pairs = [issue("mx.test", by=root, common_name=str(number)) for number in range(5)]
    files = pairs[0].write(tmp_path)
    house = serve(tls={way: True, **files}, max_clients=1000)
    config = TLSConfig.model_validate({"start_tls_on": True, **files})
    trusting = ssl.create_default_context(cadata=root.certificate.decode())
    seen: list[bytes | None] = []
    done = False

    async def come_and_go() -> None:
        while not done:
            client, tls = await secured(house, trusting)
            seen.append(tls.getpeercert(binary_form=True))
            assert (await client.say("QUIT"))[:3] == "221"
            client.close()

    async def one_more() -> None:
        handshakes = len(seen)
        await house.until(lambda: len(seen) > handshakes)

    async def swap_again_and_again() -> None:
        for number in range(SWAPS):
            before = fingerprint(config)
            if renew(tmp_path, number, pairs):
                swap(house, make_context(config))
            else:
                with pytest.raises(TLSError, match=r"pair\.crt' with .*pair\.key': the "):
                    make_context(config)
            assert fingerprint(config) != before
            if number % 2:
                await one_more()

    async with asyncio.TaskGroup() as tasks:
        for _ in range(CLIENTS):
            tasks.create_task(come_and_go())
        await swap_again_and_again()
        done = True
    await house.empty()
    assert set(seen) == {pair.der for pair in pairs}
    assert house.log == []


@pytest.mark.parametrize("way", WAYS)
async def test_a_handshake_under_way_keeps_the_certificate_that_it_began_with(
    serve: HouseMaker, tmp_path: Path, way: str
) -> None:
    old, new = issue("mx.test"), issue("mx.test")
    house = serve(tls={way: True, **old.write(tmp_path)})
    client = await house.connect()
    if way == "start_tls_on":
        await client.reply()
        await client.say("STARTTLS")
    else:
        await house.until(lambda: house.server.connections)
        await asyncio.sleep(0)
    files = new.write(tmp_path)
    swap(house, make_context(TLSConfig.model_validate({"start_tls_on": True, **files})))
    context = ssl.create_default_context(cadata=old.certificate.decode())
    await client.secure(context)
    _, tls = await secured(house, ssl.create_default_context(cadata=new.certificate.decode()))
    assert tls.getpeercert(binary_form=True) == new.der
