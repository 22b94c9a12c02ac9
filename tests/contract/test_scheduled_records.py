"""What is scheduled, and what was cancelled, among the push records of ports.RecordStore."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pushd.model import Notice, Priority, PushRecord, Target, TargetKind
from pushd.records import Part, PushFilter, PushRow, PushSort, PushStats, ReceiptStats, RecordState
from tests.samples import DELIVERED, at, notice, receipt

from .conftest import START_MS, Node

IMPLEMENTATIONS = ("sqlite", "mongodb")
ALL = Part(offset=0, limit=1000)
TAGS = (("shop",), (), ("café", "shop"))
CONTENTS = ("Server DOWN", "100% done", "系统维护通知")
relaxed = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def facts(number: int) -> dict[str, Any]:
    return {
        "content": CONTENTS[number % 3],
        "type": ("system_notice", "order_paid")[number % 2],
        "target": Target(list(TargetKind)[number % 4]),
        "priority": Priority(number % 4),
        "sender_id": number % 3,
        "tags": TAGS[number % 3],
    }


def later(number: int, due_ms: int) -> Notice:
    when = {"accepted_ms": due_ms, "send_at_ms": due_ms, "submitted_ms": 500 + number}
    return notice(0, message_id=f"s{number}", **when, **facts(number))


async def scheduled(node: Node, *notices: Notice) -> None:
    """They are in the schedule, and in the store of records where that is another one."""
    await node.stores.schedule.put(notices)
    if not node.keeps_records:
        await node.stores.records.write([PushRecord(one, "scheduled", 0, 0, is_whole=True) for one in notices], [])


async def cancelled(node: Node, one: Notice, at_ms: int) -> None:
    await node.stores.schedule.cancel(one.message_id, at_ms)
    if not node.keeps_records:
        await node.stores.records.write([PushRecord(one, "cancelled", 0, 0, is_whole=True)], [])


async def gone_out(node: Node, one: Notice, seq: int, at_ms: int) -> Notice:
    """It was journalled, and its fan-out is through."""
    sent = msgspec.structs.replace(one, seq=seq, accepted_ms=at_ms)
    await node.stores.journal.append([sent])
    await node.stores.records.write([PushRecord(sent, "success", 0, 0)], [])
    return sent


async def fill(node: Node) -> list[PushRow]:
    """Twenty that were sent, and between their times fifteen that are scheduled and five cancelled ones."""
    if not await node.stores.records.push_records(PushFilter(), PushSort.PUSH_TIME, ALL):
        for number in range(20):
            await node.accept(f"m{number}", accepted_ms=1000 + 10 * number, **facts(number))
        statuses = ("success", "accepted", "failed", "expired")
        await node.stores.records.write(
            [node.record(f"m{number}", statuses[number % 4], total=number % 3) for number in range(20)],
            [
                receipt(f"m{number}", user_id, at(1000 + 10 * number, DELIVERED))
                for number in range(20)
                for user_id in range(1, 1 + number % 3)
            ],
        )
        # One after the last was accepted goes out as the others would have.
        notices = [later(number, 1005 + 20 * number) for number in range(20)]
        await scheduled(node, *notices)
        for number in range(0, 20, 4):
            await cancelled(node, notices[number], 700)
    rows = await node.stores.records.push_records(PushFilter(), PushSort.PUSH_TIME, ALL)
    assert len(rows) == 40
    return rows


def matches(row: PushRow, where: PushFilter) -> bool:
    same = ("message_type", "target", "status", "success", "sender_id", "state")
    return (
        all(getattr(where, name) in (None, getattr(row, name)) for name in same)
        and (where.keyword is None or where.keyword.lower() in row.content.lower())
        and (where.tag is None or where.tag in row.tags)
        and (where.since_ms is None or row.push_ms >= where.since_ms)
        and (where.before_ms is None or row.push_ms < where.before_ms)
    )


filters = st.builds(
    PushFilter,
    message_type=st.none() | st.none() | st.sampled_from(["order_paid", "system_notice", "unknown"]),
    target=st.none() | st.none() | st.sampled_from(TargetKind),
    status=st.none() | st.none() | st.sampled_from(["success", "failed", "scheduled", "cancelled"]),
    success=st.none() | st.none() | st.booleans(),
    sender_id=st.none() | st.none() | st.sampled_from([0, 2]),
    since_ms=st.none() | st.integers(990, 1400),
    before_ms=st.none() | st.integers(990, 1400),
    keyword=st.none() | st.none() | st.sampled_from(["down", "%", "维护", "\\", ""]),
    tag=st.none() | st.none() | st.sampled_from(["shop", "café", "sho"]),
    state=st.none() | st.sampled_from(RecordState),
)


@given(where=filters)
@relaxed
async def test_stats_are_what_a_count_by_hand_says(node: Node, where: PushFilter) -> None:
    rows = [row for row in await fill(node) if matches(row, where)]
    successes = sum(row.success for row in rows)
    sums = (sum(getattr(row, name) for row in rows) for name in ("total_count", "delivered_count", "failed_count"))
    assert await node.stores.records.push_stats(where) == PushStats(len(rows), successes, len(rows) - successes, *sums)


@given(
    where=filters,
    sort=st.sampled_from(PushSort),
    is_descending=st.booleans(),
    page=st.sampled_from([1, 3, 7, 100]),
)
@relaxed
async def test_pages_have_them_where_they_belong(
    node: Node, where: PushFilter, sort: PushSort, is_descending: bool, page: int
) -> None:
    def key(row: PushRow) -> tuple[Any, ...]:
        first = {
            PushSort.PRIORITY: (row.priority,),
            PushSort.MESSAGE_TYPE: (row.message_type,),
            PushSort.STATUS: (row.status,),
            PushSort.TOTAL_COUNT: (row.total_count,),
        }
        return (*first.get(sort, ()), row.push_ms)

    rows = [row for row in await fill(node) if matches(row, where)]
    expected = [row.message_id for row in sorted(rows, key=key, reverse=is_descending)]
    found: list[str] = []
    for offset in range(0, len(expected) + page, page):
        part = Part(offset=offset, limit=page, is_descending=is_descending)
        found += [row.message_id for row in await node.stores.records.push_records(where, sort, part)]
    assert found == expected


async def test_a_row_has_what_is_known(node: Node) -> None:
    one = later(1, START_MS + 5000)
    await scheduled(node, one)
    row = await node.stores.records.push_record("s1")
    assert row is not None
    assert (row.message_id, row.content, row.message_type, row.target) == ("s1", "100% done", "order_paid", "admin")
    assert (row.status, row.state, row.success, row.error) == ("scheduled", "scheduled", True, None)
    assert (row.push_ms, row.send_at_ms, row.created_ms) == (START_MS + 5000, START_MS + 5000, 501)
    assert (row.total_count, row.online_count, row.delivered_count, row.failed_count) == (0, 0, 0, 0)
    assert (row.sender_id, row.tags, row.priority, row.recipients_count) == (1, (), 1, "all_admins")
    assert await node.stores.records.receive_status("s1") == ReceiptStats()
    assert await node.stores.records.push_records(PushFilter(), PushSort.PUSH_TIME, ALL) == [row]


@pytest.mark.parametrize("is_late", [False, True])
async def test_one_that_has_gone_out_is_a_record_like_any_other(node: Node, is_late: bool) -> None:
    at_ms = START_MS + 5000 + 60_000 * is_late
    one = later(1, START_MS + 5000)
    await scheduled(node, one)
    await gone_out(node, one, 1, at_ms)
    row = await node.stores.records.push_record("s1")
    assert row is not None
    assert (row.status, row.state) == ("success", "sent")
    assert (row.push_ms, row.send_at_ms, row.created_ms) == (at_ms, START_MS + 5000, 501)
    assert await node.stores.records.push_records(PushFilter(), PushSort.PUSH_TIME, ALL) == [row]
    assert (
        await node.stores.records.push_records(PushFilter(state=RecordState.SCHEDULED), PushSort.PUSH_TIME, ALL) == []
    )


async def test_one_that_was_changed_says_what_it_says_now(node: Node) -> None:
    one = later(2, START_MS + 5000)
    await scheduled(node, one)
    when = {"send_at_ms": START_MS + 9000, "accepted_ms": START_MS + 9000, "expires_ms": START_MS + 9500}
    newer = msgspec.structs.replace(one, content="newer", tags=(), **when)
    await node.stores.schedule.replace(newer)
    if not node.keeps_records:
        await node.stores.records.write([PushRecord(newer, "scheduled", 0, 0, is_whole=True)], [])
    row = await node.stores.records.push_record("s2")
    assert row is not None
    assert (row.content, row.tags, row.push_ms, row.expires_ms) == ("newer", (), START_MS + 9000, START_MS + 9500)
    await gone_out(node, newer, 1, START_MS + 9000)
    row = await node.stores.records.push_record("s2")
    assert row is not None
    assert (row.content, row.state, row.send_at_ms) == ("newer", "sent", START_MS + 9000)


async def test_a_record_that_was_written_only_when_it_had_gone_out_is_whole(node: Node) -> None:
    """What was to be written before and what is written now have become one write."""
    one = later(1, START_MS + 5000)
    await node.stores.schedule.put([one])
    sent = msgspec.structs.replace(one, seq=1, accepted_ms=START_MS + 5000)
    await node.stores.journal.append([sent])
    await node.stores.records.write([PushRecord(sent, "success", 3, 1, is_whole=True)], [])
    row = await node.stores.records.push_record("s1")
    assert row is not None
    assert (row.status, row.state, row.content, row.created_ms) == ("success", "sent", "100% done", 501)


async def test_a_repeated_write_changes_nothing(node: Node) -> None:
    one = later(1, START_MS + 5000)
    await scheduled(node, one)
    sent = await gone_out(node, one, 1, START_MS + 5000)
    row = await node.stores.records.push_record("s1")
    await node.stores.records.write([PushRecord(sent, "success", 0, 0)], [])
    assert await node.stores.records.push_record("s1") == row


async def test_states_of_others(node: Node) -> None:
    await node.accept("m1", expires_ms=START_MS - 1000)
    await node.accept("m2", expires_ms=START_MS + 1000)
    await node.stores.records.write([node.record("m1", "success"), node.record("m2", "success")], [])
    await node.stores.records.expire(0, START_MS, 100)
    for state, expected in (("expired", ["m1"]), ("sent", ["m2"]), ("revoked", []), ("cancelled", [])):
        where = PushFilter(state=RecordState(state))
        rows = await node.stores.records.push_records(where, PushSort.PUSH_TIME, ALL)
        assert [row.message_id for row in rows] == expected
        assert all(row.state == state for row in rows)
        assert (await node.stores.records.push_stats(where)).total_records == len(expected)
