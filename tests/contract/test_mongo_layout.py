"""What stands in MongoDB (CONTRACT section 5), what other programs may have put there, and when it cannot be used."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from time import monotonic
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
from bson import Code, DatetimeMS, Decimal128, Int64, MinKey, ObjectId, Regex, Timestamp

from pushd.api.records import push_view
from pushd.config.schema import Config, PresenceConfig, RecordsConfig, ServerConfig
from pushd.errors import StartError, StoreError, StoreLost, StoreUnavailable
from pushd.model import Arrival, Mark, Receipt, Target, TargetKind
from pushd.records import Part, PushFilter, PushSort, PushStats, ReceiptFilter, ReceiptSort, ReceiptStats
from pushd.stores import mongo
from pushd.stores.mongo.presence import MongoPresence
from pushd.stores.mongo.records import MongoRecords
from pushd.stores.mongo.records_write import WRITES_AT_ONCE
from pushd.values import MAX_MS
from tests.daemon import until
from tests.mongo_server import MongoServer
from tests.mongo_server import mongo_server as mongo_server  # a fixture
from tests.samples import DELIVERED, FETCHED, OFFLINE, PENDING, RECEIPTS, push_record, receipt

from .conftest import START_MS
from .mongo_node import PUSH_FIELDS, MongoNode, opened_records

IMPLEMENTATIONS = ("mongodb",)
PUSHES, STATUSES = "push_records", "admin_user_online_status"
ALL = Part(offset=0, limit=1000)
DAY_S = 86_400
PASSWORD = "p@ss:word"


@pytest.fixture
def database(node: MongoNode) -> Any:
    """The database of the node, as another program sees it."""
    return node.database


def utc(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)


def indexes(collection: Any) -> dict[tuple[tuple[str, int], ...], dict[str, Any]]:
    """By keys; without their names and versions."""
    return {
        tuple(index["key"].items()): {name: value for name, value in index.items() if name not in ("key", "name", "v")}
        for index in collection.list_indexes()
    }


def drop_indexes(collection: Any) -> None:
    """One by one and by their keys: by name, or all at once, mongo-java-server drops other collections' as well."""
    for index in list(collection.list_indexes()):
        if index["name"] != "_id_":
            collection.database.command("dropIndexes", collection.name, index=index["key"])


# ---- layout


async def test_a_push_record_as_other_programs_see_it(node: MongoNode, database: Any) -> None:
    fields: dict[str, Any] = {
        "content": "消息",
        "target": Target(TargetKind.CUSTOM, user_ids=(1, 2)),
        "data": {"order": 5},
        "need_confirm": True,
        "sender_id": 9,
        "sender_name": "ops",
        "expires_ms": 90_000,
        "title": "An order",
        "url": "/orders/5",
        "tags": ("shop",),
    }
    await node.stores.records.write([push_record("m1", "delivered", 2, 1, **fields)], [])
    await node.stores.records.write([push_record("m2")], [])
    found = database[PUSHES].find_one({"message_id": "m1"}, {"_id": 0})
    assert found == {
        "message_id": "m1",
        "content": "消息",
        "message_type": "system_notice",
        "target": "custom",
        "target_user_ids": [1, 2],
        "recipients_count": "2_users",
        "status": "delivered",
        "success": True,
        "push_time": utc(1000),
        "expires_at": utc(90_000),
        "sender_id": 9,
        "sender_name": "ops",
        "priority": 1,
        "need_confirm": True,
        "extra_data": {"order": 5},
        "title": "An order",
        "url": "/orders/5",
        "tags": ["shop"],
        "total_count": 2,
        "online_count": 1,
        "delivered_count": 0,
        "failed_count": 0,
        "created_at": utc(1000),
        "updated_at": utc(START_MS),
    }
    optional = {"target_user_ids", "extra_data", "expires_at", "target_roles", "target_groups", "error"} | {
        "title",
        "url",
        "tags",
    }
    assert set(found) - set(database[PUSHES].find_one({"message_id": "m2"}, {"_id": 0})) <= optional


