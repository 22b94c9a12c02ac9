"""Whatever stands in pushd.db, by other programs or a bad disk: the stores open, and what is good beside it is read."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pushd.model import Mark
from pushd.records import Part, PushFilter, PushSort, ReceiptFilter, ReceiptSort
from pushd.stores.sqlite.engine.schema import tables
from pushd.user_ids import INTEGERS
from tests.samples import DELIVERED, OFFLINE, at, item_of, receipt

from .conftest import START_MS, Node

ODD: list[Any] = [
    None, "", b"", b"\xff\xfe\x00", "a\x00b", '[1,"a",null,1e400,99999999999999999999]', -1, 2**63 - 1, 2**40, 2**32,
    -(2**63), 1e308, float("inf"), "9" * 400, "[[[", "\U0001f600" * 300,
]  # fmt: skip
NO_UTF8 = "CAST(x'fffe61' AS TEXT)"
NOTICES = len(ODD) + 4
GOOD = f"m{NOTICES - 1}"  # which no odd value goes to, nor to its recipients
OTHERS = range(11, 19)
HERE, AWAY = 1, 2
WHOLE = Part(0, 1000)
MEMORY_BYTES = 64 * 1024 * 1024


def database(node: Node) -> sqlite3.Connection:
    return sqlite3.connect(node.directory / "data" / "pushd.db", isolation_level=None)


def columns() -> Iterator[tuple[str, str]]:
    with closing(sqlite3.connect(":memory:")) as made:
        for statement in tables(INTEGERS):
            made.execute(statement)
        names = [row[0] for row in made.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in names:
            if not table.startswith("sqlite_"):
                yield from ((table, row[1]) for row in made.execute(f"PRAGMA table_info({table})"))


def keys(connection: sqlite3.Connection, table: str) -> list[dict[str, Any]]:
    """What names each row, in order."""
    names = [row[1] for row in connection.execute(f"PRAGMA table_info({table})") if row[5]]
    found = connection.execute(f"SELECT {', '.join(names)} FROM {table} ORDER BY {', '.join(names)}")
    return [dict(zip(names, row, strict=True)) for row in found]


def update(connection: sqlite3.Connection, table: str, key: dict[str, Any], column: str, value: Any) -> None:
    """Where SQLite takes it."""
    text, values = (NO_UTF8, ()) if value is NO_UTF8 else ("?", (value,))
    where = " AND ".join(f"{name} = ?" for name in key)
    try:
        connection.execute(f"UPDATE {table} SET {column} = {text} WHERE {where}", (*values, *key.values()))
    except (sqlite3.IntegrityError, sqlite3.OperationalError):
        return


async def fill(node: Node) -> None:
    """Every notice, recipient, connection and label has rows of its own; those of the good ones come last."""
    for number in range(NOTICES):
        name = f"m{number}"
        (accepted,) = await node.accept(
            name, accepted_ms=START_MS + number, type=f"type{number}", expires_ms=START_MS + 10**9
        )
        users = [*OTHERS, 100 + number] if name != GOOD else [*OTHERS, HERE, AWAY]
        receipts = [
            receipt(
                name,
                user_id,
                at(accepted.accepted_ms, OFFLINE if user_id == AWAY else DELIVERED),
                connection_id=f"c{user_id}",
            )
            for user_id in users
        ]
        await node.stores.records.write([node.record(name, "success")], receipts)
        await node.stores.mailbox.save([(item_of(accepted), users)])
        await node.stores.records.mark(100 + number, [name], Mark.READ, node.clock())
        await node.stores.outbox.append("nobody", [b"body"])
        await node.stores.set_aside.keep("records", "ValueError", b"body")


async def ask_everything(node: Node) -> None:
    """Whatever some rows say, all questions have answers."""
    records, mailbox, journal = node.stores.records, node.stores.mailbox, node.stores.journal
    names = [f"m{number}" for number in range(NOTICES)]
    users = [HERE, AWAY, *OTHERS, *range(100, 100 + NOTICES), 2**53]
    for is_descending in (True, False):
        for sort in PushSort:
            await records.push_records(PushFilter(), sort, Part(0, 100, is_descending))
        for where in (
            ReceiptFilter(), ReceiptFilter(username="a"), ReceiptFilter(is_read=False), ReceiptFilter(user_id=HERE),
            ReceiptFilter(message_id=GOOD), ReceiptFilter(since_ms=START_MS + 3, is_received=True),
        ):  # fmt: skip
            for by in ReceiptSort:
                await records.receive_records(where, by, Part(0, 100, is_descending))
            await records.receive_stats(where)
    await records.push_records(PushFilter(keyword="l"), PushSort.PUSH_TIME, WHOLE)
    await records.push_stats(PushFilter())
    await records.push_stats(PushFilter(message_type="type3"))
    for name in names:
        await records.push_record(name)
        await records.receive_status(name)
        await records.received_by(name)
        await records.not_received_by(name)
    for user_id in users:
        await records.user_summary(user_id)
    await records.newest_receive_records(users, 10)
    await records.user_receipts(0, 2**62, 10)
    await records.unread_counts(users)
    await mailbox.read(users)
    await journal.unsettled()
    await journal.spoiled()
    await journal.since(1)
    await node.stores.presence.statuses(users)
    await node.stores.directory.users(users)
    await node.stores.outbox.oldest("nobody", 100)
    await node.stores.set_aside.counts()


async def work_goes_on(node: Node) -> None:
    """Of what comes from now on, everything is true; also in the next process."""
    records, mailbox, now_ms = node.stores.records, node.stores.mailbox, node.clock()
    node.follow(await node.stores.journal.last_seq())
    (accepted,) = await node.accept("new", accepted_ms=now_ms, type="new type")
    outcome = at(now_ms, OFFLINE)
    users = [HERE, 7, *range(200, 240)]
    await records.write([node.record("new", "success")], [receipt("new", user_id, outcome) for user_id in users])
    await mailbox.save([(item_of(accepted), users)])
    assert await records.mark(7, ["new"], Mark.READ, now_ms) == ["new"]
    await node.restart()
    records, mailbox = node.stores.records, node.stores.mailbox
    rows = await records.receive_records(ReceiptFilter(message_id="new"), ReceiptSort.USER_ID, WHOLE)
    assert [(row.user_id, row.is_read, row.username) for row in rows] == [
        (user_id, user_id == 7, f"user{user_id}") for user_id in sorted(users, reverse=True)
    ]
    assert (await records.unread_counts([200, 7])).get(200) == 1
    assert "new" in {item.message_id for item in (await mailbox.read([HERE]))[HERE]}
    row = await records.push_record("new")
    assert row is not None
    assert (row.message_type, row.total_count, row.status) == ("new type", len(users), "success")
    assert accepted in await node.stores.journal.unsettled()


async def is_good_there(node: Node) -> None:
    """The notice that is in rows that nothing happened to."""
    records = node.stores.records
    row = await records.push_record(GOOD)
    assert row is not None
    assert (row.message_type, row.status, row.total_count) == (f"type{NOTICES - 1}", "success", len(OTHERS) + 2)
    listed = await records.push_records(PushFilter(), PushSort.PUSH_TIME, WHOLE)
    assert GOOD in {row.message_id for row in listed}
    rows = {
        row.user_id: row
        for row in await records.receive_records(ReceiptFilter(message_id=GOOD), ReceiptSort.CREATED_AT, WHOLE)
    }
    assert {HERE, AWAY} <= rows.keys()
    assert (rows[HERE].is_received, rows[HERE].username, rows[HERE].connection_id) == (True, "user1", "c1")
    assert (rows[AWAY].is_received, rows[AWAY].username, rows[AWAY].delivery_status) == (False, "user2", "offline")
    assert HERE in await records.received_by(GOOD)
    assert AWAY in await records.not_received_by(GOOD)
    assert await records.unread_counts([HERE, AWAY]) == {HERE: 1, AWAY: 1}
    for user_id in (HERE, AWAY):
        assert [item.message_id for item in (await node.stores.mailbox.read([user_id]))[user_id]] == [GOOD]
    assert await records.mark(HERE, [GOOD], Mark.READ, node.clock()) == [GOOD]


@pytest.mark.parametrize(("table", "column"), list(columns()))
async def test_all_that_is_good_is_read(node: Node, table: str, column: str) -> None:
    """Each odd value stands in a row of its own."""
    await fill(node)
    await node.stop()
    with closing(database(node)) as connection:
        for key, value in zip(keys(connection, table)[:-2], [*ODD, NO_UTF8], strict=False):
            update(connection, table, key, column, value)
    await node.start()
    await ask_everything(node)
    assert GOOD in {notice.message_id for notice in await node.stores.journal.unsettled()}
    assert NOTICES <= await node.stores.journal.last_seq() < 2**62
    if table != "block":  # each of which has something of many
        await is_good_there(node)
    await work_goes_on(node)


BLOBS = [(table, "body") for table in ("block", "change", "notice")]


def damage(connection: sqlite3.Connection, dice: random.Random) -> None:
    """One thing that a disk, a person or another program does to a row."""
    table, column = dice.choice([*BLOBS, *BLOBS, *columns()])
    rows = keys(connection, table)
    if not rows:
        return
    key = dice.choice([*rows, *[rows[-1]] * 8])
    where = " AND ".join(f"{name} = ?" for name in key)
    match dice.randrange(6):
        case 0:
            connection.execute(f"DELETE FROM {table} WHERE {where}", tuple(key.values()))
        case 1:
            update(connection, table, key, column, dice.choice(ODD))
        case 2:  # another row's value
            other = dice.choice(rows)
            found = connection.execute(f"SELECT {column} FROM {table} WHERE {where}", tuple(other.values())).fetchone()
            update(connection, table, key, column, found[0])
        case 3:
            update(connection, table, key, column, dice.randbytes(dice.choice([1, 8, 40, 5000])))
        case 4:
            update(connection, table, key, column, dice.choice([1, dice.randrange(100), dice.randrange(2**33)]))
        case 5:
            found = connection.execute(f"SELECT {column} FROM {table} WHERE {where}", tuple(key.values())).fetchone()
            if isinstance(found[0], bytes) and found[0]:
                update(connection, table, key, column, bent(found[0], dice))


def bent(body: bytes, dice: random.Random) -> bytes:
    """Some bits flipped, or something missing, or too much."""
    changed = bytearray(body)
    match dice.randrange(3):
        case 0:
            for _ in range(dice.choice([1, 1, 5])):
                changed[dice.randrange(len(changed))] ^= 1 << dice.randrange(8)
        case 1:
            del changed[dice.randrange(len(changed)) :]
        case 2:
            changed += dice.randbytes(dice.randrange(1, 100))
    return bytes(changed)


@pytest.mark.parametrize("seed", range(50))
async def test_whatever_happens_to_rows(node: Node, seed: int) -> None:
    dice = random.Random(seed)
    await fill(node)
    await node.stop()
    with closing(database(node)) as connection:
        for _ in range(dice.choice([1, 3, 20])):
            damage(connection, dice)
    await node.start()
    await ask_everything(node)
    await work_goes_on(node)
    await ask_everything(node)


@pytest.mark.parametrize("change", ["DELETE FROM user_number", "UPDATE user_number SET id = 1.5"])
async def test_the_last_number_given_out_is_not_given_out_again(node: Node, change: str) -> None:
    """What the blocks say of other users is as it was."""
    await fill(node)
    await node.stop()
    with closing(database(node)) as connection:
        connection.execute(f"{change} WHERE number = (SELECT max(number) FROM user_number)")
    await node.start()
    records = node.stores.records
    listed = await records.receive_records(ReceiptFilter(message_id=GOOD), ReceiptSort.CREATED_AT, WHOLE)
    assert {row.user_id for row in listed if row.user_id > 0} == {*OTHERS, HERE}
    assert await records.received_by(GOOD) == {*OTHERS, HERE}
    await work_goes_on(node)
    assert (await node.stores.records.receive_stats(ReceiptFilter(message_id=GOOD))).total_users == len(OTHERS) + 2


async def test_the_last_of_all_numbers_is_not_counted_on_from(node: Node) -> None:
    await fill(node)
    await node.stop()
    with closing(database(node)) as connection:
        connection.execute("INSERT INTO notice (seq, accepted_ms, body) VALUES (?, 1, x'')", (2**63 - 1,))
        for table, column in (("change", "flush"), ("block", "key")):
            connection.execute(f"INSERT INTO {table} ({column}, body) VALUES (?, x'00')", (2**63 - 1,))
        connection.execute("INSERT INTO user_number (number, id) VALUES (?, 5)", (2**63 - 1,))
        connection.execute(
            "INSERT INTO set_aside (id, kind, at_ms, cause, size, body) VALUES (?, 'x', 1, '', 1, x'00')", (2**63 - 1,)
        )
    await node.start()
    assert await node.stores.journal.last_seq() == NOTICES
    await node.stores.set_aside.keep("records", "ValueError", b"body")
    await node.stores.set_aside.keep("records", "ValueError", b"body")
    assert await node.stores.set_aside.counts() == {"x": 1, "records": NOTICES + 2}
    await is_good_there(node)
    await work_goes_on(node)


async def test_a_ledger_that_is_lost_altogether(node: Node, tmp_path: Path) -> None:
    """The notices are still to be delivered: they stand in rows of their own."""
    await fill(node)
    await node.stop()
    with closing(database(node)) as connection:
        for table in ("block", "change", "user_number", "identity", "client", "label"):
            connection.execute(f"DELETE FROM {table}")
    await node.start()
    await ask_everything(node)
    assert len(await node.stores.journal.unsettled()) == NOTICES
    await work_goes_on(node)
