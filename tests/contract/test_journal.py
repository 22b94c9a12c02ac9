"""The contract of ports.Journal."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing

import pytest

from pushd.errors import StoreError
from pushd.model import Priority, PushRecord, Target, TargetKind
from pushd.ports import Stores
from pushd.stores.sqlite import journal
from pushd.stores.sqlite.journal import SqliteJournal
from tests.ledger_files import opened_file
from tests.samples import PENDING, at, item, notice, receipt

from .conftest import START_MS, Node


async def test_a_new_journal_is_empty(stores: Stores) -> None:
    assert await stores.journal.last_seq() == 0
    assert await stores.journal.unsettled() == []
    assert await stores.journal.since(0) == []
    assert await stores.journal.purge(2**50, 10) == 0


async def test_a_notice_comes_back_as_it_was_after_a_restart(node: Node) -> None:
    full = notice(
        7,
        content='quo"te \\ 消息 \0 \U0001f600',
        target=Target(TargetKind.CUSTOM, user_ids=(1, 2**53), exclude_ids=(3,)),
        type="order_paid",
        data={"nested": [1, 2.5, None, True, {"k": "值\0"}], "big": 2**62},
        priority=Priority.URGENT,
        need_confirm=True,
        expires_ms=5,
        idempotency_key="key",
        sender_id=9,
        sender_name="ops",
    )
    await node.stores.journal.append([full])
    await node.restart()
    assert await node.stores.journal.unsettled() == [full]
    assert await node.stores.journal.since(0) == [full]


async def test_unsettled_is_in_order_and_without_the_settled(stores: Stores) -> None:
    await stores.journal.append([notice(seq) for seq in (3, 1, 4, 2)])
    await stores.journal.settle([2, 3, 99])
    await stores.journal.settle([2])
    assert [kept.seq for kept in await stores.journal.unsettled()] == [1, 4]


async def test_reads_more_than_one_page(stores: Stores) -> None:
    notices = [notice(seq, accepted_ms=seq) for seq in range(1, 1301)]
    await stores.journal.append(notices)
    assert await stores.journal.unsettled() == notices
    assert await stores.journal.since(301) == notices[300:]
    await stores.journal.settle(range(1, 1301))
    assert await stores.journal.unsettled() == []
    assert await stores.journal.since(301) == notices[300:]


async def test_since_goes_by_time_not_by_seq(stores: Stores) -> None:
    await stores.journal.append(
        [notice(1, accepted_ms=500), notice(2, accepted_ms=100), notice(3, accepted_ms=400), notice(4, accepted_ms=501)]
    )
    await stores.journal.settle([1])
    assert [kept.seq for kept in await stores.journal.since(400)] == [1, 3, 4]


async def test_concurrent_appends_are_all_kept(stores: Stores) -> None:
    await asyncio.gather(*(stores.journal.append([notice(2 * k), notice(2 * k + 1)]) for k in range(1, 101)))
    assert [kept.seq for kept in await stores.journal.unsettled()] == list(range(2, 202))


async def test_appending_nothing_is_nothing(stores: Stores) -> None:
    await stores.journal.append([])
    assert await stores.journal.last_seq() == 0


async def test_the_same_notice_twice_is_once(stores: Stores) -> None:
    await stores.journal.append([notice(1)])
    await stores.journal.settle([1])
    await stores.journal.append([notice(1), notice(2)])
    assert await stores.journal.unsettled() == [notice(2)]


async def test_another_notice_under_a_used_seq_is_refused_and_harms_no_other(stores: Stores) -> None:
    await stores.journal.append([notice(1)])
    outcomes = await asyncio.gather(
        stores.journal.append([notice(2)]),
        stores.journal.append([notice(3), notice(1, content="another")]),
        stores.journal.append([notice(4)]),
        return_exceptions=True,
    )
    assert isinstance(outcomes[1], StoreError)
    assert (outcomes[0], outcomes[2]) == (None, None)
    assert [kept.seq for kept in await stores.journal.unsettled()] == [1, 2, 4]


async def test_last_seq_outlives_the_notices(node: Node) -> None:
    await node.stores.journal.append([notice(1), notice(50), notice(20)])
    await node.stores.journal.settle([1, 20, 50])
    assert await node.stores.journal.purge(2**50, 10) == 3
    await node.restart()
    assert await node.stores.journal.last_seq() == 50
    assert await node.stores.journal.since(0) == []


async def test_purge_takes_settled_old_ones_up_to_the_limit(stores: Stores) -> None:
    await stores.journal.append([notice(seq, accepted_ms=seq) for seq in range(1, 7)])
    await stores.journal.settle([1, 2, 3, 5])
    assert await stores.journal.purge(5, 2) == 2
    assert await stores.journal.purge(5, 10) == 1
    assert [kept.seq for kept in await stores.journal.since(0)] == [4, 5, 6]


async def test_purge_crosses_chunks(stores: Stores) -> None:
    await stores.journal.append([notice(seq) for seq in range(1, 1302)])
    await stores.journal.settle(range(1, 1302))
    assert await stores.journal.purge(2000, 1200) == 1200
    assert await stores.journal.purge(2000, 1200) == 101


@pytest.mark.parametrize("limit", [0, 1])
async def test_purge_respects_small_limits(stores: Stores, limit: int) -> None:
    await stores.journal.append([notice(1), notice(2)])
    await stores.journal.settle([1, 2])
    assert await stores.journal.purge(2000, limit) == limit


# ---- rows that cannot be decoded

SPOILED = {
    "no JSON": b"nonsense",
    "half": b'{"seq":2,"message_id":"m2"',
    "another shape": b'{"seq":2}',
    "no notice": b"[1]",
    "two": b'{"seq":2},{"seq":3}',
    "no UTF-8": b'{"seq":2,"message_id":"\xff","content":"x","target":{"kind":"all"},"accepted_ms":1000}',
    "the seq of another": b'{"seq":4,"message_id":"m2","content":"x","target":{"kind":"all"},"accepted_ms":1000}',
    "an unknown target": b'{"seq":2,"message_id":"m2","content":"x","target":{"kind":"moon"},"accepted_ms":1000}',
    "nothing": b"",
    "too deep": b"[" * 100_000,
}


def spoil(node: Node, seq: int, body: bytes, kind: str = "TEXT") -> None:
    """What a disk, a person or a later version may leave."""
    with closing(sqlite3.connect(node.directory / "data" / "pushd.db")) as connection, connection:
        connection.execute(f"UPDATE notice SET body = CAST(? AS {kind}) WHERE seq = ?", (body, seq))


@pytest.mark.parametrize("body", SPOILED.values(), ids=SPOILED)
@pytest.mark.parametrize("kind", ["TEXT", "BLOB"])
async def test_a_row_that_cannot_be_decoded_costs_one_row(node: Node, body: bytes, kind: str) -> None:
    good = [notice(seq) for seq in (1, 3, 4)]
    await node.stores.journal.append([*good, notice(2)])
    spoil(node, 2, body, kind)
    await node.restart()
    assert await node.stores.journal.unsettled() == good
    ((seq, kept, why),) = await node.stores.journal.spoiled()
    assert (seq, kept) == (2, body)
    assert why
    assert await node.stores.journal.since(0) == good
    await node.stores.journal.settle([2])
    assert await node.stores.journal.unsettled() == good
    assert await node.stores.journal.spoiled() == []


async def test_pages_with_bad_rows_are_read_to_the_end(node: Node) -> None:
    await node.stores.journal.append([notice(seq) for seq in range(1, 12)])
    for seq, body in ((3, b"[]"), (4, b'{"seq":1}'), (5, b"x"), (6, b"x"), (11, b"x")):
        spoil(node, seq, body)
    await node.stop()
    async with opened_file(node.directory / "data" / "pushd.db") as file:
        by_threes = SqliteJournal(file, page_rows=3)
        assert [one.seq for one in await by_threes.unsettled()] == [1, 2, 7, 8, 9, 10]
        assert [seq for seq, _, _ in await by_threes.spoiled()] == [3, 4, 5, 6, 11]


# ---- ids that are used again, and what keeps a row


async def test_a_repeated_id_is_a_notice_of_its_own_for_the_journal(node: Node) -> None:
    """Also within one append, and within one commit."""
    first, again, twice = notice(1), notice(2, message_id="m1", content="again"), notice(3, message_id="m1")
    await node.stores.journal.append([first])
    await node.stores.journal.append([again, notice(4)])
    await asyncio.gather(node.stores.journal.append([twice]), node.stores.journal.append([notice(5, message_id="m4")]))
    same = [notice(6, message_id="x"), notice(7, message_id="x")]
    await node.stores.journal.append(same)
    expected = [first, again, twice, notice(4), notice(5, message_id="m4"), *same]
    for _ in range(2):
        assert await node.stores.journal.unsettled() == sorted(expected, key=lambda one: one.seq)
        await node.restart()
    ids = {row["seq"]: row["message_id"] for row in node.rows("notice")}
    assert ids == {1: "m1", 2: None, 3: None, 4: "m4", 5: None, 6: "x", 7: None}


async def test_what_comes_of_a_repeated_id_is_the_firsts_but_what_waits_says_the_newest(node: Node) -> None:
    now = START_MS
    first, again = notice(1, accepted_ms=now), notice(2, message_id="m1", content="again", accepted_ms=now)
    for one in (first, again):
        await node.stores.journal.append([one])
        await node.stores.records.write([PushRecord(one, "success", 1, 1)], [receipt("m1", one.seq, at(now, PENDING))])
        await node.stores.mailbox.save([(item("m1"), [one.seq])])
    for _ in range(2):
        stats = await node.stores.records.receive_status("m1")
        assert stats is not None
        assert stats.total_users == 2
        waiting = await node.stores.mailbox.read([1, 2])
        assert [[one.content for one in waiting[user_id]] for user_id in (1, 2)] == [["again"], ["again"]]
        await node.restart()


async def test_appending_a_repeat_again_is_harmless_and_another_under_its_seq_is_refused(stores: Stores) -> None:
    again = notice(2, message_id="m1")
    await stores.journal.append([notice(1), again])
    await stores.journal.append([again])
    with pytest.raises(StoreError):
        await stores.journal.append([notice(2)])
    assert await stores.journal.unsettled() == [notice(1), again]


async def test_an_id_is_free_once_its_notice_is_purged(node: Node) -> None:
    await node.stores.journal.append([notice(1, accepted_ms=START_MS)])
    await node.stores.journal.settle([1])
    assert await node.stores.journal.purge(START_MS + 1, 10) == 1
    again = notice(2, message_id="m1", accepted_ms=START_MS)
    await node.stores.journal.append([again])
    assert [row["message_id"] for row in node.rows("notice")] == ["m1"]
    await node.stores.mailbox.save([(item("m1"), [5])])
    await node.restart()
    assert [one.message_id for one in (await node.stores.mailbox.read([5]))[5]] == ["m1"]


async def test_the_first_of_an_id_stays_while_a_repeat_is_under_way(node: Node) -> None:
    """Whom the repeat is for waits by the first one's number, for what the repeat says."""
    await node.stores.journal.append([notice(1, accepted_ms=START_MS)])
    await node.stores.journal.settle([1])
    await node.stores.journal.append([notice(2, message_id="m1", accepted_ms=START_MS)])
    assert await node.stores.journal.purge(START_MS + 1, 10) == 0
    await node.restart()
    await node.stores.journal.unsettled()
    assert await node.stores.journal.purge(START_MS + 1, 10) == 0
    await node.stores.mailbox.save([(item("m1"), [5])])
    await node.stores.journal.settle([2])
    assert await node.stores.journal.purge(START_MS + 1, 10) == 0
    assert [one.message_id for one in (await node.stores.mailbox.read([5]))[5]] == ["m1"]
    await node.stores.mailbox.clear(5)
    assert await node.stores.journal.purge(START_MS + 1, 10) == 2
    assert node.rows("notice") == []


