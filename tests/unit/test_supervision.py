"""Background tasks run again when they fail, and only what fails again and again ends the daemon."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from pushd.errors import StartError, StoreError, StoreUnavailable
from pushd.retry import Backoff
from pushd.telemetry import supervision
from pushd.telemetry.health import Health
from pushd.telemetry.metrics import Metrics
from pushd.telemetry.supervision import supervised
from tests.daemon import until
from tests.unit.parts import Clock


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def health(metrics: Metrics) -> Health:
    return Health(metrics, Clock())


class Work:
    """Fails so often, then works until it is cancelled."""

    def __init__(self, failures: int, error: BaseException | None = None) -> None:
        self.failures = failures
        self.error = error or ValueError("odd")
        self.runs = 0
        self.is_running = False
        self.was_cancelled = False

    async def run(self) -> None:
        self.runs += 1
        if self.runs <= self.failures:
            raise self.error
        self.is_running = True
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.was_cancelled = True
            raise


async def ended(health: Health, *works: Work, within_s: float = supervision.FAILURES_WITHIN_S) -> None:
    """Until all works run."""
    by_name = {f"work {number}": work.run for number, work in enumerate(works)}
    async with supervised(by_name, health, within_s=within_s, first_pause_s=0.0):
        await until(lambda: all(work.is_running for work in works))


@pytest.mark.parametrize(
    "error", [ValueError("odd"), RecursionError(), MemoryError(), asyncio.CancelledError(), BaseException("a panic")]
)
async def test_what_fails_is_run_again(health: Health, metrics: Metrics, error: BaseException) -> None:
    frail, sound = Work(4, error), Work(0)
    await ended(health, frail, sound)
    assert (frail.runs, sound.runs) == (5, 1)
    assert frail.was_cancelled
    assert sound.was_cancelled
    assert metrics.errors.labels("background").value == 4
    assert health.last_error == "work 0 failed"


@pytest.mark.parametrize("error", [ValueError("odd"), asyncio.CancelledError()])
async def test_what_fails_again_and_again_ends_the_block(health: Health, error: BaseException) -> None:
    broken, sound = Work(1_000_000, error), Work(0)
    with pytest.raises(StartError, match="work 0 failed"):
        await ended(health, broken, sound)
    assert broken.runs == supervision.FAILURES_MOST
    assert sound.was_cancelled


async def test_what_fails_now_and_then_never_does(health: Health) -> None:
    frail = Work(50)
    await ended(health, frail, within_s=-1.0)
    assert frail.runs == 51


@pytest.mark.parametrize("error", [StoreError("records", "odd"), StoreUnavailable("journal", "disk is full")])
async def test_a_store_that_fails_is_no_broken_machinery(health: Health, metrics: Metrics, error: StoreError) -> None:
    frail = Work(50, error)
    with capture_logs() as logs:
        await ended(health, frail)
    assert frail.runs == 51
    assert metrics.errors.labels("background").value == 50
    assert health.error == "work 0 failed"
    (entry,) = logs  # once, since the cause is the same
    assert (entry["event"], entry["task"]) == ("failed, and is run again", "work 0")
    assert entry["error"] == str(error)


@pytest.mark.parametrize(("within_s", "resets"), [(0.0, 3), (1000.0, 0)])
async def test_what_ran_for_a_while_before_it_failed_is_run_again_soon(
    health: Health, within_s: float, resets: int
) -> None:
    class Pauses(Backoff):
        resets = 0

        def reset(self) -> None:
            self.resets += 1

    frail, pauses = Work(3), Pauses(0.0)
    running = asyncio.create_task(supervision._run_again("frail", frail.run, health, within_s, pauses))
    await until(lambda: frail.is_running)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert pauses.resets == resets


async def test_what_ends_by_itself_is_run_again(health: Health) -> None:
    runs: list[Any] = []

    async def end() -> None:
        runs.append(None)
        if len(runs) == 3:
            await asyncio.Event().wait()

    async with supervised({"short": end}, health, first_pause_s=0.0):
        await until(lambda: len(runs) == 3)
