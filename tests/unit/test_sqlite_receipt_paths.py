"""The ways to a page of receive records lead to the same page: the store may change them while somebody turns pages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from pushd.model import Channel, DeliveryStatus, Outcome
from pushd.queries import ReceiptFilter, ReceiptRow, ReceiptSort, Slice
from pushd.stores.sqlite import members, receipt_queries
from tests.contract.conftest import Node
from tests.contract.test_receipt_queries import counted, fill, matches
from tests.contract.test_records import receipt

LATE = Outcome(1200, received_ms=1300, status=DeliveryStatus.DELIVERED)
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
        await node.stores.records.write([], [receipt("late", user_id, LATE, username="Ada") for user_id in (1, 3, 5)])
        names = [msgspec.structs.replace(where, username="A") for where in FILTERS if where.message_id is None]
        found = []
        for walked, far, dense in (
            (-(10**9), 10**9, 100),
            (10**9, 10**9, 100),
            (10**9, 0, 100),
            (-(10**9), 0, 100),
            (10**9, 0, 0),
        ):
            monkeypatch.setattr(receipt_queries, "WALKED_PER_SORTED", walked)
            monkeypatch.setattr(receipt_queries, "FAR_ROWS", far)
            monkeypatch.setattr(members, "DENSE_IDS", dense)
            found.append(await pages(node, names))
        assert found[1:] == found[:1] * 4
        assert sum(map(len, found[0])) > 500
    finally:
        await node.stop()


@pytest.mark.parametrize("sort", ReceiptSort)
async def test_the_other_direction_is_the_list_reversed(tmp_path: Path, sort: ReceiptSort) -> None:
    node = Node(tmp_path)
    await node.start()
    try:
        await fill(node)
        for where in (*FILTERS, ReceiptFilter(username="a", is_read=False), ReceiptFilter(username="A", since_ms=1020)):
            total = (await node.stores.records.receive_stats(where)).total_users
            for is_descending in (True, False):
                whole = await node.stores.records.receive_records(where, sort, Slice(0, 1000, is_descending))
                backwards = await node.stores.records.receive_records(where, sort, Slice(0, 1000, not is_descending))
                assert whole == backwards[::-1]
                assert len(whole) == total
    finally:
        await node.stop()


@pytest.mark.parametrize(
    ("since_ms", "before_ms"), [(1001, None), (None, 1109), (1010, 1100), (900, 2000), (1100, 1000)]
)
@pytest.mark.parametrize("is_read", [None, True])
async def test_counting_the_others_is_counting(
    tmp_path: Path, since_ms: int | None, before_ms: int | None, is_read: bool | None
) -> None:
    node = Node(tmp_path)
    await node.start()
    try:
        where = ReceiptFilter(username="A", since_ms=since_ms, before_ms=before_ms, is_read=is_read)
        rows = [row for row in await fill(node) if matches(row, where)]
        assert await node.stores.records.receive_stats(where) == counted(rows)
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
