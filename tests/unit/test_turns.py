"""Work in slices: when a slice is over others get their turn, and the next one follows while something is left."""

import asyncio
from typing import Any

from pushd.turns import Repeated, Share, Slice, sliced


async def test_a_slice_ends_and_another_one_begins() -> None:
    now = 10.0
    one_slice = Slice(1.0, lambda: now)
    await one_slice.rest()
    now = 10.9
    assert not one_slice.is_over
    now = 11.0
    assert one_slice.is_over
    await one_slice.rest()
    assert not one_slice.is_over
    now = 12.0
    assert one_slice.is_over


async def test_work_is_done_once_in_each_turn_of_the_loop_until_nothing_is_left() -> None:
    left, turn, done = 3, 0, []

    def work() -> bool:
        nonlocal left
        left -= 1
        done.append(turn)
        return left > 0

    repeated = Repeated(work)
    repeated.wake()
    repeated.wake()
    for turn in range(1, 9):  # noqa: B007
        await asyncio.sleep(0)
    assert len(done) == len(set(done)) == 3
    left = 1
    repeated.wake()
    await asyncio.sleep(0)
    assert len(done) == 4


async def test_work_that_fails_is_asked_again(loop_errors: list[Any]) -> None:
    outcomes = iter([True, ValueError("once"), False])
    calls = 0

    def work() -> bool:
        nonlocal calls
        calls += 1
        outcome = next(outcomes)
        if isinstance(outcome, ValueError):
            raise outcome
        return outcome

    Repeated(work).wake()
    for _ in range(6):
        await asyncio.sleep(0)
    assert calls == 3
    assert [str(context["exception"]) for context in loop_errors] == ["once"]
    loop_errors.clear()


async def test_between_slices_others_get_their_turn() -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counting = asyncio.create_task(count())
    seen = [item async for item in sliced(range(10), 0.0)]
    counting.cancel()
    assert seen == list(range(10))
    assert turns >= 9


async def test_however_many_are_at_it_they_share_what_a_turn_of_the_loop_has_for_them() -> None:
    now, turn = 1000.0, 0
    share = Share(3.0, lambda: now)
    done: list[int] = []  # in which turn

    async def count() -> None:
        nonlocal turn
        while True:
            await asyncio.sleep(0)
            turn += 1

    async def work() -> None:
        nonlocal now
        for _ in range(5):
            await share.turn()
            now += 1.0
            done.append(turn)

    counting = asyncio.create_task(count())
    await asyncio.gather(*(work() for _ in range(4)))
    counting.cancel()
    assert len(done) == 20
    assert max(done.count(turn) for turn in done) == 3
