"""What the embedded records and mailbox promise together, being one ledger."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from itertools import count

import pytest

from pushd.model import MailboxItem, Mark, Target, TargetKind
from pushd.records import Part, PushFilter, PushSort, ReceiptFilter, ReceiptSort, ReceiptStats
from tests.samples import DELIVERED, FETCHED, OFFLINE, PENDING, at, item_of, read_mailbox, receipt

from .conftest import MAX_PER_USER, START_MS, TTL_DAYS, Node

DAY_MS = 86_400_000
FEW, MANY = [1, 2], range(1, 101)  # receipts in a page, and in a block of their own
ALL = Part(0, 10_000)


async def waits(node: Node, user_id: int) -> list[str]:
    return [item.message_id for item in (await node.stores.mailbox.read([user_id])).get(user_id, [])]


async def unread(node: Node, user_id: int) -> int:
    return (await node.stores.records.unread_counts([user_id])).get(user_id, 0)


async def publish(node: Node, *names: str, users: Collection[int], **fields: object) -> list[MailboxItem]:
    """To absent users: on record and in their mailboxes."""
    kind = TargetKind.ALL if users is MANY else TargetKind.CUSTOM
    accepted = await node.accept(*names, **{"accepted_ms": node.clock(), "target": Target(kind), **fields})
    outcome = at(accepted[0].accepted_ms, OFFLINE)
    await node.stores.records.write(
        [node.record(name, "success") for name in names],
        [receipt(name, user, outcome) for name in names for user in users],
    )
    copies = [item_of(one) for one in accepted]
    await node.stores.mailbox.save([(copy, users) for copy in copies])
    return copies


@pytest.fixture
async def known(node: Node) -> None:
    """A hundred users who are known."""
    await publish(node, "known", users=MANY)
    await node.stores.mailbox.remove({user_id: ["known"] for user_id in MANY})
    for user_id in MANY:
        await node.stores.records.mark(user_id, ["known"], Mark.READ, START_MS)


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("users", [FEW, MANY])
async def test_unread_follows_expiry(node: Node, users: Collection[int]) -> None:
    """Whether it was received or not; what stays is what is not past its time."""
    await publish(node, "short", users=users, expires_ms=START_MS + 1000)
    await publish(node, "long", users=users, expires_ms=START_MS + 9000)
    await node.stores.records.write([], [receipt("short", 1, at(START_MS, DELIVERED))])
    assert (await unread(node, 1), await unread(node, 2)) == (2, 2)
    assert await node.stores.records.expire(0, START_MS + 1000, 1000) == len(users) - 1
    for _ in range(2):
        assert (await unread(node, 1), await unread(node, 2)) == (1, 1)
        summary = await node.stores.records.user_summary(1)
        assert (summary.unread_count, summary.total_count) == (1, 3)
        assert await node.stores.records.expire(0, START_MS + 1000, 1000) == 0
        await node.restart()
    await node.stores.records.write([], [receipt("short", 2, at(START_MS, FETCHED))])  # it was in his mailbox meanwhile
    assert await unread(node, 2) == 1
    assert await node.stores.records.mark(2, ["short", "long"], Mark.READ, START_MS) == ["short", "long"]
    assert (await unread(node, 1), await unread(node, 2)) == (1, 0)


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("users", [FEW, MANY])
async def test_delete_keeps_what_waits(node: Node, users: Collection[int]) -> None:
    copies = await publish(node, "gone", "kept", users=users, data={"a": ["b"]})
    assert await node.stores.records.delete("gone") is True
    for _ in range(2):
        assert await read_mailbox(node.stores.mailbox, [1]) == {1: copies}
        assert await unread(node, 1) == 1
        assert await node.stores.records.push_record("gone") is None
        assert await node.stores.records.delete("gone") is False
        await node.restart()
    await node.stores.journal.settle([node.accepted["gone"].seq])
    assert await node.stores.journal.purge(START_MS + 1, 100) >= 0
    assert await read_mailbox(node.stores.mailbox, [1]) == {1: copies}
    await node.stores.mailbox.remove({1: ["gone"]})
    for _ in range(2):
        assert (await waits(node, 1), await waits(node, 2)) == (["kept"], ["gone", "kept"])
        await node.restart()
    assert await node.stores.mailbox.clear(2) == 2


async def test_a_copy_that_comes_back_after_the_record_was_deleted_waits(node: Node) -> None:
    """It was under way, and its client went without an answer. One of them is in a page, the other in a block."""
    notices = await node.accept("a", "b", accepted_ms=START_MS)
    await node.stores.records.write(
        [node.record(name, "success") for name in "ab"], [receipt(name, 1, at(START_MS, PENDING)) for name in "ab"]
    )
    for name in "ab":
        assert await node.stores.records.delete(name) is True
    await node.stores.mailbox.save([(item_of(one), [1, 2]) for one in notices])
    for _ in range(2):
        assert (await waits(node, 1), await waits(node, 2)) == (["a", "b"], ["a", "b"])
        assert await node.stores.records.receive_stats(ReceiptFilter()) == ReceiptStats()
        assert await node.stores.records.unread_counts([1, 2]) == {}
        await node.restart()


@pytest.mark.usefixtures("known")
async def test_the_newest_are_kept_wherever_they_stand(node: Node) -> None:
    """Broadcasts and notices for a few in turn, and after a restart as before."""
    names = []
    for number in range(3 * MAX_PER_USER):
        names.append(f"m{number}")
        await publish(node, names[-1], users=MANY if number % 3 else FEW)
        if number % 4 == 3:
            await node.restart()
        assert await waits(node, 1) == names[-MAX_PER_USER:]
    of_all = [name for number, name in enumerate(names) if number % 3]
    assert await waits(node, 50) == of_all[-MAX_PER_USER:]
    assert await node.stores.mailbox.clear(1) == MAX_PER_USER
    await publish(node, "next", users=FEW)
    assert (await waits(node, 1), await waits(node, 2)) == (["next"], [*names[-MAX_PER_USER + 1 :], "next"])


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("users", [FEW, MANY])
async def test_a_notice_that_is_sent_again_waits_anew(node: Node, users: Collection[int]) -> None:
    """And has one receipt for each recipient, and one record, with the content of the first."""
    await publish(node, "m1", users=users, content="first")
    await node.stores.records.write([], [receipt("m1", 2, at(START_MS, FETCHED))])
    node.clock.now_ms += (TTL_DAYS + 1) * DAY_MS
    assert await waits(node, 1) == []
    assert await node.stores.mailbox.purge(node.clock(), 10_000) == len(users)
    (again,) = await node.accept("m1", accepted_ms=node.clock(), content="first", is_resent=True)
    everyone_else = [user_id for user_id in users if user_id != 2]
    outcome = at(node.clock(), OFFLINE)
    await node.stores.records.write([], [receipt("m1", user_id, outcome) for user_id in everyone_else])
    await node.stores.mailbox.save([(item_of(again), everyone_else)])
    node.clock.now_ms += TTL_DAYS * DAY_MS - 1
    for _ in range(2):
        assert (await waits(node, 1), await waits(node, 2)) == (["m1"], [])
        pushes = await node.stores.records.push_records(PushFilter(), PushSort.PUSH_TIME, ALL)
        assert {row.message_id for row in pushes} == {"m1", "known"}
        rows = await node.stores.records.receive_records(ReceiptFilter(message_id="m1"), ReceiptSort.USER_ID, ALL)
        assert [row.user_id for row in rows] == sorted(users, reverse=True)
        assert {row.created_ms for row in rows} == {START_MS}
        assert await node.stores.mailbox.purge(node.clock(), 10_000) == 0
        await node.restart()
    node.clock.now_ms += 1
    assert await waits(node, 1) == []


async def test_an_id_that_is_used_again_is_the_first_notice(node: Node) -> None:
    """Its content is the first one's; who gets only the second has a receipt of the one record."""
    await publish(node, "m1", users=[1], content="first")
    await publish(node, "m1", users=[2], content="second")
    for _ in range(2):
        (row,) = await node.stores.records.push_records(PushFilter(), PushSort.PUSH_TIME, ALL)
        assert (row.content, row.total_count) == ("first", 2)
        assert {notice.content for notice in await node.stores.journal.unsettled()} == {"first", "second"}
        assert (await waits(node, 1), await waits(node, 2)) == (["m1"], ["m1"])
        await node.restart()


