"""The directory's cache: how long it remembers, how often it asks, and what it says while the store is down."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from pushd.directory import CachedDirectory
from pushd.errors import StoreUnavailable
from pushd.live import Live
from pushd.model import Target, TargetKind, User
from tests.conftest import MakeConfig
from tests.unit.parts import Clock, Faulty

ALL = Target(TargetKind.ALL)
ADMIN = Target(TargetKind.ADMIN)
ANN, BEN, CID = User(1, "ann", 1), User(2, "ben", 2), User(3, "cid", 3)
TTL_S = 300


def role(*roles: int) -> Target:
    return Target(TargetKind.ROLE, roles=roles)


@pytest.fixture
async def store(stores: Any) -> Faulty:
    await stores.directory.learn([ANN, BEN])
    return Faulty(stores.directory)


@pytest.fixture
def build(store: Any, make_config: MakeConfig, clock: Clock) -> Callable[..., CachedDirectory]:
    return lambda **sections: CachedDirectory(store, Live(make_config(**sections)), clock)


@pytest.fixture
def directory(build: Callable[..., CachedDirectory]) -> CachedDirectory:
    return build()


async def test_targets_that_need_no_store(directory: CachedDirectory, store: Faulty) -> None:
    custom = Target(TargetKind.CUSTOM, user_ids=(9, 8))
    assert directory.cached_ids(custom) == [9, 8]
    assert directory.cached_ids(Target(TargetKind.ONLINE)) == []
    assert await directory.ids(custom) == [9, 8]
    assert store.calls == []


async def test_targets_from_the_store(directory: CachedDirectory) -> None:
    assert directory.cached_ids(ALL) is None
    assert await directory.ids(ALL) == [1, 2]
    assert await directory.ids(ADMIN) == [1]
    assert await directory.ids(role(2, 3)) == [2]
    assert await directory.ids(role(7)) == []


async def test_lists_are_remembered_for_their_time(directory: CachedDirectory, store: Faulty, clock: Clock) -> None:
    await directory.ids(ALL)
    clock.move(TTL_S - 1)
    assert directory.cached_ids(ALL) == [1, 2]
    assert await directory.ids(ALL) == [1, 2]
    assert store.calls == ["all_ids"]
    clock.move(1)
    assert directory.cached_ids(ALL) is None
    await directory.ids(ALL)
    assert store.calls == ["all_ids", "all_ids"]


async def test_the_same_roles_in_another_order_are_the_same_list(directory: CachedDirectory, store: Faulty) -> None:
    assert await directory.ids(role(2, 1)) == [1, 2]
    assert directory.cached_ids(role(1, 2, 2)) == [1, 2]
    assert directory.cached_ids(role(1)) is None


async def test_admins_are_who_the_configuration_says(build: Callable[..., CachedDirectory]) -> None:
    assert await build(auth={"admin_roles": [2]}).ids(ADMIN) == [2]


async def test_many_ask_once(directory: CachedDirectory, store: Any) -> None:
    gate = store.hold("all_ids")
    asking = [asyncio.create_task(directory.ids(ALL)) for _ in range(5)]
    await asyncio.sleep(0)
    asking[0].cancel()  # it must not take the answer away from the others
    await asyncio.sleep(0)
    gate.set()
    assert await asyncio.gather(*asking[1:]) == [[1, 2]] * 4
    assert store.calls == ["all_ids"]


async def test_stale_lists_serve_while_the_store_is_down(directory: CachedDirectory, store: Any, clock: Clock) -> None:
    await directory.ids(role(1))
    clock.move(TTL_S)
    store.fail("ids_by_role", 2)
    assert await directory.ids(role(1)) == [1]
    assert directory.cached_ids(role(1)) is None  # so that the store is asked again
    with pytest.raises(StoreUnavailable):
        await directory.ids(role(2))
    assert await directory.ids(role(2)) == [2]


async def test_a_failure_fails_all_who_asked_and_is_forgotten(directory: CachedDirectory, store: Any) -> None:
    gate = store.hold("all_ids")
    store.fail("all_ids")
    asking = [asyncio.create_task(directory.ids(ALL)) for _ in range(3)]
    await asyncio.sleep(0)
    gate.set()
    results = await asyncio.gather(*asking, return_exceptions=True)
    assert [type(result) for result in results] == [StoreUnavailable] * 3
    assert await directory.ids(ALL) == [1, 2]


async def test_a_learned_user_is_in_the_next_list(directory: CachedDirectory) -> None:
    assert await directory.ids(ALL) == [1, 2]
    await directory.learn([CID])
    assert await directory.ids(ALL) == [1, 2, 3]
    assert await directory.ids(role(3)) == [3]


async def test_known_users_are_not_learned_again(directory: CachedDirectory, store: Faulty) -> None:
    await directory.ids(ALL)
    await directory.learn([ANN, BEN])
    await directory.learn([CID])
    await directory.learn([CID])
    assert store.calls == ["all_ids", "learn"]


async def test_a_user_whom_the_store_did_not_take_is_still_unknown(directory: CachedDirectory, store: Any) -> None:
    store.fail("learn")
    with pytest.raises(StoreUnavailable):
        await directory.learn([CID])
    await directory.learn([CID])
    assert await directory.ids(ALL) == [1, 2, 3]


async def test_who_asks_after_a_user_was_learned_does_not_get_an_answer_from_before(
    directory: CachedDirectory, store: Any
) -> None:
    answers = store.hold("all_ids")
    before = asyncio.create_task(directory.ids(ALL))
    await asyncio.sleep(0)
    await directory.learn([CID])
    # The first question may have been put to the store before the user was in it.
    after = asyncio.create_task(directory.ids(ALL))
    await asyncio.sleep(0)
    answers.set()
    assert await after == [1, 2, 3]
    await before
    assert store.calls.count("all_ids") == 2
    assert directory.cached_ids(ALL) == [1, 2, 3]


class _Late:
    """A directory whose list of all is the one from when it was asked for."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.gate = asyncio.Event()
        self.read = asyncio.Event()

    async def all_ids(self) -> list[int]:
        ids: list[int] = await self._store.all_ids()
        self.read.set()
        await self.gate.wait()
        return ids

    async def learn(self, users: list[User]) -> None:
        await self._store.learn(users)


