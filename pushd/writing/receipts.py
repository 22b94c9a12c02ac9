"""Push records and receipts where the store is a ledger in this process: noted at once, and on disk soon after."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence

import msgspec

from pushd._fastpath import Connection, Hub
from pushd.batched import batched
from pushd.config.current import CurrentConfig
from pushd.in_flight import InFlight
from pushd.model import Client, Outcome, PushRecord, Receipt, User, UserId
from pushd.ports import ReceiptLedger, RecordStore
from pushd.telemetry import faults
from pushd.turns import Slice
from pushd.users.devices import device_of
from pushd.users.directory import CachedDirectory
from pushd.writing.batches import decode_records, encode_records, end_work, halves, sent
from pushd.writing.write_behind import Backing, WriteBehind

SEQUENCES = (list, tuple)
NAMED_AT_ONCE = 500  # users: half a millisecond
SETTLED_AT_ONCE = 100  # notices


# What could not be noted at once: the notice's message_id, and what to do with its seq once that is found.
Unfound = tuple[str, Callable[[int], object]]


class Noted(msgspec.Struct):
    """What has to be done before notes are on disk, and whom to tell then. Records and receipts come from the disk."""

    flights: deque[InFlight]
    unfound: list[Unfound] = []
    unnamed: dict[UserId, int] = {}
    push_records: list[PushRecord] = []
    receipts: list[Receipt] = []


class LedgerWriter:
    """Notes receipts in the ledger; a notice is not settled before what is noted of it is on disk.

    Names and roles come from the directory, what is known of a connected user's client from the hub.
    """

    name = "records"

    def __init__(
        self,
        ledger: ReceiptLedger,
        records: RecordStore,
        backing: Backing,
        hub: Hub,
        directory: CachedDirectory,
        current: CurrentConfig,
        now: Callable[[], float],
    ) -> None:
        self._ledger = ledger
        self._records = records
        self._metrics = backing.metrics
        self._directory = directory
        self._hub = hub
        self._current = current
        self._now = now
        self._is_changed = False
        self._flights: dict[InFlight, None] = {}
        self._unfound: list[Unfound] = []
        self._unnamed: dict[UserId, int] = {}  # users, with the first notice since they were named
        self._named: set[UserId] = set()
        self._named_as, self._named_until = -1, 0.0  # as the directory had them then, and for how long that holds
        self._is_completing = False
        self._oldest_client = ledger.oldest_client  # as of the last flush, or of the last new client
        self.writer = WriteBehind(self, backing, lambda: current.config.records.flush_ms / 1000)

    # ---- noting

    def conclude(self, flight: InFlight, status: str) -> None:
        """Notes what its push record says of the notice; `flight` is not settled before that is on disk."""
        message_id = flight.notice.message_id
        if not self._ledger.conclude(flight.notice.seq, message_id, status):
            self._unfound.append((message_id, lambda seq: self._ledger.conclude(seq, message_id, status)))
        self._hold(flight)

    def sent(self, flight: InFlight, connection: Connection, received_ms: int) -> None:
        """Notes that it went to its only recipient, on his only connection: `note` and `conclude`.

        `received_ms`: when he has thereby received it, else 0.
        """
        user_id, seq, ledger = connection.user_id, flight.notice.seq, self._ledger
        number, client = ledger.user_number(user_id), connection.details.number
        if client < self._oldest_client or not client:
            client = self._client_of(connection)
        if number is None or not ledger.sent(seq, number, client, received_ms):
            self.note(flight, flight.notice.message_id, (user_id,), sent(flight.notice.accepted_ms, received_ms))
            self.conclude(flight, "success")
            return
        if flight not in self._flights:
            self._hold(flight)
        if self._named_as != self._directory.version or user_id not in self._named:
            self._name_later((user_id,), seq)

    def received(self, flight: InFlight, user_id: UserId, at_ms: int) -> None:
        """Notes that a user to whom it was sent has received it."""
        number = self._ledger.user_number(user_id)
        if number is None or not self._ledger.received(flight.notice.seq, number, at_ms):
            self.note(flight, flight.notice.message_id, (user_id,), sent(flight.notice.accepted_ms, at_ms))
        elif flight not in self._flights:
            self._hold(flight)

    def note(self, flight: InFlight | None, message_id: str, user_ids: Collection[UserId], outcome: Outcome) -> None:
        """Notes `outcome` for these recipients; `flight`, if given, is not settled before that is on disk."""
        if not user_ids:
            return
        users = user_ids if isinstance(user_ids, SEQUENCES) else [*user_ids]
        clients = self._clients_of(users) if outcome.is_online or outcome.received_ms else []
        seq, many = (0, 0) if flight is None else (flight.notice.seq, flight.recipients)
        if not self._ledger.note(seq, message_id, users, outcome, clients, many):
            some = [*users]  # the caller's may change
            self._unfound.append(
                (message_id, lambda seq: self._ledger.note(seq, message_id, some, outcome, clients, many))
            )
        if flight is None:
            self._changed()
            return
        self._hold(flight)
        if self._named_as != self._directory.version or not self._named.issuperset(users):
            self._name_later(users, seq)

    def _name_later(self, user_ids: Sequence[UserId], seq: int) -> None:
        """The ledger is to be told what these are called, where it does not know it as the directory remembers it."""
        if self._named_as != self._directory.version:
            self._forget_named()
        for user_id in user_ids:
            if user_id not in self._named:
                self._unnamed.setdefault(user_id, seq)

    def _forget_named(self) -> None:
        self._named, self._named_as = set(), self._directory.version
        self._named_until = self._now() + self._current.config.directory.cache_ttl_s

    def _hold(self, flight: InFlight) -> None:
        if flight not in self._flights:
            self._flights[flight] = None
            flight.work += 1  # as add_work, which would be one more call for each notice
        if not self._is_changed:
            self._changed()

    def _changed(self) -> None:
        """There is something to flush: the writer hears of it once."""
        self._is_changed = True
        self.writer.wake()

    def _clients_of(self, user_ids: Sequence[UserId]) -> list[int]:
        """The number of each one's oldest connection."""
        connections_of = self._hub.connections_of
        numbers = []
        for user_id in user_ids:
            connections = connections_of(user_id)
            numbers.append(self._client_of(connections[0]) if connections else 0)
        return numbers if any(numbers) else []

    def _client_of(self, connection: Connection) -> int:
        details: Client = connection.details
        if details.number < self._oldest_client or not details.number:
            details.number = self._ledger.client(connection.conn_id, details.client_ip, details.user_agent)
            self._oldest_client = self._ledger.oldest_client
        return details.number

    async def readable(self, user_ids: set[UserId] | None = None) -> None:
        """Returns when what was noted before, of all or about these users, can be read; with names where it is all.

        Raises StoreUnavailable when the store stays away.
        """
        if self._unfound or self._is_completing or self.writer.on_disk or (user_ids is None and self._unnamed):
            await self.writer.flushed()

    # ---- writing

    def collect(self) -> list[Noted]:
        """Hands over whom to tell of the next flush, and what has to be done before."""
        if not self._is_changed:
            return []
        self._oldest_client = self._ledger.oldest_client
        if self._now() > self._named_until:
            self._forget_named()
        noted = Noted(deque(self._flights), self._unfound, self._unnamed)
        self._is_changed, self._flights, self._unfound, self._unnamed = False, {}, [], {}
        self._is_completing = bool(noted.unfound or noted.unnamed)
        return [noted]

    async def write(self, batch: Noted) -> None:
        """Completes what was noted, and has it flushed with all else that the ledger has."""
        if batch.push_records or batch.receipts:
            await self._records.write(batch.push_records, batch.receipts)
        await self._find(batch.unfound)
        await self._name(batch.unnamed)
        self._is_completing = False
        await self._describe()
        await self._ledger.commit()
        one_slice = Slice()
        while batch.flights:
            await one_slice.rest()
            self._end_work(batch.flights, SETTLED_AT_ONCE)

    async def _find(self, unfound: list[Unfound]) -> None:
        if unfound:
            seqs = await self._ledger.find({message_id for message_id, _ in unfound})
            one_slice = Slice()
            for message_id, note in unfound:
                await one_slice.rest()
                if message_id in seqs:
                    note(seqs[message_id])

    async def _name(self, unnamed: dict[UserId, int]) -> None:
        if not unnamed:
            return
        version = self._directory.version
        users: dict[UserId, User] = {}
        try:
            users = await self._directory.users(unnamed.keys())
        except Exception as error:  # names are not worth a receipt
            faults.noted(self._metrics, "names", error)
        one_slice = Slice()
        for some in batched([(user, unnamed[user_id]) for user_id, user in users.items()], NAMED_AT_ONCE):
            await one_slice.rest()
            self._ledger.name(some)
        if version == self._named_as:
            self._named.update(users)

    async def _describe(self) -> None:
        """Looks devices up in slices of the loop's time: it takes as long as a User-Agent pleases."""
        one_slice = Slice()
        for client, user_agent in self._ledger.undescribed():
            await one_slice.rest()
            device = device_of(user_agent)
            self._ledger.describe(client, (device.device_type, device.platform, device.browser))

    def written(self, batch: Noted) -> None:
        """Tells the notices in flight that they need not wait for this batch."""
        self._end_work(batch.flights, len(batch.flights))

    def _end_work(self, flights: deque[InFlight], most: int) -> None:
        end_work([flights.popleft() for _ in range(min(most, len(flights)))], self._metrics)

    def gave_up(self, batch: Noted) -> None:
        """Lets the notices be settled: that is not on disk before what was noted of them is."""
        self.written(batch)

    def parts(self, batch: Noted) -> Sequence[Noted]:
        """Cuts records and receipts that came from the disk by halves; what was noted cannot be cut."""
        if len(batch.push_records) + len(batch.receipts) > 1:
            records, receipts = batch.push_records, batch.receipts
            record_parts = halves(records) if len(records) > 1 else [records]
            receipt_parts = halves(receipts) if len(receipts) > 1 else [receipts]
            parts = [Noted(deque(), push_records=some) for some in record_parts if some]
            return [*parts, *(Noted(deque(), receipts=some) for some in receipt_parts if some)]
        return [batch] if batch.push_records or batch.receipts else []

    async def encode(self, batch: Noted) -> bytes:
        """Encodes what came from the disk; what was noted is in the ledger."""
        return encode_records(batch.push_records, batch.receipts)

    def decode(self, body: bytes) -> Noted:
        """Decodes what a RecordWriter left, or had set aside."""
        push_records, receipts = decode_records(body)
        return Noted(deque(), push_records=push_records, receipts=receipts)
