"""The directory's cache: how long it remembers, how often it asks, and what it says while the store is down."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pushd.config.current import CurrentConfig
from pushd.errors import StoreUnavailable
from pushd.model import Group, Membership, Target, TargetKind, User
from pushd.stores.nobody import NoDirectory
from pushd.stores.sqlite import import_groups
from pushd.users.directory import LISTED_MOST, LISTS_MOST, UNKNOWN_TTL_S, CachedDirectory
from tests.conftest import MakeConfig
from tests.daemon import until
from tests.unit.parts import Clock, Faulty

ALL = Target(TargetKind.ALL)
ADMIN = Target(TargetKind.ADMIN)
ANN, BEN, CID = User(1, "ann", 1), User(2, "ben", 2), User(3, "cid", 3)
TTL_S = 300


def token(user: User, issued_s: int) -> User:
    """What a token says that was made then; 0: it does not say."""
    return msgspec.structs.replace(user, issued_ms=issued_s * 1000)


def role(*roles: int) -> Target:
    return Target(TargetKind.ROLE, roles=roles)


@pytest.fixture
async def store(stores: Any) -> Faulty:
    await stores.directory.learn([ANN, BEN])
    return Faulty(stores.directory)


@pytest.fixture
def build(store: Any, make_config: MakeConfig, clock: Clock) -> Callable[..., CachedDirectory]:
    def make(*, lists_most: int = LISTS_MOST, listed_most: int = LISTED_MOST, **sections: Any) -> CachedDirectory:
        current = CurrentConfig(make_config(**sections))
        return CachedDirectory(store, current, clock, lists_most=lists_most, listed_most=listed_most)

    return make


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


async def test_no_more_lists_are_remembered_than_allowed_and_that_of_all_stays(
    build: Callable[..., CachedDirectory], store: Faulty
) -> None:
    directory = build(lists_most=3)
    await directory.ids(ALL)
    for number in range(10, 100):
        await directory.ids(role(1))  # in use
        await directory.ids(role(number))
    assert store.calls == ["all_ids"] + ["ids_by_role"] * 91
    assert len(directory._ids) == 3
    assert directory.cached_ids(ALL) == [1, 2]


async def test_no_more_ids_are_remembered_in_lists_than_allowed(
    build: Callable[..., CachedDirectory],
) -> None:
    directory = build(listed_most=3)
    for target in (ALL, role(1), role(1, 2)):
        await directory.ids(target)
    assert directory.cached_ids(ALL) == [1, 2]
    assert directory.cached_ids(role(1)) is None
    assert directory.cached_ids(role(1, 2)) == [1, 2]  # what was asked for last stays, however long


async def test_admins_are_who_the_configuration_says(build: Callable[..., CachedDirectory]) -> None:
    assert await build(auth={"admin_roles": [2]}).ids(ADMIN) == [2]


async def test_many_ask_once(directory: CachedDirectory, store: Any) -> None:
    gate = store.pause("all_ids")
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
    gate = store.pause("all_ids")
    store.fail("all_ids")
    asking = [asyncio.create_task(directory.ids(ALL)) for _ in range(3)]
    await asyncio.sleep(0)
    gate.set()
    results = await asyncio.gather(*asking, return_exceptions=True)
    assert [type(result) for result in results] == [StoreUnavailable] * 3
    assert await directory.ids(ALL) == [1, 2]


def group(*groups: str) -> Target:
    return Target(TargetKind.GROUP, groups=groups)


@pytest.fixture
def groups(store: Faulty, tmp_path: Path) -> None:
    """Ann and 9 are in a, Ben and 9 in b."""
    members = [("a", 1), ("a", 9), ("b", 2), ("b", 9)]
    memberships = [Membership(line, name, user_id, "") for line, (name, user_id) in enumerate(members)]
    import_groups(str(next(tmp_path.rglob("pushd.db")).parent), memberships, source="g.csv")


@pytest.mark.usefixtures("groups")
async def test_groups_are_remembered_as_roles_are(directory: CachedDirectory, store: Faulty, clock: Clock) -> None:
    assert directory.cached_ids(group("a")) is None
    assert await directory.ids(group("a")) == [1, 9]
    assert await directory.ids(group("b", "a", "b")) == [1, 2, 9]  # each once
    assert directory.cached_ids(group("a", "b")) == [1, 2, 9]
    assert directory.cached_ids(group("b")) is None
    assert await directory.ids(group("nobody's")) == []
    assert store.calls == ["ids_by_group"] * 3
    clock.move(TTL_S)
    assert directory.cached_ids(group("a")) is None
    store.fail("ids_by_group", 2)
    assert await directory.ids(group("a")) == [1, 9]
    with pytest.raises(StoreUnavailable):
        await directory.ids(group("b"))
    assert await directory.ids(group("b")) == [2, 9]


@pytest.mark.usefixtures("groups")
async def test_who_is_learned_changes_no_group(directory: CachedDirectory, store: Any) -> None:
    """Also not an answer that is on its way."""
    listed = await directory.ids(group("a"))
    gate = store.pause("ids_by_group")
    asking = asyncio.create_task(directory.ids(group("b")))
    await asyncio.sleep(0)
    await directory.learn([CID])
    assert directory.cached_ids(group("a")) is listed
    gate.set()
    assert await asking == [2, 9]
    assert directory.cached_ids(group("b")) == [2, 9]
    assert store.calls.count("ids_by_group") == 2


async def test_names_of_groups_and_numbers_of_roles_are_not_confused(directory: CachedDirectory) -> None:
    await directory.ids(role(1))
    for names in (("1",), ("[1]",), ("roles:[1]",), ("a', 'b",), ("a", "b")):
        assert directory.cached_ids(group(*names)) is None
        assert await directory.ids(group(*names)) == []


async def test_a_learned_user_is_in_the_next_list(directory: CachedDirectory) -> None:
    assert await directory.ids(ALL) == [1, 2]
    await directory.learn([CID])
    assert await directory.ids(ALL) == [1, 2, 3]
    assert await directory.ids(role(3)) == [3]


async def test_what_was_said_before_is_not_learned_again(directory: CachedDirectory, store: Faulty) -> None:
    listed = await directory.ids(ALL)
    for _ in range(3):
        await directory.learn([ANN, BEN])
    assert store.calls == ["all_ids", "learn"]
    assert directory.cached_ids(ALL) is listed
    for said in (CID, CID, token(CID, 0), token(CID, 0), token(CID, 5), CID):
        await directory.learn([said])
    assert store.calls.count("learn") == 1 + 4


async def test_a_role_that_goes_down_or_up_holds_from_the_next_notice_on(
    directory: CachedDirectory, store: Faulty
) -> None:
    for issued_s, number in ((1, 1), (2, 0), (3, 1), (4, 2)):
        await directory.users([1])
        await directory.ids(ADMIN)
        await directory.learn([token(User(1, "ann", number), issued_s)])
        assert directory.cached_ids(ADMIN) is None
        assert await directory.ids(ADMIN) == [1] * (number == 1)
        assert await directory.ids(role(number)) == ([1, 2] if number == 2 else [1])
        assert await directory.users([1]) == {1: User(1, "ann", number)}


async def test_a_token_that_changes_nothing_leaves_the_lists_alone(directory: CachedDirectory) -> None:
    await directory.learn([token(ANN, 5)])
    listed = await directory.ids(ADMIN)
    await directory.learn([token(ANN, 6)])
    await directory.learn([token(User(1, "ann", 3), 4)])  # made earlier
    assert directory.cached_ids(ADMIN) is listed
    assert await directory.users([1]) == {1: ANN}


async def test_an_answer_from_before_a_role_changed_is_not_remembered(directory: CachedDirectory, store: Any) -> None:
    gate = store.pause("ids_by_role")
    before = asyncio.create_task(directory.ids(ADMIN))
    await asyncio.sleep(0)
    await directory.learn([token(User(1, "ann", 0), 5)])
    after = asyncio.create_task(directory.ids(ADMIN))
    await asyncio.sleep(0)
    gate.set()
    await before
    assert await after == []
    assert directory.cached_ids(ADMIN) == []


async def test_a_user_whom_the_store_did_not_take_is_still_unknown(directory: CachedDirectory, store: Any) -> None:
    store.fail("learn")
    with pytest.raises(StoreUnavailable):
        await directory.learn([CID])
    await directory.learn([CID])
    assert await directory.ids(ALL) == [1, 2, 3]


async def test_who_asks_after_a_user_was_learned_does_not_get_an_answer_from_before(
    directory: CachedDirectory, store: Any
) -> None:
    answers = store.pause("all_ids")
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
    """A directory whose answers are those from when it was asked for."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.gate = asyncio.Event()
        self.read = asyncio.Event()

    async def all_ids(self) -> list[int]:
        ids: list[int] = await self._store.all_ids()
        self.read.set()
        await self.gate.wait()
        return ids

    async def users(self, user_ids: list[int]) -> dict[int, User]:
        users: dict[int, User] = await self._store.users(user_ids)
        self.read.set()
        await self.gate.wait()
        return users

    async def learn(self, users: list[User]) -> None:
        await self._store.learn(users)


