"""Store writes that need not be waited for: mailbox copies, records, settled journal entries.

Each kind has one task that writes in order, in batches, and repeats what a store could not take until
it can. The journal entry of a notice is settled only after everything that belongs to it is written,
so a crash loses none of this.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from typing import Generic, TypeVar

import msgspec
import structlog

from pushd.devices import device_of
from pushd.errors import StoreError, StoreUnavailable
from pushd.lanes import Backoff
from pushd.metrics import Metrics
from pushd.model import Channel, DeliveryStatus, MailboxItem, Outcome, PushRecord, Receipt, User
from pushd.ports import Stores
from pushd.publication import Publication

log = structlog.get_logger("pushd.outbox")
B = TypeVar("B")
SETTLE_DELAY_S = 0.05
STATUS_RANK = {status: rank for rank, status in enumerate(DeliveryStatus)}


class WriteBehind(Generic[B]):
    """One task: waits for `wake`, lets more come for `delay_s`, then writes what `collect` gives."""

    def __init__(
        self,
        name: str,
        collect: Callable[[], Sequence[B]],
        write: Callable[[B], Awaitable[None]],
        metrics: Metrics,
        delay_s: Callable[[], float],
    ) -> None:
        self.name = name
        self.failure = ""  # why the last attempt failed; "" while it works
        self._collect = collect
        self._write = write
        self._metrics = metrics
        self._delay_s = delay_s
        self._is_dirty = asyncio.Event()
        self._is_urgent = asyncio.Event()
        self._is_idle = True
        self._is_ended = False
        self._barriers: list[asyncio.Future[None]] = []

    def wake(self) -> None:
        """There is something to collect."""
        self._is_dirty.set()

    async def flushed(self) -> None:
        """Everything given before this call is in the store. Raises StoreUnavailable when the writer ends before."""
        if self._is_idle and not self._is_dirty.is_set():
            return
        if self._is_ended:
            raise self._ended()
        barrier = asyncio.get_running_loop().create_future()
        self._barriers.append(barrier)
        self._is_dirty.set()
        self._is_urgent.set()
        await barrier

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                await self._is_dirty.wait()
                await self._let_more_come()
                await self._write_all()
        finally:
            self._is_ended = True
            for barrier in self._barriers:
                if not barrier.done():
                    barrier.set_exception(self._ended())

    async def _write_all(self) -> None:
        self._is_idle = False
        self._is_dirty.clear()
        self._is_urgent.clear()
        count = len(self._barriers)  # later ones wait for what is given from here on
        for batch in self._collect():
            await self._persist(batch)
        for barrier in self._barriers[:count]:
            if not barrier.done():
                barrier.set_result(None)
        del self._barriers[:count]
        self._is_idle = True

    async def _let_more_come(self) -> None:
        delay_s = self._delay_s()
        if delay_s > 0 and not self._is_urgent.is_set():
            try:
                async with asyncio.timeout(delay_s):
                    await self._is_urgent.wait()
            except TimeoutError:
                pass

    async def _persist(self, batch: B) -> None:
        backoff = Backoff()
        while True:
            try:
                await self._write(batch)
            except StoreUnavailable as error:
                self._failed(error)
                await asyncio.sleep(backoff.next_s())
            except StoreError as error:
                # Repeating will not help; the journal keeps the notice for the next start.
                self._failed(error)
                self._metrics.errors.labels("store_write").inc()
                return
            else:
                self.failure = ""
                return

    def _ended(self) -> StoreUnavailable:
        return StoreUnavailable(self.name, "the writer has ended")

    def _failed(self, error: StoreError) -> None:
        if not self.failure:
            log.warning("store write failed", writer=self.name, error=str(error), cause=repr(error.__cause__))
        self.failure = str(error)


class _Unwritten:
    """Users about whom something is not in the store yet; remembers them until the batch after theirs is taken."""

    def __init__(self) -> None:
        self._collected: set[int] = set()
        self._taken: set[int] = set()

    def add(self, user_ids: Collection[int]) -> None:
        self._collected.update(user_ids)

    def take(self) -> None:
        """What was collected is being written; what was being written is."""
        self._taken, self._collected = self._collected, set()

    def has_any(self, user_ids: set[int]) -> bool:
        return not (self._collected.isdisjoint(user_ids) and self._taken.isdisjoint(user_ids))


class _Save:
    __slots__ = ("item", "publication", "user_ids")

    def __init__(self, item: MailboxItem, user_ids: Collection[int], publication: Publication) -> None:
        self.item = item
        self.user_ids = user_ids
        self.publication = publication


class _Remove:
    __slots__ = ("removals",)

    def __init__(self) -> None:
        self.removals: dict[int, list[str]] = {}


class MailboxWriter:
    """Saves and removals, in the order they were asked for."""

    def __init__(self, stores: Stores, metrics: Metrics) -> None:
        self._mailbox = stores.mailbox
        self._metrics = metrics
        self._queue: list[_Save | _Remove] = []
        self._unwritten = _Unwritten()
        self.writer: WriteBehind[list[_Save] | _Remove] = WriteBehind(
            "mailbox", self._take, self._write, metrics, lambda: 0.0
        )

    def save(self, publication: Publication, item: MailboxItem, user_ids: Collection[int]) -> None:
        """Put `item` into the mailboxes of these users; `publication` is held until it is there."""
        publication.begin_save()
        self._queue.append(_Save(item, user_ids, publication))
        self._unwritten.add(user_ids)
        self.writer.wake()

    def remove(self, user_id: int, message_ids: Collection[str]) -> None:
        """Take these out of the user's mailbox."""
        last = self._queue[-1] if self._queue else None
        if not isinstance(last, _Remove):
            last = _Remove()
            self._queue.append(last)
        last.removals.setdefault(user_id, []).extend(message_ids)
        self._unwritten.add((user_id,))
        self.writer.wake()

    async def written_for(self, user_ids: set[int]) -> None:
        """What was asked for these users is done; does not wait for what concerns others alone."""
        if self._unwritten.has_any(user_ids):
            await self.writer.flushed()

    def _take(self) -> list[list[_Save] | _Remove]:
        queue, self._queue = self._queue, []
        self._unwritten.take()
        batches: list[list[_Save] | _Remove] = []
        for operation in queue:
            if isinstance(operation, _Remove):
                batches.append(operation)
            elif batches and isinstance(batches[-1], list):
                batches[-1].append(operation)
            else:
                batches.append([operation])
        return batches

    async def _write(self, batch: list[_Save] | _Remove) -> None:
        if isinstance(batch, _Remove):
            await self._mailbox.remove(batch.removals)
            return
        await self._mailbox.save([(save.item, save.user_ids) for save in batch])
        for save in batch:
            self._metrics.mailbox_saved.inc(len(save.user_ids))
            save.publication.end_save()


