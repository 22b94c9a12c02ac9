"""Writing behind: order, repetition, barriers, and what holds a notice until it is written."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pushd.errors import StoreError, StoreUnavailable
from pushd.metrics import Metrics, total
from pushd.model import Channel, DeliveryStatus, Mark, Outcome, PushRecord
from pushd.outbox import MailboxWriter, RecordWriter, SettledWriter, WriteBehind, merged
from pushd.publication import Publication
from tests.daemon import until
from tests.unit.parts import START_MS, House, notice

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


class Paper:
    """A writer's source and target: what is put here is collected, and written when the target has no fault."""

    def __init__(self, delay_s: float = 0.0) -> None:
        self.given: list[int] = []
        self.written: list[int] = []
        self.faults: list[Exception] = []
        self.is_down = False
        self.gate = asyncio.Event()
        self.gate.set()
        self.metrics = Metrics()
        self.writer: WriteBehind[list[int]] = WriteBehind(
            "paper", self._collect, self._write, self.metrics, lambda: delay_s
        )

    def put(self, *numbers: int) -> None:
        self.given += numbers
        self.writer.wake()

    def _collect(self) -> list[list[int]]:
        given, self.given = self.given, []
        return [given[start : start + 2] for start in range(0, len(given), 2)]

    async def _write(self, batch: list[int]) -> None:
        await self.gate.wait()
        if self.is_down:
            raise StoreUnavailable("paper", "no")
        if self.faults:
            raise self.faults.pop(0)
        self.written += batch


Running = Callable[[Paper], "asyncio.Task[None]"]


@pytest.fixture
async def running(_hurry: None) -> Any:
    tasks: list[asyncio.Task[None]] = []

    def run(paper: Paper) -> asyncio.Task[None]:
        tasks.append(asyncio.create_task(paper.writer.run()))
        return tasks[-1]

    yield run
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def begun(paper: Paper) -> None:
    """The writer has collected what there was."""
    await until(lambda: not paper.given)


async def test_with_nothing_given_everything_is_flushed_at_once() -> None:
    await Paper().writer.flushed()


async def test_writes_in_order_and_in_batches(running: Running) -> None:
    paper = Paper()
    running(paper)
    paper.put(1, 2, 3)
    await paper.writer.flushed()
    paper.put(4)
    await paper.writer.flushed()
    assert paper.written == [1, 2, 3, 4]


async def test_flushed_before_the_writer_runs_waits_for_it(running: Running) -> None:
    paper = Paper()
    paper.put(1)
    flushed = asyncio.create_task(paper.writer.flushed())
    await asyncio.sleep(0)
    assert not flushed.done()
    running(paper)
    await flushed
    assert paper.written == [1]


async def test_a_flush_does_not_wait_for_the_delay(running: Running) -> None:
    paper = Paper(delay_s=3600)
    running(paper)
    paper.put(1)
    await asyncio.sleep(0)  # the writer lets more come by now
    await asyncio.sleep(0)
    assert paper.written == []
    paper.put(2)
    async with asyncio.timeout(5):
        await paper.writer.flushed()
    assert paper.written == [1, 2]


async def test_the_delay_gathers_and_ends_by_itself(running: Running) -> None:
    paper = Paper(delay_s=0.001)
    running(paper)
    paper.put(1)
    await until(lambda: paper.written == [1])


async def test_flushed_during_a_write_waits_for_what_was_given_before_it(running: Running) -> None:
    paper = Paper()
    running(paper)
    paper.gate.clear()
    paper.put(1)
    await begun(paper)
    early = asyncio.create_task(paper.writer.flushed())
    paper.put(2)
    late = asyncio.create_task(paper.writer.flushed())
    await asyncio.sleep(0)
    assert not early.done()
    assert not late.done()
    paper.gate.set()
    await late
    assert paper.written == [1, 2]
    await early


async def test_many_concurrent_flushes(running: Running) -> None:
    paper = Paper()
    running(paper)

    async def put_and_flush(number: int) -> None:
        paper.put(number)
        await paper.writer.flushed()
        assert number in paper.written

    await asyncio.gather(*(put_and_flush(number) for number in range(50)))
    assert paper.written == list(range(50))


async def test_repeats_what_the_store_could_not_take_and_keeps_the_order(running: Running) -> None:
    paper = Paper()
    running(paper)
    paper.is_down = True
    paper.put(1, 2, 3)
    flushed = asyncio.create_task(paper.writer.flushed())
    await until(lambda: paper.writer.failure)
    assert not flushed.done()
    assert paper.writer.failure == "paper: no"
    paper.put(4)
    paper.is_down = False
    await flushed
    await paper.writer.flushed()
    assert paper.written == [1, 2, 3, 4]
    assert paper.writer.failure == ""
    assert total(paper.metrics.errors) == 0


