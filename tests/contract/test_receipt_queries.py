"""The contract of the receive-record queries of ports.RecordStore: what a count by hand over the table says."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from pushd.model import Channel, DeliveryStatus, Mark, Outcome
from pushd.ports import Stores
from pushd.records import Part, ReceiptFilter, ReceiptRow, ReceiptSort, ReceiptStats, UserReceipts, UserSummary
from tests.samples import DELIVERED, EXPIRED, OFFLINE, OUTCOMES, PENDING, RECEIPTS, at, receipt

from .conftest import START_MS, Node

IMPLEMENTATIONS = ("sqlite", "cold", "mongodb")
ALL = Part(offset=0, limit=10_000)
NEWEST = ReceiptSort.CREATED_AT
NAMES = ("Ada", "ada_b", "100%", "back\\slash", "王小明", "Öl", "")
USERS = range(1, 15)
NOTICES = range(12)

relaxed = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def name_of(user_id: int) -> str:
    return NAMES[user_id % len(NAMES)]


def accepted_ms(notice: int) -> int:
    """Notices 4 and 5 come at the same moment."""
    return 1000 + 10 * (notice - (notice == 5))


def tags_of(notice: int) -> tuple[str, ...]:
    """Two, one or none of three."""
    return (("shop", "café"), ("café",), (), ("it's %",))[notice % 4]


def outcomes_of(notice: int, user_id: int) -> list[Outcome]:
    """Some of everything, received at different times; some went out live before they came to the mailbox."""
    at_ms = accepted_ms(notice)
    last = at(at_ms, OUTCOMES[(notice + user_id) % len(OUTCOMES)])
    if last.received_ms:
        last = replace(last, received_ms=at_ms + 7 * user_id)
    return [at(at_ms, PENDING), last] if notice * user_id % 3 == 0 else [last]


async def fill(node: Node) -> list[dict[str, Any]]:
    """Records of every kind, written once; the table's rows."""
    if not node.rows(RECEIPTS):
        for notice in NOTICES:
            await node.accept(f"m{notice}", accepted_ms=accepted_ms(notice), tags=tags_of(notice))
        receipts = [
            receipt(f"m{notice}", user_id, outcome, username=name_of(user_id), tags=tags_of(notice))
            for notice in NOTICES
            for user_id in USERS
            for outcome in outcomes_of(notice, user_id)
        ]
        await node.stores.records.write([node.record(f"m{notice}") for notice in NOTICES], receipts)
        for user_id in USERS:
            await node.stores.records.mark(user_id, [f"m{user_id % 12}", "m3"], Mark.READ, 5000 + user_id % 3)
            await node.stores.records.mark(user_id, [f"m{user_id % 7}"], Mark.CONFIRMED, 6000 + user_id % 3)
    return node.rows(RECEIPTS)


def matches(row: dict[str, Any], where: ReceiptFilter) -> bool:
    equal = {name: getattr(where, name) for name in where.__struct_fields__}
    name, since_ms, before_ms, tag = (equal.pop(field) for field in ("username", "since_ms", "before_ms", "tag"))
    return (
        all(value is None or row[field] == value for field, value in equal.items())
        and (name is None or name.lower() in row["username"].lower())
        and (tag is None or tag in tags_of(int(row["message_id"][1:])))
        and (since_ms is None or row["created_at"] >= since_ms)
        and (before_ms is None or row["created_at"] < before_ms)
    )


def counted(rows: list[dict[str, Any]]) -> ReceiptStats:
    flags = ("is_online", "is_received", "is_read", "is_confirmed")
    return ReceiptStats(len(rows), *(sum(row[flag] for row in rows) for flag in flags))


def key_of(row: ReceiptRow, sort: ReceiptSort) -> Any:
    return getattr(row, sort.value.removesuffix("_at") + "_ms" if sort.value.endswith("_at") else sort.value)


def identity(row: ReceiptRow) -> tuple[str, int]:
    return row.message_id, row.user_id


filters = st.builds(
    ReceiptFilter,
    message_id=st.none() | st.sampled_from(["m3", "m5", "unknown"]),
    user_id=st.none() | st.none() | st.sampled_from([1, 5, 99]),
    username=st.none() | st.none() | st.sampled_from(["A", "ada", "%", "_", "\\", "小", "a", "", "x", "100%", "A%"]),
    is_online=st.none() | st.booleans(),
    is_received=st.none() | st.booleans(),
    is_read=st.none() | st.booleans(),
    is_confirmed=st.none() | st.booleans(),
    delivery_status=st.none() | st.sampled_from(DeliveryStatus),
    push_channel=st.none() | st.sampled_from(Channel),
    since_ms=st.none() | st.integers(1000, 1120),
    before_ms=st.none() | st.integers(1000, 1120),
    tag=st.none() | st.none() | st.sampled_from(["shop", "café", "it's %", "Shop", "%", ".*", ""]),
)


