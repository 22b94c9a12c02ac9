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

from pushd._fastpath import Connection, Hub
from pushd.ws._reader import FrameParser, Reader
from pushd.ws.parser import HANDSHAKE, READ_BUFFER_BYTES, parsing, picows_log, picows_protocol, replay
from tests.raw import frame as client_frame
from tests.unit.hub_support import connection_over

MAX_FRAME_BYTES = 1000
MASK = b"\x01\x02\x03\x04"


def test_the_version_is_the_one_pinned() -> None:
    assert (2, 3, 1) <= tuple(map(int, importlib.metadata.version("picows").split(".")[:3])) < (2, 4)


class Pipe:
    """The transport that picows is given: it takes note of all that is written."""

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
        return lambda *args, **options: self.calls.append(name)


class Listener(WSListener):
    """Takes note of the frames; raises when told to."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.tail_sizes: list[int] = []
        self.codes: list[int] = []
        self.failing: Exception | None = None

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.events.append("connected")
        self.transport = transport

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        bits = bool(frame.fin), bool(frame.rsv1), bool(frame.rsv2), bool(frame.rsv3)
        self.tail_sizes.append(frame.tail_size)
        self.events.append((int(frame.msg_type), frame.get_payload_as_bytes(), bits))  # type: ignore[call-overload]
        if self.failing is not None:
            raise self.failing

    def failed(self, code: int) -> None:
        """As `FrameParser`."""
        self.codes.append(code)


class Rig:
    """A picows protocol made exactly as `parsing` makes it, but with a pipe for a transport."""

    def __init__(self, sock: socket.socket, buffer_size: int = 1) -> None:
        self.pipe = Pipe(sock, buffer_size)
        self.listener = Listener()
        answer = picows.WSUpgradeResponseWithListener(WSUpgradeResponse.create_101_response(None), self.listener)
        self.protocol = picows_protocol(answer, MAX_FRAME_BYTES)
        self.protocol.connection_made(self.pipe)

    def feed(self, data: bytes) -> None:
        replay(self.protocol, data)

    def upgrade(self) -> None:
        self.feed(HANDSHAKE)
        assert self.listener.events == ["connected"]
        self.pipe.written.clear()
        self.listener.events.clear()


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
    assert not isinstance(picows_log, logging.Logger)
    before = len(logging.Logger.manager.loggerDict)
    Rig(sockets[0])
    assert len(logging.Logger.manager.loggerDict) == before


# ---- everything picows writes arrives through its transport


async def test_the_answer_to_the_handshake(rig: Rig, sockets: tuple[socket.socket, socket.socket]) -> None:
    rig.feed(HANDSHAKE)
    (answer,) = rig.pipe.written
    assert answer.startswith(b"HTTP/1.1 101 ")
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


@pytest.mark.parametrize(("offence", "code"), [pytest.param(data, code, id=name) for name, data, code in OFFENCES])
async def test_violations_as_the_parser_is_told_of_them(offence: bytes, code: int) -> None:
    """There is no socket, and 10 ms later picows closes what it takes for a transport."""
    listener = Listener()
    protocol = parsing(listener, MAX_FRAME_BYTES)  # type: ignore[arg-type]
    assert listener.events == ["connected"]
    replay(protocol, masked(0x81, b"good") + masked(0x81, b"good") + offence)
    assert listener.codes == [code]
    await asyncio.sleep(0.02)
    assert listener.codes == [code]


async def test_a_violation_closes_the_transport_later(rig: Rig) -> None:
    rig.upgrade()
    rig.feed(b"\x81\x01x")
    assert rig.pipe.calls == []
    await asyncio.sleep(0.02)
    assert rig.pipe.calls == ["close"]


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
    """What `_NoTransport.get_write_buffer_size` relies on, and that the check would notice a direct send."""
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


async def test_a_second_close(rig: Rig) -> None:
    """A violation: why what picows remembers of the first is wiped out before another connection's comes."""
    rig.upgrade()
    rig.feed(masked(0x88, b"\x03\xe8"))
    assert rig.listener.transport.close_handshake is not None
    rig.feed(masked(0x88, b"\x03\xe8"))
    (written,) = rig.pipe.written
    assert int.from_bytes(written[2:4], "big") == 1002


class Owner:
    """What a connection's owner hears."""

    def __init__(self, sock: socket.socket) -> None:
        self.heard: list[tuple[int, bytes]] = []
        self.codes: list[int] = []
        self.connection = connection_over(Pipe(sock), Hub(1000))
        self.connection.owner = self

    def receive(self, opcode: int, is_final: bool, reserved: int, payload: bytes, now: float) -> None:
        self.heard.append((opcode, payload))

    def protocol_failed(self, code: int) -> None:
        self.codes.append(code)


