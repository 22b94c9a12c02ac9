"""The filters, orders and rows of push records.

Dates that the former program left as texts are compared as texts, "YYYY-MM-DD HH:MM:SS" in the server's time zone:
right for those in that form; for ISO texts ("…T…") only to the day, since "T" comes after " ". Sorted, all texts come
before all dates.
"""

from __future__ import annotations

import re
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
from pymongo import ASCENDING, DESCENDING

from pushd.records import Part, PushFilter, PushRow, PushSort, RecordState
from pushd.stores.mongo.connection import Document
from pushd.stores.mongo.documents import (
    as_text,
    date,
    flag,
    milliseconds,
    number,
    numbers,
    optional_text,
    plain,
    stored_id,
    stored_ids,
    text,
    texts,
)
from pushd.user_ids import UserIds
from pushd.values import usable_link, usable_tags, usable_title

EQUAL = ("message_type", "target", "status", "sender_id")

Sort = list[tuple[str, int]]


NOT_SENT = (RecordState.SCHEDULED.value, RecordState.CANCELLED.value)  # statuses as well


def condition(where: PushFilter, zone: ZoneInfo, now_ms: int = 0) -> Document:
    """The filter as MongoDB has it. `now_ms`: what is to have expired for a state."""
    conditions: Document = {
        name: plain(value) for name in EQUAL if (value := getattr(where, name)) is not None
    } | flag_condition("success", where.success)
    if where.keyword:
        conditions["content"] = containing(where.keyword)
    if where.tag is not None:
        conditions["tags"] = plain(where.tag)
    if where.state is not None:
        conditions["$and"] = [_state_condition(where.state, now_ms)]
    return conditions | time_condition("push_time", where.since_ms, where.before_ms, zone)


def _state_condition(state: RecordState, now_ms: int) -> Document:
    """As `state_of` says it. Records of notices that were never scheduled need not have a state."""
    if state.value in NOT_SENT:
        return {"status": state.value, "state": {"$ne": RecordState.REVOKED.value}}
    if state is RecordState.REVOKED:
        return {"state": state.value}
    is_over = {"$lte": date(now_ms)}
    return {
        "status": {"$nin": list(NOT_SENT)},
        "state": {"$ne": RecordState.REVOKED.value},
        "expires_at": is_over if state is RecordState.EXPIRED else {"$not": is_over},
    }


def state_of(found: Document, zone: ZoneInfo, now_ms: int) -> RecordState:
    """How far the notice of a document is."""
    status = text(found.get("status"))
    if found.get("state") == RecordState.REVOKED.value:
        return RecordState.REVOKED
    if status in NOT_SENT:
        return RecordState(status)
    return RecordState.EXPIRED if 0 < milliseconds(found.get("expires_at"), zone) <= now_ms else RecordState.SENT


def order(sort: PushSort, part: Part) -> Sort:
    """Ties by push_time and message_id, which is unique."""
    direction = DESCENDING if part.is_descending else ASCENDING
    return [(name, direction) for name in dict.fromkeys((sort.value, "push_time", "message_id"))]


def flag_condition(name: str, wanted: bool | None) -> Document:
    """A flag that is missing is not set."""
    if wanted is None:
        return {}
    return {name: True if wanted else {"$ne": True}}


def containing(part: str) -> Document:
    """Texts that have this part in either case; whatever it is, it is no pattern."""
    return {"$regex": re.escape(part).replace("\0", r"\x00"), "$options": "i"}


def time_condition(name: str, since_ms: int | None, before_ms: int | None, zone: ZoneInfo) -> Document:
    """Dates as dates, and texts as texts: MongoDB compares only values of one type."""
    bounds = [(operator, at) for operator, at in (("$gte", since_ms), ("$lt", before_ms)) if at is not None]
    if not bounds:
        return {}
    dates = {operator: date(at) for operator, at in bounds}
    texts = {operator: as_text(at, zone) for operator, at in bounds}
    return {"$or": [{name: dates}, {name: texts}]}


def push_row(found: Document, delivered: int, failed: int, zone: ZoneInfo, ids: UserIds, now_ms: int = 0) -> PushRow:
    """A document, whoever wrote it, with the counts of its receive records."""
    submitted_ms = milliseconds(found.get("submitted_at"), zone)
    return PushRow(
        message_id=text(found.get("message_id")),
        content=text(found.get("content")),
        message_type=text(found.get("message_type")),
        target=text(found.get("target")),
        target_user_ids=stored_ids(found.get("target_user_ids"), ids),
        target_roles=numbers(found.get("target_roles")),
        recipients_count=text(found.get("recipients_count")),
        status=text(found.get("status")),
        success=flag(found.get("success")),
        error=optional_text(found.get("error")),
        push_ms=milliseconds(found.get("push_time"), zone),
        expires_ms=milliseconds(found.get("expires_at"), zone),
        sender_id=stored_id(found.get("sender_id"), ids),
        sender_name=text(found.get("sender_name")),
        priority=number(found.get("priority"), 1),
        need_confirm=flag(found.get("need_confirm")),
        extra_data=extra_data_of(found),
        total_count=number(found.get("total_count")),
        online_count=number(found.get("online_count")),
        delivered_count=delivered,
        failed_count=failed,
        created_ms=submitted_ms or milliseconds(found.get("created_at"), zone),
        state=state_of(found, zone, now_ms).value,
        send_at_ms=milliseconds(found.get("send_at"), zone),
        updated_ms=milliseconds(found.get("updated_at"), zone),
        title=usable_title(found.get("title")),
        url=usable_link(found.get("url")),
        tags=usable_tags(found.get("tags")),
        target_groups=texts(found.get("target_groups")),
        version=max(1, number(found.get("version"), 1)),
    )


def extra_data_of(found: Document) -> Any:
    """A notice's data, as records_write stores it."""
    json = found.get("extra_json")
    if isinstance(json, str):
        try:
            return msgspec.json.decode(str(json))
        except (msgspec.DecodeError, RecursionError):
            return str(json)
    return plain(found.get("extra_data"))
