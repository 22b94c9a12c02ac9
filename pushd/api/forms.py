"""What requests may contain: one struct per query and per body. They check the requests and make `/openapi.json`."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from pushd.model import Channel, DeliveryStatus, TargetKind, UserId
from pushd.protocol.frames import MessageId, MessageIds
from pushd.records import PushSort, ReceiptSort
from pushd.values import MAX_INT64, NO_NUL

MAX_WAIT_MS = 10_000
LOCAL_TIME = (
    r"^(19|20)\d\d-(0[1-9]|1[0-2])-(0[1-9]|1\d|2[0-8]) ([01]\d|2[0-3]):[0-5]\d:[0-5]\d$"  # what is sure to exist
)
Page = Annotated[int, Meta(ge=1, le=1_000_000, description="Page, from 1.")]
PageSize = Annotated[int, Meta(ge=1, le=100, description="Items of a page.")]
Order = Literal["asc", "desc"]
Moment = Annotated[
    str,
    Meta(
        description='"YYYY-MM-DD", "YYYY-MM-DD HH:MM:SS" (in server.timezone) or ISO 8601.',
        extra_json_schema={"anyOf": [{"format": "date"}, {"format": "date-time"}, {"pattern": LOCAL_TIME}]},
    ),
]
Text = Annotated[str, Meta(max_length=500, pattern=NO_NUL)]


class Form(msgspec.Struct, kw_only=True, frozen=True):
    """A query or a body."""


class Nothing(Form, frozen=True):
    """No fields."""


# ---- queries


class WaitQuery(Form, frozen=True):
    """How long the answer to a publish may wait for the delivery."""

    wait_ms: Annotated[int, Meta(ge=0, le=MAX_WAIT_MS, description="Milliseconds.")] = 0


class UserQuery(Form, frozen=True):
    """Whose data; by default the token's user."""

    user_id: UserId | None = None


class PeriodQuery(Form, frozen=True):
    """A time; both ends included."""

    start_date: Moment | None = None
    end_date: Moment | None = None


class StatsQuery(PeriodQuery, frozen=True):
    """Which push records."""

    message_type: Text | None = None
    target: TargetKind | None = None
    status: Text | None = None
    success: bool | None = None
    sender_id: Annotated[int, Meta(ge=0, le=MAX_INT64)] | None = None
    keyword: Annotated[Text, Meta(description="A part of the content; no pattern.")] | None = None


class RecordsQuery(StatsQuery, frozen=True):
    """A page of push records."""

    page: Page = 1
    page_size: PageSize = 10
    sort_by: PushSort = PushSort.PUSH_TIME
    sort_order: Order = "desc"


class ReceiveRecordsQuery(PeriodQuery, frozen=True):
    """A page of receive records."""

    page: Page = 1
    page_size: PageSize = 10
    message_id: MessageId | None = None
    user_id: UserId | None = None
    username: Annotated[Text, Meta(description="A part of the name; no pattern.")] | None = None
    is_online: bool | None = None
    is_received: bool | None = None
    is_read: bool | None = None
    is_confirmed: bool | None = None
    delivery_status: DeliveryStatus | None = None
    push_channel: Channel | None = None
    sort_by: ReceiptSort = ReceiptSort.CREATED_AT
    sort_order: Order = "desc"


class ReceiveStatsQuery(PeriodQuery, frozen=True):
    """Receive records counted by user."""

    limit: Annotated[int, Meta(ge=1, le=1000, description="Users at most.")] = 100


# ---- bodies


class BatchBody(msgspec.Struct):
    """Many notices; each is decoded by itself, so that a bad one harms no other."""

    notices: Annotated[list[msgspec.Raw], Meta(min_length=1, max_length=1000)]


class MarkBody(msgspec.Struct):
    """One notice to be marked. `user_id` needs admin rights; by default the token's user."""

    message_id: MessageId
    user_id: UserId | None = None


class MarksBody(msgspec.Struct):
    """Many notices to be marked. `user_id` needs admin rights; by default the token's user."""

    message_ids: MessageIds
    user_id: UserId | None = None


class UsersBody(msgspec.Struct):
    """Whose receive records, and how many of each."""

    user_ids: Annotated[list[UserId], Meta(min_length=1, max_length=1000)]
    limit: Annotated[int, Meta(ge=1, le=100)] = 20


class DisconnectBody(msgspec.Struct):
    """Whose live connections are to be closed: one of the two. `reason` reaches the client."""

    user_id: UserId | None = None
    conn_id: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    reason: Annotated[str, Meta(max_length=100)] = "revoked by an administrator"
