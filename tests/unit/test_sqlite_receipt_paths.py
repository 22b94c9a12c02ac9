"""The ways to a page of receive records lead to the same page: the store may change them while somebody turns pages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pushd.model import Channel, DeliveryStatus, Mark, Outcome
from pushd.records import Part, ReceiptFilter, ReceiptRow, ReceiptSort
from pushd.stores.sqlite import receipt_columns, receipt_queries
from pushd.stores.sqlite.receipt_columns import ReceiptColumns
from tests.contract.conftest import Node
from tests.contract.test_receipt_queries import fill
from tests.samples import receipt

LATE = Outcome(1200, received_ms=1300, status=DeliveryStatus.DELIVERED)
FILTERS = (
    ReceiptFilter(),
    ReceiptFilter(is_read=True),
    ReceiptFilter(is_received=False, is_online=False),
    ReceiptFilter(delivery_status=DeliveryStatus.DELIVERED, since_ms=1020, before_ms=1070),
    ReceiptFilter(push_channel=Channel.OFFLINE, is_confirmed=False),
    ReceiptFilter(message_id="m3", is_read=True),
)


async def pages(
    node: Node, filters: Sequence[ReceiptFilter] = FILTERS, sorts: Sequence[ReceiptSort] = tuple(ReceiptSort)
) -> list[list[ReceiptRow]]:
    return [
        await node.stores.records.receive_records(where, sort, Part(offset, 13, is_descending))
        for where in filters
        for sort in sorts
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


async def test_columns_lead_where_sqlite_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where all is equal but what an index has last: notices of one millisecond, and users with two names."""
    node = Node(tmp_path)
    await node.start()
    try:
        await fill(node)
        written = [
            receipt(message_id, user_id, LATE, username=f"{'Ada' if message_id > 'b5' else 'Bob'}{user_id % 3}")
            for message_id in ("b9", "b1", "b7", "b3")
            for user_id in range(1, 9)
        ]
        await node.stores.records.write([], written)
        monkeypatch.setattr(receipt_queries, "FAR_ROWS", 0)
        monkeypatch.setattr(receipt_queries, "SORTED_ROWS", -1)
        answers = spied(monkeypatch, ReceiptColumns, "answer")
        by_columns = await pages(node)
        assert len(answers) > 200
        assert all(answer is not None for answer in answers)
        await node.stop()
        monkeypatch.undo()
        monkeypatch.setattr(receipt_columns, "MOST_RECORDS", -1)
        answers = spied(monkeypatch, ReceiptColumns, "answer")
        await node.start()
        assert await pages(node) == by_columns
        assert all(answer is None for answer in answers)
        assert sum(map(len, by_columns)) > 1000
    finally:
        await node.stop()


async def test_a_name_is_found_by_sqlite_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(tmp_path)
    await node.start()
    try:
        await fill(node)
        await node.stores.records.write([], [receipt("late", user_id, LATE, username="Ada") for user_id in (1, 3, 5)])
        names = [msgspec.structs.replace(where, username="A", is_received=True) for where in FILTERS]
        sorts = [sort for sort in ReceiptSort if sort not in (ReceiptSort.READ_AT, ReceiptSort.CONFIRMED_AT)]
        by_columns = await pages(node, names, sorts)
        stats = [await node.stores.records.receive_stats(where) for where in names]
        await node.stop()
        monkeypatch.setattr(receipt_columns, "MOST_RECORDS", -1)
        await node.start()
        assert await pages(node, names, sorts) == by_columns
        assert [await node.stores.records.receive_stats(where) for where in names] == stats
        assert sum(map(len, by_columns)) > 300
    finally:
        await node.stop()


def spied(monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> list[Any]:
    """What this method returns from now on."""
    returned: list[Any] = []
    method = getattr(owner, name)

    def spy(*arguments: Any) -> Any:
        returned.append(method(*arguments))
        return returned[-1]

    monkeypatch.setattr(owner, name, spy)
    return returned


ORDERS: dict[ReceiptSort, Callable[[ReceiptRow], Any]] = {
    ReceiptSort.CREATED_AT: lambda row: (row.created_ms, row.message_id, row.user_id),
    ReceiptSort.USERNAME: lambda row: (row.username.encode(), row.user_id, -row.created_ms),
    ReceiptSort.USER_ID: lambda row: (row.user_id, -row.created_ms),
    ReceiptSort.RECEIVED_AT: lambda row: (row.received_ms, row.user_id, row.created_ms),
    ReceiptSort.READ_AT: lambda row: (row.read_ms, row.user_id, row.created_ms),
}


@pytest.mark.parametrize("sort", ORDERS)
@pytest.mark.parametrize("name", [None, "a", "user"])
async def test_every_page_of_a_long_list_is_where_sorting_by_hand_puts_it(
    tmp_path: Path, sort: ReceiptSort, name: str | None
) -> None:
    """With the limits as they are: of a list so long that pages in its midst are not walked to."""
    node = Node(tmp_path)
    await node.start()
    try:
        written = [
            receipt(f"m{notice:02}", user_id, Outcome(
                created_ms=1000 + 10 * notice,
                received_ms=1000 + 10 * notice + user_id * 7 % 25 if user_id % 3 else 0,
                status=DeliveryStatus.DELIVERED if user_id % 3 else DeliveryStatus.OFFLINE,
            ), username=f"{'Ann' if user_id % 4 else 'Bob'}{user_id % 50}user{user_id}")
            for notice in range(40) for user_id in range(1, 301) if (notice + user_id) % 7 and user_id > 3 * notice
        ]  # fmt: skip
        await node.stores.records.write([], written)
        for user_id in range(1, 301, 2):
            await node.stores.records.mark(user_id, [f"m{notice:02}" for notice in range(40)], Mark.READ, 5000)
        for where in (ReceiptFilter(username=name), ReceiptFilter(username=name, is_read=True, is_received=True)):
            if sort in receipt_queries.TIMES and not where.is_read:
                continue  # those without a time come in another order
            whole = await node.stores.records.receive_records(where, sort, Part(0, 10_000, is_descending=False))
            assert len(whole) == (await node.stores.records.receive_stats(where)).total_users > 2_500
            assert whole == sorted(whole, key=ORDERS[sort])
            for offset in range(0, len(whole) + 500, 487):
                forwards = await node.stores.records.receive_records(where, sort, Part(offset, 20, False))
                backwards = await node.stores.records.receive_records(where, sort, Part(offset, 20, True))
                assert forwards == whole[offset : offset + 20]
                assert backwards == whole[::-1][offset : offset + 20]
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
                whole = await node.stores.records.receive_records(where, sort, Part(0, 1000, is_descending))
                backwards = await node.stores.records.receive_records(where, sort, Part(0, 1000, not is_descending))
                assert whole == backwards[::-1]
                assert len(whole) == total
    finally:
        await node.stop()


async def test_pages_from_the_end_are_those_from_the_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(tmp_path)
    monkeypatch.setattr(receipt_columns, "MOST_RECORDS", -1)
    await node.start()
    try:
        await fill(node)
        from_the_beginning = await pages(node, FILTERS)
        monkeypatch.setattr(receipt_queries, "FAR_ROWS", 0)
        assert await pages(node, FILTERS) == from_the_beginning
    finally:
        await node.stop()
