"""The filters, orders, aggregations and rows of receive records. Of dates as texts, see push_queries."""

from __future__ import annotations

from collections.abc import Sequence
from zoneinfo import ZoneInfo

from pymongo import ASCENDING, DESCENDING, UpdateMany

from pushd.model import Mark, UserId
from pushd.records import Part, ReceiptFilter, ReceiptRow, ReceiptSort
from pushd.stores.mongo.connection import Document, Write
from pushd.stores.mongo.counts import sum_if
from pushd.stores.mongo.documents import (
    RECEIVE_RECORDS,
    date,
    flag,
    milliseconds,
    number,
    optional_text,
    plain,
    stored_id,
    text,
)
from pushd.stores.mongo.push_queries import Sort, containing, flag_condition, time_condition
from pushd.user_ids import UserIds
from pushd.values import usable_tags

EQUAL = ("message_id", "user_id", "delivery_status", "push_channel")
FLAGS = ("is_online", "is_received", "is_read", "is_confirmed")
BY_USER = [("user_id", ASCENDING), ("is_archived", ASCENDING), ("created_at", DESCENDING)]  # an index
THERE: Document = {"delivery_status": {"$ne": "expired"}, "is_revoked": {"$ne": True}}  # in inboxes
UNREAD: Document = {"is_read": {"$ne": True}, "is_archived": {"$in": [None, False]}, **THERE}

_TOTALS: Document = {"total": {"$sum": 1}, **{name: sum_if({"$eq": [f"${name}", True]}) for name in FLAGS}}


def condition(where: ReceiptFilter, zone: ZoneInfo) -> Document:
    """The filter as MongoDB has it."""
    conditions: Document = {name: plain(value) for name in EQUAL if (value := getattr(where, name)) is not None}
    for name in FLAGS:
        conditions |= flag_condition(name, getattr(where, name))
    if where.username:
        conditions["username"] = containing(where.username)
    if where.tag is not None:
        conditions["tags"] = plain(where.tag)
    return conditions | time_condition("created_at", where.since_ms, where.before_ms, zone)


def order(sort: ReceiptSort, part: Part) -> Sort:
    """No ties: message_id and user_id together are unique. The order of users has each one's newest first."""
    direction = DESCENDING if part.is_descending else ASCENDING
    match sort:
        case ReceiptSort.CREATED_AT:
            keys = ["created_at", "message_id", "user_id"]
        case ReceiptSort.USER_ID:
            return [("user_id", direction), ("created_at", -direction), ("message_id", direction)]
        case ReceiptSort.USERNAME:
            users = [("username", direction), ("user_id", direction)]
            return [*users, ("created_at", -direction), ("message_id", direction)]
        case _:
            keys = [sort.value, "user_id", "message_id"]
    return [(key, direction) for key in keys]


def totals(where: Document) -> list[Document]:
    """Counts `total` and every flag over what matches; nothing for no match."""
    return [{"$match": where}, {"$group": {"_id": None, **_TOTALS}}]


def not_over(now_ms: int) -> Document:
    """Of notices that have not expired by then, as far as the receive record says so."""
    return {"expires_at": {"$not": {"$lte": date(now_ms)}}}


def unread_of(user_ids: Sequence[UserId], now_ms: int) -> Document:
    """Unread receive records of these users, of notices neither expired nor revoked."""
    whose: object = user_ids[0] if len(user_ids) == 1 else {"$in": list(user_ids)}
    return {"user_id": whose, **UNREAD, **not_over(now_ms)}


def unread(user_ids: Sequence[UserId], now_ms: int) -> list[Document]:
    """These counted by user; `older`: how many of them do not say when their notice expires."""
    is_older = {"$eq": [{"$ifNull": ["$message_type", None]}, None]}
    counts: Document = {"n": {"$sum": 1}, "older": sum_if(is_older)}
    return [{"$match": unread_of(user_ids, now_ms)}, {"$group": {"_id": "$user_id", **counts}}]


def summary(user_id: UserId) -> list[Document]:
    """`total` and `last` of one user."""
    numbers = {"total": {"$sum": 1}, "last": {"$max": "$created_at"}}
    return [{"$match": {"user_id": user_id}}, {"$group": {"_id": None, **numbers}}]


