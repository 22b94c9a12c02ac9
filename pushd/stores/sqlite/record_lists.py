"""What the embedded store says of records: lists, counts and single ones, from the ledger and the rows of notices.

What needs a pass over many receipts or notices is done by the threads that read, without the GIL; the rest on the loop.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

from pushd.batched import batched
from pushd.ledger._cold import newest
from pushd.ledger._lists import ReceiptQuery
from pushd.ledger._push_counts import counts_of, seq_at
from pushd.ledger._pushes import LABEL_RANK, SEQ, STATUS_RANK, TOTAL, PushQuery
from pushd.ledger.receipt_states import states_of
from pushd.model import Step, UserId
from pushd.records import (
    Part,
    PushFilter,
    PushRow,
    PushSort,
    PushStats,
    ReceiptFilter,
    ReceiptRow,
    ReceiptSort,
    ReceiptStats,
    UserReceipts,
    UserSummary,
)
from pushd.stores.sqlite import tags
from pushd.stores.sqlite.engine.statements import Reads
from pushd.stores.sqlite.keywords import Keywords, Marks, both
from pushd.stores.sqlite.ledger_file import LedgerFile, Read, part_of
from pushd.stores.sqlite.push_rows import STATUSES, Counts, flags_of, push_row, read_notice, statuses_of
from pushd.stores.sqlite.receipt_rows import Found, receipt_rows, who
from pushd.stores.sqlite.scheduled_records import (
    Key,
    ScheduledRecords,
    ScheduledRow,
    merged,
    scheduled_row,
    scheduled_under,
)
from pushd.turns import Slice, sliced
from pushd.values import MAX_INT64

Result = TypeVar("Result")
_Found = tuple[int, Counts] | ScheduledRow
Received = tuple[int, int, int, int, int, int]  # seq, state, received_ms, read_ms, confirmed_ms, client

# Of ledger/_ledger.pxd.
KNOWN, HIDDEN = 0x01, 0x08
STEPS, DELIVERED, READ, CONFIRMED, ONLINE = 0x0F, 4, 5, 6, 0x40
RECEIVED_STEPS, RECEIVED = 0x0C, 0x04  # the steps from DELIVERED on have this bit of these

# A record may name 10,000 users and carry 64 KB of data: so many bodies are in memory at a time.
BODIES_AT_ONCE = 64

_SORTS = {
    PushSort.PUSH_TIME: SEQ,
    PushSort.CREATED_AT: SEQ,
    PushSort.PRIORITY: LABEL_RANK,
    PushSort.MESSAGE_TYPE: LABEL_RANK,
    PushSort.STATUS: STATUS_RANK,
    PushSort.TOTAL_COUNT: TOTAL,
}
PENDING, OFFLINE, EXPIRED, AGAIN = 1, 2, 3, 7
_NOT_AT = {
    Step.RECEIVED: (PENDING, OFFLINE, EXPIRED),
    Step.READ: (PENDING, OFFLINE, EXPIRED, DELIVERED, AGAIN),
    Step.CONFIRMED: (PENDING, OFFLINE, EXPIRED, DELIVERED, AGAIN, READ),
}
_ANY_STATE = ReceiptFilter()


class _Receipts(NamedTuple):
    """Whose receipts a filter is about, in numbers; None: everybody's, of all notices."""

    where: ReceiptFilter
    seq: int | None
    user: int | None
    having: Marks | None  # None: notices with any tags or none


