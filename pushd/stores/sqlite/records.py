"""Push records and receive records in the ledger: what is written, marked, deleted, expired and purged.

A push record is its notice's row with two bits for the status; what is asked of records is in record_lists.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from pushd.ledger.clients import first_of
from pushd.model import Channel, DeliveryStatus, Mark, Notice, Outcome, PushRecord, Receipt, User, UserId, Version
from pushd.ports import NO_VERSIONS
from pushd.stores.sqlite.engine.statements import Statements, drop_chunks
from pushd.stores.sqlite.ledger_file import LedgerFile
from pushd.stores.sqlite.notices import (
    DENSE,
    DENSE_LEAST,
    HIDDEN,
    KNOWN,
    OVER,
    SEQS_AT_ONCE,
    expired,
    numbers_of,
    take_shape,
)
from pushd.stores.sqlite.record_lists import RecordLists
from pushd.turns import Slice

# Of ledger/_ledger.pxd: steps and flags of a receipt, the status of a notice.
PENDING, OFFLINE, EXPIRED, DELIVERED, READ, CONFIRMED = range(1, 7)
ONLINE, BY_MAILBOX = 0x40, 0x80
STATUS = 0xC0
STATUSES = {"success": 0x40, "expired": 0x80, "failed": 0xC0}  # of a push record; others: none yet

_LISTED = KNOWN | HIDDEN  # of a notice's state; its receipts are on record where KNOWN alone is set

_STEPS = {
    DeliveryStatus.PENDING: PENDING,
    DeliveryStatus.OFFLINE: OFFLINE,
    DeliveryStatus.EXPIRED: EXPIRED,
    DeliveryStatus.DELIVERED: DELIVERED,
}

FORGET_VERSIONS = "DELETE FROM notice_version WHERE message_id = :message_id"
FORGET_CLIENTS = """
DELETE FROM client WHERE number IN (SELECT number FROM client WHERE number < :first ORDER BY number LIMIT :limit)
"""


class SqliteRecords:
    """ports.RecordStore, and ports.ReceiptLedger. `clock` gives the time of day in milliseconds.

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
        self.user_number = file.users.number
        self.sent = file.ledger.sent
        self.received = file.ledger.received
        self.receive_status = lists.receive_status
        self.received_by = lists.received_by
        self.not_received_by = lists.not_received_by
        self.sent_to = lists.sent_to
        self.not_at = lists.not_at
        self.unread_counts = lists.unread_counts
        self.push_records = lists.push_records
        self.push_record = lists.push_record
        self.push_stats = lists.push_stats
        self.receive_records = lists.receive_records
        self.receive_stats = lists.receive_stats
        self.newest_receive_records = lists.newest_receive_records
        self.user_receipts = lists.user_receipts
        self.user_summary = lists.user_summary

    @property
    def oldest_client(self) -> int:
        """Numbers of clients below are not used any more."""
        return self._file.clients.oldest

    def client(self, connection_id: str, client_ip: str, user_agent: str) -> int:
        """The number of these facts."""
        self._file.clients.begin(self._clock())
        return self._file.clients.number(connection_id, client_ip, user_agent)

    def note(
        self, seq: int, message_id: str, user_ids: Sequence[UserId], outcome: Outcome, clients: list[int], many: int
    ) -> bool:
        """Merge `outcome` into the receipts of these users; False: the notice is to be found first."""
        state = self._ledger.notice_state(seq)
        if state & _LISTED != KNOWN:
            first = self._file.recent_seqs.get(message_id)
            if first is None:
                return False
            seq, state = first, self._ledger.notice_state(first)
            if state & _LISTED != KNOWN:
                return True  # its record was deleted
        if not state & DENSE and not 0 < many < DENSE_LEAST:
            take_shape(self._file, seq, max(many, len(user_ids)))
        numbers = numbers_of(self._file, user_ids)
        self._ledger.note(seq, numbers, _state(outcome), outcome.received_ms, clients or None)
        return True

    def conclude(self, seq: int, message_id: str, status: str) -> bool:
        """The status of a notice's push record; False: the notice is to be found first."""
        if not self._ledger.conclude(seq, STATUSES.get(status, 0)):
            first = self._file.recent_seqs.get(message_id)
            if first is None:
                return False
            self._note_status(first, status)
        return True

    async def find(self, message_ids: Collection[str]) -> Mapping[str, int]:
        """The `seq` under which the receipts of these stand."""
        return await self._file.seqs_of(message_ids)

    def name(self, users: Sequence[tuple[User, int]]) -> None:
        """What users are called in receipts of these notices and later ones."""
        numbers = numbers_of(self._file, [user.user_id for user, _ in users])
        note_name = self._file.users.note_name
        for number, (user, seq) in zip(numbers, users, strict=True):
            note_name(number, seq, user.username, user.role)

    def undescribed(self) -> list[tuple[int, str]]:
        """Clients whose devices are not known yet."""
        return self._file.clients.undescribed()

    def describe(self, client: int, device: tuple[str, str, str]) -> None:
        """The device of a client."""
        self._file.clients.describe(client, device)

    async def commit(self) -> None:
        """All that was changed before is on disk."""
        await self._file.commit()

    async def write(self, records: Sequence[PushRecord], receipts: Sequence[Receipt]) -> None:
        """Create or merge: what was on disk, or aside."""
        ids = {record.notice.message_id for record in records}
        ids.update(receipt.message_id for receipt in receipts)
        seqs = await self._file.seqs_of(ids)
        for record in records:
            if record.notice.message_id in seqs:
                self._note_status(seqs[record.notice.message_id], record.status)
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
        client = self._file.clients.number(receipt.connection_id, receipt.client_ip, receipt.user_agent)
        self._file.clients.describe(client, (receipt.device_type, receipt.platform, receipt.browser))
        outcome = receipt.outcome
        numbers = numbers_of(self._file, [receipt.user_id])
        self._ledger.note(seq, numbers, _state(outcome), outcome.received_ms, [client] if client else None)
        if not receipt.is_late:
            self.name([(User(receipt.user_id, receipt.username, receipt.role), seq)])

    def _is_listed(self, seq: int) -> bool:
        return self._ledger.notice_state(seq) & _LISTED == KNOWN

    def _note_status(self, seq: int, status: str) -> None:
        bits = STATUSES.get(status, 0)
        self._ledger.set_notice(seq, bits, STATUS & ~bits)

    async def mark(
        self,
        user_id: UserId,
        message_ids: Sequence[str],
        mark: Mark,
        at_ms: int,
        versions: Mapping[str, int] = NO_VERSIONS,
    ) -> list[str]:
        """Note that the user read or confirmed these; the ids for which there is a receive record.

        Which version a confirmation is of, its time says.
        """
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
        if self._file.has_versions:
            await self._statements.change("delete", FORGET_VERSIONS, message_id=message_id)
        return True

    async def edit(self, newest: Notice, versions: Sequence[Version], *, is_reset: bool) -> bool:
        """Whether there is a push record: SqliteAmendments has done the rest."""
        return await self.revoke(newest.message_id, 0)

    async def revoke(self, message_id: str, at_ms: int) -> bool:
        """Whether there is a push record: SqliteAmendments has done the rest."""
        seq = (await self._file.seqs_of({message_id})).get(message_id)
        return seq is not None and self._is_listed(seq)

    async def expire(self, since_ms: int, now_ms: int, limit: int) -> int:
        """Mark at most `limit` receive records as expired; how many were marked. Their notices count as unread no more,
        whoever has received them."""
        marked, is_changed, one_slice = 0, False, Slice()
        async for seqs in expired(self._statements, since_ms, now_ms):
            for seq in seqs:
                await one_slice.rest()
                if self._is_listed(seq) and not self._ledger.notice_state(seq) & OVER and marked < limit:
                    marked += self._ledger.expire(seq, limit - marked)
                    is_changed = True
            if marked >= limit:
                break
        if is_changed:
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


def _state(outcome: Outcome) -> int:
    step = DELIVERED if outcome.received_ms else _STEPS[outcome.status]
    return step | (ONLINE if outcome.is_online else 0) | (BY_MAILBOX if outcome.channel is Channel.OFFLINE else 0)
