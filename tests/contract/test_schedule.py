"""The contract of ports.ScheduleStore, and of the journal towards it: a notice is in one of them."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from pushd.delivery.schedule import put_off
from pushd.errors import StoreError
from pushd.model import Notice, Priority, Target, TargetKind
from pushd.ports import Scheduled, Stores
from pushd.stores.sqlite import schedule as sqlite_schedule
from tests.samples import notice

from .conftest import START_MS, Node


def later(message_id: str, due_ms: int = START_MS, **fields: Any) -> Notice:
    """A notice that was scheduled at 1000."""
    given = {"message_id": message_id, "accepted_ms": due_ms, "send_at_ms": due_ms, "submitted_ms": 1000} | fields
    return notice(0, **given)


def journalled(scheduled: Notice, seq: int, at_ms: int = START_MS) -> Notice:
    """The same when it is due."""
    return msgspec.structs.replace(scheduled, seq=seq, accepted_ms=at_ms)


async def due(stores: Stores, before_ms: int = 1 << 60, limit: int = 1000) -> list[str]:
    return [one.message_id for one in (await stores.schedule.due(before_ms, limit)).notices]


async def test_a_new_schedule_is_empty(stores: Stores) -> None:
    assert await stores.schedule.keys() == []
    assert await stores.schedule.count() == 0
    found = await stores.schedule.due(1 << 60, 10)
    assert (found.notices, found.next_ms, found.spoiled) == ([], None, [])
    assert await stores.schedule.find("m") is None
    assert await stores.schedule.cancel("m", 1) == (None, False)
    assert not await stores.schedule.replace(later("m"))
    assert await stores.schedule.purge(1 << 60, 10) == 0


async def test_a_notice_comes_back_as_it_was_after_a_restart(node: Node) -> None:
    full = later(
        "m",
        content='quo"te \\ 消息 \0 \U0001f600',
        target=Target(TargetKind.CUSTOM, user_ids=(1, 2**53), exclude_ids=(3,)),
        type="order_paid",
        data={"nested": [1, 2.5, None, True, {"k": "值\0"}], "big": 2**62},
        priority=Priority.URGENT,
        need_confirm=True,
        expires_ms=START_MS + 5,
        idempotency_key="kéy",
        sender_id=9,
        sender_name="ops",
        title="A title",
        url="/x",
        tags=("a", "b"),
    )
    await node.stores.schedule.put([full])
    await node.restart()
    assert await node.stores.schedule.find("m") == Scheduled(full)
    assert await node.stores.schedule.find("other", "kéy") == Scheduled(full)
    assert await node.stores.schedule.find("other", "key") is None
    assert (await node.stores.schedule.due(START_MS + 1, 1)).notices == [full]
    assert sorted(await node.stores.schedule.keys()) == ["id:m", "key:kéy"]
    assert await node.stores.schedule.count() == 1


async def test_what_is_due_comes_by_its_time_and_then_in_the_order_of_its_acceptance(stores: Stores) -> None:
    times = {"d": 30, "c": 20, "a": 10, "b": 20, "e": 40}
    for message_id, at_ms in times.items():
        await stores.schedule.put([later(message_id, at_ms)])
    assert await due(stores) == ["a", "c", "b", "d", "e"]
    assert await due(stores, 30) == ["a", "c", "b"]
    for limit, next_ms in ((0, 10), (1, 20), (3, 30), (4, 40), (5, None), (9, None)):
        found = await stores.schedule.due(1 << 60, limit)
        assert len(found.notices) == min(limit, 5)
        assert found.next_ms == next_ms
    assert (await stores.schedule.due(5, 9)).next_ms == 10


async def test_few_large_ones_are_read_at_a_time(stores: Stores) -> None:
    size = sqlite_schedule.DUE_BYTES // 3
    await stores.schedule.put([later(f"m{number}", number, data="x" * size) for number in range(9)])
    found = await stores.schedule.due(1 << 60, 100)
    assert [one.message_id for one in found.notices] == ["m0", "m1", "m2"]
    assert found.next_ms == 3


async def test_all_or_nothing_is_put(stores: Stores) -> None:
    await stores.schedule.put([later("a")])
    with pytest.raises(StoreError):
        await stores.schedule.put([later("b"), later("a"), later("c")])
    assert await due(stores) == ["a"]


async def test_a_put_that_fails_harms_none_that_was_committed_with_it(stores: Stores) -> None:
    await stores.schedule.put([later("a")])
    results = await asyncio.gather(
        stores.schedule.put([later("b")]),
        stores.schedule.put([later("a")]),
        stores.journal.append([notice(1, message_id="x")]),
        stores.schedule.cancel("a", 5),
        stores.schedule.put([later("c")]),
        return_exceptions=True,
    )
    assert [isinstance(result, Exception) for result in results] == [False, True, False, False, False]
    assert await due(stores) == ["b", "c"]
    assert [one.message_id for one in await stores.journal.since(0)] == ["x"]


async def test_what_the_journal_appends_has_left_the_schedule(node: Node) -> None:
    one, two = later("a", 10, tags=("t",)), later("b", 20)
    await node.stores.schedule.put([one, two])
    await node.stores.journal.append([journalled(one, 1), notice(2, message_id="x")])
    assert await due(node.stores) == ["b"]
    assert await node.stores.schedule.find("a") is None
    await node.restart()
    assert await due(node.stores) == ["b"]
    assert [entry.message_id for entry in await node.stores.journal.unsettled()] == ["a", "x"]


async def test_what_the_journal_refuses_stays_in_the_schedule(stores: Stores) -> None:
    await stores.journal.append([notice(1, message_id="x")])
    one, two = later("a", 10), later("b", 20)
    await stores.schedule.put([one, two])
    with pytest.raises(StoreError):
        await stores.journal.append([journalled(one, 2), journalled(two, 1)])  # another notice has that number
    assert await due(stores) == ["a", "b"]
    assert [entry.message_id for entry in await stores.journal.since(0)] == ["x"]


async def test_one_whose_id_an_older_notice_has_leaves_the_schedule_as_well(stores: Stores) -> None:
    await stores.journal.append([notice(1, message_id="a", content="old")])
    await stores.schedule.put([later("a", 10)])
    await stores.journal.append([journalled(later("a", 10), 2), notice(3, message_id="a", content="again")])
    assert await due(stores) == []
    assert [entry.seq for entry in await stores.journal.since(0)] == [1, 2, 3]


async def test_a_cancelled_one_is_due_no_more(node: Node) -> None:
    await node.stores.schedule.put([later("a", 10, idempotency_key="k"), later("b", 20)])
    assert await node.stores.schedule.cancel("a", 15) == (Scheduled(later("a", 10, idempotency_key="k"), 15), True)
    await node.restart()
    found, was_due = await node.stores.schedule.cancel("a", 99)
    assert (found, was_due) == (Scheduled(later("a", 10, idempotency_key="k"), 15), False)
    assert await due(node.stores) == ["b"]
    assert await node.stores.schedule.count() == 1
    assert not await node.stores.schedule.replace(later("a", 30))
    assert sorted(await node.stores.schedule.keys()) == ["id:a", "id:b", "key:k"]


async def test_a_cancellation_and_an_append_of_the_same_moment_agree(stores: Stores) -> None:
    """The first of them counts: delivery sees to it that the second is not asked for."""
    one = later("a", 10)
    await stores.schedule.put([one])
    _, (found, was_due) = await asyncio.gather(
        stores.journal.append([journalled(one, 1)]), stores.schedule.cancel("a", 5)
    )
    assert (found, was_due) == (None, False)


async def test_it_says_something_else_from_then_on(node: Node) -> None:
    await node.stores.schedule.put([later("a", 10), later("b", 20)])
    newer = put_off(later("a", 10, content="newer", expires_ms=15), 30)
    assert (newer.expires_ms, newer.accepted_ms, newer.send_at_ms) == (35, 30, 30)
    assert await node.stores.schedule.replace(newer)
    await node.restart()
    assert await due(node.stores) == ["b", "a"]
    assert await node.stores.schedule.find("a") == Scheduled(newer)


async def test_what_is_dropped_is_unknown(stores: Stores) -> None:
    await stores.schedule.put([later(f"m{number}") for number in range(1200)])
    await stores.schedule.drop([f"m{number}" for number in range(1100)])
    assert await stores.schedule.count() == 100
    assert await stores.schedule.find("m5") is None


async def test_only_cancelled_ones_are_purged(stores: Stores) -> None:
    await stores.schedule.put([later(f"m{number}", number) for number in range(1300)])
    for number in (1, 2, 1250):
        await stores.schedule.cancel(f"m{number}", 5)
    assert await stores.schedule.purge(1000, 1) == 1
    assert await stores.schedule.purge(1000, 1000) == 1
    assert await stores.schedule.purge(1000, 1000) == 0
    assert await stores.schedule.count() == 1297
    assert await stores.schedule.find("m1250") is not None


async def test_rows_that_are_damaged_are_told_apart(node: Node) -> None:
    await node.stores.schedule.put([later(f"m{number}", number) for number in range(5)])
    async with node.thread() as thread:
        for change in (
            "body = x'ff' WHERE message_id = 'm0'",
            "body = '{\"seq\":0}' WHERE message_id = 'm1'",
            "message_id = 'other' WHERE message_id = 'm3'",
            "cancelled_ms = 'odd' WHERE message_id = 'm4'",
        ):
            statement = f"UPDATE scheduled SET {change}"
            await thread.submit("test", "spoil", lambda db, statement=statement: db.execute(statement))
    found = await node.stores.schedule.due(1 << 60, 10)
    assert [one.message_id for one in found.notices] == ["m2"]
    assert [why.partition(":")[0] for _, _, why in found.spoiled] == ["DecodeError", "ValidationError", "ValueError"]
    for number, _, _ in found.spoiled:
        await node.stores.schedule.drop_spoiled(number)
    assert (await node.stores.schedule.due(1 << 60, 10)).spoiled == []
    assert await node.stores.schedule.count() == 1


class TestElsewhere:
    """The records are in a store outside, which has to hear of what is scheduled."""

    @pytest.fixture
    async def outside(self, node: Node) -> Stores:
        await node.stop()
        node.sections = lambda: {"records": _elsewhere()}  # type: ignore[method-assign]
        await node.start()
        return node.stores

    async def test_it_is_unrecorded_until_it_is_said_to_be_known_as_it_is(self, outside: Stores) -> None:
        schedule = outside.schedule
        a, b = later("a", 10), later("b", 20)
        await schedule.put([a, b])
        assert await schedule.unrecorded("", 10) == [Scheduled(a), Scheduled(b)]
        assert await schedule.unrecorded("a", 10) == [Scheduled(b)]
        await schedule.recorded([Scheduled(a), Scheduled(b), Scheduled(later("c"))])
        assert await schedule.unrecorded("", 10) == []
        newer = msgspec.structs.replace(a, content="newer")
        await schedule.replace(newer)
        await schedule.cancel("b", 5)
        for stale in (Scheduled(a), Scheduled(b)):  # what was true before is not enough
            await schedule.recorded([stale])
        assert await schedule.unrecorded("", 10) == [Scheduled(newer), Scheduled(b, 5)]
        await schedule.recorded([Scheduled(newer), Scheduled(b, 5)])
        assert await schedule.unrecorded("", 10) == []


def _elsewhere() -> Any:
    from pushd.config.schema import RecordsConfig

    return RecordsConfig(url="mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=1")