@pytest.mark.parametrize("ahead", [b"", masked(0x81, b"x")], ids=["alone", "behind a frame"])
async def test_a_parser_survives_close(sockets: tuple[socket.socket, socket.socket], ahead: bytes) -> None:
    """`FrameParser` may set the transport's `close_handshake`, and picows then knows of no CLOSE."""
    parsers: list[FrameParser] = []

    def make(parser: FrameParser, max_frame_bytes: int) -> WSProtocol:
        parsers.append(parser)
        return parsing(parser, max_frame_bytes)

    reader = Reader(make, MAX_FRAME_BYTES, MAX_FRAME_BYTES)
    for _ in range(3):
        owner = Owner(sockets[0])
        reader.feed(owner.connection, ahead + masked(0x88, b"\x03\xe8bye"))
        assert owner.heard[-1] == (8, b"\x03\xe8bye")
        assert owner.codes == []
    assert len(parsers) == 1


# ---- where one connection's bytes end


async def test_frames_of_a_whole_buffer_leave_no_tail(rig: Rig) -> None:
    rig.upgrade()
    rig.feed(masked(0x81, b"a") + masked(0x89) + masked(0x82, b"x" * 500))
    assert rig.listener.tail_sizes == [6 + 508, 508, 0]


@pytest.mark.parametrize("piece", [*range(1, 40), 200, 523, 524, 525, 1000, 1791])
async def test_the_tail_is_what_is_left_of_the_next_frame(rig: Rig, piece: int) -> None:
    """`tail_size` of the last frame of a buffer is 0 exactly when nothing is left: the next bytes may be anybody's."""
    rig.upgrade()
    frames = [masked(0x81, b"x" * size) for size in (0, 1, 5, 0, 125, 126, 300, 7, 700)]
    data, ends = b"".join(frames), [sum(map(len, frames[:count])) for count in range(1, len(frames) + 1)]
    for start in range(0, len(data), piece):
        rig.listener.tail_sizes.clear()
        rig.feed(data[start : start + piece])
        at = min(start + piece, len(data))
        assert rig.listener.tail_sizes == [at - end for end in ends if start < end <= at]
    assert len(rig.listener.events) == len(frames)


async def test_two_connections_one_after_the_other(rig: Rig) -> None:
    """Nothing of a whole frame stays in the parser."""
    rig.upgrade()
    for number in range(200):
        mask = bytes([number, 1, 2, 3])
        rig.feed(masked(0x81 + number % 2, bytes([number]) * number, mask=mask))
        opcode, payload, _ = rig.listener.events.pop()
        assert (opcode, payload) == (1 + number % 2, bytes([number]) * number)


@pytest.mark.parametrize("count", [0, 1, 30, 400])
async def test_frames_behind_the_handshake(rig: Rig, count: int) -> None:
    """More than the read buffer holds is delivered, all of it and in order."""
    payloads = [f"{number}".encode() * 30 for number in range(count)]
    rig.feed(HANDSHAKE + b"".join(masked(0x81, payload) for payload in payloads))
    assert [event[1] for event in rig.listener.events[1:]] == payloads


# ---- the read buffer


async def test_the_read_buffer_is_small_and_always_has_room(rig: Rig) -> None:
    assert 1024 <= len(rig.protocol.get_buffer(65536)) <= READ_BUFFER_BYTES
    rig.upgrade()
    for _ in range(MAX_FRAME_BYTES):
        assert len(rig.protocol.get_buffer(65536)) > 0
        rig.feed(masked(0x82, b"x" * MAX_FRAME_BYTES))
    assert len(rig.protocol.get_buffer(65536)) <= 4 * READ_BUFFER_BYTES


async def test_the_room_is_the_buffer_without_what_is_in_it(rig: Rig) -> None:
    """So between two frames its length says how far the buffer has grown. A hint changes nothing."""
    rig.upgrade()
    whole = len(rig.protocol.get_buffer(-1))
    data = masked(0x81, b"x" * 50)
    rig.feed(data[:20])
    assert len(rig.protocol.get_buffer(-1)) == len(rig.protocol.get_buffer(65536)) == whole - 20
    rig.feed(data[20:])
    assert len(rig.protocol.get_buffer(-1)) == whole
    rig.feed(data + data[:5])
    assert len(rig.protocol.get_buffer(-1)) == whole - 5


async def test_bytes_are_taken_where_they_were_put(rig: Rig) -> None:
    """At the beginning of the room, and only as many as `buffer_updated` says."""
    rig.upgrade()
    data = masked(0x81, b"payload")
    room = rig.protocol.get_buffer(-1)
    assert not room.readonly
    assert room.itemsize == 1
    room[: len(data) + 3] = data + b"???"
    rig.protocol.buffer_updated(len(data))
    assert rig.listener.tail_sizes == [0]
    rig.feed(data)
    assert [event[1] for event in rig.listener.events] == [b"payload", b"payload"]


