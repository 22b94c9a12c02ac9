"""Retention where the store does not see to it by itself, as MongoDB's TTL indexes do."""

from __future__ import annotations

from pushd.model import Outcome
from pushd.ports import Stores
from pushd.records import PushFilter, ReceiptStats
from tests.samples import EXPIRED, push_record, receipt

from .conftest import Node


async def test_purge_drops_old_records_up_to_the_limit(node: Node) -> None:
    old = [receipt("m1", user_id, Outcome(1000)) for user_id in (1, 2, 3)]
    await node.stores.records.write(
        [push_record("m1"), push_record("m2", accepted_ms=2000)], [*old, receipt("m2", 1, Outcome(2000))]
    )
    assert await node.stores.records.purge(1000, 10) == 0
    assert await node.stores.records.purge(1001, 2) == 2
    assert await node.stores.records.purge(1001, 10) == 2
    assert await node.stores.records.receive_status("m1") is None
    assert await node.stores.records.receive_status("m2") == ReceiptStats(1, 0, 0, 0, 0)


async def test_counts_follow_a_purge(stores: Stores) -> None:
    users = range(1, 1201)
    await stores.records.write([push_record("m1", total=1200)], [receipt("m1", user, EXPIRED) for user in users])
    assert await stores.records.purge(2000, 500) == 500
    row = await stores.records.push_record("m1")
    stats = await stores.records.push_stats(PushFilter())
    assert row is not None
    assert stats.failed_count == row.failed_count == 700
