"""A backend that keeps what it is given, for tests of everything that stands in front of a backend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from guerrilla.envelope import Envelope
from guerrilla.smtp.replies import RECIPIENT_OK, Reply, queued


class RecordingBackend:
    """Takes every message, and keeps its envelope in ``envelopes``; ``data`` there is always ``bytes``.

    ``on_message`` and ``on_rcpt`` may answer otherwise: each is given the envelope, and returns a Reply, or None for
    yes. Only what was answered positively is kept.
    """

    def __init__(
        self,
        on_message: Callable[[Envelope], Reply | None] | None = None,
        on_rcpt: Callable[[Envelope], Reply | None] | None = None,
    ) -> None:
        self.envelopes: list[Envelope] = []
        self._on_message = on_message
        self._on_rcpt = on_rcpt

    @property
    def validates(self) -> bool:
        """Whether there is an ``on_rcpt`` to ask."""
        return self._on_rcpt is not None

    async def process(self, envelope: Envelope) -> Reply:
        """Keep the message."""
        answer = self._on_message(envelope) if self._on_message is not None else None
        if answer is None:
            envelope.queued_id = f"{len(self.envelopes) + 1:032x}"
            answer = queued(envelope.queued_id)
        if answer.positive:
            self.envelopes.append(replace(envelope, data=envelope.data[:], rcpt_to=list(envelope.rcpt_to)))
        return answer

    async def validate_rcpt(self, envelope: Envelope) -> Reply:
        """Answer for the last recipient."""
        answer = self._on_rcpt(envelope) if self._on_rcpt is not None else None
        return answer or RECIPIENT_OK
