"""Tasks for what clients ask for: waited for, cancelled, and their failures counted."""

from __future__ import annotations

import asyncio

from pushd.telemetry.metrics import Metrics
from pushd.ws.tasks import Tasks


async def test_all_are_waited_for_and_those_they_begin() -> None:
    tasks, done = Tasks(Metrics()), []

    async def work(left: int) -> None:
        await asyncio.sleep(0)
        done.append(left)
        if left:
            tasks.spawn(work(left - 1))

    tasks.spawn(work(2))
    tasks.spawn(work(0))
    assert len(tasks) == 2
    await tasks.finished()
    assert (sorted(done), len(tasks)) == ([0, 0, 1, 2], 0)


async def test_a_failure_is_counted_and_concerns_no_other() -> None:
    metrics = Metrics()
    tasks, done = Tasks(metrics), asyncio.Event()

    async def fail() -> None:
        raise TypeError("odd")

    async def work() -> None:
        await asyncio.sleep(0)
        done.set()

    tasks.spawn(fail())
    tasks.spawn(work())
    await tasks.finished()
    await asyncio.sleep(0)
    assert done.is_set()
    assert metrics.errors.labels("session").value == 1


async def test_those_that_are_given_up_are_no_failures() -> None:
    metrics = Metrics()
    tasks = Tasks(metrics)
    tasks.spawn(asyncio.sleep(3600))
    await asyncio.sleep(0)
    await tasks.close()
    assert (len(tasks), metrics.errors.labels("session").value) == (0, 0)
