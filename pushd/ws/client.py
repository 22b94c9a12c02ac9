"""A WebSocket connection after its handshake: what its client says, and what it does here.

picows parses and unmasks frames; a `Session` says what they mean; the hub does every write.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import structlog
from picows import WSAutoPingStrategy, WSUpgradeResponse, WSUpgradeResponseWithListener
from picows.picows import WSProtocol  # type: ignore[attr-defined]  # private: pinned, and a contract test

from pushd._fastpath import Connection
from pushd.config.schema import LimitsConfig
from pushd.errors import CloseCode, ErrorCode, ProtocolError, StoreError
from pushd.http.messages import Request
from pushd.model import Mark
from pushd.protocol import frames
from pushd.protocol.deflate import most_wire_bytes
from pushd.protocol.session import CloseReceived, Echo, PingReceived, Session, Utf8Decoder
from pushd.telemetry import faults
from pushd.ws._reader import FrameParser

if TYPE_CHECKING:
    from pushd.ws.gateway import Gateway

log = structlog.get_logger("pushd.websocket")
# An adapter, so that picows makes no Logger per connection; its errors are clients' faults, which we count.
_picows_log = logging.LoggerAdapter(logging.getLogger("picows"), {})
_picows_log.setLevel(logging.CRITICAL)

READ_BUFFER_BYTES = 2048  # picows' least
MARKS_AT_ONCE = 2  # of one connection under way; until there are fewer, nothing is read from it
REFILL_S = 0.1  # a client that was too fast is read from again when it has saved up so much
ACCEPT_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3
CLOSE_HEAD = 0x80 | frames.Opcode.CLOSE


class Listener:
    """Hears what one connection's client says."""

    __slots__ = ("_marks", "_session", "connection", "gateway")

    def __init__(self, gateway: Gateway, connection: Connection, session: Session) -> None:
        self.gateway = gateway
        self.connection = connection
        self._session = session
        self._marks = 0  # under way

    def data_received(self, data: bytes) -> None:
        """Bytes that came by TLS."""
        self.gateway.reader.feed(self.connection, data)

    def lost(self) -> None:
        """The transport is about to close its descriptor."""
        self.gateway.lost(self.connection)

    def protocol_failed(self, code: int) -> None:
        """picows found a violation and wants to send CLOSE with `code`.

        The rest of what comes is read and dropped, so that the peer gets our CLOSE and not a reset; nobody would see
        the peer's CLOSE either. So our side of the stream ends here, and the peer need not wait for more.
        """
        connection = self.connection
        self.gateway.hub.close(connection, code)
        connection.is_deaf = True
        transport = connection.transport
        if transport is not None and transport.can_write_eof() and not transport.is_closing():
            transport.write_eof()

    def receive(self, opcode: int, is_final: bool, reserved: int, payload: bytes, now: float) -> None:
        """One WebSocket frame of a connection that is open."""
        connection, gateway = self.connection, self.gateway
        try:
            event = self._session.receive(opcode, is_final, reserved, payload, now, gateway.current.config.limits)
            if event is not None:
                kind = type(event)
                gateway.metrics.count_frame(_EVENT_NAMES[kind])
                _ACTIONS[kind](self, event)
                if self._session.paid_at > now:
                    self._read_on(now)
        except ProtocolError as error:
            gateway.hub.close(connection, error.code, error.reason)
        except Exception as error:
            faults.noted(gateway.metrics, "session", error, conn_id=connection.conn_id)
            gateway.hub.close(connection, CloseCode.INTERNAL_ERROR)

    def text_under_way(self, opcode: int, reserved: int) -> Utf8Decoder | None:
        """See Session."""
        return self._session.text_under_way(opcode, reserved)

    def text_failed(self) -> None:
        """That did not decode what it was given."""
        self.gateway.hub.close(self.connection, CloseCode.INVALID_TEXT, "invalid UTF-8")

    def _read_on(self, now: float) -> None:
        """At once, or when what its client has asked for is paid or done."""
        until = self._session.paid_at + REFILL_S if self._session.paid_at > now else 0.0
        if self._marks >= MARKS_AT_ONCE:
            until = math.inf
        if until > now:
            self.gateway.reader.pause(self.connection, until)
        else:
            self.gateway.reader.resume(self.connection)

    def _send(self, message: frames.ServerMessage) -> None:
        self.gateway.hub.send(self.connection, frames.frame(message, self.connection.dialect))

    def _refuse(self, code: ErrorCode, text: str, message_ids: list[str]) -> None:
        """One frame names all of them."""
        if len(message_ids) == 1:
            self._send(frames.ErrorFrame(error=code, message=text, ref=message_ids[0]))
        else:
            self._send(frames.ErrorFrame(error=code, message=text, refs=message_ids))

    # ---- what clients say

    def _pong(self, event: PingReceived) -> None:
        self.gateway.hub.send(self.connection, frames.ws_frame(frames.Opcode.PONG, event.payload))

    def _closed_by_peer(self, event: CloseReceived) -> None:
        self.gateway.hub.close(self.connection, event.code)

    def _echo(self, event: Echo) -> None:
        frame = frames.data_frame(event.opcode, event.payload, self.connection.dialect)
        self.gateway.hub.send(self.connection, frame)

    def _ping(self, event: frames.Ping) -> None:
        data = frames.HelloData(user_id=self.connection.user_id, conn_id=self.connection.conn_id)
        self._send(frames.Pong(data))

    def _ack(self, event: frames.Ack) -> None:
        self._acknowledge(event.message_ids)

    def _message_received(self, event: frames.MessageReceived) -> None:
        self._acknowledge([event.message_id])

    def _acknowledge(self, message_ids: list[str]) -> None:
        if not self.connection.is_guest:
            self.gateway.metrics.acks.inc(len(message_ids))
            self.gateway.receipts.acknowledge(self.connection.user_id, message_ids)

    def _read(self, event: frames.Read) -> None:
        self._mark(event.message_ids, Mark.READ)

    def _confirm(self, event: frames.Confirm) -> None:
        self._mark(event.message_ids, Mark.CONFIRMED)

    def _mark(self, message_ids: list[str], mark: Mark) -> None:
        message_ids = list(dict.fromkeys(message_ids))
        if self.connection.is_guest:
            self._refuse(ErrorCode.FORBIDDEN, "guests have no receipts", message_ids)
            return
        self._marks += 1
        if self._marks >= MARKS_AT_ONCE:
            self._read_on(self.gateway.now())
        self.gateway.spawn(self._store_mark(message_ids, mark))

    async def _store_mark(self, message_ids: list[str], mark: Mark) -> None:
        try:
            found = await self.gateway.receipts.mark(self.connection.user_id, message_ids, mark, but=self.connection)
        except StoreError:
            self._refuse(ErrorCode.STORE_UNAVAILABLE, "the receipt could not be stored; try again", message_ids)
        else:
            known = set(found)
            unknown = [message_id for message_id in message_ids if message_id not in known]
            if unknown:
                self._refuse(ErrorCode.NOT_FOUND, "no such notice for this user", unknown)
        finally:
            self._marks -= 1
            self._read_on(self.gateway.now())

    def _auth(self, event: frames.Auth) -> None:
        if self.gateway.current.config.auth.mode != "none":
            self.gateway.renewals.renew(self.connection, event.token)


