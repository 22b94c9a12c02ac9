"""Push records and receive records: marks, counts, lists and retention.

Writing is in records_write, the statements of lists in push_queries, receipt_queries and receipt_pivots.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial

import msgspec
import orjson

from pushd.model import Mark, PushRecord, Receipt, ReceiveStatus
from pushd.queries import (
    PushFilter,
    PushRow,
    PushSort,
    PushStats,
    ReceiptFilter,
    ReceiptRow,
    ReceiptSort,
    ReceiptStats,
    Slice,
    UserReceipts,
    UserSummary,
)
from pushd.stores.sqlite import push_queries, receipt_pivots, receipt_queries
from pushd.stores.sqlite.members import MEMBERS, Members, members
from pushd.stores.sqlite.receipt_queries import Query
from pushd.stores.sqlite.records_write import PUSH_RECORDS, RECEIPTS, push_values, receipt_values
from pushd.stores.sqlite.statements import Parameter, Rows, Statements, Value, chunks, drop_chunks
from pushd.stores.sqlite.thread import SqliteThread

MARKABLE = """
SELECT CAST(json_group_array(message_id) AS BLOB)
  FROM admin_user_receive_records
 WHERE user_id = :user_id AND message_id IN (SELECT value FROM json_each(CAST(:message_ids AS TEXT)))
"""

# Who has read it has received it.
MARK = """
UPDATE admin_user_receive_records
   SET is_received = 1, received_at = min(ifnull(received_at, :at_ms), :at_ms), delivery_status = 'delivered',
       is_read = 1, read_at = min(ifnull(read_at, :at_ms), :at_ms),
       is_confirmed = max(is_confirmed, :is_confirmed),
       confirmed_at = CASE WHEN :is_confirmed THEN min(ifnull(confirmed_at, :at_ms), :at_ms) ELSE confirmed_at END,
       updated_at = max(updated_at, :at_ms)
 WHERE user_id = :user_id AND message_id IN (SELECT value FROM json_each(CAST(:message_ids AS TEXT)))
"""

RECEIVE_STATUS = """
SELECT count(*), sum(is_online), sum(is_received), sum(is_read), sum(is_confirmed),
       EXISTS (SELECT 1 FROM push_records WHERE message_id = :message_id)
  FROM admin_user_receive_records
 WHERE message_id = :message_id
"""

RECEIVED_BY = """
SELECT CAST(json_group_array(user_id) AS BLOB)
  FROM admin_user_receive_records
 WHERE message_id = :message_id AND is_received = 1
"""

NOT_RECEIVED_BY = """
SELECT CAST(json_group_array(user_id) AS BLOB)
  FROM admin_user_receive_records
 WHERE message_id = :message_id AND is_received = 0
"""

UNREAD_COUNTS = """
SELECT CAST(json_group_array(json_array(user_id, unread)) AS BLOB)
  FROM (SELECT user_id, sum(total) AS unread
          FROM receive_totals
         WHERE is_read = 0 AND delivery_status <> 'expired'
           AND user_id IN (SELECT value FROM json_each(CAST(:user_ids AS TEXT)))
         GROUP BY user_id)
"""

PURGE_RECEIPTS = """
DELETE FROM admin_user_receive_records
 WHERE rowid IN (
   SELECT rowid FROM admin_user_receive_records WHERE created_at < :before_ms ORDER BY created_at LIMIT :limit
 )
"""

EXPIRE = """
UPDATE admin_user_receive_records
   SET delivery_status = 'expired', updated_at = max(updated_at, :now_ms)
 WHERE rowid IN (
   SELECT receipt.rowid
     FROM push_records AS notice
    CROSS JOIN admin_user_receive_records AS receipt USING (message_id)
    WHERE notice.expires_at > :since_ms AND notice.expires_at <= :now_ms
      AND receipt.is_received = 0 AND receipt.delivery_status <> 'expired'
    LIMIT :limit
 )
"""

PURGE_PUSH_RECORDS = """
DELETE FROM push_records
 WHERE rowid IN (
   SELECT rowid FROM push_records WHERE created_at < :before_ms ORDER BY created_at LIMIT :limit
 )
