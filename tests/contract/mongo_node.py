"""Stores whose records and online status are in MongoDB: one server for all tests, a database for each."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from pushd.config.schema import RecordsConfig
from pushd.stores.mongo.connection import connect
from pushd.stores.mongo.counts import StoredCounts
from pushd.stores.mongo.records import MongoRecords
from tests.mongo_server import MongoServer, shared_server

from .conftest import Node

# CONTRACT section 5, and below what is stored beside it: seen where it is asked for, not in whole rows.
RECEIVE_FIELDS = [
    "message_id",
    "user_id",
    "username",
    "user_role",
    "is_online",
    "is_received",
    "received_at",
    "is_read",
    "read_at",
    "is_confirmed",
    "confirmed_at",
    "device_type",
    "platform",
    "browser",
    "client_ip",
    "user_agent",
    "connection_id",
    "push_channel",
    "delivery_status",
    "retry_count",
    "error_message",
    "created_at",
    "updated_at",
]
STATUS_FIELDS = [
    "user_id",
    "username",
    "is_online",
    "last_seen",
    "online_time",
    "offline_time",
    "online_duration",
    "connection_id",
    "client_ip",
    "user_agent",
    "total_online_count",
    "total_online_time",
    "created_at",
    "updated_at",
]
PUSH_FIELDS = [
    "message_id",
    "content",
    "message_type",
    "target",
    "target_user_ids",
    "recipients_count",
    "status",
    "success",
    "error",
    "push_time",
    "sender_id",
    "sender_name",
    "priority",
    "need_confirm",
    "extra_data",
    "total_count",
    "delivered_count",
    "failed_count",
    "created_at",
    "updated_at",
]
FIELDS = {
    "push_records": PUSH_FIELDS,
    "admin_user_receive_records": RECEIVE_FIELDS,
    "admin_user_online_status": STATUS_FIELDS,
}
# Beside each, in whole seconds, the document has the milliseconds.
DURATIONS = {"online_duration": "online_duration_ms", "total_online_time": "total_online_ms"}
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def as_row(value: Any) -> Any:
    """A field as SQLite has it: milliseconds, and 0 or 1."""
    if isinstance(value, datetime):
        return round((value - EPOCH).total_seconds() * 1000)
    if isinstance(value, bool):
        return int(value)
    return value


class MongoNode(Node):
    """Records and presence in MongoDB, the rest embedded."""

    server: MongoServer
    keeps_records = False

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.database_name = f"pushd_test_{uuid.uuid4().hex}"

    async def begin(self) -> None:
        self.server = await shared_server()
        self.client = self.server.client(tz_aware=True)
        self.database = self.client[self.database_name]

    async def end(self) -> None:
        self.client.drop_database(self.database_name)
        self.client.close()

    def renew(self) -> None:
        super().renew()
        self.client.drop_database(self.database_name)

    def needs(self, what: str) -> None:
        self.server.needs(what)

    def sections(self) -> dict[str, Any]:
        return {"records": RecordsConfig(url=self.server.url, database=self.database_name)}

    def rows(self, table: str) -> list[dict[str, Any]]:
        found = self.database[table].find()
        return [{name: as_row(document.get(DURATIONS.get(name, name))) for name in FIELDS[table]} for document in found]


@asynccontextmanager
async def opened_records(
    node: MongoNode, *, every_s: float = 1000.0, **options: Any
) -> AsyncIterator[tuple[MongoRecords, StoredCounts]]:
    """The node's records opened once more, with limits of the test's own."""
    url, database = node.server.url, node.database_name
    async with connect("records", "records.url", url, database, lambda *_: None) as connection:
        counts = StoredCounts(connection, every_s=every_s)
        yield MongoRecords(connection, counts, node.clock, zone=ZoneInfo("UTC"), retention_days=30, **options), counts
