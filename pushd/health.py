"""Whether the node works: which stores answer, what failed last, how late the loop runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from pushd.metrics import Metrics

LAG_EVERY_S = 0.1


class Health:
    """Collects what the parts report. A store is down from a failed operation until one works again."""

    def __init__(self, metrics: Metrics, now: Callable[[], float]) -> None:
        self._metrics = metrics
        self._now = now
        self._is_up: dict[str, bool] = {}
        self._failures: list[Callable[[], str]] = []
        self.last_error = ""
        self.is_draining = False
        self.started_at = now()

    def observe_store(self, store: str, op: str, seconds: float, ok: bool) -> None:
        """A store operation ended."""
        self._is_up[store] = ok
        if not ok:
            self.last_error = f"{store}: {op} failed"
        self._metrics.observe_store(store, op, seconds, ok)

    def watch_failures(self, sources: Iterable[Callable[[], str]]) -> None:
        """Functions that say why something fails at present, or ""."""
        self._failures.extend(sources)

    def store_states(self) -> dict[str, str]:
        """ "up" or "down" per store of the API's `stores`."""
        return {name: "up" if self._is_up.get(name, True) else "down" for name in ("mailbox", "records", "directory")}

    @property
    def can_publish(self) -> bool:
        """False while draining or while the journal refuses."""
        return not self.is_draining and self._is_up.get("journal", True)

    @property
    def status(self) -> str:
        """healthy; degraded: live delivery works, something waits; unhealthy: nothing can be published."""
        if not self.can_publish:
            return "unhealthy"
        if not all(self._is_up.values()) or any(failure() for failure in self._failures):
            return "degraded"
        return "healthy"

    @property
    def error(self) -> str:
        """What is failing now, else the last thing that did, else ""."""
        return next((text for failure in self._failures if (text := failure())), self.last_error)

    @property
    def uptime_s(self) -> float:
        """Since the start."""
        return self._now() - self.started_at

    async def watch_loop(self) -> None:
        """Until cancelled: measure how late the loop runs a timer."""
        while True:
            due = self._now() + LAG_EVERY_S
            await asyncio.sleep(LAG_EVERY_S)
            self._metrics.loop_lag.observe(max(0.0, self._now() - due))