async def test_flushed_while_the_store_is_down_waits_until_it_is_back(running: Running) -> None:
    paper = Paper()
    running(paper)
    paper.is_down = True
    paper.put(1)
    await until(lambda: paper.writer.failure)
    flushed = asyncio.gather(paper.writer.flushed(), paper.writer.flushed())
    await asyncio.sleep(0)
    assert not flushed.done()
    paper.is_down = False
    await flushed
    assert paper.written == [1]


async def test_gives_up_what_the_store_refuses_for_good_and_goes_on(running: Running) -> None:
    paper = Paper()
    running(paper)
    paper.faults = [StoreError("paper", "never")]
    paper.put(1, 2, 3)
    await paper.writer.flushed()
    assert paper.written == [3]
    assert total(paper.metrics.errors) == 1
    assert paper.writer.failure == ""


async def test_who_waits_when_the_writer_ends_is_told(running: Running) -> None:
    paper = Paper()
    task = running(paper)
    paper.gate.clear()
    paper.put(1)
    await begun(paper)
    waiting = [asyncio.create_task(paper.writer.flushed()) for _ in range(2)]
    given_up = asyncio.create_task(paper.writer.flushed())
    await asyncio.sleep(0)
    given_up.cancel()
    await asyncio.sleep(0)
    task.cancel()
    for flushed in waiting:
        with pytest.raises(StoreUnavailable):
            await flushed
    paper.put(2)
    with pytest.raises(StoreUnavailable):
        await paper.writer.flushed()
    assert paper.written == []


# ---- the three writers of a node


class Counted:
    """A publication, and how often it was settled."""

    def __init__(self, seq: int = 1) -> None:
        self.publication = Publication(notice(seq), accepted_at=0.0)
        self.settled = 0
        self.publication.on_settled = self._count

    def _count(self, publication: Publication) -> None:
        self.settled += 1


Build = Callable[..., House]


def record(publication: Publication) -> PushRecord:
    return PushRecord(publication.notice, status="success", total_count=0, online_count=0)


async def test_a_push_record_holds_its_notice_until_it_is_written(make_house: Build, frail: Any) -> None:
    house = make_house(stores=frail)
    writer: RecordWriter = house.outbox.records
    counted = Counted()
    writer.push_record(counted.publication, record(counted.publication))
    counted.publication.end_fan_out()
    assert counted.settled == 0
    frail.records.fail("write", 2)
    house.start_writers()
    await writer.writer.flushed()
    assert counted.settled == 1
    assert await frail.records.receive_status("m1") is not None


async def test_receipts_of_one_notice_become_one_write_and_hold_it_once(make_house: Build, frail: Any) -> None:
    house = make_house(stores=frail)
    writer = house.outbox.records
    counted = Counted()
    writer.note(counted.publication, "m1", [1, 2], OFFLINE)
    writer.note(counted.publication, "m1", [2, 3], RECEIVED)
    writer.note(counted.publication, "m1", [], RECEIVED)
    writer.note(None, "m1", (1,), RECEIVED)
    counted.publication.end_fan_out()
    house.start_writers()
    await writer.writer.flushed()
    assert counted.settled == 1
    assert frail.records.calls.count("write") == 1
    assert await frail.records.received_by("m1") == {1, 2, 3}


async def test_a_notice_over_several_batches_is_held_until_the_last_is_written(make_house: Build, frail: Any) -> None:
    house = make_house(stores=frail, records={"batch_size": 3, "flush_ms": 1})
    writer = house.outbox.records
    first, second = Counted(1), Counted(2)
    writer.note(first.publication, "m1", range(1, 8), RECEIVED)
    writer.note(second.publication, "m2", range(1, 3), RECEIVED)
    for counted in (first, second):
        counted.publication.end_fan_out()
    frail.records.fail("write", 4)
    house.start_writers()
    await writer.writer.flushed()
    assert (first.settled, second.settled) == (1, 1)
    assert await frail.records.received_by("m1") == set(range(1, 8))
    assert await frail.records.received_by("m2") == {1, 2}


