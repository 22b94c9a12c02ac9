"""Push records, the notices as they are stored: lists of them, sums over them, each of them, and their end.

Times are RFC 3339 in `server.timezone`, null for never.
"""

from __future__ import annotations

from typing import Annotated, Any
from zoneinfo import ZoneInfo

import msgspec
from msgspec import Meta

from pushd.api import answers
from pushd.api.answers import AnswerTurns
from pushd.api.endpoint import Call
from pushd.api.forms import Nothing, Order, Page, PageSize, PeriodQuery, Text, part_of
from pushd.api.receipts import StatusView, status_view
from pushd.config.current import CurrentConfig
from pushd.delivery.schedule import Schedule
from pushd.errors import ErrorCode, RequestError
from pushd.http.long_answers import Long, encoded
from pushd.local_time import rfc3339, rfc3339_or_none
from pushd.model import TargetKind, UserId
from pushd.ports import RecordStore
from pushd.records import PushFilter, PushRow, PushSort, PushStats, RecordState
from pushd.user_ids import GivenSenderId
from pushd.writing.writers import Writers


class StatsQuery(PeriodQuery, frozen=True):
    """Which push records."""

    message_type: Text | None = None
    target: TargetKind | None = None
    status: Text | None = None
    success: bool | None = None
    sender_id: GivenSenderId | None = None
    keyword: Annotated[Text, Meta(description="A part of the content; no pattern.")] | None = None
    tag: Text | None = None
    state: RecordState | None = None

    def filter(self, timezone: ZoneInfo) -> PushFilter:
        """Which records are meant. Raises RequestError."""
        since_ms, before_ms = self.bounds(timezone)
        return PushFilter(
            message_type=self.message_type,
            target=self.target,
            status=self.status,
            success=self.success,
            sender_id=self.sender_id,
            since_ms=since_ms,
            before_ms=before_ms,
            keyword=self.keyword,
            tag=self.tag,
            state=self.state,
        )


class RecordsQuery(StatsQuery, frozen=True):
    """A page of push records."""

    page: Page = 1
    page_size: PageSize = 10
    sort_by: PushSort = PushSort.PUSH_TIME
    sort_order: Order = "desc"


class PushView(msgspec.Struct):
    """A push record. `state` is `scheduled`, `sent`, `cancelled`, `revoked` or `expired`. One that was scheduled has
    `send_at`, and its `push_time` is that until it goes out."""

    message_id: str
    content: str
    message_type: str
    target: str
    target_user_ids: list[UserId] | None
    target_roles: list[int] | None
    recipients_count: str
    status: str
    success: bool
    error: str | None
    push_time: str
    expires_at: str | None
    sender_id: UserId
    sender_name: str
    priority: int
    need_confirm: bool
    extra_data: Any
    total_count: int
    online_count: int
    delivered_count: int
    failed_count: int
    created_at: str
    updated_at: str
    state: str
    title: str | msgspec.UnsetType = msgspec.UNSET
    url: str | msgspec.UnsetType = msgspec.UNSET
    tags: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    target_groups: list[str] | msgspec.UnsetType = msgspec.UNSET
    send_at: str | msgspec.UnsetType = msgspec.UNSET
    version: int | msgspec.UnsetType = msgspec.UNSET  # from 2 on


class PushStatsView(msgspec.Struct):
    """Sums over push records."""

    total_records: int
    success_records: int
    failed_records: int
    total_recipients: int
    delivered_count: int
    failed_count: int


class Records(msgspec.Struct):
    """A page of push records; `stats` are over all that match."""

    total: int
    page: int
    page_size: int
    items: list[PushView]
    stats: PushStatsView


class RecordDetail(msgspec.Struct):
    """One push record, and how far it came."""

    record: PushView
    counts: StatusView


class Cancelled(msgspec.Struct):
    """A notice that never goes out."""

    message_id: str
    status: str = "cancelled"
    success: bool = True