async def test_a_receive_record_as_other_programs_see_it(node: MongoNode, database: Any) -> None:
    await node.stores.records.write([], [receipt("m1", 7, DELIVERED, browser="Firefox")])
    expected = {
        "message_id": "m1",
        "user_id": 7,
        "username": "user7",
        "user_role": 1,
        "is_online": True,
        "is_received": True,
        "received_at": utc(1200),
        "is_read": False,
        "is_confirmed": False,
        "device_type": "",
        "platform": "",
        "browser": "Firefox",
        "client_ip": "10.0.0.1",
        "user_agent": "Firefox",
        "connection_id": "c1",
        "push_channel": "websocket",
        "delivery_status": "delivered",
        "retry_count": 0,
        "created_at": utc(1000),
        "updated_at": utc(1200),
    }
    assert database[RECEIPTS].find_one({}, {"_id": 0}) == expected
    await node.stores.records.mark(7, ["m1"], Mark.CONFIRMED, 2000)
    marked = {"is_read": True, "read_at": utc(2000), "is_confirmed": True, "confirmed_at": utc(2000)}
    assert database[RECEIPTS].find_one({}, {"_id": 0}) == expected | marked | {"updated_at": utc(2000)}


async def test_durations_are_whole_seconds(node: MongoNode, database: Any) -> None:
    await node.stores.presence.connected([Arrival(1, "ada", "c1", "10.0.0.1", "Firefox", 1000)])
    await node.stores.presence.disconnected([(1, 91_500)])
    found = database[STATUSES].find_one({}, {"_id": 0})
    assert (found["online_duration"], found["total_online_time"]) == (90, 90)
    assert (found["online_duration_ms"], found["total_online_ms"]) == (90_500, 90_500)
    assert (found["online_time"], found["offline_time"]) == (utc(1000), utc(91_500))


async def test_a_call_writes_each_recipient_once(node: MongoNode, database: Any) -> None:
    """Created, delivered and acknowledged between two flushes is one document, as three calls would have left it."""
    steps = [receipt("m1", 1, OFFLINE, connection_id=""), receipt("m1", 1, PENDING), receipt("m1", 1, DELIVERED)]
    await node.stores.records.write([], steps)
    for step in steps:
        await node.stores.records.write([], [replaced(step, "m2")])
    first, second = (database[RECEIPTS].find_one({"message_id": name}, {"_id": 0}) for name in ("m1", "m2"))
    assert first == second | {"message_id": "m1"}


def replaced(receipt: Receipt, message_id: str) -> Receipt:
    fields = {name: getattr(receipt, name) for name in receipt.__struct_fields__}
    return Receipt(**(fields | {"message_id": message_id}))


async def test_writers_at_the_same_time_agree(node: MongoNode, database: Any) -> None:
    """Two nodes insert the same records at once."""
    async with mongo.open_records(config_of(node), ignored, node.clock) as other:
        users = range(1, 301)
        steps = [receipt("m1", user, PENDING) for user in users], [receipt("m1", user, DELIVERED) for user in users]
        await asyncio.gather(node.stores.records.write([push_record("m1")], steps[0]), other.write([], steps[1]))
        await asyncio.gather(node.stores.records.write([], steps[1]), other.write([push_record("m1")], steps[0]))
    assert database[RECEIPTS].count_documents({}) == 300
    assert database[RECEIPTS].count_documents({"delivery_status": "delivered", "is_received": True}) == 300


@pytest.mark.parametrize(("is_late", "calls"), [(False, 4), (True, 3)])
async def test_another_connection_takes_few_writes(node: MongoNode, database: Any, is_late: bool, calls: int) -> None:
    seen: list[str] = []
    async with mongo.open_records(config_of(node), lambda *call: seen.append(call[1]), node.clock) as records:
        nobody = {"connection_id": "", "client_ip": "", "user_agent": ""}
        await records.write([], [receipt("m1", user, OFFLINE, **nobody) for user in range(100)])
        await records.write(
            [push_record("m1")], [receipt("m1", user, DELIVERED, is_late=is_late) for user in range(100)]
        )
        assert seen.count("write_receipts") == calls
    where = {"connection_id": "c1", "is_received": True, "push_channel": "offline", "delivery_status": "delivered"}
    assert database[RECEIPTS].count_documents(where) == 100


