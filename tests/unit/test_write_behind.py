"""Writing behind: order, repetition, barriers, and the way over the disk while a store is away."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from pushd.errors import StoreError, StoreUnavailable
from pushd.ports import Stores
from pushd.telemetry.metrics import Metrics
from pushd.writing.set_aside import SetAsideData
from pushd.writing.write_behind import COLLECT_ATTEMPTS, Backing, WriteBehind
from tests.daemon import until
from tests.unit.parts import want_all


class Paper:
    """A writer's source and target: what is put here is collected, and written when the target has no fault."""

    name = "paper"

    def __init__(
        self,
        delay_s: float = 0.0,
        outbox: Any = None,
        on_disk: int = 0,
        set_aside: Any = None,
        size: int = 2,
        **pauses: float,
    ) -> None:
        self.size = size  # of a batch
        self.given: list[int] = []
        self.written_numbers: list[int] = []
        self.secured: list[int] = []
        self.given_up: list[int] = []
        self.poison: dict[int, Exception] = {}
        self.faults: deque[Exception] = deque()
        self.is_down = False
        self.gate = asyncio.Event()
        self.gate.set()
        self.metrics = Metrics()
        self.set_aside = SetAsideData(set_aside, self.metrics)
        backing = Backing(self.metrics, self.set_aside, outbox, {"paper": on_disk}, **{"retry_first_s": 0.0, **pauses})
        self.writer: WriteBehind[list[int]] = WriteBehind(self, backing, lambda: delay_s)

    def put(self, *numbers: int) -> None:
        self.given += numbers
        self.writer.wake(numbers)

    def collect(self) -> list[list[int]]:
        given, self.given = self.given, []
        return [given[start : start + self.size] for start in range(0, len(given), self.size)]

    async def write(self, batch: list[int]) -> None:
        await self.gate.wait()
        if self.is_down:
            raise StoreUnavailable("paper", "no")
        if self.faults:
            raise self.faults.popleft()
        for number in batch:
            if number in self.poison:
                raise self.poison[number]
        self.written_numbers += batch

    def written(self, batch: list[int]) -> None:
        self.secured += batch

    def gave_up(self, batch: list[int]) -> None:
        self.given_up += batch

    def parts(self, batch: list[int]) -> list[list[int]]:
        half = len(batch) // 2
        return [batch[:half], batch[half:]] if half else [batch]

    async def encode(self, batch: list[int]) -> bytes:
        return msgspec.json.encode(batch)

    def decode(self, body: bytes) -> list[int]:
        return msgspec.json.decode(body, type=list[int])


async def wanted(stores: Stores) -> list[tuple[int, str, bytes]]:
    """All that is set aside."""
    await want_all(stores)
    return await stores.set_aside.wanted([], 1000)


Running = Callable[[Paper], "asyncio.Task[None]"]


@pytest.fixture
async def running() -> Any:
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
    assert paper.written_numbers == [1, 2, 3, 4]


async def test_flushed_before_the_writer_runs_waits_for_it(running: Running) -> None:
    paper = Paper()
    paper.put(1)
    flushed = asyncio.create_task(paper.writer.flushed())
    await asyncio.sleep(0)
    assert not flushed.done()
    running(paper)
    await flushed
    assert paper.written_numbers == [1]


async def test_a_flush_does_not_wait_for_the_delay(running: Running) -> None:
    paper = Paper(delay_s=3600)
    running(paper)
    paper.put(1)
    await asyncio.sleep(0)  # the writer lets more come by now
    await asyncio.sleep(0)
    assert paper.written_numbers == []
    paper.put(2)
    async with asyncio.timeout(5):
        await paper.writer.flushed()
    assert paper.written_numbers == [1, 2]


async def test_the_delay_gathers_and_ends_by_itself(running: Running) -> None:
    paper = Paper(delay_s=0.001)
    running(paper)
    paper.put(1)
    await until(lambda: paper.written_numbers == [1])


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
    assert paper.written_numbers == [1, 2]
    await early