class RecordLists:
    """The half of ports.RecordStore that asks. Pages show what is there when they are made.

    Rows of what goes while they are made are left out, and so are those of notices that are not on disk yet.
    """

    def __init__(self, file: LedgerFile, read: Read) -> None:
        self._file = file
        self._ledger = file.ledger
        self._reads = Reads(read, "records")
        self._keywords = Keywords(self._reads)
        file.on_edited.append(self._keywords.edited)

    async def receive_status(self, message_id: str) -> ReceiptStats | None:
        """Counts over one notice's receive records; None for an unknown notice."""
        seq = await self._listed(message_id)
        if seq is None:
            scheduled = await self._reads.read("receive_status", partial(scheduled_under, message_id))
            if scheduled is not None:
                return ReceiptStats()
            seq = await self._listed(message_id)  # it may just have gone out
        if seq is None:
            return None
        sums = [0] * 5
        for state, count in self._ledger.counts(seq).items():
            step = state & STEPS
            if step:
                facts = (True, state & ONLINE, step >= DELIVERED, step in (READ, CONFIRMED), step == CONFIRMED)
                sums = [total + count if fact else total for total, fact in zip(sums, facts, strict=True)]
        return ReceiptStats(*sums)

    async def received_by(self, message_id: str) -> set[UserId]:
        """The users whose receive record of this notice says received."""
        return set(await self._users_of(message_id, RECEIVED))

    async def not_received_by(self, message_id: str) -> list[UserId]:
        """The users whose receive record of this notice says not received."""
        return await self._users_of(message_id, 0)

    async def not_at(self, message_id: str, step: Step) -> list[UserId]:
        """The users who have not got so far with this notice."""
        seq = await self._listed(message_id)
        if seq is None:
            return []
        numbers = [number for state in _NOT_AT[step] for number in self._ledger.receipts(seq, STEPS, state)]
        return await self._ids_of(seq, numbers)

    async def sent_to(self, message_id: str) -> list[UserId]:
        """The users who were connected when it went out, or have received it."""
        seq = await self._listed(message_id)
        if seq is None:
            return []
        online = self._ledger.receipts(seq, ONLINE, ONLINE)
        return await self._ids_of(seq, [*online, *self._ledger.receipts(seq, RECEIVED_STEPS | ONLINE, RECEIVED)])

    async def unread_counts(self, user_ids: Collection[UserId]) -> dict[UserId, int]:
        """Unread receive records per user, of notices that are neither expired nor revoked. None: absent.

        0.2 us a user.
        """
        counts: dict[UserId, int] = {}
        async for user_id in sliced(user_ids):
            number = self._number(user_id)
            unread = 0 if number is None else self._ledger.unread(number)
            if unread:
                counts[user_id] = unread
        return counts

    async def user_summary(self, user_id: UserId) -> UserSummary:
        """One user's receive records, counted."""
        number = self._number(user_id)
        if number is None:
            return UserSummary(0, 0, 0)
        unread, total, newest = self._ledger.summary(number)
        return UserSummary(unread, total, self._ledger.created_ms(newest) if newest else 0)

    async def newest_receive_records(self, user_ids: Collection[UserId], limit: int) -> dict[UserId, list[ReceiptRow]]:
        """The newest `limit` receive records of each of these users, newest first; none: absent."""
        receipts: list[Found] = []
        async for user_id in sliced(dict.fromkeys(user_ids)):
            number = self._number(user_id)
            if number is not None and limit > 0:
                rows = self._ledger.newest(number, limit)
                if rows is None:
                    rows = await self._reads.read("newest_receive_records", partial(self._newest, number, limit))
                receipts += ((one[0], number, *one[1:]) for one in rows)
        found: dict[UserId, list[ReceiptRow]] = {}
        for row in await receipt_rows(self._file, receipts):
            found.setdefault(row.user_id, []).append(row)
        return found

    async def receive_records(self, where: ReceiptFilter, sort: ReceiptSort, part: Part) -> list[ReceiptRow]:
        """A part of the matching receive records: a pass over those that may match."""
        found = await self._ask_receipts(
            "receive_records",
            where,
            lambda query: query.page(sort, part.offset, part.limit, part.is_descending),
        )
        return await receipt_rows(self._file, found or [])

    async def receive_stats(self, where: ReceiptFilter) -> ReceiptStats:
        """Counts over the matching receive records."""
        return ReceiptStats(*await self._ask_receipts("receive_stats", where, ReceiptQuery.counts) or ())

    async def user_receipts(self, since_ms: int, before_ms: int, limit: int) -> list[UserReceipts]:
        """Receive records created in that time, counted by user: those with the most, under their newest name."""
        where = ReceiptFilter(since_ms=since_ms, before_ms=before_ms)
        counted = await self._ask_receipts("user_receipts", where, lambda query: query.by_users(limit))
        return [
            UserReceipts(*who(self._file.users, number, newest)[:2], total, received, read, confirmed)
            for number, total, received, read, confirmed, newest in counted or ()
        ]

    async def push_records(self, where: PushFilter, sort: PushSort, part: Part) -> list[PushRow]:
        """A part of the matching push records.

        A keyword costs a scan of the notices that it may be in, unless it was asked for lately.
        """

        def page(query: PushQuery, connection: sqlite3.Connection) -> list[_Found]:
            by = _SORTS[sort]
            ranks = self._file.labels.ranks(sort) if by == LABEL_RANK else None
            scheduled = ScheduledRecords(where, connection)

            def counted(offset: int, limit: int) -> list[tuple[int, Counts]]:
                seqs = query.page(by, offset, limit, part.is_descending, ranks)
                counts = counts_of(self._ledger, seqs, partial(part_of, connection))
                return [(seq, counts[seq]) for seq in seqs]

            return merged(
                counted,
                partial(self._key, sort),
                lambda offset, limit: scheduled.page(sort, offset, limit, part.is_descending),
                lambda row: row.key,
                theirs_total=scheduled.count(),
                offset=part.offset,
                limit=part.limit,
                is_descending=part.is_descending,
            )

        return await self._push_rows(await self._ask_notices("push_records", where, page))

    def _key(self, sort: PushSort, found: tuple[int, Counts]) -> Key:
        """By what a notice is sorted, in the terms of ScheduledRecords."""
        seq, counts = found
        label = self._file.labels.label(self._ledger.label(seq))
        ranks: dict[PushSort, tuple[Any, ...]] = {
            PushSort.PRIORITY: (0 if label is None else label.priority,),
            PushSort.MESSAGE_TYPE: ("" if label is None else label.type,),
            PushSort.STATUS: (STATUSES[self._ledger.notice_state(seq) >> 6],),
            PushSort.TOTAL_COUNT: (counts[0],),
        }
        return (*ranks.get(sort, ()), self._ledger.created_ms(seq))

    async def push_record(self, message_id: str) -> PushRow | None:
        """One push record."""
        scheduled = await self._reads.read("push_record", partial(scheduled_under, message_id))
        if scheduled is not None:
            return scheduled_row(scheduled)
        seq = await self._listed(message_id)
        if seq is None:
            return None
        counts = await self._reads.read("push_record", lambda db: counts_of(self._ledger, [seq], partial(part_of, db)))
        rows = await self._push_rows([*counts.items()])
        return rows[0] if rows else None

    async def push_stats(self, where: PushFilter) -> PushStats:
        """Sums over the matching push records. A keyword costs what it costs `push_records`."""

        def sums_of(query: PushQuery, connection: sqlite3.Connection) -> tuple[int, ...]:
            return ScheduledRecords(where, connection).count(), *query.totals()

        scheduled, total, failed, *sums = await self._ask_notices("push_stats", where, sums_of)
        return PushStats(scheduled + total, scheduled + total - failed, failed, *sums)

    # ---- receipts

    def _number(self, user_id: UserId) -> int | None:
        """A user's number, if the ledger has it."""
        number = self._file.users.number(user_id)
        return number if number is not None and number < self._ledger.user_count else None

    async def _listed(self, message_id: str) -> int | None:
        """The seq of a notice that has a record."""
        seq = (await self._file.seqs_of([message_id])).get(message_id)
        return seq if seq is not None and self._ledger.notice_state(seq) & (KNOWN | HIDDEN) == KNOWN else None

    async def _users_of(self, message_id: str, steps: int) -> list[UserId]:
        seq = await self._listed(message_id)
        return [] if seq is None else await self._ids_of(seq, self._ledger.receipts(seq, RECEIVED_STEPS, steps))

    async def _ids_of(self, seq: int, numbers: list[int]) -> list[UserId]:
        users, one_slice, is_account = self._file.users, Slice(), self._file.users.of.accepted
        user_ids: list[UserId] = []
        for start in range(0, len(numbers), 1000):
            await one_slice.rest()
            ids = (who(users, number, seq)[0] for number in numbers[start : start + 1000])
            user_ids += (user_id for user_id in ids if is_account(user_id) is not None)  # others are nobody's
        return user_ids

    async def _ask_receipts(
        self, name: str, where: ReceiptFilter, ask: Callable[[ReceiptQuery], Result]
    ) -> Result | None:
        """What `ask` says, in a thread that reads, of the receipts that match; None where none can."""
        receipts = await self._receipts(where)
        if receipts is None:
            return None

        def run(connection: sqlite3.Connection) -> Result:
            return ask(self._receipt_query(receipts, connection))

        return await self._reads.read(name, run)

    async def _receipts(self, where: ReceiptFilter) -> _Receipts | None:
        seq = user = None
        if where.message_id is not None:
            seq = await self._listed(where.message_id)
            if seq is None:
                return None
        if where.user_id is not None:
            user = self._number(where.user_id)
            if user is None:
                return None
        having = None
        if where.tag is not None:
            first, end = self._ends(where.since_ms, where.before_ms)
            if seq is not None:
                first, end = seq, seq + 1
            having = Marks(first, await tags.having(self._reads, where.tag, first, end))
        return _Receipts(where, seq, user, having)

    def _ends(self, since_ms: int | None, before_ms: int | None) -> tuple[int, int]:
        """Of the notices of a time the first seq, and that behind the last."""
        since, before = self._seq_at(since_ms), self._seq_at(before_ms)
        base, end = self._ledger.base_seq, self._ledger.last_seq + 1
        return (base if since is None else max(since, base)), (end if before is None else min(before, end))

    def _receipt_query(self, asked: _Receipts, connection: sqlite3.Connection) -> ReceiptQuery:
        """For threads that read: it may have to sort all names."""
        where, users = asked.where, self._file.users
        return ReceiptQuery(
            self._ledger,
            users,
            seq=asked.seq,
            user=asked.user,
            names=None if where.username is None else users.named(where.username),
            state_set=states_of(where),
            since_seq=self._seq_at(where.since_ms),
            before_seq=self._seq_at(where.before_ms),
            having=None if asked.having is None else asked.having.marks,
            having_from=0 if asked.having is None else asked.having.first,
            read=partial(part_of, connection),
        )

    def _newest(self, number: int, limit: int, connection: sqlite3.Connection) -> list[Received]:
        return newest(self._ledger, number, limit, partial(part_of, connection))

    def _seq_at(self, at_ms: int | None) -> int | None:
        return None if at_ms is None else seq_at(self._ledger, max(-MAX_INT64, min(at_ms, MAX_INT64)))

    # ---- notices

    async def _ask_notices(
        self, name: str, where: PushFilter, ask: Callable[[PushQuery, sqlite3.Connection], Result]
    ) -> Result:
        """What `ask` says, in a thread that reads, of the push records that match."""
        marks = None
        first, end = self._ends(where.since_ms, where.before_ms)
        if where.keyword:
            marks = await self._keywords.having(where.keyword, first, end)
        if where.tag is not None:
            tagged = Marks(first, await tags.having(self._reads, where.tag, first, end))
            marks = tagged if marks is None else both(marks, tagged)

        def run(connection: sqlite3.Connection) -> Result:
            return ask(self._notice_query(where, marks), connection)

        return await self._reads.read(name, run)

    def _notice_query(self, where: PushFilter, marks: Marks | None) -> PushQuery:
        """For threads that read: it looks at every label."""
        flags, state = flags_of(where)
        ends: dict[str, Any] = {"since_seq": self._seq_at(where.since_ms), "before_seq": self._seq_at(where.before_ms)}
        return PushQuery(
            self._ledger,
            statuses=statuses_of(where),
            flags=flags,
            state=state,
            marks=self._file.labels.marks(where),
            having=None if marks is None else marks.marks,
            having_from=0 if marks is None else marks.first,
            **{name: seq for name, seq in ends.items() if seq is not None},
        )

    async def _push_rows(self, found: Sequence[_Found]) -> list[PushRow]:
        rows: list[PushRow] = []
        ledger = self._ledger
        for some in batched(found, BODIES_AT_ONCE):
            seqs = [one[0] for one in some if not isinstance(one, ScheduledRow)]
            bodies, message_ids = await self._file.bodies(seqs), await self._file.message_ids(seqs)
            async for one in sliced(some):
                if isinstance(one, ScheduledRow):
                    rows.append(scheduled_row(one))
                    continue
                seq, counts = one
                if seq in message_ids and seq in bodies:
                    label = self._file.labels.label(ledger.label(seq))
                    notice = read_notice(seq, message_ids[seq], bodies[seq], label)
                    rows.append(push_row(notice, ledger.notice_state(seq), ledger.created_ms(seq), counts))
        return rows