def merged(first: Outcome, second: Outcome) -> Outcome:
    """What is known after both: flags stay set, first times stay, the status only moves forward, "offline" stays."""
    received = [at for at in (first.received_ms, second.received_ms) if at]
    return Outcome(
        created_ms=min(first.created_ms, second.created_ms),
        is_online=first.is_online or second.is_online,
        received_ms=min(received, default=0),
        status=max(first.status, second.status, key=STATUS_RANK.__getitem__),
        channel=Channel.OFFLINE if Channel.OFFLINE in (first.channel, second.channel) else first.channel,
    )


class _Rows:
    """Unwritten outcomes of one notice, by user."""

    __slots__ = ("outcomes", "publications")

    def __init__(self) -> None:
        self.publications: list[Publication] = []  # one, but for a message_id that was used again
        self.outcomes: dict[int, Outcome] = {}

    def add(self, user_ids: Collection[int], outcome: Outcome) -> None:
        if not self.outcomes:
            self.outcomes = dict.fromkeys(user_ids, outcome)
            return
        for user_id in user_ids:
            known = self.outcomes.get(user_id)
            self.outcomes[user_id] = outcome if known is None else merged(known, outcome)


class RecordBatch(msgspec.Struct):
    """At most `records.batch_size` receipts, the push records they belong to, and whom to tell when written."""

    push_records: list[PushRecord]
    rows: list[tuple[str, int, Outcome, bool]]
    publications: list[Publication]


