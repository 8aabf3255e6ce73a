"""The kernel: what a task, a process and a decorator are, and what a server asks of a backend.

Four types on one page. Everything else in this room is built from them; nothing runs differently by style.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from enum import Enum
from typing import Protocol, TypeAlias

from guerrilla.envelope import Envelope
from guerrilla.smtp.replies import Reply


class Task(Enum):
    """What is asked of a processor."""

    SAVE_MAIL = "save mail"
    """Take the whole message into custody."""
    VALIDATE_RCPT = "validate recipient"
    """Say whether the last recipient of the envelope is accepted."""


Process: TypeAlias = Callable[[Envelope, Task], Awaitable[Reply]]
"""One processor with all that follows it in the line: an asynchronous function from an envelope to a reply."""

Decorator: TypeAlias = Callable[[Process], Process]
"""How a processor is stacked on the next one."""

CallNext: TypeAlias = Callable[[], Awaitable[Reply]]
"""Passes the envelope on to the next processor and returns what the rest of the line answers."""


class State(Enum):
    """The states of a gateway, the seed's."""

    NEW = "new"
    INITIALIZED = "initialized"
    RUNNING = "running"
    SHUTTERED = "shuttered"
    ERROR = "error"


class Backend(Protocol):
    """What a server needs of the thing behind it. The gateway is one; a test has another."""

    @property
    def validates(self) -> bool:
        """Whether recipients are to be asked about at all."""

    def process(self, envelope: Envelope) -> Awaitable[Reply]:
        """Take the message and answer: positive only when it is kept. Never raises."""

    def validate_rcpt(self, envelope: Envelope) -> Awaitable[Reply]:
        """Answer for the last recipient of the envelope. Never raises."""