async def test_an_answer_from_before_a_user_was_learned_is_not_remembered(
    store: Any, make_config: MakeConfig, clock: Clock
) -> None:
    late: Any = _Late(store)
    directory = CachedDirectory(late, CurrentConfig(make_config()), clock)
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


async def test_those_who_miss_the_same_users_ask_once(directory: CachedDirectory, store: Any) -> None:
    gate = store.pause("users")
    asking = [asyncio.create_task(directory.users(ids)) for ids in ([1], [2, 1], {1, 2, 9})]
    await asyncio.sleep(0)
    gate.set()
    assert await asyncio.gather(*asking) == [{1: ANN}, {1: ANN, 2: BEN}, {1: ANN, 2: BEN}]
    assert store.calls == ["users"] * 3  # for 1, for 2, for 9


async def test_the_store_is_asked_for_nobody_twice_at_a_time(make_config: MakeConfig, clock: Clock) -> None:
    store = _Counting()
    directory = CachedDirectory(store, CurrentConfig(make_config()), clock)
    ids = range(101, 201)
    answers = await asyncio.gather(*(directory.users(ids[start:]) for start in range(50)))
    assert [len(answer) for answer in answers] == [100 - start for start in range(50)]
    assert store.asked == list(ids)


class _Counting:
    """Knows everybody but user 13; says for whom it was asked."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    async def users(self, user_ids: Collection[int]) -> dict[int, User]:
        await asyncio.sleep(0)
        self.asked += user_ids
        return {user_id: User(user_id, f"user{user_id}") for user_id in user_ids if user_id != 13}

    async def learn(self, users: Sequence[User]) -> None: ...

    async def all_ids(self) -> list[int]:
        return []

    async def ids_by_role(self, roles: Collection[int]) -> list[int]:
        return []

    async def ids_by_group(self, groups: Collection[str]) -> list[int]:
        return []

    async def groups(self, limit: int) -> list[Group]:
        return []


async def test_who_gives_up_does_not_take_the_answer_from_others(directory: CachedDirectory, store: Any) -> None:
    gate = store.pause("users")
    asking = [asyncio.create_task(directory.users([1, 2])) for _ in range(2)]
    await asyncio.sleep(0)
    asking[0].cancel()
    await asyncio.sleep(0)
    gate.set()
    assert await asking[1] == {1: ANN, 2: BEN}
    assert await directory.users([1, 2]) == {1: ANN, 2: BEN}
    assert store.calls == ["users"]


@pytest.mark.parametrize("operation", ["users", "all_ids"])
async def test_when_nobody_waits_any_more_a_failure_is_no_unhandled_one(
    directory: CachedDirectory, store: Any, operation: str
) -> None:
    gate = store.pause(operation)
    store.fail(operation)
    asking = asyncio.create_task(directory.users([1]) if operation == "users" else directory.ids(ALL))
    await until(lambda: store.calls)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    gate.set()
    await asyncio.sleep(0.01)
    gc.collect()
    assert await directory.users([1]) == {1: ANN}


async def test_each_gets_what_its_own_questions_brought(directory: CachedDirectory, store: Any, clock: Clock) -> None:
    await directory.users([1])
    clock.move(TTL_S)
    gate = store.pause("users")
    store.fail("users")
    first = asyncio.create_task(directory.users([1]))
    await asyncio.sleep(0)
    second = asyncio.create_task(directory.users([1, 2]))
    await until(lambda: store.calls.count("users") == 3)
    gate.set()
    assert await first == {1: ANN}  # stale: its question failed
    assert await second == {1: ANN, 2: BEN}


async def test_a_failure_that_is_no_store_s_is_not_hidden(directory: CachedDirectory, store: Any) -> None:
    store.fail("users", error=ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        await directory.users([1])
    assert await directory.users([1]) == {1: ANN}


async def test_unknown_users_are_not_asked_for_again_for_a_while(
    directory: CachedDirectory, store: Faulty, clock: Clock
) -> None:
    assert await directory.users([8, 9]) == {}
    assert await directory.users([8, 9, 1]) == {1: ANN}
    assert store.calls == ["users", "users"]
    clock.move(UNKNOWN_TTL_S - 1)
    assert await directory.users([8, 9, 1]) == {1: ANN}
    assert store.calls == ["users", "users"]
    clock.move(1)
    assert await directory.users([8, 1]) == {1: ANN}
    assert store.calls == ["users"] * 3


async def test_a_learned_user_is_no_longer_unknown(directory: CachedDirectory) -> None:
    assert await directory.users([3]) == {}
    await directory.learn([CID])
    assert await directory.users([3]) == {3: CID}


async def test_a_connected_user_is_asked_for_again_even_when_learned_before(
    directory: CachedDirectory, stores: Any
) -> None:
    assert await directory.users([3]) == {}
    await stores.directory.learn([CID])  # by others
    assert await directory.ids(ALL) == [1, 2, 3]
    await directory.learn([CID])
    assert await directory.users([3]) == {3: CID}


async def test_an_answer_from_before_a_user_was_learned_does_not_make_it_unknown(
    store: Any, make_config: MakeConfig, clock: Clock
) -> None:
    late: Any = _Late(store)
    directory = CachedDirectory(late, CurrentConfig(make_config()), clock)
    asking = asyncio.create_task(directory.users([1, 3]))
    await late.read.wait()
    await directory.learn([CID])
    late.gate.set()
    assert await directory.users([3]) == {3: CID}
    assert await asking == {1: ANN}
    assert await directory.users([3]) == {3: CID}


async def test_stale_users_serve_for_as_long_as_the_store_is_down(
    directory: CachedDirectory, store: Any, clock: Clock
) -> None:
    await directory.users([1, 9])
    store.fail("users", 100)
    for _ in range(50):
        clock.move(TTL_S * 100)
        assert await directory.users([1, 2, 9]) == {1: ANN}
    store.work()
    assert await directory.users([1, 2, 9]) == {1: ANN, 2: BEN}


async def test_a_user_who_is_gone_is_forgotten(directory: CachedDirectory, store: Any, clock: Clock) -> None:
    await directory.users([1])
    clock.move(TTL_S)
    assert await directory.users([1]) == {1: ANN}
    clock.move(TTL_S)
    directory._directory = _Nobody()  # type: ignore[assignment]
    assert await directory.users([1]) == {}


class _Nobody:
    async def users(self, user_ids: Collection[int]) -> dict[int, User]:
        return {}


async def test_the_least_recently_used_make_room(build: Callable[..., CachedDirectory], store: Faulty) -> None:
    directory = build(directory={"cache_size": 2})
    await directory.users([1])
    await directory.users([9])
    await directory.users([1])
    await directory.users([2])  # in the place of 9
    del store.calls[:]
    assert await directory.users([1, 2]) == {1: ANN, 2: BEN}
    assert store.calls == []


async def test_more_users_than_are_remembered_do_not_push_each_other_out(make_config: MakeConfig, clock: Clock) -> None:
    store = _Counting()
    directory = CachedDirectory(store, CurrentConfig(make_config(directory={"cache_size": 100})), clock)
    ids = range(1, 301)
    for _ in range(3):
        assert len(await directory.users(ids)) == 299
    assert len(store.asked) == 300 + 200 + 200
    assert len(directory._users) == 100


async def test_an_id_that_is_named_twice(directory: CachedDirectory, store: Faulty) -> None:
    assert await directory.users([1, 1, 9, 9]) == {1: ANN}
    assert await directory.users([1, 1, 9, 9]) == {1: ANN}
    assert store.calls == ["users"]


async def test_stale_lists_know_whom_the_store_does_not(directory: CachedDirectory, store: Any, clock: Clock) -> None:
    ids = await directory.ids(ALL)
    clock.move(TTL_S)
    store.fail("all_ids", 2)
    assert await directory.ids(ALL) is ids
    await directory.learn([CID])
    assert await directory.ids(ALL) == [1, 2, 3]


async def test_without_a_directory_the_newest_token_says_who_somebody_is(make_config: MakeConfig, clock: Clock) -> None:
    directory = CachedDirectory(NoDirectory(), CurrentConfig(make_config()), clock)
    assert await directory.users([1]) == {}
    await directory.learn([ANN, BEN])
    assert await directory.users([1]) == {1: ANN}
    assert await directory.ids(ADMIN) == [1]
    await directory.learn([token(User(1, "ann", 2), 0)])
    assert await directory.users([1]) == {1: User(1, "ann", 2)}
    assert await directory.ids(ADMIN) == []
    listed = await directory.ids(role(2))
    await directory.learn([token(User(1, "ann", 2), 0), BEN])
    assert directory.cached_ids(role(2)) is listed
