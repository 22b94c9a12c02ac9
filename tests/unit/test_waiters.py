"""Whoever waits is resolved once, in order and in shares; who leaves leaves nothing behind."""

from __future__ import annotations

import asyncio

import pytest

from pushd.waiters import RESOLVED_AT_ONCE, Waiters


async def test_they_are_resolved_in_order_a_share_in_each_turn() -> None:
    many = Waiters()
    futures = [many.join() for _ in range(3 * RESOLVED_AT_ONCE + 1)]
    many.resolve()
    done = []
    while not futures[-1].done():
        done.append([future.done() for future in futures].count(True))
        await asyncio.sleep(0)
    assert done == [RESOLVED_AT_ONCE, 2 * RESOLVED_AT_ONCE, 3 * RESOLVED_AT_ONCE]
    assert len(many) == 0


async def test_who_comes_after_the_others_were_noted_waits_on() -> None:
    some = Waiters()
    first = some.join()
    noted = some.present()
    second = some.join()
    some.resolve(noted)
    assert first.done()
    assert not second.done()
    assert len(some) == 1


async def test_who_leaves_is_not_kept_and_may_leave_twice() -> None:
    some = Waiters()
    gone, cancelled, here = some.join(), some.join(), some.join()
    some.leave(gone)
    some.leave(gone)
    cancelled.cancel()
    some.resolve()
    assert here.done()
    assert not gone.done()
    assert len(some) == 0


async def test_time_over() -> None:
    some = Waiters()
    await some.wait(0)
    assert len(some) == 0
    waiting = asyncio.create_task(some.wait(60))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert len(some) == 0


async def test_all_fail() -> None:
    some = Waiters()
    waiting = asyncio.create_task(some.wait(60))
    await asyncio.sleep(0)
    some.join()  # nobody asks any more: that is no unhandled failure
    some.fail(ValueError("never"))
    with pytest.raises(ValueError, match="never"):
        await waiting
    assert len(some) == 0
