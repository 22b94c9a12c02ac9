"""Writes to the journal: which notices are settled."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from pushd.in_flight import InFlight
from pushd.ports import Journal
from pushd.writing.batches import halves
from pushd.writing.write_behind import Backing, WriteBehind

SETTLE_DELAY_S = 0.05


class SettledWriter:
    """Settles journal entries. They are on disk anyway, so nothing of this waits in the outbox."""

    name = "settled"

    def __init__(self, journal: Journal, backing: Backing, *, delay_s: float = SETTLE_DELAY_S) -> None:
        self._journal = journal
        self._seqs: list[int] = []
        self.writer: WriteBehind[list[int]] = WriteBehind(self, backing, lambda: delay_s, has_outbox=False)

    def settle(self, flight: InFlight) -> None:
        """Notes that nothing is left to do for the notice."""
        self._seqs.append(flight.notice.seq)
        if len(self._seqs) == 1:
            self.writer.wake()

    def collect(self) -> list[list[int]]:
        """Hands over the numbers of settled notices, as one batch."""
        seqs, self._seqs = self._seqs, []
        return [seqs] if seqs else []

    async def write(self, batch: list[int]) -> None:
        """Settles the journal entries."""
        await self._journal.settle(batch)

    def written(self, batch: list[int]) -> None:
        """Does nothing: nobody waits for it."""

    def gave_up(self, batch: list[int]) -> None:
        """Does nothing: the entries stay unsettled until the operator has them tried again."""

    def parts(self, batch: list[int]) -> Sequence[list[int]]:
        """Cuts by notice."""
        return halves(batch) if len(batch) > 1 else [batch]

    async def encode(self, batch: list[int]) -> bytes:
        """Encodes the batch as MessagePack."""
        return msgspec.msgpack.encode(batch)

    def decode(self, body: bytes) -> list[int]:
        """Decodes MessagePack."""
        return msgspec.msgpack.decode(body, type=list[int])
