"""Push records and receive records: marks, counts, lists and retention.

Writing is in records_write; filters, orders and rows in push_queries and receipt_queries.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import TypeVar
from zoneinfo import ZoneInfo

from pushd.batched import batched
from pushd.errors import StoreError
from pushd.model import Mark, PushRecord, Receipt, Step, UserId
from pushd.ports import NO_VERSIONS, Work
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
from pushd.stores.mongo import indexes, push_queries, receipt_queries
from pushd.stores.mongo.connection import Connection, Document
from pushd.stores.mongo.counts import StoredCounts, counted
from pushd.stores.mongo.documents import (
    PUSH_RECORDS,
    RECEIVE_RECORDS,
    VERSIONS,
    date,
    flag,
    milliseconds,
    number,
    stored_id,
    stored_ids,
    text,
)
from pushd.stores.mongo.inbox import MongoInbox
from pushd.stores.mongo.records_edit import RecordEdits, version_writes
from pushd.stores.mongo.records_write import Upserts
from pushd.stores.mongo.unread import UnreadChanges, unread_counts
from pushd.user_ids import INTEGERS, UserIds

T = TypeVar("T")

# $unionWith.
OLDEST_SERVER = (4, 4)
IDS_AT_ONCE = 500
DROPPED_AT_ONCE = 1000
# What the driver decodes without a pause: a push record may name 10,000 users and carry 64 KB.
PUSH_ROWS_AT_ONCE, RECEIPT_ROWS_AT_ONCE, IDS_PER_BATCH = 10, 200, 1000
# Every $unionWith is a stage that all later results pass through.
USERS_AT_ONCE = 250
ONLY_ID = {"_id": 1}
SAID = {"_id": 0, "message_id": 1, "message_type": 1, "tags": 1, "expires_at": 1}  # of a notice, in receive records


class MongoRecords:
    """ports.RecordStore and ports.Remote. `zone`: what dates that are texts are in."""

    def __init__(
        self,
        connection: Connection,
        counts: StoredCounts,
        clock: Callable[[], int],
        *,
        zone: ZoneInfo,
        retention_days: int,
        ids: UserIds = INTEGERS,
        oldest_server: tuple[int, int] = OLDEST_SERVER,
    ) -> None:
        self._connection = connection
        self._counts = counts
        self._unread = UnreadChanges()
        self.inbox = MongoInbox(connection, counts, self._unread, clock, zone=zone)
        self._upserts = Upserts(connection, counts, clock)
        self._clock = clock
        self._zone = zone
        self._ids = ids
        self._oldest_server = oldest_server
        self._indexes = indexes.record_indexes(retention_days)
        self._push_records = connection.collection(PUSH_RECORDS)
        self._receipts = connection.collection(RECEIVE_RECORDS)
        self._versions = connection.collection(VERSIONS)
        edits = RecordEdits(connection, counts, self._unread)
        self.edit, self.revoke = edits.edit, edits.revoke

    @property
    def store(self) -> str:
        """Its name in health and metrics."""
        return self._connection.store

    @property
    def background(self) -> dict[str, Work]:
        """What has to run while they are used (ports.Stores)."""
        return {"stored counts": self._counts.run}

    async def check(self) -> None:
        """Return when the server answers and has what is needed; raises StartError when it never can."""
        await self._connection.require_version(self._oldest_server)
        await indexes.ensure(self._connection, self._indexes)
        await self._connection.require_kind(RECEIVE_RECORDS, self._ids)

    async def write(self, records: Sequence[PushRecord], receipts: Sequence[Receipt]) -> None:
        """Create or merge these records.

        Chunks are written one after the other: repeat the whole call when it raises.
        """
        try:
            await self._upserts.write(records, receipts)
        finally:
            self._unread.note(receipt.user_id for receipt in receipts)

    async def mark(
        self,
        user_id: UserId,
        message_ids: Sequence[str],
        mark: Mark,
        at_ms: int,
        versions: Mapping[str, int] = NO_VERSIONS,
    ) -> list[str]:
        """Note that the user read or confirmed these; the ids for which there is a receive record."""
        known: set[str] = set()
        refused: list[StoreError] = []
        for chunk in batched(message_ids, IDS_AT_ONCE):
            mine = {"user_id": user_id, "message_id": {"$in": chunk}}
            known.update(await self._marked("mark", mine))
            async with self._connection.writing():
                writes = receipt_queries.mark_writes(mine, mark, at_ms)
                if mark is Mark.CONFIRMED and versions:
                    writes = [*version_writes(user_id, chunk, versions), *writes]
                await self._connection.bulk("mark", RECEIVE_RECORDS, writes, refused)
        self._counts.changed(known)
        self._unread.note((user_id,))
        if refused:
            raise refused[0]
        return [message_id for message_id in message_ids if message_id in known]

    async def receive_status(self, message_id: str) -> ReceiptStats | None:
        """Counts over one notice's receive records; None for an unknown notice."""
        stats = await self._totals("receive_status", {"message_id": message_id})
        if not stats.total_users and not await self._has_push_record(message_id):
            return None
        return stats

    async def received_by(self, message_id: str) -> set[UserId]:
        """The users whose receive record of this notice says received."""
        return set(await self._users("received_by", {"message_id": message_id, "is_received": True}))

    async def not_received_by(self, message_id: str) -> list[UserId]:
        """The users whose receive record of this notice says not received."""
        return await self._users("not_received_by", {"message_id": message_id, "is_received": {"$ne": True}})

    async def not_at(self, message_id: str, step: Step) -> list[UserId]:
        """The users who have not got so far with a notice."""
        return await self._users("not_at", {"message_id": message_id, f"is_{step}": {"$ne": True}})

    async def sent_to(self, message_id: str) -> list[UserId]:
        """The users whose receive record says connected when it went out, or received."""
        is_sent = [{"is_online": True}, {"is_received": True}]
        return await self._users("sent_to", {"message_id": message_id, "$or": is_sent})

    async def unread_counts(self, user_ids: Collection[UserId]) -> dict[UserId, int]:
        """Unread receive records per user, of notices neither expired nor revoked. Users with none are absent."""
        return await unread_counts(self._connection, user_ids, self._clock(), self._ids)

    async def push_records(self, where: PushFilter, sort: PushSort, part: Part) -> list[PushRow]:
        """A part of the matching push records."""
        if part.limit <= 0:
            return []
        condition, order = self._condition(where), push_queries.order(sort, part)

        async def work() -> list[Document]:
            cursor = self._push_records.find(condition, sort=order, skip=part.offset, limit=part.limit)
            return await cursor.batch_size(PUSH_ROWS_AT_ONCE).to_list(None)

        return await self._push_rows("push_records", await self._connection.count("push_records", work))

    async def push_record(self, message_id: str) -> PushRow | None:
        """One push record."""

        async def work() -> Document | None:
            return await self._push_records.find_one({"message_id": message_id})

        found = await self._connection.read("push_record", work)
        rows = await self._push_rows("push_record", [found] if found is not None else [])
        return rows[0] if rows else None

    async def push_stats(self, where: PushFilter) -> PushStats:
        """Sums over the matching push records.

        Costs the server all receive records of the notices that match, and a round trip for every hundred of them.
        """
        condition = self._condition(where)
        fields = {"_id": 0, "message_id": 1, "success": 1, "total_count": 1}

        async def work() -> list[Document]:
            return await self._push_records.find(condition, fields).batch_size(IDS_PER_BATCH).to_list(None)

        found = await self._connection.count("push_stats", work)
        counts = await counted(self._connection, "push_stats", [text(row.get("message_id")) for row in found])
        successes = sum(flag(row.get("success")) for row in found)
        return PushStats(
            total_records=len(found),
            success_records=successes,
            failed_records=len(found) - successes,
            total_recipients=sum(number(row.get("total_count")) for row in found),
            delivered_count=sum(delivered for delivered, _ in counts.values()),
            failed_count=sum(failed for _, failed in counts.values()),
        )

    async def delete(self, message_id: str) -> bool:
        """Drop a push record and its receive records; False when there was none.

        What a failed call left behind, the next one drops.

        Nothing is written meanwhile: a late receipt finds the push record before this or not at all.
        """
        where = {"message_id": message_id}
        async with self._connection.writing():
            dropped = await self._drop("delete", where)
            await self._connection.change("delete", lambda: self._versions.delete_many(where))
            dropped += (
                await self._connection.change("delete", lambda: self._push_records.delete_one(where))
            ).deleted_count
        self._unread.note_anybody()
        return dropped > 0

    async def receive_records(self, where: ReceiptFilter, sort: ReceiptSort, part: Part) -> list[ReceiptRow]:
        """A part of the matching receive records.

        Sorted by an index with CREATED_AT or a `message_id` or `user_id`; else the server sorts what matches.
        """
        if part.limit <= 0:
            return []
        condition, order = receipt_queries.condition(where, self._zone), receipt_queries.order(sort, part)

        async def work() -> list[Document]:
            cursor = self._receipts.find(condition, sort=order, skip=part.offset, limit=part.limit)
            return await cursor.batch_size(RECEIPT_ROWS_AT_ONCE).to_list(None)

        return await self._receipt_rows(await self._connection.count("receive_records", work))

    async def receive_stats(self, where: ReceiptFilter) -> ReceiptStats:
        """Counts over the matching receive records."""
        return await self._totals("receive_stats", receipt_queries.condition(where, self._zone))

    async def newest_receive_records(self, user_ids: Collection[UserId], limit: int) -> dict[UserId, list[ReceiptRow]]:
        """The newest `limit` receive records of each of these users.

        One round trip per USERS_AT_ONCE, all under way together; a second one for users whose last record that comes
        and first one that does not are of the same moment.
        """
        if limit <= 0:
            return {}
        found = await self._newest(user_ids, limit + 1, is_exact=False)
        tied = [
            user_id
            for user_id, rows in found.items()
            if len(rows) > limit and rows[limit - 1].created_ms == rows[limit].created_ms
        ]
        found |= await self._newest(tied, limit, is_exact=True)
        for user_id, rows in found.items():
            rows.sort(key=lambda row: (row.created_ms, row.message_id), reverse=True)
            found[user_id] = rows[:limit]
        return found

    async def user_receipts(self, since_ms: int, before_ms: int, limit: int) -> list[UserReceipts]:
        """Receive records created in that time, counted by user."""
        if limit <= 0:
            return []
        created = push_queries.time_condition("created_at", since_ms, before_ms, self._zone)
        rows = await self._aggregate("user_receipts", receipt_queries.by_user(created, limit))
        return [
            UserReceipts(
                user_id=stored_id(row["_id"], self._ids),
                username=text(row.get("name")),
                total_count=number(row["total"]),
                received_count=number(row["is_received"]),
                read_count=number(row["is_read"]),
                confirmed_count=number(row["is_confirmed"]),
            )
            for row in rows
        ]

    async def user_summary(self, user_id: UserId) -> UserSummary:
        """One user's receive records, counted."""
        rows = await self._aggregate("user_summary", receipt_queries.summary(user_id), is_quick=True)
        if not rows:
            return UserSummary(0, 0, 0)
        unread = (await self.unread_counts([user_id])).get(user_id, 0)
        last_ms = milliseconds(rows[0].get("last"), self._zone)
        return UserSummary(unread, number(rows[0]["total"]), last_ms)

    async def expire(self, since_ms: int, now_ms: int, limit: int) -> int:
        """Mark at most `limit` receive records as expired; how many were marked."""
        due = {"expires_at": {"$gt": date(since_ms), "$lte": date(now_ms)}}

        async def work() -> list[str]:
            return await self._push_records.distinct("message_id", due)

        message_ids = await self._connection.read("expire", work)
        if message_ids:
            self._unread.note_anybody()
        marked = 0
        for chunk in batched(message_ids, IDS_AT_ONCE):
            while marked < limit:
                wanted = min(DROPPED_AT_ONCE, limit - marked)
                count = await self._expire(chunk, now_ms, wanted)
                marked += count
                if count < wanted:
                    break
        return marked

    async def purge(self, before_ms: int, limit: int) -> int:
        """Drop at most `limit` records created before that time; how many were dropped.

        A TTL index does it: 0 here. It leaves what has a text for a date, which is not ours.
        """
        return 0

    async def _expire(self, message_ids: list[str], now_ms: int, limit: int) -> int:
        due = {
            "message_id": {"$in": message_ids},
            "is_received": {"$ne": True},
            "delivery_status": {"$ne": "expired"},
        }
        change = {"$set": {"delivery_status": "expired"}, "$max": {"updated_at": date(now_ms)}}
        async with self._connection.writing():
            found = await self._find_some("expire", due, limit)
            if not found:
                return 0
            these = {"_id": {"$in": [row["_id"] for row in found]}, **due}
            done = await self._connection.change("expire", lambda: self._receipts.update_many(these, change))
        self._counts.changed({text(row.get("message_id")) for row in found})
        return done.modified_count

    async def _drop(self, operation: str, where: Document) -> int:
        dropped = 0
        while found := await self._find_some(operation, where, DROPPED_AT_ONCE):
            these = {"_id": {"$in": [row["_id"] for row in found]}}
            dropped += (
                await self._connection.change(operation, _later(self._receipts.delete_many, these))
            ).deleted_count
        return dropped

    async def _find_some(self, operation: str, where: Document, limit: int) -> list[Document]:
        async def work() -> list[Document]:
            return await self._receipts.find(where, {"_id": 1, "message_id": 1}, limit=limit).to_list(None)

        return await self._connection.read(operation, work)

    async def _marked(self, operation: str, where: Document) -> list[str]:
        async def work() -> list[Document]:
            return await self._receipts.find(where, {"_id": 0, "message_id": 1}).to_list(None)

        return [text(row.get("message_id")) for row in await self._connection.read(operation, work)]

    async def _users(self, operation: str, where: Document) -> list[UserId]:
        async def work() -> list[Document]:
            cursor = self._receipts.find(where, {"_id": 0, "user_id": 1}).batch_size(IDS_PER_BATCH)
            return await cursor.to_list(None)

        rows = await self._connection.count(operation, work)
        return stored_ids([row.get("user_id") for row in rows], self._ids) or []

    async def _has_push_record(self, message_id: str) -> bool:
        async def work() -> Document | None:
            return await self._push_records.find_one({"message_id": message_id}, ONLY_ID)

        return await self._connection.read("receive_status", work) is not None

    async def _totals(self, operation: str, where: Document) -> ReceiptStats:
        rows = await self._aggregate(operation, receipt_queries.totals(where))
        if not rows:
            return ReceiptStats()
        return ReceiptStats(*(number(rows[0][name]) for name in ("total", *receipt_queries.FLAGS)))

    async def _aggregate(self, operation: str, pipeline: list[Document], *, is_quick: bool = False) -> list[Document]:
        async def work() -> list[Document]:
            return await self._receipts.aggregate(pipeline, batchSize=RECEIPT_ROWS_AT_ONCE).to_list(None)

        return await (self._connection.read if is_quick else self._connection.count)(operation, work)

    def _condition(self, where: PushFilter) -> Document:
        return push_queries.condition(where, self._zone, self._clock())

    async def _push_rows(self, operation: str, found: list[Document]) -> list[PushRow]:
        ids = [text(document.get("message_id")) for document in found]
        counts = await counted(self._connection, operation, ids) if ids else {}
        rows: list[PushRow] = []
        now_ms = self._clock()
        for message_id, document in zip(ids, found, strict=True):
            seen = counts.get(message_id, (0, 0))
            rows.append(push_queries.push_row(document, *seen, self._zone, self._ids, now_ms))
            if len(rows) % PUSH_ROWS_AT_ONCE == 0:
                await asyncio.sleep(0)
        return rows

    async def _receipt_rows(self, found: Iterable[Document]) -> list[ReceiptRow]:
        rows: list[ReceiptRow] = []
        for chunk in batched(found, RECEIPT_ROWS_AT_ONCE):
            older = {text(document.get("message_id")) for document in chunk if "message_type" not in document}
            said = await self._said(older) if older else {}
            for document in chunk:
                if "message_type" not in document:
                    document = {**document, **said.get(text(document.get("message_id")), {})}
                rows.append(receipt_queries.receipt_row(document, self._zone, self._ids))
            await asyncio.sleep(0)
        return rows

    async def _said(self, message_ids: Collection[str]) -> dict[str, Document]:
        """What receive records of version 1 do not say of their notices, from the push records."""

        async def work() -> list[Document]:
            where = {"message_id": {"$in": list(message_ids)}}
            return await self._push_records.find(where, SAID).to_list(None)

        found = await self._connection.read("receive_records", work)
        return {text(document.pop("message_id", "")): document for document in found}

    async def _newest(
        self, user_ids: Collection[UserId], limit: int, *, is_exact: bool
    ) -> dict[UserId, list[ReceiptRow]]:
        pipelines = [
            receipt_queries.newest(chunk, limit, is_exact=is_exact) for chunk in batched(user_ids, USERS_AT_ONCE)
        ]
        found: dict[UserId, list[ReceiptRow]] = {}
        for documents in await asyncio.gather(*(self._aggregate("newest_receive_records", it) for it in pipelines)):
            for row in await self._receipt_rows(documents):
                found.setdefault(row.user_id, []).append(row)
        return found


def _later(work: Callable[[Document], Awaitable[T]], argument: Document) -> Callable[[], Awaitable[T]]:
    return lambda: work(argument)
