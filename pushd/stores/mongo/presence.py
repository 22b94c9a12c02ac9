"""Online status: who is connected, since when, how often and how long in all.

Durations are stored in whole seconds, as programs that read them expect, and in milliseconds beside that.
Every write says in its filter what it was decided on, so that writing it again or too late changes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from zoneinfo import ZoneInfo

from bson import Int64
from bson.datetime_ms import DatetimeMS
from pymongo import UpdateOne

from pushd.batched import batched
from pushd.errors import StoreError
from pushd.model import Arrival, UserId
from pushd.records import OnlineStatus
from pushd.stores.mongo import indexes
from pushd.stores.mongo.connection import Connection, Document, Write
from pushd.stores.mongo.documents import (
    MOST_SECONDS,
    ONLINE_STATUS,
    date,
    flag,
    milliseconds,
    number,
    stored_id,
    stored_ids,
    text,
)
from pushd.user_ids import INTEGERS, UserIds

ALIVE = "pushd_alive"
NODE = {"_id": "node"}
USERS_AT_ONCE = 500
ATTEMPTS = 5
_DURATION = ("online_duration", "online_duration_ms")
_TOTAL = ("total_online_time", "total_online_ms")


class MongoPresence:
    """ports.PresenceStore and ports.Remote. When this node was last alive is in a collection of its own."""

    def __init__(self, connection: Connection, *, zone: ZoneInfo, ids: UserIds = INTEGERS) -> None:
        self._connection = connection
        self._zone = zone
        self._ids = ids
        self._statuses = connection.collection(ONLINE_STATUS)
        self._alive = connection.collection(ALIVE)

    @property
    def store(self) -> str:
        """Its name in health and metrics."""
        return self._connection.store

    async def check(self) -> None:
        """Return when the server answers and has what is needed; raises StartError when it never can."""
        await indexes.ensure(self._connection, indexes.PRESENCE_INDEXES)
        await self._connection.require_kind(ONLINE_STATUS, self._ids)

    async def connected(self, arrivals: Sequence[Arrival]) -> None:
        """Note that these users' first connection came."""
        refused: list[StoreError] = []
        for batch in _once_each(arrivals):
            for chunk in batched(batch, USERS_AT_ONCE):
                await self._write("connected", [_first(arrival) for arrival in chunk], refused)
                await self._write("connected", [_again(arrival) for arrival in chunk], refused)
        _raise_first(refused)

    async def disconnected(self, departures: Sequence[tuple[UserId, int]]) -> None:
        """Note that these users' last connection went."""
        earliest: dict[UserId, int] = {}
        for user_id, at_ms in departures:
            earliest[user_id] = min(at_ms, earliest.get(user_id, at_ms))
        refused: list[StoreError] = []
        for chunk in batched(earliest, USERS_AT_ONCE):
            online = await self._online("disconnected", {"user_id": {"$in": chunk}}, len(chunk))
            gone = [
                _gone(found, at_ms, began_ms)
                for found in online
                if (began_ms := self._began_ms(found)) <= (at_ms := earliest.get(self._user_id(found), -1))
            ]
            await self._write("disconnected", gone, refused)
        _raise_first(refused)

    async def statuses(self, user_ids: Collection[UserId]) -> dict[UserId, OnlineStatus]:
        """What is stored of these users."""
        statuses: dict[UserId, OnlineStatus] = {}
        for chunk in batched(user_ids, USERS_AT_ONCE):
            where = {"user_id": {"$in": chunk}}

            async def work(where: Document = where) -> list[Document]:
                return await self._statuses.find(where).batch_size(USERS_AT_ONCE).to_list(None)

            for found in await self._connection.read("statuses", work):
                status = self._status(found)
                statuses[status.user_id] = status
        return statuses

    async def alive(self, at_ms: int) -> None:
        """Note that this node lives."""

        async def work() -> None:
            await self._alive.update_one(NODE, {"$set": {"at": date(at_ms)}}, upsert=True)

        await self._connection.change("alive", work)

    async def reset(self, at_ms: int) -> list[UserId]:
        """Mark everybody as offline since the node last lived; who was marked as online."""

        async def work() -> Document | None:
            return await self._alive.find_one(NODE)

        alive = await self._connection.read("reset", work)
        if alive is not None:
            at_ms = min(at_ms, milliseconds(alive.get("at"), self._zone) or at_ms)
        closed: list[UserId] = []
        refused: list[StoreError] = []
        seen: set[object] = set()
        while ghosts := await self._online("reset", {}, USERS_AT_ONCE):
            if seen.issuperset(ghost["_id"] for ghost in ghosts):
                raise StoreError(self.store, f"reset: {len(ghosts)} users stay online")
            seen.update(ghost["_id"] for ghost in ghosts)
            await self._write("reset", [_gone(ghost, at_ms, self._began_ms(ghost)) for ghost in ghosts], refused)
            _raise_first(refused)
            closed += stored_ids([ghost.get("user_id") for ghost in ghosts], self._ids) or []
        return closed

    async def _online(self, operation: str, where: Document, limit: int) -> list[Document]:
        fields = {"user_id": 1, "online_time": 1, **dict.fromkeys(_TOTAL, 1)}

        async def work() -> list[Document]:
            cursor = self._statuses.find({**where, "is_online": True}, fields, limit=limit)
            return await cursor.batch_size(USERS_AT_ONCE).to_list(None)

        return await self._connection.read(operation, work)

    async def _write(self, operation: str, writes: Sequence[Write], refused: list[StoreError]) -> None:
        """A duplicate key is another node's insert at the same moment: the next attempt finds the document."""
        errors: list[Document] = []
        for _ in range(ATTEMPTS):
            if not writes:
                return
            async with self._connection.writing():
                done = await self._connection.bulk(operation, ONLINE_STATUS, writes, refused)
            errors = done.duplicates
            writes = [writes[error["index"]] for error in errors]
        if writes:
            refused.append(StoreError(self.store, f"{operation}: {errors[0].get('errmsg')}"))

    def _user_id(self, found: Document) -> UserId:
        return stored_id(found.get("user_id"), self._ids)

    def _began_ms(self, found: Document) -> int:
        return milliseconds(found.get("online_time"), self._zone)

    def _status(self, found: Document) -> OnlineStatus:
        return OnlineStatus(
            user_id=self._user_id(found),
            username=text(found.get("username")),
            is_online=flag(found.get("is_online")),
            last_seen_ms=milliseconds(found.get("last_seen"), self._zone),
            online_ms=milliseconds(found.get("online_time"), self._zone),
            offline_ms=milliseconds(found.get("offline_time"), self._zone),
            online_duration_ms=_duration_ms(found, _DURATION),
            connection_id=text(found.get("connection_id")),
            client_ip=text(found.get("client_ip")),
            user_agent=text(found.get("user_agent")),
            total_online_count=number(found.get("total_online_count")),
            total_online_ms=_duration_ms(found, _TOTAL),
        )


