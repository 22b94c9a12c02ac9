"""Tells those who were sent a notice that it was changed: on connections opened with changes=1."""

from __future__ import annotations

from collections.abc import Collection

from pushd._fastpath import FanOut, Hub
from pushd.delivery.acknowledgements import Acknowledgements
from pushd.delivery.fan_out import FanOutQueue
from pushd.errors import StoreError
from pushd.model import Notice, TargetKind, UserId
from pushd.ports import RecordStore
from pushd.protocol import frames
from pushd.telemetry import faults
from pushd.telemetry.metrics import Metrics
from pushd.turns import sliced
from pushd.writing.writers import Writers

PUBLIC = (TargetKind.ALL, TargetKind.ONLINE)  # guests get these, too


class Announcer:
    """Knows who was sent a notice: whoever was connected when it went out, has received it, or is getting it from his
    mailbox; and guests who were connected when it was accepted."""

    def __init__(
        self,
        hub: Hub,
        fan_outs: FanOutQueue,
        acknowledgements: Acknowledgements,
        records: RecordStore,
        writers: Writers,
        metrics: Metrics,
    ) -> None:
        self._hub = hub
        self._fan_outs = fan_outs
        self._acknowledgements = acknowledgements
        self._records = records
        self._writers = writers
        self._metrics = metrics

    async def tell(self, message: frames.ServerMessage, notice: Notice, reached: Collection[UserId] = ()) -> int:
        """Send `message`, which is about `notice`, behind what these connections were sent before; how many got it.

        `reached`: who was sent it just now, which no receive record says yet.
        """
        if not self._hub.told_total:
            return 0
        sent_to = {*reached, *await self._sent_to(notice)}

        def encode(kind: int) -> bytes | None:
            return frames.shared_frame(message, kind - frames.TOLD_CHANGES) if kind >= frames.TOLD_CHANGES else None

        job = FanOut(None, encode, [*sent_to], tells_apart=True)
        under_way = self._fan_outs.add(job, notice.priority)
        if under_way is not None:
            await under_way
        return job.sent_total + await self._tell_guests(message, notice)

    async def _sent_to(self, notice: Notice) -> list[UserId]:
        found = await self._acknowledgements.replayed_to(notice.message_id)
        try:
            await self._writers.records_written()
            found += await self._records.sent_to(notice.message_id)
        except StoreError as error:  # it was there a moment ago; the change itself is made
            faults.noted(self._metrics, "announce", error, message_id=notice.message_id)
        return found

    async def _tell_guests(self, message: frames.ServerMessage, notice: Notice) -> int:
        """They have nothing waiting, and no receipts."""
        told = 0
        if notice.target.kind in PUBLIC and self._hub.guests_total:
            async for connection in sliced(self._hub.snapshot()):
                is_meant = connection.is_guest and connection.is_told_changes
                if is_meant and connection.details.connected_ms <= notice.accepted_ms:
                    told += self._hub.send(connection, frames.frame(message, connection.dialect))
        return told