async def test_many_concurrent_flushes(running: Running) -> None:
    paper = Paper()
    running(paper)

    async def put_and_flush(number: int) -> None:
        paper.put(number)
        await paper.writer.flushed()
        assert number in paper.written_numbers

    await asyncio.gather(*(put_and_flush(number) for number in range(50)))
    assert paper.written_numbers == list(range(50))


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
    assert paper.written_numbers == [1, 2, 3, 4]
    assert paper.writer.failure == ""
    assert paper.metrics.errors.value == 0


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
    assert paper.written_numbers == [1]


@pytest.mark.parametrize("error", [StoreError("paper", "never"), TypeError("odd"), RecursionError(), MemoryError()])
async def test_sets_aside_what_can_never_be_written_and_writes_the_rest_in_order(
    running: Running, stores: Stores, error: Exception
) -> None:
    paper = Paper(set_aside=stores.set_aside, size=8)
    running(paper)
    paper.poison = {5: error}
    paper.put(*range(1, 11))
    await paper.writer.flushed()
    assert paper.written_numbers == paper.secured == [1, 2, 3, 4, 6, 7, 8, 9, 10]
    assert paper.given_up == [5]
    assert paper.writer.failure == ""
    assert paper.metrics.set_aside.labels("paper").value == 1
    ((_, kind, body),) = await wanted(stores)
    assert (kind, body) == ("paper", b"[5]")


async def test_what_fails_once_in_a_way_nobody_foresaw_is_written_all_the_same(running: Running) -> None:
    paper = Paper()
    running(paper)
    paper.faults.append(ValueError("odd"))
    paper.put(1, 2, 3)
    await paper.writer.flushed()
    assert paper.written_numbers == [1, 2, 3]
    assert paper.metrics.errors.labels("store_write").value == 1


async def test_a_cancellation_by_somebody_else_is_a_failure_like_any_other(running: Running) -> None:
    paper = Paper()
    task = running(paper)
    paper.faults.append(asyncio.CancelledError())  # type: ignore[arg-type]
    paper.put(1)
    await paper.writer.flushed()
    assert paper.written_numbers == [1]
    assert not task.done()


async def test_what_cannot_be_set_aside_is_not_settled_and_the_rest_is_written(running: Running, frail: Any) -> None:
    paper = Paper(set_aside=frail.set_aside)
    running(paper)
    frail.set_aside.fail("keep")
    paper.poison = {1: TypeError("odd")}
    paper.put(1, 2, 3)
    await paper.writer.flushed()
    assert paper.secured == [2, 3]
    assert paper.given_up == []
    assert paper.metrics.errors.labels("set_aside").value == 1


