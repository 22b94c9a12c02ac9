"""What answers contain: one struct per `data`. They encode the answers and make `/openapi.json`.

Times of records are RFC 3339 in `server.timezone`, null for never; rates are percent with two decimals.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import msgspec

from pushd.model import MailboxItem
from pushd.records import PushRow, PushStats, ReceiptRow, ReceiptStats, UserReceipts
from pushd.values import MAX_MS, MIN_MS


class Published(msgspec.Struct, omit_defaults=True):
    """A publish that was accepted; the counts are there when it was waited for."""

    success: bool
    message: str
    message_id: str
    push_time: str
    target: str
    message_type: str
    recipients_count: str
    status: str
    duplicate: bool
    total_count: int | msgspec.UnsetType = msgspec.UNSET
    online_count: int | msgspec.UnsetType = msgspec.UNSET
    offline_count: int | msgspec.UnsetType = msgspec.UNSET
    delivered_count: int | msgspec.UnsetType = msgspec.UNSET


class Refused(msgspec.Struct):
    """A notice of a batch that was refused."""

    code: int
    error: str
    message: str
    data: dict[str, Any]
    success: bool = False


class PublishedBatch(msgspec.Struct):
    """In the order of the request: each a `Published` or a `Refused` (a union msgspec cannot describe)."""

    items: list[Any]


class Marked(msgspec.Struct):
    """A mark that is on record."""

    message: str
    success: bool = True


class MarkError(msgspec.Struct):
    """A notice that could not be marked."""

    message_id: str
    error: str


class MarkedBatch(msgspec.Struct):
    """How many of the notices could be marked."""

    success_count: int
    failed_count: int
    total_count: int
    success_rate: float
    errors: list[MarkError]


class StatusView(msgspec.Struct):
    """How far one notice came."""

    total_users: int
    online_users: int
    received_users: int
    read_users: int
    confirmed_users: int
    receive_rate: float
    read_rate: float
    confirm_rate: float


class OfflineMessage(msgspec.Struct):
    """A notice that waits."""

    type: str
    content: str
    data: Any
    time: str
    ts: int
    message_id: str
    priority: int
    need_confirm: bool
    saved_at: int


class OfflineMessages(msgspec.Struct):
    """A mailbox, newest first."""

    user_id: int
    total_count: int
    offline_messages: list[OfflineMessage]
    query_time: str


class Cleared(msgspec.Struct):
    """A mailbox that was emptied."""

    user_id: int
    cleared_count: int


class PushView(msgspec.Struct):
    """A push record."""

    message_id: str
    content: str
    message_type: str
    target: str
    target_user_ids: list[int] | None
    target_roles: list[int] | None
    recipients_count: str
    status: str
    success: bool
    error: str | None
    push_time: str
    expires_at: str | None
    sender_id: int
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


class Deleted(msgspec.Struct):
    """A record that is gone."""

    message_id: str
    success: bool = True


class ReceiptView(msgspec.Struct):
    """A receive record."""

    message_id: str
    user_id: int
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

    user_id: int
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


class Summary(msgspec.Struct):
    """One user's notices."""

    user_id: int
    unread_count: int
    total_count: int
    last_message_time: str | None
    online_status: bool


class OnlineUser(msgspec.Struct):
    """A connected user: the oldest of the user's connections."""

    user_id: int
    username: str
    role: int
    connections: int
    connection_id: str
    client_ip: str
    user_agent: str
    connected_at: str
    total_online_count: int
    total_online_time_s: float


class OnlineUsers(msgspec.Struct):
    """Who is connected to this node."""

    total_online: int
    users: list[OnlineUser]
    timestamp: str


class Closed(msgspec.Struct):
    """Connections that were revoked."""

    closed: int


class Latency(msgspec.Struct):
    """Accepted to last socket written, over the last notices; milliseconds."""

    p50: float
    p99: float


class QueueSize(msgspec.Struct):
    """Waiting notices."""

    urgent: int
    high: int
    normal: int
    low: int