"""

# Decoding so many receive records takes the loop a millisecond or two.
DECODED_RECEIPTS = 250

_push_rows = msgspec.json.Decoder(list[PushRow])
_receipt_rows = msgspec.json.Decoder(list[ReceiptRow])
_user_receipts = msgspec.json.Decoder(list[tuple[int, str, int, int, int, int]])


class SqliteRecords:
    """ports.RecordStore. `clock` gives the milliseconds that become updated_at of push records."""

    def __init__(self, thread: SqliteThread, *, clock: Callable[[], int]) -> None:
        self._statements = Statements(thread, "records")
        self._clock = clock
        self._writes = 0  # begun, and ended
        # The last answers, until something is written.
        self._counted: tuple[ReceiptFilter, ReceiptStats] | None = None
        self._named: tuple[str, Members] | None = None

    async def write(self, records: Sequence[PushRecord], receipts: Sequence[Receipt]) -> None:
        """See ports.RecordStore. Chunks are transactions of their own: repeat the whole call when it raises."""
        for record_chunk in chunks(records):
            await self._write("write_records", PUSH_RECORDS, push_values(record_chunk, self._clock()))
        for receipt_chunk in chunks(receipts):
            await self._write("write_receipts", RECEIPTS, receipt_values(receipt_chunk))

    async def mark(self, user_id: int, message_ids: Sequence[str], mark: Mark, at_ms: int) -> list[str]:
        """See ports.RecordStore."""
        known: set[str] = set()
        for chunk in chunks(message_ids):
            ids = orjson.dumps(chunk)
            found = await self._statements.document("mark", MARKABLE, user_id=user_id, message_ids=ids)
            known.update(orjson.loads(found or b"[]"))
            await self._change(
                "mark", MARK, user_id=user_id, message_ids=ids, at_ms=at_ms, is_confirmed=mark is Mark.CONFIRMED
            )
        return [message_id for message_id in message_ids if message_id in known]

    async def receive_status(self, message_id: str) -> ReceiveStatus | None:
        """See ports.RecordStore."""
        *counts, is_known = await self._statements.numbers("receive_status", RECEIVE_STATUS, message_id=message_id)
        return ReceiveStatus(*counts) if is_known or counts[0] else None

    async def received_by(self, message_id: str) -> set[int]:
        """See ports.RecordStore."""
        document = await self._statements.document("received_by", RECEIVED_BY, message_id=message_id)
        return set(orjson.loads(document or b"[]"))

    async def not_received_by(self, message_id: str) -> list[int]:
        """See ports.RecordStore."""
        document = await self._statements.document("not_received_by", NOT_RECEIVED_BY, message_id=message_id)
        return list(orjson.loads(document or b"[]"))

    async def unread_counts(self, user_ids: Collection[int]) -> dict[int, int]:
        """See ports.RecordStore. Users with none are absent."""
        counts: dict[int, int] = {}
        for chunk in chunks(user_ids):
            user_ids_json = orjson.dumps(chunk)
            document = await self._statements.document("unread_counts", UNREAD_COUNTS, user_ids=user_ids_json)
            counts.update(orjson.loads(document or b"[]"))
        return counts

    async def push_records(self, where: PushFilter, sort: PushSort, part: Slice) -> list[PushRow]:
        """See ports.RecordStore."""
        found = await self._read("push_records", push_queries.page(where, sort, part))
        return await self._push_rows("push_records", orjson.loads(found))

    async def push_record(self, message_id: str) -> PushRow | None:
        """See ports.RecordStore."""
        rows = await self._push_rows("push_record", [message_id])
        return rows[0] if rows else None

    async def push_stats(self, where: PushFilter) -> PushStats:
        """See ports.RecordStore."""
        return PushStats(*await self._numbers("push_stats", push_queries.stats(where)))

    async def delete(self, message_id: str) -> bool:
        """See ports.RecordStore. The push record goes last: what a failed call left behind, the next one drops."""
        dropped = await drop_chunks(
            sys.maxsize,
            lambda wanted: self._change("delete", receipt_queries.DROP_RECEIPTS, message_id=message_id, limit=wanted),
        )
        dropped += await self._change("delete", push_queries.DROP_PUSH_RECORD, message_id=message_id)
        return dropped > 0

    async def receive_records(self, where: ReceiptFilter, sort: ReceiptSort, part: Slice) -> list[ReceiptRow]:
        """See ports.RecordStore."""
        where = await self._selective(where)
        if part.offset < receipt_queries.FAR_ROWS:
            return await self._page(where, sort, part)
        total = (await self.receive_stats(where)).total_users
        return await _from_nearer_end(part, total, lambda near: self._page(where, sort, near))

    async def _page(self, where: ReceiptFilter, sort: ReceiptSort, part: Slice) -> list[ReceiptRow]:
        if receipt_queries.is_by_name(where):
            return await self._by_name(where, sort, part)
        if receipt_queries.is_narrow(where) or (where.message_id is not None and sort is not ReceiptSort.CREATED_AT):
            return await self._receipts(receipt_queries.sorted_all(where, sort, part))
        if sort is ReceiptSort.CREATED_AT:
            return await self._by_creation(where, part)
        if sort in receipt_queries.TIMES:
            return await self._by_time(where, sort, part)
        return await self._by_user(where, sort, part)

    async def receive_stats(self, where: ReceiptFilter) -> ReceiptStats:
        """See ports.RecordStore."""
        where = await self._selective(where)
        if self._counted is None or self._counted[0] != where:
            if self._named is not None and self._named[0] != where.username:
                self._named = None
            self._counted = (where, ReceiptStats(*await self._numbers("receive_stats", await self._stats(where))))
        return self._counted[1]

    async def _stats(self, where: ReceiptFilter) -> Query:
        """What is counted by a name and a time are the records of the time, or the others if that is less work."""
        if not receipt_queries.is_by_name(where):
            return receipt_queries.stats(where)
        named = await self._who(where.username or "")
        if not receipt_queries.has_range(where):
            return receipt_queries.stats_always(where, named.owners)
        wanted, *flags, total = await self._numbers("receive_stats", receipt_queries.flags_in_range(where))
        is_less = receipt_queries.is_less_short(wanted, total, named)
        count = receipt_queries.stats_less if is_less else receipt_queries.stats_within
        return count(where, named.owners, [flagged * 2 > wanted for flagged in flags])

    async def newest_receive_records(self, user_ids: Collection[int], limit: int) -> dict[int, list[ReceiptRow]]:
        """See ports.RecordStore."""
        found: dict[int, list[ReceiptRow]] = {}
        for chunk in chunks(user_ids, max(1, DECODED_RECEIPTS // max(1, limit))):
            query = Query(receipt_queries.NEWEST, {"user_ids": orjson.dumps(chunk), "limit": limit})
            for row in await self._receipts(query, "newest_receive_records"):
                found.setdefault(row.user_id, []).append(row)
        for rows in found.values():
            rows.sort(key=lambda row: (row.created_ms, row.message_id), reverse=True)
        return found

    async def user_receipts(self, since_ms: int, before_ms: int, limit: int) -> list[UserReceipts]:
        """See ports.RecordStore. Costs the records of the time range, or about half a second per million of all."""
        between = {"since_ms": since_ms, "before_ms": before_ms}
        wanted, total = await self._statements.numbers("user_receipts", receipt_queries.IN_RANGE, **between)
        # The index of users need not look at the records; that of times does, but only at those of the range.
        is_part = wanted * 10 < total
        statement = receipt_queries.SOME_USER_RECEIPTS if is_part else receipt_queries.ALL_USER_RECEIPTS
        document = await self._read("user_receipts", Query(statement, {**between, "limit": limit}))
        return [UserReceipts(*row) for row in _user_receipts.decode(document)]

    async def user_summary(self, user_id: int) -> UserSummary:
        """See ports.RecordStore."""
        numbers = await self._statements.numbers("user_summary", receipt_queries.USER_SUMMARY, user_id=user_id)
        return UserSummary(*numbers)

    async def _push_rows(self, name: str, message_ids: list[str]) -> list[PushRow]:
        """The records with these ids, in order; those dropped since are absent."""
        rows: list[PushRow] = []
        for chunk in chunks(message_ids, push_queries.DECODED_ROWS):
            query = Query(push_queries.ROWS, {"message_ids": orjson.dumps(chunk)})
            rows += _push_rows.decode(await self._read(name, query))
        return rows

    async def _selective(self, where: ReceiptFilter) -> ReceiptFilter:
        """`where` without a part of a name that all names have."""
        name = where.username or ""
        if not receipt_queries.is_by_name(where) or self._is_known(name):
            return where
        (is_selective,) = await self._statements.numbers("names", receipt_queries.IS_SELECTIVE, username=name)
        return where if is_selective else msgspec.structs.replace(where, username=None)

    async def _by_name(self, where: ReceiptFilter, sort: ReceiptSort, part: Slice) -> list[ReceiptRow]:
        if sort in receipt_queries.TIMES:
            return await self._by_name_and_time(where, sort, part)
        if sort is not ReceiptSort.CREATED_AT:
            return await self._by_owner(where, sort, part)
        total = (await self.receive_stats(where)).total_users
        named, passed = await self._members(where, sort, total)
        if not receipt_queries.is_walk_short(part, total, passed, named.share):
            return await self._receipts(receipt_queries.sorted_all(where, sort, part))
        if receipt_pivots.has_time_pivot(part, total, passed, named):
            return await self._from_moment(where, part, total, named)
        return await self._receipts(receipt_queries.walked(where, part, named))

    async def _who(self, name: str) -> Members:
        if self._named is None or not self._is_known(name):
            self._named = (name, members(name, *await self._statements.row("names", MEMBERS, username=name)))
        return self._named[1]

    def _is_known(self, name: str) -> bool:
        return self._named is not None and self._named[0] == name

    async def _members(self, where: ReceiptFilter, sort: ReceiptSort, total: int) -> tuple[Members, int]:
        """Who has the name in `where`, which `total` records match, and how many entries a walk of all would pass.

        Whether a record is of one of them is asked last if few records have the state that is asked for.
        """
        named = await self._who(where.username or "")
        passed, records = await self._numbers("names", receipt_queries.in_range(where))
        if sort in receipt_queries.TIMES:
            (passed,) = await self._numbers("receive_records", receipt_queries.timed(sort))
        return named._replace(is_asked_last=total < named.share * named.share * records), passed

    async def _from_moment(self, where: ReceiptFilter, part: Slice, total: int, named: Members) -> list[ReceiptRow]:
        """A page by created_at in the midst of the list, walked to from a moment nearby."""
        query = receipt_pivots.time_pivot(where, part, named.owners, total)
        at_ms, before = await self._numbers("receive_records", query)
        if not at_ms:
            return await self._receipts(receipt_queries.walked(where, part, named))
        sides = receipt_pivots.time_sides(where, part, at_ms)
        pages = (partial(receipt_queries.walked, side, members=named) for side in sides)
        return await self._from_pivot(part, before, *pages)

    async def _by_owner(self, where: ReceiptFilter, sort: ReceiptSort, part: Slice) -> list[ReceiptRow]:
        """A page by user_id or username: in the midst of the list walked to from a user nearby."""
        if receipt_pivots.has_user_pivot(where, sort, part):
            total = (await self.receive_stats(where)).total_users
            name = where.username
            if name is None or receipt_pivots.is_user_pivot_short(total, (await self._who(name)).owners):
                return await self._from_user(where, sort, part, total)
        return await self._receipts(receipt_queries.by_user(where, sort, part))

    async def _from_user(self, where: ReceiptFilter, sort: ReceiptSort, part: Slice, total: int) -> list[ReceiptRow]:
        query = receipt_pivots.user_pivot(where, sort, part, total)
        username, user_id, before = await self._statements.row("receive_records", query.statement, **query.parameters)
        if username is None or user_id is None:
            return await self._receipts(receipt_queries.by_user(where, sort, part))
        sides = receipt_pivots.user_sides(part, username, int(user_id))
        pages = (partial(receipt_queries.by_user, where, sort, side=side) for side in sides)
        return await self._from_pivot(part, int(before or 0), *pages)

    async def _from_pivot(
        self, part: Slice, before: int, first: Callable[[Slice], Query], rest: Callable[[Slice], Query]
    ) -> list[ReceiptRow]:
        """A page near a place in the list that has `before` records before it; `first` and `rest` page its sides."""
        rows: list[ReceiptRow] = []
        if part.offset < before:
            rows = await _from_nearer_end(part, before, lambda near: self._receipts(first(near)))
        if len(rows) < part.limit:
            beyond = Slice(max(0, part.offset - before), part.limit - len(rows), part.is_descending)
            rows += await self._receipts(rest(beyond))
        return rows

    async def _are_states_cheap(self, where: ReceiptFilter) -> bool:
        """True when few rows say which states the records are in, and `where` asks for some."""
        if not receipt_queries.has_state(where):
            return False
        (runs,) = await self._numbers("receive_records", receipt_queries.runs(ReceiptFilter()))
        return runs <= receipt_queries.SOUGHT_RUNS

    async def _by_creation(self, where: ReceiptFilter, part: Slice) -> list[ReceiptRow]:
        """A page by created_at: sought where adding up what comes before it is cheap, else walked to."""
        is_sought = False
        if receipt_queries.has_state(where):
            (runs,) = await self._numbers("receive_records", receipt_queries.runs(where))
            is_sought = runs <= receipt_queries.SOUGHT_RUNS
        query = receipt_queries.sought if is_sought else receipt_queries.walked
        return await self._receipts(query(where, part))

    async def _by_time(self, where: ReceiptFilter, sort: ReceiptSort, part: Slice) -> list[ReceiptRow]:
        """A page by a time that records need not have: those that have it, and before or after them, those without."""
        flag = receipt_queries.TIMES[sort]
        wanted = getattr(where, flag)
        rows: list[ReceiptRow] = []
        for has_time in (True, False) if part.is_descending else (False, True):
            if wanted in (None, has_time):
                side = msgspec.structs.replace(where, **{flag: has_time})
                total = (await self.receive_stats(side)).total_users
                rest = msgspec.structs.replace(part, limit=part.limit - len(rows))
                if part.offset < total and rest.limit > 0:
                    rows += await _from_nearer_end(rest, total, partial(self._side, side, sort, total=total))
                part = msgspec.structs.replace(part, offset=max(0, part.offset - total), limit=part.limit)
        return rows

    async def _by_name_and_time(self, where: ReceiptFilter, sort: ReceiptSort, part: Slice) -> list[ReceiptRow]:
        """The same for the records of the users with a certain name: which have no time, their index says."""
        flag = receipt_queries.TIMES[sort]
        counted = await self.receive_stats(where)
        timed = getattr(counted, flag.replace("is_", "") + "_users")
        rows: list[ReceiptRow] = []
        for has_time in (True, False) if part.is_descending else (False, True):
            total = timed if has_time else counted.total_users - timed
            rest = msgspec.structs.replace(part, limit=part.limit - len(rows))
            if part.offset < total and rest.limit > 0:
                side = msgspec.structs.replace(where, **{flag: has_time})
                rows += await _from_nearer_end(rest, total, partial(self._named_side, side, sort, total=total))
            part = msgspec.structs.replace(part, offset=max(0, part.offset - total))
        return rows

    async def _named_side(self, side: ReceiptFilter, sort: ReceiptSort, part: Slice, total: int) -> list[ReceiptRow]:
        if not getattr(side, receipt_queries.TIMES[sort]):
            return await self._by_owner(side, ReceiptSort.USER_ID, part)
        named, passed = await self._members(side, sort, total)
        if receipt_queries.is_walk_short(part, total, passed, named.share):
            return await self._timed(side, sort, part, named)
        return await self._receipts(receipt_queries.sorted_all(side, sort, part))

    async def _timed(
        self, where: ReceiptFilter, sort: ReceiptSort, part: Slice, named: Members | None = None
    ) -> list[ReceiptRow]:
        """A page by a time. On a long walk, entries are asked only for states that not all have."""
        where = msgspec.structs.replace(where, **{receipt_queries.TIMES[sort]: None})
        if part.offset < receipt_queries.FAR_ROWS or not await self._are_states_cheap(where):
            return await self._receipts(receipt_queries.by_time(where, sort, part, named))
        writes = self._writes
        counted = await self._numbers("receive_records", receipt_queries.others(where, sort))
        telling = receipt_queries.telling(where, counted)
        rows = await self._receipts(receipt_queries.by_time(telling, sort, part, named))
        if writes == self._writes:
            return rows
        return await self._receipts(receipt_queries.by_time(where, sort, part, named))

    async def _by_user(self, where: ReceiptFilter, sort: ReceiptSort, part: Slice) -> list[ReceiptRow]:
        total = (await self.receive_stats(where)).total_users
        if total <= receipt_queries.SORTED_ROWS:
            return await self._receipts(receipt_queries.sorted_all(where, sort, part))
        return await self._by_owner(where, sort, part)

    async def _side(self, where: ReceiptFilter, sort: ReceiptSort, part: Slice, total: int) -> list[ReceiptRow]:
        if not getattr(where, receipt_queries.TIMES[sort]):
            return await self._by_creation(where, part)
        if total <= receipt_queries.SORTED_ROWS:
            return await self._receipts(receipt_queries.sorted_all(where, sort, part))
        return await self._timed(where, sort, part)

    async def _receipts(self, query: Query, name: str = "receive_records") -> list[ReceiptRow]:
        rows: list[ReceiptRow] = _receipt_rows.decode(await self._read(name, query))
        return rows

    async def _change(self, name: str, statement: str, **parameters: Parameter) -> int:
        self._forget()
        try:
            return await self._statements.change(name, statement, **parameters)
        finally:
            self._forget()  # what was counted meanwhile is from before

    async def _write(self, name: str, rows: Rows, values: list[Value]) -> None:
        self._forget()
        try:
            await self._statements.write(name, rows, values)
        finally:
            self._forget()

    def _forget(self) -> None:
        self._writes += 1
        self._counted = self._named = None

    async def _read(self, name: str, query: Query) -> bytes:
        return await self._statements.document(name, query.statement, **query.parameters) or b"[]"

    async def _numbers(self, name: str, query: Query) -> tuple[int, ...]:
        return await self._statements.numbers(name, query.statement, **query.parameters)

    async def purge(self, before_ms: int, limit: int) -> int:
        """See ports.RecordStore. Receive records go first, push records with what is left of `limit`."""
        dropped = 0
        for statement in (PURGE_RECEIPTS, PURGE_PUSH_RECORDS):
            dropped += await self._purge(statement, before_ms, limit - dropped)
        return dropped

    async def expire(self, since_ms: int, now_ms: int, limit: int) -> int:
        """See ports.RecordStore."""
        return await drop_chunks(
            limit,
            lambda wanted: self._change("expire", EXPIRE, since_ms=since_ms, now_ms=now_ms, limit=wanted),
        )

    async def _purge(self, statement: str, before_ms: int, limit: int) -> int:
        return await drop_chunks(
            limit, lambda wanted: self._change("purge", statement, before_ms=before_ms, limit=wanted)
        )


async def _from_nearer_end(
    part: Slice, total: int, page: Callable[[Slice], Awaitable[list[ReceiptRow]]]
) -> list[ReceiptRow]:
    """What `page` has for a part of a list of `total`, looked for from the other end where that is nearer."""
    if part.offset < receipt_queries.FAR_ROWS or part.offset * 2 < total:
        return await page(part)
    limit = max(0, min(part.limit, total - part.offset))
    mirrored = Slice(total - part.offset - limit, limit, not part.is_descending)
    return (await page(mirrored))[::-1] if limit else []