class Deleted(msgspec.Struct):
    """A record that is gone."""

    message_id: str
    success: bool = True


def push_view(row: PushRow, timezone: ZoneInfo) -> PushView:
    """A push record for people: times written out, without a title, a url, tags and groups where it has none."""
    fields = answers.without_empty(msgspec.structs.asdict(row), "title", "url", "tags", "target_groups")
    send_at_ms = fields.pop("send_at_ms")
    if row.version < 2:
        del fields["version"]
    return PushView(
        send_at=rfc3339(send_at_ms, timezone) if send_at_ms else msgspec.UNSET,
        push_time=rfc3339(fields.pop("push_ms"), timezone),
        expires_at=rfc3339_or_none(fields.pop("expires_ms"), timezone),
        created_at=rfc3339(fields.pop("created_ms"), timezone),
        updated_at=rfc3339(fields.pop("updated_ms"), timezone),
        **fields,
    )


def push_stats_view(stats: PushStats) -> PushStatsView:
    """The same fields."""
    return PushStatsView(**msgspec.structs.asdict(stats))


class RecordHandlers:
    """Lists, shows and deletes push records, and cancels what is scheduled."""

    def __init__(
        self,
        records: RecordStore,
        schedule: Schedule,
        writers: Writers,
        current: CurrentConfig,
        turns: AnswerTurns,
    ) -> None:
        self._records = records
        self._schedule = schedule
        self._writers = writers
        self._current = current
        self._turns = turns

    async def page(self, call: Call[RecordsQuery, None]) -> Long:
        """GET /notification/records."""
        query = call.query
        where = query.filter(self._current.timezone)
        part = part_of(query.page, query.page_size, query.sort_order)
        await self._writers.records_written()
        async with self._turns.lists.turn(call.identity.user_id):
            stats = await self._records.push_stats(where)
            rows = await self._records.push_records(where, query.sort_by, part)
            items = await encoded(rows, self._view)
        return Long(
            Records(
                total=stats.total_records,
                page=query.page,
                page_size=query.page_size,
                items=items,
                stats=push_stats_view(stats),
            )
        )

    async def stats(self, call: Call[StatsQuery, None]) -> PushStatsView:
        """GET /notification/stats."""
        await self._writers.records_written()
        return push_stats_view(await self._records.push_stats(call.query.filter(self._current.timezone)))

    async def detail(self, call: Call[Nothing, None]) -> Long:
        """GET /notification/records/{message_id}."""
        message_id = call.params["message_id"]
        await self._writers.records_written()
        async with self._turns.lists.turn(call.identity.user_id):
            row = await self._records.push_record(message_id)
            status = await self._records.receive_status(message_id)
            if row is None or status is None:
                raise answers.unknown_notice()
            shown = await encoded([row], self._view, b"", b"")
        return Long(RecordDetail(record=shown, counts=status_view(status)))

    def _view(self, row: PushRow) -> PushView:
        return push_view(row, self._current.timezone)

    async def delete(self, call: Call[Nothing, None]) -> Deleted:
        """DELETE /notification/records/{message_id}."""
        message_id = call.params["message_id"]
        await self._schedule.cancel(message_id)
        await self._writers.records_written()
        is_dropped = await self._records.delete(message_id)
        if not await self._schedule.drop(message_id) and not is_dropped:
            raise answers.unknown_notice()
        return Deleted(message_id=message_id)

    async def cancel(self, call: Call[Nothing, None]) -> Cancelled:
        """POST /notification/records/{message_id}/cancel."""
        message_id = call.params["message_id"]
        if not await self._schedule.cancel(message_id):
            await self._writers.records_written()
            if await self._records.push_record(message_id) is None:
                raise answers.unknown_notice()
            text = "message_id: the notice has gone out, expected one that is scheduled"
            raise RequestError(ErrorCode.CONFLICT, text, details={"field": "message_id"})
        return Cancelled(message_id=message_id)