async def test_what_cannot_even_be_encoded_is_set_aside_for_people_to_read(
    running: Running, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    paper = Paper(outbox=stores.outbox, set_aside=stores.set_aside)
    encode = paper.encode

    async def refuse(batch: list[int]) -> bytes:
        if 2 in batch:
            raise OverflowError("too big")
        return await encode(batch)

    monkeypatch.setattr(paper, "encode", refuse)
    running(paper)
    paper.is_down = True
    paper.put(1, 2, 3)
    await paper.writer.secured()
    assert (paper.secured, paper.given_up) == ([1, 3], [2])
    ((_, kind, body),) = await wanted(stores)
    assert (kind, body) == ("paper", b"[2]")


async def test_a_failed_collection_is_repeated_and_in_the_end_by_the_next_run(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    paper = Paper()
    with monkeypatch.context() as patched:
        patched.setattr(paper, "collect", lambda: 1 / 0)
        paper.put(1)
        with pytest.raises(ZeroDivisionError):
            await paper.writer.run()
    assert paper.metrics.errors.labels("store_write").value == COLLECT_ATTEMPTS - 1
    running(paper)
    await until(lambda: paper.written_numbers == [1])


# ---- back from aside


async def test_what_is_taken_back_is_written_behind_what_waits(running: Running, stores: Stores) -> None:
    paper = Paper(outbox=stores.outbox, set_aside=stores.set_aside)
    running(paper)
    await stores.set_aside.keep("paper", "why", b"[7]")
    paper.is_down = True
    paper.put(1)
    await paper.writer.secured()
    await want_all(stores)
    await paper.set_aside.look()
    assert await stores.set_aside.counts() == {}
    paper.is_down = False
    await paper.writer.flushed()
    assert paper.written_numbers == [1, 7]


async def test_what_fails_again_is_set_aside_again(running: Running, stores: Stores) -> None:
    paper = Paper(outbox=stores.outbox, set_aside=stores.set_aside)
    running(paper)
    paper.poison = {7: TypeError("odd")}
    await stores.set_aside.keep("paper", "why", b"[7]")
    await stores.set_aside.keep("paper", "why", b"nonsense")
    await want_all(stores)
    await paper.set_aside.look()
    await until(lambda: paper.given_up == [7])
    await paper.set_aside.look()
    assert await stores.set_aside.wanted([], 10) == []
    assert await stores.set_aside.counts() == {"paper": 2}
    assert paper.writer.on_disk == 0


async def test_what_was_refused_for_good_does_not_count_as_a_store_that_is_away(
    running: Running, stores: Stores
) -> None:
    """Else, long after, who flushes would be told so without anything being wrong."""
    paper = Paper(set_aside=stores.set_aside, patience_s=0.0)
    running(paper)
    paper.faults.append(StoreError("paper", "never"))
    paper.put(1)
    await paper.writer.flushed()
    assert paper.writer.failure == ""
    paper.put(2)
    await paper.writer.flushed()
    assert paper.written_numbers == [2]


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
    assert paper.written_numbers == []


async def test_a_flush_gives_up_on_a_store_that_stays_away(running: Running) -> None:
    paper = Paper(patience_s=0.01)
    running(paper)
    paper.is_down = True
    paper.put(1)
    with pytest.raises(StoreUnavailable, match="paper: no"):
        await paper.writer.flushed()
    with pytest.raises(StoreUnavailable, match="paper: no"):  # at once, now that it is known
        await paper.writer.flushed()
    paper.is_down = False
    await until(lambda: paper.written_numbers == [1])


# ---- over the disk


async def on_disk(stores: Stores) -> int:
    return (await stores.outbox.counts()).get("paper", 0)


async def test_what_the_store_cannot_take_waits_on_disk_in_order(running: Running, stores: Stores) -> None:
    paper = Paper(outbox=stores.outbox)
    running(paper)
    paper.is_down = True
    paper.put(1, 2, 3)
    await paper.writer.secured()
    paper.put(4)
    await paper.writer.secured()
    assert paper.written_numbers == []
    assert paper.secured == [1, 2, 3, 4]
    assert (paper.writer.on_disk, await on_disk(stores)) == (3, 3)
    paper.is_down = False
    paper.put(5)
    await paper.writer.flushed()
    assert paper.written_numbers == [1, 2, 3, 4, 5]
    assert (paper.writer.on_disk, await on_disk(stores), paper.writer.failure) == (0, 0, "")


async def test_nothing_new_is_needed_for_the_disk_to_be_emptied(running: Running, stores: Stores) -> None:
    paper = Paper(outbox=stores.outbox)
    running(paper)
    paper.is_down = True
    paper.put(1)
    await paper.writer.secured()
    paper.is_down = False
    await until(lambda: paper.written_numbers == [1])


async def test_what_a_former_process_left_on_disk_goes_first(running: Running, stores: Stores) -> None:
    await stores.outbox.append("paper", [b"[1,2]", b"[3]"])
    await stores.outbox.append("other", [b"[9]"])
    paper = Paper(outbox=stores.outbox, on_disk=(await stores.outbox.counts())["paper"])
    paper.put(4)
    running(paper)
    await paper.writer.flushed()
    assert paper.written_numbers == [1, 2, 3, 4]
    assert await stores.outbox.counts() == {"other": 1}


async def test_what_was_written_from_disk_is_not_written_again(running: Running, stores: Stores) -> None:
    await stores.outbox.append("paper", [b"[1]", b"[2]", b"[3]"])
    paper = Paper(outbox=stores.outbox, on_disk=3)
    write = paper.write

    async def fail_once(batch: list[int]) -> None:
        if batch == [3] and not paper.faults:
            paper.faults.append(StoreUnavailable("paper", "in the midst"))
        await write(batch)

    paper.write = fail_once  # type: ignore[method-assign]
    running(paper)
    await until(lambda: paper.writer.on_disk == 1)
    paper.write = write  # type: ignore[method-assign]
    await paper.writer.flushed()
    assert paper.written_numbers == [1, 2, 3]


async def test_what_can_never_be_written_is_set_aside_from_the_disk(running: Running, stores: Stores) -> None:
    await stores.outbox.append("paper", [b"nonsense", b"[1,3,4]", b"[2]"])
    paper = Paper(outbox=stores.outbox, on_disk=3, set_aside=stores.set_aside)
    paper.poison = {3: StoreError("paper", "never")}
    running(paper)
    await paper.writer.flushed()
    assert paper.written_numbers == [1, 4, 2]
    assert await on_disk(stores) == 0
    assert [body for _, _, body in await wanted(stores)] == [b"nonsense", b"[3]"]


async def test_what_cannot_be_set_aside_stays_on_disk(running: Running, frail: Any) -> None:
    await frail.outbox.append("paper", [b"nonsense", b"[1]"])
    paper = Paper(outbox=frail.outbox, on_disk=2, set_aside=frail.set_aside)
    frail.set_aside.fail("keep", 2)
    running(paper)
    await paper.writer.flushed()
    assert paper.written_numbers == [1]
    assert paper.metrics.set_aside.labels("paper").value == 1


async def test_while_the_disk_refuses_too_it_waits_in_memory(running: Running, frail: Any) -> None:
    paper = Paper(outbox=frail.outbox)
    running(paper)
    frail.outbox.fail("append", 3)
    paper.is_down = True
    paper.put(1, 2, 3)
    await until(lambda: frail.outbox.calls.count("append") >= 2)
    await paper.writer.secured()
    assert frail.outbox.calls.count("append") == 5  # of two batches
    assert paper.secured == [1, 2, 3]
    frail.outbox.fail("append", 1000)
    paper.put(4)
    paper.is_down = False
    await paper.writer.flushed()
    frail.outbox.work()
    assert paper.written_numbers == [1, 2, 3, 4]


async def test_who_asks_for_some_users_waits_for_what_is_on_disk_of_them(running: Running, stores: Stores) -> None:
    paper = Paper(outbox=stores.outbox)
    running(paper)
    paper.is_down = True
    paper.put(1, 2)
    await paper.writer.secured()
    await paper.writer.written_for({3})
    asked = asyncio.create_task(paper.writer.written_for({2, 3}))
    await asyncio.sleep(0)
    assert not asked.done()
    paper.is_down = False
    await asked
    assert paper.written_numbers == [1, 2]


async def test_of_a_former_process_it_is_not_known_whom_it_concerns(running: Running, stores: Stores) -> None:
    await stores.outbox.append("paper", [b"[1]"])
    paper = Paper(outbox=stores.outbox, on_disk=1)
    running(paper)
    await paper.writer.written_for({7})
    assert paper.written_numbers == [1]


async def test_writes_give_way_while_nobody_waits_for_them(running: Running) -> None:
    paper, fan_outs, arrivals = Paper(), ["one"], [1, 2]
    for queue in (fan_outs, arrivals):
        paper.writer.give_way_to(queue)
    running(paper)
    paper.put(1)
    await begun(paper)
    for _ in range(3):
        await asyncio.sleep(0)
    assert paper.written_numbers == []
    fan_outs.clear()
    assert paper.writer.gives_way
    arrivals.clear()
    assert not paper.writer.gives_way
    await until(lambda: paper.written_numbers == [1])


async def test_writes_do_not_give_way_to_those_who_wait_for_them(running: Running) -> None:
    paper = Paper(give_way_most_s=1000.0)
    paper.writer.give_way_to(["one"])
    running(paper)
    paper.put(1)
    await begun(paper)
    paper.put(2)
    async with asyncio.timeout(5):
        await paper.writer.flushed()
    assert paper.written_numbers == [1, 2]


async def test_writes_do_not_give_way_for_ever(running: Running) -> None:
    paper = Paper(give_way_most_s=0.02)
    paper.writer.give_way_to(["one"])
    running(paper)
    paper.put(1, 2, 3)
    await until(lambda: paper.written_numbers == [1, 2, 3])
