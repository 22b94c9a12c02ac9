"""How push records and receive records are written and merged.

The merge of sqlite.records_write, in plain update operators: flags by $max, first times and the way forward by $min
(the statuses' alphabetical order is the reverse of their rank, and "offline" comes before "websocket"). So writes
may be repeated and come in any order. Receipts of one recipient in one call become one upsert.

Nearly every receive record is written once, so it is inserted, which costs a server a third of an upsert. What runs
into the unique index is merged, and what follows it is merged at once, until that finds no records. The identity of a
record, its user and its connection as they were, is merged as a whole: the greater stays. No operator does that, so the
identity is part of the upsert's filter. Where the stored one is another, the upsert runs into the unique index as well,
and only then more writes settle which one stays: one if only the connection is another, and a lesser one, as for what
waited in a mailbox; else four.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import bson
import msgspec
from bson.raw_bson import RawBSONDocument
from pymongo import InsertOne, UpdateOne

from pushd.batched import batched
from pushd.errors import StoreError
from pushd.model import Notice, Outcome, PushRecord, Receipt, UserId, Version, parsed, recipients_text
from pushd.stores.mongo.connection import Connection, Document, Done, Write
from pushd.stores.mongo.counts import StoredCounts
from pushd.stores.mongo.documents import PUSH_RECORDS, RECEIVE_RECORDS, date
from pushd.values import MAX_INT64, MIN_INT64

# A millisecond of the driver's thread, and half of one of the loop.
WRITES_AT_ONCE = 125
SORTED_AT_ONCE = 1000
# A thousand user ids, or data of unknown size, count as so many records.
IDS_PER_WRITE, DATA_WRITES = 50, 10
# How often a duplicate key may come of a race before it is something else.
ATTEMPTS = 5

# Of push records, what a notice need not say.
MAY_BE_ABSENT = (
    "target_user_ids", "target_roles", "target_groups", "expires_at", "extra_data", "extra_json", "title", "url", "tags"
)  # fmt: skip
NOT_SENT = ("scheduled", "cancelled")  # statuses

# BSON's limit is 100 levels, of which the record and a few operators take some.
MOST_LEVELS = 80

T = TypeVar("T")
Key = tuple[str, UserId]
KEY = ("message_id", "user_id")
USER = ("username", "user_role")
CONNECTION = ("connection_id", "client_ip", "user_agent")


class Upserts:
    """Writes both kinds of records. `clock` gives the milliseconds that become updated_at of push records."""

    def __init__(self, connection: Connection, counts: StoredCounts, clock: Callable[[], int]) -> None:
        self._connection = connection
        self._counts = counts
        self._clock = clock
        self._had_records = False  # most of the recipients written last had records before

    async def write(self, records: Sequence[PushRecord], receipts: Sequence[Receipt]) -> None:
        """Create or merge these records.

        What a server refuses keeps nothing else from being written: it is raised at the end. Repeat the whole call when
        it raises StoreUnavailable.
        """
        refused: list[StoreError] = []
        for record_chunk in _by_weight(records):
            now_ms = self._clock()
            async with self._connection.writing():
                upserts = [push_upsert(record, now_ms) for record in record_chunk]
                await self._merge("write_records", PUSH_RECORDS, upserts, refused)
                # By themselves: what a bulk has is written in any order, and who revokes a notice may be faster.
                await self._merge("write_records", PUSH_RECORDS, [*map(sent, filter(has_left, record_chunk))], refused)
        for receipt_chunk in batched((await _by_recipient(receipts)).values(), WRITES_AT_ONCE):
            async with self._connection.writing():
                await self._write_receipts(receipt_chunk, refused)
        if refused:
            raise refused[0]

    async def _write_receipts(self, recipients: list[list[Receipt]], refused: list[StoreError]) -> None:
        recipients = await self._without_gone(recipients)
        # What waited in a mailbox was written for nobody's connection, so that its insert and upsert would only fail.
        late = [receipts for receipts in recipients if receipts[0].is_late]
        if await self._replace_lesser(late, refused):
            late = []
        first = [receipts for receipts in recipients if not receipts[0].is_late]
        await self._merge_receipts(late + await self._insert_receipts(first, refused), refused)
        self._counts.changed({receipts[0].message_id for receipts in recipients})

    async def _insert_receipts(self, recipients: list[list[Receipt]], refused: list[StoreError]) -> list[list[Receipt]]:
        """Those of which there are records, or may be if those before had some: they follow one another."""
        if not recipients or self._had_records:
            return recipients
        done = await self._bulk(receipt_inserts(recipients), refused)
        self._had_records = len(done.duplicates) * 2 > len(recipients)
        return [recipients[error["index"]] for error in done.duplicates]

    async def _merge_receipts(self, recipients: list[list[Receipt]], refused: list[StoreError]) -> None:
        if not recipients:
            return
        done = await self._bulk(receipt_upserts(recipients), refused)
        self._had_records = self._had_records and done.made * 2 < len(recipients)
        others = [recipients[error["index"]] for error in done.duplicates]
        if await self._replace_lesser(others, refused):
            return
        for chunk in batched(others, WRITES_AT_ONCE // 4):
            writes = [write for receipts in chunk for write in other_identity(receipts)]
            await self._merge("write_receipts", RECEIVE_RECORDS, writes, refused)

    async def _replace_lesser(self, recipients: list[list[Receipt]], refused: list[StoreError]) -> bool:
        """True when all of these were records of the same users with lesser connections, and are merged now."""
        if not recipients:
            return True
        return (await self._bulk(list(map(lesser_connection, recipients)), refused)).matched == len(recipients)

    async def _bulk(self, writes: Sequence[Write], refused: list[StoreError]) -> Done:
        return await self._connection.bulk("write_receipts", RECEIVE_RECORDS, writes, refused)

    async def _merge(self, operation: str, collection: str, writes: Sequence[Write], refused: list[StoreError]) -> None:
        """Writes that find their documents by key: a duplicate key is another writer's insert at the same moment."""
        errors: list[Document] = []
        for _ in range(ATTEMPTS):
            if not writes:
                return
            errors = (await self._connection.bulk(operation, collection, writes, refused)).duplicates
            writes = [writes[error["index"]] for error in errors]
        if writes:
            refused.append(StoreError(self._connection.store, f"{operation}: {errors[0].get('errmsg')}"))

    async def _without_gone(self, recipients: list[list[Receipt]]) -> list[list[Receipt]]:
        """Without late receipts of notices whose push record is gone; what is dropped at this moment waits for us."""
        late = {receipt.message_id for receipts in recipients for receipt in receipts if receipt.is_late}
        if not late:
            return recipients

        async def work() -> list[str]:
            return await self._connection.collection(PUSH_RECORDS).distinct(
                "message_id", {"message_id": {"$in": list(late)}}
            )

        gone = late.difference(await self._connection.read("write_receipts", work))
        kept = ([it for it in receipts if not (it.is_late and it.message_id in gone)] for receipts in recipients)
        return [receipts for receipts in kept if receipts]


