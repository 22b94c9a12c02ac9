"""What unit tests of the core share: a clock, SQLite stores in a directory of their own, and a node's parts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from pushd.ports import Stores
from pushd.stores.sqlite import open_stores
from tests.conftest import MakeConfig
from tests.unit.parts import Clock, House, faulty


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def stores(make_config: MakeConfig, clock: Clock) -> AsyncIterator[Stores]:
    async with open_stores(make_config(), clock=clock.wall_ms) as opened:
        yield opened


@pytest.fixture
async def frail(stores: Stores) -> Any:
    """The stores, each of which fails or waits when told to."""
    return faulty(stores)


@pytest.fixture
async def make_house(make_config: MakeConfig, stores: Stores, clock: Clock) -> AsyncIterator[Callable[..., House]]:
    """Builds a node's parts: `make_house(stores=frail, delivery={...})`; whatever was started is stopped at the end."""
    houses: list[House] = []

    def make(*, stores: Stores = stores, last_seq: int = 0, **sections: Any) -> House:
        sections = {"records": {"flush_ms": 1}} | sections
        houses.append(House(make_config(**sections), stores, clock, last_seq=last_seq))
        return houses[-1]

    yield make
    for house in houses:
        await house.stop()


@pytest.fixture
async def house(make_house: Callable[..., House]) -> House:
    """A node's parts over healthy stores, with everything running."""
    made = make_house()
    made.start_all()
    return made


@pytest.fixture
async def frail_house(make_house: Callable[..., House], frail: Any) -> House:
    """The same over stores that fail or wait when told to."""
    made = make_house(stores=frail)
    made.start_all()
    return made