def _raise_first(refused: Sequence[StoreError]) -> None:
    if refused:
        raise refused[0]


def _durations(fields: tuple[str, str], duration_ms: int) -> Document:
    in_s, in_ms = fields
    return {in_s: Int64(duration_ms // 1000), in_ms: Int64(duration_ms)}


def _duration_ms(found: Document, fields: tuple[str, str]) -> int:
    """Of a document that another program wrote, the seconds. What no duration can be is 0."""
    in_s, in_ms = (found.get(field) for field in fields)
    if not isinstance(in_ms, int):
        in_ms = in_s * 1000 if isinstance(in_s, int | float) else 0
    duration_ms = number(in_ms)
    return duration_ms if 0 <= duration_ms <= MOST_SECONDS * 1000 else 0


def _once_each(arrivals: Iterable[Arrival]) -> list[list[Arrival]]:
    """The arrivals in lists that name a user once, each user's in order: writes of a list may go in any order."""
    batches: list[list[Arrival]] = []
    seen: dict[UserId, int] = {}
    for arrival in arrivals:
        position = seen.get(arrival.user_id, 0)
        seen[arrival.user_id] = position + 1
        if position == len(batches):
            batches.append([])
        batches[position].append(arrival)
    return batches


def _now_online(arrival: Arrival) -> Document:
    at = date(arrival.at_ms)
    return {
        "username": arrival.username,
        "is_online": True,
        "last_seen": at,
        "online_time": at,
        "connection_id": arrival.connection_id,
        "client_ip": arrival.client_ip,
        "user_agent": arrival.user_agent,
        "updated_at": at,
    }


def _first(arrival: Arrival) -> UpdateOne:
    """A user who was never here."""
    first = {
        **_now_online(arrival),
        **_durations(_DURATION, 0),
        **_durations(_TOTAL, 0),
        "total_online_count": 1,
        "created_at": date(arrival.at_ms),
    }
    return UpdateOne({"user_id": arrival.user_id}, {"$setOnInsert": first}, upsert=True)


def _again(arrival: Arrival) -> UpdateOne:
    """A user whose last arrival was another one, and earlier."""
    at = date(arrival.at_ms)
    other = {"online_time": at, "connection_id": {"$ne": arrival.connection_id}}
    where = {"user_id": arrival.user_id, "$or": [{"online_time": {"$not": {"$gte": at}}}, other]}
    return UpdateOne(where, {"$set": _now_online(arrival), "$inc": {"total_online_count": 1}})


def _gone(found: Document, at_ms: int, began_ms: int) -> UpdateOne:
    """Offline since `at_ms`, or since it came where that is later; only while it is the arrival that was found."""
    last = date(max(at_ms, began_ms))
    duration_ms = max(0, at_ms - began_ms) if began_ms else 0
    gone = {
        "is_online": False,
        "offline_time": last,
        "last_seen": last,
        **_durations(_DURATION, duration_ms),
        **_durations(_TOTAL, _duration_ms(found, _TOTAL) + duration_ms),
        "updated_at": date(at_ms),
    }
    began = found.get("online_time")
    is_ours = isinstance(began, DatetimeMS)  # else another program's, which may be anything
    where = {
        "_id": found["_id"],
        "is_online": True,
        "online_time": began if is_ours else {"$not": {"$type": "date"}},
    }
    return UpdateOne(where, {"$set": gone})
