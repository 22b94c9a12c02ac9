"""Background tasks run again when they fail, and only what fails again and again ends the daemon."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pushd import retry
from pushd.errors import StartError
from pushd.telemetry import supervision
from pushd.telemetry.health import Health
from pushd.telemetry.metrics import Metrics
from pushd.telemetry.supervision import supervised
from tests.daemon import until
from tests.unit.parts import Clock


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "Backoff", lambda **_: retry.Backoff(first_s=0.0))


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


async def ended(*works: Work, health: Health | None = None, metrics: Metrics | None = None) -> None:
    """Until all works run."""
    health, metrics = health or Health(Metrics(), Clock()), metrics or Metrics()
    async with supervised({f"work {number}": work.run for number, work in enumerate(works)}, health, metrics):
        await until(lambda: all(work.is_running for work in works))


@pytest.mark.parametrize(
    "error", [ValueError("odd"), RecursionError(), MemoryError(), asyncio.CancelledError(), BaseException("a panic")]
)
async def test_what_fails_is_run_again(error: BaseException) -> None:
    metrics = Metrics()
    health = Health(metrics, Clock())
    frail, sound = Work(4, error), Work(0)
    await ended(frail, sound, health=health, metrics=metrics)
    assert (frail.runs, sound.runs) == (5, 1)
    assert frail.was_cancelled
    assert sound.was_cancelled
    assert metrics.errors.labels("background").value == 4
    assert health.last_error == "work 0 failed"


@pytest.mark.parametrize("error", [ValueError("odd"), asyncio.CancelledError()])
async def test_what_fails_again_and_again_ends_the_block(error: BaseException) -> None:
    broken, sound = Work(1_000_000, error), Work(0)
    with pytest.raises(StartError, match="work 0 failed"):
        await ended(broken, sound)
    assert broken.runs == supervision.FAILURES_MOST
    assert sound.was_cancelled


async def test_what_fails_now_and_then_never_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "FAILURES_WITHIN_S", -1.0)
    frail = Work(50)
    await ended(frail)
    assert frail.runs == 51


async def test_what_ends_by_itself_is_run_again() -> None:
    runs: list[Any] = []

    async def end() -> None:
        runs.append(None)
        if len(runs) == 3:
            await asyncio.Event().wait()

    async with supervised({"short": end}, Health(Metrics(), Clock()), Metrics()):
        await until(lambda: len(runs) == 3)