async def _by_recipient(receipts: Iterable[Receipt]) -> dict[Key, list[Receipt]]:
    found: dict[Key, list[Receipt]] = {}
    for chunk in batched(receipts, SORTED_AT_ONCE):
        for receipt in chunk:
            found.setdefault((receipt.message_id, receipt.user_id), []).append(receipt)
        await asyncio.sleep(0)
    return found


def _by_weight(records: Iterable[PushRecord]) -> Iterator[list[PushRecord]]:
    """Push records in lists that take the driver a few milliseconds to encode."""
    chunk: list[PushRecord] = []
    weight = 0
    for record in records:
        chunk.append(record)
        notice = record.notice
        weight += 1 + len(notice.target.user_ids) // IDS_PER_WRITE + (DATA_WRITES if notice.data is not None else 0)
        if weight >= WRITES_AT_ONCE:
            yield chunk
            chunk, weight = [], 0
    if chunk:
        yield chunk


# ---- receive records


def receipt_inserts(recipients: Iterable[Sequence[Receipt]]) -> list[Write]:
    """One new record per recipient."""

    def rest_of(about: Document, merge: Document) -> Document:
        return {**about, **FIRST, **merge["$min"], **merge["$max"]}

    return [InsertOne({**identity, **rest}) for identity, rest in _each(recipients, rest_of)]


