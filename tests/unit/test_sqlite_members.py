"""Who has a part of a name: told by a byte for each user_id, by a list where the ids are too far apart."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing

import orjson
import pytest

from pushd.stores.sqlite.members import DENSE_IDS, MEMBERS, WHOLE_USERS, Members, members

NAMES = {1: ["Ann"], 2: ["bob"], 7: ["hanna"], 8: ["Anna", "carl"], 9: ["dan", "HANNES"], 10: ["ed", "flo"]}


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:")) as opened:
        opened.execute("CREATE TABLE receive_names (username TEXT, user_id INTEGER, folded TEXT AS (lower(username)))")
        opened.execute("CREATE TABLE receipt (user_id INTEGER, username TEXT)")
        yield opened


def named(connection: sqlite3.Connection, name: str, ids: dict[int, list[str]]) -> Members:
    for user_id, names in ids.items():
        for username in names:
            connection.execute("INSERT INTO receive_names VALUES (?, ?)", (username, user_id))
            connection.execute("INSERT INTO receipt VALUES (?, ?)", (user_id, username))
    return members(name, *connection.execute(MEMBERS, {"username": name}).fetchone())


def found(connection: sqlite3.Connection, whose: Members) -> list[str]:
    condition = " AND ".join(whose.conditions)
    statement = f"SELECT username FROM receipt WHERE {condition} ORDER BY rowid"
    return [row[0] for row in connection.execute(statement, whose.parameters)]


@pytest.mark.parametrize("step", [1, DENSE_IDS], ids=["dense", "sparse"])
def test_members_are_told_from_others(connection: sqlite3.Connection, step: int) -> None:
    whose = named(connection, "AN", {user_id * step: names for user_id, names in NAMES.items()})
    assert found(connection, whose) == ["Ann", "hanna", "Anna", "dan", "HANNES"]
    assert ("json_each" in whose.conditions[0]) is (step > 1)
    assert whose.share == 5 / 9


@pytest.mark.parametrize("user_id", [-1, 0, 1, DENSE_IDS - 1, DENSE_IDS])
def test_the_first_and_the_last_id_count(connection: sqlite3.Connection, user_id: int) -> None:
    whose = named(connection, "ann", {user_id: ["ann"], user_id + 1: ["bob"]})
    assert found(connection, whose) == ["ann"]


def test_only_users_with_several_names_are_looked_at_more_closely(connection: sqlite3.Connection) -> None:
    assert len(named(connection, "bob", NAMES).conditions) == 1
    whose = named(connection, "carl", {})
    assert len(whose.conditions) == 2
    assert found(connection, whose) == ["carl"]


def test_nobody_has_the_name(connection: sqlite3.Connection) -> None:
    assert found(connection, named(connection, "zoe", NAMES)) == []
    assert members("zoe", None, None, None).share == 0


def test_owners_are_each_listed_once_and_counted_in_halves_if_many(connection: sqlite3.Connection) -> None:
    owners = named(connection, "an", {1: ["Ann", "Hanna", "Dan"], 2: ["Jan"], 3: ["bob"]}).owners
    assert orjson.loads(owners.parameters["owners"]) == owners.user_ids == [1, 2]
    assert [orjson.loads(part) for part in owners.parts] == [[1, 2]]
    assert len(owners.conditions) == 1
    everybody = list(range(1, WHOLE_USERS + 2))
    many = members("u", orjson.dumps(everybody[::-1]), b"[]", b"1000").owners
    assert many.conditions == ()
    assert len(many.parts) == 2
    assert [user_id for part in many.parts for user_id in orjson.loads(part)] == many.user_ids == everybody
    assert [orjson.loads(part) for part in members("u", None, None, None).owners.parts] == [[]]
