"""The directory of a node without one."""

from __future__ import annotations

from pushd.model import User
from pushd.stores.nobody import NoDirectory

ANN, BEN = User(1, "ann", 1), User(2, "ben", 2)


async def test_it_knows_nobody_at_first() -> None:
    directory = NoDirectory()
    assert await directory.users([1, 2]) == {}
    assert await directory.all_ids() == []
    assert await directory.ids_by_role([0, 1, 2]) == []
    assert await directory.ids_by_group(["a"]) == []
    assert await directory.groups(10) == []


async def test_it_knows_whom_it_learned() -> None:
    directory = NoDirectory()
    await directory.learn([BEN, ANN])
    assert await directory.users([1, 2, 3]) == {1: ANN, 2: BEN}
    assert await directory.users([]) == {}
    assert await directory.all_ids() == [1, 2]
    assert await directory.ids_by_role([1]) == [1]
    assert await directory.ids_by_role({1, 2, 7}) == [1, 2]
    assert await directory.ids_by_role([]) == []


async def test_the_newest_tokens_name_and_role_count() -> None:
    directory = NoDirectory()
    assert await directory.learn([ANN]) == {1}
    assert await directory.learn([User(1, "anna", 3, issued_ms=2000)]) == {1}
    assert await directory.learn([User(1, "old", 1, issued_ms=1000), User(1, "nobody says so", 1)]) == set()
    assert await directory.learn([User(1, "anna", 3, issued_ms=2500)]) == set()
    assert await directory.users([1]) == {1: User(1, "anna", 3)}
    assert await directory.ids_by_role([1]) == []
    assert await directory.ids_by_role([3]) == [1]
