"""Writes of presence in its stored form: who came, who left."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from pushd.model import Arrival, User
from pushd.ports import Stores
from pushd.telemetry import faults
from pushd.telemetry.metrics import Metrics
from pushd.users.directory import CachedDirectory
from pushd.writing.records import halves
from pushd.writing.set_aside import Aside
from pushd.writing.write_behind import WriteBehind

STATUS_DELAY_S = 0.1


class StatusBatch(msgspec.Struct):
    """Changes of the stored online status: arrivals, and departures that come after them.

    `reset_ms`: before that, who was left marked as online is offline.
    """

    reset_ms: int = 0
    arrivals: list[Arrival] = []
    departures: list[tuple[int, int]] = []


class StatusWriter:
    """Who came and went, in order; first of all, that whom a former process left as online is not."""

    name = "presence"

    def __init__(
        self,
        stores: Stores,
        metrics: Metrics,
        aside: Aside,
        directory: CachedDirectory,
        *,
        started_ms: int,
        on_disk: int = 0,
    ) -> None:
        self._statuses = stores.presence
        self._metrics = metrics
        self._users = directory.users
        self._started_ms = started_ms
        self._batches = [StatusBatch(reset_ms=started_ms)]
        self._departed: set[int] = set()  # in the last batch
        self._were_online: list[int] = []
        self._is_reset = asyncio.Event()
        self.writer = WriteBehind(self, metrics, lambda: STATUS_DELAY_S, aside, stores.outbox, on_disk)
        self.writer.wake()

    async def were_online(self) -> list[int]:
        """Who was connected when a former process ended; waits for the store."""
        await self._is_reset.wait()
        return self._were_online

    def arrived(self, arrival: Arrival) -> None:
        """A user's first connection came."""
        if not self._batches or arrival.user_id in self._departed:
            self._batches.append(StatusBatch())
            self._departed.clear()
        self._batches[-1].arrivals.append(arrival)
        self.writer.wake()

    def left(self, user_id: int, at_ms: int) -> None:
        """A user's last connection went."""
        if not self._batches:
            self._batches.append(StatusBatch())
        self._batches[-1].departures.append((user_id, at_ms))
        self._departed.add(user_id)
        self.writer.wake()

    def collect(self) -> list[StatusBatch]:
        """See Writes."""
        batches, self._batches = self._batches, []
        self._departed.clear()
        return batches

    async def write(self, batch: StatusBatch) -> None:
        """See Writes."""
        if batch.reset_ms:
            ghosts = await self._statuses.reset(batch.reset_ms)
            if batch.reset_ms == self._started_ms and not self._is_reset.is_set():
                self._were_online = ghosts
                self._is_reset.set()
            batch.reset_ms = 0  # another attempt at the rest must not send home who has come since
        if batch.arrivals:
            await self._statuses.connected(await self._named(batch.arrivals))
        if batch.departures:
            await self._statuses.disconnected(batch.departures)

    def written(self, batch: StatusBatch) -> None:
        """See Writes."""

    def gave_up(self, batch: StatusBatch) -> None:
        """See Writes. Whoever waits for the reset need not wait for ever."""
        if batch.reset_ms:
            self._is_reset.set()

    def parts(self, batch: StatusBatch) -> Sequence[StatusBatch]:
        """See Writes. A reset is for the next start to do: later, it would not know who is here by then."""
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
        """See Writes."""
        return msgspec.msgpack.encode(batch)

    def decode(self, body: bytes) -> StatusBatch:
        """See Writes."""
        return msgspec.msgpack.decode(body, type=StatusBatch)

    async def _named(self, arrivals: list[Arrival]) -> list[Arrival]:
        """Tokens need not carry a name: then it is the directory's."""
        nameless = [arrival.user_id for arrival in arrivals if not arrival.username]
        known: dict[int, User] = {}
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
