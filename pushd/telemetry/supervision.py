"""Background tasks: owned, run again when they fail, and fatal when that does not help."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import structlog

from pushd.errors import PushdError, StartError, StoreError
from pushd.ports import Work
from pushd.retry import Backoff
from pushd.telemetry import faults
from pushd.telemetry.health import Health

log = structlog.get_logger("pushd")

# A background task that failed is run again; so many failures within such a time are no one item's fault.
FAILURES_MOST, FAILURES_WITHIN_S = 5, 10.0
PAUSE_FIRST_S, PAUSE_MOST_S = 0.05, 1.0  # before it is run again


@asynccontextmanager
async def supervised(
    works: Mapping[str, Work],
    health: Health,
    *,
    within_s: float = FAILURES_WITHIN_S,
    first_pause_s: float = PAUSE_FIRST_S,
) -> AsyncIterator[None]:
    """Run background tasks, by name, until the end of the block. One that fails is run again after a pause.

    One that fails FAILURES_MOST times `within_s` is broken, which ends the block: StartError. A StoreError is no such
    failure: it is about what is stored, or where.
    """
    owner = asyncio.current_task()
    failures: list[BaseException] = []
    tasks = {
        asyncio.create_task(
            _run_again(name, work, health, within_s, Backoff(first_pause_s, PAUSE_MOST_S)), name=name
        ): name
        for name, work in works.items()
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


async def _run_again(name: str, work: Work, health: Health, within_s: float, backoff: Backoff) -> None:
    """Until cancelled. Raises when the machinery has failed FAILURES_MOST times `within_s`.

    A failure that is about one item is caught where the item is handled: this is for those nobody thought of.
    """
    times: deque[float] = deque(maxlen=FAILURES_MOST)
    while True:
        began = time.monotonic()
        try:
            await faults.unless_cancelled(work())
            raise PushdError("ended by itself")
        except Exception as error:
            health.task_failed(name, error)
            if not isinstance(error, StoreError):
                times.append(time.monotonic())
                if len(times) == FAILURES_MOST and times[-1] - times[0] <= within_s:
                    raise
        if time.monotonic() - began > within_s / FAILURES_MOST:
            backoff.reset()
        await asyncio.sleep(backoff.next_s())
