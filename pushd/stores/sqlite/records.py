"""Push records and receive records in the ledger: what is written, marked, deleted, expired and purged.

A push record is its notice's row with two bits for the status; what is asked of records is in record_lists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from pushd.ledger.clients import Describe, first_of
from pushd.model import Channel, DeliveryStatus, Mark, Outcome, PushRecord, Receipt, User
from pushd.ports import Noted
from pushd.stores.sqlite.engine.statements import Statements, drop_chunks
from pushd.stores.sqlite.ledger_file import LedgerFile
from pushd.stores.sqlite.notices import HIDDEN, KNOWN, OVER, SEQS_AT_ONCE, expired, numbers_of, take_shape
from pushd.stores.sqlite.record_lists import RecordLists
from pushd.turns import Slice

# Of ledger/_ledger.pxd: steps and flags of a receipt, the status of a notice.
PENDING, OFFLINE, EXPIRED, DELIVERED, READ, CONFIRMED = range(1, 7)
ONLINE, BY_MAILBOX = 0x40, 0x80
STATUS = 0xC0
STATUSES = {"success": 0x40, "expired": 0x80, "failed": 0xC0}  # of a push record; others: none yet

_STEPS = {
    DeliveryStatus.PENDING: PENDING,
    DeliveryStatus.OFFLINE: OFFLINE,
    DeliveryStatus.EXPIRED: EXPIRED,
    DeliveryStatus.DELIVERED: DELIVERED,
}

# Recipients that are noted at once: a millisecond of the absent, and of those whose clients have to be described.
ABSENT_AT_ONCE = 8192
PRESENT_AT_ONCE = 32

FORGET_CLIENTS = """
DELETE FROM client WHERE number IN (SELECT number FROM client WHERE number < :first ORDER BY number LIMIT :limit)
"""

ClientOf = Callable[[int], tuple[str, str, str]]
Run = tuple[int, Sequence[int]]  # when a notice was received (0: it was not), and by whom


class SqliteRecords:
    """ports.RecordStore, and a NoteTaker. `clock` gives the time of day in milliseconds.

    Receipts of ids that no notice has, or had, are ignored, and so are those of deleted records.
    """

    def __init__(
        self, file: LedgerFile, lists: RecordLists, statements: Statements, *, clock: Callable[[], int]
    ) -> None:
        self._file = file
        self._ledger = file.ledger
        self._statements = statements
        self._clock = clock
        self._kept_from = 0  # all notices before are hidden
        self._clients_from = 0  # no client before is stored
        self.receive_status = lists.receive_status
        self.received_by = lists.received_by
        self.not_received_by = lists.not_received_by
        self.unread_counts = lists.unread_counts
        self.push_records = lists.push_records
        self.push_record = lists.push_record
        self.push_stats = lists.push_stats
        self.receive_records = lists.receive_records
        self.receive_stats = lists.receive_stats
        self.newest_receive_records = lists.newest_receive_records
        self.user_receipts = lists.user_receipts
        self.user_summary = lists.user_summary

    async def note(
        self,
        records: Sequence[PushRecord],
        noted: Sequence[Noted],
        users: Mapping[int, User],
        client_of: ClientOf,
        device_of: Describe,
    ) -> None:
        """Create or merge; a fraction of a microsecond for each absent recipient, one for each that is connected."""
        ids = {record.notice.message_id for record in records}
        ids.update(one.message_id for one in noted)
        seqs = await self._file.seqs_of(ids)
        self._note_statuses(records, seqs)
        self._file.clients.begin(self._clock())
        one_slice = Slice()
        for one in noted:
            seq = seqs.get(one.message_id)
            if seq is None:
                continue
            take_shape(self._file, seq, sum(len(user_ids) for _, user_ids in one.outcomes))
            for state, runs in _steps(one.outcomes):
                if one_slice.is_over:
                    await one_slice.rest()
                if self._is_listed(seq):
                    facts_of = client_of if _has_client(state) else None
                    self._note(seq, state, runs, facts_of, device_of, None if one.is_late else users)
        await self._file.commit()

    def _note(
        self,
        seq: int,
        state: int,
        runs: Sequence[Run],
        client_of: ClientOf | None,
        device_of: Describe,
        users: Mapping[int, User] | None,
    ) -> None:
        user_ids = runs[0][1] if len(runs) == 1 else [user_id for _, some in runs for user_id in some]
        numbers = numbers_of(self._file, user_ids)
        if users is not None:
            self._note_names(seq, numbers, user_ids, users)
        clients: list[int] | None = None
        if client_of is not None:
            number = self._file.clients.number
            clients = [number(*client_of(user_id), device_of) for user_id in user_ids]
            clients = clients if any(clients) else None
        start = 0
        for received_ms, some in runs:
            end = start + len(some)
            self._ledger.note(
                seq, numbers[start:end], state, received_ms, None if clients is None else clients[start:end]
            )
            start = end

    def _note_names(self, seq: int, numbers: list[int], user_ids: Sequence[int], users: Mapping[int, User]) -> None:
        try:
            known = [users[user_id] for user_id in user_ids]
        except KeyError:
            numbers = [number for number, user_id in zip(numbers, user_ids, strict=True) if user_id in users]
            known = [users[user_id] for user_id in user_ids if user_id in users]
        self._file.users.note_names(numbers, known, seq)

    async def write(self, records: Sequence[PushRecord], receipts: Sequence[Receipt]) -> None:
        """Create or merge: as `note`, of receipts that were on disk or aside."""
        ids = {record.notice.message_id for record in records}
        ids.update(receipt.message_id for receipt in receipts)
        seqs = await self._file.seqs_of(ids)
        self._note_statuses(records, seqs)
        self._file.clients.begin(self._clock())
        one_slice = Slice()
        by_seq: dict[int, list[Receipt]] = {}
        for receipt in receipts:
            if receipt.message_id in seqs:
                by_seq.setdefault(seqs[receipt.message_id], []).append(receipt)
        for seq, some in by_seq.items():
            take_shape(self._file, seq, len(some))
            for receipt in some:
                await one_slice.rest()
                if self._is_listed(seq):
                    self._write(seq, receipt)
        await self._file.commit()

    def _write(self, seq: int, receipt: Receipt) -> None:
        user = User(receipt.user_id, receipt.username, receipt.role)
        self._note(
            seq,
            _state(receipt.outcome),
            [(receipt.outcome.received_ms, [receipt.user_id])],
            lambda _: (receipt.connection_id, receipt.client_ip, receipt.user_agent),
            lambda _: (receipt.device_type, receipt.platform, receipt.browser),
            None if receipt.is_late else {receipt.user_id: user},
        )

    def _is_listed(self, seq: int) -> bool:
        return self._ledger.notice_state(seq) & (KNOWN | HIDDEN) == KNOWN

    def _note_statuses(self, records: Sequence[PushRecord], seqs: Mapping[str, int]) -> None:
        for record in records:
            seq = seqs.get(record.notice.message_id)
            if seq is not None:
                status = STATUSES.get(record.status, 0)
                self._ledger.set_notice(seq, status, STATUS & ~status)

    async def mark(self, user_id: int, message_ids: Sequence[str], mark: Mark, at_ms: int) -> list[str]:
        """Note that the user read or confirmed these; the ids for which there is a receive record."""
        step = CONFIRMED if mark is Mark.CONFIRMED else READ
        seqs = await self._file.seqs_of(set(message_ids))
        number = self._file.users.number(user_id)
        if number is None:
            return []
        found = {
            message_id
            for message_id, seq in seqs.items()
            if self._is_listed(seq) and self._ledger.mark(seq, number, step, at_ms)
        }
        if found:
            await self._file.commit()
        return [message_id for message_id in message_ids if message_id in found]

    async def delete(self, message_id: str) -> bool:
        """Hide a push record and its receive records; False when there was none. What waits in mailboxes stays."""
        seq = (await self._file.seqs_of({message_id})).get(message_id)
        if seq is None or not self._is_listed(seq):
            return False
        self._ledger.hide(seq)
        await self._file.commit()
        return True

    async def expire(self, since_ms: int, now_ms: int, limit: int) -> int:
        """Mark at most `limit` receive records as expired; how many were marked. Their notices count as unread no more,
        whoever has received them."""
        marked, one_slice = 0, Slice()
        async for seqs in expired(self._statements, since_ms, now_ms):
            for seq in seqs:
                await one_slice.rest()
                if self._is_listed(seq) and not self._ledger.notice_state(seq) & OVER and marked < limit:
                    marked += self._ledger.expire(seq, limit - marked)
            if marked >= limit:
                break
        await self._file.commit()
        return marked

    async def purge(self, before_ms: int, limit: int) -> int:
        """Drop about `limit` records of notices accepted before that time; how many were dropped.

        Of a notice its receive records go first, its push record once none is left.
        """
        dropped, is_done = 0, False
        one_slice = Slice()
        while dropped < limit and not is_done:
            seqs = self._listed_from(self._kept_from)
            is_done = not seqs
            for seq in seqs:
                await one_slice.rest()
                is_done = self._ledger.created_ms(seq) >= before_ms
                if is_done or dropped >= limit:
                    break
                dropped += self._ledger.drop(seq, limit - dropped)
                if self._is_listed(seq):
                    break
                dropped += 1
                self._kept_from = seq + 1
        if dropped:
            await self._file.commit()
        if is_done:
            await self._forget_clients(first_of(before_ms))
        return dropped

    def _listed_from(self, seq: int) -> list[int]:
        ledger = self._ledger
        return ledger.seqs(max(seq, ledger.base_seq), ledger.last_seq, KNOWN, HIDDEN, SEQS_AT_ONCE)

    async def _forget_clients(self, first: int) -> None:
        """Delete the clients with lower numbers, which no receipt names."""
        if first > self._clients_from:
            await drop_chunks(
                1 << 32,
                lambda wanted: self._statements.change("purge", FORGET_CLIENTS, first=first, limit=wanted),
            )
            self._clients_from = first


def _steps(outcomes: Iterable[tuple[Outcome, Sequence[int]]]) -> Iterator[tuple[int, list[Run]]]:
    """All of it by state, for few enough recipients at a time for a slice of the loop's time."""
    by_state: dict[int, list[Run]] = {}
    for outcome, user_ids in outcomes:
        by_state.setdefault(_state(outcome), []).append((outcome.received_ms, user_ids))
    for state, runs in by_state.items():
        size = PRESENT_AT_ONCE if _has_client(state) else ABSENT_AT_ONCE
        step: list[Run] = []
        room = size
        for received_ms, user_ids in runs:
            start = 0
            while start < len(user_ids):
                if not room:
                    yield state, step
                    step, room = [], size
                some = user_ids[start : start + room]
                step.append((received_ms, some))
                start += len(some)
                room -= len(some)
        if step:
            yield state, step


def _state(outcome: Outcome) -> int:
    step = DELIVERED if outcome.received_ms else _STEPS[outcome.status]
    return step | (ONLINE if outcome.is_online else 0) | (BY_MAILBOX if outcome.channel is Channel.OFFLINE else 0)


def _has_client(state: int) -> bool:
    return bool(state & ONLINE) or state & 0x0F == DELIVERED
