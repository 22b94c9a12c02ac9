"""Records on their way: merged outcomes, batches, and what holds a notice until they are written."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pushd.model import Channel, DeliveryStatus, Mark, Outcome
from pushd.ports import Stores
from pushd.turns import SLICE_S
from pushd.users.devices import Device
from pushd.writing.records import ROWS_PER_CLOCK_READING, merged
from tests.unit.parts import REFUSALS, REFUSED_USER, START_MS, House, Picky, with_store

Build = Callable[..., House]
OFFLINE = Outcome(created_ms=START_MS, status=DeliveryStatus.OFFLINE, channel=Channel.OFFLINE)
RECEIVED = Outcome(created_ms=START_MS, is_online=True, received_ms=START_MS + 5, status=DeliveryStatus.DELIVERED)
OUTCOMES = st.builds(
    Outcome,
    created_ms=st.integers(1, 4),
    is_online=st.booleans(),
    received_ms=st.integers(0, 4),
    status=st.sampled_from(DeliveryStatus),
    channel=st.sampled_from(Channel),
)


@given(OUTCOMES, OUTCOMES, OUTCOMES)
def test_merging_outcomes_does_not_depend_on_order_or_repetition(
    first: Outcome, second: Outcome, third: Outcome
) -> None:
    assert merged(first, second) == merged(second, first)
    assert merged(merged(first, second), third) == merged(first, merged(second, third))
    assert merged(first, first) == first


@given(st.lists(OUTCOMES, min_size=2, max_size=5), st.data())
def test_merging_forgets_nothing_and_does_not_depend_on_grouping(outcomes: list[Outcome], data: st.DataObject) -> None:
    """So it makes no difference whether two outcomes meet before or after they are written."""
    half = data.draw(st.integers(1, len(outcomes) - 1))
    whole = outcomes[0]
    for outcome in outcomes[1:]:
        whole = merged(whole, outcome)
    halves = []
    for part in (outcomes[:half], outcomes[half:]):
        halves.append(part[0])
        for outcome in part[1:]:
            halves[-1] = merged(halves[-1], outcome)
    assert merged(*halves) == whole
    assert whole.is_online == any(outcome.is_online for outcome in outcomes)
    assert (whole.received_ms > 0) == any(outcome.received_ms for outcome in outcomes)


@pytest.fixture
async def stores(stores: Stores) -> Stores:
    """As where records are kept outside of this process: receipts are written to them, and nothing is noted."""
    return with_store(stores, ledger=None)


async def test_a_push_record_holds_its_notice_until_it_is_written(make_house: Build, frail: Any) -> None:
    house = make_house(stores=frail)
    writer = house.writers.records
    (counted,) = await house.counted("m1")
    writer.conclude(counted.flight, "success")
    counted.flight.end_fan_out()
    assert counted.settled == 0
    frail.records.fail("write", 2)
    house.start_writers()
    await writer.writer.flushed()
    assert counted.settled == 1
    assert await frail.records.receive_status("m1") is not None


async def test_receipts_of_one_notice_become_one_write_and_hold_it_once(make_house: Build, frail: Any) -> None:
    house = make_house(stores=frail)
    writer = house.writers.records
    (counted,) = await house.counted("m1")
    writer.note(counted.flight, "m1", [1, 2], OFFLINE)
    writer.note(counted.flight, "m1", [2, 3], RECEIVED)
    writer.note(counted.flight, "m1", [], RECEIVED)
    writer.note(None, "m1", (1,), RECEIVED)
    counted.flight.end_fan_out()
    house.start_writers()
    await writer.writer.flushed()
    assert counted.settled == 1
    assert frail.records.calls.count("write") == 1
    assert await frail.records.received_by("m1") == {1, 2, 3}


async def test_a_notice_over_several_batches_is_held_until_the_last_is_written(make_house: Build, frail: Any) -> None:
    house = make_house(stores=frail, records={"batch_size": 3, "flush_ms": 1})
    writer = house.writers.records
    first, second = await house.counted("m1", "m2")
    writer.note(first.flight, "m1", range(1, 8), RECEIVED)
    writer.note(second.flight, "m2", range(1, 3), RECEIVED)
    for counted in (first, second):
        counted.flight.end_fan_out()
    frail.records.fail("write", 4)
    house.start_writers()
    await writer.writer.flushed()
    assert (first.settled, second.settled) == (1, 1)
    assert await frail.records.received_by("m1") == set(range(1, 8))
    assert await frail.records.received_by("m2") == {1, 2}


async def test_of_a_batch_only_what_is_to_blame_is_set_aside_and_the_notice_is_settled(
    make_house: Build, stores: Stores
) -> None:
    house = make_house(stores=with_store(stores, records=Picky(stores.records, REFUSALS[0])), records={"flush_ms": 1})
    (counted,) = await house.counted("m1")
    house.writers.records.conclude(counted.flight, "success")
    house.writers.records.note(counted.flight, "m1", [1, REFUSED_USER, 3, 4, 5, 6, 7], RECEIVED)
    counted.flight.end_fan_out()
    house.start_writers()
    await house.writers.flushed()
    assert await stores.records.received_by("m1") == {1, 3, 4, 5, 6, 7}
    assert await stores.records.push_record("m1") is not None
    assert counted.settled == 1
    assert await stores.set_aside.counts() == {"records": 1}


async def test_what_cannot_be_set_aside_keeps_the_notice_in_the_journal(
    make_house: Build, stores: Stores, frail: Any
) -> None:
    frail.set_aside.fail("keep")
    house = make_house(stores=with_store(frail, records=Picky(stores.records, REFUSALS[0])), records={"flush_ms": 1})
    (counted,) = await house.counted("m1")
    house.writers.records.note(counted.flight, "m1", [1, REFUSED_USER, 3, 4, 5, 6, 7], RECEIVED)
    counted.flight.end_fan_out()
    house.start_writers()
    await house.writers.flushed()
    assert await stores.records.received_by("m1") == {1, 3, 4, 5, 6, 7}
    assert counted.settled == 0


async def test_names_that_cannot_be_had_keep_no_receipt_from_being_written(make_house: Build, frail: Any) -> None:
    house = make_house(stores=frail)
    frail.directory.fail("users", 5, TypeError("odd"))
    (counted,) = await house.counted("m1")
    house.writers.records.note(counted.flight, "m1", [1, 2], RECEIVED)
    house.start_writers()
    await house.writers.flushed()
    assert await frail.records.received_by("m1") == {1, 2}


async def test_two_notices_of_the_same_id_are_both_held_until_written(make_house: Build) -> None:
    """An id may be used again after the dedup window, while records still wait for their store."""
    house = make_house()
    first, second = await house.counted("m1", "m1")
    for counted in (first, second):
        house.writers.records.note(counted.flight, "m1", [1], OFFLINE)
        house.writers.records.conclude(counted.flight, "success")
        counted.flight.end_fan_out()
        assert counted.settled == 0
    house.start_writers()
    await house.writers.flushed()
    assert (first.settled, second.settled) == (1, 1)


@pytest.mark.parametrize("operation", ["mark", "received"])
async def test_records_do_not_wait_for_the_directory(make_house: Build, frail: Any, operation: str) -> None:
    """Names are missing then; whether a user received a notice is known all the same."""
    house = make_house(stores=frail)
    house.start_writers()
    frail.directory.fail("users", 1000)
    (counted,) = await house.counted("m1")
    house.writers.records.note(counted.flight, "m1", [1], RECEIVED)
    checks: dict[str, Callable[[], Awaitable[Any]]] = {
        "mark": lambda: house.acknowledgements.mark(1, ["m1"], Mark.READ),
        "received": house.writers.flushed,
    }
    async with asyncio.timeout(5):
        await checks[operation]()
    assert await frail.records.received_by("m1") == {1}


async def test_who_asks_for_some_users_does_not_wait_for_others(make_house: Build) -> None:
    house = make_house(records={"flush_ms": 60_000})
    house.start_all()
    flight = await house.publish(target="custom", user_ids=[1])
    async with asyncio.timeout(1):
        await house.writers.records_written({2})
    assert await house.stores.records.not_received_by(flight.notice.message_id) == []
    async with asyncio.timeout(5):
        await house.writers.records_written({1, 2})
    assert await house.stores.records.not_received_by(flight.notice.message_id) == [1]


async def test_the_loop_runs_while_devices_are_looked_up(make_house: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many User-Agents a batch has and however long each takes."""
    house = make_house()
    for user_id in range(1, 101):
        house.connect(user_id)
    writer = house.writers.records
    looked_up, runs = 0, []

    def slowly(user_agent: str) -> Device:
        nonlocal looked_up
        looked_up += 1
        until = time.monotonic() + SLICE_S / 4
        while time.monotonic() < until:
            pass
        return Device("other", "", "")

    async def run() -> None:
        while True:
            runs.append(looked_up)
            await asyncio.sleep(0)

    monkeypatch.setattr("pushd.writing.records.device_of", slowly)
    (counted,) = await house.counted("m1")
    writer.note(counted.flight, "m1", range(1, 101), RECEIVED)
    house.start_writers()
    running = asyncio.create_task(run())
    await writer.writer.flushed()
    running.cancel()
    assert looked_up == 100
    assert max(later - earlier for earlier, later in pairwise(runs)) <= 2 * ROWS_PER_CLOCK_READING
