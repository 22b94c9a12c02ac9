"""The handlers for stored records: push records, receive records, summaries, who is online."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from pushd import local_time as moments
from pushd.api import answers, views
from pushd.api.endpoint import Call
from pushd.api.forms import (
    Nothing,
    PeriodQuery,
    ReceiveRecordsQuery,
    ReceiveStatsQuery,
    RecordsQuery,
    StatsQuery,
    UserQuery,
    UsersBody,
)
from pushd.errors import ErrorCode, RequestError
from pushd.http.long_answers import Encoded, Long, encoded
from pushd.model import User
from pushd.records import OnlineStatus, PushFilter, ReceiptFilter, Slice

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

    from pushd.api.publishing import Api

FOREVER_MS = 2**53
RECEIPTS_AT_ONCE = 2_500  # asked of the store, while an answer is made of many more
USERS_AT_ONCE = 250


async def records(api: Api, call: Call[RecordsQuery, None]) -> Long:
    """GET /notification/records."""
    query = call.query
    where = _push_filter(query, api.current.timezone)
    await api.writers.records_written()
    async with api.list_turns.turn(call.identity.user_id):
        stats = await api.records.push_stats(where)
        rows = await api.records.push_records(where, query.sort_by, _slice(query))
        items = await encoded(rows, lambda row: views.push_view(row, api.current.timezone))
    return Long(
        views.Records(
            total=stats.total_records,
            page=query.page,
            page_size=query.page_size,
            items=items,
            stats=views.push_stats_view(stats),
        )
    )


async def stats(api: Api, call: Call[StatsQuery, None]) -> views.PushStatsView:
    """GET /notification/stats."""
    await api.writers.records_written()
    return views.push_stats_view(await api.records.push_stats(_push_filter(call.query, api.current.timezone)))


async def record(api: Api, call: Call[Nothing, None]) -> Long:
    """GET /notification/records/{message_id}."""
    message_id = call.params["message_id"]
    await api.writers.records_written()
    async with api.list_turns.turn(call.identity.user_id):
        row = await api.records.push_record(message_id)
        status = await api.records.receive_status(message_id)
        if row is None or status is None:
            raise answers.unknown_notice()
        shown = await encoded([row], lambda row: views.push_view(row, api.current.timezone), b"", b"")
    return Long(views.RecordDetail(record=shown, counts=views.status_view(status)))


async def delete(api: Api, call: Call[Nothing, None]) -> views.Deleted:
    """DELETE /notification/records/{message_id}."""
    message_id = call.params["message_id"]
    await api.writers.records_written()
    if not await api.records.delete(message_id):
        raise answers.unknown_notice()
    return views.Deleted(message_id=message_id)


async def receive_records(api: Api, call: Call[ReceiveRecordsQuery, None]) -> Long:
    """GET /notification/admin-receive-records."""
    query = call.query
    where = _receipt_filter(query, api.current.timezone)
    await api.writers.records_written()
    async with api.list_turns.turn(call.identity.user_id):
        rows = await api.records.receive_records(where, query.sort_by, _slice(query))
        counts = await api.records.receive_stats(where)  # a store may have counted them for the page
        items = await encoded(rows, lambda row: views.receipt_view(row, api.current.timezone))
    return Long(
        views.ReceiveRecords(
            total=counts.total_users,
            page=query.page,
            page_size=query.page_size,
            items=items,
            stats=views.receipt_stats_view(counts),
        )
    )


async def receive_records_of_users(api: Api, call: Call[Nothing, UsersBody]) -> Long:
    """POST /notification/receive-records/batch."""
    user_ids = list(dict.fromkeys(call.body.user_ids))
    limit = call.body.limit
    at_once = max(1, RECEIPTS_AT_ONCE // limit)
    await api.writers.records_written()
    text = Encoded()
    separator = b"{"
    async with api.bulk_turns.turn(call.identity.user_id):
        for start in range(0, len(user_ids), at_once):
            chunk = user_ids[start : start + at_once]
            found = await api.records.newest_receive_records(chunk, limit)
            for user_id in chunk:
                rows = found.pop(user_id, [])
                before = b'%b"%d":[' % (separator, user_id)
                text.join(await encoded(rows, lambda row: views.receipt_view(row, api.current.timezone), before))
                separator = b","
    text.add(b"}")
    return Long(text)


async def receive_totals(api: Api, call: Call[ReceiveStatsQuery, None]) -> Long:
    """GET /notification/admin-receive-stats."""
    since_ms, before_ms = _period(call.query, api.current.timezone)
    await api.writers.records_written()
    where = ReceiptFilter(since_ms=since_ms, before_ms=before_ms)
    async with api.list_turns.turn(call.identity.user_id):
        total = await api.records.receive_stats(where)
        counted = await api.records.user_receipts(since_ms or 0, before_ms or FOREVER_MS, call.query.limit)
        users = await encoded(counted, views.user_receipts_view)
    return Long(views.ReceiveTotals(total=views.receipt_stats_view(total), users=users))


async def user_summary(api: Api, call: Call[UserQuery, None]) -> views.Summary:
    """GET /notification/user-summary."""
    user_id = call.user(call.query.user_id)
    await api.writers.records_written()
    summary = await api.records.user_summary(user_id)
    last_ms = summary.last_message_ms
    return views.Summary(
        user_id=user_id,
        unread_count=summary.unread_count,
        total_count=summary.total_count,
        last_message_time=views.moment(last_ms, api.current.timezone) if last_ms else None,
        online_status=api.hub.has_user(user_id),
    )


async def online_users(api: Api, call: Call[Nothing, None]) -> Long:
    """GET /notification/online-users: the hub's truth, with what is stored of these users."""
    text = Encoded()
    total = 0
    separator = b"["
    async with api.bulk_turns.turn(call.identity.user_id):
        user_ids = api.hub.user_ids()
        for start in range(0, len(user_ids), USERS_AT_ONCE):
            shown = await _online_users(api, user_ids[start : start + USERS_AT_ONCE])
            if shown:
                total += len(shown)
                text.join(await encoded(shown, lambda one: one, separator, b""))
                separator = b","
    text.add(b"]" if total else b"[]")
    now = moments.local_time(api.wall_ms(), api.current.timezone)
    return Long(views.OnlineUsers(total_online=total, users=cast(Any, text), timestamp=now))


