"""The hello that greets a connection, and the count of unread notices in it."""

from __future__ import annotations

import asyncio
import contextlib

from pushd._fastpath import Connection, Hub
from pushd.config.current import CurrentConfig
from pushd.errors import StoreError
from pushd.model import UserId
from pushd.ports import RecordStore
from pushd.presence.unread import UnreadFrames
from pushd.protocol import frames
from pushd.writing.writers import Writers

RECORDS_WITHIN_S = 0.5
COUNT_WITHIN_S = 0.5


class Greeting:
    """Says hello to connections."""

    def __init__(
        self,
        hub: Hub,
        records: RecordStore,
        writers: Writers,
        current: CurrentConfig,
        unread: UnreadFrames,
        *,
        node_id: str,
    ) -> None:
        self._hub = hub
        self._records = records
        self._writers = writers
        self._current = current
        self.unread = unread
        self._node_id = node_id

    async def count_unread(self, user_ids: set[UserId]) -> dict[UserId, int]:
        """How many notices each of these users has not read; empty when the store does not say so.

        Waits at most RECORDS_WITHIN_S for records under way, whose notices are missing then, and COUNT_WITHIN_S for
        the store: a hello without the count is better than a late one.
        """
        with contextlib.suppress(StoreError, TimeoutError):
            async with asyncio.timeout(RECORDS_WITHIN_S):
                await self._writers.records_written(user_ids)
        try:
            async with asyncio.timeout(COUNT_WITHIN_S):
                return await self._records.unread_counts(user_ids)
        except (StoreError, TimeoutError):
            return {}

    def greet(self, connection: Connection, unread_count: int) -> None:
        """Send hello."""
        data = frames.HelloData(
            user_id=connection.user_id,
            conn_id=connection.conn_id,
            heartbeat_s=self._current.config.delivery.heartbeat_s,
            unread_count=unread_count,
            node_id=self._node_id,
        )
        self._hub.send(connection, frames.frame(frames.Hello(data), connection.dialect))
        self.unread.greeted(connection, unread_count)
