"""Whether the node works: which stores answer, what failed last, how late the loop runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol

import structlog

from pushd.errors import PushdError, StoreError
from pushd.ports import Remote
from pushd.retry import Backoff
from pushd.telemetry import faults
from pushd.telemetry.metrics import Metrics

log = structlog.get_logger("pushd.health")

LAG_EVERY_S = 0.1
CHECK_EVERY_S = 5.0  # a store that answers
CHECK_AWAY_MOST_S = 1.0  # one that does not


class Waiting(Protocol):
    """A part of the node whose work may have to wait for a store."""

    @property
    def failure(self) -> str:
        """Why it waits at present, "" while it does not."""


class Entries(Protocol):
    """What is set aside for the operator."""

    @property
    def total(self) -> int:
        """How many entries there are."""


class Health:
    """Collects what the parts report. A store is down from a failed operation until one works again."""

    def __init__(self, metrics: Metrics, now: Callable[[], float]) -> None:
        self._metrics = metrics
        self._now = now
        self._is_up: dict[str, bool] = {}
        self._waiting: dict[str, Waiting] = {}  # by what waits
        self._set_aside: Entries | None = None
        self._away: dict[str, str] = {}  # why a store cannot be used, by store
        self.last_error = ""
        self.is_draining = False
        self.started_at = now()

    def observe_store(self, store: str, op: str, seconds: float, ok: bool) -> None:
        """A store operation ended."""
        self._is_up[store] = ok
        if not ok:
            self.last_error = f"{store}: {op} failed"
        self._metrics.observe_store(store, op, seconds, ok)

    def watch(self, waiting: Mapping[str, Waiting], set_aside: Entries) -> None:
        """From now on these are asked, too: parts of the node by what waits there, as in "mailbox: writes"."""
        self._waiting.update(waiting)
        self._set_aside = set_aside

    def task_failed(self, name: str, error: BaseException) -> None:
        """A background task failed, and is run again."""
        self.last_error = f"{name} failed"
        faults.noted(self._metrics, "background", error, event="failed, and is run again", task=name)

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
        if not all(self._is_up.values()) or self._waits():
            return "degraded"
        return "healthy"

    @property
    def error(self) -> str:
        """What is failing now, else the last thing that did, else ""."""
        return next(iter(self._away.values()), "") or self._waits() or self._last_error()

    def _waits(self) -> str:
        return next((f"{what} wait for the store" for what, part in self._waiting.items() if part.failure), "")

    @property
    def set_aside_total(self) -> int:
        """How many entries wait for the operator."""
        return self._set_aside.total if self._set_aside is not None else 0

    def _last_error(self) -> str:
        count = self.set_aside_total
        return f"{count} set aside: see pushd-server set-aside list" if count else self.last_error

    @property
    def uptime_s(self) -> float:
        """How long the node has been running."""
        return self._now() - self.started_at

    async def watch_store(
        self, remote: Remote, *, every_s: float = CHECK_EVERY_S, away_most_s: float = CHECK_AWAY_MOST_S
    ) -> None:
        """Until cancelled: ask a remote store whether it can be used, more often while it cannot."""
        backoff = Backoff(most_s=away_most_s)
        while True:
            try:
                await faults.unless_cancelled(remote.check())
            except Exception as error:
                if not isinstance(error, PushdError):
                    faults.noted(self._metrics, "check", error, store=remote.store)
                self._is_away(remote.store, error)
                await asyncio.sleep(backoff.next_s())
            else:
                self._is_up[remote.store] = True
                if self._away.pop(remote.store, ""):
                    log.info("store is back", store=remote.store)
                backoff.reset()
                await asyncio.sleep(every_s)

    def _is_away(self, store: str, error: Exception) -> None:
        if store not in self._away:
            log.warning("store is away", store=store, error=str(error), cause=repr(error.__cause__))
        # What is wrong with a configuration is for the log: health is read from outside.
        reason = str(error) if isinstance(error, StoreError) else f"{store}: cannot be used as configured, see the log"
        self._is_up[store] = False
        self._away[store] = reason

    async def watch_loop(self, *, every_s: float = LAG_EVERY_S) -> None:
        """Until cancelled: measure how late the loop runs a timer."""
        while True:
            due = self._now() + every_s
            await asyncio.sleep(every_s)
            self._metrics.loop_lag.observe(max(0.0, self._now() - due))
