"""Background tasks: owned, run again when they fail, and fatal when that does not help."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import structlog

from pushd.errors import PushdError, StartError
from pushd.retry import Backoff
from pushd.telemetry import faults
from pushd.telemetry.health import Health
from pushd.telemetry.metrics import Metrics

log = structlog.get_logger("pushd")

# A background task that failed is run again; so many failures within such a time are no one item's fault.
FAILURES_MOST, FAILURES_WITHIN_S = 5, 10.0


@asynccontextmanager
async def supervised(
    works: dict[str, Callable[[], Coroutine[Any, Any, None]]], health: Health, metrics: Metrics
) -> AsyncIterator[None]:
    """Run background tasks; one that fails again and again is broken, which ends the block."""
    owner = asyncio.current_task()
    failures: list[BaseException] = []
    tasks = {
        asyncio.create_task(_run_again(name, work, health, metrics), name=name): name for name, work in works.items()
    }
    is_over = False

    def ended(task: asyncio.Task[None]) -> None:
        if is_over:
            return
        error = PushdError("cancelled by itself") if task.cancelled() else task.exception() or PushdError("ended")
        failures.append(error)
        health.last_error = f"{tasks[task]} failed"
        log.critical("background task failed", task=tasks[task], exc_info=error)
        if owner is not None:
            owner.cancel()

    for task in tasks:
        task.add_done_callback(ended)
    try:
        yield
    except asyncio.CancelledError:
        if failures:
            raise StartError(health.last_error) from failures[0]
        raise
    finally:
        is_over = True
        for task in reversed(tasks):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def _run_again(
    name: str, work: Callable[[], Coroutine[Any, Any, None]], health: Health, metrics: Metrics
) -> None:
    """Until cancelled. What fails is run again; raises when it has failed FAILURES_MOST times within their time.

    A failure that is about one item is caught where the item is handled: this is for those nobody thought of.
    """
    backoff = Backoff(most_s=1.0)
    times: deque[float] = deque(maxlen=FAILURES_MOST)
    while True:
        try:
            await faults.unless_cancelled(work())
            raise PushdError("ended by itself")
        except Exception as error:
            health.last_error = f"{name} failed"
            faults.noted(metrics, "background", error, task=name)
            times.append(time.monotonic())
            if len(times) == FAILURES_MOST and times[-1] - times[0] <= FAILURES_WITHIN_S:
                raise
        if times[-1] - times[0] > FAILURES_WITHIN_S:
            backoff.reset()
        await asyncio.sleep(backoff.next_s())
