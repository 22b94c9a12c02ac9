"""The columns say what the table has, whatever was written meanwhile."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from pushd.errors import StoreError
from pushd.model import Channel, DeliveryStatus, Mark, Outcome, Receipt
from pushd.records import Part, ReceiptFilter, ReceiptSort
from pushd.stores.sqlite import receipt_columns
from pushd.stores.sqlite.receipt_columns import ReceiptColumns
from tests.contract.conftest import Node
from tests.contract.test_receipt_queries import counted, fill, matches
from tests.samples import RECEIPTS, push_record, receipt

WHOLE = Part(0, 10_000)
NAMED = (ReceiptFilter(username=""), ReceiptFilter(username="a"), ReceiptFilter(username="USER", is_read=True))
SENT = Outcome(1000, status=DeliveryStatus.PENDING)
GOT = Outcome(1000, received_ms=1500, status=DeliveryStatus.DELIVERED)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    node = Node(tmp_path)
    await node.start()
    yield node
    await node.stop()


def loaded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many records each load of everything found, from now on."""
    loads: list[int] = []
    load = ReceiptColumns._load

    def spy(columns: ReceiptColumns, connection: sqlite3.Connection) -> bool:
        is_kept = load(columns, connection)
        loads.append(sum(map(len, columns._notices)))
        return is_kept

    monkeypatch.setattr(ReceiptColumns, "_load", spy)
    return loads


async def check(node: Node) -> int:
    """Lists by name, which are from the columns, against the table; how many records they have."""
    rows = node.rows(RECEIPTS)
    found = 0
    for where in NAMED:
        wanted = [row for row in rows if matches(row, where)]
        assert await node.stores.records.receive_stats(where) == counted(wanted)
        for sort in (ReceiptSort.RECEIVED_AT, ReceiptSort.USERNAME):
            page = await node.stores.records.receive_records(where, sort, WHOLE)
            assert {(row.message_id, row.user_id, row.received_ms, row.username) for row in page} == {
                (row["message_id"], row["user_id"], row["received_at"] or 0, row["username"]) for row in wanted
            }
            assert len(page) == len(wanted)
        found += len(wanted)
    return found


