"""WebSocket connections: who may have one, the hand-over from HTTP to picows, and what clients say on it.

`Gateway.admit` decides about an upgrade; `Gateway.attach` lets picows take the transport over. picows
parses and unmasks frames and calls `Listener`; a `Session` says what they mean; every write goes through the hub.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import structlog
from cachetools import LRUCache
from picows import (
    WSAutoPingStrategy,
    WSFrame,
    WSListener,
    WSTransport,
    WSUpgradeResponse,
    WSUpgradeResponseWithListener,
)
from picows.picows import WSProtocol  # type: ignore[attr-defined]  # private: pinned, and a contract test

from pushd import wire
from pushd._fastpath import Connection, Hub, trim
from pushd.edge.auth import Authenticator, Identity
from pushd.edge.http1 import Request
from pushd.errors import CloseCode, ErrorCode, ProtocolError, RequestError, StoreError
from pushd.intake import MAX_USER_ID
from pushd.lanes import TokenBucket
from pushd.live import Live
from pushd.metrics import Metrics
from pushd.model import Mark
from pushd.presence import Client, Presence
from pushd.receipts import Receipts
from pushd.session import CloseReceived, Echo, Event, PingReceived, Session
from pushd.wire import Dialect

log = structlog.get_logger("pushd.websocket")
# An adapter, so that picows makes no Logger per connection; its errors are clients' faults, which we count.
_picows_log = logging.LoggerAdapter(logging.getLogger("picows"), {})
_picows_log.setLevel(logging.CRITICAL)

ADDRESSES_REMEMBERED = 10_000
READ_BUFFER_BYTES = 2048  # picows' least
ABNORMAL_CLOSURE = 1006


class Admission(msgspec.Struct, frozen=True):
    """An upgrade that was allowed."""

    identity: Identity
    client_ip: str
    subprotocol: str
    dialect: Dialect
    is_acking: bool
    is_echo: bool


class Gateway:
    """Lets WebSocket clients in and holds what their connections share. `now` is the loop's clock, s."""

    def __init__(
        self,
        hub: Hub,
        presence: Presence,
        receipts: Receipts,
        authenticator: Authenticator,
        live: Live,
        metrics: Metrics,
        *,
        now: Callable[[], float],
        wall_s: Callable[[], float],
    ) -> None:
        self.hub = hub
        self.presence = presence
        self.receipts = receipts
        self.authenticator = authenticator
        self.live = live
        self.metrics = metrics
        self.now = now
        self.wall_s = wall_s
        self.is_draining = False
        self._guests = itertools.count(-1, -1)
        self._conn_ids = itertools.count(1)
        self._conn_prefix = secrets.token_hex(4)
        self._per_ip: Counter[str] = Counter()
        self._connects_per_ip: LRUCache[str, TokenBucket] = LRUCache(ADDRESSES_REMEMBERED)
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = 0

    # ---- before the upgrade

    @property
    def open_sockets(self) -> int:
        """WebSocket connections whose socket is still there, closing ones included."""
        return self._open

    def paths(self) -> tuple[str, ...]:
        """Where WebSocket clients connect."""
        return ("/ws", f"{self.live.config.server.api_prefix}/ws")

    def admit(self, request: Request) -> Admission:
        """Decide about an upgrade. Raises RequestError; asks no store."""
        try:
            return self._admit(request)
        except RequestError as error:
            self.metrics.rejected.labels(error.code.value.lower()).inc()
            raise

    def _admit(self, request: Request) -> Admission:
        if self.is_draining:
            raise RequestError(ErrorCode.DRAINING, "the server is shutting down", retry_after_s=5)
        is_echo = request.path == "/ws/echo" and self.live.config.debug.echo
        if not is_echo and request.path not in self.paths():
            raise RequestError(ErrorCode.NOT_FOUND, "no WebSocket endpoint here")
        self.authenticator.check_source(request)
        client_ip = self.authenticator.client_ip(request)
        self._check_limits(client_ip)
        subprotocol, dialect = _negotiate(request.headers.get("sec-websocket-protocol", ""))
        return Admission(
            identity=self._identity(request),
            client_ip=client_ip,
            subprotocol=subprotocol,
            dialect=dialect,
            is_acking=request.query.get("ack") == "1",
            is_echo=is_echo,
        )

    def _identity(self, request: Request) -> Identity:
        if self.live.config.auth.mode == "none":
            return _named_user(request.query.get("user_id"))
        identity = self.authenticator.identify(request, query_token=True)
        if identity.user_id == 0:
            raise RequestError(ErrorCode.UNAUTHORIZED, "a WebSocket connection needs a user's token, not an API key")
        return identity

    def _check_limits(self, client_ip: str) -> None:
        limits = self.live.config.limits
        if self._open >= limits.max_connections:
            raise RequestError(ErrorCode.QUEUE_FULL, "the server has no room for more connections", retry_after_s=5)
        if 0 < limits.max_connections_per_ip <= self._per_ip[client_ip]:
            raise RequestError(ErrorCode.RATE_LIMITED, "too many connections from this address", retry_after_s=60)
        if limits.connects_per_ip_per_min and not self._has_connect_left(client_ip, limits.connects_per_ip_per_min):
            raise RequestError(ErrorCode.RATE_LIMITED, "too many connects from this address", retry_after_s=60)

    def _has_connect_left(self, client_ip: str, per_min: int) -> bool:
        now = self.now()
        bucket = self._connects_per_ip.get(client_ip)
        if bucket is None:
            bucket = self._connects_per_ip[client_ip] = TokenBucket(per_min / 60, per_min, now)
        bucket.rate, bucket.burst = per_min / 60, per_min
        return bucket.take(now)

    # ---- the hand-over

    def attach(self, transport: asyncio.Transport, request: Request, admission: Admission, tail: bytes) -> None:
        """Let picows take over a transport whose reading is paused; `tail` is what came behind the request."""
        connection = self._connection(transport, request, admission)
        listener = Listener(self, connection, Session(admission.dialect, is_echo=admission.is_echo))
        headers = {"Sec-WebSocket-Protocol": admission.subprotocol} if admission.subprotocol else None
        answer = WSUpgradeResponseWithListener(WSUpgradeResponse.create_101_response(headers), listener)
        protocol = _picows_protocol(answer, self.live.config.limits.max_frame_bytes)
        listener.protocol = protocol
        transport.set_protocol(protocol)
        protocol.connection_made(connection)
        _replay(protocol, _canonical_head(request) + tail)
        if not transport.is_closing():
            transport.resume_reading()

    def _connection(self, transport: asyncio.Transport, request: Request, admission: Admission) -> Connection:
        identity = admission.identity
        connection = Connection(
            self.hub,
            transport,
            user_id=identity.user_id or next(self._guests),
            conn_id=f"{self._conn_prefix}{next(self._conn_ids):x}",
            dialect=admission.dialect,
            is_acking=admission.is_acking,
            now=self.now(),
            details=Client(
                username=identity.username,
                role=identity.role,
                client_ip=admission.client_ip,
                user_agent=request.headers.get("user-agent", "")[:512],
            ),
        )
        self.set_expiry(connection, identity)
        return connection

    def set_expiry(self, connection: Connection, identity: Identity) -> None:
        """The connection ends when the token does."""
        connection.expires_at = self.now() + identity.expires_s - self.wall_s() if identity.expires_s else 0.0

    # ---- what connections report

    def opened(self, connection: Connection, *, is_echo: bool) -> None:
        """The 101 is sent."""
        self._open += 1
        self._per_ip[connection.details.client_ip] += 1
        if is_echo:
            self.hub.add(connection)
            self.hub.release(connection)
        else:
            self.presence.arrive(connection)

    def lost(self, connection: Connection) -> None:
        """The socket is gone."""
        self._open -= 1
        client_ip = connection.details.client_ip
        self._per_ip[client_ip] -= 1
        if not self._per_ip[client_ip]:
            del self._per_ip[client_ip]
        self.metrics.disconnects.labels(str(connection.close_code or ABNORMAL_CLOSURE)).inc()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run what a client asked for and a store must answer; awaited at the end."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a client's request failed", exc_info=error)
            self.metrics.errors.labels("session").inc()

    async def finished(self) -> None:
        """Return when everything clients asked for is done."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def close(self) -> None:
        """Give up what clients asked for and is not done."""
        for task in self._tasks:
            task.cancel()
        await self.finished()


class Listener(WSListener):
    """What picows calls for one connection."""

    __slots__ = ("_session", "connection", "gateway", "is_open", "protocol")

    def __init__(self, gateway: Gateway, connection: Connection, session: Session) -> None:
        self.gateway = gateway
        self.connection = connection
        self.protocol: WSProtocol | None = None
        self.is_open = False
        self._session = session

    def on_ws_connected(self, transport: WSTransport) -> None:
        """The handshake is answered."""
        self.is_open = True
        self.connection.owner = self
        trim(transport)
        self.gateway.opened(self.connection, is_echo=self._session.is_echo)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        """The transport is about to close its descriptor."""
        self.connection.lost()
        self.gateway.lost(self.connection)
        self.protocol = None

    def pause_writing(self) -> None:
        """The transport holds bytes: the hub knows, it looks at the buffer itself."""

    def resume_writing(self) -> None:
        """The transport's buffer is empty."""
        self.connection.buffer_emptied()

    def protocol_failed(self, code: int) -> None:
        """picows found a violation and wants to send CLOSE with `code`.

        Its parser would now report every further byte: the rest is read and dropped by somebody else, who would not
        see the peer's CLOSE either. So our side of the stream ends here, and the peer need not wait for more.
        """
        connection = self.connection
        self.gateway.hub.close(connection, code)
        transport = connection.transport
        if transport is not None and self.protocol is not None:
            transport.set_protocol(_Discard(self.protocol))
            if transport.can_write_eof() and not transport.is_closing():
                transport.write_eof()

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """One WebSocket frame."""
        connection = self.connection
        now = connection.last_seen = self.gateway.now()
        opcode: int = int(frame.msg_type)  # type: ignore[call-overload]  # an IntEnum, typed as an Enum
        if connection.close_code:
            if opcode == wire.Opcode.CLOSE:
                connection.finish()
            return
        try:
            event = self._session.receive(
                opcode,
                bool(frame.fin),
                bool(frame.rsv1 or frame.rsv2 or frame.rsv3),
                frame.get_payload_as_bytes(),
                now,
                self.gateway.live.config.limits,
            )
            if event is not None:
                self._act(event)
        except ProtocolError as error:
            self.gateway.hub.close(connection, error.code, error.reason)
            if opcode == wire.Opcode.CLOSE:
                connection.finish()
        except Exception:
            log.exception("session failed", conn_id=connection.conn_id)
            self.gateway.metrics.errors.labels("session").inc()
            self.gateway.hub.close(connection, CloseCode.INTERNAL_ERROR)

    def _act(self, event: Event) -> None:
        kind = type(event)
        self.gateway.metrics.frames_received.labels(_EVENT_NAMES[kind]).inc()
        _ACTIONS[kind](self, event)

    def _send(self, message: wire.ServerMessage) -> None:
        self.gateway.hub.send(self.connection, wire.frame(message, self.connection.dialect))

    def _refuse(self, code: ErrorCode, text: str, ref: str | msgspec.UnsetType = msgspec.UNSET) -> None:
        self._send(wire.ErrorFrame(error=code, message=text, ref=ref))

    # ---- what clients say

    def _pong(self, event: PingReceived) -> None:
        self.gateway.hub.send(self.connection, wire.ws_frame(wire.Opcode.PONG, event.payload))

    def _closed_by_peer(self, event: CloseReceived) -> None:
        connection = self.connection
        self.gateway.hub.close(connection, event.code)
        connection.finish()

    def _echo(self, event: Echo) -> None:
        self.gateway.hub.send(self.connection, wire.ws_frame(event.opcode, event.payload))

    def _ping(self, event: wire.Ping) -> None:
        data = wire.HelloData(user_id=self.connection.user_id, conn_id=self.connection.conn_id)
        self._send(wire.Pong(data))

    def _ack(self, event: wire.Ack) -> None:
        self._acknowledge(event.message_ids)

    def _message_received(self, event: wire.MessageReceived) -> None:
        self._acknowledge([event.message_id])

    def _acknowledge(self, message_ids: list[str]) -> None:
        if not self.connection.is_guest:
            self.gateway.metrics.acks.inc(len(message_ids))
            self.gateway.receipts.acknowledge(self.connection.user_id, message_ids)

    def _read(self, event: wire.Read) -> None:
        self._mark(event.message_ids, Mark.READ)

    def _confirm(self, event: wire.Confirm) -> None:
        self._mark(event.message_ids, Mark.CONFIRMED)

    def _mark(self, message_ids: list[str], mark: Mark) -> None:
        if self.connection.is_guest:
            self._refuse(ErrorCode.FORBIDDEN, "guests have no receipts")
        else:
            self.gateway.spawn(self._store_mark(message_ids, mark))

    async def _store_mark(self, message_ids: list[str], mark: Mark) -> None:
        try:
            found = await self.gateway.receipts.mark(self.connection.user_id, message_ids, mark, but=self.connection)
        except StoreError:
            self._refuse(ErrorCode.STORE_UNAVAILABLE, "the receipt could not be stored; try again")
            return
        for message_id in dict.fromkeys(message_ids):
            if message_id not in found:
                self._refuse(ErrorCode.NOT_FOUND, "no such notice for this user", message_id)

    def _auth(self, event: wire.Auth) -> None:
        gateway = self.gateway
        if gateway.live.config.auth.mode == "none":
            return
        try:
            identity = gateway.authenticator.verify(event.token)
        except RequestError as error:
            gateway.hub.close(self.connection, CloseCode.TOKEN_INVALID, error.text)
            return
        if identity.user_id != self.connection.user_id:
            gateway.hub.close(self.connection, CloseCode.TOKEN_INVALID, "the token names another user")
            return
        gateway.set_expiry(self.connection, identity)