async def test_records_are_inserted_until_there_are_some(node: MongoNode) -> None:
    seen: list[str] = []
    async with mongo.open_records(config_of(node), lambda *call: seen.append(call[1]), node.clock) as records:

        async def calls_for(message_id: str) -> int:
            seen.clear()
            await records.write([], [receipt(message_id, user, DELIVERED) for user in range(3 * WRITES_AT_ONCE)])
            return seen.count("write_receipts")

        assert await calls_for("m1") == 3
        assert await calls_for("m1") == 1 + 3  # the first chunk is inserted in vain
        assert await calls_for("m1") == 3
        assert await calls_for("m2") == 3
        assert await calls_for("m3") == 3
        for message_id in ("m1", "m2", "m3"):
            status = await records.receive_status(message_id)
            assert status
            assert status.received_users == status.total_users == 3 * WRITES_AT_ONCE


async def test_any_time_may_be_asked_for(node: MongoNode) -> None:
    assert await node.stores.records.user_receipts(-(1 << 62), (1 << 63) - 1, 10) == []


async def test_an_old_server(node: MongoNode) -> None:
    async with opened_records(node, oldest_server=(99, 0)) as (records, _):
        with pytest.raises(StartError, match=r"^records\.url: MongoDB .* is too old: 99\.0 is needed"):
            await records.check()


async def test_closing_does_not_wait_for_a_frozen_server(mongo_server: MongoServer) -> None:
    config = Config(records=RecordsConfig(url=mongo_server.url))
    async with mongo.open_records(config, ignored, lambda: 0) as records:
        await records.check()
        await records.write([], [receipt("m1", 1, PENDING)])
        mongo_server.freeze()
        began = monotonic()
    assert monotonic() - began < 5


async def test_late_receipts_do_not_bring_deleted_records_back(node: MongoNode, database: Any) -> None:
    records = node.stores.records
    await records.write([push_record("m1"), push_record("m2")], [receipt("m1", 1, OFFLINE)])
    await records.delete("m1")
    await records.write([], [receipt(name, 1, DELIVERED, is_late=True) for name in ("m1", "m2")])
    assert [found["message_id"] for found in database[RECEIPTS].find()] == ["m2"]


@pytest.mark.parametrize(
    "data",
    [{"a.b": 1}, {"$set": {"x": 1}}, {"": 0}, {"a\0b": 1}, 1 << 70, [[{"n": -(1 << 64)}]], "deep"],
)
async def test_data_that_bson_has_not_comes_back(node: MongoNode, data: Any) -> None:
    if data == "deep":
        for _ in range(200):
            data = [data]
    await node.stores.records.write([push_record("m1", data=data)], [])
    row = await node.stores.records.push_record("m1")
    assert row is not None
    assert row.extra_data == data


async def test_what_is_refused_keeps_nothing_else_from_being_written(node: MongoNode, database: Any) -> None:
    database[STATUSES].insert_one({"user_id": 1, "total_online_count": "many"})
    arrivals = [Arrival(user_id, "", "c1", "", "", START_MS) for user_id in (1, 2)]
    with pytest.raises(StoreError, match="write refused") as caught:
        await node.stores.presence.connected(arrivals)
    assert not isinstance(caught.value, StoreUnavailable)
    assert (await node.stores.presence.statuses([2]))[2].is_online


async def test_what_cannot_be_encoded_keeps_nothing_else_from_being_written(node: MongoNode, database: Any) -> None:
    users = [*range(1, 101), 1 << 64, *range(101, 201)]
    await node.stores.records.write([], [receipt("m1", 150, OFFLINE, username="")])
    with pytest.raises(StoreError) as caught:
        await node.stores.records.write([], [receipt("m1", user, DELIVERED) for user in users])
    assert not isinstance(caught.value, StoreUnavailable)
    assert await node.stores.records.received_by("m1") == set(range(1, 201))


