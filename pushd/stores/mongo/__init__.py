"""What is kept in MongoDB (CONTRACT section 5): push records, receive records and online status. Needs version 4.4."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from zoneinfo import ZoneInfo

from pushd.config.schema import Config
from pushd.ports import Observe
from pushd.stores.mongo.connection import connect
from pushd.stores.mongo.counts import StoredCounts
from pushd.stores.mongo.presence import MongoPresence
from pushd.stores.mongo.records import MongoRecords

__all__ = ["open_presence", "open_records"]


@asynccontextmanager
async def open_records(config: Config, observe: Observe, clock: Callable[[], int]) -> AsyncIterator[MongoRecords]:
    """ports.RecordStore and ports.Remote. Connects when first asked. Raises StartError for a URL that cannot be used.

    `clock` gives the milliseconds that become updated_at of push records. The caller runs `background` of the records.
    """
    url, database = config.records.url, config.records.database
    async with connect("records", "records.url", url, database, observe) as connection:
        counts = StoredCounts(connection)
        zone = ZoneInfo(config.server.timezone)
        days, ids = config.records.retention_days, config.directory.ids
        try:
            yield MongoRecords(connection, counts, clock, zone=zone, retention_days=days, ids=ids)
        finally:
            await counts.finish()


@asynccontextmanager
async def open_presence(
    config: Config, url: str, observe: Observe, clock: Callable[[], int]
) -> AsyncIterator[MongoPresence]:
    """ports.PresenceStore and ports.Remote, in the database of the records. Connects when first asked.

    Every time it stores is given by the caller: `clock` is not asked. Raises StartError for a URL that cannot be used.
    """
    key = "presence.url" if config.presence.url else "records.url"
    async with connect("presence", key, url, config.records.database, observe) as connection:
        yield MongoPresence(connection, zone=ZoneInfo(config.server.timezone), ids=config.directory.ids)
