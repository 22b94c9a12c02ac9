"""The contract of the push-record queries of ports.RecordStore: what a count by hand over the tables says."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pushd.model import Mark, Priority, Target, TargetKind
from pushd.ports import Stores
from pushd.records import Part, PushFilter, PushRow, PushSort, PushStats, ReceiptFilter, ReceiptSort
from tests.samples import DELIVERED, EXPIRED, FETCHED, OFFLINE, OUTCOMES, PENDING, RECEIPTS, at, receipt

from .conftest import START_MS, Node

IMPLEMENTATIONS = ("sqlite", "mongodb")
ALL = Part(offset=0, limit=10_000)
NEWEST = PushSort.PUSH_TIME
CONTENTS = ("Server DOWN", "100% done", "under_score", "back\\slash", "系统维护通知", "")
NOTICES = range(40)

relaxed = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def tags_of(notice: int) -> tuple[str, ...]:
    """Two, one or none of three."""
    return (("shop", "café"), ("café",), (), ("it's %",))[notice % 4]


async def fill(node: Node) -> list[dict[str, Any]]:
    """Records of every kind, written once; the rows of the table, with the counts of CONTRACT section 5."""
    if not node.rows("push_records"):
        for notice in NOTICES:
            await node.accept(
                f"m{notice}",
                content=CONTENTS[notice % len(CONTENTS)],
                type=("system_notice", "order_paid")[notice % 2],
                target=Target(list(TargetKind)[notice % len(TargetKind)]),
                accepted_ms=1000 + 10 * (notice // 2),
                priority=Priority(notice % 4),
                sender_id=notice % 3,
                tags=tags_of(notice),
            )
        statuses = ("success", "accepted", "failed", "expired")
        records = [node.record(f"m{notice}", statuses[notice % 4], total=notice % 6) for notice in NOTICES]
        receipts = [
            receipt(f"m{notice}", user_id, at(1000 + 10 * (notice // 2), OUTCOMES[(notice + user_id) % len(OUTCOMES)]))
            for notice in NOTICES
            for user_id in range(1, 1 + notice % 6)
        ]
        await node.stores.records.write(records, [*receipts, receipt("nobody's", 1, DELIVERED)])
    receipts_of: dict[str, list[dict[str, Any]]] = {}
    for row in node.rows(RECEIPTS):
        receipts_of.setdefault(row["message_id"], []).append(row)
    return [row | counts(receipts_of.get(row["message_id"], [])) for row in node.rows("push_records")]


def counts(receipts: list[dict[str, Any]]) -> dict[str, int]:
    return {
        "delivered_count": sum(row["is_received"] for row in receipts),
        "failed_count": sum(row["delivery_status"] == "expired" and not row["is_received"] for row in receipts),
    }


def matches(row: dict[str, Any], where: PushFilter) -> bool:
    equal = {name: getattr(where, name) for name in where.__struct_fields__}
    keyword, since_ms, before_ms, tag = (equal.pop(field) for field in ("keyword", "since_ms", "before_ms", "tag"))
    return (
        all(value is None or row[field] == value for field, value in equal.items())
        and (keyword is None or keyword.lower() in row["content"].lower())
        and (tag is None or tag in tags_of(int(row["message_id"][1:])))
        and (since_ms is None or row["push_time"] >= since_ms)
        and (before_ms is None or row["push_time"] < before_ms)
    )


filters = st.builds(
    PushFilter,
    message_type=st.none() | st.none() | st.sampled_from(["order_paid", "unknown"]),
    target=st.none() | st.none() | st.sampled_from(TargetKind),
    status=st.none() | st.none() | st.sampled_from(["success", "failed"]),
    success=st.none() | st.booleans(),
    sender_id=st.none() | st.none() | st.sampled_from([0, 2]),
    since_ms=st.none() | st.integers(1000, 1210),
    before_ms=st.none() | st.integers(1000, 1210),
    keyword=st.none() | st.sampled_from(["down", "DOWN", "%", "_", "\\", "维护", "", "o%n", "e.*r"]),
    tag=st.none() | st.sampled_from(["shop", "café", "it's %", "Shop", "sho", "%", ".*", "", "x\0"]),
)


@given(where=filters)
@relaxed
async def test_stats_are_what_a_count_by_hand_says(node: Node, where: PushFilter) -> None:
    rows = [row for row in await fill(node) if matches(row, where)]
    successes = sum(row["success"] for row in rows)
    sums = (sum(row[name] for row in rows) for name in ("total_count", "delivered_count", "failed_count"))
    expected = PushStats(len(rows), successes, len(rows) - successes, *sums)
    assert await node.stores.records.push_stats(where) == expected


@given(
    where=filters,
    sort=st.sampled_from(PushSort),
    is_descending=st.booleans(),
    page=st.sampled_from([1, 3, 15, 100]),
)
@relaxed
async def test_pages_are_sorted_by_time_and_id_where_the_key_is_equal(
    node: Node, where: PushFilter, sort: PushSort, is_descending: bool, page: int
) -> None:
    rows = [row for row in await fill(node) if matches(row, where)]
    rows.sort(key=lambda row: (row[sort], row["push_time"], row["message_id"]), reverse=is_descending)
    listed: list[PushRow] = []
    for offset in range(0, len(rows) + page, page):
        part = Part(offset=offset, limit=page, is_descending=is_descending)
        found = await node.stores.records.push_records(where, sort, part)
        assert len(found) == max(0, min(page, len(rows) - offset))
        listed += found
    assert [row.message_id for row in listed] == [row["message_id"] for row in rows]
    expected = [(row["delivered_count"], row["failed_count"], bool(row["success"])) for row in rows]
    assert [(row.delivered_count, row.failed_count, row.success) for row in listed] == expected


async def test_a_row_has_every_field(node: Node) -> None:
    fields: dict[str, Any] = {
        "content": '消息 "1"',
        "target": Target(TargetKind.CUSTOM, user_ids=(1, 2, 3), exclude_ids=(3, 4)),
        "type": "order_paid",
        "data": {"order": [5, None, True]},
        "priority": Priority.HIGH,
        "need_confirm": True,
        "sender_id": 9,
        "sender_name": "ops",
        "expires_ms": 90_000,
        "title": "An order",
        "url": "https://shop.test/orders/5",
        "tags": ("shop", "café"),
    }
    await node.accept("m1", **fields)
    await node.stores.records.write([node.record("m1", "success", 2, 1)], [])
    await node.stores.records.write([], [receipt("m1", 1, DELIVERED), receipt("m1", 2, EXPIRED)])
    row = await node.stores.records.push_record("m1")
    assert row == PushRow(
        message_id="m1",
        content='消息 "1"',
        message_type="order_paid",
        target="custom",
        target_user_ids=[1, 2, 3],
        target_roles=None,
        recipients_count="2_users",
        status="success",
        success=True,
        error=None,
        push_ms=1000,
        expires_ms=90_000,
        sender_id=9,
        sender_name="ops",
        priority=2,
        need_confirm=True,
        extra_data={"order": [5, None, True]},
        total_count=2,
        online_count=1,
        delivered_count=1,
        failed_count=1,
        created_ms=1000,
        updated_ms=1200 if node.keeps_records else START_MS,
        title="An order",
        url="https://shop.test/orders/5",
        tags=("shop", "café"),
        state="sent" if node.keeps_records else "expired",  # `expire` notes it in the ledger
    )
    assert await node.stores.records.push_records(PushFilter(), NEWEST, ALL) == [row]
    assert await node.stores.records.push_record("unknown") is None


@pytest.mark.parametrize("data", [None, {}, [], 0, False, "null", "", {"a": "\u2028\x00"}, [[[1.5]]]])
async def test_any_data_comes_back(node: Node, stores: Stores, data: Any) -> None:
    await node.accept("m1", data=data)
    await stores.records.write([node.record("m1", "failed")], [])
    row = await stores.records.push_record("m1")
    assert row is not None
    assert (row.extra_data, row.success, row.expires_ms) == (data, False, 0)


@pytest.mark.parametrize(
    ("target", "text"),
    [
        (Target(TargetKind.ALL), "all_users"),
        (Target(TargetKind.ADMIN, exclude_ids=(1,)), "all_admins"),
        (Target(TargetKind.ROLE, roles=(1, 2)), "role_users"),
        (Target(TargetKind.ONLINE), "online_users"),
        (Target(TargetKind.GROUP, groups=("dept:12", "销售"), exclude_ids=(1,)), "group_users"),
    ],
)
async def test_recipients_are_named(node: Node, stores: Stores, target: Target, text: str) -> None:
    await node.accept("m1", target=target)
    await stores.records.write([node.record("m1")], [])
    row = await stores.records.push_record("m1")
    assert row is not None
    assert (row.recipients_count, row.target_user_ids) == (text, None)
    assert row.target_roles == (list(target.roles) or None)
    assert row.target_groups == (list(target.groups) or None)


async def test_large_records_come_back_whole(node: Node, stores: Stores) -> None:
    users = tuple(range(1, 10_001))
    names = [f"m{notice:02}" for notice in range(25)]
    await node.accept(*names, target=Target(TargetKind.CUSTOM, user_ids=users), data="x" * 60_000)
    await stores.records.write([node.record(name) for name in names], [])
    rows = await stores.records.push_records(PushFilter(), NEWEST, ALL)
    assert [row.message_id for row in rows] == names[::-1]
    assert all(row.target_user_ids == list(users) and len(row.extra_data) == 60_000 for row in rows)


async def test_counts_follow_the_receipts(node: Node, stores: Stores) -> None:
    users = range(1, 1201)
    await node.accept("m1")
    await stores.records.write([node.record("m1", total=1200)], [receipt("m1", user, EXPIRED) for user in users])

    async def counted() -> tuple[int, int]:
        row = await stores.records.push_record("m1")
        stats = await stores.records.push_stats(PushFilter())
        assert row is not None
        assert (stats.delivered_count, stats.failed_count) == (row.delivered_count, row.failed_count)
        return row.delivered_count, row.failed_count

    assert await counted() == (0, 1200)
    await stores.records.write([], [receipt("m1", user, DELIVERED) for user in range(1, 601)])
    await stores.records.write([], [receipt("m1", user, DELIVERED) for user in range(1, 601)])
    assert await counted() == (600, 600)
    await stores.records.mark(900, ["m1"], Mark.READ, 2000)
    assert await counted() == (601, 599)


async def test_delete_drops_a_notice_with_its_receipts(node: Node) -> None:
    """But not what other programs wrote of notices that have no record here; the ledger has no such receipts."""
    records = node.stores.records
    await node.accept("a", "b")
    everyone = [receipt(name, user_id, OFFLINE) for name in "ab" for user_id in range(1, 1301)]
    await records.write([node.record("a"), node.record("b")], [*everyone, receipt("orphan", 1, PENDING)])
    assert await records.delete("a") is True
    for _ in range(2):
        assert await records.delete("a") is False
        assert await records.push_record("a") is None
        assert await records.receive_status("a") is None
        assert await records.received_by("a") == set()
        assert await records.not_received_by("a") == []
        assert await records.receive_records(ReceiptFilter(message_id="a"), ReceiptSort.CREATED_AT, ALL) == []
        assert (await records.receive_stats(ReceiptFilter(user_id=7))).total_users == 1
        assert await records.unread_counts([7]) == {7: 1}
        assert {row["message_id"] for row in node.rows("push_records")} == {"b"}
        assert len(node.rows(RECEIPTS)) == 1300 + (not node.keeps_records)
        await node.restart()
        records = node.stores.records
    assert await records.delete("orphan") is not node.keeps_records


async def test_late_answers_to_what_was_deleted_bring_nothing_back(node: Node) -> None:
    """Answers to copies that wait on: DELETE leaves the mailbox alone."""
    records = node.stores.records
    await node.accept("a", "b")
    await records.write([node.record("a"), node.record("b")], [receipt(name, 1, OFFLINE) for name in "ab"])
    assert await records.delete("a") is True
    for _ in range(2):
        late = [receipt(name, user_id, FETCHED, is_late=True) for name in "ab" for user_id in (1, 2)]
        await node.stores.records.write([], late)
        assert await node.stores.records.mark(1, ["a", "b"], Mark.READ, 2000) == ["b"]
        assert await node.stores.records.receive_status("a") is None
        assert (await node.stores.records.receive_stats(ReceiptFilter(user_id=1))).total_users == 1
        assert await node.stores.records.unread_counts([1, 2]) == {2: 1}
        await node.restart()
