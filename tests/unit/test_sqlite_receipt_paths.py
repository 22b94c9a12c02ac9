"""The ways to a page of receive records lead to the same page: the store may change them while somebody turns pages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest

from pushd.model import Channel, DeliveryStatus, Mark, Outcome
from pushd.queries import ReceiptFilter, ReceiptRow, ReceiptSort, Slice
from pushd.stores.sqlite import members, receipt_pivots, receipt_queries
from pushd.stores.sqlite.statements import Query
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


def spied(monkeypatch: pytest.MonkeyPatch, name: str, module: ModuleType = receipt_pivots) -> list[Query]:
    """What this function makes from now on."""
    made: list[Query] = []
    function = getattr(module, name)

    def spy(*arguments: Any) -> Query:
        made.append(function(*arguments))
        return made[-1]

    monkeypatch.setattr(module, name, spy)
    return made


@pytest.mark.parametrize("sampled", [1_000, 20, 1])
async def test_pages_from_a_pivot_are_those_from_the_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampled: int
) -> None:
    """However good the guess is: with 1 record looked at, and users of one record and of dozens, it is bad or none."""
    node = Node(tmp_path)
    await node.start()
    try:
        await fill(node)
        heavy = [receipt(f"h{notice}", 5, Outcome(1000 + notice), username="Ada") for notice in range(60)]
        late = [receipt("late", user_id, LATE, username="Ada") for user_id in (1, 3, 5)]
        named = [receipt("null", user_id, LATE, username="A\0da") for user_id in (20, 21)]
        await node.stores.records.write([], [*heavy, *late, *named])
        filters = [msgspec.structs.replace(where, username=name) for where in FILTERS for name in (None, "A", "d")]
        from_the_beginning = await pages(node, filters)
        monkeypatch.setattr(receipt_queries, "FAR_ROWS", 0)
        monkeypatch.setattr(receipt_queries, "WALKED_PER_SORTED", 10**9)
        monkeypatch.setattr(receipt_queries, "SORTED_ROWS", -1)
        monkeypatch.setattr(receipt_pivots, "COUNTED_ALWAYS", -(10**9))
        monkeypatch.setattr(receipt_pivots, "SAMPLED_RECORDS", sampled)
        monkeypatch.setattr(receipt_pivots, "RECORDS_PER_OWNER", 0)
        moments, users = spied(monkeypatch, "count_beside"), spied(monkeypatch, "user_pivot")
        assert await pages(node, filters) == from_the_beginning
        assert len(moments) > 20
        assert sum("receipt.received_at " in moment.statement for moment in moments) > 10
        assert len(users) > 50
    finally:
        await node.stop()


async def test_what_was_received_earlier_is_counted_together_with_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a page by received_at with a name and a time, unless it was counted for a page nearby."""
    node = Node(tmp_path)
    await node.start()

    async def found(where: ReceiptFilter, is_descending: bool) -> tuple[Any, ...]:
        records, by_moment = node.stores.records, ReceiptSort.RECEIVED_AT
        await records.receive_stats(ReceiptFilter(user_id=1))  # what was counted for another list is forgotten
        parts = (Slice(offset, 13, is_descending) for offset in (29, 0, 13, 60, 31))
        rows = [await records.receive_records(where, by_moment, part) for part in parts]
        return *rows, await records.receive_stats(where)

    try:
        await fill(node)
        every = {"since_ms": 1010, "before_ms": 1090}
        wanted = [ReceiptFilter(username="a", **every), ReceiptFilter(username="d", is_received=True, **every),
                  ReceiptFilter(username="a", is_received=False, **every), ReceiptFilter(username="%", before_ms=1020),
                  ReceiptFilter(username="d", is_online=True, since_ms=1050)]  # fmt: skip
        lists = [(where, is_descending) for where in wanted for is_descending in (True, False)]
        before = [await found(*each) for each in lists]
        monkeypatch.setattr(receipt_queries, "FAR_ROWS", 1)
        monkeypatch.setattr(receipt_queries, "WALKED_PER_SORTED", 10**9)
        monkeypatch.setattr(receipt_pivots, "COUNTED_ALWAYS", -(10**9))
        together = spied(monkeypatch, "stats_within", receipt_queries)
        again = spied(monkeypatch, "count_beside")
        assert [await found(*each) for each in lists] == before
        assert sum("receipt.received_at < " in query.statement for query in together) >= 3
        assert again
        assert any(rows for *rows, _ in before)
    finally:
        await node.stop()


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
    """With the limits as they are: of a list so long that pages in its midst are found from pivots."""
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
            whole = await node.stores.records.receive_records(where, sort, Slice(0, 10_000, is_descending=False))
            assert len(whole) == (await node.stores.records.receive_stats(where)).total_users > 2_500
            assert whole == sorted(whole, key=ORDERS[sort])
            for offset in range(0, len(whole) + 500, 487):
                forwards = await node.stores.records.receive_records(where, sort, Slice(offset, 20, False))
                backwards = await node.stores.records.receive_records(where, sort, Slice(offset, 20, True))
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
