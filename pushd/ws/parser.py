"""The picows protocol that takes WebSocket frames out of bytes, and does nothing else.

Everything that is written goes through the hub; what a frame means, a `Session` says.
"""

from __future__ import annotations

import logging

from picows import WSAutoPingStrategy, WSUpgradeResponse, WSUpgradeResponseWithListener
from picows.picows import WSProtocol  # type: ignore[attr-defined]  # private: pinned, and a contract test

from pushd.config.schema import LimitsConfig
from pushd.protocol.deflate import most_wire_bytes
from pushd.protocol.frames import Opcode
from pushd.ws._reader import FrameParser

# An adapter, so that picows makes no Logger per connection; its errors are clients' faults, which we count.
picows_log = logging.LoggerAdapter(logging.getLogger("picows"), {})
picows_log.setLevel(logging.CRITICAL)

READ_BUFFER_BYTES = 2048  # picows' least
CLOSE_HEAD = 0x80 | Opcode.CLOSE


def longest_frames(limits: LimitsConfig) -> tuple[int, int]:
    """The longest frame to take from a client, plain and with permessage-deflate; the session looks closer."""
    return limits.max_frame_bytes, most_wire_bytes(limits.max_frame_bytes)


def parsing(parser: FrameParser, max_frame_bytes: int) -> WSProtocol:
    """A picows protocol that gives its frames to `parser`."""
    answer = WSUpgradeResponseWithListener(WSUpgradeResponse.create_101_response(None), parser)
    protocol = picows_protocol(answer, max_frame_bytes)
    protocol.connection_made(_NoTransport(parser))
    replay(protocol, HANDSHAKE)
    return protocol


# picows begins with a handshake. That of the connection has been answered already.
HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: pushd\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


class _NoTransport:
    """What a parser has for a transport. Of what picows writes only a CLOSE matters: it says that it found a violation.

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


def picows_protocol(answer: WSUpgradeResponseWithListener, max_frame_bytes: int) -> WSProtocol:
    """picows' protocol with all that it could do by itself switched off, before its handshake."""
    return WSProtocol(
        None,  # host and port, path: a client's
        None,
        False,
        lambda _request: answer,
        picows_log,
        True,  # disconnect_on_exception
        None,  # handshake timeout: the HTTP connection has kept it
        False,  # auto-ping: the heartbeat sweeps
        1.0,
        1.0,
        WSAutoPingStrategy.PING_WHEN_IDLE,
        False,  # auto-pong: every write goes through the hub
        max_frame_bytes,
        None,
        READ_BUFFER_BYTES,
    )


def replay(protocol: WSProtocol, data: bytes) -> None:
    """Feed bytes as the transport would, in the pieces the read buffer has room for."""
    view = memoryview(data)
    while view:
        room = protocol.get_buffer(len(view))
        count = min(len(room), len(view))
        room[:count] = view[:count]
        view = view[count:]
        protocol.buffer_updated(count)
