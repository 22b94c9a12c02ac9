"""Users' inboxes in MongoDB: a user's receive records, newest first, and what the push records say of their notices.

Every query begins with the user and is told to use the index on user_id, is_archived and created_at, which gives the
order, too: nothing is sorted by the server. Records of the same moment are in the order of their message_id; those
whose dates are texts (see push_queries) come behind all others.

Receive records of version 1 do not say what type and tags their notice has, nor when it expires: that is looked up in
the push records.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple
from zoneinfo import ZoneInfo

import msgspec
from bson.datetime_ms import DatetimeMS
from pymongo import DESCENDING, UpdateMany

from pushd.batched import batched
from pushd.errors import StoreError
from pushd.model import Mark, UserId
from pushd.records import InboxFilter, InboxItem, InboxNotice, InboxPage, RecordState
from pushd.stores.mongo.connection import Connection, Document, Write
from pushd.stores.mongo.counts import StoredCounts
from pushd.stores.mongo.documents import PUSH_RECORDS, RECEIVE_RECORDS, date, flag, milliseconds, number, plain, text
from pushd.stores.mongo.push_queries import extra_data_of, time_condition
from pushd.stores.mongo.receipt_queries import BY_USER, THERE, mark_writes, not_over
from pushd.stores.mongo.unread import UnreadChanges
from pushd.values import MAX_MS, MIN_MS, usable_link, usable_tags, usable_title

IDS_AT_ONCE = 500
MOST_OF_A_MOMENT = 10_000  # receive records of one user
RECEIPT_FIELDS = (
    "message_id", "created_at", "message_type", "is_read", "read_at", "is_confirmed", "confirmed_at", "is_archived",
)  # fmt: skip
NOTICE_FIELDS = (
    "message_id", "content", "message_type", "push_time", "priority", "need_confirm", "expires_at", "extra_data",
    "extra_json", "title", "url", "tags", "version", "state",
)  # fmt: skip

# Values of is_archived. Each is a point of the index, between which the server need not sort; None: also no such field.
_ARCHIVED = {False: {"$in": [None, False]}, True: True, None: {"$in": [None, False, True]}}


class Place(NamedTuple):
    """Where in an inbox something is: created_at, milliseconds or a text, and the message_id. Without one it is before
    all of that moment, with an empty one behind all."""

    created: int | str
    message_id: str | None = None


FIRST, FIRST_TEXT = Place(MAX_MS), Place("\U0010ffff")
_place = msgspec.json.Decoder(Place)


class MongoInbox:
    """ports.Inbox. `clock` gives milliseconds; `zone`: what dates that are texts are in."""

    def __init__(
        self,
        connection: Connection,
        counts: StoredCounts,
        changes: UnreadChanges,
        clock: Callable[[], int],
        *,
        zone: ZoneInfo,
    ) -> None:
        self._connection = connection
        self._counts = counts
        self._changes = changes
        self._clock = clock
        self._zone = zone
        self._receipts = connection.collection(RECEIVE_RECORDS)
        self._push_records = connection.collection(PUSH_RECORDS)

    async def page(self, user_id: UserId, where: InboxFilter, limit: int, before: str | None) -> InboxPage:
        """At most `limit` of the matching notices. Raises ValueError for a text that is no cursor."""
        place = FIRST if before is None else read_cursor(before)
        items: list[InboxItem] = []
        last = place
        while True:
            found, place, is_end = await self._part(user_id, where, place, limit + 2)
            notices = await self._notices(found)
            for document in found:
                notice = notices.get(text(document.get("message_id")))
                if notice is not None and self._is_shown(notice, where):
                    if len(items) == limit:
                        return InboxPage(items, write_cursor(last))
                    items.append(self._item(document, notice))
                    last = _place_of(document)
            if is_end:
                return InboxPage(items, None)

    async def _part(
        self, user_id: UserId, where: InboxFilter, place: Place, limit: int
    ) -> tuple[list[Document], Place, bool]:
        """Some records behind a place, in order; the place behind which to go on, and whether nothing is left there."""
        found = await self._find(user_id, where, {"created_at": _upto(place)}, limit)
        if len(found) < limit:
            return _behind(place, found), FIRST_TEXT, isinstance(place.created, str)
        end = found[-1]["created_at"]  # of this moment there may be more
        behind = _behind(place, [document for document in found if document["created_at"] != end])
        if behind:
            return behind, Place(_place_of(behind[-1]).created, ""), False
        moment = await self._find(user_id, where, {"created_at": end}, MOST_OF_A_MOMENT)
        return _behind(place, moment), Place(_value(end), ""), False

    async def _find(self, user_id: UserId, where: InboxFilter, created: Document, limit: int) -> list[Document]:
        condition = {**self._condition(user_id, where), **created}

        async def work() -> list[Document]:
            cursor = self._receipts.find(condition, _only(RECEIPT_FIELDS), limit=limit, hint=BY_USER)
            return await cursor.sort("created_at", DESCENDING).batch_size(limit).to_list(None)

        return await self._connection.read("inbox", work)

    def _condition(self, user_id: UserId, where: InboxFilter) -> Document:
        condition: Document = {"user_id": user_id, "is_archived": _ARCHIVED[where.is_archived], **THERE}
        condition |= not_over(self._clock())
        if where.is_read is not None:
            condition["is_read"] = True if where.is_read else {"$ne": True}
        if where.message_type is not None:
            condition["message_type"] = {"$in": [plain(where.message_type), None]}
        if where.tag is not None:
            condition["$or"] = [{"tags": plain(where.tag)}, {"message_type": None}]
        return condition

    async def _notices(self, found: Sequence[Document]) -> dict[str, InboxNotice]:
        """What the push records say of these; nothing of those that were revoked."""
        notices: dict[str, InboxNotice] = {}
        ids = list({text(document.get("message_id")) for document in found})
        for chunk in batched(ids, IDS_AT_ONCE):
            where = {"message_id": {"$in": chunk}}

            async def work(where: Document = where) -> list[Document]:
                return await self._push_records.find(where, _only(NOTICE_FIELDS)).to_list(None)

            for document in await self._connection.read("inbox", work):
                if document.get("state") != RecordState.REVOKED.value:
                    notices[text(document.get("message_id"))] = self._notice(document)
        return notices

    def _notice(self, found: Document) -> InboxNotice:
        return InboxNotice(
            message_id=text(found.get("message_id")),
            content=text(found.get("content")),
            accepted_ms=milliseconds(found.get("push_time"), self._zone),
            type=text(found.get("message_type")),
            data=extra_data_of(found),
            priority=number(found.get("priority"), 1),
            need_confirm=flag(found.get("need_confirm")),
            expires_ms=milliseconds(found.get("expires_at"), self._zone),
            title=usable_title(found.get("title")),
            url=usable_link(found.get("url")),
            tags=usable_tags(found.get("tags")),
            version=max(1, number(found.get("version"), 1)),
        )

    def _is_shown(self, notice: InboxNotice, where: InboxFilter) -> bool:
        if 0 < notice.expires_ms <= self._clock():
            return False
        if where.message_type is not None and notice.type != where.message_type:
            return False
        return where.tag is None or where.tag in notice.tags

    def _item(self, found: Document, notice: InboxNotice) -> InboxItem:
        return InboxItem(
            notice,
            flag(found.get("is_read")),
            milliseconds(found.get("read_at"), self._zone),
            flag(found.get("is_confirmed")),
            milliseconds(found.get("confirmed_at"), self._zone),
            flag(found.get("is_archived")),
        )

    async def read_all(self, user_id: UserId, where: InboxFilter, until_ms: int, at_ms: int) -> list[str]:
        """Note that the user has read what was unread and matches, and was accepted up to then; which notices."""
        unread = msgspec.structs.replace(where, is_read=False, is_archived=False)
        condition = self._condition(user_id, unread)
        condition["$and"] = [time_condition("created_at", None, until_ms + 1, self._zone)]

        async def work() -> list[Document]:
            fields = _only(("message_id", "message_type"))
            return await self._receipts.find(condition, fields, hint=BY_USER).batch_size(IDS_AT_ONCE).to_list(None)

        found = await self._connection.count("read_all", work)
        older = await self._notices([document for document in found if document.get("message_type") is None])
        message_ids = [
            message_id
            for document in found
            if (message_id := text(document.get("message_id")))
            and (document.get("message_type") is not None or self._is_shown_of(older, message_id, unread))
        ]
        await self._change("read_all", user_id, message_ids, lambda mine: mark_writes(mine, Mark.READ, at_ms))
        return message_ids

    def _is_shown_of(self, notices: dict[str, InboxNotice], message_id: str, where: InboxFilter) -> bool:
        return message_id in notices and self._is_shown(notices[message_id], where)

    async def archive(self, user_id: UserId, message_ids: Sequence[str], at_ms: int) -> list[str]:
        """Put these away, read; the ids for which there is a receive record."""
        return await self._change(
            "archive", user_id, message_ids, lambda mine: mark_writes(mine, Mark.READ, at_ms, archives=True)
        )

    async def unarchive(self, user_id: UserId, message_ids: Sequence[str], at_ms: int) -> list[str]:
        """Put these back; the ids for which there is a receive record."""
        back = {"$set": {"is_archived": False}, "$unset": {"archived_at": ""}, "$max": {"updated_at": date(at_ms)}}
        return await self._change("unarchive", user_id, message_ids, lambda mine: [UpdateMany(mine, back)])

    async def _change(
        self, operation: str, user_id: UserId, message_ids: Sequence[str], writes: Callable[[Document], list[Write]]
    ) -> list[str]:
        """The ids of those records of the user's that there are, once they are changed."""
        known: set[str] = set()
        refused: list[StoreError] = []
        try:
            for chunk in batched(message_ids, IDS_AT_ONCE):
                mine: Document = {"user_id": user_id, "message_id": {"$in": chunk}}
                known |= await self._known(operation, mine)
                async with self._connection.writing():
                    await self._connection.bulk(operation, RECEIVE_RECORDS, writes(mine), refused)
        finally:
            self._changes.note((user_id,))
            self._counts.changed(known)
        if refused:
            raise refused[0]
        return [message_id for message_id in message_ids if message_id in known]

    async def _known(self, operation: str, mine: Document) -> set[str]:
        async def work() -> list[Document]:
            return await self._receipts.find(mine, _only(("message_id",))).to_list(None)

        return {text(document.get("message_id")) for document in await self._connection.read(operation, work)}

    def unread_changed(self) -> Collection[UserId] | None:
        """Whose count this node has changed since this was asked last; None: anybody's."""
        return self._changes.take()


