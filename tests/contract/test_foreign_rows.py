"""What other programs write into pushd.db, SQLite's columns taking anything: the good rows beside it are read."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from pushd.model import Mark, Notice, Target, TargetKind
from pushd.records import Part, PushFilter, PushSort, ReceiptFilter, ReceiptSort
from pushd.stores.sqlite.engine.schema import LADDER
from tests.samples import DELIVERED, PENDING, item, push_record, receipt

from .conftest import Node

ODD: list[Any] = [
    None, "", b"", b"\xff\xfe\x00", "a\x00b", '[1,"a",null,1e400,99999999999999999999]', -1, 2**63 - 1, 2**63 - 1,
    -(2**63), 1e308, float("inf"), "9" * 400, "[[[", "\U0001f600" * 300,
]  # fmt: skip
NO_UTF8 = "CAST(x'fffe61' AS TEXT)"
TABLES = (
    "push_records",
    "admin_user_receive_records",
    "admin_user_online_status",
    "mailbox",
    "mailbox_notice",
    "journal",
    "receive_counts",
)
GOOD = len(ODD) + 1  # which no odd value goes to
WHOLE = Part(0, 100)


def columns() -> Iterator[tuple[str, str]]:
    with closing(sqlite3.connect(":memory:")) as made:
        for statements in LADDER:
            for statement in statements:
                made.execute(statement)
        for table in TABLES:
            yield from ((table, row[1]) for row in made.execute(f"PRAGMA table_info({table})"))


async def fill(node: Node) -> None:
    names = [f"m{number}" for number in range(GOOD + 1)]
    await node.stores.records.write(
        [push_record(name) for name in names],
        [receipt(name, user_id, DELIVERED if user_id == 1 else PENDING) for name in names for user_id in (1, 2)],
    )
    await node.stores.mailbox.save([(item(name), [1, 2]) for name in names])
    await node.stores.journal.append(
        [
            Notice(
                seq=number + 1,
                message_id=name,
                content="c",
                target=Target(TargetKind.CUSTOM, user_ids=[1]),
                accepted_ms=node.clock(),
            )
            for number, name in enumerate(names)
        ]
    )


def spoil(node: Node, table: str, column: str) -> None:
    """Each odd value into a row of its own, where SQLite takes it."""
    with closing(sqlite3.connect(node.directory / "data" / "pushd.db", isolation_level=None)) as connection:
        key = {"mailbox": "position", "receive_counts": "message_id", "journal": "seq"}.get(table, "rowid")
        keys = [row[0] for row in connection.execute(f"SELECT DISTINCT {key} FROM {table} ORDER BY {key}")]
        texts = [*("?" for _ in ODD), NO_UTF8]
        for text, value, place in zip(texts, [*ODD, None], keys[:-2], strict=False):
            values = (value,) if text == "?" else ()
            try:
                connection.execute(f"UPDATE {table} SET {column} = {text} WHERE {key} = ?", (*values, place))
            except (sqlite3.IntegrityError, sqlite3.OperationalError):  # it does not take it
                continue


@pytest.mark.parametrize(("table", "column"), list(columns()))
async def test_all_that_is_good_is_read(node: Node, table: str, column: str) -> None:
    await fill(node)
    spoil(node, table, column)
    await node.restart()
    records, mailbox, journal = node.stores.records, node.stores.mailbox, node.stores.journal
    name = f"m{GOOD}"
    for sort in PushSort:
        for is_descending in (True, False):
            found = await records.push_records(PushFilter(), sort, Part(0, 100, is_descending))
            assert len(found) == GOOD + 1
            assert name in {row.message_id for row in found}
    assert (await records.push_stats(PushFilter())).total_records == GOOD + 1
    for where in (ReceiptFilter(), ReceiptFilter(username="a"), ReceiptFilter(is_read=False), ReceiptFilter(user_id=1)):
        stats = await records.receive_stats(where)
        assert all(isinstance(count, int) for count in (stats.total_users, stats.online_users))
        for by in ReceiptSort:
            await records.receive_records(where, by, WHOLE)
    for user_id in (1, 2):
        summary = await records.user_summary(user_id)
        assert isinstance(summary.last_message_ms, int)
        await records.newest_receive_records([user_id], 10)
        waiting = (await mailbox.read([user_id]))[user_id]
        assert name in {waits.message_id for waits in waiting}
    await records.user_receipts(0, 2**62, 10)
    await records.unread_counts([1, 2])
    assert await records.receive_status(name) is not None
    for place in range(GOOD + 1):
        assert await records.received_by(f"m{place}") <= {1, 2} | set(ODD[6:10])
        assert set(await records.not_received_by(f"m{place}")) <= {1, 2} | set(ODD[6:10])
    assert await records.mark(1, [name], Mark.READ, node.clock()) == [name]
    await node.stores.presence.statuses([1, 2])
    assert name in {notice.message_id for notice in await journal.unsettled()}
    await journal.since(1)
    assert GOOD <= await journal.last_seq() < 2**62


async def test_the_last_of_all_numbers_is_not_counted_on_from(node: Node) -> None:
    await fill(node)
    with closing(sqlite3.connect(node.directory / "data" / "pushd.db", isolation_level=None)) as connection:
        connection.execute("INSERT INTO journal (seq, accepted_ms, body) VALUES (?, 1, '')", (2**63 - 1,))
        connection.execute(
            "INSERT INTO set_aside (id, kind, at_ms, cause, size, body) VALUES (?, 'x', 1, '', 1, x'00')", (2**63 - 1,)
        )
    await node.restart()
    assert await node.stores.journal.last_seq() == GOOD + 1
    await node.stores.set_aside.keep("records", "ValueError", b"body")
    await node.stores.set_aside.keep("records", "ValueError", b"body")
    assert await node.stores.set_aside.counts() == {"x": 1, "records": 2}