def receipt_upserts(recipients: Iterable[Sequence[Receipt]]) -> list[Write]:
    """For each recipient, merge into the record that says the same user and connection, or make it."""

    def merge_of(about: Document, merge: Document) -> RawBSONDocument:
        return RawBSONDocument(bson.encode({"$setOnInsert": {**about, **FIRST}, **merge}))

    return [UpdateOne(identity, merge, upsert=True) for identity, merge in _each(recipients, merge_of)]


def _each(
    recipients: Iterable[Sequence[Receipt]], make: Callable[[Document, Document], T]
) -> Iterator[tuple[Document, T]]:
    """Each one's identity, and what `make` makes of the facts and merge: once for all of whom the same is true."""
    made: dict[tuple[object, ...], T] = {}
    for receipts in recipients:
        outcomes = [receipt.outcome for receipt in receipts]
        chosen = _chosen(receipts)
        device = (chosen.device_type, chosen.platform, chosen.browser)
        key = (*outcomes, *device, chosen.message_id)
        if key not in made:
            made[key] = make({**_device(chosen), **_said(receipts)}, _merge_of(outcomes))
        yield _identity(receipts, chosen), made[key]


FIRST: Document = {"is_read": False, "is_confirmed": False, "retry_count": 0}


def _identity(receipts: Sequence[Receipt], chosen: Receipt) -> Document:
    user = chosen if len(receipts) == 1 else max(receipts, key=_user)
    return {
        "message_id": chosen.message_id,
        "user_id": chosen.user_id,
        "username": user.username,
        "user_role": user.role,
        "connection_id": chosen.connection_id,
        "client_ip": chosen.client_ip,
        "user_agent": chosen.user_agent,
    }


def _chosen(receipts: Sequence[Receipt]) -> Receipt:
    return receipts[0] if len(receipts) == 1 else max(receipts, key=_connection)


def _device(receipt: Receipt) -> Document:
    return {"device_type": receipt.device_type, "platform": receipt.platform, "browser": receipt.browser}


def _said(receipts: Sequence[Receipt]) -> Document:
    """What inboxes and lists ask of the notice, which does not change with what becomes of it."""
    first = receipts[0]
    if not first.message_type and len(receipts) > 1:
        first = max(receipts, key=lambda receipt: receipt.message_type)  # one that knows it
    said: Document = {"message_type": first.message_type} if first.message_type else {}
    if first.tags:
        said["tags"] = list(first.tags)
    if first.expires_ms:
        said["expires_at"] = date(first.expires_ms)
    return said


def _user(receipt: Receipt) -> tuple[str, int]:
    return receipt.username, receipt.role


def _connection(receipt: Receipt) -> tuple[str, str, str]:
    return receipt.connection_id, receipt.client_ip, receipt.user_agent


def _merge_of(outcomes: Sequence[Outcome]) -> Document:
    """$min and $max for what is known of one recipient."""
    first, received_ms = outcomes[0], 0
    created_ms, updated_ms, is_online = first.created_ms, 0, False
    status: str = first.status
    channel: str = first.channel
    for outcome in outcomes:
        created_ms = min(created_ms, outcome.created_ms)
        received_ms = min(received_ms or outcome.received_ms, outcome.received_ms or received_ms)
        updated_ms = max(updated_ms, outcome.created_ms, outcome.received_ms)
        is_online = is_online or outcome.is_online
        status, channel = min(status, outcome.status), min(channel, outcome.channel)
    earliest: Document = {
        "created_at": date(created_ms),
        "delivery_status": str(status),
        "push_channel": str(channel),
    }
    if received_ms:
        earliest["received_at"] = date(received_ms)
    latest = {"is_online": is_online, "is_received": received_ms > 0, "updated_at": date(updated_ms)}
    return {"$min": earliest, "$max": latest}


