"""Groups from a query in MySQL or MariaDB: whatever the operator wrote, and whatever stands in others' tables."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from pushd.config.schema import Config, DirectoryConfig
from pushd.errors import StartError, StoreError, StoreLost, StoreUnavailable
from pushd.model import Group
from pushd.stores.mysql import MysqlDirectory, open_directory
from pushd.stores.mysql.directory import ROWS_AT_ONCE
from tests import mariadb
from tests.mariadb import MariadbServer

server = mariadb.mariadb_server  # the fixture
Open = Callable[..., Any]
USERS = "CREATE TABLE user (id BIGINT PRIMARY KEY, username VARCHAR(64), user_type INT)"
STAFF = "CREATE TABLE staff (id BIGINT, dept VARCHAR(64), office VARCHAR(64), KEY (dept, id))"
BY_DEPT = "SELECT CONCAT('dept:', dept) AS `group`, id AS user_id FROM staff"


@pytest.fixture
async def connect(server: MariadbServer) -> AsyncIterator[Open]:
    """Opens a directory with this query."""
    server.execute(USERS)
    server.execute(STAFF)
    server.execute("INSERT INTO staff VALUES (1, '12', 'Rome'), (2, '12', 'Oslo'), (3, '7', 'Rome'), (3, '12', 'Rome')")
    async with AsyncExitStack() as stack:

        async def connect_one(query: str, *, rows_at_once: int = ROWS_AT_ONCE, url: str = "") -> MysqlDirectory:
            config = Config(directory=DirectoryConfig(url=url or server.url, groups_query=query))
            return await stack.enter_async_context(open_directory(config, lambda *_: None, rows_at_once=rows_at_once))

        yield connect_one


@pytest.mark.parametrize(
    "query",
    [
        BY_DEPT,
        f"{BY_DEPT} -- the end",
        f"\n  {BY_DEPT}\n/* % %s ? :a */\n",
        f"{BY_DEPT} ORDER BY id DESC LIMIT 100",
        f"({BY_DEPT}) UNION ALL SELECT '%s 100%', 9",
        f"WITH s AS (SELECT * FROM staff) {BY_DEPT.replace('FROM staff', 'FROM s')}",
        "SELECT id AS USER_ID, 5 AS five, CONCAT('dept:', dept) AS `GROUP` FROM staff",
        "select concat('dept:', dept) as `group`, id as user_id, max(office) as title from staff group by 1, 2",
    ],
)
async def test_queries_of_all_kinds(connect: Open, query: str) -> None:
    directory = await connect(query, rows_at_once=2)
    await directory.check()
    assert sorted(await directory.ids_by_group(["dept:12"])) == [1, 2, 3]
    assert sorted(await directory.ids_by_group(["dept:12", "dept:7", "dept:8"])) == [1, 2, 3]
    assert await directory.ids_by_group(["dept:7"]) == [3]
    groups = {group.name: group for group in await directory.groups(100)}
    assert (groups["dept:12"].users, groups["dept:7"].users) == (3, 1)
    assert groups["dept:7"].title == ("Rome" if "title" in query else "")
    assert len(await directory.groups(1)) == 1
    if "100%" in query:
        assert await directory.ids_by_group(["%s 100%"]) == [9]


async def test_without_a_query_nobody_is_in_a_group(connect: Open) -> None:
    directory = await connect("")
    await directory.check()
    assert await directory.ids_by_group(["dept:12"]) == []
    assert await directory.groups(10) == []


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("SELECT", "SQL syntax"),
        ("SELECT 1 FROM nowhere", "doesn't exist"),
        ("SELECT nope AS `group`, id AS user_id FROM staff", "Unknown column 'nope'"),
        ("SELECT dept, id FROM staff", "found the columns dept, id, expected group, user_id[, title]"),
        ("SELECT dept AS `group`, id FROM staff", "found the columns group, id, expected"),
        ("SELECT dept AS `group`, office AS user_id FROM staff", "user_id is not of a type for whole numbers"),
        ("SELECT NOW() AS `group`, id AS user_id FROM staff", "group is not of a type for a text or whole numbers"),
        ("SELECT dept AS `group`, id AS user_id, id AS user_id FROM staff", "Duplicate column name 'user_id'"),
        ("SELECT dept AS `group`, id AS user_id FROM staff)", "SQL syntax"),
        ("SELECT %s AS `group`, id AS user_id FROM staff", "SQL syntax"),
        ("SELECT ? AS `group`, id AS user_id FROM staff", "SQL syntax"),
        ("SELECT dept AS `group`, id AS user_id FROM staff /*", "SQL syntax"),
        ("SELECT dept AS `group`, id AS user_id INTO OUTFILE '/tmp/x' FROM staff", ""),
        ("SELECT dept AS `group`, nope(id) AS user_id FROM staff", "does not exist"),
        ("WITH x AS (SELECT 1) DELETE FROM staff", "SQL syntax"),
    ],
)
async def test_what_people_must_change_is_said(server: MariadbServer, connect: Open, query: str, words: str) -> None:
    with pytest.raises(StartError) as caught:
        await (await connect(query)).check()
    text = str(caught.value)
    assert text.startswith("directory.groups_query: ")
    assert words in text
    assert "\n" not in text
    assert server.execute("SELECT COUNT(*) FROM staff") == [(4,)]


async def test_a_table_that_may_not_be_read(server: MariadbServer, connect: Open) -> None:
    server.execute("CREATE OR REPLACE USER reader@'%' IDENTIFIED BY 'secret'")
    server.execute(f"GRANT SELECT ON {server.database}.user TO reader@'%'")
    directory = await connect(BY_DEPT, url=server.url_for("reader", "secret"))
    with pytest.raises(StartError, match=r"directory\.groups_query: SELECT command denied .*that the user of"):
        await directory.check()
    server.execute(f"GRANT SELECT ON {server.database}.staff TO reader@'%'")
    await directory.check()
    assert await directory.ids_by_group(["dept:7"]) == [3]


async def test_nothing_it_calls_can_write(server: MariadbServer, connect: Open) -> None:
    server.execute(
        "CREATE FUNCTION grow(given BIGINT) RETURNS BIGINT MODIFIES SQL DATA "
        "BEGIN INSERT INTO staff VALUES (99, 'x', 'x'); RETURN given; END"
    )
    directory = await connect("SELECT dept AS `group`, grow(id) AS user_id FROM staff")
    with pytest.raises(StoreUnavailable, match="READ ONLY"):
        await directory.ids_by_group(["7"])
    assert server.execute("SELECT COUNT(*) FROM staff") == [(4,)]


async def test_odd_values_are_nobodys_problem(server: MariadbServer, connect: Open) -> None:
    server.execute("CREATE TABLE odd (g VARCHAR(200), u BIGINT UNSIGNED, t VARBINARY(999))")
    server.insert(
        "INSERT INTO odd VALUES (%s, %s, %s)",
        [
            (None, 1, b"x"), ("a", None, b""), ("a", 0, b""), ("a", 2**63 - 1, b"A\x00\xff"), ("a", 2**63, b""),
            ("a", 5, None), ("a", 5, b"B" * 900), ("x" * 200, 6, b""), ("A", 7, b""), ("a ", 8, b""), ("á", 9, b""),
        ],
    )  # fmt: skip
    directory = await connect("SELECT g AS `group`, u AS user_id, t AS title FROM odd", rows_at_once=1)
    await directory.check()
    assert await directory.ids_by_group(["a"]) == [5, 2**63 - 1]
    assert await directory.ids_by_group(["A"]) == [7]
    assert await directory.ids_by_group(["á"]) == [9]
    listed = await directory.groups(100)
    assert [group.name for group in listed] == ["A", "a", "a ", "x" * 200, "á"]
    assert [group.users for group in listed] == [1, 2, 1, 1, 1]
    assert listed[1].title == "B" * 255


@pytest.mark.parametrize("kind", ["INT", "ENUM('7', '12')", "VARBINARY(9)", "CHAR(9) CHARSET latin1", "TEXT"])
async def test_columns_of_all_types(server: MariadbServer, connect: Open, kind: str) -> None:
    server.execute(f"CREATE TABLE typed (g {kind}, u SMALLINT)")
    server.execute("INSERT INTO typed VALUES ('7', 1), ('12', 2)")
    directory = await connect("SELECT g AS `group`, u AS user_id FROM typed")
    await directory.check()
    assert await directory.ids_by_group(["7"]) == [1]
    for unknown in ("07", "7.0", "7a", "2", "x", "部"):
        assert await directory.ids_by_group([unknown]) == []
    assert [(group.name, group.users) for group in await directory.groups(9)] == [("12", 1), ("7", 1)]


async def test_a_name_that_the_character_set_lacks(server: MariadbServer, connect: Open) -> None:
    server.execute("INSERT INTO staff VALUES (8, 'é', ''), (9, '部', '')")
    query = "SELECT dept AS `group`, id AS user_id FROM staff"
    directory = await connect(query, url=f"{server.url}?charset=latin1")
    assert await directory.ids_by_group(["é"]) == [8]
    assert await directory.ids_by_group(["部", "é"]) == [8]


async def test_a_slow_query_holds_up_nobody_else(connect: Open) -> None:
    slow = await connect("SELECT dept AS `group`, id + SLEEP(3) AS user_id FROM staff")
    for _ in range(4):
        with pytest.raises(StoreLost):
            await slow.ids_by_group(["7"])
    assert await slow.users([1]) == {}
    assert await slow.all_ids() == []


async def test_a_type_that_has_changed_is_a_store_that_is_away(server: MariadbServer, connect: Open) -> None:
    directory = await connect("SELECT dept AS `group`, id AS user_id FROM staff")
    assert await directory.ids_by_group(["7"]) == [3]
    server.execute("ALTER TABLE staff MODIFY id VARCHAR(9)")
    with pytest.raises(StoreError, match="user_id is not of a type"):
        await directory.ids_by_group(["7"])


async def test_an_index_is_used(server: MariadbServer, connect: Open) -> None:
    """The conditions reach the table: of 20,000 rows a page looks at no more than it gives."""
    server.execute("INSERT INTO staff SELECT seq, CONCAT('g', seq % 20), '' FROM seq_10_to_20009")
    directory = await connect("SELECT dept AS `group`, id AS user_id FROM staff", rows_at_once=100)
    server.execute("ANALYZE TABLE staff")

    def reads() -> int:
        names = "'Handler_read_next', 'Handler_read_rnd_next', 'Handler_read_key', 'Handler_read_rnd'"
        rows = server.execute(f"SHOW GLOBAL STATUS WHERE Variable_name IN ({names})")
        return sum(int(value) for _, value in rows)

    before = reads()
    assert len(await directory.ids_by_group(["g7"])) == 1000
    assert reads() - before < 5000
    assert await directory.groups(1) == [Group("12", "", 3)]
