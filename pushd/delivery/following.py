"""Has the stores outside this process follow what was changed of notices, however long they are away."""

from __future__ import annotations

import asyncio

import structlog

from pushd.basis import Basis
from pushd.batched import batched
from pushd.delivery.intake import Intake
from pushd.errors import StoreError
from pushd.model import Amended, Notice, UserId
from pushd.ports import Amendments, Stores, Unfollowed
from pushd.protocol import frames
from pushd.telemetry import faults
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
        basis: Basis,
        *,
        again_after_s: float = AGAIN_AFTER_S,
    ) -> None:
        self._amendments: Amendments = stores.amendments
        self._mailbox = stores.mailbox
        self._records = stores.records
        self._writers = writers
        self._intake = intake
        self._wall_ms = basis.clock.wall_ms
        self._current = basis.current
        self._metrics = basis.metrics
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

    async def record(self, amended: Amended, *, is_reset: bool = False) -> None:
        """Have the records say it at once, if they can be asked; else that is left to `run`."""
        if RECORDS in self._amendments.followers:
            try:
                await self._follow(Unfollowed(amended, RECORDS, is_reset))
            except StoreError as error:
                self._failed(error)
            except Exception as error:
                faults.noted(self._metrics, "amendments", error, message_id=amended.message_id)
        self.wake()

    async def _follow_all(self) -> bool:
        """Whether nothing is left to do."""
        is_all = True
        try:
            for one in await self._amendments.unfollowed():
                is_all &= await self._follow_or_not(one)
        except StoreError as error:
            self._failed(error)
            return False
        except Exception as error:
            faults.noted(self._metrics, "amendments", error)
            return False
        self._has_stores = True
        return is_all

    async def _follow_or_not(self, one: Unfollowed) -> bool:
        """Whether that is done. What nobody foresaw concerns this notice only."""
        try:
            return await faults.unless_cancelled(self._follow(one))
        except StoreError:
            raise
        except Exception as error:
            faults.noted(self._metrics, "amendments", error, message_id=one.amended.message_id)
            return False

    def _failed(self, error: StoreError) -> None:
        if self._has_stores:
            log.warning("a store does not follow what was changed of notices", error=str(error))
        self._has_stores = False
        self._metrics.errors.labels("amendments").inc()

    async def _follow(self, one: Unfollowed) -> bool:
        """Whether that is done; not yet where a notice is still on its way into the store."""
        amended, store, is_reset = one
        is_on_its_way = bool(self._intake.under_way(amended.message_id))
        newest = None
        if amended.version > 1:
            newest = (await self._amendments.notices([amended.message_id])).get(amended.message_id)
        await self._writers.records_written()
        if store == RECORDS:
            is_known = await self._follow_in_records(amended, newest, is_reset)
            if not is_known and is_on_its_way:
                return False
        else:
            await self._writers.mailboxes_written()
            await self._follow_in_mailboxes(amended, newest)
        if is_on_its_way:  # what it still brings comes behind this
            return False
        await self._amendments.followed(amended, store)
        return True

    async def _follow_in_records(self, amended: Amended, newest: Notice | None, is_reset: bool) -> bool:
        """Whether there is a push record."""
        is_known = True
        if newest is not None:
            versions = await self._amendments.versions(amended.message_id)
            is_known = await self._records.edit(newest, versions, is_reset=is_reset)
        if amended.is_revoked:
            is_known = await self._records.revoke(amended.message_id, self._wall_ms())
        return is_known

    async def _follow_in_mailboxes(self, amended: Amended, newest: Notice | None) -> None:
        message_id = amended.message_id
        recipients: list[UserId] = [
            *await self._records.not_received_by(message_id), *await self._records.received_by(message_id)
        ]  # fmt: skip
        for some in batched(recipients, USERS_AT_ONCE):
            if amended.is_revoked:
                await self._mailbox.remove({user_id: [message_id] for user_id in some})
            elif newest is not None:
                item = frames.mailbox_item(newest, self._current.timezone, newest.accepted_ms)
                await self._mailbox.replace(item, some)
