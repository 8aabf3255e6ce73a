"""What the tests of TLS let their clients do: get into TLS by either way, and send a message."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any

import pytest

from guerrilla.envelope import TLSInfo

if TYPE_CHECKING:
    from tests.server.conftest import Client, House

WAYS = ["start_tls_on", "tls_always_on"]


async def secured(house: House, context: ssl.SSLContext, **options: Any) -> tuple[Client, ssl.SSLObject]:
    """Return a client inside TLS, which has said EHLO; by whichever way the server has."""
    client = await house.connect()
    if not house.server.policy.tls_always_on:
        await client.reply()
        assert await client.say("STARTTLS") == "220 2.0.0 Ready to start TLS"
    tls = await client.secure(context, **options)
    if house.server.policy.tls_always_on:
        await client.reply()
    assert (await client.say("EHLO client.test")).startswith("250")
    return client, tls


async def refused(house: House, context: ssl.SSLContext, **options: Any) -> str:
    """Let a client be refused in the handshake, or, where it cannot know yet, by the first answer; return the cause."""
    before = len(house.log)
    with pytest.raises((ssl.SSLError, ConnectionError, AssertionError)):
        await secured(house, context, **options)
    await house.empty()
    (record,) = house.log[before:]
    assert record["log_level"] == "info"
    return str(record["cause"])


async def tls_of_a_message(house: House, client: Client) -> TLSInfo:
    """Send a message, and return what its envelope says of TLS."""
    assert await client.talk("MAIL FROM:<>", "RCPT TO:<b@example.com>", "DATA", "You\r\n.") == [
        "250", "250", "354", "250",
    ]  # fmt: skip
    tls = house.backend.envelopes[-1].tls
    assert tls is not None
    return tls