async def test_a_notice_of_which_a_batch_was_given_up_stays_in_the_journal(make_house: Build, frail: Any) -> None:
    house = make_house(stores=frail, records={"batch_size": 3, "flush_ms": 1})
    counted = Counted()
    house.outbox.records.note(counted.publication, "m1", range(1, 8), RECEIVED)
    counted.publication.end_fan_out()
    frail.records.fail("write", 1, StoreError("records", "never"))
    house.start_writers()
    await house.outbox.flushed()
    assert await frail.records.received_by("m1") == set(range(4, 8))
    assert counted.settled == 0


async def test_two_notices_of_the_same_id_are_both_held_until_written(make_house: Build) -> None:
    """An id may be used again after the dedup window, while records still wait for their store."""
    house = make_house()
    first, second = Counted(1), Counted(1)
    for counted in (first, second):
        house.outbox.records.note(counted.publication, "m1", [1], OFFLINE)
        house.outbox.records.push_record(counted.publication, record(counted.publication))
        counted.publication.end_fan_out()
        assert counted.settled == 0
    house.start_writers()
    await house.outbox.flushed()
    assert (first.settled, second.settled) == (1, 1)


async def test_saves_and_removals_keep_their_order(make_house: Build, frail: Any) -> None:
    house = make_house(stores=frail)
    writer: MailboxWriter = house.outbox.mailbox
    counted = [Counted(seq) for seq in range(1, 5)]

    def save(index: int, *user_ids: int) -> None:
        writer.save(counted[index].publication, house.item_of(counted[index].publication.notice), user_ids)

    save(0, 1, 2)
    writer.remove(1, ["m1"])
    writer.remove(2, ["m1"])
    save(1, 1)
    save(2, 1)
    writer.remove(1, ["m2", "m4"])
    save(3, 1)
    save(0, 2)
    for one in counted:
        one.publication.end_fan_out()
    frail.mailbox.fail("save", 2)
    frail.mailbox.fail("remove", 2)
    house.start_writers()
    await writer.writer.flushed()
    assert await house.mailbox(1) == ["m3", "m4"]
    assert await house.mailbox(2) == ["m1"]
    assert [one.settled for one in counted] == [1, 1, 1, 1]
    assert total(house.metrics.mailbox_saved) == 6


async def test_saved_only_after_the_store_says_so(make_house: Build, frail: Any) -> None:
    house = make_house(stores=frail)
    counted = Counted()
    gate = frail.mailbox.hold("save")
    house.outbox.mailbox.save(counted.publication, house.item_of(counted.publication.notice), [1])
    counted.publication.end_fan_out()
    house.start_writers()
    await until(lambda: "save" in frail.mailbox.calls)
    assert not counted.publication.is_delivered
    gate.set()
    await house.outbox.flushed()
    assert counted.publication.is_delivered
    assert counted.settled == 1


async def test_settled_entries_leave_the_journal(make_house: Build, frail: Any) -> None:
    house = make_house(stores=frail)
    writer: SettledWriter = house.outbox.settled
    counted = [Counted(seq) for seq in (1, 2, 3)]
    await frail.journal.append([one.publication.notice for one in counted])
    frail.journal.fail("settle", 2)
    house.start_writers()
    writer.settle(counted[0].publication)
    writer.settle(counted[2].publication)
    await writer.writer.flushed()
    assert await house.unsettled() == ["m2"]


@pytest.mark.parametrize("operation", ["mark", "received"])
async def test_records_do_not_wait_for_the_directory(make_house: Build, frail: Any, operation: str) -> None:
    """Names are missing then; whether a user received a notice is known all the same."""
    house = make_house(stores=frail)
    house.start_writers()
    frail.directory.fail("users", 1000)
    house.outbox.records.note(Counted(1).publication, "m1", [1], RECEIVED)
    checks: dict[str, Callable[[], Awaitable[Any]]] = {
        "mark": lambda: house.receipts.mark(1, ["m1"], Mark.READ),
        "received": house.outbox.flushed,
    }
    async with asyncio.timeout(5):
        await checks[operation]()
    assert await frail.records.received_by("m1") == {1}


async def test_who_asks_for_some_users_does_not_wait_for_others(make_house: Build) -> None:
    house = make_house(records={"flush_ms": 60_000})
    house.start_all()
    publication = await house.publish(target="custom", user_ids=[1])
    records = house.outbox.records
    async with asyncio.timeout(1):
        await records.written_for({2})
    assert await house.stores.records.receive_status(publication.notice.message_id) is None
    async with asyncio.timeout(5):
        await records.written_for({1, 2})
    assert await house.stores.records.receive_status(publication.notice.message_id) is not None
