"""Tasks for what clients ask for and a store must answer."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from pushd.telemetry import faults
from pushd.telemetry.metrics import Metrics


class Tasks:
    """What clients of all connections asked for and a store has not answered yet, a task each.

    A task outlives its connection. One that fails is logged and counted, and concerns no other.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        """How many are under way."""
        return len(self._tasks)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Begin one more; `finished` waits for it, too."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            faults.noted(self._metrics, "session", error)

    async def finished(self) -> None:
        """Return when none is left, those included that begin meanwhile."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def close(self) -> None:
        """Cancel those that are under way, and return when they have ended."""
        for task in self._tasks:
            task.cancel()
        await self.finished()
