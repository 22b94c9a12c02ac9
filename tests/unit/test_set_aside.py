"""Setting aside and taking back: nothing of it ends anything else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from pushd.errors import StoreUnavailable
from pushd.ports import Stores
from pushd.telemetry.metrics import Metrics
from pushd.writing.set_aside import CAUSE_CHARS, SetAsideData, cause_of
from tests.daemon import until
from tests.unit.parts import want_all

ODD = ValueError("odd")


@pytest.fixture
def aside(stores: Stores) -> SetAsideData:
    return SetAsideData(stores.set_aside, Metrics())


async def test_what_is_kept_is_counted_and_logged_once(aside: SetAsideData, stores: Stores) -> None:
    with capture_logs() as logged:
        for _ in range(3):
            assert await aside.keep("records", ODD, b"x", message_id="m1")
    assert aside.total == 3
    assert aside.counts == await stores.set_aside.counts() == {"records": 3}
    assert aside._metrics.set_aside.labels("records").value == 3
    assert aside._metrics.errors.value == 0
    assert [(entry["kind"], entry["message_id"]) for entry in logged] == [("set aside: records", "m1")]


@pytest.mark.parametrize("error", [None, TypeError("odd"), MemoryError(), asyncio.CancelledError()])
async def test_failing_to_keep_is_counted_and_ends_nothing(frail: Any, error: Any) -> None:
    aside = SetAsideData(frail.set_aside, Metrics())
    frail.set_aside.fail("keep", 1, error)
    assert not await aside.keep("records", ODD, b"x")
    assert aside._metrics.errors.labels("set_aside").value == 1
    assert aside.total == 0


async def test_what_had_to_go_is_counted_and_logged_once(aside: SetAsideData, stores: Stores) -> None:
    stores.set_aside._most_entries = 2  # type: ignore[attr-defined]
    with capture_logs() as logged:
        for _ in range(6):
            await aside.keep("records", ODD, b"x")
    assert aside._metrics.errors.labels("set_aside_full").value == 4
    assert [entry["event"] for entry in logged].count("too much is set aside: the oldest is lost") == 1


async def test_putting_tells_when_it_is_on_disk_and_only_then(frail: Any) -> None:
    aside = SetAsideData(frail.set_aside, Metrics())
    kept: list[str] = []
    gate = frail.set_aside.pause("keep")
    aside.put("notice", ODD, b"1", lambda: kept.append("1"))
    aside.put("notice", ODD, b"2", lambda: kept.append(1 / 0))  # type: ignore[arg-type]
    await until(lambda: frail.set_aside.calls.count("keep") == 2)
    assert kept == []
    gate.set()
    await aside.finished()
    frail.set_aside.fail("keep")
    aside.put("notice", ODD, b"3", lambda: kept.append("3"))
    await aside.finished()
    assert kept == ["1"]
    assert aside.counts == {"notice": 2}


async def test_not_too_many_wait_for_the_disk(frail: Any) -> None:
    aside = SetAsideData(frail.set_aside, Metrics(), put_most=3)
    gate = frail.set_aside.pause("keep")
    for _ in range(5):
        aside.put("notice", ODD, b"", lambda: None)
    assert aside._metrics.errors.labels("set_aside").value == 2
    gate.set()
    await aside.finished()
    assert aside.counts == {"notice": 3}


class Taker:
    """Takes entries back, and finishes with them when the test says so."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []
        self.done: list[Callable[[], None]] = []
        self.error: Exception | None = None

    async def take(self, body: bytes, done: Callable[[], None]) -> None:
        if self.error is not None:
            raise self.error
        self.taken.append(body)
        self.done.append(done)


async def test_what_is_wanted_is_taken_once_and_dropped_when_done(aside: SetAsideData, stores: Stores) -> None:
    taker = Taker()
    aside.takes("records", taker.take)
    for number in range(50):
        await aside.keep("records", ODD, b"%d" % number)
    await aside.look()
    assert taker.taken == []
    await want_all(stores)
    await aside.look()
    await aside.look()
    assert taker.taken == [b"%d" % number for number in range(50)]
    assert aside.total == 50  # a crash now must not lose them
    for part in (taker.done[:20], taker.done[20:49]):
        for done in part:
            done()
        await aside.look()
    assert aside.counts == {"records": 1}
    assert len(await stores.set_aside.wanted([], 100)) == 1


async def test_what_fails_again_stays_aside_with_its_new_cause(aside: SetAsideData, stores: Stores) -> None:
    taker = Taker()
    taker.error = TypeError("still odd")
    aside.takes("records", taker.take)
    await aside.keep("records", ODD, b"1")
    await aside.keep("of another version", ODD, b"2")
    await want_all(stores)
    await aside.look()
    assert await stores.set_aside.wanted([], 10) == []
    assert aside.total == 2
    assert aside._metrics.set_aside.labels("records").value == 2
    taker.error = None
    await want_all(stores)
    await aside.look()
    assert taker.taken == [b"1"]


async def test_a_store_that_is_away_is_asked_again(aside: SetAsideData, stores: Stores) -> None:
    taker = Taker()
    taker.error = StoreUnavailable("records", "no")
    aside.takes("records", taker.take)
    await aside.keep("records", ODD, b"1")
    await want_all(stores)
    with pytest.raises(StoreUnavailable):
        await aside.look()
    taker.error = None
    await aside.look()
    assert taker.taken == [b"1"]


async def test_looking_goes_on_whatever_happens(frail: Any) -> None:
    aside = SetAsideData(frail.set_aside, Metrics(), look_every_s=0.0)
    frail.set_aside.fail("wanted")
    frail.set_aside.fail("wanted", 2, TypeError("odd"))
    frail.set_aside.fail("counts", 1, asyncio.CancelledError())  # type: ignore[arg-type]
    looking = asyncio.create_task(aside.run())
    await until(lambda: frail.set_aside.calls.count("counts") >= 3)
    looking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await looking
    assert aside._metrics.errors.labels("set_aside").value == 3


def test_causes_are_one_short_printable_line() -> None:
    assert cause_of(ValueError("odd\nand \x1b[31mred\u202e")) == "ValueError: odd and [31mred"
    assert cause_of(RecursionError()) == "RecursionError"
    assert len(cause_of(ValueError("x" * 10_000))) == CAUSE_CHARS