def lesser_connection(receipts: Sequence[Receipt]) -> UpdateOne:
    """Merge into a receive record that says the same user and a lesser connection."""
    key, user, connection, device = _parts(receipts)
    where = {**key, **user, "received_at": {"$not": {"$type": "null"}}, **_is_less(connection)}
    return UpdateOne(where, {"$set": {**connection, **device}, **_merge_of([receipt.outcome for receipt in receipts])})


def other_identity(receipts: Sequence[Receipt]) -> list[UpdateOne]:
    """Merge into a receive record that says another user or connection; each may be done again and in any order."""
    key, user, connection, device = _parts(receipts)
    said = _said(receipts)
    merge = _merge_of([receipt.outcome for receipt in receipts])
    # The former program wrote null for what has not happened, which is the least there is for $min.
    return [
        UpdateOne({**key, "received_at": {"$type": "null"}}, {"$unset": {"received_at": ""}}),
        UpdateOne(key, {"$setOnInsert": {**user, **connection, **device, **said, **FIRST}, **merge}, upsert=True),
        UpdateOne({**key, **_is_less(user)}, {"$set": user}),
        UpdateOne({**key, **_is_less(connection)}, {"$set": {**connection, **device}}),
    ]


def _parts(receipts: Sequence[Receipt]) -> tuple[Document, Document, Document, Document]:
    """Key, user, connection and device."""
    chosen = _chosen(receipts)
    identity = _identity(receipts, chosen)
    key, user, connection = ({name: identity[name] for name in names} for names in (KEY, USER, CONNECTION))
    return key, user, connection, _device(chosen)


def _is_less(values: Document) -> Document:
    """Documents whose values, compared one after the other, are less than these, or missing."""
    equal: Document = {}
    cases: list[Document] = []
    for name, value in values.items():
        cases.append({**equal, name: {"$not": {"$gte": value}}})
        equal = {**equal, name: value}
    return {"$or": cases}


# ---- push records


def push_upsert(record: PushRecord, now_ms: int) -> UpdateOne:
    """What the notice is stays, unless the record is whole; the last write says how far it is.

    A scheduled notice is dated when it goes out, which is what it expires by; `submitted_at` is when it was accepted.
    """
    notice = record.notice
    once = _facts_of(notice)
    state: Document = {
        "status": record.status,
        "success": record.status != "failed",
        "total_count": record.total_count,
        "online_count": record.online_count,
        "updated_at": date(now_ms),
    }
    if notice.send_at_ms:
        state |= {name: once.pop(name) for name in ("push_time", "created_at")}
        once["state"] = record.status if record.status in NOT_SENT else "sent"
    if record.is_whole:
        if record.status not in NOT_SENT:
            once.pop("state", None)  # see `sent`
        gone = dict.fromkeys(name for name in MAY_BE_ABSENT if name not in once)
        return UpdateOne({"message_id": notice.message_id}, {"$set": once | state, "$unset": gone}, upsert=True)
    return UpdateOne({"message_id": notice.message_id}, {"$setOnInsert": once, "$set": state}, upsert=True)


def has_left(record: PushRecord) -> bool:
    """Whether its notice was scheduled, and has gone out."""
    return record.notice.send_at_ms > 0 and record.status not in NOT_SENT


def sent(record: PushRecord) -> UpdateOne:
    """The state of a notice that has gone out, unless it has another one by now."""
    where = {"message_id": record.notice.message_id, "state": {"$in": [None, "scheduled"]}}
    return UpdateOne(where, {"$set": {"state": "sent"}})


