"""Writes of push records and receive records: what becomes of a receipt between two flushes is one write."""

from __future__ import annotations

from collections.abc import Collection, Coroutine, Iterator, Sequence
from typing import Any

import msgspec

from pushd._fastpath import Connection, Hub
from pushd.batched import batched
from pushd.config.current import CurrentConfig
from pushd.in_flight import InFlight
from pushd.model import Channel, Client, DeliveryStatus, Notice, Outcome, PushRecord, Receipt, User, UserId
from pushd.ports import RecordStore
from pushd.telemetry import faults
from pushd.turns import Slice
from pushd.users.devices import device_of
from pushd.users.directory import CachedDirectory
from pushd.writing.batches import decode_records, encode_records, end_work, halves, sent
from pushd.writing.write_behind import Backing, WriteBehind

ROWS_PER_CLOCK_READING = 16
NOT_SENT = ("scheduled", "cancelled")  # statuses
STATUS_RANK = {status: rank for rank, status in enumerate(DeliveryStatus)}


def merged(first: Outcome, second: Outcome) -> Outcome:
    """What is known after both: flags stay set, first times stay, the status only moves forward, "offline" stays."""
    if _says_less(first, second):
        return second
    received = [at for at in (first.received_ms, second.received_ms) if at]
    return Outcome(
        created_ms=min(first.created_ms, second.created_ms),
        is_online=first.is_online or second.is_online,
        received_ms=min(received, default=0),
        status=max(first.status, second.status, key=STATUS_RANK.__getitem__),
        channel=Channel.OFFLINE if Channel.OFFLINE in (first.channel, second.channel) else first.channel,
    )


def _says_less(sent: Outcome, later: Outcome) -> bool:
    """Whether nothing of `sent` is missing in `later`: of what goes out live nearly always."""
    return (
        sent.status is DeliveryStatus.PENDING
        and later.is_online
        and not sent.received_ms
        and sent.channel is Channel.WEBSOCKET
        and sent.created_ms == later.created_ms
    )


class _Rows:
    """Unwritten outcomes of one notice, by user."""

    __slots__ = ("flights", "outcomes")

    def __init__(self) -> None:
        self.flights: list[InFlight] = []  # one, but for a message_id that was used again
        self.outcomes: dict[UserId, Outcome] = {}

    def add(self, user_ids: Collection[UserId], outcome: Outcome) -> None:
        if not self.outcomes:
            self.outcomes = dict.fromkeys(user_ids, outcome)
            return
        for user_id in user_ids:
            known = self.outcomes.get(user_id)
            self.outcomes[user_id] = outcome if known is None else merged(known, outcome)


class RecordBatch(msgspec.Struct):
    """At most `records.batch_size` receipts, the push records they belong to, and whom to tell when written."""

    push_records: list[PushRecord]
    rows: list[tuple[str, UserId, Outcome, bool]]
    flights: list[InFlight]
    receipts: list[Receipt] = []  # made of the rows