async def test_purge_leaves_what_somebody_waits_for(node: Node) -> None:
    await node.stores.journal.append([notice(seq) for seq in range(1, 21)])
    await node.stores.mailbox.save([(item("m7"), [1, 2])])
    await node.stores.journal.settle(range(1, 21))
    assert await node.stores.journal.purge(2000, 100) == 19
    await node.restart()
    assert [one.seq for one in await node.stores.journal.since(0)] == [7]
    await node.stores.mailbox.clear(1)
    assert await node.stores.journal.purge(2000, 100) == 0
    await node.stores.mailbox.remove({2: ["m7"]})
    assert await node.stores.journal.purge(2000, 100) == 1


async def test_purge_leaves_push_records_and_receipts(node: Node) -> None:
    notices = [notice(seq) for seq in (1, 2, 3)]
    await node.stores.journal.append(notices)
    await node.stores.records.write([PushRecord(notices[0], "success", 1, 1)], [receipt("m2", 1, PENDING)])
    await node.stores.journal.settle([1, 2, 3])
    assert await node.stores.journal.purge(2000, 100) == 1
    await node.restart()
    assert [one.seq for one in await node.stores.journal.since(0)] == [1, 2]
    assert await node.stores.records.delete("m1")
    assert await node.stores.journal.purge(2000, 100) == 1
    while await node.stores.records.purge(2000, 100):
        pass
    assert await node.stores.journal.purge(2000, 100) == 1
    assert node.rows("notice") == []


async def test_purge_gets_past_many_that_stay(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "LOOKED_AT", 10)
    monkeypatch.setattr(journal, "STRETCH", 7)
    await stores.journal.append([notice(seq) for seq in range(1, 101)])
    await stores.journal.settle(range(1, 101))
    await stores.mailbox.save([(item(f"m{seq}"), [seq]) for seq in range(1, 91)])
    dropped = [await stores.journal.purge(2000, 100) for _ in range(12)]
    assert sum(dropped) == 10
    assert [one.seq for one in await stores.journal.since(0)] == list(range(1, 91))
