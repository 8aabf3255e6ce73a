"""What a server asks of a backend may be written down as one."""

from __future__ import annotations

from guerrilla import Backend, Envelope, Reply
from guerrilla.smtp.replies import OK


class Mine(Backend):
    """Says that it is a backend: compiled, Backend would be a class that nobody can derive from."""

    @property
    def validates(self) -> bool:
        return False

    async def process(self, envelope: Envelope) -> Reply:
        return OK

    async def validate_rcpt(self, envelope: Envelope) -> Reply:
        return OK


async def test_a_backend_may_be_derived_from_the_protocol() -> None:
    assert await Mine().process(Envelope()) is OK
