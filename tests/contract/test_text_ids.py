"""Users' ids that are texts, in the stores outside: what is stored, and that ids are compared byte for byte."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from pushd.config.schema import Config, DirectoryConfig, MailboxConfig, RecordsConfig, ServerConfig
from pushd.errors import StartError
from pushd.model import Arrival, Mark, Membership, Target, TargetKind, User
from pushd.records import Part, PushFilter, PushSort, ReceiptFilter, ReceiptSort
from pushd.stores import mongo, open_stores
from pushd.stores.mysql import MysqlDirectory, open_directory
from pushd.stores.redis import open_mailbox
from pushd.stores.sqlite import import_groups
from pushd.user_ids import STRINGS
from tests.mariadb import MariadbServer
from tests.mongo_server import MongoServer
from tests.samples import DELIVERED, OFFLINE, item, notice, push_record, receipt
from tests.servers import RedisServer

from .conftest import START_MS

ANN, BOB, DIGITS, LONG = "Ann", "u:bob_1.2@x.de", "9007199254740993", "-" * 64
IDS = [ANN, BOB, DIGITS, LONG]
ALL = Part(0, 100, is_descending=False)
STRING = {"user_ids": "string"}


def ignored(*_: object) -> None:
    """Nobody observes."""


# ---- Redis


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed")
async def test_keys_of_mailboxes(redis_server: RedisServer) -> None:
    """The key ends with the id as it is."""
    config = Config(mailbox=MailboxConfig(url=redis_server.url), directory=DirectoryConfig(**STRING))
    async with open_mailbox(config, ignored, lambda: START_MS) as mailbox:
        await mailbox.save([(item("m1"), IDS), (item("m2"), [BOB, ANN.lower()])])
        keys = {f"offline_msg:{user_id}" for user_id in (*IDS, ANN.lower())}
        async with redis_server.client() as client:
            assert {key.decode() for key in await client.keys("*")} == keys
            element = json.loads((await client.lrange(f"offline_msg:{BOB}", 0, -1))[0])
            assert element["message_id"] == "m2"
        found = await mailbox.read([*IDS, "nobody"])
        assert {user_id: [one.message_id for one in items] for user_id, items in found.items()} == {
            **{user_id: ["m1"] for user_id in IDS},
            BOB: ["m1", "m2"],
        }
        await mailbox.remove({BOB: ["m1"], ANN: ["m1"]})
        assert await mailbox.clear(BOB) == 1
        assert sorted(await mailbox.read([*IDS, ANN.lower()])) == sorted([DIGITS, LONG, ANN.lower()])


# ---- MongoDB


def mongo_config(server: MongoServer, kind: str) -> Config:
    return Config(records=RecordsConfig(url=server.url), directory=DirectoryConfig(user_ids=kind))


async def test_documents(mongo_server: MongoServer) -> None:
    """Documents have the text; what is asked of them is answered for that user alone."""
    config = mongo_config(mongo_server, "string")
    async with (
        mongo.open_records(config, ignored, lambda: START_MS) as records,
        mongo.open_presence(config, mongo_server.url, ignored, lambda: START_MS) as presence,
    ):
        await records.check()
        await presence.check()
        outcomes = {
            ANN: DELIVERED,
            BOB: OFFLINE,
            DIGITS: OFFLINE,
            LONG: OFFLINE,
            "7": DELIVERED,
            ANN.lower(): DELIVERED,
        }
        receipts = [receipt("m1", user_id, outcome) for user_id, outcome in outcomes.items()]  # type: ignore[arg-type]
        await records.write([push_record("m1")], receipts)
        assert await records.received_by("m1") == {ANN, "7", ANN.lower()}
        assert set(await records.not_received_by("m1")) == {BOB, DIGITS, LONG}
        assert await records.mark(BOB, ["m1"], Mark.READ, START_MS) == ["m1"]
        assert await records.unread_counts([*outcomes, "nobody"]) == dict.fromkeys({*outcomes} - {BOB}, 1)
        rows = await records.receive_records(ReceiptFilter(), ReceiptSort.USER_ID, ALL)
        assert [row.user_id for row in rows] == sorted(outcomes, key=str.encode)
        assert len(await records.receive_records(ReceiptFilter(user_id="7"), ReceiptSort.USER_ID, ALL)) == 1
        assert list(await records.newest_receive_records([DIGITS, BOB, "nobody"], 5)) == [DIGITS, BOB]
        counted = await records.user_receipts(0, START_MS * 2, 10)
        assert {row.user_id for row in counted} == outcomes.keys()
        (row,) = await records.push_records(PushFilter(), PushSort.PUSH_TIME, ALL)
        assert row.sender_id == ""
        await presence.connected([Arrival(user_id, "", "c", "ip", "ua", START_MS) for user_id in (ANN, DIGITS)])
        await presence.disconnected([(ANN, START_MS + 5)])
        statuses = await presence.statuses([ANN, DIGITS, ANN.lower()])
        assert {user_id: status.is_online for user_id, status in statuses.items()} == {ANN: False, DIGITS: True}
        assert await presence.reset(START_MS + 9) == [DIGITS]
    for kind, open_store, word in (("integer", True, "receive_records"), ("integer", False, "online_status")):
        await refused(mongo_server, kind, open_store, f"{word}: found string user ids, expected integer ones")


async def test_a_collection_of_numbers(mongo_server: MongoServer) -> None:
    """It goes on as such, and is no place for texts."""
    config = mongo_config(mongo_server, "integer")
    async with (
        mongo.open_records(config, ignored, lambda: START_MS) as records,
        mongo.open_presence(config, mongo_server.url, ignored, lambda: START_MS) as presence,
    ):
        await records.check()
        await presence.check()
        await records.write([push_record("m1")], [receipt("m1", 7, DELIVERED)])
        await presence.connected([Arrival(7, "", "c", "ip", "ua", START_MS)])
        await records.check()
        await presence.check()
    for is_records, word in ((True, "receive_records"), (False, "online_status")):
        await refused(mongo_server, "string", is_records, f"{word}: found integer user ids, expected string ones")


async def refused(server: MongoServer, kind: str, is_records: bool, said: str) -> None:
    config = mongo_config(server, kind)
    async with AsyncExitStack() as stack:
        store: Any = await stack.enter_async_context(
            mongo.open_records(config, ignored, lambda: START_MS)
            if is_records
            else mongo.open_presence(config, server.url, ignored, lambda: START_MS)
        )
        with pytest.raises(StartError) as caught:
            await store.check()
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)


# ---- MySQL

TABLE = "CREATE TABLE user (id VARCHAR(80) COLLATE {}, username VARCHAR(99), user_type INT, KEY (id))"
COLLATIONS = ("utf8mb4_general_ci", "utf8mb4_unicode_ci", "utf8mb4_bin", "latin1_swedish_ci", "ascii_general_ci")
SPELLINGS = ["a", "A", "B", "b", "ab", "aB", "Ab", "AB", DIGITS, BOB, LONG]
NO_IDS = ["", " ", "a ", "a b", "guest:1", "-" * 65, "a/b"]


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def opened(stack: AsyncExitStack, server: MariadbServer, rows_at_once: int = 250, **keys: Any) -> MysqlDirectory:
    config = Config(directory=DirectoryConfig(**({"url": server.url, "user_ids": "string"} | keys)))
    return await stack.enter_async_context(open_directory(config, ignored, rows_at_once=rows_at_once))


@pytest.mark.parametrize("rows_at_once", [1, 2, 3, 5, 250])
@pytest.mark.parametrize("collation", COLLATIONS)
async def test_ids_of_any_collation(
    mariadb_server: MariadbServer, stack: AsyncExitStack, collation: str, rows_at_once: int
) -> None:
    """Each is found, by its own bytes, however many of them the collation has for equal."""
    charset = collation.partition("_")[0]
    mariadb_server.execute(TABLE.format(collation).replace("VARCHAR(80)", f"VARCHAR(80) CHARACTER SET {charset}"))
    for user_id in (*SPELLINGS, *NO_IDS):
        mariadb_server.execute(f"INSERT INTO user VALUES ('{user_id}', 'is {user_id}', {int('b' in user_id)})")
    mariadb_server.execute("INSERT INTO user VALUES (NULL, 'null', 1)")
    directory = await opened(stack, mariadb_server, rows_at_once)
    await directory.check()
    assert await directory.all_ids() == sorted(SPELLINGS, key=str.encode)
    assert await directory.ids_by_role([1]) == sorted((one for one in SPELLINGS if "b" in one), key=str.encode)
    asked = ["a", "AB", "aB", DIGITS, "nobody", "a ", "guest:1", BOB.upper(), BOB]
    found = await directory.users(asked)
    assert found == {one: User(one, f"is {one}", int("b" in one)) for one in ("a", "AB", "aB", DIGITS, BOB)}


async def test_an_index_is_used(mariadb_server: MariadbServer, stack: AsyncExitStack) -> None:
    """To compare bytes costs no look at the whole table."""
    mariadb_server.execute(TABLE.format("utf8mb4_general_ci").replace("KEY (id)", "PRIMARY KEY (id)"))
    mariadb_server.execute("INSERT INTO user SELECT CONCAT('u', seq), 'name', 0 FROM seq_1_to_5000")
    directory = await opened(stack, mariadb_server)
    assert len(await directory.all_ids()) == 5000
    before = rows_read(mariadb_server)
    assert len(await directory.users([f"u{number}" for number in range(1, 101)])) == 100
    assert rows_read(mariadb_server) - before < 500


def rows_read(server: MariadbServer) -> int:
    return sum(int(count) for _, count in server.execute("SHOW GLOBAL STATUS LIKE 'Handler_read%'"))


@pytest.mark.parametrize("column", ["BIGINT", "BIGINT UNSIGNED", "VARBINARY(64)", "TEXT CHARACTER SET utf8mb4"])
async def test_columns_of_other_types(mariadb_server: MariadbServer, stack: AsyncExitStack, column: str) -> None:
    """Numbers are their digits, all of them: 2^53 + 1 is not 2^53."""
    key = "(64)" if "TEXT" in column else ""
    mariadb_server.execute(f"CREATE TABLE user (id {column}, username VARCHAR(64), user_type INT, KEY (id{key}))")
    ids = ["7", "9007199254740992", DIGITS, "9223372036854775807"]
    for user_id in ids:
        mariadb_server.execute(f"INSERT INTO user VALUES ('{user_id}', '', 1)")
    directory = await opened(stack, mariadb_server, 2)
    await directory.check()
    assert await directory.all_ids() == sorted(ids)
    assert list(await directory.users([DIGITS, "9223372036854775807", "07", "7.0"])) == [DIGITS, "9223372036854775807"]


@pytest.mark.parametrize(
    ("column", "kind", "said"),
    [
        ("VARCHAR(64)", "integer", "is not of an integer type; expected the column with the users' positive whole"),
        ("DATETIME", "string", "is of no type of texts"),
        ("DOUBLE", "string", "is of no type of texts"),
    ],
)
async def test_columns_that_are_no_ids(
    mariadb_server: MariadbServer, stack: AsyncExitStack, column: str, kind: str, said: str
) -> None:
    mariadb_server.execute(f"CREATE TABLE user (id {column}, username VARCHAR(64), user_type INT)")
    directory = await opened(stack, mariadb_server, user_ids=kind)
    with pytest.raises(StartError, match=said):
        await directory.check()


@pytest.mark.parametrize("rows_at_once", [1, 3, 250])
async def test_groups(mariadb_server: MariadbServer, stack: AsyncExitStack, rows_at_once: int) -> None:
    """Members, too, are who they are byte for byte, also when the query names them often."""
    mariadb_server.execute(TABLE.format("utf8mb4_general_ci"))
    mariadb_server.execute("CREATE TABLE member (dept VARCHAR(20), who VARCHAR(80) COLLATE utf8mb4_general_ci)")
    for user_id in (*SPELLINGS, *NO_IDS):
        for _ in range(3):
            mariadb_server.execute(f"INSERT INTO member VALUES ('d', '{user_id}')")
    query = "SELECT dept AS `group`, who AS user_id FROM member"
    directory = await opened(stack, mariadb_server, rows_at_once, groups_query=query)
    await directory.check()
    assert sorted(await directory.ids_by_group(["d", "none"]), key=str) == sorted(SPELLINGS, key=str.encode)
    (group,) = await directory.groups(10)
    assert (group.name, group.users) == ("d", len(SPELLINGS))


# ---- the embedded stores

ODD: list[Any] = [b"blob", b"", "", "a b", " ", "x" * 65, "guest:1", "nul\0", "CAST(x'ff6162' AS TEXT)"]


async def test_rows_of_other_programs(tmp_path: Path) -> None:
    """What is no id is nobody, in every table, and all others are as they were."""
    config = Config(server=ServerConfig(data_dir=str(tmp_path)), directory=DirectoryConfig(**STRING))
    others = [f"o{number}" for number in range(len(ODD))]
    everybody = [ANN, *others]
    async with open_stores(config, ignored) as stores:
        await stores.directory.learn([User(user_id, f"is {user_id}", 1, 0) for user_id in everybody])
        await stores.presence.connected([Arrival(user_id, "", "c", "ip", "ua", START_MS) for user_id in everybody])
        await stores.journal.append([notice(1, target=Target(TargetKind.CUSTOM, tuple(everybody)), sender_id=BOB)])
        await stores.records.write([], [receipt("m1", user_id, DELIVERED) for user_id in everybody])  # type: ignore[arg-type]
        await stores.ledger.commit() if stores.ledger else None
    import_groups(str(tmp_path), [Membership(1, "g", user_id, "") for user_id in everybody], source="", ids=STRINGS)
    columns = {"user": "id", "admin_user_online_status": "user_id", "user_group_member": "user_id", "user_number": "id"}
    with closing(sqlite3.connect(tmp_path / "pushd.db", isolation_level=None)) as connection:
        for table, column in columns.items():
            for other, value in zip(others, ODD, strict=True):
                is_sql = isinstance(value, str) and value.startswith("CAST")
                text, values = (value, ()) if is_sql else ("?", (value,))
                connection.execute(f"UPDATE {table} SET {column} = {text} WHERE {column} = ?", (*values, other))
    async with open_stores(config, ignored) as stores:
        assert await stores.directory.all_ids() == [ANN]
        assert await stores.directory.ids_by_role([1]) == [ANN]
        assert await stores.directory.ids_by_group(["g"]) == [ANN]
        assert await stores.directory.users(everybody) == {ANN: User(ANN, f"is {ANN}", 1)}
        assert await stores.presence.reset(START_MS + 1) == [ANN]
        assert await stores.records.received_by("m1") == {ANN}
        rows = await stores.records.receive_records(ReceiptFilter(), ReceiptSort.USER_ID, ALL)
        assert len(rows) == len(everybody)
        assert {row.user_id for row in rows if STRINGS.accepted(row.user_id) is not None} == {ANN}
        assert {type(row.user_id) for row in rows} == {str}
        (push,) = await stores.records.push_records(PushFilter(sender_id=BOB), PushSort.PUSH_TIME, ALL)
        assert (push.sender_id, push.target_user_ids) == (BOB, everybody)
        await stores.directory.learn([User("new", "", 1, 0)])
        assert await stores.directory.all_ids() == [ANN, "new"]
