"""What picows calls for a connection, and how it takes a transport over from HTTP.

picows parses and unmasks frames and calls `Listener`; a `Session` says what they mean; the hub does every write.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
import structlog
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
from pushd._fastpath import Connection, trim
from pushd.deflate import most_wire_bytes
from pushd.edge.http1 import Request
from pushd.errors import CloseCode, ErrorCode, ProtocolError, RequestError, StoreError
from pushd.model import Mark
from pushd.session import CloseReceived, Echo, Event, PingReceived, Session

if TYPE_CHECKING:
    from pushd.edge.gateway import Gateway

log = structlog.get_logger("pushd.websocket")
# An adapter, so that picows makes no Logger per connection; its errors are clients' faults, which we count.
_picows_log = logging.LoggerAdapter(logging.getLogger("picows"), {})
_picows_log.setLevel(logging.CRITICAL)

READ_BUFFER_BYTES = 2048  # picows' least


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

    def max_wire_bytes(self) -> int:
        """The longest frame to take from the peer; the session looks closer."""
        max_bytes = self.gateway.live.config.limits.max_frame_bytes
        return most_wire_bytes(max_bytes) if self._session.can_inflate else max_bytes

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
                frame.rsv1 << 6 | frame.rsv2 << 5 | frame.rsv3 << 4,
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
        self.gateway.metrics.count_frame(_EVENT_NAMES[kind])
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
        frame = wire.data_frame(event.opcode, event.payload, self.connection.dialect)
        self.gateway.hub.send(self.connection, frame)

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
        self.connection.details.token_id = identity.token_id


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


def hand_over(listener: Listener, request: Request, headers: dict[str, str], tail: bytes) -> None:
    """Let picows take over the transport of the listener's connection; `tail` is what came behind the request.

    `headers` are the 101's own beyond those of every handshake.
    """
    connection = listener.connection
    transport = connection.transport
    assert transport is not None  # noqa: S101 - for the type checker
    answer = WSUpgradeResponseWithListener(WSUpgradeResponse.create_101_response(headers or None), listener)
    protocol = _picows_protocol(answer, listener.max_wire_bytes())
    listener.protocol = protocol
    transport.set_protocol(protocol)
    protocol.connection_made(connection)
    _replay(protocol, _canonical_head(request) + tail)
    if not transport.is_closing():
        transport.resume_reading()


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
