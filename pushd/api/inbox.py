"""A user's own list of notices: pages of it, how many are unread, all read at once, notices put away.

Times are RFC 3339 in `server.timezone`, null for never.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from pushd.api.answers import AnswerTurns
from pushd.api.endpoint import Call
from pushd.api.forms import Nothing, Text, UserQuery
from pushd.api.receipts import MarkedBatch, MarksBody, marked_batch
from pushd.config.current import CurrentConfig
from pushd.delivery.inboxes import Inboxes
from pushd.errors import ErrorCode, RequestError
from pushd.http.long_answers import Encoded, Long
from pushd.local_time import date_and_time, rfc3339_or_none
from pushd.model import GivenUserId, UserId, public_type
from pushd.ports import Inbox, RecordStore
from pushd.records import InboxFilter, InboxItem, InboxNotice, InboxPage
from pushd.turns import Slice
from pushd.values import MAX_MS
from pushd.writing.writers import Writers

Limit = Annotated[int, Meta(ge=1, le=100, description="Notices of a page.")]
Cursor = Annotated[Text, Meta(description="`next` of the page before; none for the first one.")]
Until = Annotated[int, Meta(ge=0, le=MAX_MS, description="Milliseconds since the epoch.")]

PAGES_AT_ONCE = 8
PAGES_S = 0.004  # in each turn of the loop
KNOWN_BYTES = 8 * 1024 * 1024  # of notices as they are in answers
UNREAD = b',"is_read":false,"read_at":null,"is_confirmed":false,"confirmed_at":null,"is_archived":false}'

_encode = msgspec.json.Encoder().encode
_IS_READ = {"all": None, "unread": False, "read": True}
_IS_ARCHIVED = {"exclude": False, "only": True, "include": None}


class InboxQuery(UserQuery, frozen=True):
    """A page of an inbox."""

    status: Literal["all", "unread", "read"] = "all"
    archived: Literal["exclude", "only", "include"] = "exclude"
    type: Text | None = None
    tag: Text | None = None
    limit: Limit = 20
    before: Cursor | None = None

    def filter(self) -> InboxFilter:
        """Which notices are meant."""
        return InboxFilter(
            is_read=_IS_READ[self.status],
            is_archived=_IS_ARCHIVED[self.archived],
            message_type=self.type,
            tag=self.tag,
        )


class ReadAllBody(msgspec.Struct):
    """What is read: of one type, with one tag, accepted up to a time (default: now). `user_id` needs admin rights; by
    default the token's user."""

    type: Text | None = None
    tag: Text | None = None
    until_ts: Until | None = None
    user_id: GivenUserId | None = None


class NoticeView(msgspec.Struct, kw_only=True):
    """What a notice says, to all who have it in their inboxes."""

    message_id: str
    type: str
    content: str
    data: Any
    time: str
    ts: int
    priority: int
    need_confirm: bool
    version: int
    title: str | msgspec.UnsetType = msgspec.UNSET
    url: str | msgspec.UnsetType = msgspec.UNSET
    tags: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    expires_at: str | msgspec.UnsetType = msgspec.UNSET


class InboxItemView(NoticeView, kw_only=True):
    """A notice in an inbox."""

    is_read: bool
    read_at: str | None
    is_confirmed: bool
    confirmed_at: str | None
    is_archived: bool


class InboxView(msgspec.Struct):
    """A page of an inbox, newest first. `unread_count` is of the whole inbox; `next` goes into `before` for the page
    behind, null behind the last."""

    items: list[InboxItemView]
    unread_count: int
    next: str | None


class UnreadCount(msgspec.Struct):
    """How many notices a user has not read."""

    unread_count: int


class AllRead(msgspec.Struct):
    """How many notices were unread and are read now, and how many are still unread."""

    success_count: int
    unread_count: int


