"""What inboxes ask of MongoDB, and documents that others, or version 1, have written."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from pymongo import monitoring

from pushd.records import InboxFilter
from tests.samples import RECEIPTS

from .conftest import START_MS
from .mongo_node import MongoNode
from .test_inbox import ALL, filled, ids, walked

IMPLEMENTATIONS = ("mongodb",)
BY_USER = {"user_id": 1, "is_archived": 1, "created_at": -1}


class Listener(monitoring.CommandListener):
    """Keeps the queries that are sent, while there is somewhere to keep them."""

    commands: list[Mapping[str, Any]] | None = None

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        if self.commands is not None and event.command_name in ("find", "aggregate"):
            self.commands.append(event.command)

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None: ...

    def failed(self, event: monitoring.CommandFailedEvent) -> None: ...


LISTENER = Listener()
monitoring.register(LISTENER)  # of clients that are made from now on; there is no way back


async def test_every_query_begins_with_the_user_and_names_the_index(node: MongoNode) -> None:
    await filled(node, 5)
    LISTENER.commands = sent = []
    try:
        page = await node.stores.inbox.page(1, ALL, 2, None)
        await node.stores.inbox.page(1, InboxFilter(False, False, "t", "a"), 2, page.next)
        await node.stores.inbox.page(1, InboxFilter(True, True), 2, page.next)
        await node.stores.records.unread_counts([1])
        await node.stores.inbox.read_all(1, InboxFilter(tag="a"), START_MS * 2, START_MS)
    finally:
        LISTENER.commands = None
    queries = [command for command in sent if RECEIPTS in (command.get("find"), command.get("aggregate"))]
    assert len(queries) >= 5
    for command in queries:
        where = command["filter"] if "find" in command else command["pipeline"][0]["$match"]
        assert next(iter(where)) == "user_id"
        assert where["user_id"] == 1
        assert dict(command["hint"]) == BY_USER
        assert "is_archived" in where
        sort = dict(command.get("sort") or {})
        assert sort in ({}, {"created_at": -1})
    assert dict(node.database[RECEIPTS].index_information()["user_id_1_is_archived_1_created_at_-1"]["key"]) == BY_USER


async def test_documents_of_the_former_program_come_last(node: MongoNode) -> None:
    """Dates as texts, flags that are missing, nulls for what has not happened."""
    names = await filled(node, 4)
    texts = []
    for number in range(5):
        at = datetime.fromtimestamp(START_MS / 1000, UTC) + timedelta(seconds=number // 2)
        created = at.strftime("%Y-%m-%d %H:%M:%S")
        record = {"message_id": f"old{number}", "content": "old", "message_type": "t", "push_time": created}
        node.database["push_records"].insert_one(record)
        node.database[RECEIPTS].insert_one(
            {"message_id": f"old{number}", "user_id": 1, "created_at": created, "read_at": None, "is_read": False}
        )
        texts.append(f"old{number}")
    inbox = node.stores.inbox
    for limit in (1, 2, 3, 100):
        assert ids(await walked(inbox, 1, ALL, limit)) == [*names, *texts[::-1]]
    assert await node.stores.records.unread_counts([1]) == {1: 9}
    assert ids(await walked(inbox, 1, InboxFilter(message_type="t"), 2)) == texts[::-1]
    assert await inbox.archive(1, ["old0"], START_MS + 5) == ["old0"]
    (item,) = (await inbox.page(1, InboxFilter(is_archived=True), 2, None)).items
    assert (item.is_read, item.read_ms, item.notice.accepted_ms) == (True, START_MS + 5, START_MS)
    assert len(await inbox.read_all(1, ALL, START_MS * 2, START_MS + 5)) == 8


async def test_what_has_expired_does_not_count_although_its_receipts_do_not_say_so(node: MongoNode) -> None:
    names = await filled(node, 4)
    where = {"message_id": {"$in": names[:2]}}
    node.database[RECEIPTS].update_many(where, {"$unset": {"message_type": ""}})
    over = datetime.fromtimestamp(node.clock.now_ms / 1000, UTC)
    node.database["push_records"].update_one({"message_id": names[0]}, {"$set": {"expires_at": over}})
    assert await node.stores.records.unread_counts([1, 2]) == {1: 3}
    assert (await node.stores.records.user_summary(1)).unread_count == 3
    assert ids(await walked(node.stores.inbox, 1, ALL, 2)) == names[1:]
    assert sorted(await node.stores.inbox.read_all(1, ALL, START_MS * 2, START_MS)) == sorted(names[1:])


async def test_archiving_is_in_the_document(node: MongoNode) -> None:
    await filled(node, 1)
    await node.stores.inbox.archive(1, ["m000"], START_MS + 5)
    await node.stores.inbox.archive(1, ["m000"], START_MS + 9)
    (found,) = node.database[RECEIPTS].find()
    assert (found["is_archived"], found["is_read"], found["delivery_status"]) == (True, True, "delivered")
    assert found["archived_at"] == datetime.fromtimestamp((START_MS + 5) / 1000, UTC)
    await node.stores.inbox.unarchive(1, ["m000"], START_MS + 10)
    (found,) = node.database[RECEIPTS].find()
    assert (found["is_archived"], found["is_read"], "archived_at" in found) == (False, True, False)
