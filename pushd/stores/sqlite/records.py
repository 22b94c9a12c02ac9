"""Push records and receive records: marks, counts and retention. Writing is in records_write."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import orjson

from pushd.model import Mark, PushRecord, Receipt, ReceiveStatus
from pushd.stores.sqlite.records_write import WRITE_PUSH_RECORDS, WRITE_RECEIPTS, push_rows, receipt_rows
from pushd.stores.sqlite.statements import Statements, chunks, drop_chunks
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

UNREAD_COUNTS = """
SELECT CAST(json_group_array(json_array(user_id, unread)) AS BLOB)
  FROM (SELECT user_id, count(*) AS unread
          FROM admin_user_receive_records
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

PURGE_PUSH_RECORDS = """
DELETE FROM push_records
 WHERE rowid IN (
   SELECT rowid FROM push_records WHERE created_at < :before_ms ORDER BY created_at LIMIT :limit
 )
"""


class SqliteRecords:
    """ports.RecordStore. `clock` gives the milliseconds that become updated_at of push records."""

    def __init__(self, thread: SqliteThread, *, clock: Callable[[], int]) -> None:
        self._statements = Statements(thread, "records")
        self._clock = clock

    async def write(self, records: Sequence[PushRecord], receipts: Sequence[Receipt]) -> None:
        """See ports.RecordStore. Chunks are transactions of their own: repeat the whole call when it raises."""
        for record_chunk in chunks(records):
            rows = push_rows(record_chunk, self._clock())
            await self._statements.change("write_records", WRITE_PUSH_RECORDS, rows=rows)
        for receipt_chunk in chunks(receipts):
            await self._statements.change("write_receipts", WRITE_RECEIPTS, rows=receipt_rows(receipt_chunk))

    async def mark(self, user_id: int, message_ids: Sequence[str], mark: Mark, at_ms: int) -> list[str]:
        """See ports.RecordStore."""
        known: set[str] = set()
        for chunk in chunks(message_ids):
            ids = orjson.dumps(chunk)
            found = await self._statements.document("mark", MARKABLE, user_id=user_id, message_ids=ids)
            known.update(orjson.loads(found or b"[]"))
            await self._statements.change(
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

    async def unread_counts(self, user_ids: Collection[int]) -> dict[int, int]:
        """See ports.RecordStore. Users with none are absent."""
        counts: dict[int, int] = {}
        for chunk in chunks(user_ids):
            user_ids_json = orjson.dumps(chunk)
            document = await self._statements.document("unread_counts", UNREAD_COUNTS, user_ids=user_ids_json)
            counts.update(orjson.loads(document or b"[]"))
        return counts

    async def purge(self, before_ms: int, limit: int) -> int:
        """See ports.RecordStore. Receive records go first, push records with what is left of `limit`."""
        dropped = 0
        for statement in (PURGE_RECEIPTS, PURGE_PUSH_RECORDS):
            dropped += await self._purge(statement, before_ms, limit - dropped)
        return dropped

    async def _purge(self, statement: str, before_ms: int, limit: int) -> int:
        return await drop_chunks(
            limit, lambda wanted: self._statements.change("purge", statement, before_ms=before_ms, limit=wanted)
        )
