"""The text of what is asked for it several times is the same, whether it was known or not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from guerrilla.envelope import NULL_PATH, Address, mailbox
from guerrilla.smtp.replies import OK, queued
from guerrilla.written import written


class Loud(Address):
    """An address of another class, as a processor may have it."""

    def __str__(self) -> str:
        return super().__str__().upper()


class Foreign:
    """An address of somebody else's, which has all attributes that it is asked for, as a mock or a proxy has."""

    def __getattr__(self, name: str) -> object:
        return Foreign()

    def __str__(self) -> str:
        return "a@example.com"

    __repr__ = __str__


@pytest.mark.parametrize(
    "value",
    [
        mailbox("a", "example.com"),
        Address("a b", "example.com"),
        replace(mailbox("a", "example.com"), user="c"),
        NULL_PATH,
        Loud("a", "example.com"),
        Foreign(),
        OK,
        queued("0f"),
        queued("0f\n"),
        replace(queued("0f"), code=251),
        "text",
        None,
        7,
    ],
    ids=repr,
)
def test_what_is_written_is_what_str_gives(value: object) -> None:
    assert written(value) == str(value)
