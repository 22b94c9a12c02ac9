"""What the client of one WebSocket connection says after its handshake, and what is done about it here.

The reader takes frames out of bytes; a `Session` says what they mean; the hub does every write.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from pushd._fastpath import Connection
from pushd.errors import CloseCode, ErrorCode, ProtocolError, StoreError
from pushd.model import Mark
from pushd.protocol import frames
from pushd.protocol.session import CloseReceived, Echo, PingReceived, Session, Utf8Decoder
from pushd.telemetry import faults
from pushd.ws.shared import Shared

MARKS_AT_ONCE = 2  # of one connection under way; until there are fewer, nothing is read from it
REFILL_S = 0.1  # a client that was too fast is read from again when it has saved up so much


class Listener:
    """The owner of one connection (protocol.owner): hears what its client says, and acts on it."""

    __slots__ = ("_connection", "_marks", "_session", "_shared")

    def __init__(self, shared: Shared, connection: Connection, session: Session) -> None:
        self._shared = shared
        self._connection = connection
        self._session = session
        self._marks = 0  # under way

    def data_received(self, data: bytes) -> None:
        """Have bytes read that came by TLS."""
        self._shared.reader.feed(self._connection, data)

    def lost(self) -> None:
        """The transport is about to close its descriptor."""
        self._shared.lost(self._connection)

    def protocol_failed(self, code: int) -> None:
        """picows found a violation and wants to send CLOSE with `code`.

        The rest of what comes is read and dropped, so that the peer gets our CLOSE and not a reset; nobody would see
        the peer's CLOSE either. So our side of the stream ends here, and the peer need not wait for more.
        """
        connection = self._connection
        self._shared.hub.close(connection, code)
        connection.is_deaf = True
        transport = connection.transport
        if transport is not None and transport.can_write_eof() and not transport.is_closing():
            transport.write_eof()

    def receive(self, opcode: int, is_final: bool, reserved: int, payload: bytes, now: float) -> None:
        """Take one WebSocket frame of a connection that is open."""
        connection, shared = self._connection, self._shared
        try:
            event = self._session.receive(opcode, is_final, reserved, payload, now, shared.current.config.limits)
            if event is not None:
                kind = type(event)
                shared.metrics.count_frame(_EVENT_NAMES[kind])
                _ACTIONS[kind](self, event)
                if self._session.paid_at > now:
                    self._read_on(now)
        except ProtocolError as error:
            shared.hub.close(connection, error.code, error.reason)
        except Exception as error:
            faults.noted(shared.metrics, "session", error, conn_id=connection.conn_id)
            shared.hub.close(connection, CloseCode.INTERNAL_ERROR)

    def text_under_way(self, opcode: int, reserved: int) -> Utf8Decoder | None:
        """What the payload of a frame that has not come whole must pass as it arrives (Session)."""
        return self._session.text_under_way(opcode, reserved)

    def text_failed(self) -> None:
        """Close: a text under way has a byte that no text has there."""
        self._shared.hub.close(self._connection, CloseCode.INVALID_TEXT, "invalid UTF-8")

    def _read_on(self, now: float) -> None:
        """Go on reading at once, or when what its client has asked for is paid or done."""
        until = self._session.paid_at + REFILL_S if self._session.paid_at > now else 0.0
        if self._marks >= MARKS_AT_ONCE:
            until = math.inf
        if until > now:
            self._shared.reader.pause(self._connection, until)
        else:
            self._shared.reader.resume(self._connection)

    def _send(self, message: frames.ServerMessage) -> None:
        self._shared.hub.send(self._connection, frames.frame(message, self._connection.dialect))

    def _refuse(self, code: ErrorCode, text: str, message_ids: list[str]) -> None:
        """Refuse what was asked about these notices, in one frame that names them all."""
        if len(message_ids) == 1:
            self._send(frames.ErrorFrame(error=code, message=text, ref=message_ids[0]))
        else:
            self._send(frames.ErrorFrame(error=code, message=text, refs=message_ids))

    # ---- what clients say

    def _pong(self, event: PingReceived) -> None:
        self._shared.hub.send(self._connection, frames.ws_frame(frames.Opcode.PONG, event.payload))

    def _closed_by_peer(self, event: CloseReceived) -> None:
        self._shared.hub.close(self._connection, event.code)

    def _echo(self, event: Echo) -> None:
        frame = frames.data_frame(event.opcode, event.payload, self._connection.dialect)
        self._shared.hub.send(self._connection, frame)

    def _ping(self, event: frames.Ping) -> None:
        data = frames.HelloData(user_id=self._connection.user_id, conn_id=self._connection.conn_id)
        self._send(frames.Pong(data))

    def _ack(self, event: frames.Ack) -> None:
        connection, shared = self._connection, self._shared
        if not connection.is_guest:
            shared.metrics.acks.value += len(event.message_ids)
            shared.acknowledgements.acknowledge(connection.user_id, event.message_ids)

    def _message_received(self, event: frames.MessageReceived) -> None:
        self._ack(frames.Ack([event.message_id]))

    def _read(self, event: frames.Read) -> None:
        self._mark(event.message_ids, Mark.READ)

    def _confirm(self, event: frames.Confirm) -> None:
        self._mark(event.message_ids, Mark.CONFIRMED)

    def _mark(self, message_ids: list[str], mark: Mark) -> None:
        message_ids = list(dict.fromkeys(message_ids))
        if self._connection.is_guest:
            self._refuse(ErrorCode.FORBIDDEN, "guests have no receipts", message_ids)
            return
        self._marking()
        self._shared.tasks.spawn(self._store_mark(message_ids, mark))

    async def _store_mark(self, message_ids: list[str], mark: Mark) -> None:
        try:
            found = await self._shared.acknowledgements.mark(
                self._connection.user_id, message_ids, mark, but=self._connection
            )
        except StoreError:
            self._refuse(ErrorCode.STORE_UNAVAILABLE, "the receipt could not be stored; try again", message_ids)
        else:
            known = set(found)
            unknown = [message_id for message_id in message_ids if message_id not in known]
            if unknown:
                self._refuse(ErrorCode.NOT_FOUND, "no such notice for this user", unknown)
        finally:
            self._marked()

    def _marking(self) -> None:
        """One more mark is under way."""
        self._marks += 1
        if self._marks >= MARKS_AT_ONCE:
            self._read_on(self._shared.clock.now())

    def _marked(self) -> None:
        self._marks -= 1
        self._read_on(self._shared.clock.now())

    def _read_all(self, event: frames.ReadAll) -> None:
        if self._connection.is_guest:
            self._send(frames.ErrorFrame(error=ErrorCode.FORBIDDEN, message="guests have no receipts"))
            return
        self._marking()
        self._shared.tasks.spawn(self._store_read_all(event.until_ts))

    async def _store_read_all(self, until_ms: int | None) -> None:
        try:
            await self._shared.inboxes.read_all(self._connection.user_id, until_ms=until_ms)
        except StoreError:
            text = "what is read could not be stored; try again"
            self._send(frames.ErrorFrame(error=ErrorCode.STORE_UNAVAILABLE, message=text))
        finally:
            self._marked()

    def _auth(self, event: frames.Auth) -> None:
        if self._shared.current.config.auth.mode != "none":
            self._shared.renewals.renew(self._connection, event.token)


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
    frames.ReadAll: Listener._read_all,
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
    frames.ReadAll: "read_all",
    frames.Auth: "auth",
}
