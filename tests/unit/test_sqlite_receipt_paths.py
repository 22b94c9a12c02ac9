"""The ways to a page of receive records lead to the same page: the store may change them while somebody turns pages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from pushd.model import Channel, DeliveryStatus
from pushd.queries import ReceiptFilter, ReceiptRow, ReceiptSort, Slice
from pushd.stores.sqlite import receipt_queries
from tests.contract.conftest import Node
from tests.contract.test_receipt_queries import fill

FILTERS = (
    ReceiptFilter(),
    ReceiptFilter(is_read=True),
    ReceiptFilter(is_received=False, is_online=False),
    ReceiptFilter(delivery_status=DeliveryStatus.DELIVERED, since_ms=1020, before_ms=1070),
    ReceiptFilter(push_channel=Channel.OFFLINE, is_confirmed=False),
    ReceiptFilter(message_id="m3", is_read=True),
)


async def pages(node: Node, filters: Sequence[ReceiptFilter] = FILTERS) -> list[list[ReceiptRow]]:
    return [
        await node.stores.records.receive_records(where, sort, Slice(offset, 13, is_descending))
        for where in filters
        for sort in ReceiptSort
        for offset in (0, 13, 29, 100, 160)
        for is_descending in (True, False)
    ]


async def test_walking_leads_where_seeking_and_sorting_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(tmp_path)
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


async def test_a_name_is_walked_to_in_the_order_of_sorting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(tmp_path)
    await node.start()
    try:
        await fill(node)
        names = [msgspec.structs.replace(where, username="A") for where in FILTERS if where.message_id is None]
        found = []
        for walked, far in ((0, 10**9), (10**9, 10**9), (10**9, 0), (0, 0)):
            monkeypatch.setattr(receipt_queries, "WALKED_PER_SORTED", walked)
            monkeypatch.setattr(receipt_queries, "FAR_ROWS", far)
            monkeypatch.setattr(receipt_queries, "SORTED_ROWS", -1)
            found.append(await pages(node, names))
        assert found[1:] == found[:1] * 3
        assert sum(map(len, found[0])) > 500
    finally:
        await node.stop()


async def test_pages_from_the_end_are_those_from_the_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(tmp_path)
    await node.start()
    try:
        await fill(node)
        from_the_beginning = await pages(node, FILTERS)
        monkeypatch.setattr(receipt_queries, "FAR_ROWS", 0)
        assert await pages(node, FILTERS) == from_the_beginning
    finally:
        await node.stop()