_ACTIONS: dict[type, Callable[[Listener, Any], None]] = {
    PingReceived: Listener._pong,
    CloseReceived: Listener._closed_by_peer,
    Echo: Listener._echo,
    wire.ErrorFrame: Listener._send,
    wire.Ping: Listener._ping,
    wire.Ack: Listener._ack,
    wire.MessageReceived: Listener._message_received,
    wire.Read: Listener._read,
    wire.Confirm: Listener._confirm,
    wire.Auth: Listener._auth,
}

_EVENT_NAMES: dict[type, str] = {
    PingReceived: "ws_ping",
    CloseReceived: "ws_close",
    Echo: "echo",
    wire.ErrorFrame: "invalid",
    wire.Ping: "ping",
    wire.Ack: "ack",
    wire.MessageReceived: "message_received",
    wire.Read: "read",
    wire.Confirm: "confirm",
    wire.Auth: "auth",
}


class _Discard(asyncio.Protocol):
    """Reads and drops what comes after a protocol error, so that the peer gets our CLOSE and not a reset."""

    def __init__(self, protocol: WSProtocol) -> None:
        self._protocol = protocol

    def data_received(self, data: bytes) -> None:
        pass

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._protocol.connection_lost(exc)


def _named_user(user_id: str | None) -> Identity:
    """The user a query names where no credentials are asked for; nobody is a guest."""
    if user_id is None:
        return Identity()
    if not (user_id.isascii() and user_id.isdigit() and len(user_id) < 20 and 1 <= int(user_id) <= MAX_USER_ID):
        text = "user_id: expected a whole number from 1"
        raise RequestError(ErrorCode.INVALID_REQUEST, text, details={"field": "user_id"})
    return Identity(user_id=int(user_id))


