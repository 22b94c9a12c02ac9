"""Writes of online status, the stored form of presence: who came, who left."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from pushd.model import Arrival, User, UserId
from pushd.ports import PresenceStore
from pushd.telemetry import faults
from pushd.users.directory import CachedDirectory
from pushd.writing.batches import halves
from pushd.writing.write_behind import Backing, WriteBehind

STATUS_DELAY_S = 0.1


class StatusBatch(msgspec.Struct):
    """Changes of the stored online status: arrivals, and departures that come after them.

    `reset_ms`: before that, who was left marked as online is offline.
    """

    reset_ms: int = 0
    arrivals: list[Arrival] = []
    departures: list[tuple[UserId, int]] = []


class StatusWriter:
    """Writes who came and went, in order; before all that, it marks as offline whom a former process left as online."""

    name = "presence"

    def __init__(
        self,
        statuses: PresenceStore,
        backing: Backing,
        directory: CachedDirectory,
        *,
        started_ms: int,
        delay_s: float = STATUS_DELAY_S,
    ) -> None:
        self._statuses = statuses
        self._metrics = backing.metrics
        self._users = directory.users
        self._started_ms = started_ms
        self._batches = [StatusBatch(reset_ms=started_ms)]
        self._departed: set[UserId] = set()  # in the last batch
        self._were_online: list[UserId] = []
        self._is_reset = asyncio.Event()
        self.writer = WriteBehind(self, backing, lambda: delay_s)
        self.writer.wake()

    async def were_online(self) -> list[UserId]:
        """Who was connected when a former process ended; waits until the store has said so."""
        await self._is_reset.wait()
        return self._were_online

    def arrived(self, arrival: Arrival) -> None:
        """Notes that a user's first connection came."""
        if not self._batches or arrival.user_id in self._departed:
            self._batches.append(StatusBatch())
            self._departed.clear()
        self._batches[-1].arrivals.append(arrival)
        self.writer.wake()

    def left(self, user_id: UserId, at_ms: int) -> None:
        """Notes that a user's last connection went."""
        if not self._batches:
            self._batches.append(StatusBatch())
        self._batches[-1].departures.append((user_id, at_ms))
        self._departed.add(user_id)
        self.writer.wake()

    def collect(self) -> list[StatusBatch]:
        """Hands over the changes in order."""
        batches, self._batches = self._batches, []
        self._departed.clear()
        return batches

    async def write(self, batch: StatusBatch) -> None:
        """Resets, once, then stores arrivals, then departures."""
        if batch.reset_ms:
            ghosts = await self._statuses.reset(batch.reset_ms)
            if batch.reset_ms == self._started_ms and not self._is_reset.is_set():
                self._were_online = ghosts
                self._is_reset.set()
            batch.reset_ms = 0  # another attempt at the rest must not mark as offline who has come since
        if batch.arrivals:
            await self._statuses.connected(await self._named(batch.arrivals))
        if batch.departures:
            await self._statuses.disconnected(batch.departures)

    def written(self, batch: StatusBatch) -> None:
        """Does nothing: nobody waits for a status."""

    def gave_up(self, batch: StatusBatch) -> None:
        """Lets go on whoever waits for a reset that failed for good."""
        if batch.reset_ms:
            self._is_reset.set()

    def parts(self, batch: StatusBatch) -> Sequence[StatusBatch]:
        """Cuts the reset from the rest, arrivals from departures, and these by user.

        A reset that fails is not kept: the next start does it; later, it would not know who is here by then.
        """
        reset_ms, arrivals, departures = batch.reset_ms, batch.arrivals, batch.departures
        if reset_ms:
            return [StatusBatch(reset_ms), StatusBatch(0, arrivals, departures)] if arrivals or departures else []
        if arrivals and departures:
            return [StatusBatch(0, arrivals), StatusBatch(0, [], departures)]
        if len(arrivals) > 1:
            return [StatusBatch(0, some) for some in halves(arrivals)]
        if len(departures) > 1:
            return [StatusBatch(0, [], some) for some in halves(departures)]
        return [batch] if arrivals or departures else []

    async def encode(self, batch: StatusBatch) -> bytes:
        """Encodes the batch as MessagePack."""
        return msgspec.msgpack.encode(batch)

    def decode(self, body: bytes) -> StatusBatch:
        """Decodes MessagePack."""
        return msgspec.msgpack.decode(body, type=StatusBatch)

    async def _named(self, arrivals: list[Arrival]) -> list[Arrival]:
        """The same arrivals, those whose token carries no name with the directory's."""
        nameless = [arrival.user_id for arrival in arrivals if not arrival.username]
        known: dict[UserId, User] = {}
        try:
            known = await self._users(nameless) if nameless else {}
        except Exception as error:  # a name is not worth a status
            faults.noted(self._metrics, "names", error)
        return [
            msgspec.structs.replace(arrival, username=known[arrival.user_id].username)
            if not arrival.username and arrival.user_id in known
            else arrival
            for arrival in arrivals
        ]
