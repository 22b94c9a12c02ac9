"""The cache of stored online statuses: how long it remembers, whom, and how often it asks."""

from __future__ import annotations

from typing import Any

import pytest

from pushd.config.current import CurrentConfig
from pushd.errors import StoreUnavailable
from pushd.model import Arrival
from pushd.presence.statuses import CachedStatuses
from tests.conftest import MakeConfig
from tests.unit.parts import START_MS, Clock, Faulty

TTL_S = 20


def arrival(user_id: int, at_ms: int = START_MS) -> Arrival:
    return Arrival(user_id, f"user {user_id}", "c1", "127.0.0.1", "test", at_ms)


@pytest.fixture
async def store(stores: Any) -> Faulty:
    await stores.presence.connected([arrival(user_id) for user_id in (1, 2, 3)])
    return Faulty(stores.presence)


@pytest.fixture
def statuses(store: Any, make_config: MakeConfig, clock: Clock) -> CachedStatuses:
    return CachedStatuses(store, CurrentConfig(make_config(presence={"status_ttl_s": TTL_S})), clock, most=2)


async def test_a_status_is_remembered_for_its_time(statuses: CachedStatuses, store: Faulty, clock: Clock) -> None:
    first = await statuses.of([1])
    await store.connected([arrival(1, START_MS + 1)])
    clock.move(TTL_S - 0.1)
    assert await statuses.of([1]) == first
    assert store.calls.count("statuses") == 1
    clock.move(0.2)
    assert (await statuses.of([1]))[1].total_online_count == first[1].total_online_count + 1


async def test_only_the_others_are_asked_for(statuses: CachedStatuses, store: Faulty) -> None:
    await statuses.of([1])
    store.fail("statuses")
    assert set(await statuses.of([1])) == {1}
    with pytest.raises(StoreUnavailable):
        await statuses.of([1, 2])
    assert set(await statuses.of([1, 2])) == {1, 2}


async def test_who_has_none_is_asked_for_every_time(statuses: CachedStatuses, store: Faulty) -> None:
    assert await statuses.of([9]) == {}
    await store.connected([arrival(9)])
    assert set(await statuses.of([9])) == {9}


async def test_nobody_asks_for_nobody(statuses: CachedStatuses, store: Faulty) -> None:
    assert await statuses.of([]) == {}
    assert store.calls == []


async def test_so_many_are_remembered(statuses: CachedStatuses, store: Faulty) -> None:
    """The least recently used one goes."""
    assert set(await statuses.of([1, 2])) == {1, 2}
    await statuses.of([1])
    await statuses.of([3])
    asked = store.calls.count("statuses")
    assert set(await statuses.of([1, 3])) == {1, 3}
    assert store.calls.count("statuses") == asked
    await statuses.of([2])
    assert store.calls.count("statuses") == asked + 1
