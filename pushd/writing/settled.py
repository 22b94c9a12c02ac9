"""Writes to the journal: notices that need nothing more."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from pushd.in_flight import InFlight
from pushd.ports import Stores
from pushd.telemetry.metrics import Metrics
from pushd.writing.records import halves
from pushd.writing.set_aside import Aside
from pushd.writing.write_behind import WriteBehind

SETTLE_DELAY_S = 0.05


class SettledWriter:
    """Journal entries with nothing left to do. They are on disk anyway, so nothing of them waits in the outbox."""

    name = "settled"

    def __init__(self, stores: Stores, metrics: Metrics, aside: Aside) -> None:
        self._journal = stores.journal
        self._seqs: list[int] = []
        self.writer: WriteBehind[list[int]] = WriteBehind(self, metrics, lambda: SETTLE_DELAY_S, aside)

    def settle(self, flight: InFlight) -> None:
        """The notice needs nothing more."""
        self._seqs.append(flight.notice.seq)
        self.writer.wake()

    def collect(self) -> list[list[int]]:
        """See Writes."""
        seqs, self._seqs = self._seqs, []
        return [seqs] if seqs else []

    async def write(self, batch: list[int]) -> None:
        """See Writes."""
        await self._journal.settle(batch)

    def written(self, batch: list[int]) -> None:
        """See Writes."""

    def gave_up(self, batch: list[int]) -> None:
        """See Writes."""

    def parts(self, batch: list[int]) -> Sequence[list[int]]:
        """See Writes."""
        return halves(batch) if len(batch) > 1 else [batch]

    async def encode(self, batch: list[int]) -> bytes:
        """See Writes."""
        return msgspec.msgpack.encode(batch)

    def decode(self, body: bytes) -> list[int]:
        """See Writes."""
        return msgspec.msgpack.decode(body, type=list[int])
