"""Push records and receive records: marks, counts, lists and retention.

Writing is in records_write, lists of receive records in receipt_lists, those of push records in push_queries.
"""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Callable, Collection, Sequence
from functools import partial

import msgspec
import orjson

from pushd.batched import batched
from pushd.model import Mark, PushRecord, Receipt
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
from pushd.stores.sqlite import push_queries, receipt_queries
from pushd.stores.sqlite.engine.statements import (
    CHUNK_ROWS,
    SUM,
    Parameter,
    Query,
    Reads,
    Statements,
    decoded,
    decoded_rows,
    drop_chunks,
)
from pushd.stores.sqlite.engine.thread import SqliteThread
from pushd.stores.sqlite.receipt_lists import ReceiptLists
from pushd.stores.sqlite.records_write import PUSH_RECORDS, RECEIPTS, push_values, receipt_values

# Who has read it has received it.
MARK = """
UPDATE admin_user_receive_records
   SET is_received = 1, received_at = min(ifnull(received_at, :at_ms), :at_ms), delivery_status = 'delivered',
       is_read = 1, read_at = min(ifnull(read_at, :at_ms), :at_ms),
       is_confirmed = max(is_confirmed, :is_confirmed),
       confirmed_at = CASE WHEN :is_confirmed THEN min(ifnull(confirmed_at, :at_ms), :at_ms) ELSE confirmed_at END,
       updated_at = max(updated_at, :at_ms)
 WHERE user_id = :user_id AND message_id IN (SELECT value FROM json_each(CAST(:message_ids AS TEXT)))
RETURNING message_id, user_id
"""

RECEIVE_STATUS = """
SELECT count(*), count(*) FILTER (WHERE is_online), count(*) FILTER (WHERE is_received),
       count(*) FILTER (WHERE is_read), count(*) FILTER (WHERE is_confirmed),
       EXISTS (SELECT 1 FROM push_records WHERE message_id = :message_id)
  FROM admin_user_receive_records
 WHERE message_id = :message_id
"""

# Other programs can write anything into any column; ids below 0 are guests.
RECEIVED_BY = """
SELECT CAST(json_group_array(user_id) AS BLOB)
  FROM admin_user_receive_records
 WHERE message_id = :message_id AND is_received = 1 AND typeof(user_id) = 'integer'
"""
NOT_RECEIVED_BY = """
SELECT CAST(json_group_array(user_id) AS BLOB)
  FROM admin_user_receive_records
 WHERE message_id = :message_id AND is_received = 0 AND typeof(user_id) = 'integer' AND user_id >= 0
"""

UNREAD_COUNTS = f"""
SELECT CAST(json_group_array(json_array(user_id, unread)) AS BLOB)
  FROM (SELECT user_id, {SUM.format("total")} AS unread
          FROM receive_totals
         WHERE is_read = 0 AND delivery_status <> 'expired'
           AND user_id IN (SELECT value FROM json_each(CAST(:user_ids AS TEXT)))
         GROUP BY user_id)
"""  # noqa: S608 - constants only

