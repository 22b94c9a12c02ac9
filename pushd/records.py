"""What can be asked of stored records, and the shapes of the answers. Times: milliseconds since the epoch, 0: never."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec

from pushd.model import DEFAULT_TYPE, Channel, DeliveryStatus, UserId


class PushSort(StrEnum):
    """By what push records are sorted."""

    PUSH_TIME = "push_time"
    CREATED_AT = "created_at"
    PRIORITY = "priority"
    MESSAGE_TYPE = "message_type"
    STATUS = "status"
    TOTAL_COUNT = "total_count"


class ReceiptSort(StrEnum):
    """By what receive records are sorted."""

    CREATED_AT = "created_at"
    RECEIVED_AT = "received_at"
    READ_AT = "read_at"
    CONFIRMED_AT = "confirmed_at"
    USER_ID = "user_id"
    USERNAME = "username"


class RecordState(StrEnum):
    """How far a push record's notice is: still to go out, out, or what became of it instead."""

    SCHEDULED = "scheduled"
    SENT = "sent"
    CANCELLED = "cancelled"
    REVOKED = "revoked"
    EXPIRED = "expired"


class Part(msgspec.Struct, frozen=True):
    """Which part of a sorted list: skip `offset`, then at most `limit`."""

    offset: int
    limit: int
    is_descending: bool = True


class PushFilter(msgspec.Struct, frozen=True):
    """Which push records. None: any. `keyword` is part of the content, case-insensitive, never a pattern.

    `since_ms` and `before_ms` bound push_time: at or after, and before.
    """

    message_type: str | None = None
    target: str | None = None
    status: str | None = None
    success: bool | None = None
    sender_id: UserId | None = None
    since_ms: int | None = None
    before_ms: int | None = None
    keyword: str | None = None
    tag: str | None = None
    state: RecordState | None = None


class ReceiptFilter(msgspec.Struct, frozen=True):
    """Which receive records. None: any. `username` is part of the name, case-insensitive, never a pattern.

    `since_ms` and `before_ms` bound created_at: at or after, and before.
    """

    message_id: str | None = None
    user_id: UserId | None = None
    username: str | None = None
    is_online: bool | None = None
    is_received: bool | None = None
    is_read: bool | None = None
    is_confirmed: bool | None = None
    delivery_status: DeliveryStatus | None = None
    push_channel: Channel | None = None
    since_ms: int | None = None
    before_ms: int | None = None
    tag: str | None = None


class PushRow(msgspec.Struct, frozen=True):
    """One push record (CONTRACT section 5). The counts are true at the time of the question.

    `send_at_ms`: when it was scheduled for; `push_ms` is that until it goes out.
    """

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
    push_ms: int
    expires_ms: int
    sender_id: UserId
    sender_name: str
    priority: int
    need_confirm: bool
    extra_data: Any
    total_count: int
    online_count: int
    delivered_count: int
    failed_count: int
    created_ms: int
    updated_ms: int
    title: str = ""
    url: str = ""
    tags: tuple[str, ...] = ()
    target_groups: list[str] | None = None
    state: str = RecordState.SENT.value
    send_at_ms: int = 0
    version: int = 1


class PushStats(msgspec.Struct, frozen=True):
    """Sums over the push records of a filter. `failed_count`: recipients whose notice expired undelivered."""

    total_records: int = 0
    success_records: int = 0
    failed_records: int = 0
    total_recipients: int = 0
    delivered_count: int = 0
    failed_count: int = 0


class ReceiptRow(msgspec.Struct, frozen=True):
    """One receive record (CONTRACT section 5)."""

    message_id: str
    user_id: UserId
    username: str
    user_role: int
    is_online: bool
    is_received: bool
    received_ms: int
    is_read: bool
    read_ms: int
    is_confirmed: bool
    confirmed_ms: int
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
    created_ms: int
    updated_ms: int
    message_type: str = ""
    tags: tuple[str, ...] = ()
    expires_ms: int = 0
    confirmed_version: int = 0  # where it is confirmed


class ReceiptStats(msgspec.Struct, frozen=True):
    """Counts over receive records: those of one notice, or of a filter."""

    total_users: int = 0
    online_users: int = 0
    received_users: int = 0
    read_users: int = 0
    confirmed_users: int = 0


class UserReceipts(msgspec.Struct, frozen=True):
    """The receive records of one user, counted."""

    user_id: UserId
    username: str
    total_count: int
    received_count: int
    read_count: int
    confirmed_count: int


class UserSummary(msgspec.Struct, frozen=True):
    """One user's notices. `unread_count` leaves expired ones out."""

    unread_count: int
    total_count: int
    last_message_ms: int


class OnlineStatus(msgspec.Struct, frozen=True):
    """The stored online status of one user (CONTRACT section 5). Durations in milliseconds."""

    user_id: UserId
    username: str
    is_online: bool
    last_seen_ms: int
    online_ms: int
    offline_ms: int
    online_duration_ms: int
    connection_id: str
    client_ip: str
    user_agent: str
    total_online_count: int
    total_online_ms: int


class InboxFilter(msgspec.Struct, frozen=True):
    """Which notices of a user's inbox. None: any."""

    is_read: bool | None = None
    is_archived: bool | None = None
    message_type: str | None = None
    tag: str | None = None


class InboxNotice(msgspec.Struct, frozen=True):
    """What a notice says, to whoever has it in his inbox: the same object for all of them."""

    message_id: str
    content: str
    accepted_ms: int
    type: str = DEFAULT_TYPE
    data: Any = None
    priority: int = 1
    need_confirm: bool = False
    expires_ms: int = 0
    title: str = ""
    url: str = ""
    tags: tuple[str, ...] = ()
    version: int = 1


class InboxItem(msgspec.Struct, frozen=True):
    """One notice in a user's inbox."""

    notice: InboxNotice
    is_read: bool
    read_ms: int
    is_confirmed: bool
    confirmed_ms: int
    is_archived: bool


class InboxPage(msgspec.Struct, frozen=True):
    """A part of an inbox, newest first. `next`: the cursor of the part behind it, None behind the last."""

    items: list[InboxItem]
    next: str | None