def _facts_of(notice: Notice) -> Document:
    """What a notice says, and when."""
    fields: Document = {
        "content": notice.content,
        "message_type": notice.type,
        "target": notice.target.kind.value,
        "recipients_count": recipients_text(notice.target),
        "push_time": date(notice.accepted_ms),
        "sender_id": notice.sender_id,
        "sender_name": notice.sender_name,
        "priority": int(notice.priority),
        "need_confirm": notice.need_confirm,
        "delivered_count": 0,
        "failed_count": 0,
        "created_at": date(notice.accepted_ms),
    }
    optional: Document = {
        "target_user_ids": list(notice.target.user_ids),
        "target_roles": list(notice.target.roles),
        "target_groups": list(notice.target.groups),
        "expires_at": date(notice.expires_ms) if notice.expires_ms else None,
        "title": notice.title,
        "url": notice.url,
        "tags": list(notice.tags),
        "version": notice.version if notice.version > 1 else None,
    }
    fields |= {name: value for name, value in optional.items() if value}
    if notice.data is not None:
        fields |= extra_data(notice.data)
    if notice.send_at_ms:
        fields |= {"send_at": date(notice.send_at_ms), "submitted_at": date(notice.submitted_ms)}
    return fields


def push_edit(newest: Notice) -> Document:
    """What makes a push record say what an edited notice says."""
    said: Document = {"content": newest.content, "version": newest.version}
    if newest.title:
        said["title"] = newest.title
    if newest.url:
        said["url"] = newest.url
    if newest.data is not None:
        said |= extra_data(newest.data)
    return _changed(
        {**said, **receipt_said(newest)}, ("title", "url", "extra_data", "extra_json", "tags", "expires_at")
    )


def receipt_edit(newest: Notice) -> Document:
    """What makes receive records say that."""
    return _changed(receipt_said(newest), ("tags", "expires_at"))


def receipt_said(notice: Notice) -> Document:
    """What a receive record says of its notice that an edit may change."""
    said: Document = {"tags": list(notice.tags)} if notice.tags else {}
    if notice.expires_ms:
        said["expires_at"] = date(notice.expires_ms)
    return said


def _changed(said: Document, names: Sequence[str]) -> Document:
    gone = {name: "" for name in names if name not in said}
    return {**({"$set": said} if said else {}), **({"$unset": gone} if gone else {})}


def version_upsert(version: Version) -> UpdateOne:
    """What a notice said before, once."""
    notice = version.notice
    said: Document = {"content": notice.content, "title": notice.title, "url": notice.url, "tags": list(notice.tags)}
    if notice.data is not None:
        said |= extra_data(notice.data)
    if notice.expires_ms:
        said["expires_at"] = date(notice.expires_ms)
    replaced = {"replaced_at": date(version.at_ms), "editor_id": version.editor_id, "editor_name": version.editor_name}
    key = {"message_id": notice.message_id, "version": notice.version}
    return UpdateOne(key, {"$setOnInsert": {**said, **replaced, "created_at": date(notice.accepted_ms)}}, upsert=True)


def extra_data(data: Any) -> Document:
    """The field that holds a notice's data: `extra_data`, or as JSON `extra_json` where MongoDB could not have it."""
    data = parsed(data)
    if _is_storable(data):
        return {"extra_data": data}
    return {"extra_json": msgspec.json.encode(data).decode()}


def _is_storable(value: Any, level: int = 0) -> bool:
    match value:
        case bool() | None | str() | float():
            return True
        case int():
            return MIN_INT64 <= value <= MAX_INT64
        case dict():
            return level < MOST_LEVELS and all(
                _is_name(name) and _is_storable(item, level + 1) for name, item in value.items()
            )
        case list() | tuple():
            return level < MOST_LEVELS and all(_is_storable(item, level + 1) for item in value)
    return False


def _is_name(name: object) -> bool:
    return isinstance(name, str) and name != "" and not name.startswith("$") and not {".", "\0"} & set(name)