class Stats(msgspec.Struct):
    """What the node does. `error_rate`: errors per notice.

    `store_writers`: calls that may write to a store at the same time; `outbox_pending`: batches of writes on disk
    that wait for their store.
    """

    active_connections: int
    unique_users: int
    total_connections: int
    total_messages: int
    message_latency_ms: Latency
    queue_size: QueueSize
    worker_count: int
    worker_utilization: float
    error_rate: float
    dedup_hits: int
    offline_saved: int
    offline_delivered: int
    store_writers: dict[str, int]
    outbox_pending: dict[str, int]
    uptime_s: float


class NodeHealth(msgspec.Struct):
    """How the node is: healthy, degraded or unhealthy."""

    status: str
    active_connections: int
    queue_size: int
    worker_count: int
    last_error: str
    uptime: float
    stores: dict[str, str]
    set_aside: int


def rate(part: int, whole: int) -> float:
    """A percentage with 2 decimals; 0 of nothing."""
    return round(100 * part / whole, 2) if whole else 0.0


def moment(at_ms: int, timezone: ZoneInfo) -> str:
    """RFC 3339 with milliseconds; of what another program wrote, the nearest that can be said."""
    at_ms = max(MIN_MS, min(at_ms, MAX_MS))
    return datetime.fromtimestamp(at_ms / 1000, timezone).isoformat(timespec="milliseconds")


def _maybe(at_ms: int, timezone: ZoneInfo) -> str | None:
    return moment(at_ms, timezone) if at_ms else None


def status_view(status: ReceiptStats) -> StatusView:
    """Counts with their rates."""
    return StatusView(
        total_users=status.total_users,
        online_users=status.online_users,
        received_users=status.received_users,
        read_users=status.read_users,
        confirmed_users=status.confirmed_users,
        receive_rate=rate(status.received_users, status.total_users),
        read_rate=rate(status.read_users, status.total_users),
        confirm_rate=rate(status.confirmed_users, status.total_users),
    )


def receipt_stats_view(stats: ReceiptStats) -> ReceiptStatsView:
    """Counts with their rates."""
    online_rate = rate(stats.online_users, stats.total_users)
    return ReceiptStatsView(**msgspec.structs.asdict(status_view(stats)), online_rate=online_rate)


def push_stats_view(stats: PushStats) -> PushStatsView:
    """The same fields."""
    return PushStatsView(**msgspec.structs.asdict(stats))


def push_view(row: PushRow, timezone: ZoneInfo) -> PushView:
    """A push record for people: times written out."""
    fields = msgspec.structs.asdict(row)
    return PushView(
        push_time=moment(fields.pop("push_ms"), timezone),
        expires_at=_maybe(fields.pop("expires_ms"), timezone),
        created_at=moment(fields.pop("created_ms"), timezone),
        updated_at=moment(fields.pop("updated_ms"), timezone),
        **fields,
    )


def receipt_view(row: ReceiptRow, timezone: ZoneInfo) -> ReceiptView:
    """A receive record for people: times written out."""
    fields = msgspec.structs.asdict(row)
    return ReceiptView(
        received_at=_maybe(fields.pop("received_ms"), timezone),
        read_at=_maybe(fields.pop("read_ms"), timezone),
        confirmed_at=_maybe(fields.pop("confirmed_ms"), timezone),
        created_at=moment(fields.pop("created_ms"), timezone),
        updated_at=moment(fields.pop("updated_ms"), timezone),
        **fields,
    )


def user_receipts_view(user: UserReceipts) -> UserReceiptsView:
    """Counts with their rates."""
    return UserReceiptsView(
        **msgspec.structs.asdict(user),
        receive_rate=rate(user.received_count, user.total_count),
        read_rate=rate(user.read_count, user.total_count),
        confirm_rate=rate(user.confirmed_count, user.total_count),
    )


def offline_message(item: MailboxItem) -> OfflineMessage:
    """What waits, without what is not for people."""
    fields = msgspec.structs.asdict(item)
    del fields["expires_ms"]
    return OfflineMessage(**fields)
