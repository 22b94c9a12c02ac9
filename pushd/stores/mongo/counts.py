"""How many received a notice: counted when asked, and kept in the push records for other programs.

delivered_count are the receive records that say received, failed_count those that expired undelivered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from typing import Any

import structlog
from pymongo import UpdateOne

from pushd.batched import batched
from pushd.errors import StoreError, StoreUnavailable
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
    """Brings the counts in push records up to date, `every_s` after their receive records changed."""

    def __init__(self, connection: Connection, *, every_s: float = EVERY_S) -> None:
        self._connection = connection
        self._every_s = every_s
        self._changed: set[str] = set()
        self._is_changed = asyncio.Event()

    def changed(self, message_ids: Iterable[str]) -> None:
        """Receive records of these notices were written."""
        self._changed.update(message_ids)
        self._is_changed.set()

    async def run(self) -> None:
        """Until cancelled: count what has changed. A server that is away is waited for.

        Raises what cannot be counted or written, once everything else is.
        """
        is_away = False
        while True:
            await self._is_changed.wait()
            await asyncio.sleep(self._every_s)
            try:
                await self.flush()
                is_away = False
            except StoreUnavailable as error:
                if not is_away:
                    log.warning("counts in push records are out of date; trying again", error=str(error))
                is_away = True

    async def flush(self) -> None:
        """Count now. Raises StoreUnavailable; what was not counted then is counted next time.

        What fails in another way keeps nothing else from being counted: it is raised at the end, and not tried again
        before it has changed.
        """
        waiting, self._changed = self._changed, set()
        self._is_changed.clear()
        failures: list[Exception] = []
        try:
            for chunk in batched(sorted(waiting), NOTICES_AT_ONCE):
                failures += await self._count(chunk)
                waiting.difference_update(chunk)
        except StoreUnavailable as error:
            failures.append(error)
        finally:
            if waiting:
                self.changed(waiting)
        if failures:
            raise failures[0]

    async def finish(self) -> None:
        """Count what has changed since the last time, for LAST_S at most."""
        with suppress(StoreError, TimeoutError):
            async with asyncio.timeout(LAST_S):
                await self.flush()

    async def _count(self, message_ids: list[str]) -> list[Exception]:
        """Count these; what was in the way of some. Raises StoreUnavailable."""
        failures: list[Exception] = []
        refused: list[StoreError] = []
        try:
            counts = await counted(self._connection, "stored_counts", message_ids)
            writes = [
                UpdateOne({"message_id": message_id}, {"$set": {"delivered_count": delivered, "failed_count": failed}})
                for message_id, (delivered, failed) in counts.items()
            ]
            if writes:
                async with self._connection.writing():
                    await self._connection.bulk("stored_counts", PUSH_RECORDS, writes, refused)
        except StoreUnavailable:
            raise
        except Exception as error:
            failures.append(error)
        return [*failures, *refused]
