"""What is written without being waited for: mailbox copies, records, online status, settled journal entries.

The journal entry of a notice is settled only after everything that belongs to it is in its store or on disk in the
outbox, so a crash loses none of this.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from typing import Any

import msgspec

from pushd import faults
from pushd.aside import Aside
from pushd.metrics import Metrics
from pushd.model import Arrival, MailboxItem, User
from pushd.ports import Stores
from pushd.publication import Publication
from pushd.recording import RecordWriter, halves
from pushd.writebehind import WriteBehind, for_each

SAVES_AT_ONCE = 256  # in one batch: what is encoded for the disk at once when the store is away
MAILBOX_DELAY_S = 0.003  # four times as many copies in one transaction cost half; who arrives does not wait for it
SETTLE_DELAY_S = 0.05
STATUS_DELAY_S = 0.1


class MailboxBatch(msgspec.Struct):
    """Saves, and removals that come after them."""

    saves: list[tuple[MailboxItem, Collection[int]]] = []
    removals: dict[int, list[str]] = {}
    publications: list[Publication] = []
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

    def save(self, publication: Publication, item: MailboxItem, user_ids: Collection[int]) -> None:
        """Put `item` into the mailboxes of these users; `publication` is held until it is there or on disk."""
        publication.begin_save()
        batch = self._queue[-1] if self._queue else None
        if not isinstance(batch, MailboxBatch) or batch.removals or len(batch.saves) >= SAVES_AT_ONCE:
            batch = MailboxBatch(is_first=True)
            self._queue.append(batch)
        batch.saves.append((item, user_ids))
        batch.publications.append(publication)
        batch.is_first &= not (publication.is_restored or publication.notice.is_resent)
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
        for_each(batch.publications, Publication.end_save, self._metrics)

    def gave_up(self, batch: MailboxBatch) -> None:
        """See Writes. These notices need nothing more, but nobody may say that they are delivered."""
        for_each(batch.publications, Publication.release, self._metrics)

    def parts(self, batch: MailboxBatch) -> Sequence[MailboxBatch]:
        """See Writes."""
        saves, removals, publications = batch.saves, batch.removals, batch.publications
        if saves and removals:
            return [MailboxBatch(saves, {}, publications), MailboxBatch([], removals)]
        if len(saves) > 1:
            half = len(saves) // 2
            return [
                MailboxBatch(saves[:half], {}, publications[:half]),
                MailboxBatch(saves[half:], {}, publications[half:]),
            ]
        if saves and len(saves[0][1]) > 1:
            item, user_ids = saves[0]
            for publication in publications:
                publication.begin_save()  # a second one
            return [MailboxBatch([(item, half_of_them)], {}, publications) for half_of_them in halves(list(user_ids))]
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
        *,
        users: Callable[[Collection[int]], Awaitable[dict[int, User]]],
        started_ms: int,
        on_disk: int = 0,
    ) -> None:
        self._statuses = stores.presence
        self._metrics = metrics
        self._users = users
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


class SettledWriter:
    """Journal entries with nothing left to do. They are on disk anyway, so nothing of them waits in the outbox."""

    name = "settled"

    def __init__(self, stores: Stores, metrics: Metrics, aside: Aside) -> None:
        self._journal = stores.journal
        self._seqs: list[int] = []
        self.writer: WriteBehind[list[int]] = WriteBehind(self, metrics, lambda: SETTLE_DELAY_S, aside)

    def settle(self, publication: Publication) -> None:
        """The notice needs nothing more."""
        self._seqs.append(publication.notice.seq)
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


class Outbox:
    """The writers of a node."""

    def __init__(
        self, mailbox: MailboxWriter, records: RecordWriter, statuses: StatusWriter, settled: SettledWriter
    ) -> None:
        self.mailbox = mailbox
        self.records = records
        self.statuses = statuses
        self.settled = settled

    def writers(self) -> list[WriteBehind[Any]]:
        """All of them, in the order in which they are asked at a stop."""
        return [self.mailbox.writer, self.records.writer, self.statuses.writer, self.settled.writer]

    async def flushed(self) -> None:
        """Everything given so far is in the stores."""
        for writer in self.writers():
            await writer.flushed()

    async def secured(self) -> None:
        """Everything given so far is in the stores or on disk."""
        for writer in self.writers():
            await writer.secured()