_ACTIONS: dict[type, Callable[[Listener, Any], None]] = {
    PingReceived: Listener._pong,
    CloseReceived: Listener._closed_by_peer,
    Echo: Listener._echo,
    frames.ErrorFrame: Listener._send,
    frames.Ping: Listener._ping,
    frames.Ack: Listener._ack,
    frames.MessageReceived: Listener._message_received,
    frames.Read: Listener._read,
    frames.Confirm: Listener._confirm,
    frames.Auth: Listener._auth,
}

_EVENT_NAMES: dict[type, str] = {
    PingReceived: "ws_ping",
    CloseReceived: "ws_close",
    Echo: "echo",
    frames.ErrorFrame: "invalid",
    frames.Ping: "ping",
    frames.Ack: "ack",
    frames.MessageReceived: "message_received",
    frames.Read: "read",
    frames.Confirm: "confirm",
    frames.Auth: "auth",
}


def switching_protocols(request: Request, headers: dict[str, str]) -> bytes:
    """The 101 (RFC 6455 section 4.2.2); `headers` are its own beyond those of every handshake."""
    digest = hashlib.sha1(request.headers["sec-websocket-key"].encode() + ACCEPT_GUID, usedforsecurity=False).digest()
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
        + base64.b64encode(digest)
        + f"\r\n{lines}\r\n".encode("latin-1")
    )


# ---- picows, which parses and does nothing else


def longest_frames(limits: LimitsConfig) -> tuple[int, int]:
    """The longest frame to take from a client, plain and with permessage-deflate; the session looks closer."""
    return limits.max_frame_bytes, most_wire_bytes(limits.max_frame_bytes)


def parsing(parser: FrameParser, max_frame_bytes: int) -> WSProtocol:
    """A picows protocol that gives its frames to `parser`."""
    answer = WSUpgradeResponseWithListener(WSUpgradeResponse.create_101_response(None), parser)
    protocol = _picows_protocol(answer, max_frame_bytes)
    protocol.connection_made(_NoTransport(parser))
    _replay(protocol, HANDSHAKE)
    return protocol


# picows begins with a handshake. That of the connection has been answered already.
HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: pushd\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


class _NoTransport:
    """What a parser has for a transport. Of what picows writes only a CLOSE matters: it found a violation.

    Its buffer is never empty, so that picows does not write to a socket, which is not there.
    """

    def __init__(self, parser: FrameParser) -> None:
        self._parser = parser

    def get_extra_info(self, name: str) -> _NoSocket | None:
        return _NoSocket() if name == "socket" else None

    def get_write_buffer_size(self) -> int:
        return 1

    def write(self, data: bytes) -> None:
        if data[0] == CLOSE_HEAD:
            self._parser.failed(int.from_bytes(data[2:4], "big"))

    def close(self) -> None:
        """After a violation; the connection has an end of its own."""


class _NoSocket:
    def setsockopt(self, *_: int) -> None: ...

    def getsockopt(self, *_: int) -> int:
        return 0

    def fileno(self) -> int:
        return -1


def _picows_protocol(answer: WSUpgradeResponseWithListener, max_frame_bytes: int) -> WSProtocol:
    return WSProtocol(
        None,  # host and port, path: a client's
        None,
        False,
        lambda _request: answer,
        _picows_log,
        True,  # disconnect_on_exception
        None,  # handshake timeout: the front has kept it
        False,  # auto-ping: `Heartbeat` sweeps
        1.0,
        1.0,
        WSAutoPingStrategy.PING_WHEN_IDLE,
        False,  # auto-pong: every write goes through the hub
        max_frame_bytes,
        None,
        READ_BUFFER_BYTES,
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