class RecordWriter:
    """Push records and receive records; what happens to one receipt between two flushes is one write.

    `users` gives names and roles, `client_of` what is known of a connected user's client:
    (connection_id, client_ip, user_agent).
    """

    def __init__(
        self,
        stores: Stores,
        metrics: Metrics,
        *,
        users: Callable[[Collection[int]], Awaitable[dict[int, User]]],
        client_of: Callable[[int], tuple[str, str, str]],
        batch_size: Callable[[], int],
        delay_s: Callable[[], float],
    ) -> None:
        self._records = stores.records
        self._users = users
        self._client_of = client_of
        self._batch_size = batch_size
        self._push_records: dict[str, PushRecord] = {}
        self._recorded: list[Publication] = []  # whose push records these are
        self._pending: dict[str, _Rows] = {}
        self._unwritten = _Unwritten()
        self.writer: WriteBehind[RecordBatch] = WriteBehind("records", self._take, self._write, metrics, delay_s)

    def push_record(self, publication: Publication, record: PushRecord) -> None:
        """Create or update the record of a notice; `publication` is held until it is written."""
        publication.hold()
        self._recorded.append(publication)
        self._push_records[record.notice.message_id] = record
        self.writer.wake()

    def note(
        self, publication: Publication | None, message_id: str, user_ids: Collection[int], outcome: Outcome
    ) -> None:
        """Note `outcome` for these recipients; `publication`, if given, is held until it is written."""
        if not user_ids:
            return
        rows = self._pending.get(message_id)
        if rows is None:
            rows = self._pending[message_id] = _Rows()
        if publication is not None and publication not in rows.publications:
            rows.publications.append(publication)
            publication.hold()
        rows.add(user_ids, outcome)
        self._unwritten.add(user_ids)
        self.writer.wake()

    async def written_for(self, user_ids: set[int]) -> None:
        """What was noted for these users is in the store; does not wait for others' receipts alone."""
        if self._unwritten.has_any(user_ids):
            await self.writer.flushed()

    def _take(self) -> list[RecordBatch]:
        push_records, self._push_records = self._push_records, {}
        recorded, self._recorded = self._recorded, []
        pending, self._pending = self._pending, {}
        self._unwritten.take()
        size = self._batch_size()
        batches = [RecordBatch(list(push_records.values()), [], recorded)]
        for message_id, rows in pending.items():
            for index, chunk in enumerate(_chunks(list(rows.outcomes.items()), size)):
                if len(batches[-1].rows) + len(chunk) > size:
                    batches.append(RecordBatch([], [], []))
                is_late = not rows.publications
                batches[-1].rows.extend((message_id, user_id, outcome, is_late) for user_id, outcome in chunk)
                for publication in rows.publications:
                    if index:
                        publication.hold()  # each batch is written, or given up, by itself
                    batches[-1].publications.append(publication)
        return batches

    async def _write(self, batch: RecordBatch) -> None:
        users = await self._users({row[1] for row in batch.rows})
        receipts = [self._receipt(row, users.get(row[1])) for row in batch.rows]
        await self._records.write(batch.push_records, receipts)
        for publication in batch.publications:
            publication.release()

    def _receipt(self, row: tuple[str, int, Outcome, bool], user: User | None) -> Receipt:
        message_id, user_id, outcome, is_late = row
        connection_id, client_ip, user_agent = self._client_of(user_id)
        device = device_of(user_agent)
        return Receipt(
            message_id=message_id,
            user_id=user_id,
            username=user.username if user else "",
            role=user.role if user else 0,
            connection_id=connection_id,
            client_ip=client_ip,
            user_agent=user_agent,
            outcome=outcome,
            device_type=device.device_type,
            platform=device.platform,
            browser=device.browser,
            is_late=is_late,
        )


def _chunks(items: list[tuple[int, Outcome]], size: int) -> Iterator[list[tuple[int, Outcome]]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


class SettledWriter:
    """Journal entries with nothing left to do."""

    def __init__(self, stores: Stores, metrics: Metrics) -> None:
        self._journal = stores.journal
        self._seqs: list[int] = []
        self.writer: WriteBehind[list[int]] = WriteBehind(
            "settled", self._take, self._journal.settle, metrics, lambda: SETTLE_DELAY_S
        )

    def settle(self, publication: Publication) -> None:
        """The notice needs nothing more."""
        self._seqs.append(publication.notice.seq)
        self.writer.wake()

    def _take(self) -> list[list[int]]:
        seqs, self._seqs = self._seqs, []
        return [seqs] if seqs else []


class Outbox:
    """The three writers of a node."""

    def __init__(self, mailbox: MailboxWriter, records: RecordWriter, settled: SettledWriter) -> None:
        self.mailbox = mailbox
        self.records = records
        self.settled = settled

    def writers(self) -> list[WriteBehind[list[_Save] | _Remove] | WriteBehind[RecordBatch] | WriteBehind[list[int]]]:
        """All of them, in the order in which they are flushed at a stop."""
        return [self.mailbox.writer, self.records.writer, self.settled.writer]

    async def flushed(self) -> None:
        """Everything given so far is in the stores."""
        for writer in self.writers():
            await writer.flushed()
