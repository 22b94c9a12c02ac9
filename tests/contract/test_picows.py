"""The parts of picows that are private and that pushd leans on. When one changes, this fails first, and says what."""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import picows
import picows.picows
import pytest
import uvloop
from picows import WSAutoPingStrategy, WSFrame, WSListener, WSTransport, WSUpgradeResponse
from picows.picows import WSProtocol

from pushd import _fastpath
from pushd.edge import websocket
from pushd.edge.http1 import Request

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # RFC 6455 section 1.3
MAX_FRAME_BYTES = 1000
MASK = b"\x01\x02\x03\x04"


def test_the_version_is_the_one_pinned() -> None:
    assert (2, 3, 1) <= tuple(map(int, importlib.metadata.version("picows").split(".")[:3])) < (2, 4)


class Pipe:
    """The transport that picows is given: like our Connection, it takes note of all that is written."""

    def __init__(self, sock: socket.socket, buffer_size: int = 1) -> None:
        self.sock = sock
        self.buffer_size = buffer_size
        self.written: list[bytes] = []
        self.calls: list[str] = []
        self.on_write: Callable[[bytes], None] = self.written.append

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.sock if name == "socket" else default

    def get_write_buffer_size(self) -> int:
        return self.buffer_size

    def write(self, data: Any) -> None:
        self.on_write(bytes(data))

    def writelines(self, buffers: Any) -> None:
        self.write(b"".join(buffers))

    def is_closing(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args: self.calls.append(name)


class Listener(WSListener):
    """Takes note of the frames; raises when told to."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.failing: Exception | None = None

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.events.append("connected")
        self.transport = transport

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self.events.append("disconnected")

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        bits = bool(frame.fin), bool(frame.rsv1), bool(frame.rsv2), bool(frame.rsv3)
        self.events.append((int(frame.msg_type), frame.get_payload_as_bytes(), bits))  # type: ignore[call-overload]
        if self.failing is not None:
            raise self.failing

    def pause_writing(self) -> None:
        self.events.append("paused")

    def resume_writing(self) -> None:
        self.events.append("resumed")


class Rig:
    """A picows protocol made exactly as the gateway makes it, with a pipe for a transport."""

    def __init__(self, sock: socket.socket, buffer_size: int = 1) -> None:
        self.pipe = Pipe(sock, buffer_size)
        self.listener = Listener()
        response = WSUpgradeResponse.create_101_response({"Sec-WebSocket-Protocol": "pushd.v1.json"})
        answer = picows.WSUpgradeResponseWithListener(response, self.listener)
        self.protocol = websocket._picows_protocol(answer, MAX_FRAME_BYTES)
        self.protocol.connection_made(self.pipe)

    def feed(self, data: bytes) -> None:
        websocket._replay(self.protocol, data)

    def upgrade(self) -> None:
        self.feed(head())
        assert self.listener.events == ["connected"]
        self.pipe.written.clear()
        self.listener.events.clear()


def head() -> bytes:
    return websocket._canonical_head(Request(target=b"/ws", headers={"sec-websocket-key": KEY}, is_upgrade=True))


def masked(first: int, payload: bytes = b"", *, mask: bytes = MASK) -> bytes:
    """A client's frame with `first` for its first byte."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else struct.pack("!BH", 0x80 | 126, size)
    return bytes([first]) + length + mask + bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    listener = socket.create_server(("127.0.0.1", 0))
    theirs = socket.create_connection(listener.getsockname())
    ours, _ = listener.accept()
    listener.close()
    theirs.setblocking(False)
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
async def rig(sockets: tuple[socket.socket, socket.socket]) -> Rig:
    return Rig(sockets[0])


def nothing_arrived(theirs: socket.socket) -> bool:
    try:
        theirs.recv(1)
    except BlockingIOError:
        return True
    return False


# ---- the constructor


async def test_the_constructors_parameters_and_their_order() -> None:
    """`_picows_protocol` passes them by position."""
    parameters = {
        "host_port": None,
        "ws_path": None,
        "is_client_side": False,
        "ws_listener_factory": lambda request: None,
        "logger": logging.LoggerAdapter(logging.getLogger("picows"), {}),
        "disconnect_on_exception": True,
        "websocket_handshake_timeout": None,
        "enable_auto_ping": False,
        "auto_ping_idle_timeout": 1.0,
        "auto_ping_reply_timeout": 1.0,
        "auto_ping_strategy": WSAutoPingStrategy.PING_WHEN_IDLE,
        "enable_auto_pong": False,
        "max_frame_size": MAX_FRAME_BYTES,
        "extra_headers": None,
        "read_buffer_init_size": 2048,
    }
    values = list(parameters.values())
    WSProtocol(**parameters)
    WSProtocol(*values)
    with pytest.raises(TypeError):
        WSProtocol(*values, None)
    with pytest.raises(TypeError):
        WSProtocol(*values[:-1])
    # Parameters of the same kind that changed places would not be noticed: picows ships its source.
    source = (Path(picows.__file__).parent / "picows.pyx").read_text()
    signature = source.split("cdef class WSProtocol(WSProtocolBase", 1)[1].split("def __init__(self,", 1)[1]
    found = [part.split()[-1] for part in signature.split("):", 1)[0].split(",")]
    assert found == list(parameters)


async def test_the_logger_is_not_copied_per_connection(sockets: tuple[socket.socket, socket.socket]) -> None:
    """picows makes a Logger per connection out of a Logger, and none out of an adapter."""
    assert not isinstance(websocket._picows_log, logging.Logger)
    before = len(logging.Logger.manager.loggerDict)
    Rig(sockets[0])
    assert len(logging.Logger.manager.loggerDict) == before


# ---- everything picows writes arrives through its transport


async def test_the_answer_to_the_upgrade(rig: Rig, sockets: tuple[socket.socket, socket.socket]) -> None:
    rig.feed(head())
    (answer,) = rig.pipe.written
    assert answer.startswith(b"HTTP/1.1 101 ")
    assert answer.endswith(b"\r\n\r\n")
    lines = {line.lower() for line in answer.split(b"\r\n")}
    assert b"sec-websocket-accept: " + ACCEPT.lower() in lines
    assert b"sec-websocket-protocol: pushd.v1.json" in lines
    assert rig.listener.events == ["connected"]
    assert nothing_arrived(sockets[1])


OFFENCES = [
    ("unmasked", b"\x81\x01x", 1002),
    ("unknown data opcode", masked(0x83), 1002),
    ("unknown control opcode", masked(0x8B), 1002),
    ("fragmented control frame", masked(0x09), 1002),
    ("control frame too long", masked(0x89, b"x" * 126), 1002),
    ("16 bits for a small length", b"\x81\xfe\x00\x05" + MASK, 1002),
    ("64 bits for a small length", b"\x81\xff" + struct.pack("!Q", 65535) + MASK, 1002),
    ("the highest bit of 64", b"\x81\xff" + struct.pack("!Q", 1 << 63) + MASK, 1002),
    ("too big", b"\x81" + struct.pack("!BH", 0xFE, MAX_FRAME_BYTES + 1) + MASK, 1009),
    ("far too big", b"\x81\xff" + struct.pack("!Q", 1 << 40) + MASK, 1009),
    ("reserved close code", masked(0x88, struct.pack("!H", 1004)), 1002),
    ("close payload of one byte", masked(0x88, b"\x03"), 1002),
    ("close reason that is not UTF-8", masked(0x88, b"\x03\xe8\xff"), 1007),
]


@pytest.mark.parametrize(("offence", "code"), [pytest.param(data, code, id=name) for name, data, code in OFFENCES])
@pytest.mark.parametrize("piece", [1, 100])
async def test_violations(
    rig: Rig, sockets: tuple[socket.socket, socket.socket], offence: bytes, code: int, piece: int
) -> None:
    """What picows refuses by itself: one CLOSE, whole, through the transport. `session` counts on all of these."""
    rig.upgrade()
    for start in range(0, len(offence), piece):
        rig.feed(offence[start : start + piece])
        if rig.pipe.written:
            break
    (written,) = rig.pipe.written
    assert written[0] == 0x88
    assert written[1] == len(written) - 2
    assert int.from_bytes(written[2:4], "big") == code
    assert nothing_arrived(sockets[1])
    assert not any(isinstance(event, tuple) for event in rig.listener.events)


async def test_an_exception_in_the_listener(rig: Rig, sockets: tuple[socket.socket, socket.socket]) -> None:
    rig.upgrade()
    rig.listener.failing = RuntimeError("secret")
    rig.feed(masked(0x81, b"x"))
    (written,) = rig.pipe.written
    assert written == b"\x88\x02" + struct.pack("!H", 1011)
    assert nothing_arrived(sockets[1])


async def test_a_violation_behind_a_good_frame(rig: Rig) -> None:
    """CLOSE is written before the good frame is delivered: the listener must not act on it any more."""
    rig.upgrade()
    order: list[str] = []
    rig.pipe.on_write = lambda data: order.append("close")
    rig.listener.events = order
    rig.feed(masked(0x81, b"good") + b"\x81\x01x")
    assert order[0] == "close"
    assert order[1][:2] == (1, b"good")


async def test_nothing_is_sent_past_a_transport_that_says_it_holds_bytes(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    """What `Connection.get_write_buffer_size` relies on, and that the check would notice a direct send."""
    held = Rig(sockets[0], buffer_size=1)
    held.upgrade()
    for message in (b"", b"small", b"x" * 20_000):
        held.listener.transport.send(picows.WSMsgType.TEXT, message)
    held.listener.transport.send_pong(b"p")
    assert [len(data) for data in held.pipe.written] == [2, 7, 20_004, 3]
    assert nothing_arrived(sockets[1])
    free = Rig(sockets[0], buffer_size=0)
    free.upgrade()
    free.listener.transport.send(picows.WSMsgType.TEXT, b"direct")
    assert free.pipe.written == []
    assert sockets[1].recv(100) == b"\x81\x06direct"


async def test_picows_leaves_the_rest_to_us(rig: Rig) -> None:
    """No pong, no answer to CLOSE, no reassembly, no look at text or reserved bits, and deliveries after CLOSE."""
    rig.upgrade()
    everything = (True, False, False, False)
    for first, payload, bits in (
        (0x89, b"ping", everything),
        (0x8A, b"", everything),
        (0x81, b"\xff", everything),
        (0x01, b"a", (False, False, False, False)),
        (0x80, b"b", everything),
        (0x80, b"nothing to continue", everything),
        (0xC1, b"", (True, True, False, False)),
        (0xA1, b"", (True, False, True, False)),
        (0x91, b"", (True, False, False, True)),
        (0x88, b"\x03\xe8bye", everything),
        (0x81, b"after CLOSE", everything),
    ):
        rig.feed(masked(first, payload))
        assert rig.listener.events.pop() == (first & 0x0F, payload, bits)
    assert rig.pipe.written == []
    assert rig.pipe.calls == []


@pytest.mark.parametrize("code", [0, 1006])
async def test_close_codes_picows_lets_through(rig: Rig, code: int) -> None:
    """Why `session` looks at close codes itself."""
    rig.upgrade()
    rig.feed(masked(0x88, struct.pack("!H", code)))
    assert rig.listener.events[0][0] == 8
    assert rig.pipe.written == []


async def test_flow_control_and_the_end_reach_the_listener(rig: Rig) -> None:
    rig.protocol.pause_writing()  # before there is a listener
    rig.protocol.resume_writing()
    rig.upgrade()
    rig.protocol.pause_writing()
    rig.protocol.resume_writing()
    assert rig.protocol.eof_received() is False
    rig.protocol.connection_lost(None)
    assert rig.listener.events == ["paused", "resumed", "disconnected"]


async def test_a_connection_that_was_never_upgraded_tells_the_listener_nothing(rig: Rig) -> None:
    rig.feed(head()[:20])
    rig.protocol.connection_lost(None)
    assert rig.listener.events == []


# ---- the request, replayed


@pytest.mark.parametrize("piece", [1, 7, 64, 4096])
async def test_the_canonical_request_in_pieces(rig: Rig, piece: int) -> None:
    data = head()
    for start in range(0, len(data), piece):
        assert rig.listener.events == []
        rig.feed(data[start : start + piece])
    assert rig.listener.events == ["connected"]


@pytest.mark.parametrize("count", [0, 1, 30, 400])
async def test_frames_behind_the_request(rig: Rig, count: int) -> None:
    """More than the read buffer holds: what came with the handshake is delivered, all of it and in order."""
    payloads = [f"{number}".encode() * 30 for number in range(count)]
    rig.feed(head() + b"".join(masked(0x81, payload) for payload in payloads))
    assert [event[1] for event in rig.listener.events[1:]] == payloads


async def test_the_read_buffer_is_small_and_always_has_room(rig: Rig) -> None:
    assert 1024 <= len(rig.protocol.get_buffer(65536)) <= websocket.READ_BUFFER_BYTES
    rig.upgrade()
    for _ in range(MAX_FRAME_BYTES):
        assert len(rig.protocol.get_buffer(65536)) > 0
        rig.feed(masked(0x82, b"x" * MAX_FRAME_BYTES))
    assert len(rig.protocol.get_buffer(65536)) <= 4 * websocket.READ_BUFFER_BYTES


# ---- fields of the transport that `_fastpath.trim` sets


async def test_trim(rig: Rig, sockets: tuple[socket.socket, socket.socket]) -> None:
    rig.upgrade()
    transport = rig.listener.transport
    assert transport.request is not None
    assert transport.response is not None
    _fastpath.trim(transport)
    assert transport.request is None
    assert transport.response is None
    other = Rig(sockets[0])
    other.upgrade()
    _fastpath.trim(other.listener.transport)
    # The write buffer is shared now. Each CLOSE is still its own.
    rig.feed(b"\x81\x01x")
    other.feed(b"\x81" + struct.pack("!BH", 0xFE, MAX_FRAME_BYTES + 1) + MASK)
    assert int.from_bytes(rig.pipe.written[0][2:4], "big") == 1002
    assert int.from_bytes(other.pipe.written[0][2:4], "big") == 1009
    with pytest.raises(TypeError):
        _fastpath.trim(None)  # type: ignore[arg-type]


def test_layouts_are_those_the_extension_was_built_for() -> None:
    """Cython compares sizes at import; this names the classes should that ever be switched off."""
    for name in ("WSTransport", "MemoryBuffer"):
        assert getattr(picows.picows, name).__basicsize__ > 16
    pxd = (Path(picows.__file__).parent / "picows.pxd").read_text()
    for field in ("readonly object request ", "readonly object response ", "MemoryBuffer _write_buffer"):
        assert field in pxd


# ---- uvloop's side of the hand-over


async def test_a_uvloop_transport_takes_picows_and_lets_it_go(sockets: tuple[socket.socket, socket.socket]) -> None:
    """`set_protocol` in both directions, as `attach` and a protocol error do, between and inside reads."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, uvloop.Loop)
    ours, theirs = sockets
    dropped = asyncio.Event()

    class Plain(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            dropped.set()

    transport, _ = await loop.create_connection(Plain, sock=ours.dup())
    transport.pause_reading()
    rig = Rig(ours)
    arrived = asyncio.Event()
    rig.pipe.on_write = lambda data: (transport.set_protocol(Plain()), arrived.set())
    transport.set_protocol(rig.protocol)
    rig.pipe.on_write, on_write = rig.pipe.written.append, rig.pipe.on_write
    rig.feed(head())
    rig.pipe.on_write = on_write
    transport.resume_reading()
    theirs.sendall(masked(0x81, b"good") + b"\x81\x01x")
    async with asyncio.timeout(5):
        await arrived.wait()
        theirs.sendall(masked(0x81, b"dropped"))
        await dropped.wait()
    assert [event[1] for event in rig.listener.events[1:]] == [b"good"]
    transport.abort()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    rig.protocol.connection_lost(None)
