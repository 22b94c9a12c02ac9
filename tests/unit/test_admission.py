"""So much in one turn of the loop, and the rest in the next ones."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from itertools import count

import pytest

from pushd.http import admission
from pushd.http.admission import FirstReads, Line, RequestTurns, UpgradeQueue


async def turns_until(done: list[int], expected: int) -> list[int]:
    """How many were done after each turn of the loop, without turns in which none was."""
    seen: list[int] = []
    async with asyncio.timeout(5):
        while len(done) < expected:
            await asyncio.sleep(0)
            if len(done) != (seen[-1] if seen else 0):
                seen.append(len(done))
    return seen


# ---- upgrades


async def test_upgrades_go_in_the_order_in_which_they_came() -> None:
    line, entered = UpgradeQueue(), list[int]()
    for number in range(100):
        line.queue(lambda number=number: entered.append(number))  # type: ignore[misc]
    assert not entered
    await turns_until(entered, 100)
    assert entered == list(range(100))


async def test_a_slice_of_them_in_each_turn() -> None:
    """Each takes a quarter of a slice and a bit."""
    clock = count(0.0, 0.3 * admission.SLICE_S)
    line, entered = UpgradeQueue(now=lambda: next(clock)), list[int]()
    for number in range(10):
        line.queue(lambda number=number: entered.append(number))  # type: ignore[misc]
    assert await turns_until(entered, 10) == [3, 6, 9, 10]


async def test_one_that_fails_does_not_stop_the_others() -> None:
    loop, failures = asyncio.get_running_loop(), list[object]()
    loop.set_exception_handler(lambda _, context: failures.append(context["exception"]))
    line, entered = UpgradeQueue(), list[int]()
    line.queue(lambda: entered.append(1 // 0))
    line.queue(lambda: entered.append(2))
    await turns_until(entered, 1)
    assert [type(failure) for failure in failures] == [ZeroDivisionError]


async def test_a_crowd() -> None:
    line, entered = UpgradeQueue(crowd=2), list[int]()
    crowded = []
    for number in range(4):
        line.queue(lambda number=number: entered.append(number))  # type: ignore[misc]
        crowded.append(line.is_crowded)
    assert crowded == [False, False, True, True]
    await turns_until(entered, 4)
    assert not line.is_crowded


# ---- silent connections


@pytest.fixture
async def first_reads() -> AsyncIterator[FirstReads]:
    first_reads = FirstReads(per_turn=3)
    yield first_reads
    first_reads.close()


@pytest.fixture
async def guests() -> AsyncIterator[list[tuple[socket.socket, socket.socket]]]:
    pairs = [socket.socketpair() for _ in range(7)]
    yield pairs
    for pair in pairs:
        for sock in pair:
            sock.close()


Pairs = list[tuple[socket.socket, socket.socket]]


async def test_a_few_are_read_in_each_turn(first_reads: FirstReads, guests: Pairs) -> None:
    read: list[int] = []
    for number, (ours, theirs) in enumerate(guests):
        first_reads.watch(ours.fileno(), lambda number=number: read.append(number))  # type: ignore[misc]
        theirs.send(b"x")
    assert await turns_until(read, 7) == [3, 6, 7]
    assert sorted(read) == list(range(7))


async def test_who_is_silent_or_gone_is_not_read(first_reads: FirstReads, guests: Pairs) -> None:
    read: list[int] = []
    for number, (ours, _) in enumerate(guests):
        first_reads.watch(ours.fileno(), lambda number=number: read.append(number))  # type: ignore[misc]
    for number in (1, 2):
        first_reads.forget(guests[number][0].fileno())
        first_reads.forget(guests[number][0].fileno())
    for number in (1, 3, 5):
        guests[number][1].send(b"x")
    guests[6][1].close()  # the end of what comes is something to read, too
    await turns_until(read, 3)
    await asyncio.sleep(0.01)
    assert sorted(read) == [3, 5, 6]


# ---- turns of HTTP requests


async def test_turns_are_free_until_their_time_is_used_up() -> None:
    now = 0.0
    turns = RequestTurns(now=lambda: now)
    assert turns.is_free(Line.STRANGER)
    now = admission.SHARE_S / 2
    assert turns.has_share_left()
    now = admission.SHARE_S
    assert not turns.has_share_left()
    assert turns.is_free(Line.STRANGER), "another one still has time"
    now = admission.TURN_S
    assert not turns.is_free(Line.STRANGER)
    await asyncio.sleep(0)
    assert turns.is_free(Line.STRANGER), "in the next turn of the loop"


async def test_a_turn_has_its_time_once_however_long_it_is() -> None:
    now, served = 0.0, list[int]()
    turns = RequestTurns(now=lambda: now)

    def take_all_the_time(number: int) -> None:
        nonlocal now
        served.append(number)
        now += 2 * admission.TURN_S
        time.sleep(0.003)  # loop.time() goes on as well

    turns.queue(lambda: take_all_the_time(0), Line.STRANGER)
    turns.queue(lambda: take_all_the_time(1), Line.STRANGER)
    for expected in ([0], [0, 1]):
        await asyncio.sleep(0)
        assert served == expected
        assert not turns.is_free(Line.GOING_ON), "the time of this turn is used up"
    await asyncio.sleep(0)
    assert turns.is_free(Line.STRANGER)


async def test_who_comes_and_who_goes_on_are_served_in_turn() -> None:
    clock = count(0.0, admission.TURN_S / 100)
    turns, served = RequestTurns(now=lambda: next(clock)), list[str]()
    for number in range(3):
        turns.queue(lambda number=number: served.append(f"on {number}"), Line.GOING_ON)  # type: ignore[misc]
        turns.queue(lambda number=number: served.append(f"new {number}"), Line.STRANGER)  # type: ignore[misc]
    assert not turns.is_free(Line.STRANGER), "others wait"
    await turns_until(served, 6)
    assert served == ["new 0", "on 0", "new 1", "on 1", "new 2", "on 2"]


async def test_who_is_known_does_not_wait_for_strangers() -> None:
    clock = count(0.0, admission.TURN_S)  # no time is ever left
    turns, served = RequestTurns(now=lambda: next(clock)), list[str]()
    for number in range(3):
        turns.queue(lambda number=number: served.append(f"stranger {number}"), Line.STRANGER)  # type: ignore[misc]
    turns.queue(lambda: served.append("known"), Line.KNOWN)
    await turns_until(served, 4)
    assert served == ["known", "stranger 0", "stranger 1", "stranger 2"]


async def test_what_is_read_counts_as_time() -> None:
    turns = RequestTurns(now=lambda: 0.0)
    assert turns.is_free(Line.STRANGER)
    turns.count_read(int(admission.TURN_S / admission.READ_S_PER_BYTE) + 1)
    assert not turns.is_free(Line.STRANGER)


async def test_who_has_more_to_do_waits_for_the_next_turn() -> None:
    turns, served = RequestTurns(), list[int]()

    def go_on() -> None:
        served.append(1)
        if len(served) < 3:
            turns.queue(go_on, Line.GOING_ON)

    turns.queue(go_on, Line.STRANGER)
    assert await turns_until(served, 3) == [1, 2, 3]


async def test_who_goes_on_is_served_however_many_come() -> None:
    clock = count(0.0, admission.TURN_S)  # no time is ever left
    turns, served = RequestTurns(now=lambda: next(clock)), list[int]()
    for _ in range(3):
        turns.queue(lambda: served.append(1), Line.GOING_ON)
    async with asyncio.timeout(5):
        while len(served) < 3:
            turns.is_free(Line.STRANGER)
            await asyncio.sleep(0)


async def test_turns_go_on_after_one_that_fails() -> None:
    loop, failures = asyncio.get_running_loop(), list[object]()
    loop.set_exception_handler(lambda _, context: failures.append(context["exception"]))
    turns, served = RequestTurns(), list[int]()
    turns.queue(lambda: served.append(1 // 0), Line.STRANGER)
    turns.queue(lambda: served.append(2), Line.STRANGER)
    await turns_until(served, 1)
    assert [type(failure) for failure in failures] == [ZeroDivisionError]


async def test_who_is_known_has_time_of_his_own() -> None:
    now = 0.0
    turns = RequestTurns(now=lambda: now)
    assert turns.is_free(Line.STRANGER)
    now = 10 * admission.TURN_S
    assert not turns.is_free(Line.STRANGER)
    assert turns.is_free(Line.KNOWN), "however long the others took"
    now += 0.9 * admission.TURN_S
    assert turns.is_free(Line.KNOWN)
    assert not turns.is_free(Line.STRANGER)
    now += 0.2 * admission.TURN_S
    assert not turns.is_free(Line.KNOWN)
    await asyncio.sleep(0)
    assert turns.is_free(Line.KNOWN)