class InboxHandlers:
    """Shows inboxes, and does what their users do with them."""

    def __init__(
        self,
        inbox: Inbox,
        inboxes: Inboxes,
        records: RecordStore,
        writers: Writers,
        current: CurrentConfig,
        turns: AnswerTurns,
    ) -> None:
        self._inbox = inbox
        self._inboxes = inboxes
        self._records = records
        self._writers = writers
        self._current = current
        self._turns = turns
        self._free = asyncio.Semaphore(PAGES_AT_ONCE)
        self._slice = Slice(PAGES_S)
        self._known: dict[int, tuple[InboxNotice, bytes]] = {}  # by the id of the object
        self._known_bytes = 0

    async def page(self, call: Call[InboxQuery, None]) -> Long:
        """GET /notification/inbox."""
        query = call.query
        user_id = call.user(query.user_id)
        await self._writers.records_written({user_id})
        if query.tag is None:
            return await self._page_of(user_id, query)
        async with self._turns.lists.turn(call.identity.user_id):  # the store may have to look at many notices
            return await self._page_of(user_id, query)

    async def _page_of(self, user_id: UserId, query: InboxQuery) -> Long:
        """Many may ask at the same moment: a few pages are made at a time, and for a slice in each turn of the loop."""
        async with self._free:
            await self._slice.rest()
            page = await self._page(user_id, query)
            items: Any = await self._encoded(page.items)
            return Long(InboxView(items, await self._unread(user_id), page.next))

    async def _page(self, user_id: UserId, query: InboxQuery) -> InboxPage:
        try:
            return await self._inbox.page(user_id, query.filter(), query.limit, query.before)
        except ValueError as error:
            text = f"before: {error}, found {query.before!a}"
            raise RequestError(ErrorCode.INVALID_REQUEST, text, details={"field": "before"}) from None

    async def _encoded(self, items: list[InboxItem]) -> Encoded:
        text, separator, one_slice = Encoded(), b"", Slice()
        text.add(b"[")
        for item in items:
            await one_slice.rest()
            text.add(separator + self._notice(item.notice) + self._receipt(item))
            separator = b","
        text.add(b"]")
        return text

    def _notice(self, notice: InboxNotice) -> bytes:
        """The beginning of an item: encoded once for all who have it, as long as there is room to remember it."""
        known = self._known.get(id(notice))
        if known is not None and known[0] is notice:
            return known[1]
        encoded = _encode(self._view(notice))[:-1]
        if self._known_bytes > KNOWN_BYTES:
            self._known.clear()
            self._known_bytes = 0
        self._known[id(notice)] = (notice, encoded)
        self._known_bytes += len(encoded)
        return encoded

    def _view(self, notice: InboxNotice) -> NoticeView:
        timezone = self._current.timezone
        return NoticeView(
            message_id=notice.message_id,
            type=public_type(notice.type),
            content=notice.content,
            data=notice.data,
            time=date_and_time(notice.accepted_ms, timezone),
            ts=notice.accepted_ms,
            priority=notice.priority,
            need_confirm=notice.need_confirm,
            version=notice.version,
            title=notice.title or msgspec.UNSET,
            url=notice.url or msgspec.UNSET,
            tags=notice.tags or msgspec.UNSET,
            expires_at=rfc3339_or_none(notice.expires_ms, timezone) or msgspec.UNSET,
        )

    def _receipt(self, item: InboxItem) -> bytes:
        """The rest of it."""
        if not (item.is_read or item.is_archived or item.is_confirmed or item.read_ms):
            return UNREAD
        timezone = self._current.timezone
        receipt = {
            "is_read": item.is_read,
            "read_at": rfc3339_or_none(item.read_ms, timezone),
            "is_confirmed": item.is_confirmed,
            "confirmed_at": rfc3339_or_none(item.confirmed_ms, timezone),
            "is_archived": item.is_archived,
        }
        return b"," + _encode(receipt)[1:]

    async def unread_count(self, call: Call[UserQuery, None]) -> UnreadCount:
        """GET /notification/unread-count."""
        user_id = call.user(call.query.user_id)
        await self._writers.records_written({user_id})
        return UnreadCount(await self._unread(user_id))

    async def _unread(self, user_id: UserId) -> int:
        return (await self._records.unread_counts([user_id])).get(user_id, 0)

    async def read_all(self, call: Call[Nothing, ReadAllBody]) -> AllRead:
        """POST /notification/read-all."""
        body = call.body
        user_id = call.user(body.user_id)
        where = InboxFilter(message_type=body.type, tag=body.tag)
        success_count = await self._inboxes.read_all(user_id, where, body.until_ts)
        return AllRead(success_count, await self._unread(user_id))

    async def archive(self, call: Call[Nothing, MarksBody]) -> MarkedBatch:
        """POST /notification/archive."""
        message_ids = list(dict.fromkeys(call.body.message_ids))
        return marked_batch(message_ids, await self._inboxes.archive(call.user(call.body.user_id), message_ids))

    async def unarchive(self, call: Call[Nothing, MarksBody]) -> MarkedBatch:
        """POST /notification/unarchive."""
        message_ids = list(dict.fromkeys(call.body.message_ids))
        return marked_batch(message_ids, await self._inboxes.unarchive(call.user(call.body.user_id), message_ids))