async def test_receipts_of_unknown_notices_are_none(node: Node) -> None:
    await node.accept("m1")
    await node.stores.records.write([], [receipt("m1", 1, PENDING), receipt("no", 1, PENDING), receipt("", 1, PENDING)])
    assert await node.stores.records.receive_stats(ReceiptFilter()) == ReceiptStats(1, 1, 0, 0, 0)
    assert await node.stores.records.receive_status("no") is None
    assert await node.stores.records.mark(1, ["no", ""], Mark.READ, 2000) == []


async def test_lists_while_writes_go_on(node: Node) -> None:
    """Each page is in order and names nobody twice, counts never exceed what was written, and nothing is lost."""
    records = node.stores.records
    is_over = False
    published = 0

    async def write() -> None:
        nonlocal is_over, published
        for number in range(40):
            users = MANY if number % 2 else FEW
            await publish(node, f"m{number}", users=users)
            published += len(users)
            await records.write([], [receipt(f"m{number}", user_id, at(START_MS, DELIVERED)) for user_id in users])
            await records.mark(1, [f"m{number}"], Mark.READ, START_MS + number)
            node.clock.now_ms += 1
        is_over = True

    async def read(sort: ReceiptSort, where: ReceiptFilter) -> int:
        for rounds in count(1):
            before = published
            rows = await records.receive_records(where, sort, ALL)
            assert len({(row.message_id, row.user_id) for row in rows}) == len(rows)
            if where == ReceiptFilter():
                assert before <= len(rows)
                assert before <= (await records.receive_stats(where)).total_users
            await records.newest_receive_records([1, 50], 20)
            await records.user_receipts(0, 2**50, 10)
            if is_over:
                return rounds
        raise AssertionError

    wheres = (ReceiptFilter(), ReceiptFilter(username="user1"), ReceiptFilter(is_read=True), ReceiptFilter(user_id=1))
    readers = (read(sort, where) for sort in (ReceiptSort.RECEIVED_AT, ReceiptSort.USERNAME) for where in wheres)
    await asyncio.gather(write(), *readers)
    total = 20 * len(MANY) + 20 * len(FEW)
    for _ in range(2):
        records = node.stores.records
        assert await records.receive_stats(ReceiptFilter()) == ReceiptStats(total, total, total, 40, 0)
        for sort in ReceiptSort:
            rows = await records.receive_records(ReceiptFilter(), sort, ALL)
            assert len({(row.message_id, row.user_id) for row in rows}) == len(rows) == total
        await node.restart()


async def test_purges_while_lists_are_made(node: Node) -> None:
    """What is read is not freed under the reader."""
    records = node.stores.records
    for number in range(60):
        await publish(node, f"m{number}", users=MANY if number % 2 else FEW, accepted_ms=START_MS + number)
    is_over = False

    async def read(sort: ReceiptSort) -> None:
        while not is_over:
            rows = await records.receive_records(ReceiptFilter(), sort, ALL)
            assert {row.user_id for row in rows} <= set(MANY)
            await records.receive_stats(ReceiptFilter(username="user"))

    async def purge() -> None:
        nonlocal is_over
        for number in range(0, 60, 2):
            while await records.purge(START_MS + number, 50):
                pass
            await records.delete(f"m{number + 1}")
        is_over = True

    await asyncio.gather(purge(), *map(read, ReceiptSort))
    for _ in range(2):
        rows = await node.stores.records.receive_records(ReceiptFilter(), ReceiptSort.CREATED_AT, ALL)
        assert {row.message_id for row in rows} == {"m58"}
        await node.restart()
