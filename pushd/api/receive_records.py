"""Receive records, the receipts of notices as they are stored: lists of them, and counts by user.

Times are RFC 3339 in `server.timezone`, null for never; rates are percent with two decimals.
"""

from __future__ import annotations

from typing import Annotated
from zoneinfo import ZoneInfo

import msgspec
from msgspec import Meta

from pushd.api.answers import AnswerTurns, without_empty
from pushd.api.endpoint import Call
from pushd.api.forms import Nothing, Order, Page, PageSize, PeriodQuery, Text, part_of
from pushd.api.receipts import rate, status_view
from pushd.config.current import CurrentConfig
from pushd.http.long_answers import Encoded, Long, encoded
from pushd.local_time import rfc3339, rfc3339_or_none
from pushd.model import Channel, DeliveryStatus, GivenUserId, UserId
from pushd.ports import RecordStore
from pushd.protocol.frames import MessageId
from pushd.records import ReceiptFilter, ReceiptRow, ReceiptSort, ReceiptStats, UserReceipts
from pushd.writing.writers import Writers

END_OF_TIME_MS = 2**53  # after whatever is stored, also what others wrote for times that no calendar has
RECEIPTS_AT_ONCE = 2_500  # asked of the store, while an answer is made of many more


class ReceiveRecordsQuery(PeriodQuery, frozen=True):
    """A page of receive records."""

    page: Page = 1
    page_size: PageSize = 10
    message_id: MessageId | None = None
    user_id: GivenUserId | None = None
    username: Annotated[Text, Meta(description="A part of the name; no pattern.")] | None = None
    is_online: bool | None = None
    is_received: bool | None = None
    is_read: bool | None = None
    is_confirmed: bool | None = None
    delivery_status: DeliveryStatus | None = None
    push_channel: Channel | None = None
    tag: Text | None = None
    sort_by: ReceiptSort = ReceiptSort.CREATED_AT
    sort_order: Order = "desc"

    def filter(self, timezone: ZoneInfo) -> ReceiptFilter:
        """Which records are meant. Raises RequestError."""
        since_ms, before_ms = self.bounds(timezone)
        return ReceiptFilter(
            message_id=self.message_id,
            user_id=self.user_id,
            username=self.username,
            is_online=self.is_online,
            is_received=self.is_received,
            is_read=self.is_read,
            is_confirmed=self.is_confirmed,
            delivery_status=self.delivery_status,
            push_channel=self.push_channel,
            since_ms=since_ms,
            before_ms=before_ms,
            tag=self.tag,
        )


class ReceiveStatsQuery(PeriodQuery, frozen=True):
    """Receive records counted by user."""

    limit: Annotated[int, Meta(ge=1, le=1000, description="Users at most.")] = 100


class UsersBody(msgspec.Struct):
    """Whose receive records, and how many of each."""

    user_ids: Annotated[list[GivenUserId], Meta(min_length=1, max_length=1000)]
    limit: Annotated[int, Meta(ge=1, le=100)] = 20


class ReceiptView(msgspec.Struct):
    """A receive record."""

    message_id: str
    user_id: UserId
    username: str
    user_role: int
    is_online: bool
    is_received: bool
    received_at: str | None
    is_read: bool
    read_at: str | None
    is_confirmed: bool
    confirmed_at: str | None
    device_type: str
    platform: str
    browser: str
    client_ip: str
    user_agent: str
    connection_id: str
    push_channel: str
    delivery_status: str
    retry_count: int
    error_message: str | None
    created_at: str
    updated_at: str
    message_type: str
    expires_at: str | None
    tags: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    confirmed_version: int | msgspec.UnsetType = msgspec.UNSET  # from 2 on


class ReceiptStatsView(msgspec.Struct):
    """Counts and rates over receive records."""

    total_users: int
    online_users: int
    received_users: int
    read_users: int
    confirmed_users: int
    receive_rate: float
    read_rate: float
    confirm_rate: float
    online_rate: float


class ReceiveRecords(msgspec.Struct):
    """A page of receive records; `stats` are over all that match."""

    total: int
    page: int
    page_size: int
    items: list[ReceiptView]
    stats: ReceiptStatsView


class UserReceiptsView(msgspec.Struct):
    """One user's receive records, counted."""

    user_id: UserId
    username: str
    total_count: int
    received_count: int
    read_count: int
    confirmed_count: int
    receive_rate: float
    read_rate: float
    confirm_rate: float


