"""How many received a notice: counted when asked, and kept in the push records for other programs.

delivered_count are the receive records that say received, failed_count those that expired undelivered.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import structlog
from pymongo import UpdateOne

from pushd.batched import batched
from pushd.errors import StoreError
from pushd.stores.mongo.connection import Connection, Document
from pushd.stores.mongo.documents import PUSH_RECORDS, RECEIVE_RECORDS, number, text

log = structlog.get_logger("pushd.stores")

EVERY_S = 3.0
LAST_S = 2.0
NOTICES_AT_ONCE = 100

RECEIVED: Document = {"$eq": ["$is_received", True]}
FAILED: Document = {"$and": [{"$ne": ["$is_received", True]}, {"$eq": ["$delivery_status", "expired"]}]}


def sum_if(condition: Any) -> Document:
    """How many documents of a group meet it."""
    return {"$sum": {"$cond": [condition, 1, 0]}}


async def counted(connection: Connection, operation: str, message_ids: Collection[str]) -> dict[str, tuple[int, int]]:
    """(delivered, failed) by notice; those without receive records are absent. Costs the receive records of them all,
    read by the server through the index on message_id."""
    found: dict[str, tuple[int, int]] = {}
    for chunk in batched(message_ids, NOTICES_AT_ONCE):
        pipeline: list[Document] = [
            {"$match": {"message_id": {"$in": chunk}}},
            {"$group": {"_id": "$message_id", "delivered": sum_if(RECEIVED), "failed": sum_if(FAILED)}},
        ]

        async def work(pipeline: Sequence[Document] = pipeline) -> list[Document]:
            return await connection.collection(RECEIVE_RECORDS).aggregate(pipeline).to_list(None)

        for row in await connection.count(operation, work):
            found[text(row["_id"])] = (number(row["delivered"]), number(row["failed"]))
    return found


class StoredCounts:
    """Brings the counts in push records up to date, EVERY_S after their receive records changed."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._changed: set[str] = set()
        self._is_changed = asyncio.Event()

    def changed(self, message_ids: Iterable[str]) -> None:
        """Receive records of these notices were written."""
        self._changed.update(message_ids)
        self._is_changed.set()

    async def flush(self) -> None:
        """Count now. Raises StoreError; what was not counted is counted next time."""
        waiting, self._changed = self._changed, set()
        self._is_changed.clear()
        try:
            for chunk in batched(sorted(waiting), NOTICES_AT_ONCE):
                await self._count(chunk)
                waiting.difference_update(chunk)
        finally:
            if waiting:
                self.changed(waiting)

    async def _count(self, message_ids: list[str]) -> None:
        counts = await counted(self._connection, "stored_counts", message_ids)
        writes = [
            UpdateOne({"message_id": message_id}, {"$set": {"delivered_count": delivered, "failed_count": failed}})
            for message_id, (delivered, failed) in counts.items()
        ]
        if writes:
            async with self._connection.writing():
                await self._connection.bulk("stored_counts", PUSH_RECORDS, writes, [])

    async def _run(self) -> None:
        is_failing = False
        while True:
            await self._is_changed.wait()
            await asyncio.sleep(EVERY_S)
            try:
                await self.flush()
                is_failing = False
            except StoreError as error:
                if not is_failing:
                    log.warning("counts in push records are out of date; trying again", error=str(error))
                is_failing = True

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Count in the background until the end of the block, and once more then, for LAST_S at most."""
        task = asyncio.create_task(self._run(), name="stored counts")
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            with suppress(StoreError, TimeoutError):
                async with asyncio.timeout(LAST_S):
                    await self.flush()
