"""The port Amendments, and what the stores of records do with it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from pushd.model import Amended, Mark, Notice, Version
from pushd.ports import Stores
from pushd.records import Part, ReceiptFilter, ReceiptRow, ReceiptSort
from tests.samples import DELIVERED, FETCHED, OFFLINE, PENDING, item_of, read_mailbox, receipt

from .conftest import START_MS, Node

IMPLEMENTATIONS = ("sqlite", "redis", "mongodb")
DAY_MS = 86_400_000


async def _revoke(stores: Stores, message_id: str, at_ms: int = START_MS) -> int:
    return await stores.amendments.revoke(Amended(message_id, is_revoked=True), at_ms)


async def _recorded(node: Node, *message_ids: str) -> None:
    """Notices with a record each: 1 has received it, 2 was sent it, 3 has it in his mailbox."""
    await node.accept(*message_ids)
    for message_id in message_ids:
        outcomes = (DELIVERED, PENDING, OFFLINE, FETCHED)
        receipts = [receipt(message_id, user_id, outcome) for user_id, outcome in enumerate(outcomes, 1)]
        await node.stores.records.write([node.record(message_id, "success", 4, 2)], receipts)


async def test_it_is_known_after_a_restart(node: Node) -> None:
    await node.accept("a", "b")
    assert await node.stores.amendments.known() == []
    await _revoke(node.stores, "a")
    await node.restart()
    assert await node.stores.amendments.known() == [Amended("a", is_revoked=True)]


async def test_what_has_to_follow(node: Node) -> None:
    stores = node.stores
    followers = {
        name
        for name, is_here in (("mailbox", node.mailbox_section()), ("records", "records" in node.sections()))
        if is_here
    }
    assert stores.amendments.followers == followers
    await node.accept("a")
    await _revoke(stores, "a")
    amended = Amended("a", is_revoked=True)
    left = await stores.amendments.unfollowed()
    assert [(one.amended, one.store) for one in left] == [
        (amended, name) for name in ("mailbox", "records") if name in followers
    ]
    await node.restart()
    for name in followers:
        await node.stores.amendments.followed(amended, name)
    assert await node.stores.amendments.unfollowed() == []


async def test_what_is_forgotten(node: Node) -> None:
    await node.accept("old", "new")
    await _revoke(node.stores, "old", START_MS)
    await _revoke(node.stores, "new", START_MS + DAY_MS)
    for name in node.stores.amendments.followers:
        assert await node.stores.amendments.purge(START_MS + 1, 10) == [], "not everybody has it"
        await node.stores.amendments.followed(Amended("old", is_revoked=True), name)
    assert await node.stores.amendments.purge(START_MS + 1, 10) == ["old"]
    assert [amended.message_id for amended in await node.stores.amendments.known()] == ["new"]


async def test_who_was_sent_it(node: Node) -> None:
    await _recorded(node, "a", "b")
    for message_id in ("a", "b"):
        assert sorted(await node.stores.records.sent_to(message_id)) == [1, 2, 4]
    assert await node.stores.records.sent_to("unknown") == []


async def test_a_revoked_one_is_unread_for_nobody_and_stays_on_record(node: Node) -> None:
    stores = node.stores
    await _recorded(node, "a", "b", "c")
    await stores.records.mark(1, ["b"], Mark.READ, 4000)
    await _revoke(stores, "b")
    assert await stores.records.revoke("b", START_MS)
    assert not await stores.records.revoke("unknown", START_MS)
    assert await stores.records.unread_counts([1, 2, 3, 4]) == dict.fromkeys([1, 2, 3, 4], 2)
    assert (await stores.records.user_summary(3)).unread_count == 2
    status = await stores.records.receive_status("b")
    assert status is not None
    assert (status.total_users, status.received_users, status.read_users) == (4, 2, 1)
    states = {message_id: await _state(stores, message_id) for message_id in ("a", "b", "c")}
    assert states == {"a": "sent", "b": "revoked", "c": "sent"}
    await stores.records.mark(2, ["b"], Mark.READ, 5000)  # what still comes is noted
    assert await stores.records.unread_counts([2]) == {2: 2}


async def _state(stores: Stores, message_id: str) -> str:
    row = await stores.records.push_record(message_id)
    assert row is not None
    return row.state


@pytest.mark.parametrize("is_late", [False, True], ids=["before", "after"])
async def test_nobody_has_it_waiting(node: Node, is_late: bool) -> None:
    if "mailbox" in node.stores.amendments.followers:
        pytest.skip("it has to follow")
    (first, second) = await node.accept("a", "b")
    items = [item_of(notice, START_MS) for notice in (first, second)]
    if not is_late:
        await node.stores.mailbox.save([(item, [1, 2]) for item in items])
        assert await _revoke(node.stores, "a") == 2
    else:
        assert await _revoke(node.stores, "a") == 0
        await node.stores.mailbox.save([(item, [1, 2]) for item in items])
    for _ in range(2):
        found = await node.stores.mailbox.read([1, 2])
        assert {user_id: [one.message_id for one in waiting] for user_id, waiting in found.items()} == {
            1: ["b"],
            2: ["b"],
        }
        await node.restart()


def _edited(notice: Notice, **fields: Any) -> tuple[Amended, Notice, Version]:
    newest = msgspec.structs.replace(notice, version=notice.version + 1, **fields)
    return Amended(notice.message_id, version=newest.version), newest, Version(notice, START_MS, 7, "ann")


async def test_what_it_says_now_and_said_before(node: Node) -> None:
    (first,) = await node.accept("a")
    amended, newest, former = _edited(first, content="second", tags=("x",))
    await node.stores.amendments.edit(amended, newest, former, is_reset=False)
    again, last, between = _edited(newest, content="third", tags=())
    await node.stores.amendments.edit(again, last, between, is_reset=False)
    for _ in range(2):
        assert await node.stores.amendments.notices(["a", "unknown"]) == {"a": last}
        assert await node.stores.amendments.versions("a") == [former, between]
        await node.restart()
    assert await node.stores.amendments.known() == [Amended("a", version=3)]
    (unsettled,) = await node.stores.journal.unsettled()
    assert (unsettled.content, unsettled.version) == ("third", 3)


async def test_the_record_and_a_reset(node: Node) -> None:
    """Receipts stay received; read and confirmed begin anew, and a confirmation says which version it is of."""
    stores = node.stores
    await _recorded(node, "a", "b")
    await stores.records.mark(1, ["a", "b"], Mark.CONFIRMED, 4000)
    await stores.records.mark(4, ["a", "b"], Mark.READ, 4000)
    amended, newest, former = _edited(node.accepted["a"], content="second", tags=("x",), title="t")
    await stores.amendments.edit(amended, newest, former, is_reset=True)
    assert await stores.records.edit(newest, [former], is_reset=True)
    row = await stores.records.push_record("a")
    assert row is not None
    assert (row.content, row.title, row.tags, row.version) == ("second", "t", ("x",), 2)
    for _ in range(2):
        assert await node.stores.records.unread_counts([1, 4]) == {1: 1, 4: 1}
        rows = {row.user_id: row for row in await _receipts(node.stores, "a")}
        assert [(rows[user].is_received, rows[user].is_read, rows[user].read_ms) for user in (1, 4)] == [
            (True, False, 0)
        ] * 2
        assert (rows[1].is_confirmed, rows[1].confirmed_ms, rows[1].tags) == (False, 0, ("x",))
        await node.restart()
    await node.stores.records.mark(1, ["a"], Mark.CONFIRMED, START_MS + 5000, {"a": 2})
    confirmed = {row.message_id: row for row in await _receipts(node.stores) if row.is_confirmed}
    assert {name: (row.confirmed_version, row.confirmed_ms) for name, row in confirmed.items()} == {
        "a": (2, START_MS + 5000),
        "b": (1, 4000),
    }


async def _receipts(stores: Stores, message_id: str | None = None) -> list[ReceiptRow]:
    return await stores.records.receive_records(ReceiptFilter(message_id=message_id), ReceiptSort.USER_ID, Part(0, 50))


async def test_what_waits(node: Node) -> None:
    """In its order, saved when it was; what another user has, or another notice says, stays."""
    notices = await node.accept("a", "b", "c")
    await node.stores.mailbox.save([(item_of(one, START_MS), [1, 2]) for one in notices])
    before = (await read_mailbox(node.stores.mailbox, [1]))[1]
    amended, newest, former = _edited(notices[1], content="second", data={"saved_at": 1}, url="/u")
    await node.stores.amendments.edit(amended, newest, former, is_reset=False)
    await node.stores.mailbox.replace(item_of(newest, START_MS + 9), [1, 2, 3])
    found = await read_mailbox(node.stores.mailbox, [1, 2, 3])
    assert sorted(found) == [1, 2]
    for waiting in found.values():
        said = {"content": "second", "data": {"saved_at": 1}, "url": "/u", "version": 2}
        assert waiting == [before[0], msgspec.structs.replace(before[1], **said), before[2]]
