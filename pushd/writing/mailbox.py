"""Writes to mailboxes: notices that wait for absent users, and those that wait no more."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import msgspec

from pushd.in_flight import InFlight
from pushd.model import MailboxItem
from pushd.ports import Stores
from pushd.telemetry.metrics import Metrics
from pushd.writing.records import halves
from pushd.writing.set_aside import Aside
from pushd.writing.write_behind import WriteBehind, for_each

SAVES_AT_ONCE = 256  # in one batch: what is encoded for the disk at once when the store is away
MAILBOX_DELAY_S = 0.003  # four times as many copies in one transaction cost half; who arrives does not wait for it


class MailboxBatch(msgspec.Struct):
    """Saves, and removals that come after them."""

    saves: list[tuple[MailboxItem, Collection[int]]] = []
    removals: dict[int, list[str]] = {}
    flights: list[InFlight] = []
    is_first: bool = False  # nobody can have these in the mailbox yet


_MailboxBody = tuple[list[tuple[MailboxItem, list[int]]], dict[int, list[str]]]
_mailbox_body = msgspec.json.Decoder(_MailboxBody)  # JSON can say whatever was published as JSON
_older_mailbox_body = msgspec.msgpack.Decoder(_MailboxBody)


class MailboxWriter:
    """Saves and removals, in the order they were asked for or promised."""

    name = "mailbox"

    def __init__(self, stores: Stores, metrics: Metrics, aside: Aside, *, on_disk: int = 0) -> None:
        self._mailbox = stores.mailbox
        self._metrics = metrics
        self._queue: list[MailboxBatch | Iterator[None]] = []
        self.writer = WriteBehind(self, metrics, lambda: MAILBOX_DELAY_S, aside, stores.outbox, on_disk)

    def save(self, flight: InFlight, item: MailboxItem, user_ids: Collection[int]) -> None:
        """Put `item` into these users' mailboxes; `flight` is not delivered before it is there or on disk."""
        flight.add_save()
        batch = self._queue[-1] if self._queue else None
        if not isinstance(batch, MailboxBatch) or batch.removals or len(batch.saves) >= SAVES_AT_ONCE:
            batch = MailboxBatch(is_first=True)
            self._queue.append(batch)
        batch.saves.append((item, user_ids))
        batch.flights.append(flight)
        batch.is_first &= not (flight.is_restored or flight.notice.is_resent)
        self.writer.wake(user_ids)

    def remove(self, user_id: int, message_ids: Collection[str]) -> None:
        """Take these out of the user's mailbox."""
        batch = self._queue[-1] if self._queue else None
        if not isinstance(batch, MailboxBatch):
            batch = MailboxBatch()
            self._queue.append(batch)
        batch.removals.setdefault(user_id, []).extend(message_ids)
        self.writer.wake((user_id,))

    def promise(self, saves: Iterator[None]) -> None:
        """Its steps will ask for saves, which belong here in the order; it is asked when they are written."""
        self._queue.append(saves)

    def is_last(self, saves: Iterator[None]) -> bool:
        """Whether nothing was asked for since `saves` was promised, and `saves` was not asked yet."""
        return bool(self._queue) and self._queue[-1] is saves

    async def waiting(self, user_id: int) -> list[str]:
        """Ids of what is in the user's mailbox, with what was given before. Raises StoreError."""
        await self.writer.written_for({user_id})
        return [item.message_id for item in (await self._mailbox.read([user_id])).get(user_id, ())]

    def collect(self) -> Iterator[MailboxBatch]:
        """See Writes. What was promised is asked for when its turn comes."""
        queue, self._queue = self._queue, []
        return self._in_order(queue)

    def _in_order(self, queue: Sequence[MailboxBatch | Iterator[None]]) -> Iterator[MailboxBatch]:
        for one in queue:
            if isinstance(one, MailboxBatch):
                yield one
                continue
            is_over = False
            while not is_over:
                later, self._queue = self._queue, []  # what was asked for meanwhile
                try:
                    is_over = next(one, True) is True
                finally:
                    given, self._queue = self._queue, later
                yield from self._in_order(given)

    async def write(self, batch: MailboxBatch) -> None:
        """See Writes."""
        if batch.saves:
            is_first, batch.is_first = batch.is_first, False  # another attempt is another matter
            await self._mailbox.save(batch.saves, is_first=is_first)
        if batch.removals:
            await self._mailbox.remove(batch.removals)
        self._metrics.mailbox_saved.inc(sum(len(user_ids) for _, user_ids in batch.saves))

    def written(self, batch: MailboxBatch) -> None:
        """See Writes."""
        for_each(batch.flights, InFlight.end_save, self._metrics)

    def gave_up(self, batch: MailboxBatch) -> None:
        """See Writes. These notices need nothing more, but nobody may say that they are delivered."""
        for_each(batch.flights, InFlight.end_work, self._metrics)

    def parts(self, batch: MailboxBatch) -> Sequence[MailboxBatch]:
        """See Writes."""
        saves, removals, flights = batch.saves, batch.removals, batch.flights
        if saves and removals:
            return [MailboxBatch(saves, {}, flights), MailboxBatch([], removals)]
        if len(saves) > 1:
            half = len(saves) // 2
            return [
                MailboxBatch(saves[:half], {}, flights[:half]),
                MailboxBatch(saves[half:], {}, flights[half:]),
            ]
        if saves and len(saves[0][1]) > 1:
            item, user_ids = saves[0]
            for flight in flights:
                flight.add_save()  # a second one
            return [MailboxBatch([(item, half_of_them)], {}, flights) for half_of_them in halves(list(user_ids))]
        if len(removals) > 1:
            return [MailboxBatch([], dict(some)) for some in halves(list(removals.items()))]
        return [batch] if saves or removals else []

    async def encode(self, batch: MailboxBatch) -> bytes:
        """See Writes."""
        return msgspec.json.encode((batch.saves, batch.removals))

    def decode(self, body: bytes) -> MailboxBatch:
        """See Writes."""
        decoder = _mailbox_body if body.startswith(b"[") else _older_mailbox_body
        saves, removals = decoder.decode(body)
        return MailboxBatch([*saves], removals)
