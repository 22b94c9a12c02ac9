"""Who is to get a notice, as the stores know it: all recipients, or those to whom it was not delivered yet."""

from __future__ import annotations

import asyncio

import structlog

from pushd.errors import StoreError
from pushd.in_flight import InFlight
from pushd.model import TargetKind, UserId
from pushd.ports import RecordStore
from pushd.retry import FIRST_S, Backoff
from pushd.telemetry import faults
from pushd.telemetry.metrics import Metrics
from pushd.users.directory import CachedDirectory
from pushd.writing.writers import Writers

log = structlog.get_logger("pushd.dispatch")

UNEXPECTED_MOST = 3  # failures of the stores that nobody foresaw, in a row: then the notice is set aside


def is_partly_delivered(flight: InFlight) -> bool:
    """Whether some of its recipients may have it already."""
    return flight.is_restored or flight.notice.is_resent


class StoredRecipients:
    """Asks the stores, however long they are down."""

    def __init__(
        self,
        directory: CachedDirectory,
        records: RecordStore,
        writers: Writers,
        metrics: Metrics,
        retry_first_s: float = FIRST_S,
    ) -> None:
        self._directory = directory
        self._records = records
        self._writers = writers
        self._metrics = metrics
        self._retry_first_s = retry_first_s
        self._has_stores = True

    def cached(self, flight: InFlight) -> list[UserId] | None:
        """All recipients as far as they are remembered; None when the directory must be asked."""
        return self._directory.cached_ids(flight.notice.target)

    async def recipients(self, flight: InFlight) -> list[UserId]:
        """Ask for them until there is an answer. Raises what nobody foresaw when that happens several times."""
        backoff = Backoff(self._retry_first_s)
        unexpected = 0
        while True:
            try:
                recipients = await faults.unless_cancelled(self._missing(flight))
            except StoreError as error:
                self._stores_failed(flight, error)
                await asyncio.sleep(backoff.next_s())
            except Exception as error:
                unexpected += 1
                if unexpected == UNEXPECTED_MOST:
                    raise
                faults.noted(self._metrics, "recipients", error, message_id=flight.notice.message_id)
                await asyncio.sleep(backoff.next_s())
            else:
                self._has_stores = True
                return recipients

    def _stores_failed(self, flight: InFlight, error: StoreError) -> None:
        if self._has_stores:
            log.warning("recipients unknown for now", message_id=flight.notice.message_id, error=str(error))
        self._has_stores = False
        self._metrics.errors.labels("recipients").inc()

    async def _missing(self, flight: InFlight) -> list[UserId]:
        """The recipients, but for those to whom a former process or an earlier publish delivered."""
        target = flight.notice.target
        reminder = flight.notice.reminder
        if reminder is not None:
            await self._writers.records_written()
            return await self._records.not_at(flight.notice.message_id, reminder.step)
        if flight.notice.is_resent:
            await self._writers.records_written()
            return await self._records.not_received_by(flight.notice.message_id)
        if not flight.is_restored:
            return await self._directory.ids(target)
        is_online = target.kind is TargetKind.ONLINE
        everybody = await self._writers.statuses.were_online() if is_online else await self._directory.ids(target)
        received = await self._received_by(flight)
        missing = [user_id for user_id in everybody if user_id not in received]
        flight.note_received_before(len(everybody) - len(missing))
        return missing

    async def _received_by(self, flight: InFlight) -> set[UserId]:
        """Who has received it on record; nobody while the records cannot be asked: better twice than late."""
        try:
            await self._writers.records_written()
            return await self._records.received_by(flight.notice.message_id)
        except StoreError as error:
            log.warning("may be delivered twice", message_id=flight.notice.message_id, error=str(error))
            return set()
