"""Bytes on the wire: the frames of CONTRACT section 4 in JSON and MessagePack, and RFC 6455 frame headers.

Encoders return complete, unmasked WebSocket frames, ready to be written to any number of connections.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from enum import IntEnum
from typing import Annotated, Any
from zoneinfo import ZoneInfo

import msgspec

from pushd.errors import ErrorCode
from pushd.local_time import date_and_time
from pushd.model import MailboxItem, Mark, Notice, UserId, parsed
from pushd.protocol.deflate import RSV1, deflated
from pushd.values import MAX_MS


class Dialect(IntEnum):
    """How a connection speaks; the value, with DEFLATED or without, indexes per-dialect frames."""

    JSON = 0
    MSGPACK = 1

    @property
    def opcode(self) -> int:
        """The WebSocket opcode of its messages (RFC 6455 section 5.2)."""
        return Opcode.TEXT if self is Dialect.JSON else Opcode.BINARY


TOLD_CHANGES = 4  # added to a dialect where frames for connections opened with changes=1 are others
DEFLATED = 2  # added to a connection's dialect: permessage-deflate was negotiated

SUBPROTOCOLS = {"pushd.v1.json": Dialect.JSON, "pushd.v1.msgpack": Dialect.MSGPACK}


class Opcode(IntEnum):
    """RFC 6455 section 5.2."""

    CONTINUATION = 0x0
    TEXT = 0x1
    BINARY = 0x2
    CLOSE = 0x8
    PING = 0x9
    PONG = 0xA


def ws_frame(opcode: int, payload: bytes) -> bytes:
    """One final, unmasked frame (RFC 6455 section 5.2). `opcode` may include RSV1."""
    size = len(payload)
    if size < 126:
        return bytes((0x80 | opcode, size)) + payload
    if size < 65536:
        return struct.pack("!BBH", 0x80 | opcode, 126, size) + payload
    return struct.pack("!BBQ", 0x80 | opcode, 127, size) + payload


def close_frame(code: int, reason: str = "") -> bytes:
    """A CLOSE frame; `reason` is cut to the 123 bytes a control frame has room for."""
    text = reason.encode()[:123].decode(errors="ignore").encode()
    return ws_frame(Opcode.CLOSE, struct.pack("!H", code) + text)


PING_FRAME = ws_frame(Opcode.PING, b"")


# ---- server to client


class HelloData(msgspec.Struct):
    """`data` of hello and, without the last three, of pong."""

    user_id: UserId
    conn_id: str
    status: str = "connected"
    heartbeat_s: float | msgspec.UnsetType = msgspec.UNSET
    unread_count: int | msgspec.UnsetType = msgspec.UNSET
    node_id: str | msgspec.UnsetType = msgspec.UNSET


class Hello(msgspec.Struct, tag="hello"):
    """The first frame of every connection."""

    data: HelloData
    code: int = 200


class Pong(msgspec.Struct, tag="pong"):
    """The answer to a `ping` message (not to a WebSocket PING)."""

    data: HelloData
    code: int = 200


class NoticeFrame(msgspec.Struct):
    """A notice as its recipients see it. `ts`: milliseconds since the epoch; `time`: the same for people."""

    type: str
    content: str
    data: Any
    time: str
    ts: int
    message_id: str
    priority: int
    need_confirm: bool
    offline: bool | msgspec.UnsetType = msgspec.UNSET
    title: str | msgspec.UnsetType = msgspec.UNSET
    url: str | msgspec.UnsetType = msgspec.UNSET
    tags: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    version: int | msgspec.UnsetType = msgspec.UNSET  # from 2 on


class ReceiptFrame(msgspec.Struct, tag="receipt"):
    """Another connection of the same user read or confirmed a notice."""

    message_id: str
    status: Mark
    unread_count: int


class RevokeFrame(msgspec.Struct, tag="revoke"):
    """A notice that was sent is taken back."""

    message_id: str


class UnreadFrame(msgspec.Struct, tag="unread"):
    """How many notices the user has not read: another number than before. For connections opened with `unread=1`."""

    unread_count: int


class UpdateFrame(msgspec.Struct, tag="update"):
    """A notice that was sent says something else now."""

    notice: NoticeFrame


class RemindFrame(msgspec.Struct, tag="remind"):
    """A notice that was sent is to be looked at again, the `n`th time."""

    n: int
    notice: NoticeFrame


class ErrorFrame(msgspec.Struct, tag="error"):
    """A client's message was refused; the connection stays open. `ref`: the id it is about; `refs`: several."""

    error: ErrorCode
    message: str
    ref: str | msgspec.UnsetType = msgspec.UNSET
    refs: list[str] | msgspec.UnsetType = msgspec.UNSET