async def test_receive_records_say_what_inboxes_ask_of_their_notice(node: MongoNode, database: Any) -> None:
    said: dict[str, Any] = {"message_type": "order_paid", "tags": ("b", "a"), "expires_ms": 90_000}
    stored = {"message_type": "order_paid", "tags": ["b", "a"], "expires_at": utc(90_000)}
    write = node.stores.records.write
    await write([], [receipt("m1", 7, DELIVERED, **said), receipt("m1", 8, PENDING, message_type="t")])
    await write([], [receipt("m1", 9, PENDING), receipt("m1", 9, DELIVERED, connection_id="c0", **said)])
    await write([], [receipt("m1", 7, FETCHED)])  # from a mailbox, where that is not known
    found = {row["user_id"]: row for row in database[RECEIPTS].find()}
    assert found[7].items() >= stored.items()
    assert found[9].items() >= stored.items()
    assert found[8]["message_type"] == "t"
    assert not {"tags", "expires_at"} & found[8].keys()


# ---- indexes


async def test_indexes(database: Any) -> None:
    ttl = {"expireAfterSeconds": 30 * DAY_S}
    receive, status, push = indexes(database[RECEIPTS]), indexes(database[STATUSES]), indexes(database[PUSHES])
    assert receive[("user_id", 1), ("created_at", -1)] == {}
    assert receive[("user_id", 1), ("is_archived", 1), ("created_at", -1)] == {}
    assert receive[("message_id", 1), ("user_id", 1)] == {"unique": True}
    assert receive[("is_online", 1), ("delivery_status", 1)] == {}
    assert receive[(("created_at", 1),)] == push[(("created_at", 1),)] == ttl
    assert status[(("user_id", 1),)] == push[(("message_id", 1),)] == {"unique": True}
    assert status[("is_online", 1), ("last_seen", -1)] == push[(("push_time", -1),)] == {}
    assert receive[(("tags", 1),)] == push[(("tags", 1),)] == {"sparse": True}


async def test_what_is_there_stays(node: MongoNode, database: Any) -> None:
    """Under another name, in another direction, with other options that do no harm."""
    before = indexes(database[RECEIPTS])
    drop_indexes(database[RECEIPTS])
    drop_indexes(database[PUSHES])
    database[RECEIPTS].create_index([("user_id", 1), ("created_at", -1)], name="by_user", background=True)
    database[RECEIPTS].create_index([("message_id", 1), ("user_id", 1)], name="once", unique=True)
    database[RECEIPTS].create_index([("user_id", 1), ("message_id", -1)], name="mine")
    database[PUSHES].create_index([("push_time", 1)], name="by_time")
    await node.restart()
    names = set(database[RECEIPTS].index_information())
    assert {"by_user", "once", "mine"} <= names
    assert len(names) == len(before) + 1
    assert [name for name in database[PUSHES].index_information() if name in ("by_time", "push_time_-1")] == ["by_time"]
    await node.restart()
    assert set(database[RECEIPTS].index_information()) == names


async def test_retention_follows_the_configuration(node: MongoNode, database: Any) -> None:
    node.needs("collMod")
    config = config_of(node, retention_days=7)
    async with mongo.open_records(config, ignored, node.clock) as records:
        await records.check()
    for collection in (database[RECEIPTS], database[PUSHES]):
        assert indexes(collection)[(("created_at", 1),)] == {"expireAfterSeconds": 7 * DAY_S}