def write_cursor(place: Place) -> str:
    """The cursor behind a place."""
    return "t" + urlsafe_b64encode(msgspec.json.encode(place)).decode().rstrip("=")


def read_cursor(cursor: str) -> Place:
    """The place in a cursor. Raises ValueError."""
    try:
        given = cursor.removeprefix("t").encode("ascii")
        place = _place.decode(urlsafe_b64decode(given + b"=" * (-len(given) % 4)))
        is_usable = isinstance(place.created, str) or MIN_MS <= place.created <= MAX_MS
    except (ValueError, msgspec.DecodeError):
        is_usable = False
    if not is_usable or write_cursor(place) != cursor:
        raise ValueError("expected `next` of a former answer")
    return place


def _upto(place: Place) -> Document:
    """What may be behind a place: values of one type only are compared, so that behind dates no texts are found."""
    bound = place.created if isinstance(place.created, str) else date(place.created)
    return {"$lte" if place.message_id != "" else "$lt": bound}


def _place_of(found: Document) -> Place:
    return Place(_value(found.get("created_at")), text(found.get("message_id")))


def _value(created: object) -> int | str:
    return int(created) if isinstance(created, DatetimeMS) else text(created)


def _behind(place: Place, found: Sequence[Document]) -> list[Document]:
    """Those behind a place, in order. All are of its type, since they are `_upto` it."""
    created, message_id = place

    def is_behind(document: Document) -> bool:
        other = _place_of(document)
        if other.created != created:
            return other.created < created  # type: ignore[operator]
        return message_id is None or (other.message_id or "") < message_id

    return sorted(filter(is_behind, found), key=_place_of, reverse=True)


def _only(names: Sequence[str]) -> Document:
    return {"_id": 0, **dict.fromkeys(names, 1)}
