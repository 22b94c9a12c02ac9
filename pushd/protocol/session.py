"""One connection's protocol state, without I/O: a WebSocket frame in, what it means out.

It does what a frame parser leaves to its user (RFC 6455): reassembly with a limit on size and count
(5.4), UTF-8 while the text arrives (8.1), reserved bits (5.2), close codes (7.4); deflated messages, where that was
negotiated (RFC 7692); and what is ours: the rates of frames and ids, and the messages of CONTRACT section 4.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable
from typing import Any

import msgspec

from pushd.config.schema import LimitsConfig
from pushd.errors import CloseCode, ErrorCode, ProtocolError
from pushd.protocol.deflate import RSV1, inflated, most_wire_bytes
from pushd.protocol.frames import (
    Ack,
    Auth,
    ClientMessage,
    Dialect,
    ErrorFrame,
    MessageReceived,
    Opcode,
    Ping,
    ReadAll,
    decode,
)

TEXT = int(Opcode.TEXT)
LEAST_FRAGMENTS = 64  # of a message, whatever its size
BYTES_PER_FRAGMENT = 64  # of the longest message: the longer it may be, the more fragments
BYTES_PER_ID = 64  # however few ids a message names
AUTH_S = 0.2  # of a client's rate of ids for a token: a signature takes up to a millisecond to check
READ_ALL_S = 0.02  # it looks at all that the user has not read, and is written at once
MESSAGE_S = 0.001  # for a message that names ids, however few
IDS_BURST_S = 1.0  # so much may be saved up
UNSENDABLE_CLOSE_CODES = frozenset({1004, 1005, 1006, 1015})


class Utf8Decoder(codecs.BufferedIncrementalDecoder):
    """Refuses a surrogate at its second byte. Python's own waits for the third, as its caller may want surrogates."""

    _buffer_decode = staticmethod(codecs.utf_8_decode)  # type: ignore[assignment]

    def decode(self, data: Any, final: bool = False) -> str:
        """Raises UnicodeDecodeError at the first byte that no text can have there."""
        text = super().decode(data, final)
        if self.buffer[:1] == b"\xed" and self.buffer[1:2] >= b"\xa0":
            raise UnicodeDecodeError("utf-8", self.buffer, 0, 2, "surrogates not allowed")
        return text


class PingReceived(msgspec.Struct, frozen=True):
    """A WebSocket PING: to be answered with a PONG of the same payload."""

    payload: bytes


class CloseReceived(msgspec.Struct, frozen=True):
    """The peer says CLOSE; `code` is what to answer it with."""

    code: int


class Echo(msgspec.Struct, frozen=True):
    """A whole message, for the echo endpoint."""

    opcode: int
    payload: bytes


Event = ClientMessage | ErrorFrame | PingReceived | CloseReceived | Echo


class _Partial:
    """A message of which fragments have come. A deflated one is kept as it came: an inflater takes 40 KB."""

    __slots__ = ("chunks", "count", "is_deflated", "opcode", "size", "text")

    def __init__(self, opcode: int, is_deflated: bool) -> None:
        self.opcode = opcode
        self.is_deflated = is_deflated
        self.chunks: list[bytes] = []
        self.size = self.count = 0
        self.text = Utf8Decoder() if opcode == Opcode.TEXT and not is_deflated else None

    def add(self, payload: bytes, is_final: bool, max_bytes: int) -> None:
        self.count += 1
        self.size += len(payload)
        _check_size(self.size, self.is_deflated, max_bytes)
        if self.count > max_fragments(max_bytes):
            raise ProtocolError(CloseCode.MESSAGE_TOO_BIG, "message too big")
        self.chunks.append(payload)
        if self.text is not None:
            _check_text(self.text.decode, payload, is_final)


