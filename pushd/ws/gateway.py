"""Lets WebSocket clients in: `Gateway.admit` decides about an upgrade, `Gateway.attach` takes the transport over."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import Awaitable
from typing import cast

import structlog

from pushd._fastpath import Connection
from pushd.auth.authenticator import Authenticator, Identity
from pushd.errors import ErrorCode, RequestError, StoreError
from pushd.http.addresses import TOO_MANY_CONNECTIONS, canonical
from pushd.http.messages import Request
from pushd.model import Client
from pushd.presence.arrivals import Arrivals
from pushd.protocol import deflate, frames
from pushd.protocol.session import Session
from pushd.ws.client import Listener
from pushd.ws.renewals import expires_at
from pushd.ws.shared import Shared
from pushd.ws.upgrade import Upgrade, negotiate_subprotocol

log = structlog.get_logger("pushd.gateway")


class Gateway:
    """Decides who may have a WebSocket connection, and makes one of the transport of whoever may.

    With `is_draining`, nobody may any more.
    """

    def __init__(self, shared: Shared, arrivals: Arrivals, authenticator: Authenticator) -> None:
        self._shared = shared
        self._hub = shared.hub
        self._reader = shared.reader
        self._arrivals = arrivals
        self._authenticator = authenticator
        self._addresses = shared.addresses
        self._current = shared.current
        self._ids = shared.current.config.directory.ids
        self._metrics = shared.metrics
        self._clock = shared.clock
        self.is_draining = False
        self._guests = itertools.count(1)
        self._conn_ids = itertools.count(1)
        self._conn_prefix = secrets.token_hex(4)

    @property
    def open_sockets(self) -> int:
        """How many connections have a socket, closing ones included."""
        return self._shared.open_sockets

    # ---- before the upgrade

    def paths(self) -> tuple[str, ...]:
        """Where WebSocket clients connect."""
        return ("/ws", f"{self._current.config.server.api_prefix}/ws")

    def admit(self, request: Request) -> Upgrade | Awaitable[Upgrade]:
        """Decide about an upgrade. Raises RequestError; asks no store but that of revoked tokens, if there is one."""
        try:
            upgrade = self._admit(request)
        except RequestError as error:
            raise self._rejected(error) from None
        if not self._authenticator.can_be_revoked(upgrade.identity):
            return upgrade
        return self._unrevoked(request.peer, upgrade)

    async def _unrevoked(self, peer: str, upgrade: Upgrade) -> Upgrade:
        try:
            await self._check_revoked(upgrade.identity)
            self._check_room_still(peer, upgrade.client_ip)
        except RequestError as error:
            raise self._rejected(error) from None
        return upgrade

    def _rejected(self, error: RequestError) -> RequestError:
        self._metrics.rejected.labels(error.code.value.lower()).inc()
        return error

    async def _check_revoked(self, identity: Identity) -> None:
        try:
            await self._authenticator.check_revoked(identity)
        except StoreError as error:
            log.warning("revoked tokens cannot be asked for", error=str(error))
            text = "it cannot be checked whether the token was revoked"
            raise RequestError(ErrorCode.STORE_UNAVAILABLE, text, retry_after_s=5) from None

    def _admit(self, request: Request) -> Upgrade:
        if self.is_draining:
            raise RequestError(ErrorCode.DRAINING, "the server is shutting down", retry_after_s=5)
        is_echo = request.path == "/ws/echo" and self._current.config.debug.echo
        if not is_echo and request.path not in self.paths():
            raise RequestError(ErrorCode.NOT_FOUND, "no WebSocket endpoint here")
        self._authenticator.check_source(request)
        client_ip = canonical(self._authenticator.client_ip(request))
        self._check_limits(request.peer, client_ip)
        subprotocol, dialect = negotiate_subprotocol(request.headers.get("sec-websocket-protocol", ""))
        return Upgrade(
            identity=self._identity(request),
            client_ip=client_ip,
            subprotocol=subprotocol,
            dialect=dialect,
            is_acking=request.query.get("ack") == "1",
            is_echo=is_echo,
            is_told_changes=request.query.get("changes") == "1",
            is_told_unread=request.query.get("unread") == "1",
            extensions=self._extensions(request),
        )

    def _extensions(self, request: Request) -> str:
        if self._current.config.server.compression == "off":
            return ""
        return deflate.negotiate(request.headers.get("sec-websocket-extensions", ""))

    def _identity(self, request: Request) -> Identity:
        if self._current.config.auth.mode == "none":
            user_id = request.query.get("user_id")  # without one: a guest
            return Identity() if user_id is None else Identity(self._ids.given(user_id, "user_id"))
        identity = self._authenticator.identify(request, query_token=True)
        if identity.user_id == 0:
            raise RequestError(ErrorCode.UNAUTHORIZED, "a WebSocket connection needs a user's token, not an API key")
        return identity

    def _check_limits(self, peer: str, client_ip: str) -> None:
        limits = self._current.config.limits
        if self._shared.open_sockets >= limits.max_connections:
            raise RequestError(ErrorCode.QUEUE_FULL, "the server has no room for more connections", retry_after_s=5)
        if self._addresses.is_counted_at_accept(peer):
            return
        fault = self._addresses.find_fault(client_ip, limits)
        if fault:
            raise RequestError(ErrorCode.RATE_LIMITED, fault, retry_after_s=60)

    def _check_room_still(self, peer: str, client_ip: str) -> None:
        """Others behind the same proxy may have come while the store was asked."""
        is_by_head = not self._addresses.is_counted_at_accept(peer)
        if is_by_head and self._addresses.is_full(client_ip, self._current.config.limits):
            raise RequestError(ErrorCode.RATE_LIMITED, TOO_MANY_CONNECTIONS, retry_after_s=60)

    # ---- the hand-over

    def attach(self, transport: asyncio.Transport, request: Request, upgrade: Upgrade, tail: bytes) -> None:
        """Take over a transport whose reading is paused; `tail` is what came behind the request."""
        connection = self._connection(transport, request, upgrade)
        session = Session(upgrade.dialect, is_echo=upgrade.is_echo, can_inflate=bool(upgrade.extensions))
        connection.owner = Listener(self._shared, connection, session)
        transport.set_protocol(cast(asyncio.Protocol, connection))
        answer = upgrade.answer(request.headers["sec-websocket-key"])
        if upgrade.is_echo:  # no hello
            transport.write(answer)
        else:
            connection.begin(answer)
        self._shared.opened(connection)
        if upgrade.is_echo:
            self._hub.add(connection)
            self._hub.release(connection)
        else:
            self._arrivals.arrive(connection, is_told_unread=upgrade.is_told_unread)
        self._reader.feed(connection, tail)
        if connection.is_closing() or connection.is_paused:
            return
        if connection.is_secure:
            transport.resume_reading()
        else:
            self._reader.watch(connection)

    def _connection(self, transport: asyncio.Transport, request: Request, upgrade: Upgrade) -> Connection:
        identity = upgrade.identity
        connection = Connection(
            self._hub,
            transport,
            user_id=identity.user_id or self._ids.guest(next(self._guests)),
            is_guest=not identity.user_id,
            conn_id=f"{self._conn_prefix}{next(self._conn_ids):x}",
            dialect=upgrade.dialect | (frames.DEFLATED if upgrade.extensions else 0),
            is_acking=upgrade.is_acking,
            is_told_changes=upgrade.is_told_changes,
            now=self._clock.now(),
            details=Client(
                username=identity.username,
                role=identity.role,
                client_ip=upgrade.client_ip,
                user_agent=request.headers.get("user-agent", "")[:512],
                connected_ms=self._clock.wall_ms(),
                token_id=identity.token_id,
                issued_ms=identity.issued_ms,
            ),
        )
        connection.expires_at = expires_at(identity, self._clock)
        return connection