def by_user(created: Document, limit: int) -> list[Document]:
    """Counts by user, busiest first, each under the name of the newest record. Costs what was created in that time."""
    counted = ("total", "is_received", "is_read", "is_confirmed")
    named = {"_id": {"user": "$user_id", "name": "$username"}, "last": {"$max": "$created_at"}}
    return [
        {"$match": created},
        {"$group": {**named, **{name: _TOTALS[name] for name in counted}}},
        {"$sort": {"last": ASCENDING}},
        {
            "$group": {
                "_id": "$_id.user",
                "name": {"$last": "$_id.name"},
                **{name: {"$sum": f"${name}"} for name in counted},
            }
        },
        {"$sort": {"total": DESCENDING, "_id": ASCENDING}},
        {"$limit": limit},
    ]


def mark_writes(mine: Document, mark: Mark, at_ms: int, *, archives: bool = False) -> list[Write]:
    """Who has read it has received it. Times that are null are taken away: null is the least there is for $min.

    The order of the writes makes a difference to such foreign records only, and a second mark sets it right.
    """
    flags = ["is_received", "is_read"]
    times = ["received_at", "read_at"]
    if mark is Mark.CONFIRMED:
        flags.append("is_confirmed")
        times.append("confirmed_at")
    if archives:
        flags.append("is_archived")
        times.append("archived_at")
    earliest = {**dict.fromkeys(times, date(at_ms)), "delivery_status": "delivered"}
    latest = {**dict.fromkeys(flags, True), "updated_at": date(at_ms)}
    merge = UpdateMany(mine, {"$min": earliest, "$max": latest})
    return [*(UpdateMany({**mine, name: {"$type": "null"}}, {"$unset": {name: ""}}) for name in times), merge]


def newest(user_ids: Sequence[UserId], limit: int, *, is_exact: bool) -> list[Document]:
    """Each user's newest `limit`, one user after the other, found by the index on user_id and created_at.

    Which of several of the same moment come is right with `is_exact` only, which reads all of the user's records.
    """
    order = {"created_at": DESCENDING} | ({"message_id": DESCENDING} if is_exact else {})
    parts: list[list[Document]] = [
        [{"$match": {"user_id": user_id}}, {"$sort": order}, {"$limit": limit}] for user_id in user_ids
    ]
    unions: list[Document] = [{"$unionWith": {"coll": RECEIVE_RECORDS, "pipeline": part}} for part in parts[1:]]
    return [*parts[0], *unions]


def receipt_row(found: Document, zone: ZoneInfo, ids: UserIds) -> ReceiptRow:
    """A document, whoever wrote it."""
    return ReceiptRow(
        message_id=text(found.get("message_id")),
        user_id=stored_id(found.get("user_id"), ids),
        username=text(found.get("username")),
        user_role=number(found.get("user_role")),
        is_online=flag(found.get("is_online")),
        is_received=flag(found.get("is_received")),
        received_ms=milliseconds(found.get("received_at"), zone),
        is_read=flag(found.get("is_read")),
        read_ms=milliseconds(found.get("read_at"), zone),
        is_confirmed=flag(found.get("is_confirmed")),
        confirmed_ms=milliseconds(found.get("confirmed_at"), zone),
        device_type=text(found.get("device_type")),
        platform=text(found.get("platform")),
        browser=text(found.get("browser")),
        client_ip=text(found.get("client_ip")),
        user_agent=text(found.get("user_agent")),
        connection_id=text(found.get("connection_id")),
        push_channel=text(found.get("push_channel")),
        delivery_status=text(found.get("delivery_status")),
        retry_count=number(found.get("retry_count")),
        error_message=optional_text(found.get("error_message")),
        created_ms=milliseconds(found.get("created_at"), zone),
        updated_ms=milliseconds(found.get("updated_at"), zone),
        message_type=text(found.get("message_type")),
        tags=usable_tags(found.get("tags")),
        expires_ms=milliseconds(found.get("expires_at"), zone),
        confirmed_version=max(1, number(found.get("confirmed_version"), 1)) if flag(found.get("is_confirmed")) else 0,
    )