@pytest.mark.parametrize(
    ("collection", "keys", "options", "text"),
    [
        (RECEIPTS, [("message_id", 1), ("user_id", 1)], {"name": "pair"}, 'index "pair" .* must be unique: drop it'),
        (PUSHES, [("message_id", 1)], {}, 'index "message_id_1" of collection push_records must be unique'),
        (STATUSES, [("user_id", 1)], {}, "admin_user_online_status must be unique"),
        (RECEIPTS, [("message_id", 1)], {"unique": True}, 'index "message_id_1" .* is unique, which it must not be'),
        (RECEIPTS, [("user_id", 1), ("created_at", -1)], {"unique": True}, "is unique, which it must not be"),
        (PUSHES, [("x", 1)], {"name": "push_time_-1"}, r"push_records: index \{push_time: -1\} cannot be made"),
    ],
)
async def test_indexes_in_the_way(
    node: MongoNode, database: Any, collection: str, keys: Any, options: Any, text: str
) -> None:
    if "cannot be made" in text:
        node.needs("refusal of an index whose name is taken")
    await node.stop()
    drop_indexes(database[collection])
    database[collection].create_index(keys, **options)
    with pytest.raises(StartError, match=text) as caught:
        await node.start()
    assert "\n" not in str(caught.value)
    drop_indexes(database[collection])


@pytest.mark.parametrize("collection", [RECEIPTS, PUSHES, STATUSES])
async def test_duplicates_in_the_way(node: MongoNode, database: Any, collection: str) -> None:
    await node.stop()
    drop_indexes(database[collection])
    database[collection].insert_many([{"message_id": "m1", "user_id": 1} for _ in range(2)])
    with pytest.raises(StartError, match=f"collection {collection} has several documents with the same"):
        await node.start()
    database[collection].delete_many({})


# ---- documents of other programs

FOREIGN_RECEIPTS = [
    {"_id": "nothing"},
    {"_id": "text", "message_id": "old1", "user_id": 5, "username": "eve", "created_at": "2023-11-01 08:00:00",
     "received_at": "2023-11-01T00:00:05Z", "is_online": True, "read_at": None, "delivery_status": "sent"},
    {"_id": "odd", "message_id": 7, "user_id": "x", "username": None, "is_read": "yes", "retry_count": "two",
     "created_at": utc(START_MS), "user_role": 1.0, "error_message": 5, "received_at": datetime(1, 1, 1)},
]  # fmt: skip
FOREIGN_PUSHES = [
    {"_id": "nothing"},
    {"_id": "text", "message_id": "old1", "content": "Hi", "push_time": "2023-11-01 08:00:00", "priority": "high",
     "extra_data": {"at": utc(1000), "raw": b"x"}, "target_user_ids": None, "recipients_count": 12},
    {"_id": "odd", "message_id": "old2", "content": 5, "push_time": 1_700_000_000, "target_user_ids": [1, "2"],
     "success": True, "total_count": None, "error": ""},
]  # fmt: skip


async def test_foreign_receive_records_are_listed(node: MongoNode, database: Any) -> None:
    database[RECEIPTS].insert_many([dict(document) for document in FOREIGN_RECEIPTS])
    records = await foreign(node)
    for sort in ReceiptSort:
        for is_descending in (True, False):
            part = Part(0, 10, is_descending=is_descending)
            assert len(await records.receive_records(ReceiptFilter(), sort, part)) == 3
    (row,) = await records.receive_records(ReceiptFilter(user_id=5), ReceiptSort.CREATED_AT, ALL)
    midnight_ms = 1_698_796_800_000
    assert (row.created_ms, row.received_ms, row.read_ms) == (midnight_ms, midnight_ms + 5000, 0)
    assert (row.is_online, row.delivery_status, row.client_ip) == (True, "sent", "")
    assert (await records.newest_receive_records([5], 5))[5] == [row]
    assert (await records.user_summary(5)).last_message_ms == midnight_ms
    assert await records.receive_stats(ReceiptFilter()) == ReceiptStats(3, 1, 0, 0, 0)
    assert await records.not_received_by("old1") == [5]
    assert len(await records.user_receipts(0, START_MS + 1, 10)) == 2


