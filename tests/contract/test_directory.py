"""The contract of ports.Directory."""

from __future__ import annotations

import sqlite3
from contextlib import closing

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


def said(user: User, issued_s: int) -> User:
    """What a token says that was made then; 0: it does not say."""
    return User(user.user_id, user.username, user.role, issued_s * 1000)


async def test_roles_follow_the_newest_token_where_the_table_is_ours(node: Node) -> None:
    """Down as well as up; of two tokens that say when they were made the later one, else the one used later."""
    is_ours = node.stores.directory not in node.stores.remotes
    admin, user = User(1, "ann", 1), User(1, "ann", 0)
    steps = [
        (admin, {1}, 1),  # nobody vouches for it, but it is new
        (user, set(), 1),
        (said(user, 100), {1}, 0),
        (said(admin, 99), set(), 0),
        (said(admin, 200), {1}, 1),
        (said(admin, 300), set(), 1),
        (said(user, 250), set(), 1),
        (said(user, 300), {1}, 0),
        (said(admin, 0), {1}, 1),
        (said(admin, 299), set(), 1),
        (said(User(1, "", 1), 400), set(), 1),
        (said(User(1, "anna", 1), 400), {1}, 1),
    ]
    for claims, changed, role in steps:
        assert await node.stores.directory.learn([claims]) == (changed if is_ours else set())
        await node.restart()
        if is_ours:
            assert {user.role for user in (await node.stores.directory.users([1])).values()} == {role}
            assert await node.stores.directory.ids_by_role([1]) == [1] * role
            assert await node.stores.directory.ids_by_role([0]) == [1] * (1 - role)
    assert await node.stores.directory.users([1]) == ({1: User(1, "anna", 1)} if is_ours else {})


async def test_several_tokens_of_a_user_at_once(node: Node) -> None:
    is_ours = node.stores.directory not in node.stores.remotes
    tokens = [said(User(1, "ann", role), issued_s) for role, issued_s in ((1, 10), (2, 30), (3, 20), (4, 0), (5, 29))]
    assert await node.stores.directory.learn(tokens) == ({1} if is_ours else set())
    assert await node.stores.directory.users([1]) == ({1: User(1, "ann", 4)} if is_ours else {})


async def test_imported_users_follow_no_token(node: Node) -> None:
    node.fill_directory([ALICE])
    assert await node.stores.directory.learn([said(User(3, "mallory", 9), 500), said(User(3, "", 0), 0)]) == set()
    assert await node.stores.directory.users([3]) == {3: ALICE}
    assert await node.stores.directory.ids_by_role([9]) == []
    await node.stores.directory.learn([said(User(5, "eve", 1), 500)])
    node.fill_directory([User(5, "eva", 0)])
    assert await node.stores.directory.learn([said(User(5, "eve", 1), 600)]) == set()
    assert await node.stores.directory.users([5]) == {5: User(5, "eva", 0)}


async def test_what_says_nothing_new_writes_nothing(node: Node) -> None:
    """Neither for the users of a list nor for those who come again."""
    users = [said(User(number, f"user{number}", number % 3), 100 * (number % 2)) for number in range(1, 200)]
    await node.stores.directory.learn(users)
    if node.stores.directory in node.stores.remotes:
        return
    database = node.directory / "data" / "pushd.db"
    with closing(sqlite3.connect(database)) as connection:
        before = connection.execute("PRAGMA data_version").fetchone()
        assert await node.stores.directory.learn(users) == set()
        assert connection.execute("PRAGMA data_version").fetchone() == before
        await node.stores.directory.learn([said(User(1, "user1", 1), 300)])
        assert connection.execute("PRAGMA data_version").fetchone() != before


async def test_many_users(node: Node) -> None:
    users = [User(user_id, f"user{user_id}", user_id % 2) for user_id in range(1, 25_001)]
    node.fill_directory(users)
    directory = node.stores.directory
    assert await directory.all_ids() == list(range(1, 25_001))
    assert await directory.ids_by_role([0, 1]) == list(range(1, 25_001))
    assert await directory.ids_by_role([1]) == list(range(1, 25_001, 2))
    assert await directory.users(range(1, 1301)) == {user.user_id: user for user in users[:1300]}
