"""Deletes what is past its retention, little by little: settled journal entries, old mailbox items, old records; and
notes which notices have expired."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

import structlog

from pushd.config.current import CurrentConfig
from pushd.errors import StoreError
from pushd.ports import Stores
from pushd.telemetry import faults
from pushd.telemetry.metrics import Metrics

log = structlog.get_logger("pushd.maintenance")

EVERY_S = 30.0
EXPIRE_EVERY_S = 1.0
ROWS_AT_ONCE = 1000
PAUSE_S = 0.02
DAY_MS = 86_400_000


class Retention:
    """Purges the stores every `every_s`, in steps with a pause of `pause_s` in between, so that nothing waits for it.

    What expires is noted every `expire_every_s`, since users are told how many notices they have not read. `wall_ms` is
    the time of day; `forget_amended` is told which notices nothing is known to have been changed of.
    """

    def __init__(
        self,
        stores: Stores,
        current: CurrentConfig,
        metrics: Metrics,
        wall_ms: Callable[[], int],
        *,
        forget_amended: Callable[[Iterable[str]], None] = lambda _: None,
        every_s: float = EVERY_S,
        expire_every_s: float = EXPIRE_EVERY_S,
        pause_s: float = PAUSE_S,
    ) -> None:
        self._stores = stores
        self._current = current
        self._metrics = metrics
        self._wall_ms = wall_ms
        self._forget_amended = forget_amended
        self._every_s = every_s
        self._expire_every_s = expire_every_s
        self._pause_s = pause_s
        self._expired_until_ms = 0  # what expired until then has been noted,
        self._looked_again_ms = (0, 0)  # as when it was looked for once more, the last two times

    async def run(self) -> None:
        """Purges until it is cancelled."""
        while True:
            await asyncio.sleep(self._every_s)
            await self.purge()

    async def run_expiry(self) -> None:
        """Notes what expires until it is cancelled; less often while the store fails."""
        while True:
            await asyncio.sleep(self._expire_every_s)
            now_ms = self._wall_ms()
            if await self._expire(self._expired_until_ms, now_ms):
                self._expired_until_ms = now_ms
            else:
                await asyncio.sleep(self._every_s)

    async def purge(self) -> None:
        """Goes over all stores once."""
        now_ms = self._wall_ms()
        config = self._current.config
        dedup_ms = int(config.delivery.dedup_window_s * 1000)
        records_ms = int(config.records.retention_days * DAY_MS)
        await self._expire_again(now_ms)
        await self._in_steps(lambda: self._stores.journal.purge(now_ms - dedup_ms, ROWS_AT_ONCE))
        await self._in_steps(lambda: self._stores.mailbox.purge(now_ms, ROWS_AT_ONCE))
        await self._in_steps(lambda: self._stores.records.purge(now_ms - records_ms, ROWS_AT_ONCE))
        await self._in_steps(lambda: self._stores.schedule.purge(now_ms - records_ms, ROWS_AT_ONCE))
        kept_ms = max(records_ms, int(config.mailbox.ttl_days * DAY_MS))
        await self._in_steps(lambda: self._purge_amended(now_ms - kept_ms))

    async def _purge_amended(self, before_ms: int) -> int:
        forgotten = await self._stores.amendments.purge(before_ms, ROWS_AT_ONCE)
        self._forget_amended(forgotten)
        return len(forgotten)

    async def _expire_again(self, now_ms: int) -> None:
        """A record may be written long after its notice expired: what expired lately is looked for once more."""
        since_ms, until_ms = self._looked_again_ms
        if await self._expire(since_ms, now_ms):
            self._looked_again_ms = (until_ms, now_ms)

    async def _expire(self, since_ms: int, now_ms: int) -> bool:
        """Marks the receive records of notices that nobody will get any more; False when the store failed."""
        return await self._in_steps(lambda: self._stores.records.expire(since_ms, now_ms, ROWS_AT_ONCE))

    async def _in_steps(self, step: Callable[[], Awaitable[int]]) -> bool:
        """Repeats `step` until nothing is left to do; False when the store failed before."""
        try:
            while await faults.unless_cancelled(step()) >= ROWS_AT_ONCE:
                await asyncio.sleep(self._pause_s)
        except StoreError as error:
            log.warning("purge failed", error=str(error))
            self._metrics.errors.labels("purge").inc()
            return False
        except Exception as error:
            faults.noted(self._metrics, "purge", error)
            return False
        return True