@given(where=filters)
@relaxed
async def test_stats_are_what_a_count_by_hand_says(node: Node, where: ReceiptFilter) -> None:
    rows = [row for row in await fill(node) if matches(row, where)]
    assert await node.stores.records.receive_stats(where) == counted(rows)


@given(
    where=filters,
    sort=st.sampled_from(ReceiptSort),
    is_descending=st.booleans(),
    page=st.sampled_from([1, 3, 7, 50, 500]),
)
@relaxed
async def test_pages_hold_every_match_once_and_in_order(
    node: Node, where: ReceiptFilter, sort: ReceiptSort, is_descending: bool, page: int
) -> None:
    expected = sorted((row["message_id"], row["user_id"]) for row in await fill(node) if matches(row, where))
    listed: list[ReceiptRow] = []
    for offset in range(0, len(expected) + page, page):
        part = Part(offset=offset, limit=page, is_descending=is_descending)
        found = await node.stores.records.receive_records(where, sort, part)
        assert len(found) == max(0, min(page, len(expected) - offset))
        listed += found
    assert sorted(map(identity, listed)) == expected
    keys = [key_of(row, sort) for row in listed]
    assert keys == sorted(keys, reverse=is_descending)


@pytest.mark.parametrize("sort", list(ReceiptSort))
@pytest.mark.parametrize("is_descending", [True, False])
async def test_every_sort_lists_everything(node: Node, sort: ReceiptSort, is_descending: bool) -> None:
    rows = await fill(node)
    part = Part(0, len(rows) + 1, is_descending=is_descending)
    listed = await node.stores.records.receive_records(ReceiptFilter(), sort, part)
    keys = [key_of(row, sort) for row in listed]
    assert keys == sorted(keys, reverse=is_descending)
    assert len(set(map(identity, listed))) == len(rows) == len(listed)


async def test_stats_follow_every_change(node: Node) -> None:
    records = node.stores.records
    await fill(node)
    await records.write([], [receipt("m1", user_id, DELIVERED, username="later") for user_id in range(1, 30)])
    await records.mark(3, ["m1", "m2"], Mark.CONFIRMED, 9000)
    await records.delete("m4")
    await records.purge(1011, 20)
    rows = node.rows(RECEIPTS)
    assert rows
    for where in (ReceiptFilter(), ReceiptFilter(is_read=True), ReceiptFilter(username="a"), ReceiptFilter(user_id=3)):
        expected = counted([row for row in rows if matches(row, where)])
        assert await records.receive_stats(where) == expected
        assert len(await records.receive_records(where, NEWEST, ALL)) == expected.total_users


async def test_a_row_has_every_field(node: Node, stores: Stores) -> None:
    await node.accept("m1", type="order_paid", tags=("b", "a"), expires_ms=START_MS + 5)
    await node.accept("m2")
    said = {"message_type": "order_paid", "tags": ("b", "a"), "expires_ms": START_MS + 5}
    await stores.records.write([], [receipt("m1", 7, DELIVERED, **said), receipt("m2", 7, PENDING)])
    await stores.records.mark(7, ["m1"], Mark.CONFIRMED, 2000)
    (row,) = await stores.records.receive_records(ReceiptFilter(message_id="m1"), NEWEST, ALL)
    assert row == ReceiptRow(
        message_id="m1",
        user_id=7,
        username="user7",
        user_role=1,
        is_online=True,
        is_received=True,
        received_ms=1200,
        is_read=True,
        read_ms=2000,
        is_confirmed=True,
        confirmed_ms=2000,
        device_type="",
        platform="",
        browser="",
        client_ip="10.0.0.1",
        user_agent="Firefox",
        connection_id="c1",
        push_channel="websocket",
        delivery_status="delivered",
        retry_count=0,
        error_message=None,
        created_ms=1000,
        updated_ms=2000,
        message_type="order_paid",
        tags=("b", "a"),
        expires_ms=START_MS + 5,
        confirmed_version=1,
    )
    (row,) = await stores.records.receive_records(ReceiptFilter(message_id="m2"), NEWEST, ALL)
    assert (row.is_received, row.is_read, row.is_confirmed) == (False, False, False)
    assert (row.received_ms, row.read_ms, row.confirmed_ms) == (0, 0, 0)


async def test_what_a_receipt_does_not_say_of_its_notice_the_push_record_says(node: Node, stores: Stores) -> None:
    await node.accept("m1", type="order_paid", tags=("a",), expires_ms=START_MS + 5)
    await stores.records.write([node.record("m1")], [receipt("m1", 7, PENDING), receipt("m1", 8, PENDING)])
    rows = await stores.records.receive_records(ReceiptFilter(message_id="m1"), NEWEST, ALL)
    assert [(row.message_type, row.tags, row.expires_ms) for row in rows] == [("order_paid", ("a",), START_MS + 5)] * 2
    rows = (await stores.records.newest_receive_records([7], 5))[7]
    assert [(row.message_type, row.tags, row.expires_ms) for row in rows] == [("order_paid", ("a",), START_MS + 5)]