async def test_what_is_written_is_read_again(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    await fill(node)
    await check(node)
    loads = loaded(monkeypatch)
    records = node.stores.records
    assert await records.mark(3, ["m1", "m2", "none"], Mark.CONFIRMED, 9000) == ["m1", "m2"]
    await check(node)
    await records.write([], [receipt("m1", 4, GOT, username="anew"), receipt("m1", 99, GOT), receipt("new", 4, SENT)])
    await check(node)
    await records.write([], [receipt("m3", user_id, GOT, username="one") for user_id in range(1, 60)])
    await check(node)
    assert await records.delete("m4")
    await check(node)
    assert await records.purge(1011, 20) == 20
    await check(node)
    await records.write([push_record("late", expires_ms=50)], [receipt("late", user_id, SENT) for user_id in range(5)])
    await check(node)
    assert await records.expire(0, 100, 1000) == 5
    assert await check(node) > 100
    assert loads == []  # only what was stale


async def test_an_answer_has_what_was_written_before_it_was_asked_for(node: Node) -> None:
    """Several write and read at once; whoever has written finds it."""
    records = node.stores.records
    drawn = random.Random(1)

    async def write_and_find(user_id: int) -> None:
        name = f"user{user_id}x"
        where = ReceiptFilter(username=name)
        mine: set[str] = set()
        for _ in range(25):
            message_ids = [f"m{drawn.randrange(40)}" for _ in range(3)]
            written = [
                receipt(message_id, user_id, SENT, username=f"user{user_id}x") for message_id in set(message_ids)
            ]
            await records.write([], written)
            mine.update(message_ids)
            assert (await records.receive_stats(where)).total_users == len(mine)
            await records.mark(user_id, message_ids, Mark.READ, 2000)
            unread = await records.receive_records(
                ReceiptFilter(username=name, is_read=False), ReceiptSort.USER_ID, WHOLE
            )
            assert unread == []

    await asyncio.gather(*(write_and_find(user_id) for user_id in range(1, 9)))
    await check(node)


async def test_what_is_not_asked_for_long_is_not_remembered_one_by_one(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(node)
    await check(node)
    monkeypatch.setattr(receipt_columns, "MOST_NOTED", 5)
    monkeypatch.setattr(receipt_columns, "MOST_STALE", 6)
    loads = loaded(monkeypatch)
    records = node.stores.records
    for user_id in range(1, 12):
        await records.mark(user_id, ["m1"], Mark.READ, 9000)
    await check(node)
    assert loads == []
    for notice in range(9):
        await records.mark(1, [f"m{notice}"], Mark.CONFIRMED, 9000)
    await check(node)
    assert loads == [len(node.rows(RECEIPTS))]


async def test_parts_of_a_notice_are_put_together(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receipt_columns, "LOADED_AT_ONCE", 7)
    await fill(node)
    assert await check(node) > 100
    await node.stop()
    loads = loaded(monkeypatch)
    await node.start()
    assert await check(node) > 100
    assert loads == [len(node.rows(RECEIPTS))]


async def test_too_many_records_are_sqlite_s(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    await fill(node)
    await check(node)
    weight = len(node.rows(RECEIPTS)) + 12 * receipt_columns.RECORDS_PER_NOTICE
    monkeypatch.setattr(receipt_columns, "MOST_RECORDS", weight)
    await check(node)
    loads = loaded(monkeypatch)
    await node.stores.records.write([], [receipt("m1", 77, GOT)])
    await check(node)
    assert set(loads) == {0}
    await node.stores.records.delete("m1")
    await check(node)
    assert loads[-1] == len(node.rows(RECEIPTS))


async def test_names_that_json_and_sqlite_see_differently(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receipt_columns, "LOADED_AT_ONCE", 2)
    names = ['a"b', "a\\", "A\u00c4\u00e4", "\u6f22", "a\nb", " ", "x" * 300]
    receipts = [receipt("m1", user_id, SENT, username=name) for user_id, name in enumerate(names, 1)]
    await node.stores.records.write([], receipts)
    for part in ("a", "A", '"', "\\", "\u00c4", "\u00e4", "\n", " ", "xx", "%", "_"):
        where = ReceiptFilter(username=part)
        wanted = [row for row in node.rows(RECEIPTS) if matches(row, where)]
        assert await node.stores.records.receive_stats(where) == counted(wanted)
    cut = [receipt("m2", user_id, SENT, username=f"Zo\0{user_id}") for user_id in range(20, 30)]
    await node.stores.records.write([], cut)
    found = await node.stores.records.receive_records(ReceiptFilter(username="zo"), ReceiptSort.USERNAME, WHOLE)
    assert {row.user_id for row in found} == set(range(20, 30))


async def test_every_state_has_a_number(node: Node) -> None:
    """And the lists of any one of them have only it."""
    receipts: list[Receipt] = []
    for status in DeliveryStatus:
        for channel in Channel:
            for is_online in (True, False):
                outcome = Outcome(1000, is_online, 1500 if status is DeliveryStatus.DELIVERED else 0, status, channel)
                receipts += [receipt(f"m{len(receipts)}", user_id, outcome) for user_id in (1, 2, 3)]
    await node.stores.records.write([], receipts)
    for user_id, mark in ((2, Mark.READ), (3, Mark.CONFIRMED)):
        await node.stores.records.mark(user_id, [receipt.message_id for receipt in receipts], mark, 2000)
    rows = node.rows(RECEIPTS)
    wanted: list[dict[str, Any]] = [{name: value} for name in ("is_online", "is_received", "is_read", "is_confirmed")
                                    for value in (True, False)]  # fmt: skip
    wanted += [{"delivery_status": status, "push_channel": channel} for status in DeliveryStatus for channel in Channel]
    for asked in wanted:
        where = ReceiptFilter(username="user", **asked)
        matching = [row for row in rows if matches(row, where)]
        assert await node.stores.records.receive_stats(where) == counted(matching)
        found = await node.stores.records.receive_records(where, ReceiptSort.CREATED_AT, WHOLE)
        assert {(row.message_id, row.user_id) for row in found} == {
            (row["message_id"], row["user_id"]) for row in matching
        }


async def test_a_load_that_fails_is_tried_again(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    await fill(node)
    await check(node)

    def fail(*_: object, **__: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as failing:
        failing.setattr(ReceiptColumns, "_read", fail)
        await node.stores.records.mark(1, ["m1"], Mark.READ, 9000)
        for _ in range(2):
            with pytest.raises(StoreError, match=r"^records: disk I/O error"):
                await node.stores.records.receive_stats(ReceiptFilter(username="a"))
    loads = loaded(monkeypatch)
    await check(node)
    assert len(loads) == 1


@pytest.mark.parametrize("reading", ["_load", "_refresh"])
async def test_an_answer_does_not_wait_long_for_another(
    node: Node, monkeypatch: pytest.MonkeyPatch, reading: str
) -> None:
    """SQLite gives it, while the first load or a refresh is held up."""
    await fill(node)
    await check(node)
    monkeypatch.setattr(receipt_columns, "PATIENCE_S", 0.05)
    is_reading, may_go_on = threading.Event(), threading.Event()
    read = getattr(ReceiptColumns, reading)

    def held(columns: ReceiptColumns, *arguments: Any) -> bool:
        is_reading.set()
        may_go_on.wait(10)
        is_kept: bool = read(columns, *arguments)
        return is_kept

    monkeypatch.setattr(ReceiptColumns, reading, held)
    if reading == "_load":
        await node.stop()
        await node.start()
    else:
        await node.stores.records.mark(1, ["m1"], Mark.READ, 9000)
    waiting = asyncio.create_task(node.stores.records.receive_stats(ReceiptFilter(username="a")))
    assert await asyncio.to_thread(is_reading.wait, 10)
    await check(node)
    may_go_on.set()
    assert (await waiting).total_users > 0


async def test_the_end_does_not_wait_for_a_load(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    await fill(node)
    await node.stop()
    monkeypatch.setattr(receipt_columns, "LOADED_AT_ONCE", 1)
    reads: list[int] = []
    read = ReceiptColumns._read
    is_loading = threading.Event()

    def counting(columns: ReceiptColumns, *arguments: Any, **parameters: Any) -> Any:
        reads.append(1)
        is_loading.set()
        if len(reads) == 3:
            columns.stop()
        return read(columns, *arguments, **parameters)

    monkeypatch.setattr(ReceiptColumns, "_read", counting)
    await node.start()
    await asyncio.to_thread(is_loading.wait, 10)
    await node.stop()
    assert len(reads) <= 3
    monkeypatch.undo()
    await node.start()
    assert await check(node) > 100
