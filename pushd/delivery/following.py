"""Has the stores outside this process follow what was changed of notices, however long they are away."""

from __future__ import annotations

import asyncio

import structlog

from pushd.batched import batched
from pushd.clock import Clock
from pushd.delivery.intake import Intake
from pushd.errors import StoreError
from pushd.model import Amended, UserId
from pushd.ports import Amendments, Stores
from pushd.telemetry import faults
from pushd.telemetry.metrics import Metrics
from pushd.writing.writers import Writers

log = structlog.get_logger("pushd.amendments")

AGAIN_AFTER_S = 5.0
USERS_AT_ONCE = 2000  # whose mailboxes are changed in one call

MAILBOX, RECORDS = "mailbox", "records"


class Following:
    """One task does what is left to do, oldest first; what fails is tried again every `again_after_s`."""

    def __init__(
        self,
        stores: Stores,
        writers: Writers,
        intake: Intake,
        clock: Clock,
        metrics: Metrics,
        *,
        again_after_s: float = AGAIN_AFTER_S,
    ) -> None:
        self._amendments: Amendments = stores.amendments
        self._mailbox = stores.mailbox
        self._records = stores.records
        self._writers = writers
        self._intake = intake
        self._wall_ms = clock.wall_ms
        self._metrics = metrics
        self._again_after_s = again_after_s
        self._is_due = asyncio.Event()
        self._is_due.set()
        self._has_stores = True

    def wake(self) -> None:
        """There is something to do."""
        self._is_due.set()

    async def run(self) -> None:
        """Follow until cancelled."""
        while self._amendments.followers:
            self._is_due.clear()
            if await self._follow_all():
                await self._is_due.wait()
            else:
                try:
                    async with asyncio.timeout(self._again_after_s):
                        await self._is_due.wait()
                except TimeoutError:
                    pass
        await asyncio.Event().wait()  # there is nobody who has to follow

    async def record(self, amended: Amended) -> None:
        """Have the records say it at once, if they can be asked; else that is left to `run`."""
        if RECORDS in self._amendments.followers:
            try:
                await self._follow(amended, RECORDS)
            except StoreError as error:
                self._failed(error)
        self.wake()

    async def _follow_all(self) -> bool:
        """Whether nothing is left to do."""
        is_all = True
        try:
            for amended, store in await self._amendments.unfollowed():
                is_all &= await faults.unless_cancelled(self._follow(amended, store))
        except StoreError as error:
            self._failed(error)
            return False
        self._has_stores = True
        return is_all

    def _failed(self, error: StoreError) -> None:
        if self._has_stores:
            log.warning("a store does not follow what was changed of notices", error=str(error))
        self._has_stores = False
        self._metrics.errors.labels("amendments").inc()

    async def _follow(self, amended: Amended, store: str) -> bool:
        """Whether that is done; not yet where a notice is still on its way into the store."""
        is_on_its_way = bool(self._intake.under_way(amended.message_id))
        await self._writers.records_written()
        if store == RECORDS:
            is_known = not amended.is_revoked or await self._records.revoke(amended.message_id, self._wall_ms())
            if not is_known and is_on_its_way:
                return False
        else:
            await self._writers.mailboxes_written()
            await self._follow_in_mailboxes(amended)
        if is_on_its_way:  # what it still brings comes behind this
            return False
        await self._amendments.followed(amended, store)
        return True

    async def _follow_in_mailboxes(self, amended: Amended) -> None:
        message_id = amended.message_id
        recipients: list[UserId] = [
            *await self._records.not_received_by(message_id), *await self._records.received_by(message_id)
        ]  # fmt: skip
        for some in batched(recipients, USERS_AT_ONCE):
            if amended.is_revoked:
                await self._mailbox.remove({user_id: [message_id] for user_id in some})
