"""The contract of ports.Directory."""

from __future__ import annotations

from pushd.model import User

from .conftest import Node

IMPLEMENTATIONS = ("sqlite", "mysql")

ALICE, BOB, CAROL = User(3, "alice", 1), User(1, "博布", 0), User(2**40, "carol", 2)


async def test_a_new_directory_is_empty(node: Node) -> None:
    directory = node.stores.directory
    assert await directory.users([1]) == {}
    assert await directory.all_ids() == []
    assert await directory.ids_by_role([0, 1]) == []


async def test_finds_users_by_id_and_role(node: Node) -> None:
    node.fill_directory([ALICE, BOB, CAROL])
    directory = node.stores.directory
    assert await directory.users([3, 1, 99]) == {3: ALICE, 1: BOB}
    assert await directory.users([]) == {}
    assert await directory.all_ids() == [1, 3, 2**40]
    assert await directory.ids_by_role([1]) == [3]
    assert await directory.ids_by_role({2, 0, 7}) == [1, 2**40]
    assert await directory.ids_by_role([]) == []


async def test_filling_again_changes_known_users(node: Node) -> None:
    node.fill_directory([ALICE, BOB])
    node.fill_directory([User(3, "alicia", 2)])
    assert await node.stores.directory.users([1, 3]) == {1: BOB, 3: User(3, "alicia", 2)}
    assert await node.stores.directory.ids_by_role([1]) == []


async def test_ids_that_nobody_can_have(node: Node) -> None:
    node.fill_directory([ALICE])
    assert await node.stores.directory.users([3, 0, -1, -(2**62), 2**63 - 1]) == {3: ALICE}


async def test_learning_changes_no_known_user(node: Node) -> None:
    node.fill_directory([ALICE])
    await node.stores.directory.learn([User(3, "mallory", 9)])
    await node.restart()
    assert await node.stores.directory.users([3]) == {3: ALICE}


async def test_learning_adds_unknown_users_where_the_table_is_ours(node: Node) -> None:
    node.fill_directory([ALICE])
    await node.stores.directory.learn([User(3, "mallory", 9), BOB, User(1, "twice", 5)])
    await node.restart()
    learned = {} if node.stores.directory in node.stores.remotes else {1: BOB}
    assert await node.stores.directory.users([1, 3]) == {3: ALICE} | learned


async def test_many_users(node: Node) -> None:
    users = [User(user_id, f"user{user_id}", user_id % 2) for user_id in range(1, 25_001)]
    node.fill_directory(users)
    directory = node.stores.directory
    assert await directory.all_ids() == list(range(1, 25_001))
    assert await directory.ids_by_role([0, 1]) == list(range(1, 25_001))
    assert await directory.ids_by_role([1]) == list(range(1, 25_001, 2))
    assert await directory.users(range(1, 1301)) == {user.user_id: user for user in users[:1300]}