def max_fragments(max_bytes: int) -> int:
    """Of a message of at most `max_bytes`."""
    return max(LEAST_FRAGMENTS, max_bytes // BYTES_PER_FRAGMENT)


def _check_size(size: int, is_deflated: bool, max_bytes: int) -> None:
    """What came for a message; deflated ones are held to `max_bytes` once more as they are inflated."""
    if size > (most_wire_bytes(max_bytes) if is_deflated else max_bytes):
        raise ProtocolError(CloseCode.MESSAGE_TOO_BIG, "message too big")


def _check_text(check: Callable[..., Any], *args: Any) -> None:
    try:
        check(*args)
    except UnicodeDecodeError:
        raise ProtocolError(CloseCode.INVALID_TEXT, "invalid UTF-8") from None


class Session:
    """From hello to close. `receive` returns one event or None, and raises ProtocolError when it is over.

    `can_inflate`: permessage-deflate was negotiated. `paid_at`: when the ids that came are within `max_ids_per_s`;
    until then nothing should be read.
    """

    __slots__ = (
        "_dialect", "_opcode", "_partial", "_window_frames", "_window_start", "can_inflate", "is_echo", "paid_at",
    )  # fmt: skip

    def __init__(self, dialect: Dialect, *, is_echo: bool = False, can_inflate: bool = False) -> None:
        self._dialect = dialect
        self._opcode = dialect.opcode
        self.is_echo = is_echo
        self.can_inflate = can_inflate
        self._partial: _Partial | None = None
        self._window_start = 0.0
        self._window_frames = 0
        self.paid_at = 0.0

    def receive(
        self, opcode: int, is_final: bool, reserved: int, payload: bytes, now: float, limits: LimitsConfig
    ) -> Event | None:
        """Take one WebSocket frame that arrived at `now` (s). `reserved`: the RSV bits, where a frame has them."""
        if opcode == self._opcode and is_final and not reserved and self._partial is None:  # nearly always
            if len(payload) > limits.max_frame_bytes:
                raise ProtocolError(CloseCode.MESSAGE_TOO_BIG, "message too big")
            if opcode == TEXT and not payload.isascii():
                _check_text(payload.decode)
            event: Event | None = self._message(opcode, payload, now, limits)
        elif reserved and not self._is_deflated(opcode, reserved):
            raise ProtocolError(CloseCode.PROTOCOL_ERROR, "reserved bits")
        elif opcode >= Opcode.CLOSE:
            event = _control(opcode, payload)
        else:
            event = self._data(opcode, is_final, bool(reserved), payload, now, limits)
        if type(event) is not Ack and type(event) is not MessageReceived:
            self._count_frame(now, limits.max_frames_per_s)
        return event

    def _count_frame(self, now: float, most_per_s: int) -> None:
        if now - self._window_start >= 1.0:
            self._window_start = now
            self._window_frames = 0
        self._window_frames += 1
        if self._window_frames > most_per_s > 0:
            raise ProtocolError(CloseCode.TOO_MANY_FRAMES, "too many frames")

    def _spend(self, kind: type, event: Any, size: int, now: float, per_s: int) -> None:
        """Ids that are named several times count several times, and long messages as if they named more."""
        if kind is Auth:
            spent_s = AUTH_S
        elif kind is ReadAll:
            spent_s = READ_ALL_S
        else:
            named = 1 if kind is MessageReceived else len(event.message_ids)
            if size >= BYTES_PER_ID * (named + 1):
                named = size // BYTES_PER_ID
            spent_s = named / per_s
            if spent_s < MESSAGE_S:
                spent_s = MESSAGE_S
        earliest = now - IDS_BURST_S
        self.paid_at = (earliest if earliest > self.paid_at else self.paid_at) + spent_s

    def text_under_way(self, opcode: int, reserved: int) -> Utf8Decoder | None:
        """What the payload of a frame must pass as it arrives; None where it is not the text of a message.

        The frame itself is still to come whole, to `receive`.
        """
        partial = self._partial
        if reserved:
            return None
        if opcode == Opcode.TEXT and partial is None and (self.is_echo or self._opcode == Opcode.TEXT):
            return Utf8Decoder()
        if opcode == Opcode.CONTINUATION and partial is not None and partial.text is not None:
            decoder = Utf8Decoder()
            decoder.setstate(partial.text.getstate())
            return decoder
        return None

    def _is_deflated(self, opcode: int, reserved: int) -> bool:
        """RSV1 says so, on the first frame of a message (RFC 7692 section 6)."""
        return self.can_inflate and reserved == RSV1 and opcode in (Opcode.TEXT, Opcode.BINARY)

    def _data(
        self, opcode: int, is_final: bool, is_deflated: bool, payload: bytes, now: float, limits: LimitsConfig
    ) -> Event | None:
        if opcode == Opcode.CONTINUATION:
            if self._partial is None:
                raise ProtocolError(CloseCode.PROTOCOL_ERROR, "nothing to continue")
        elif self._partial is not None:
            raise ProtocolError(CloseCode.PROTOCOL_ERROR, "continuation expected")
        elif opcode != self._opcode and not self.is_echo:
            raise ProtocolError(CloseCode.UNSUPPORTED_DATA, f"{self._dialect.name} messages expected")
        elif is_final:
            return self._whole(opcode, is_deflated, payload, now, limits)
        else:
            self._partial = _Partial(opcode, is_deflated)
        return self._continue(self._partial, is_final, payload, now, limits)

    def _whole(self, opcode: int, is_deflated: bool, payload: bytes, now: float, limits: LimitsConfig) -> Event:
        max_bytes = limits.max_frame_bytes
        _check_size(len(payload), is_deflated, max_bytes)
        if is_deflated:
            payload = inflated(payload, max_bytes)
        if opcode == Opcode.TEXT:
            _check_text(payload.decode)
        return self._message(opcode, payload, now, limits)

    def _continue(
        self, partial: _Partial, is_final: bool, payload: bytes, now: float, limits: LimitsConfig
    ) -> Event | None:
        partial.add(payload, is_final, limits.max_frame_bytes)
        if not is_final:
            return None
        self._partial = None
        payload = b"".join(partial.chunks)
        if partial.is_deflated:
            return self._whole(partial.opcode, True, payload, now, limits)
        return self._message(partial.opcode, payload, now, limits)

    def _message(self, opcode: int, payload: bytes, now: float, limits: LimitsConfig) -> Event:
        if self.is_echo:
            return Echo(opcode, payload)
        try:
            event = decode(payload, self._dialect)
        except msgspec.DecodeError as error:
            return ErrorFrame(error=ErrorCode.INVALID_REQUEST, message=f"not a message of this protocol: {error}")
        except RecursionError:
            return ErrorFrame(error=ErrorCode.INVALID_REQUEST, message="nested too deeply")
        kind = type(event)
        if kind is not Ping:
            self._spend(kind, event, len(payload), now, limits.max_ids_per_s)
        return event


def _control(opcode: int, payload: bytes) -> Event | None:
    if opcode == Opcode.PING:
        return PingReceived(payload)
    if opcode == Opcode.PONG:
        return None
    return CloseReceived(_close_reply(payload))


def _close_reply(payload: bytes) -> int:
    """The code to answer a CLOSE with (RFC 6455 section 5.5.1); invalid ones are a protocol error (7.4)."""
    if not payload:
        return CloseCode.NORMAL
    code = int.from_bytes(payload[:2], "big")
    if len(payload) == 1 or code in UNSENDABLE_CLOSE_CODES or not (1000 <= code <= 1014 or 3000 <= code <= 4999):
        raise ProtocolError(CloseCode.PROTOCOL_ERROR, "invalid close code")
    _check_text(payload[2:].decode)
    return code