async def test_an_answer_from_before_a_user_was_learned_is_not_remembered(
    store: Any, make_config: MakeConfig, clock: Clock
) -> None:
    late: Any = _Late(store)
    directory = CachedDirectory(late, Live(make_config()), clock)
    asking = asyncio.create_task(directory.ids(ALL))
    await late.read.wait()
    await directory.learn([CID])
    late.gate.set()
    assert await asking == [1, 2]
    assert directory.cached_ids(ALL) is None
    assert await directory.ids(ALL) == [1, 2, 3]


async def test_stale_lists_survive_that_a_user_is_learned(directory: CachedDirectory, store: Any) -> None:
    await directory.ids(ALL)
    await directory.ids(role(2))
    await directory.learn([CID])
    store.fail("all_ids")
    store.fail("ids_by_role")
    assert await directory.ids(ALL) == [1, 2, 3]
    assert await directory.ids(role(2)) == [2]


async def test_users_are_remembered_for_their_time(directory: CachedDirectory, store: Faulty, clock: Clock) -> None:
    assert await directory.users([1, 2, 9]) == {1: ANN, 2: BEN}
    assert await directory.users([1, 2]) == {1: ANN, 2: BEN}
    assert store.calls == ["users"]
    clock.move(TTL_S)
    assert await directory.users({1}) == {1: ANN}
    assert store.calls == ["users", "users"]
    assert await directory.users([]) == {}


async def test_remembered_users_serve_while_the_store_is_down(
    directory: CachedDirectory, store: Any, clock: Clock
) -> None:
    await directory.users([1])
    clock.move(TTL_S)
    store.fail("users", 2)
    assert await directory.users([1, 2]) == {1: ANN}
    assert await directory.users([2]) == {}
    assert await directory.users([1, 2]) == {1: ANN, 2: BEN}


async def test_no_more_users_are_remembered_than_allowed(build: Callable[..., CachedDirectory], store: Faulty) -> None:
    directory = build(directory={"cache_size": 1})
    assert await directory.users([1, 2]) == {1: ANN, 2: BEN}
    assert await directory.users([1, 2]) == {1: ANN, 2: BEN}
    assert store.calls == ["users", "users"]