async def test_a_renamed_user_is_found_by_what_the_record_says(node: Node, stores: Stores) -> None:
    await node.accept("m1", "m2", "m3")
    await stores.records.write([], [receipt("m1", 1, PENDING, username="ann")])
    await stores.records.write([], [receipt("m2", 1, PENDING, username="bob")])

    async def found(name: str) -> list[str]:
        rows = await stores.records.receive_records(ReceiptFilter(username=name), ReceiptSort.USERNAME, ALL)
        return [row.message_id for row in rows]

    assert (await found("ann"), await found("BOB"), await found("")) == (["m1"], ["m2"], ["m2", "m1"])
    await stores.records.write([], [receipt("m3", 1, PENDING, username="carl")])
    assert (await found("ann"), await found("carl"), await found("bob")) == (["m1"], ["m3"], ["m2"])
    totals = {
        name: (await stores.records.receive_stats(ReceiptFilter(username=name))).total_users
        for name in ("ann", "carl", "bob", "b")
    }
    assert totals == {"ann": 1, "carl": 1, "bob": 1, "b": 1}


async def test_newest_of_many_users(node: Node, stores: Stores) -> None:
    node.needs("$unionWith")
    for notice in range(12):
        await node.accept(f"m{notice:02}", accepted_ms=1000 + notice // 2)
    await node.accept("only", accepted_ms=2000)
    written = [
        receipt(f"m{notice:02}", user_id, at(1000 + notice // 2, PENDING))
        for notice in range(12)
        for user_id in range(1, 201)
    ]
    await stores.records.write([], [*written, receipt("only", 500, at(2000, PENDING))])
    found = await stores.records.newest_receive_records([*range(1, 201), 500, 999], 5)
    assert set(found) == {*range(1, 201), 500}
    for user_id in range(1, 201):
        assert [row.message_id for row in found[user_id]] == ["m11", "m10", "m09", "m08", "m07"]
        assert {row.user_id for row in found[user_id]} == {user_id}
    assert [row.message_id for row in found[500]] == ["only"]
    assert await stores.records.newest_receive_records([], 5) == {}


async def test_users_are_counted_busiest_first(node: Node, stores: Stores) -> None:
    times = {"early": 10, **{f"m{notice}": 1000 + notice for notice in range(10)}, "late": 9000}
    for name, at_ms in times.items():
        await node.accept(name, accepted_ms=at_ms)
    written = [
        receipt(f"m{notice}", user_id, at(1000 + notice, DELIVERED if user_id % 2 else PENDING))
        for user_id in range(1, 41)
        for notice in range(10 if user_id == 20 else 1 + user_id % 4)
    ]
    await stores.records.write(
        [], [*written, *(receipt(name, 1, at(times[name], PENDING)) for name in ("early", "late"))]
    )
    await stores.records.mark(20, ["m1", "m2"], Mark.READ, 3000)
    await stores.records.mark(20, ["m2"], Mark.CONFIRMED, 3000)
    found = await stores.records.user_receipts(1000, 9000, 3)
    assert found == [
        UserReceipts(20, "user20", 10, 2, 2, 1),
        UserReceipts(3, "user3", 4, 4, 0, 0),
        UserReceipts(7, "user7", 4, 4, 0, 0),
    ]
    assert len(await stores.records.user_receipts(1000, 9000, 100)) == 40
    assert await stores.records.user_receipts(1003, 1004, 100) == [
        UserReceipts(user_id, f"user{user_id}", 1, user_id % 2, 0, 0)
        for user_id in range(1, 41)
        if user_id % 4 == 3 or user_id == 20
    ]
    assert await stores.records.user_receipts(5000, 6000, 100) == []


async def test_users_are_counted_under_their_newest_name(node: Node, stores: Stores) -> None:
    await node.accept("m1", accepted_ms=900)
    await node.accept("m2")
    await stores.records.write([], [receipt("m1", 1, at(900, PENDING), username="old")])
    await stores.records.write([], [receipt("m2", 1, PENDING, username="new")])
    assert await stores.records.user_receipts(0, 5000, 10) == [UserReceipts(1, "new", 2, 0, 0, 0)]


async def test_user_summary(node: Node, stores: Stores) -> None:
    states = {"a": PENDING, "b": DELIVERED, "c": OFFLINE, "d": EXPIRED, "e": at(3000, PENDING)}
    await node.accept(*"abcd")
    await node.accept("e", accepted_ms=3000)
    await node.accept("f", accepted_ms=9000)
    await stores.records.write([], [receipt(name, 1, outcome) for name, outcome in states.items()])
    await stores.records.write([], [receipt("f", 2, at(9000, PENDING))])
    await stores.records.mark(1, ["a"], Mark.READ, 4000)
    assert await stores.records.user_summary(1) == UserSummary(unread_count=3, total_count=5, last_message_ms=3000)
    assert await stores.records.user_summary(3) == UserSummary(unread_count=0, total_count=0, last_message_ms=0)