async def test_foreign_push_records_are_listed(node: MongoNode, database: Any) -> None:
    database[PUSHES].insert_many([dict(document) for document in FOREIGN_PUSHES])
    records = await foreign(node)
    for sort in PushSort:
        assert len(await records.push_records(PushFilter(), sort, ALL)) == 3
    row = await records.push_record("old1")
    assert row is not None
    assert (row.push_ms, row.priority, row.recipients_count) == (1_698_796_800_000, 1, "12")
    assert row.extra_data == {"at": "1970-01-01T00:00:01.000+00:00", "raw": "eA=="}
    odd = await records.push_record("old2")
    assert odd is not None
    assert (odd.content, odd.push_ms, odd.target_user_ids, odd.total_count) == ("5", START_MS, [1, 2], 0)
    assert await records.push_stats(PushFilter()) == PushStats(total_records=3, success_records=1, failed_records=2)


async def test_dates_that_are_texts_are_found_by_time(node: MongoNode, database: Any) -> None:
    database[PUSHES].insert_many(
        [
            {"message_id": "text", "push_time": "2023-11-01 08:00:00"},
            {"message_id": "iso", "push_time": "2023-10-31T23:00:00Z"},
            {"message_id": "date", "push_time": utc(1_698_796_800_000)},
        ]
    )
    records = await foreign(node)

    async def found(since_ms: int, before_ms: int) -> set[str]:
        rows = await records.push_records(PushFilter(since_ms=since_ms, before_ms=before_ms), PushSort.PUSH_TIME, ALL)
        return {row.message_id for row in rows}

    at, hour = 1_698_796_800_000, 3_600_000
    assert await found(at, at + 1000) == {"text", "date"}
    assert await found(at + 1000, at + hour) == set()
    assert await found(at - 48 * hour, at + hour) == {"text", "date", "iso"}


async def test_foreign_records_are_marked_and_merged(node: MongoNode, database: Any) -> None:
    nulls = {"received_at": None, "read_at": None, "is_received": False, "is_read": False}
    database[RECEIPTS].insert_many([{"message_id": name, "user_id": 1, **nulls} for name in ("old1", "old2")])
    assert await node.stores.records.mark(1, ["old1"], Mark.READ, 2000) == ["old1"]
    await node.stores.records.write([], [receipt("old2", 1, DELIVERED)])
    first, second = (
        database[RECEIPTS].find_one({"message_id": "old1"}),
        database[RECEIPTS].find_one({"message_id": "old2"}),
    )
    assert (first["is_read"], first["read_at"], first["received_at"]) == (True, utc(2000), utc(2000))
    assert (second["is_received"], second["received_at"], second["username"]) == (True, utc(1200), "user1")


async def test_foreign_online_status(node: MongoNode, database: Any) -> None:
    database[STATUSES].insert_many(
        [
            {"user_id": 1, "is_online": True, "online_time": "2023-11-01 08:00:00", "total_online_time": 60},
            {"user_id": 2, "is_online": True, "online_time": None},
            {"user_id": 3, "last_seen": "never"},
        ]
    )
    presence = node.stores.presence
    assert sorted(await presence.reset(START_MS)) == [1, 2]
    found = await presence.statuses([1, 2, 3])
    assert [(status.is_online, status.last_seen_ms) for status in found.values()] == [
        (False, START_MS),
        (False, START_MS),
        (False, 0),
    ]
    await presence.connected([Arrival(3, "carl", "c1", "10.0.0.1", "Firefox", START_MS)])
    assert (await presence.statuses([3]))[3].total_online_count == 1


# ---- when it cannot be used