ServerMessage = (
    Hello | Pong | NoticeFrame | ReceiptFrame | RevokeFrame | UpdateFrame | RemindFrame | UnreadFrame | ErrorFrame
)

_encode_json = msgspec.json.Encoder().encode
_encode_msgpack = msgspec.msgpack.Encoder().encode


def frame(message: ServerMessage, dialect: int) -> bytes:
    """The complete WebSocket frame of `message`, never deflated: for one connection that costs more than it saves."""
    return ws_frame(*_encode(message, dialect))


def shared_frame(message: ServerMessage, dialect: int) -> bytes:
    """The complete WebSocket frame of `message` for many connections.

    It is deflated for those that negotiated that, where it makes the frame smaller.
    """
    opcode, payload = _encode(message, dialect)
    return data_frame(opcode, payload, dialect)


def data_frame(opcode: int, payload: bytes, dialect: int) -> bytes:
    """The frame of an encoded message, deflated as in `shared_frame`."""
    smaller = deflated(payload) if dialect & DEFLATED else None
    return ws_frame(opcode, payload) if smaller is None else ws_frame(RSV1 | opcode, smaller)


def _encode(message: ServerMessage, dialect: int) -> tuple[int, bytes]:
    if dialect & Dialect.MSGPACK:
        return Opcode.BINARY, _packed(message)
    return Opcode.TEXT, _encode_json(message)


def _packed(message: ServerMessage) -> bytes:
    if isinstance(message, NoticeFrame):
        message = _with_values(message)
    elif isinstance(message, UpdateFrame | RemindFrame):
        message = msgspec.structs.replace(message, notice=_with_values(message.notice))
    try:
        return _encode_msgpack(message)
    except OverflowError:
        if isinstance(message, NoticeFrame):
            return _encode_msgpack(_with_small_data(message))
        if isinstance(message, UpdateFrame | RemindFrame):
            return _encode_msgpack(msgspec.structs.replace(message, notice=_with_small_data(message.notice)))
        raise


def _with_values(message: NoticeFrame) -> NoticeFrame:
    is_json = type(message.data) is msgspec.Raw
    return msgspec.structs.replace(message, data=parsed(message.data)) if is_json else message


def _with_small_data(message: NoticeFrame) -> NoticeFrame:
    return msgspec.structs.replace(message, data=_with_small_integers(message.data))


def _with_small_integers(value: Any) -> Any:
    """Other programs' data with what MessagePack cannot carry: an integer beyond 64 bits is the nearest float, as where
    JavaScript reads it, or its digits as a text where there is none."""
    if isinstance(value, dict):
        return {key: _with_small_integers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_small_integers(item) for item in value]
    if not isinstance(value, int) or -(2**63) <= value < 2**64:
        return value
    try:
        return float(value)
    except OverflowError:
        return str(value)


def notice_frame(notice: Notice, timezone: ZoneInfo) -> NoticeFrame:
    """What recipients see of a notice that is delivered live."""
    return NoticeFrame(
        type=notice.type,
        content=notice.content,
        data=notice.data,
        time=date_and_time(published_ms(notice), timezone),
        ts=published_ms(notice),
        message_id=notice.message_id,
        priority=notice.priority,
        need_confirm=notice.need_confirm,
        title=notice.title or msgspec.UNSET,
        url=notice.url or msgspec.UNSET,
        tags=notice.tags or msgspec.UNSET,
        version=notice.version if notice.version > 1 else msgspec.UNSET,
    )


