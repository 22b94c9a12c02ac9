"""What is past its time goes, in small steps, and nothing else does."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pushd.config.current import CurrentConfig
from pushd.errors import StoreError
from pushd.model import Outcome, PushRecord, Receipt
from pushd.ports import Stores
from pushd.records import PushFilter
from pushd.telemetry.metrics import Metrics
from pushd.writing.retention import Retention
from tests.conftest import MakeConfig
from tests.daemon import until
from tests.unit.parts import START_MS, Clock, notice, with_store

DAY_S = 86_400


@pytest.fixture
def build(make_config: MakeConfig, clock: Clock) -> Any:
    return lambda stores, **how: Retention(stores, CurrentConfig(make_config()), Metrics(), clock.wall_ms, **how)


async def fill(stores: Stores) -> None:
    """Journal entries, the second not settled, push records of the first two, and a receipt, all of START_MS."""
    entries = [notice(seq) for seq in (1, 2, 3)]
    await stores.journal.append(entries)
    await stores.journal.settle([1, 3])
    records = [PushRecord(entry, status="success", total_count=1, online_count=0) for entry in entries[:2]]
    await stores.records.write(records, [Receipt("m1", 1, "ann", 1, "", "", "", Outcome(created_ms=START_MS))])


async def journal(stores: Stores) -> list[str]:
    return [entry.message_id for entry in await stores.journal.since(0)]


async def test_the_journal_keeps_what_is_unsettled_or_on_record_or_within_the_dedup_window(
    build: Any, stores: Stores, clock: Clock
) -> None:
    await fill(stores)
    clock.move(299)
    await build(stores).purge()
    assert await journal(stores) == ["m1", "m2", "m3"]
    clock.move(2)
    await build(stores).purge()
    assert await journal(stores) == ["m1", "m2"]
    await stores.records.delete("m1")
    await build(stores).purge()
    assert await journal(stores) == ["m2"]
    assert [entry.message_id for entry in await stores.journal.unsettled()] == ["m2"]


async def test_records_are_kept_for_their_days(build: Any, stores: Stores, clock: Clock) -> None:
    await fill(stores)
    clock.move(30 * DAY_S)
    await build(stores).purge()
    assert await stores.records.receive_status("m1") is not None
    clock.move(1)
    await build(stores).purge()
    assert await stores.records.receive_status("m1") is None
    assert await stores.records.receive_status("m2") is None


class Steps:
    """A store that has so much to drop."""

    def __init__(self, left: int) -> None:
        self.left = left
        self.calls = 0

    async def purge(self, before_ms: int, limit: int) -> int:
        self.calls += 1
        dropped = min(limit, self.left)
        self.left -= dropped
        return dropped

    async def expire(self, since_ms: int, now_ms: int, limit: int) -> int:
        return 0


async def test_one_step_after_the_other_until_nothing_is_left(build: Any, stores: Stores) -> None:
    steps = Steps(2500)
    await build(with_store(stores, records=steps), pause_s=0.0).purge()
    assert (steps.left, steps.calls) == (0, 3)


async def test_a_store_that_is_down_does_not_keep_the_others_from_being_purged(
    build: Any, frail: Any, clock: Clock
) -> None:
    await fill(frail)
    clock.move(31 * DAY_S)
    frail.journal.fail("purge")
    frail.mailbox.fail("purge", error=StoreError("mailbox", "never"))
    keeper = build(frail)
    await keeper.purge()
    assert keeper._metrics.errors.value == 2
    assert await frail.records.receive_status("m1") is None
    assert await journal(frail) == ["m1", "m2", "m3"]
    await keeper.purge()
    assert await journal(frail) == ["m2"]


async def test_it_goes_on_by_itself(build: Any, frail: Any) -> None:
    running = asyncio.create_task(build(frail, every_s=0.0).run())
    await until(lambda: frail.records.calls.count("purge") >= 2)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_what_expired_unreceived_says_so_once(build: Any, stores: Stores, clock: Clock) -> None:
    entry = notice(1, expires_ms=START_MS + 5000)
    await stores.journal.append([entry])
    await stores.records.write(
        [PushRecord(entry, status="success", total_count=1, online_count=0)],
        [Receipt("m1", 1, "ann", 1, "", "", "", Outcome(created_ms=START_MS))],
    )
    keeper = build(stores)
    await keeper.purge()
    assert await stores.records.unread_counts([1]) == {1: 1}
    clock.move(5)
    await keeper.purge()
    assert await stores.records.unread_counts([1]) == {}
    assert (await stores.records.push_stats(PushFilter())).failed_count == 1


@pytest.mark.parametrize("error", [TypeError("odd"), RecursionError(), asyncio.CancelledError()])
async def test_a_purge_that_fails_in_a_way_nobody_foresaw_does_not_keep_the_others_from_being_purged(
    build: Any, frail: Any, clock: Clock, error: Exception
) -> None:
    await fill(frail)
    clock.move(31 * DAY_S)
    frail.records.fail("expire", 1, error)
    frail.journal.fail("purge", 1, error)
    frail.mailbox.fail("purge", 1, error)
    keeper = build(frail)
    await keeper.purge()
    assert keeper._metrics.errors.labels("purge").value == 3
    assert await frail.records.receive_status("m1") is None


async def test_what_expires_is_noted_soon_and_after_a_failure_again(build: Any, frail: Any, clock: Clock) -> None:
    await frail.journal.append([notice(1, expires_ms=START_MS + 5000)])
    await frail.records.write([], [Receipt("m1", 1, "ann", 1, "", "", "", Outcome(created_ms=START_MS))])
    clock.move(5)
    frail.records.fail("expire")
    running = asyncio.create_task(build(frail, every_s=0.0, expire_every_s=0.0).run_expiry())
    await until(lambda: frail.records.calls.count("expire") >= 3)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert await frail.records.unread_counts([1]) == {}


async def test_what_was_written_late_is_looked_for_once_more(build: Any, stores: Stores, clock: Clock) -> None:
    asked: list[tuple[int, int]] = []

    class Records(Steps):
        async def expire(self, since_ms: int, now_ms: int, limit: int) -> int:
            asked.append((since_ms - START_MS, now_ms - START_MS))
            return 0

    keeper = build(with_store(stores, records=Records(0)))
    for _ in range(4):
        clock.move(30)
        await keeper.purge()
    assert asked[1:] == [(-START_MS, 60_000), (30_000, 90_000), (60_000, 120_000)]