@pytest.mark.parametrize(
    "value", [[7, 8], {"$gt": 1}, float("nan"), Int64(2**63 - 1), "x", 7.0, DatetimeMS(2**62)], ids=repr
)
async def test_whatever_stands_in_a_document(node: MongoNode, database: Any, value: Any) -> None:
    """It is read as well as it can be, and is nobody else's problem."""
    records, presence = node.stores.records, node.stores.presence
    await records.write([push_record("m1")], [receipt("m1", 7, DELIVERED)])
    await presence.connected([Arrival(7, "ada", "c1", "10.0.0.1", "Firefox", 1000)])
    for collection, key in ((PUSHES, "message_id"), (RECEIPTS, "user_id"), (STATUSES, "user_id")):
        ours = database[collection].find_one({}, {"_id": 0})
        for name in ours:
            unique = {"message_id": f"odd {name}", "user_id": 100 + list(ours).index(name)}
            odd = ours | {field: unique[field] for field in ("message_id", "user_id") if field in ours} | {name: value}
            if name != key or collection == RECEIPTS:
                database[collection].insert_one(odd)
    for sort in PushSort:
        rows = await records.push_records(PushFilter(), sort, ALL)
        assert "m1" in [row.message_id for row in rows]
    for order in ReceiptSort:
        receipts = await records.receive_records(ReceiptFilter(), order, ALL)
        assert ("m1", 7) in [(row.message_id, row.user_id) for row in receipts]
    await records.push_stats(PushFilter())
    await records.receive_stats(ReceiptFilter())
    await records.user_receipts(0, 2**53, 1000)
    assert 7 in await records.newest_receive_records([7, 8], 1000)
    assert await records.received_by("m1")
    await records.user_summary(7)
    await records.unread_counts([7, 8])
    assert await records.mark(7, ["m1"], Mark.CONFIRMED, 2000) == ["m1"]
    await records.expire(0, 2**52, 1000)
    statuses = await presence.statuses([7, 8, *range(100, 120)])
    assert statuses[7].username == "ada"
    await presence.disconnected([(7, 5000), (8, 5000), *((number, 5000) for number in range(100, 120))])
    assert not (await presence.statuses([7]))[7].is_online
    await presence.reset(6000)
    assert database[STATUSES].count_documents({"is_online": True}) == 0


async def test_wrong_credentials_are_one_line_without_the_password(
    node: MongoNode, loop_errors: list[dict[str, Any]]
) -> None:
    node.needs("users")
    url = node.server.url.replace("mongodb://", "mongodb://pushd:p%40ss%3Aword@")
    for config, key in (
        (Config(records=RecordsConfig(url=url)), "records.url"),
        (Config(presence=PresenceConfig(url=url)), "presence.url"),
    ):
        async with AsyncExitStack() as opened:
            store: MongoRecords | MongoPresence
            if key == "records.url":
                store = await opened.enter_async_context(mongo.open_records(config, ignored, node.clock))
            else:
                store = await opened.enter_async_context(mongo.open_presence(config, url, ignored, node.clock))
            with pytest.raises(StartError, match=f"^{key}: MongoDB does not let us in: .*Authentication") as caught:
                await store.check()
            assert_secret(str(caught.value))
            if isinstance(store, MongoRecords):
                with pytest.raises(StoreUnavailable) as refused:
                    await store.unread_counts([1])
                assert not isinstance(refused.value, StoreLost)
                assert_secret(str(refused.value))


def assert_secret(text: str) -> None:
    assert "\n" not in text
    assert PASSWORD not in text
    assert "p%40ss" not in text


@pytest.mark.parametrize(
    "url",
    [
        "mongodb://pushd:p@ss:word@127.0.0.1:1/",
        "mongodb://pushd:p%40ss%3Aword@127.0.0.1:none/",
        "mongodb://pushd:p%40ss%3Aword@127.0.0.1/?w=many&timeoutMS=never",
    ],
)
async def test_urls_that_cannot_be_used(url: str) -> None:
    with pytest.raises(StartError, match=r"^records\.url: ") as caught:
        async with mongo.open_records(Config(records=RecordsConfig(url=url)), ignored, lambda: 0):
            pass
    assert_secret(str(caught.value))


async def test_a_server_that_is_not_there_is_lost_within_two_seconds() -> None:
    config = Config(records=RecordsConfig(url="mongodb://127.0.0.1:1/"))
    async with mongo.open_records(config, ignored, lambda: 0) as records:
        began = monotonic()
        with pytest.raises(StoreLost):
            await records.check()
        with pytest.raises(StoreLost):
            await records.unread_counts([1])
    assert monotonic() - began < 5


