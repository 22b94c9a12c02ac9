"""Retention where the store does not see to it by itself, as MongoDB's TTL indexes do."""

from __future__ import annotations

from pushd.model import Mark
from pushd.records import Part, PushFilter, PushSort, ReceiptFilter, ReceiptSort, ReceiptStats
from tests.samples import DELIVERED, EXPIRED, PENDING, at, receipt

from .conftest import Node

ALL = Part(0, 10_000)


async def test_purge_drops_old_records_up_to_the_limit(node: Node) -> None:
    await node.accept("m1")
    await node.accept("m2", accepted_ms=2000)
    old = [receipt("m1", user_id, PENDING) for user_id in (1, 2, 3)]
    await node.stores.records.write([node.record("m1"), node.record("m2")], [*old, receipt("m2", 1, at(2000, PENDING))])
    assert await node.stores.records.purge(1000, 10) == 0
    assert await node.stores.records.purge(1001, 2) == 2
    assert await node.stores.records.purge(1001, 10) == 2
    assert await node.stores.records.purge(1001, 10) == 0
    assert await node.stores.records.receive_status("m1") is None
    assert await node.stores.records.receive_status("m2") == ReceiptStats(1, 1, 0, 0, 0)


async def test_counts_follow_a_purge(node: Node) -> None:
    users = range(1, 1201)
    await node.accept("m1")
    await node.stores.records.write([node.record("m1", total=1200)], [receipt("m1", user, EXPIRED) for user in users])
    assert await node.stores.records.purge(2000, 500) == 500
    row = await node.stores.records.push_record("m1")
    stats = await node.stores.records.push_stats(PushFilter())
    assert row is not None
    assert stats.failed_count == row.failed_count == 700


async def test_what_is_purged_is_nowhere_any_more(node: Node) -> None:
    """Nor after a restart; what came later is as it was."""
    await node.accept("old", "older", accepted_ms=1000)
    await node.accept("new", accepted_ms=5000)
    records = node.stores.records
    everyone = [receipt(name, user, DELIVERED) for name in ("old", "older") for user in range(1, 41)]
    await records.write(
        [node.record(name) for name in ("old", "older", "new")],
        [*everyone, *(receipt("new", user, at(5000, DELIVERED)) for user in range(1, 41))],
    )
    while await records.purge(5000, 7):
        pass
    for _ in range(2):
        records = node.stores.records
        assert [row.message_id for row in await records.push_records(PushFilter(), PushSort.PUSH_TIME, ALL)] == ["new"]
        assert await records.receive_stats(ReceiptFilter()) == ReceiptStats(40, 40, 40, 0, 0)
        listed = await records.receive_records(ReceiptFilter(), ReceiptSort.USER_ID, ALL)
        assert {row.message_id for row in listed} == {"new"}
        assert await records.unread_counts(range(1, 41)) == dict.fromkeys(range(1, 41), 1)
        assert await records.push_record("old") is None
        assert await records.received_by("old") == set()
        assert await records.mark(1, ["old"], Mark.READ, 6000) == []
        await records.write([], [receipt("old", 1, DELIVERED, is_late=True)])
        assert await records.receive_status("old") is None
        await node.restart()
