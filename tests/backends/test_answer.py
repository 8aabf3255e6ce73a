"""An answer before it is there: who is told of it, and what becomes of the work when nobody waits any more."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from guerrilla.backends.answer import Answer
from guerrilla.smtp.replies import LOCAL_ERROR


class Party:
    """The work that an answer comes from, and who has asked for it."""

    def __init__(self) -> None:
        self.diary: list[str] = []

    def void_work(self) -> None:
        self.diary.append("void")

    def tell(self, answer: asyncio.Future[Any]) -> None:
        self.diary.append("cancelled" if answer.cancelled() else str(answer.exception() or answer.result()))


@pytest.fixture
def party() -> Party:
    return Party()


@pytest.fixture
async def answer(party: Party) -> Answer:
    answer = Answer(loop=asyncio.get_running_loop())
    answer.asker = answer.work = party
    return answer


async def test_the_asker_is_told_at_once_when_the_answer_is_there(answer: Answer, party: Party) -> None:
    answer.set_result(LOCAL_ERROR)
    assert party.diary == [str(LOCAL_ERROR)]
    assert answer.asker is None


async def test_the_asker_is_told_at_once_when_the_answer_is_given_up_and_its_work_is_void(
    answer: Answer, party: Party
) -> None:
    assert answer.cancel()
    assert party.diary == ["void", "cancelled"]
    assert answer.asker is None


async def test_the_asker_is_told_at_once_when_there_will_be_no_answer(answer: Answer, party: Party) -> None:
    answer.set_exception(ConnectionError("the store has gone"))
    assert party.diary == ["the store has gone"]
    assert answer.asker is None


async def test_an_answer_that_is_there_is_told_of_once_and_its_work_is_not_void(answer: Answer, party: Party) -> None:
    answer.set_result(LOCAL_ERROR)
    assert not answer.cancel()
    assert party.diary == [str(LOCAL_ERROR)]


async def test_whoever_awaits_an_answer_has_it_too(answer: Answer) -> None:
    asyncio.get_running_loop().call_soon(answer.set_result, LOCAL_ERROR)
    assert await answer is LOCAL_ERROR


async def test_an_answer_whose_work_is_over_and_whom_nobody_has_asked_for_can_be_given_up(answer: Answer) -> None:
    answer.asker = answer.work = None
    assert answer.cancel()
    assert answer.cancelled()


@pytest.mark.parametrize("give", ["set_result", "set_exception"])
async def test_an_answer_that_nobody_has_asked_for_can_be_given(answer: Answer, party: Party, give: str) -> None:
    answer.asker = None
    getattr(answer, give)(LOCAL_ERROR if give == "set_result" else ConnectionError())
    assert answer.done()
    assert answer.exception() is None or give == "set_exception"
    assert party.diary == []
