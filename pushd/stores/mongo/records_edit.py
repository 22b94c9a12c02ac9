"""Records of notices that were changed after their acceptance: revoked, or edited."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pymongo import UpdateMany

from pushd.errors import StoreError
from pushd.model import Notice, UserId, Version
from pushd.records import RecordState
from pushd.stores.mongo.connection import Connection, Document, Write
from pushd.stores.mongo.counts import StoredCounts
from pushd.stores.mongo.documents import PUSH_RECORDS, RECEIVE_RECORDS, VERSIONS, date
from pushd.stores.mongo.records_write import push_edit, receipt_edit, version_upsert
from pushd.stores.mongo.unread import UnreadChanges

MARKED_AT_ONCE = 1000


class RecordEdits:
    """What of ports.RecordStore changes records of notices that were changed."""

    def __init__(self, connection: Connection, counts: StoredCounts, unread: UnreadChanges) -> None:
        self._connection = connection
        self._counts = counts
        self._unread = unread
        self._push_records = connection.collection(PUSH_RECORDS)
        self._receipts = connection.collection(RECEIVE_RECORDS)

    async def revoke(self, message_id: str, at_ms: int) -> bool:
        """The push record says so, and the receive records are marked; False: there is no push record."""
        change = {"$set": {"state": RecordState.REVOKED.value}, "$max": {"updated_at": date(at_ms)}}
        unmarked = {"message_id": message_id, "is_revoked": {"$ne": True}}
        where = {"message_id": message_id}
        async with self._connection.writing():
            done = await self._connection.change("revoke", lambda: self._push_records.update_one(where, change))
            while done.matched_count and await self._mark_some(unmarked):
                pass
        self._unread.note_anybody()
        return done.matched_count > 0

    async def edit(self, newest: Notice, versions: Sequence[Version], *, is_reset: bool) -> bool:
        """The push record says so, and what it said before is kept; False: there is no push record."""
        where = {"message_id": newest.message_id}
        refused: list[StoreError] = []
        async with self._connection.writing():
            await self._connection.bulk("edit", VERSIONS, list(map(version_upsert, versions)), refused)
            done = await self._connection.change(
                "edit", lambda: self._push_records.update_one(where, push_edit(newest))
            )
            if done.matched_count:
                await self._connection.change("edit", lambda: self._receipts.update_many(where, receipt_edit(newest)))
            if done.matched_count and is_reset:
                await self._connection.change("edit", lambda: self._reset(newest.message_id))
        self._counts.changed({newest.message_id})
        self._unread.note_anybody()
        if refused:
            raise refused[0]
        return done.matched_count > 0

    async def _reset(self, message_id: str) -> Any:
        gone = ("read_at", "confirmed_at", "confirmed_version")
        change = {"$set": {"is_read": False, "is_confirmed": False}, "$unset": dict.fromkeys(gone, "")}
        return await self._receipts.update_many({"message_id": message_id, "is_read": True}, change)

    async def _mark_some(self, where: Document) -> bool:
        """Whether there were some left."""

        async def work() -> list[Document]:
            return await self._receipts.find(where, {"_id": 1}, limit=MARKED_AT_ONCE).to_list(None)

        found = await self._connection.read("revoke", work)
        these = {"_id": {"$in": [row["_id"] for row in found]}}
        change = {"$set": {"is_revoked": True}}
        if found:
            await self._connection.change("revoke", lambda: self._receipts.update_many(these, change))
        return len(found) == MARKED_AT_ONCE


def version_writes(user_id: UserId, message_ids: Sequence[str], versions: Mapping[str, int]) -> list[Write]:
    """Confirmations say which version they are of; the first one counts."""
    by_version: dict[int, list[str]] = {}
    for message_id in message_ids:
        if message_id in versions:
            by_version.setdefault(versions[message_id], []).append(message_id)
    return [
        UpdateMany(
            {"user_id": user_id, "message_id": {"$in": some}, "is_confirmed": {"$ne": True}},
            {"$set": {"confirmed_version": version}},
        )
        for version, some in by_version.items()
    ]
