"""What was told 421 because the time for shutting down was over does not turn up later (RFC 5321 section 4.2.5)."""

from __future__ import annotations

import asyncio

from guerrilla import CallNext, Daemon, Envelope, Processor, ProcessorConfig, Reply


async def test_a_message_that_is_given_up_at_the_end_is_made_void() -> None:
    reached, undone, kept = asyncio.Event(), asyncio.Event(), asyncio.Event()

    class Slow(Processor[ProcessorConfig]):
        async def save_mail(self, envelope: Envelope, call_next: CallNext) -> Reply:
            reached.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                undone.set()
                raise
            kept.set()
            return await call_next()

    daemon = Daemon(
        {
            "servers": [{"listen_interface": "127.0.0.1:0"}],
            "allowed_hosts": ["."],
            "log_file": "off",
            "shutdown_timeout": "10ms",
            "backend_config": {"save_process": "Slow"},
        }
    )
    daemon.add_processor("Slow", Slow)
    async with daemon:
        [(_, address)] = daemon.addresses
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"EHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<a@x>\r\nDATA\r\nYou\r\n.\r\n")
        await reached.wait()
    assert (await reader.read()).endswith(b"421 4.3.2 Server is shutting down, try again later\r\n")
    writer.close()
    assert undone.is_set()
    assert not kept.is_set()