class ReceiveTotals(msgspec.Struct):
    """Totals over a time, and the users with the most notices in it."""

    total: ReceiptStatsView
    users: list[UserReceiptsView]


ReceiptsByUser = dict[str, list[ReceiptView]]  # by `user_id`


def receipt_view(row: ReceiptRow, timezone: ZoneInfo) -> ReceiptView:
    """A receive record for people: times written out."""
    fields = without_empty(msgspec.structs.asdict(row), "tags")
    if row.confirmed_version < 2:
        del fields["confirmed_version"]
    return ReceiptView(
        received_at=rfc3339_or_none(fields.pop("received_ms"), timezone),
        read_at=rfc3339_or_none(fields.pop("read_ms"), timezone),
        confirmed_at=rfc3339_or_none(fields.pop("confirmed_ms"), timezone),
        created_at=rfc3339(fields.pop("created_ms"), timezone),
        updated_at=rfc3339(fields.pop("updated_ms"), timezone),
        expires_at=rfc3339_or_none(fields.pop("expires_ms"), timezone),
        **fields,
    )


def receipt_stats_view(stats: ReceiptStats) -> ReceiptStatsView:
    """Counts with their rates."""
    online_rate = rate(stats.online_users, stats.total_users)
    return ReceiptStatsView(**msgspec.structs.asdict(status_view(stats)), online_rate=online_rate)


def user_receipts_view(user: UserReceipts) -> UserReceiptsView:
    """Counts with their rates."""
    return UserReceiptsView(
        **msgspec.structs.asdict(user),
        receive_rate=rate(user.received_count, user.total_count),
        read_rate=rate(user.read_count, user.total_count),
        confirm_rate=rate(user.confirmed_count, user.total_count),
    )


class ReceiveRecordHandlers:
    """Lists and counts receive records."""

    def __init__(self, records: RecordStore, writers: Writers, current: CurrentConfig, turns: AnswerTurns) -> None:
        self._records = records
        self._writers = writers
        self._current = current
        self._turns = turns

    async def page(self, call: Call[ReceiveRecordsQuery, None]) -> Long:
        """GET /notification/admin-receive-records."""
        query = call.query
        where = query.filter(self._current.timezone)
        part = part_of(query.page, query.page_size, query.sort_order)
        await self._writers.records_written()
        async with self._turns.lists.turn(call.identity.user_id):
            rows = await self._records.receive_records(where, query.sort_by, part)
            counts = await self._records.receive_stats(where)  # a store may have counted them for the page
            items = await encoded(rows, lambda row: receipt_view(row, self._current.timezone))
        return Long(
            ReceiveRecords(
                total=counts.total_users,
                page=query.page,
                page_size=query.page_size,
                items=items,
                stats=receipt_stats_view(counts),
            )
        )

    async def of_users(self, call: Call[Nothing, UsersBody]) -> Long:
        """POST /notification/receive-records/batch."""
        user_ids = list(dict.fromkeys(call.body.user_ids))
        await self._writers.records_written()
        async with self._turns.bulk.turn(call.identity.user_id):
            return Long(await self._newest_of(user_ids, call.body.limit))

    async def _newest_of(self, user_ids: list[UserId], limit: int) -> Encoded:
        at_once = max(1, RECEIPTS_AT_ONCE // limit)
        text = Encoded()
        separator = b"{"
        for start in range(0, len(user_ids), at_once):
            chunk = user_ids[start : start + at_once]
            found = await self._records.newest_receive_records(chunk, limit)
            for user_id in chunk:
                rows = found.pop(user_id, [])
                before = b'%b"%b":[' % (separator, str(user_id).encode())
                text.join(await encoded(rows, lambda row: receipt_view(row, self._current.timezone), before))
                separator = b","
        text.add(b"}")
        return text

    async def totals(self, call: Call[ReceiveStatsQuery, None]) -> Long:
        """GET /notification/admin-receive-stats."""
        since_ms, before_ms = call.query.bounds(self._current.timezone)
        await self._writers.records_written()
        where = ReceiptFilter(since_ms=since_ms, before_ms=before_ms)
        async with self._turns.lists.turn(call.identity.user_id):
            total = await self._records.receive_stats(where)
            counted = await self._records.user_receipts(since_ms or 0, before_ms or END_OF_TIME_MS, call.query.limit)
            users = await encoded(counted, user_receipts_view)
        return Long(ReceiveTotals(total=receipt_stats_view(total), users=users))