def _negotiate(offered: str) -> tuple[str, Dialect]:
    """The first subprotocol we speak (RFC 6455 section 4.2.2), or none and JSON."""
    for name in (name.strip() for name in offered.split(",")):
        if name in wire.SUBPROTOCOLS:
            return name, wire.SUBPROTOCOLS[name]
    return "", Dialect.JSON


def _picows_protocol(answer: WSUpgradeResponseWithListener, max_frame_bytes: int) -> WSProtocol:
    return WSProtocol(
        None,  # host and port, path: a client's
        None,
        False,
        lambda _request: answer,
        _picows_log,
        True,  # disconnect_on_exception
        None,  # handshake timeout: the front has kept it
        False,  # auto-ping: `Presence.watch` sweeps
        1.0,
        1.0,
        WSAutoPingStrategy.PING_WHEN_IDLE,
        False,  # auto-pong: every write goes through the hub
        max_frame_bytes,
        None,
        READ_BUFFER_BYTES,
    )


def _canonical_head(request: Request) -> bytes:
    """The upgrade as picows insists on it; browsers also say `Connection: keep-alive, Upgrade`."""
    key = request.headers["sec-websocket-key"].encode()
    return (
        b"GET / HTTP/1.1\r\nHost: pushd\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + key + b"\r\n\r\n"
    )


def _replay(protocol: WSProtocol, data: bytes) -> None:
    """Feed bytes as the transport would, in the pieces the read buffer has room for."""
    view = memoryview(data)
    while view:
        room = protocol.get_buffer(len(view))
        count = min(len(room), len(view))
        room[:count] = view[:count]
        view = view[count:]
        protocol.buffer_updated(count)