def mailbox_item(notice: Notice, timezone: ZoneInfo, saved_ms: int) -> MailboxItem:
    """The form in which a notice waits for absent recipients."""
    return MailboxItem(
        type=notice.type,
        content=notice.content,
        message_id=notice.message_id,
        data=notice.data,
        time=date_and_time(published_ms(notice), timezone),
        ts=published_ms(notice),
        priority=notice.priority,
        need_confirm=notice.need_confirm,
        expires_ms=notice.expires_ms,
        saved_at=saved_ms,
        title=notice.title,
        url=notice.url,
        tags=notice.tags,
        version=notice.version,
    )


def reminder_frame(notice: Notice, timezone: ZoneInfo, dialect: int) -> bytes:
    """A reminder as connections opened with changes=1 get it, whose dialect has TOLD_CHANGES added; others get the
    notice itself."""
    message = notice_frame(notice, timezone)
    if dialect < TOLD_CHANGES or notice.reminder is None:
        return shared_frame(message, dialect)
    return shared_frame(RemindFrame(n=notice.reminder.n, notice=message), dialect - TOLD_CHANGES)


def published_ms(notice: Notice) -> int:
    """When a notice was accepted, which a reminder of it says as well."""
    return notice.accepted_ms if notice.reminder is None else notice.reminder.accepted_ms


def replayed_frame(item: MailboxItem) -> NoticeFrame:
    """What a user sees of a notice that waited."""
    return NoticeFrame(
        type=item.type,
        content=item.content,
        data=item.data,
        time=item.time,
        ts=item.ts,
        message_id=item.message_id,
        priority=item.priority,
        need_confirm=item.need_confirm,
        offline=True,
        title=item.title or msgspec.UNSET,
        url=item.url or msgspec.UNSET,
        tags=item.tags or msgspec.UNSET,
        version=item.version if item.version > 1 else msgspec.UNSET,
    )


# ---- client to server

# A publisher's are shorter; what other programs put into a mailbox may be as long as fits into a frame.
MessageId = Annotated[str, msgspec.Meta(min_length=1)]
MessageIds = Annotated[list[MessageId], msgspec.Meta(min_length=1, max_length=1000)]


class Ping(msgspec.Struct, tag="ping", frozen=True):
    """Asks for a `pong`."""


class Ack(msgspec.Struct, tag="ack", frozen=True):
    """The client has these notices."""

    message_ids: MessageIds


class MessageReceived(msgspec.Struct, tag="message_received", frozen=True):
    """The older form of `ack`, for one notice."""

    message_id: MessageId


class Read(msgspec.Struct, tag="read", frozen=True):
    """The user has read these."""

    message_ids: MessageIds


class Confirm(msgspec.Struct, tag="confirm", frozen=True):
    """The user confirmed these."""

    message_ids: MessageIds


class ReadAll(msgspec.Struct, tag="read_all", frozen=True):
    """The user has read everything that was accepted up to `until_ts` (ms since the epoch; default: now)."""

    until_ts: Annotated[int, msgspec.Meta(ge=0, le=MAX_MS)] | None = None


class Auth(msgspec.Struct, tag="auth", frozen=True):
    """A fresh token before the old one expires."""

    token: str


ClientMessage = Ping | Ack | MessageReceived | Read | Confirm | ReadAll | Auth

_decode_json: Callable[[bytes], ClientMessage] = msgspec.json.Decoder(ClientMessage).decode
_decode_msgpack: Callable[[bytes], ClientMessage] = msgspec.msgpack.Decoder(ClientMessage).decode


def decode(payload: bytes, dialect: int) -> ClientMessage:
    """A client's message. Raises msgspec.DecodeError (or its subclass ValidationError) with a text for people.

    Raises RecursionError when it is nested too deeply.
    """
    try:
        return _decode_json(payload) if dialect == Dialect.JSON else _decode_msgpack(payload)
    except UnicodeDecodeError:  # msgspec lets it through from strings inside MessagePack
        raise msgspec.DecodeError("invalid UTF-8") from None