class RecordWriter:
    """Writes push records and receive records; what happens to one receipt between two flushes is one write.

    Names and roles come from the directory, what is known of a connected user's client from the hub.
    """

    name = "records"

    def __init__(
        self, records: RecordStore, backing: Backing, hub: Hub, directory: CachedDirectory, current: CurrentConfig
    ) -> None:
        self._records = records
        self._metrics = backing.metrics
        self._users = directory.users
        self._hub = hub
        self._current = current
        self._push_records: dict[str, PushRecord] = {}
        self._recorded: list[InFlight] = []  # whose push records these are
        self._pending: dict[str, _Rows] = {}
        self.writer = WriteBehind(self, backing, self._delay_s)

    def conclude(self, flight: InFlight, status: str) -> None:
        """Creates or updates the record of a notice; `flight` is not settled before it is written."""
        flight.add_work()
        self._recorded.append(flight)
        message_id = flight.notice.message_id
        pending = self._push_records.get(message_id)
        is_whole = status in NOT_SENT or (pending is not None and pending.is_whole)
        self._push_records[message_id] = PushRecord(
            flight.notice, status, flight.total_count, flight.online_count, is_whole
        )
        self.writer.wake()

    def sent(self, flight: InFlight, connection: Connection, received_ms: int) -> None:
        """Notes that it went to its only recipient, on his only connection: `note` and `conclude`.

        `received_ms`: when he has thereby received it, else 0.
        """
        outcome = sent(flight.notice.accepted_ms, received_ms)
        self.note(flight, flight.notice.message_id, (connection.user_id,), outcome)
        self.conclude(flight, "success")

    def received(self, flight: InFlight, user_id: UserId, at_ms: int) -> None:
        """Notes that a user to whom it was sent has received it."""
        self.note(flight, flight.notice.message_id, (user_id,), sent(flight.notice.accepted_ms, at_ms))

    def note(self, flight: InFlight | None, message_id: str, user_ids: Collection[UserId], outcome: Outcome) -> None:
        """Notes `outcome` for these recipients; `flight`, if given, is not settled before they are written."""
        if not user_ids:
            return
        rows = self._pending.get(message_id)
        if rows is None:
            rows = self._pending[message_id] = _Rows()
        if flight is not None and flight not in rows.flights:
            rows.flights.append(flight)
            flight.add_work()
        rows.add(user_ids, outcome)
        self.writer.wake(user_ids)

    def readable(self, user_ids: set[UserId] | None = None) -> Coroutine[Any, Any, None]:
        """Returns when what was noted before, of all or about these users, can be read.

        Raises StoreUnavailable when the store stays away.
        """
        return self.writer.flushed() if user_ids is None else self.writer.written_for(user_ids)

    def collect(self) -> Iterator[RecordBatch]:
        """Hands over what was noted. Batches are made when their turn comes: a broadcast's would hold up the loop."""
        push_records, self._push_records = self._push_records, {}
        recorded, self._recorded = self._recorded, []
        pending, self._pending = self._pending, {}
        size = self._current.config.records.batch_size
        for rows in pending.values():
            for flight in rows.flights:
                flight.add_work((len(rows.outcomes) - 1) // size)  # each batch is written, or given up, by itself
        return _batches(RecordBatch(list(push_records.values()), [], recorded), pending, size)

    async def write(self, batch: RecordBatch) -> None:
        """Completes the receipts, and writes them behind their push records."""
        await self._complete(batch)
        await self._records.write(batch.push_records, batch.receipts)

    def written(self, batch: RecordBatch) -> None:
        """Tells the notices in flight that they need not wait for this batch."""
        end_work(batch.flights, self._metrics)

    def gave_up(self, batch: RecordBatch) -> None:
        """Lets the notices be settled: a receipt that is set aside does not keep its notice in the journal."""
        self.written(batch)

    def parts(self, batch: RecordBatch) -> Sequence[RecordBatch]:
        """Cuts push records from receipts, and both by halves; the notices wait for each part by itself."""
        parts: list[RecordBatch] = []
        if batch.push_records and (batch.rows or batch.receipts):
            parts = [RecordBatch(batch.push_records, [], []), RecordBatch([], batch.rows, [], batch.receipts)]
        elif len(batch.push_records) > 1:
            parts = [RecordBatch(some, [], []) for some in halves(batch.push_records)]
        elif len(batch.receipts) > 1:
            parts = [RecordBatch([], [], [], some) for some in halves(batch.receipts)]
        elif not batch.receipts and len(batch.rows) > 1:
            parts = [RecordBatch([], some, []) for some in halves(batch.rows)]
        if not parts:
            return [batch] if batch.push_records or batch.receipts or batch.rows else []
        for flight in batch.flights:
            flight.add_work()
        for part in parts:
            part.flights = batch.flights
        return parts

    async def encode(self, batch: RecordBatch) -> bytes:
        """Encodes the batch, completed: who is connected now may not be when it is written."""
        await self._complete(batch)
        return encode_records(batch.push_records, batch.receipts)

    def decode(self, body: bytes) -> RecordBatch:
        """Decodes what `encode` made."""
        push_records, receipts = decode_records(body)
        return RecordBatch(push_records, [], [], receipts)

    async def _complete(self, batch: RecordBatch) -> None:
        """Makes receipts of the rows, once: with names, and with the clients as they are now."""
        if batch.rows and not batch.receipts:
            users: dict[UserId, User] = {}
            try:
                users = await self._users({row[1] for row in batch.rows})
            except Exception as error:  # names are not worth a receipt
                faults.noted(self._metrics, "names", error)
            notices = {flight.notice.message_id: flight.notice for flight in batch.flights}
            receipts: list[Receipt] = []
            one_slice = Slice()
            for start in range(0, len(batch.rows), ROWS_PER_CLOCK_READING):
                await one_slice.rest()
                rows = batch.rows[start : start + ROWS_PER_CLOCK_READING]
                receipts += [self._receipt(row, users.get(row[1]), notices.get(row[0])) for row in rows]
            batch.receipts = receipts

    def _receipt(self, row: tuple[str, UserId, Outcome, bool], user: User | None, notice: Notice | None) -> Receipt:
        message_id, user_id, outcome, is_late = row
        connection_id, client_ip, user_agent = self._client_of(user_id)
        device = device_of(user_agent)
        username, role = (user.username, user.role) if user else ("", 0)
        said = (notice.type, notice.tags, notice.expires_ms) if notice else ("", (), 0)
        # By position: by name it takes three times as long.
        return Receipt(
            message_id, user_id, username, role, connection_id, client_ip, user_agent, outcome,
            device.device_type, device.platform, device.browser, is_late, *said,
        )  # fmt: skip

    def _client_of(self, user_id: UserId) -> tuple[str, str, str]:
        """(connection_id, client_ip, user_agent) of the user's oldest connection, else empty texts."""
        connections = self._hub.connections_of(user_id)
        if not connections:
            return "", "", ""
        client: Client = connections[0].details
        return connections[0].conn_id, client.client_ip, client.user_agent

    def _delay_s(self) -> float:
        return self._current.config.records.flush_ms / 1000


def _batches(batch: RecordBatch, pending: dict[str, _Rows], size: int) -> Iterator[RecordBatch]:
    """Fills `batch`, and those that follow it, with at most `size` rows each."""
    for message_id, rows in pending.items():
        is_late = not rows.flights
        for chunk in batched(rows.outcomes.items(), size):
            if len(batch.rows) + len(chunk) > size:
                yield batch
                batch = RecordBatch([], [], [])
            batch.rows.extend((message_id, user_id, outcome, is_late) for user_id, outcome in chunk)
            batch.flights.extend(rows.flights)
    yield batch
