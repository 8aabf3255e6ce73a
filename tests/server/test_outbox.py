"""The outbox: what is put in it leaves at the end of the turn, or when it is told to."""

from __future__ import annotations

import asyncio
import socket

from guerrilla.server.outbox import Outbox


async def transport(side: socket.socket) -> asyncio.Transport:
    made, _ = await asyncio.get_running_loop().connect_accepted_socket(asyncio.Protocol, side)
    return made


async def test_what_is_put_leaves_at_the_end_of_the_turn_in_its_order() -> None:
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    writing = await transport(ours)
    outbox = Outbox(loop)
    outbox.put(writing, b"one ")
    outbox.put(writing, b"two")
    try:
        found = theirs.recv(100)
    except BlockingIOError:
        found = b""
    assert found == b""
    while len(found) < 7:
        found += await loop.sock_recv(theirs, 100)
    assert found == b"one two"
    writing.close()
    theirs.close()


async def test_what_is_for_a_connection_that_was_cut_goes_nowhere_and_the_others_are_served() -> None:
    cut, far = socket.socketpair()
    ours, theirs = socket.socketpair()
    gone, there = await transport(cut), await transport(ours)
    outbox = Outbox(asyncio.get_running_loop())
    outbox.put(gone, b"nobody reads this")
    outbox.put(there, b"hello")
    gone.abort()
    outbox.send()
    assert theirs.recv(100) == b"hello"
    there.close()
    for end in (far, theirs):
        end.close()
    await asyncio.sleep(0)