async def test_the_buffer_grows_and_does_not_shrink() -> None:
    """By doubling, until there is room for the frame; why a parser that has grown is not kept."""
    listener = Listener()
    protocol = parsing(listener, 1 << 20)  # type: ignore[arg-type]
    before = len(protocol.get_buffer(-1))
    data = client_frame(2, b"x" * 60_000)
    replay(protocol, data[:-1])
    assert len(protocol.get_buffer(-1)) > 0
    replay(protocol, data[-1:])
    grown = len(protocol.get_buffer(-1))
    assert len(data) < grown <= 4 * len(data)
    assert grown % before == 0
    replay(protocol, masked(0x81, b"x"))
    assert len(protocol.get_buffer(-1)) == grown
    assert [len(event[1]) for event in listener.events[1:]] == [60_000, 1]


def test_layouts_are_those_the_extension_was_built_for() -> None:
    """Cython compares sizes at import; this names the classes and fields should that ever be switched off."""
    for name in ("WSFrame", "WSTransport", "WSListener"):
        assert getattr(picows.picows, name).__basicsize__ > 16
    assert FrameParser.__basicsize__ > WSListener.__basicsize__
    pxd = (Path(picows.__file__).parent / "picows.pxd").read_text()
    for field in (
        "char* payload_ptr",
        "readonly Py_ssize_t payload_size",
        "readonly Py_ssize_t tail_size",
        "readonly WSMsgType msg_type",
        "readonly uint8_t fin",
        "readonly uint8_t rsv1",
        "readonly uint8_t rsv2",
        "readonly uint8_t rsv3",
        "readonly WSCloseHandshake close_handshake ",
        "cpdef on_ws_connected(self, WSTransport transport)",
        "cpdef on_ws_frame(self, WSTransport transport, WSFrame frame)",
    ):
        assert field in pxd


# ---- uvloop's side of the hand-over


class Lost:
    """An owner that waits for the end."""

    def __init__(self) -> None:
        self.event = asyncio.Event()

    def lost(self) -> None:
        self.event.set()


async def hand_over(ours: socket.socket) -> tuple[Connection, Lost]:
    """As `Gateway.attach` does with a plain connection: reading is paused, for ever."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, uvloop.Loop)
    transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours.dup())
    transport.pause_reading()
    connection = connection_over(transport, Hub(1000))
    connection.owner = owner = Lost()
    transport.set_protocol(connection)  # type: ignore[arg-type]
    return connection, owner


@pytest.mark.parametrize("end", ["close", "abort"])
async def test_a_uvloop_transport_that_does_not_read_still_ends(
    sockets: tuple[socket.socket, socket.socket], end: str
) -> None:
    """And leaves what was sent to it where it is until then: the reader reads the descriptor."""
    ours, theirs = sockets
    connection, owner = await hand_over(ours)
    theirs.sendall(b"unread")
    for _ in range(5):
        await asyncio.sleep(0)
    assert ours.recv(100, socket.MSG_DONTWAIT | socket.MSG_PEEK) == b"unread"
    getattr(connection.transport, end)()
    async with asyncio.timeout(5):
        await owner.event.wait()
    assert connection.transport is None
    assert connection.owner is None


async def test_a_uvloop_transport_that_does_not_read_writes_to_its_end(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    """`resume_writing` says when its buffer is empty; `close` comes behind what is in it."""
    ours, theirs = sockets
    connection, owner = await hand_over(ours)
    transport: Any = connection.transport
    transport.write(b"x" * 10_000_000)
    assert transport.get_write_buffer_size() > 0
    drained = connection.drained(asyncio.get_running_loop())
    loop = asyncio.get_running_loop()
    count = 0
    async with asyncio.timeout(5):
        while not drained.done() or count < 10_000_000:
            count += len(await loop.sock_recv(theirs, 1 << 20))
        transport.write(b"the last")
        transport.close()
        await owner.event.wait()
    assert await loop.sock_recv(theirs, 100) == b"the last"


async def test_a_uvloop_transport_that_does_not_read_closes_one_side(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    """What `Listener.protocol_failed` does: the peer sees our end while its own bytes are still taken."""
    ours, theirs = sockets
    connection, owner = await hand_over(ours)
    transport: Any = connection.transport
    assert transport.can_write_eof()
    transport.write_eof()
    for _ in range(5):
        await asyncio.sleep(0)
    assert theirs.recv(1) == b""
    theirs.sendall(b"more")
    assert ours.recv(100) == b"more"
    assert not transport.is_closing()
    transport.abort()
    async with asyncio.timeout(5):
        await owner.event.wait()