async def test_a_frozen_server(mongo_server: MongoServer) -> None:
    """Calls fail within their time, then at once; it goes on when it is back, and nothing is written twice."""
    seen: list[tuple[str, str, bool]] = []
    config = Config(records=RecordsConfig(url=mongo_server.url))
    async with mongo.open_records(config, lambda *call: seen.append((call[0], call[1], call[3])), lambda: 0) as records:
        await records.check()
        await records.write([], [receipt("m1", 1, PENDING)])
        mongo_server.freeze()
        began = monotonic()
        for _ in range(3):
            with pytest.raises(StoreLost):
                await records.unread_counts([1])
        assert monotonic() - began < 6
        began = monotonic()
        with pytest.raises(StoreLost, match="not tried"):
            await records.write([], [receipt("m1", 1, DELIVERED)])
        assert monotonic() - began < 0.1
        with pytest.raises(StoreLost):
            await records.check()
        mongo_server.thaw()
        await until(lambda: recovered(records))
        await records.write([], [receipt("m1", 1, DELIVERED)])
        assert await records.received_by("m1") == {1}
    assert {store for store, _, _ in seen} == {"records"}
    assert ("records", "write_receipts", True) in seen


async def recovered(records: MongoRecords) -> bool:
    try:
        await records.check()
    except StoreUnavailable:
        return False
    return True


async def test_a_killed_server_keeps_what_was_written(mongo_server: MongoServer) -> None:
    config = Config(records=RecordsConfig(url=mongo_server.url))
    async with mongo.open_records(config, ignored, lambda: 0) as records:
        await records.check()
        await records.write([push_record("m1")], [receipt("m1", user, DELIVERED) for user in range(1, 1001)])
        await mongo_server.stop()
        with pytest.raises(StoreUnavailable):
            await records.write([], [receipt("m1", 5000, DELIVERED)])
        await mongo_server.start()
        await until(lambda: recovered(records))
        assert await records.received_by("m1") == set(range(1, 1001))
        await records.write([], [receipt("m1", user, DELIVERED) for user in range(1, 1002)])
        assert await records.received_by("m1") == set(range(1, 1002))


# ---- helpers


def ignored(store: str, operation: str, seconds: float, is_ok: bool) -> None:
    """These tests do not look at metrics."""


def config_of(node: MongoNode, **records: Any) -> Config:
    return Config(records=RecordsConfig(url=node.server.url, database=node.database_name, **records))


async def foreign(node: MongoNode) -> MongoRecords:
    """The records of a node whose people live in Shanghai."""
    config = Config(
        server=ServerConfig(timezone="Asia/Shanghai"),
        records=RecordsConfig(url=node.server.url, database=node.database_name),
    )
    return await node._open.enter_async_context(mongo.open_records(config, ignored, node.clock))


ODD_VALUES: list[Any] = [
    None, "", "7", -1, 2**62, 1.5, float("nan"), float("-inf"), 1e300, True, [], [1, "2", None], {"a": {"b": 1}},
    b"\xff", Decimal128("1.5"), Decimal128("NaN"), ObjectId(), Regex("a"), MinKey(), Code("x"), Timestamp(1, 1),
    DatetimeMS(2**62), DatetimeMS(-(2**62)), "[" * 2000, "订单",
]  # fmt: skip


@pytest.mark.parametrize(
    "field", [*PUSH_FIELDS[1:], "extra_json", "target_roles", "target_groups", "expires_at", "online_count"]
)
async def test_a_push_record_of_any_kind_can_be_shown(node: MongoNode, database: Any, field: str) -> None:
    for number, value in enumerate(ODD_VALUES):
        database[PUSHES].insert_one({"message_id": f"odd{number}", field: value})
        row = await node.stores.records.push_record(f"odd{number}")
        assert row is not None
        assert msgspec.json.encode(push_view(row, ZoneInfo("Asia/Shanghai"))), value
        assert all(abs(at) <= MAX_MS for at in (row.push_ms, row.expires_ms, row.created_ms, row.updated_ms))
