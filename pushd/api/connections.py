"""Who is connected to this node, and how connections are revoked."""

from __future__ import annotations

from typing import Annotated, Any, cast

import msgspec
from msgspec import Meta

from pushd._fastpath import Hub
from pushd.api.answers import AnswerTurns
from pushd.api.endpoint import Call
from pushd.api.forms import Nothing
from pushd.clock import Clock
from pushd.config.current import CurrentConfig
from pushd.errors import CloseCode, ErrorCode, RequestError
from pushd.http.long_answers import Encoded, Long, encoded
from pushd.local_time import date_and_time, rfc3339
from pushd.model import GivenUserId, User, UserId
from pushd.presence.statuses import CachedStatuses
from pushd.records import OnlineStatus
from pushd.turns import sliced
from pushd.users.directory import CachedDirectory

USERS_AT_ONCE = 250  # looked up, while an answer is made of many more


class DisconnectBody(msgspec.Struct):
    """Whose live connections are to be closed: one of the two. `reason` reaches the client."""

    user_id: GivenUserId | None = None
    conn_id: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    reason: Annotated[str, Meta(max_length=100)] = "revoked by an administrator"


class Closed(msgspec.Struct):
    """Connections that were revoked."""

    closed: int


class OnlineUser(msgspec.Struct):
    """A connected user: the oldest of the user's connections."""

    user_id: UserId
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


class ConnectionHandlers:
    """Lists who is connected, and closes connections. The hub knows them; the stores add what is known of the users."""

    def __init__(
        self,
        hub: Hub,
        directory: CachedDirectory,
        statuses: CachedStatuses,
        current: CurrentConfig,
        clock: Clock,
        turns: AnswerTurns,
    ) -> None:
        self._hub = hub
        self._directory = directory
        self._statuses = statuses
        self._current = current
        self._wall_ms = clock.wall_ms
        self._turns = turns

    async def online_users(self, call: Call[Nothing, None]) -> Long:
        """GET /notification/online-users."""
        text = Encoded()
        total = 0
        separator = b"["
        async with self._turns.bulk.turn(call.identity.user_id):
            user_ids = self._hub.user_ids()
            for start in range(0, len(user_ids), USERS_AT_ONCE):
                shown = await self._online(user_ids[start : start + USERS_AT_ONCE])
                if shown:
                    total += len(shown)
                    text.join(await encoded(shown, lambda one: one, separator, b""))
                    separator = b","
        text.add(b"]" if total else b"[]")
        now = date_and_time(self._wall_ms(), self._current.timezone)
        return Long(OnlineUsers(total_online=total, users=cast(Any, text), timestamp=now))

    async def _online(self, user_ids: list[UserId]) -> list[OnlineUser]:
        stored = await self._statuses.of(user_ids)
        known = await self._directory.users(user_ids)
        shown = []
        for user_id in user_ids:
            connections = self._hub.connections_of(user_id)
            if connections:  # else gone meanwhile
                shown.append(self._view(known.get(user_id, User(user_id)), connections, stored.get(user_id)))
        return shown

    def _view(self, user: User, connections: list[Any], stored: OnlineStatus | None) -> OnlineUser:
        oldest = connections[0]
        client = oldest.details
        return OnlineUser(
            user_id=user.user_id,
            username=client.username or user.username,
            role=client.role or user.role,
            connections=len(connections),
            connection_id=oldest.conn_id,
            client_ip=client.client_ip,
            user_agent=client.user_agent,
            connected_at=rfc3339(client.connected_ms, self._current.timezone),
            total_online_count=stored.total_online_count if stored else 1,
            total_online_time_s=(stored.total_online_ms if stored else 0) / 1000,
        )

    async def disconnect(self, call: Call[Nothing, DisconnectBody]) -> Closed:
        """POST /websocket/disconnect."""
        body = call.body
        if (body.user_id is None) == (body.conn_id is None):
            text = "user_id: expected either user_id or conn_id"
            raise RequestError(ErrorCode.INVALID_REQUEST, text, details={"field": "user_id"})
        if body.user_id is not None:
            connections = self._hub.connections_of(body.user_id)
        else:
            connections = [one async for one in sliced(self._hub.snapshot()) if one.conn_id == body.conn_id]
        for connection in connections:
            self._hub.close(connection, CloseCode.REVOKED, body.reason)
        return Closed(closed=len(connections))