async def _online_users(api: Api, user_ids: list[int]) -> list[views.OnlineUser]:
    stored = await api.statuses(user_ids)
    known = await api.directory.users(user_ids)
    shown = []
    for user_id in user_ids:
        connections = api.hub.connections_of(user_id)
        if connections:  # else gone meanwhile
            shown.append(_online_user(api, known.get(user_id, User(user_id)), connections, stored.get(user_id)))
    return shown


def _online_user(api: Api, user: User, connections: list[Any], stored: OnlineStatus | None) -> views.OnlineUser:
    oldest = connections[0]
    client = oldest.details
    return views.OnlineUser(
        user_id=user.user_id,
        username=client.username or user.username,
        role=client.role or user.role,
        connections=len(connections),
        connection_id=oldest.conn_id,
        client_ip=client.client_ip,
        user_agent=client.user_agent,
        connected_at=views.moment(client.connected_ms, api.current.timezone),
        total_online_count=stored.total_online_count if stored else 1,
        total_online_time_s=(stored.total_online_ms if stored else 0) / 1000,
    )


def _slice(query: RecordsQuery | ReceiveRecordsQuery) -> Slice:
    offset = (query.page - 1) * query.page_size
    return Slice(offset=offset, limit=query.page_size, is_descending=query.sort_order == "desc")


def _push_filter(query: StatsQuery, timezone: ZoneInfo) -> PushFilter:
    since_ms, before_ms = _period(query, timezone)
    return PushFilter(
        message_type=query.message_type,
        target=query.target,
        status=query.status,
        success=query.success,
        sender_id=query.sender_id,
        since_ms=since_ms,
        before_ms=before_ms,
        keyword=query.keyword,
    )


def _receipt_filter(query: ReceiveRecordsQuery, timezone: ZoneInfo) -> ReceiptFilter:
    since_ms, before_ms = _period(query, timezone)
    return ReceiptFilter(
        message_id=query.message_id,
        user_id=query.user_id,
        username=query.username,
        is_online=query.is_online,
        is_received=query.is_received,
        is_read=query.is_read,
        is_confirmed=query.is_confirmed,
        delivery_status=query.delivery_status,
        push_channel=query.push_channel,
        since_ms=since_ms,
        before_ms=before_ms,
    )


def _period(query: PeriodQuery, timezone: ZoneInfo) -> tuple[int | None, int | None]:
    since_ms = _moment("start_date", query.start_date, moments.since_ms, timezone)
    return since_ms, _moment("end_date", query.end_date, moments.before_ms, timezone)


def _moment(field: str, text: str | None, parse: Callable[[str, ZoneInfo], int], timezone: ZoneInfo) -> int | None:
    if text is None:
        return None
    try:
        return parse(text, timezone)
    except ValueError as error:
        raise RequestError(ErrorCode.INVALID_REQUEST, f"{field}: {error}", details={"field": field}) from None
