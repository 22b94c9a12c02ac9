"""Answers that are decided later: whoever waits, or leaves, or makes something of them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pushd.later import Later, all_decided


def undecided() -> Later[int]:
    return Later(asyncio.get_running_loop().create_future())


async def test_an_answer_is_known_once_it_is_decided_and_can_be_awaited() -> None:
    answer = undecided()
    with pytest.raises(asyncio.InvalidStateError):
        answer.result()
    asyncio.get_running_loop().call_soon(answer.decided.set_result, 7)
    assert await answer == await answer == answer.result() == 7


async def test_who_is_cancelled_takes_nothing_from_the_others() -> None:
    answer = undecided()
    leaves, stays = (asyncio.ensure_future(answer) for _ in range(2))
    await asyncio.sleep(0)
    leaves.cancel()
    await asyncio.wait([leaves])
    assert leaves.cancelled()
    answer.decided.set_result(7)
    assert await stays == 7


async def test_steps_share_the_future_and_are_taken_when_the_result_is_asked_for() -> None:
    asked: list[int] = []

    def double(number: int) -> int:
        asked.append(number)
        return 2 * number

    answer = undecided()
    text = answer.then(double).then(str)
    assert text.decided is answer.decided
    answer.decided.set_result(7)
    await asyncio.sleep(0)
    assert asked == []
    assert await text == "14"
    assert text.result() == "14"
    assert asked == [7, 7]


def told(error: Exception) -> str:
    return f"failed: {error}"


@pytest.mark.parametrize("fails", ["work", "step before", "step"])
async def test_what_is_made_of_a_failure(fails: str) -> None:
    def step(number: int) -> Any:
        raise ValueError("odd") if number else AssertionError

    answer = undecided()
    if fails == "work":
        answer.decided.set_exception(ValueError("odd"))
        later = answer.then(str, told)
    else:
        answer.decided.set_result(7)
        later = answer.then(step).then(str, told) if fails == "step before" else answer.then(step, told)
    assert await later == "failed: odd"
    if fails != "work":
        with pytest.raises(ValueError, match="odd"):
            await answer.then(step)


async def test_waiting_for_many_of_which_some_share_a_future_or_fail() -> None:
    await all_decided([])
    answers = [undecided() for _ in range(3)]
    waiting = asyncio.create_task(all_decided([*answers, answers[0].then(str)]))
    answers[0].decided.set_result(1)
    answers[1].decided.set_exception(ValueError("odd"))
    await asyncio.sleep(0)
    assert not waiting.done()
    answers[2].decided.set_result(1)
    await waiting
    assert answers[1].decided.exception() is not None
