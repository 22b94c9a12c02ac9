"""Comparing two ways of doing the same: alternating rounds, medians and how far they spread. Mostly pure."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

SAMPLE_EVERY_S = 0.001


@dataclass(frozen=True)
class Middle:
    """The median of some values, and their range."""

    median: float
    lowest: float
    highest: float


def middle(values: Sequence[float]) -> Middle:
    """Of at least one value."""
    return Middle(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Cost:
    """One doing: wall, CPU of the whole process with its threads, and the loop's longest delay meanwhile.

    `own_lag_s`: the longest that can be the process's own doing. What it does to delay its loop, in whichever thread,
    is CPU time of its own, so a delay is at most that of the same time; the rest is others' turn on the core. That is
    right for a process on one core whose loop waits for no disk.
    """

    wall_s: float
    cpu_s: float
    lag_s: float
    own_lag_s: float


class LagSampler:
    """How late a task of the same loop is that wants to run every millisecond."""

    def __init__(self) -> None:
        self.max_s = 0.0
        self.max_own_s = 0.0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[LagSampler]:
        """Until the end of the block, the last turn included."""
        task = asyncio.create_task(self._sample())
        await asyncio.sleep(2 * SAMPLE_EVERY_S)
        self.max_s = self.max_own_s = 0.0
        try:
            yield self
            await asyncio.sleep(2 * SAMPLE_EVERY_S)
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _sample(self) -> None:
        while True:
            due, cpu_s = time.perf_counter() + SAMPLE_EVERY_S, time.process_time()
            await asyncio.sleep(SAMPLE_EVERY_S)
            late_s = time.perf_counter() - due
            self.max_s = max(self.max_s, late_s)
            self.max_own_s = max(self.max_own_s, min(late_s, time.process_time() - cpu_s))


async def timed(work: Callable[[], Awaitable[object]]) -> Cost:
    """What `work` costs; garbage is collected before, not meanwhile."""
    gc.collect()
    gc.disable()
    try:
        async with LagSampler().running() as sampler:
            began, cpu = time.perf_counter(), time.process_time()
            await work()
            wall_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu
        return Cost(wall_s, cpu_s, sampler.max_s, sampler.max_own_s)
    finally:
        gc.enable()
