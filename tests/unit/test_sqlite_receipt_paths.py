"""The ways to a page of receive records lead to the same page: the store may change them while somebody turns pages."""

from __future__ import annotations

from pathlib import Path

import pytest

from pushd.model import Channel, DeliveryStatus
from pushd.queries import ReceiptFilter, ReceiptRow, ReceiptSort, Slice
from pushd.stores.sqlite import receipt_queries
from tests.contract.conftest import SqliteNode
from tests.contract.test_receipt_queries import fill

FILTERS = (
    ReceiptFilter(),
    ReceiptFilter(is_read=True),
    ReceiptFilter(is_received=False, is_online=False),
    ReceiptFilter(delivery_status=DeliveryStatus.DELIVERED, since_ms=1020, before_ms=1070),
    ReceiptFilter(push_channel=Channel.OFFLINE, is_confirmed=False),
    ReceiptFilter(message_id="m3", is_read=True),
)


async def pages(node: SqliteNode) -> list[list[ReceiptRow]]:
    return [
        await node.stores.records.receive_records(where, sort, Slice(offset, 13, is_descending))
        for where in FILTERS
        for sort in ReceiptSort
        for offset in (0, 13, 29)
        for is_descending in (True, False)
    ]


async def test_walking_leads_where_seeking_and_sorting_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = SqliteNode(tmp_path)
    await node.start()
    try:
        await fill(node)
        sought = await pages(node)
        monkeypatch.setattr(receipt_queries, "SOUGHT_RUNS", -1)
        monkeypatch.setattr(receipt_queries, "SORTED_ROWS", -1)
        assert await pages(node) == sought
        assert sum(map(len, sought)) > 1000
    finally:
        await node.stop()


async def test_a_common_name_is_walked_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = SqliteNode(tmp_path)
    await node.start()
    try:
        rows = await fill(node)
        expected = sorted(
            (row["created_at"], row["message_id"], row["user_id"]) for row in rows if "a" in row["username"].lower()
        )
        monkeypatch.setattr(receipt_queries, "COMMON_PART", 0)
        for is_descending in (True, False):
            part = Slice(0, 1000, is_descending)
            listed = await node.stores.records.receive_records(
                ReceiptFilter(username="A"), ReceiptSort.CREATED_AT, part
            )
            found = [(row.created_ms, row.message_id, row.user_id) for row in listed]
            assert found == (expected[::-1] if is_descending else expected)
    finally:
        await node.stop()
