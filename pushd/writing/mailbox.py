"""Writes to mailboxes: notices that wait for absent users, and the removal of those that wait no more."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import msgspec

from pushd.in_flight import InFlight
from pushd.model import MailboxItem, UserId
from pushd.ports import Mailbox
from pushd.writing.batches import halves, tell_each
from pushd.writing.write_behind import Backing, WriteBehind

SAVES_AT_ONCE = 256  # in one batch: what is encoded for the disk at once when the store is away
MAILBOX_DELAY_S = 0.003  # four times as many copies in one transaction cost half; who arrives does not wait for it


class MailboxBatch(msgspec.Struct):
    """Saves, and removals that come after them."""

    saves: list[tuple[MailboxItem, Collection[UserId]]] = []
    removals: dict[UserId, list[str]] = {}
    flights: list[InFlight] = []
    is_first: bool = False  # nobody can have these in the mailbox yet


# Removals as pairs: keys of JSON objects do not say of which kind an id is. Older versions wrote objects, of numbers.
_MailboxBody = tuple[list[tuple[MailboxItem, list[UserId]]], list[tuple[UserId, list[str]]] | dict[int, list[str]]]
_mailbox_body = msgspec.json.Decoder(_MailboxBody)  # JSON can say whatever was published as JSON
_older_mailbox_body = msgspec.msgpack.Decoder(_MailboxBody)


class MailboxWriter:
    """Writes saves and removals in the order in which they were asked for or promised."""

    name = "mailbox"

    def __init__(self, mailbox: Mailbox, backing: Backing) -> None:
        self._mailbox = mailbox
        self._metrics = backing.metrics
        self._queue: list[MailboxBatch | Iterator[None]] = []
        self.writer = WriteBehind(self, backing, lambda: MAILBOX_DELAY_S)

    def save(self, flight: InFlight, item: MailboxItem, user_ids: Collection[UserId]) -> None:
        """Puts `item` into these users' mailboxes; `flight` is not delivered before it is there or on disk."""
        flight.add_save()
        batch = self._queue[-1] if self._queue else None
        if not isinstance(batch, MailboxBatch) or batch.removals or len(batch.saves) >= SAVES_AT_ONCE:
            batch = MailboxBatch(is_first=True)
            self._queue.append(batch)
        batch.saves.append((item, user_ids))
        batch.flights.append(flight)
        batch.is_first &= not (flight.is_restored or flight.notice.is_resent)
        self.writer.wake(user_ids)

    def remove(self, user_id: UserId, message_ids: Collection[str]) -> None:
        """Takes these out of the user's mailbox."""
        batch = self._queue[-1] if self._queue else None
        if not isinstance(batch, MailboxBatch):
            batch = MailboxBatch()
            self._queue.append(batch)
        batch.removals.setdefault(user_id, []).extend(message_ids)
        self.writer.wake((user_id,))

    def promise(self, saves: Iterator[None]) -> None:
        """Keeps a place in the order of writes: when it is reached, `saves` is stepped, and each step calls `save`."""
        self._queue.append(saves)

    def is_last(self, saves: Iterator[None]) -> bool:
        """Whether nothing was asked for since `saves` was promised, and it has not been stepped yet."""
        return bool(self._queue) and self._queue[-1] is saves

    async def waiting(self, user_id: UserId) -> list[str]:
        """Ids of what is in the user's mailbox, including what was asked for before. Raises StoreError."""
        await self.writer.written_for({user_id})
        return [item.message_id for item in (await self._mailbox.read([user_id])).get(user_id, ())]

    def collect(self) -> Iterator[MailboxBatch]:
        """Hands over the saves and removals in order; a promise is stepped when its turn comes."""
        queue, self._queue = self._queue, []
        return self._in_order(queue)

    def _in_order(self, queue: Sequence[MailboxBatch | Iterator[None]]) -> Iterator[MailboxBatch]:
        for one in queue:
            if isinstance(one, MailboxBatch):
                yield one
                continue
            is_over = False
            while not is_over:
                later, self._queue = self._queue, []  # what others asked for meanwhile
                try:
                    is_over = next(one, True) is True
                finally:
                    given, self._queue = self._queue, later
                yield from self._in_order(given)

    async def write(self, batch: MailboxBatch) -> None:
        """Saves, then removes: the removals of a batch came after its saves."""
        if batch.saves:
            is_first, batch.is_first = batch.is_first, False  # another attempt is another matter
            await self._mailbox.save(batch.saves, is_first=is_first)
        if batch.removals:
            await self._mailbox.remove(batch.removals)
        self._metrics.mailbox_saved.inc(sum(len(user_ids) for _, user_ids in batch.saves))

    def written(self, batch: MailboxBatch) -> None:
        """Tells the notices in flight that these copies are in their mailboxes."""
        tell_each(batch.flights, InFlight.end_save, self._metrics)

    def gave_up(self, batch: MailboxBatch) -> None:
        """Lets the notices be settled, but not be called delivered."""
        tell_each(batch.flights, InFlight.end_work, self._metrics)

    def parts(self, batch: MailboxBatch) -> Sequence[MailboxBatch]:
        """Cuts saves from removals, then saves by notice, then by recipient; removals by user."""
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
        """Encodes the batch as JSON, which can say whatever was published as JSON."""
        return msgspec.json.encode((batch.saves, [*batch.removals.items()]))

    def decode(self, body: bytes) -> MailboxBatch:
        """Decodes JSON, or the MessagePack of an older version."""
        decoder = _mailbox_body if body.startswith(b"[") else _older_mailbox_body
        saves, removals = decoder.decode(body)
        return MailboxBatch([*saves], dict(removals.items() if isinstance(removals, dict) else removals))
