"""Stored online status on its way: arrivals, departures, and the reset that comes before them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pushd.model import Arrival
from pushd.ports import Stores
from tests.unit.parts import REFUSALS, REFUSED_USER, START_MS, House, Picky, with_store

Build = Callable[..., House]


@pytest.mark.parametrize("error", REFUSALS)
async def test_a_status_that_cannot_be_written_is_set_aside_and_all_others_are_written(
    make_house: Build, stores: Stores, error: Exception
) -> None:
    house = make_house(stores=with_store(stores, presence=Picky(stores.presence, error)))
    for user_id in (1, REFUSED_USER, 2, 3):
        house.writers.statuses.arrived(Arrival(user_id, "", f"c{user_id}", "", "", START_MS))
    house.writers.statuses.left(REFUSED_USER, START_MS + 5)
    house.writers.statuses.left(3, START_MS + 5)
    house.start_writers()
    await house.writers.flushed()
    statuses = await stores.presence.statuses([1, 2, 3, REFUSED_USER])
    assert {user_id: status.is_online for user_id, status in statuses.items()} == {1: True, 2: True, 3: False}
    assert await stores.set_aside.counts() == {"presence": 2}


async def test_a_reset_that_fails_for_good_keeps_nobody_waiting_and_is_not_repeated_later(
    make_house: Build, frail: Any
) -> None:
    house = make_house(stores=frail)
    frail.presence.fail("reset", 5, TypeError("odd"))
    house.writers.statuses.arrived(Arrival(1, "", "c1", "", "", START_MS))
    house.start_writers()
    await house.writers.flushed()
    assert await house.writers.statuses.were_online() == []
    assert (await frail.presence.statuses([1]))[1].is_online
    assert await frail.set_aside.counts() == {}
    assert house.metrics.errors.labels("store_write").value == 1


async def test_a_reset_is_not_repeated_with_what_came_after_it(make_house: Build, frail: Any) -> None:
    """It would send home who has come since."""
    house = make_house(stores=frail)
    frail.presence.fail("disconnected", 2)
    house.writers.statuses.arrived(Arrival(1, "", "c1", "", "", START_MS))
    house.writers.statuses.left(2, START_MS)
    house.start_writers()
    await house.writers.flushed()
    assert frail.presence.calls.count("reset") == 1
    assert (await frail.presence.statuses([1]))[1].is_online