PURGE_RECEIPTS = """
DELETE FROM admin_user_receive_records
 WHERE rowid IN (
   SELECT rowid FROM admin_user_receive_records WHERE created_at < :before_ms ORDER BY created_at LIMIT :limit
 )
RETURNING message_id, user_id
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
RETURNING message_id, user_id
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
_user_receipts = msgspec.json.Decoder(list[tuple[int, str, int, int, int, int]])


class SqliteRecords:
    """ports.RecordStore. `clock` gives the milliseconds that become updated_at of push records."""

    def __init__(self, thread: SqliteThread, reads: Reads, lists: ReceiptLists, *, clock: Callable[[], int]) -> None:
        self._statements = Statements(thread, "records")
        self._reads = reads
        self._lists = lists
        self._clock = clock

    async def write(self, records: Sequence[PushRecord], receipts: Sequence[Receipt]) -> None:
        """Create or merge these records. Chunks are transactions of their own: repeat the whole call when it raises."""
        for record_chunk in batched(records, CHUNK_ROWS):
            await self._statements.write("write_records", PUSH_RECORDS, push_values(record_chunk, self._clock()))
        for receipt_chunk in batched(receipts, CHUNK_ROWS):
            note = partial(self._lists.columns.note_written, receipt_chunk)
            await self._statements.write("write_receipts", RECEIPTS, receipt_values(receipt_chunk), note)

    async def mark(self, user_id: int, message_ids: Sequence[str], mark: Mark, at_ms: int) -> list[str]:
        """Note that the user read or confirmed these; the ids for which there is a receive record."""
        known: set[str] = set()
        marked = {"user_id": user_id, "at_ms": at_ms, "is_confirmed": mark is Mark.CONFIRMED}
        for chunk in batched((name for name in message_ids if "\0" not in name), CHUNK_ROWS):  # there JSON texts end
            changed = await self._change("mark", MARK, **marked, message_ids=orjson.dumps(chunk))
            known.update(message_id for message_id, _ in changed)
        return [message_id for message_id in message_ids if message_id in known]

    async def receive_status(self, message_id: str) -> ReceiptStats | None:
        """Counts over one notice's receive records; None for an unknown notice."""
        *counts, is_known = await self._statements.numbers("receive_status", RECEIVE_STATUS, message_id=message_id)
        return ReceiptStats(*counts) if is_known or counts[0] else None

    async def received_by(self, message_id: str) -> set[int]:
        """The users whose receive record of this notice says received."""
        document = await self._statements.document("received_by", RECEIVED_BY, message_id=message_id)
        return set(orjson.loads(document or b"[]"))

    async def not_received_by(self, message_id: str) -> list[int]:
        """The users whose receive record of this notice says not received."""
        document = await self._statements.document("not_received_by", NOT_RECEIVED_BY, message_id=message_id)
        return list(orjson.loads(document or b"[]"))

    async def unread_counts(self, user_ids: Collection[int]) -> dict[int, int]:
        """Unread, unexpired receive records per user. Users with none are absent."""
        counts: dict[int, int] = {}
        for chunk in batched(user_ids, CHUNK_ROWS):
            user_ids_json = orjson.dumps(chunk)
            document = await self._statements.document("unread_counts", UNREAD_COUNTS, user_ids=user_ids_json)
            counts.update(orjson.loads(document or b"[]"))
        return counts

    async def push_records(self, where: PushFilter, sort: PushSort, part: Part) -> list[PushRow]:
        """A part of the matching push records."""
        rowids = orjson.loads(await self._read("push_records", push_queries.page(where, sort, part)))
        rows: list[PushRow] = []
        for chunk in batched(rowids, push_queries.DECODED_ROWS):  # what was dropped since is absent
            query = Query(push_queries.ROWS, {"rowids": orjson.dumps(chunk)})
            rows += decoded_rows(_push_rows, PushRow, await self._read("push_records", query))
        return rows

    async def push_record(self, message_id: str) -> PushRow | None:
        """One push record."""
        found = await self._read("push_record", Query(push_queries.ROW, {"message_id": message_id}))
        rows = decoded_rows(_push_rows, PushRow, found)
        return rows[0] if rows else None

    async def push_stats(self, where: PushFilter) -> PushStats:
        """Sums over the matching push records."""
        query = push_queries.stats(where)
        return PushStats(*await self._reads.numbers("push_stats", query.statement, **query.parameters))

    async def delete(self, message_id: str) -> bool:
        """Drop a push record and its receive records; False when there was none.

        The push record goes last: what a failed call left behind, the next one drops.
        """
        dropped = await self._change_chunks("delete", receipt_queries.DROP_RECEIPTS, sys.maxsize, message_id=message_id)
        dropped += await self._statements.change("delete", push_queries.DROP_PUSH_RECORD, message_id=message_id)
        return dropped > 0

    async def receive_records(self, where: ReceiptFilter, sort: ReceiptSort, part: Part) -> list[ReceiptRow]:
        """A part of the matching receive records."""
        return await self._lists.page(where, sort, part)

    async def receive_stats(self, where: ReceiptFilter) -> ReceiptStats:
        """Counts over the matching receive records."""
        return await self._lists.stats(where)

    async def newest_receive_records(self, user_ids: Collection[int], limit: int) -> dict[int, list[ReceiptRow]]:
        """The newest `limit` receive records of each of these users."""
        found: dict[int, list[ReceiptRow]] = {}
        for chunk in batched(user_ids, max(1, DECODED_RECEIPTS // max(1, limit))):
            query = Query(receipt_queries.NEWEST, {"user_ids": orjson.dumps(chunk), "limit": limit})
            for row in await self._lists.rows(query, "newest_receive_records"):
                found.setdefault(row.user_id, []).append(row)
        for rows in found.values():
            rows.sort(key=lambda row: (row.created_ms, row.message_id), reverse=True)
        return found

    async def user_receipts(self, since_ms: int, before_ms: int, limit: int) -> list[UserReceipts]:
        """Receive records created in that time, counted by user.

        Costs the records of the time range, or about half a second per million of all.
        """
        between = {"since_ms": since_ms, "before_ms": before_ms}
        wanted, total = await self._reads.numbers("user_receipts", receipt_queries.IN_RANGE, **between)
        # The index of users need not look at the records; that of times does, but only at those of the range.
        is_part = wanted * 10 < total
        statement = receipt_queries.SOME_USER_RECEIPTS if is_part else receipt_queries.ALL_USER_RECEIPTS
        document = await self._read("user_receipts", Query(statement, {**between, "limit": limit}))
        return [UserReceipts(*row) for row in decoded(_user_receipts, document)]

    async def user_summary(self, user_id: int) -> UserSummary:
        """One user's receive records, counted."""
        numbers = await self._reads.numbers("user_summary", receipt_queries.USER_SUMMARY, user_id=user_id)
        return UserSummary(*numbers)

    async def _change(self, name: str, statement: str, **parameters: Parameter) -> list[tuple[str, int]]:
        """Run one statement that returns the message_id and user_id of each receive record that it changes."""

        def run(connection: sqlite3.Connection) -> list[tuple[str, int]]:
            changed = connection.execute(statement, parameters).fetchall()
            self._lists.columns.note(changed)
            return changed

        return await self._statements.run(name, run)

    async def _change_chunks(self, name: str, statement: str, limit: int, **parameters: Parameter) -> int:
        """The same, a chunk after the other, up to `limit` records; how many."""

        async def change(wanted: int) -> int:
            return len(await self._change(name, statement, **parameters, limit=wanted))

        return await drop_chunks(limit, change)

    async def _read(self, name: str, query: Query) -> bytes:
        return await self._reads.document(name, query.statement, **query.parameters) or b"[]"

    async def purge(self, before_ms: int, limit: int) -> int:
        """Drop at most `limit` records created before that time; how many were dropped.

        Receive records go first, push records with what is left of `limit`.
        """
        dropped = await self._change_chunks("purge", PURGE_RECEIPTS, limit, before_ms=before_ms)
        return dropped + await drop_chunks(
            limit - dropped,
            lambda wanted: self._statements.change("purge", PURGE_PUSH_RECORDS, before_ms=before_ms, limit=wanted),
        )

    async def expire(self, since_ms: int, now_ms: int, limit: int) -> int:
        """Mark at most `limit` receive records as expired; how many were marked."""
        return await self._change_chunks("expire", EXPIRE, limit, since_ms=since_ms, now_ms=now_ms)
