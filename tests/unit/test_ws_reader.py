"""The reader over real sockets: whose bytes are whose, whose turn it is, and what is left when a connection is gone."""

from __future__ import annotations

import asyncio
import codecs
import gc
import random
import select
import socket
import struct
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from picows.picows import WSProtocol

from pushd._fastpath import Connection, Hub
from pushd.errors import CloseCode
from pushd.protocol.frames import DEFLATED, Opcode
from pushd.ws._reader import FrameParser, Reader
from pushd.ws.parser import parsing
from tests.raw import frame
from tests.unit.hub_support import Peer, Workshop, connection_over

MAX_FRAME_BYTES = 100_000
MAX_DEFLATED_BYTES = 120_000
KEPT_BYTES = 16384  # as in _reader.pxd
WITHIN_S = 2.0
SOME_FRAME = frame(Opcode.TEXT, b"some frame")


def is_readable(descriptor: Reader | socket.socket) -> bool:
    """Whatever its number is: `select` knows none beyond 1,023."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


class Client:
    """A connection, its owner as the reader knows it, and the other end."""

    def __init__(self, lobby: Lobby, connection: Connection, sock: socket.socket) -> None:
        self.lobby = lobby
        self.connection = connection
        self.sock = sock
        self.heard: list[tuple[int, bool, int, bytes]] = []
        self.heard_at: list[float] = []
        self.codes: list[int] = []
        self.lost_total = 0
        self.on_receive: Callable[[], None] = lambda: None
        connection.owner = self

    # what the reader tells

    def receive(self, opcode: int, is_final: bool, reserved: int, payload: bytes, now: float) -> None:
        self.heard.append((opcode, is_final, reserved, payload))
        self.heard_at.append(now)
        self.on_receive()

    def text_under_way(self, opcode: int, reserved: int) -> codecs.IncrementalDecoder | None:
        return codecs.getincrementaldecoder("utf-8")() if opcode == Opcode.TEXT and not reserved else None

    def text_failed(self) -> None:
        self.codes.append(CloseCode.INVALID_TEXT)
        self.connection.hub.close(self.connection, CloseCode.INVALID_TEXT)

    def protocol_failed(self, code: int) -> None:
        self.codes.append(code)
        self.connection.hub.close(self.connection, code)
        self.connection.is_deaf = True

    def lost(self) -> None:
        self.lost_total += 1
        self.lobby.reader.forget(self.connection)

    # what a test does

    @property
    def descriptor(self) -> int:
        transport: Any = self.connection.transport
        return transport.get_extra_info("socket").fileno()

    @property
    def payloads(self) -> list[bytes]:
        return [payload for *_, payload in self.heard]

    def say(self, data: bytes) -> None:
        """Send, and have it read."""
        self.lobby.write(self, data)
        self.lobby.serve()

    def reset(self) -> None:
        """A TCP reset."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


class Lobby:
    """A reader whose turns are the test's."""

    def __init__(self, shop: Workshop) -> None:
        self.shop = shop
        self.made: list[int] = []  # max_frame_bytes of every parser
        self.parsers: weakref.WeakSet[FrameParser] = weakref.WeakSet()  # those that are still there
        self.reader = Reader(self._make, MAX_FRAME_BYTES, MAX_DEFLATED_BYTES)

    def _make(self, parser: FrameParser, max_frame_bytes: int) -> WSProtocol:
        self.made.append(max_frame_bytes)
        self.parsers.add(parser)
        return parsing(parser, max_frame_bytes)

    def enter(self, *, is_watched: bool = True, **options: Any) -> Client:
        """A connection over a socket pair."""
        connection = self.shop.connect(**options)
        return self._take_over(Client(self, connection, self.shop.peers[connection].sock), is_watched)

    def enter_by_tcp(self) -> Client:
        """The same over TCP, which knows resets."""
        transport: Any
        with socket.create_server(("127.0.0.1", 0)) as door:
            theirs = socket.create_connection(door.getsockname())
            ours, _ = door.accept()
        transport, _ = self.shop.run(self.shop.loop.create_connection(asyncio.Protocol, sock=ours))
        connection = connection_over(transport, self.shop.hub)
        self.shop.peers[connection] = Peer(theirs)
        return self._take_over(Client(self, connection, theirs), True)

    def _take_over(self, client: Client, is_watched: bool) -> Client:
        transport: Any = client.connection.transport
        transport.pause_reading()
        transport.set_protocol(client.connection)
        if is_watched:
            self.reader.watch(client.connection)
        return client

    def on_loop(self, act: Callable[[], None]) -> None:
        async def run() -> None:
            act()

        self.shop.run(run())

    def serve_once(self) -> None:
        self.on_loop(self.reader.serve)

    @property
    def is_ready(self) -> bool:
        """The loop would call `serve`."""
        return is_readable(self.reader)

    def serve(self) -> None:
        """Until there is nothing to do; what a transport has to do then is done too."""
        while self.is_ready:
            self.serve_once()
        self.shop.turn()

    def write(self, client: Client, data: bytes) -> None:
        """All of it, however little the kernel takes at a time."""
        while data:
            try:
                data = data[client.sock.send(data) :]
            except BlockingIOError:
                self.serve()

    def read_buffers(self) -> list[int]:
        """Bytes in the read buffers of parsers that hold nothing."""
        protocols = (thing for parser in self.parsers for thing in gc.get_referents(parser))
        return [len(protocol.get_buffer(-1)) for protocol in protocols if type(protocol) is WSProtocol]

    def until(self, is_done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WITHIN_S
        while not is_done():
            assert time.monotonic() < deadline
            self.serve()
            self.shop.run(asyncio.sleep(0.001))


@pytest.fixture
def shop() -> Iterator[Workshop]:
    shop = Workshop(Hub(20_000))
    yield shop
    shop.close()


@pytest.fixture
def lobby(shop: Workshop) -> Lobby:
    return Lobby(shop)


@pytest.fixture
def uncollected() -> Iterator[None]:
    """As in the daemon, cycles stay."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


# ---- whose bytes are whose


def test_one_parser_serves_all(lobby: Lobby) -> None:
    clients = [lobby.enter() for _ in range(20)]
    for turn in range(3):
        for number, client in enumerate(clients):
            lobby.write(client, frame(Opcode.TEXT, f"{number}/{turn}".encode()))
        lobby.serve()
    assert [client.payloads for client in clients] == [
        [f"{number}/{turn}".encode() for turn in range(3)] for number in range(20)
    ]
    assert lobby.made == [MAX_FRAME_BYTES]


def test_what_is_told_of_a_frame(lobby: Lobby) -> None:
    client = lobby.enter()
    client.say(
        frame(Opcode.TEXT, b"a", fin=False)
        + frame(Opcode.CONTINUATION, b"b")
        + frame(Opcode.PING, b"")
        + frame(Opcode.BINARY, b"c", rsv=4)
        + frame(Opcode.TEXT, b"d", rsv=2)
        + frame(Opcode.TEXT, b"e", rsv=1)
    )
    assert client.heard == [
        (Opcode.TEXT, False, 0, b"a"),
        (Opcode.CONTINUATION, True, 0, b"b"),
        (Opcode.PING, True, 0, b""),
        (Opcode.BINARY, True, 0x40, b"c"),
        (Opcode.TEXT, True, 0x20, b"d"),
        (Opcode.TEXT, True, 0x10, b"e"),
    ]


def test_when_a_frame_was_read(lobby: Lobby) -> None:
    before = time.monotonic()
    client, silent = lobby.enter(), lobby.enter()
    client.say(SOME_FRAME)
    (at,) = client.heard_at
    assert before <= at <= time.monotonic()
    assert client.connection.last_seen == at
    assert silent.connection.last_seen == 0


@pytest.mark.parametrize("size", [0, 5, 126, 3000])
def test_a_frame_cut_anywhere(lobby: Lobby, size: int) -> None:
    """While another one speaks in between, whole frames and a cut one of its own."""
    payload = bytes(index & 0xFF for index in range(size))
    data = frame(Opcode.BINARY, payload)
    cut, other = lobby.enter(), lobby.enter()
    places = range(1, len(data)) if len(data) < 200 else [*range(1, 20), 1791, 1792, 1793, *range(2980, len(data))]
    for place in places:
        cut.say(data[:place])
        assert cut.payloads == []
        other.say(SOME_FRAME + SOME_FRAME[:place])
        assert other.payloads == [b"some frame"] * (2 if place >= len(SOME_FRAME) else 1)
        cut.say(data[place:])
        other.say(SOME_FRAME[place:])
        assert cut.payloads == [payload]
        assert other.payloads == [b"some frame"] * 2
        cut.heard.clear()
        other.heard.clear()
    assert cut.codes == other.codes == []


def test_a_frame_byte_by_byte(lobby: Lobby) -> None:
    clients = [lobby.enter() for _ in range(3)]
    streams = [frame(Opcode.TEXT, f"client {number}".encode()) * 2 for number in range(3)]
    for place in range(len(streams[0])):
        for client, stream in zip(clients, streams, strict=True):
            client.say(stream[place : place + 1])
    assert [client.payloads for client in clients] == [[f"client {number}".encode()] * 2 for number in range(3)]


@pytest.mark.parametrize("seed", range(20))
def test_any_cuts_in_any_order(lobby: Lobby, seed: int) -> None:
    """Every connection's frames arrive whole, in order, and none of another's."""
    rng = random.Random(seed)
    clients = [lobby.enter(dialect=rng.choice((0, DEFLATED))) for _ in range(6)]
    said = {client: [_any_frame(rng, number) for _ in range(25)] for number, client in enumerate(clients)}
    streams = {client: b"".join(frame(opcode, payload) for opcode, payload in said[client]) for client in clients}
    while streams:
        client = rng.choice(list(streams))
        count = rng.choice((1, 2, 7, 60, 1792, 5000))
        lobby.write(client, streams[client][:count])
        streams[client] = streams[client][count:]
        if not streams[client]:
            del streams[client]
        if rng.random() < 0.7:
            lobby.serve()
    lobby.serve()
    for client in clients:
        assert [(opcode, payload) for opcode, _, _, payload in client.heard] == said[client]
        assert client.codes == []


def _any_frame(rng: random.Random, number: int) -> tuple[int, bytes]:
    if rng.random() < 0.2:
        return Opcode.PING, bytes([number]) * rng.randrange(126)
    return Opcode.BINARY, bytes([number]) * rng.choice((0, 1, 20, 125, 126, 700, 1780, 4000, 20_000))


# ---- parsers


def test_many_frames_at_once(lobby: Lobby) -> None:
    """More than the read buffer holds, again and again."""
    payloads = [f"{number}".encode() * 40 for number in range(1000)]
    client, other = lobby.enter(), lobby.enter()
    client.say(b"".join(frame(Opcode.TEXT, payload) for payload in payloads))
    other.say(SOME_FRAME)
    assert client.payloads == payloads
    assert other.payloads == [b"some frame"]


def test_a_parser_that_has_grown_serves_nobody_else(lobby: Lobby) -> None:
    big = b"x" * 65_536
    client, other = lobby.enter(), lobby.enter()
    client.say(frame(Opcode.BINARY, big) + frame(Opcode.BINARY, big))
    assert client.payloads == [big, big]
    other.say(SOME_FRAME)
    assert other.payloads == [b"some frame"]
    assert lobby.read_buffers() == [1792]
    client.say(frame(Opcode.BINARY, big))
    client.say(SOME_FRAME)
    assert client.payloads == [big, big, big, b"some frame"]


@pytest.mark.usefixtures("uncollected")
def test_whole_frames_make_a_parser_grow_too(lobby: Lobby) -> None:
    """Each read fills its buffer to the last byte, after which picows doubles it."""
    client = lobby.enter()
    for _ in range(20):
        client.say(frame(Opcode.BINARY, b"x" * 58) * 2800)
        assert max(lobby.read_buffers()) <= 2 * KEPT_BYTES
    assert client.payloads == [b"x" * 58] * 20 * 2800


@pytest.mark.usefixtures("uncollected")
def test_parsers_come_and_go(lobby: Lobby) -> None:
    """One for each connection that is in the midst of a frame, and one for the rest."""
    clients = [lobby.enter() for _ in range(10)]
    for client in clients:
        client.say(SOME_FRAME[:5])
    assert len(lobby.parsers) == 10
    for client in clients:
        client.say(SOME_FRAME[5:])
        assert client.payloads == [b"some frame"]
    assert len(lobby.parsers) == 1
    lobby.enter().say(SOME_FRAME)
    assert len(lobby.made) == 10


@pytest.mark.usefixtures("uncollected")
def test_a_changed_limit_holds_from_the_next_parser(lobby: Lobby) -> None:
    client, other = lobby.enter(), lobby.enter()
    big, too_big = frame(Opcode.BINARY, b"x" * 200), frame(Opcode.BINARY, b"x" * 201)
    other.say(too_big[:50])
    lobby.reader.set_max_frame_bytes(200, 300)
    other.say(too_big[50:])
    client.say(big)
    assert [other.payloads, client.payloads] == [[b"x" * 201], [b"x" * 200]]
    client.say(too_big)
    other.say(too_big)
    assert client.codes == other.codes == [CloseCode.MESSAGE_TOO_BIG]
    lobby.reader.set_max_frame_bytes(201, 300)
    third = lobby.enter()
    third.say(too_big)
    assert third.payloads == [b"x" * 201]
    lobby.reader.set_max_frame_bytes(200, 300)
    third.say(big)
    assert third.payloads == [b"x" * 201, b"x" * 200]
    lobby.until(lambda: len(lobby.parsers) == 1)  # picows holds on to a broken one for 10 ms


def test_deflated_connections_have_a_limit_of_their_own(lobby: Lobby) -> None:
    plain, deflated = lobby.enter(), lobby.enter(dialect=DEFLATED | 1)
    longer = frame(Opcode.BINARY, b"x" * MAX_DEFLATED_BYTES)
    deflated.say(longer)
    assert deflated.payloads == [b"x" * MAX_DEFLATED_BYTES]
    plain.say(longer)
    assert plain.codes == [CloseCode.MESSAGE_TOO_BIG]
    deflated.say(frame(Opcode.BINARY, b"x" * (MAX_DEFLATED_BYTES + 1)))
    assert deflated.codes == [CloseCode.MESSAGE_TOO_BIG]
    assert set(lobby.made) == {MAX_FRAME_BYTES, MAX_DEFLATED_BYTES}


# ---- what breaks the protocol

VIOLATIONS = [
    pytest.param(frame(Opcode.TEXT, b"x", masked=False), CloseCode.PROTOCOL_ERROR, id="unmasked"),
    pytest.param(frame(0x3, b"x"), CloseCode.PROTOCOL_ERROR, id="unknown opcode"),
    pytest.param(frame(Opcode.PING, b"x" * 126), CloseCode.PROTOCOL_ERROR, id="long PING"),
    pytest.param(frame(Opcode.TEXT, b"x" * (MAX_FRAME_BYTES + 1)), CloseCode.MESSAGE_TOO_BIG, id="too long"),
    pytest.param(frame(Opcode.CLOSE, b"\x03\xe8\xff"), CloseCode.INVALID_TEXT, id="CLOSE that is not UTF-8"),
]


@pytest.mark.parametrize(("violation", "code"), VIOLATIONS)
@pytest.mark.parametrize("piece", [1, 10, 1_000_000])
def test_a_violation_is_its_own_connections_alone(lobby: Lobby, violation: bytes, code: int, piece: int) -> None:
    offender, other, cut = lobby.enter(), lobby.enter(), lobby.enter()
    cut.say(SOME_FRAME[:9])
    for start in range(0, min(len(violation), 20 * piece), piece):
        offender.say(violation[start : start + piece])
        other.say(SOME_FRAME)
        other.heard.pop()
    assert [client.codes for client in (offender, other, cut)] == [[code], [], []]
    cut.say(SOME_FRAME[9:])
    assert cut.payloads == [b"some frame"]
    assert offender.heard == []


def test_a_violation_among_good_frames(lobby: Lobby) -> None:
    """picows finds it while it looks one frame ahead; what came before is heard, nothing behind it, now or later."""
    client = lobby.enter()
    heard_before: list[int] = []
    client.on_receive = lambda: heard_before.append(len(client.codes))
    client.say(SOME_FRAME * 3 + frame(0x3, b"x") + SOME_FRAME)
    assert client.payloads == [b"some frame"] * 3
    assert heard_before == [0, 0, 0]
    client.say(SOME_FRAME)
    client.say(SOME_FRAME[:3])
    assert client.payloads == [b"some frame"] * 3
    assert client.codes == [CloseCode.PROTOCOL_ERROR]


def test_a_violation_in_what_is_left_of_a_cut_frame(lobby: Lobby) -> None:
    client, other = lobby.enter(), lobby.enter()
    client.say(SOME_FRAME[:4])
    client.say(SOME_FRAME[4:] + SOME_FRAME + b"\xff\xff")
    other.say(SOME_FRAME)
    assert client.codes == [CloseCode.PROTOCOL_ERROR]
    assert other.payloads == [b"some frame"]


def test_a_deaf_connection_is_read_to_its_end(lobby: Lobby) -> None:
    client = lobby.enter()
    client.say(frame(0x3, b"x"))
    lobby.write(client, SOME_FRAME * 100_000)  # more than the socket holds
    client.sock.close()
    lobby.until(lambda: client.connection.transport is None)
    assert client.lost_total == 1


def test_an_owner_that_fails(lobby: Lobby) -> None:
    client, other = lobby.enter(), lobby.enter()

    def fail() -> None:
        raise RuntimeError("for the test")

    client.on_receive = fail
    client.say(SOME_FRAME)
    other.say(SOME_FRAME)
    assert client.codes == [CloseCode.INTERNAL_ERROR]
    assert other.payloads == [b"some frame"]
    assert len(lobby.made) == 2  # picows has given up, and the parser is nobody's any more


def test_an_owner_that_fails_at_a_violation(lobby: Lobby) -> None:
    """The error is the loop's to report; whose turn is next does not pay for it."""
    client, other = lobby.enter(), lobby.enter()

    def fail(code: int) -> None:
        raise RuntimeError("for the test")

    client.protocol_failed = fail  # type: ignore[method-assign]
    lobby.write(client, frame(0x3, b"x"))
    with pytest.raises(RuntimeError, match="for the test"):
        lobby.serve_once()
    other.say(SOME_FRAME)
    assert other.payloads == [b"some frame"]


# ---- CLOSE


@pytest.mark.parametrize("ahead", [b"", SOME_FRAME], ids=["alone", "behind a frame"])
def test_one_connections_close_is_no_others(lobby: Lobby, ahead: bytes) -> None:
    clients = [lobby.enter() for _ in range(3)]
    for client in clients:
        client.say(ahead + frame(Opcode.CLOSE, b"\x03\xe8bye"))
        assert client.heard[-1] == (Opcode.CLOSE, True, 0, b"\x03\xe8bye")
        assert client.codes == []
    assert len(lobby.made) == 1


@pytest.mark.parametrize(
    "behind",
    [
        frame(Opcode.CLOSE, b""),
        SOME_FRAME,
        frame(Opcode.PING, b"x"),
        frame(0x3, b"x"),
        b"\xff\xff",
        frame(Opcode.CLOSE, b"x"),
    ],
    ids=["close", "text", "ping", "violation", "garbage", "bad close"],
)
def test_nothing_behind_a_close_is_heard(lobby: Lobby, behind: bytes) -> None:
    client, other = lobby.enter(), lobby.enter()
    client.say(frame(Opcode.CLOSE, b"") + behind)
    assert client.heard == [(Opcode.CLOSE, True, 0, b"")]
    assert client.codes == []
    assert client.connection.transport is None
    other.say(frame(Opcode.CLOSE, b""))
    assert other.heard == [(Opcode.CLOSE, True, 0, b"")]


def test_the_answer_to_our_close(lobby: Lobby) -> None:
    """What comes ahead of it is not heard; it ends the connection."""
    client = lobby.enter()
    lobby.shop.hub.close(client.connection, CloseCode.SERVICE_RESTART)
    client.say(SOME_FRAME)
    assert not client.connection.is_closing()
    client.say(SOME_FRAME + frame(Opcode.CLOSE, b"\x03\xe9"))
    lobby.until(lambda: client.connection.transport is None)
    assert client.lost_total == 1
    assert client.heard == []


# ---- how it ends


def test_the_end_of_what_a_client_says(lobby: Lobby) -> None:
    client = lobby.enter()
    lobby.write(client, SOME_FRAME)
    client.sock.shutdown(socket.SHUT_WR)
    lobby.serve()
    assert client.payloads == [b"some frame"]
    assert client.connection.transport is None
    assert client.lost_total == 1
    assert client.sock.recv(10) == b""
    assert not lobby.is_ready


def test_what_is_queued_is_written_after_the_end(lobby: Lobby, shop: Workshop) -> None:
    client = lobby.enter(send_buffer=4608)
    transport: Any = client.connection.transport
    transport.write(b"x" * 50_000)
    client.sock.shutdown(socket.SHUT_WR)
    lobby.serve()
    assert client.connection.is_closing()
    assert len(shop.drain(client.connection)) == 50_000
    assert client.lost_total == 1


def test_a_reset(lobby: Lobby) -> None:
    client = lobby.enter_by_tcp()
    transport: Any = client.connection.transport
    client.say(SOME_FRAME)
    lobby.until(lambda: bool(client.heard))
    client.reset()
    lobby.until(lambda: client.connection.transport is None)
    assert transport.is_closing()
    assert client.lost_total == 1
    assert client.payloads == [b"some frame"]


def test_what_comes_while_the_transport_closes_is_not_heard(lobby: Lobby, shop: Workshop) -> None:
    client = lobby.enter(send_buffer=4608)
    transport: Any = client.connection.transport
    transport.write(b"x" * 50_000)
    client.connection.finish()
    client.say(SOME_FRAME)
    assert client.heard == []
    assert not lobby.is_ready  # although it was not read
    shop.drain(client.connection)
    assert client.lost_total == 1


@pytest.mark.parametrize(("rest", "made_total"), [(b"", 1), (SOME_FRAME[:5], 2)], ids=["whole", "cut"])
def test_what_nobody_owns_any_more_is_not_heard(lobby: Lobby, rest: bytes, made_total: int) -> None:
    client = lobby.enter()
    client.on_receive = lambda: client.connection.connection_lost(None)
    transport: Any = client.connection.transport
    client.say(SOME_FRAME * 2 + rest)
    assert client.payloads == [b"some frame"]
    other = lobby.enter()
    other.say(SOME_FRAME)
    assert other.payloads == [b"some frame"]
    assert len(lobby.made) == made_total
    transport.abort()


def test_forget(lobby: Lobby) -> None:
    client, other = lobby.enter(), lobby.enter()
    unwatched = lobby.enter(is_watched=False)
    client.say(SOME_FRAME[:3])
    for forgotten in (client, unwatched):
        lobby.reader.forget(forgotten.connection)
        lobby.reader.forget(forgotten.connection)
    client.say(SOME_FRAME)
    assert client.heard == []
    other.say(SOME_FRAME)
    assert other.payloads == [b"some frame"]
    lobby.reader.watch(client.connection)  # and from the beginning of a frame
    client.say(SOME_FRAME)
    assert client.payloads == [b"some frame"] * 2


def test_an_owner_may_forget_in_the_midst_of_a_frame(lobby: Lobby) -> None:
    client, other = lobby.enter(), lobby.enter()
    client.on_receive = lambda: lobby.reader.forget(client.connection)
    client.say(SOME_FRAME[:3])
    client.say(SOME_FRAME[3:] + SOME_FRAME[:3])
    client.say(SOME_FRAME[3:])
    other.say(SOME_FRAME)
    assert client.payloads == other.payloads == [b"some frame"]


def test_a_descriptor_that_passes_to_another_connection(lobby: Lobby, shop: Workshop) -> None:
    """A turn may end with events not yet looked at; what they were about may have gone by then."""
    first, second = lobby.enter(), lobby.enter()
    first.on_receive = second.on_receive = lambda: _burn(0.003)
    lobby.write(first, SOME_FRAME)
    lobby.write(second, SOME_FRAME)
    lobby.serve_once()
    (unheard,) = [client for client in (first, second) if not client.heard]
    number = unheard.descriptor
    unheard.connection.abort()
    shop.turn()
    third = lobby.enter()
    assert third.descriptor == number
    lobby.serve_once()
    lobby.reader.forget(unheard.connection)  # once more, when its number is another's
    third.say(SOME_FRAME)
    assert unheard.heard == []
    assert third.payloads == [b"some frame"]
    assert third.connection.transport is not None


def _abort(client: Client) -> None:
    client.connection.abort()


def _leave(client: Client) -> None:
    client.sock.close()


def _offend(client: Client) -> None:
    client.lobby.write(client, b"\xff" * 100)  # the rest of a frame, and what is none
    client.lobby.serve()
    client.connection.abort()


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("end", [_abort, _leave, Client.reset, _offend])
def test_a_connection_lost_in_a_frame_leaves_nothing_behind(lobby: Lobby, end: Callable[[Client], None]) -> None:
    """The daemon looks for no old cycles, and a parser is one."""
    clients = [lobby.enter_by_tcp() for _ in range(5)]
    for client in clients:
        client.say(SOME_FRAME[:5])
    lobby.until(lambda: len(lobby.parsers) == 5)
    for client in clients:
        end(client)
    lobby.until(lambda: all(client.lost_total == 1 for client in clients))
    lobby.until(lambda: not lobby.parsers)  # picows holds on to a broken one for 10 ms


@pytest.mark.usefixtures("uncollected")
def test_a_connection_that_was_fed_and_lost_in_a_frame_leaves_nothing_behind(lobby: Lobby, shop: Workshop) -> None:
    client = lobby.enter(is_watched=False)
    lobby.on_loop(lambda: lobby.reader.feed(client.connection, SOME_FRAME[:5]))
    assert len(lobby.parsers) == 1
    client.connection.abort()
    shop.turn()
    assert client.lost_total == 1
    assert len(lobby.parsers) == 0


# ---- whose turn it is


def _burn(seconds: float) -> None:
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


def test_a_turn_is_about_a_slice(lobby: Lobby) -> None:
    """Whose turn did not come is heard by a later call, and nobody twice."""
    clients = [lobby.enter() for _ in range(300)]
    for client in clients:
        client.on_receive = lambda: _burn(0.0002)
        lobby.write(client, SOME_FRAME)
    turns = []
    heard = 0
    while heard < len(clients):
        before = heard
        lobby.serve_once()
        heard = sum(len(client.heard) for client in clients)
        turns.append(heard - before)
    assert all(client.payloads == [b"some frame"] for client in clients)
    assert max(turns) <= 6  # a slice is 1 ms


def test_those_who_always_speak_starve_nobody(lobby: Lobby) -> None:
    clients = [lobby.enter() for _ in range(200)]
    quiet = lobby.enter()

    def go_on(client: Client) -> Callable[[], None]:
        def act() -> None:
            _burn(0.0001)
            client.sock.send(SOME_FRAME)

        return act

    for client in clients:
        client.on_receive = go_on(client)
        client.sock.send(SOME_FRAME)
    for _ in range(5):
        lobby.serve_once()
    quiet.sock.send(SOME_FRAME)
    already = max(len(client.heard) for client in clients)
    while not quiet.heard:
        lobby.serve_once()
        assert max(len(client.heard) for client in clients) <= already + 3


def test_one_call_does_all_there_is_to_do(lobby: Lobby) -> None:
    """Were it not for the slice: more connections than are asked for at a time."""
    clients = [lobby.enter() for _ in range(300)]
    for client in clients:
        lobby.write(client, SOME_FRAME)
    calls = 0
    while lobby.is_ready:
        lobby.serve_once()
        calls += 1
    assert all(client.payloads == [b"some frame"] for client in clients)
    assert calls < 150
    lobby.serve_once()  # nothing to do
    assert all(len(client.heard) == 1 for client in clients)


def test_the_loop_watches_its_descriptor(lobby: Lobby, shop: Workshop) -> None:
    clients = [lobby.enter() for _ in range(300)]
    shop.loop.add_reader(lobby.reader, lobby.reader.serve)
    for client in clients:
        client.sock.send(SOME_FRAME)
    while not all(client.heard for client in clients):
        shop.turn()
    clients[0].sock.close()
    while clients[0].lost_total == 0:
        shop.turn()
    shop.loop.remove_reader(lobby.reader)


def test_a_connection_is_watched_once(lobby: Lobby) -> None:
    client = lobby.enter()
    with pytest.raises(FileExistsError):
        lobby.reader.watch(client.connection)
    client.say(SOME_FRAME)
    assert client.payloads == [b"some frame"]


# ---- bytes that come another way


@pytest.mark.parametrize("count", [0, 1, 30, 400])
def test_what_came_behind_the_handshake(lobby: Lobby, count: int) -> None:
    """More than the read buffer holds, too."""
    payloads = [f"{number}".encode() * 30 for number in range(count)]
    client = lobby.enter(is_watched=False)
    before = time.monotonic()
    tail = b"".join(frame(Opcode.TEXT, payload) for payload in payloads)
    lobby.on_loop(lambda: lobby.reader.feed(client.connection, tail))
    lobby.until(lambda: len(client.heard) == count)  # what takes longer than a slice waits
    assert client.payloads == payloads
    assert all(at >= before for at in client.heard_at)


@pytest.mark.parametrize("place", range(1, len(SOME_FRAME)))
def test_a_frame_of_which_a_part_came_behind_the_handshake(lobby: Lobby, place: int) -> None:
    client, other = lobby.enter(is_watched=False), lobby.enter()
    lobby.on_loop(lambda: lobby.reader.feed(client.connection, SOME_FRAME + SOME_FRAME[:place]))
    lobby.reader.watch(client.connection)
    other.say(SOME_FRAME)
    client.say(SOME_FRAME[place:])
    assert client.payloads == [b"some frame"] * 2
    assert other.payloads == [b"some frame"]


def test_a_violation_behind_the_handshake(lobby: Lobby) -> None:
    client, other = lobby.enter(is_watched=False), lobby.enter(is_watched=False)
    tail = SOME_FRAME + frame(0x3, b"x") * 2000
    for _ in range(2):
        lobby.on_loop(lambda: lobby.reader.feed(client.connection, tail))
    lobby.on_loop(lambda: lobby.reader.feed(other.connection, SOME_FRAME))
    assert client.codes == [CloseCode.PROTOCOL_ERROR]
    assert other.payloads == [b"some frame"]


def test_what_is_fed_to_a_connection_that_is_gone(lobby: Lobby, shop: Workshop) -> None:
    client = lobby.enter()
    client.connection.abort()
    shop.turn()
    lobby.on_loop(lambda: lobby.reader.feed(client.connection, SOME_FRAME))
    assert client.heard == []
    assert lobby.made == []


# ---- pauses


def test_a_paused_connection_is_read_from_when_its_time_has_come(lobby: Lobby) -> None:
    client, other = lobby.enter(), lobby.enter()
    until = time.monotonic() + 0.05
    lobby.reader.pause(client.connection, until)
    client.say(SOME_FRAME)
    other.say(SOME_FRAME)
    assert [client.payloads, other.payloads] == [[], [b"some frame"]]
    assert client.connection.is_paused
    lobby.until(lambda: client.heard)
    assert client.heard_at[0] >= until
    assert client.connection.last_seen >= until
    assert not client.connection.is_paused
    client.say(SOME_FRAME)
    assert client.payloads == [b"some frame"] * 2


def test_what_was_said_last_about_a_pause_holds(lobby: Lobby) -> None:
    client = lobby.enter()
    start = time.monotonic()
    for until in (start + 0.001, float("inf"), start + 60, start + 0.05):
        lobby.reader.pause(client.connection, until)
    client.say(SOME_FRAME)
    lobby.until(lambda: client.heard)
    assert client.heard_at[0] >= start + 0.05
    lobby.reader.pause(client.connection, time.monotonic() + 0.001)
    lobby.reader.pause(client.connection, float("inf"))
    client.say(SOME_FRAME)
    lobby.shop.run(asyncio.sleep(0.01))
    lobby.serve()
    assert len(client.heard) == 1
    lobby.reader.resume(client.connection)
    lobby.reader.resume(client.connection)
    lobby.serve()
    assert len(client.heard) == 2


def test_many_pauses_end_in_slices(lobby: Lobby) -> None:
    clients = [lobby.enter() for _ in range(100)]
    for client in clients:
        lobby.reader.pause(client.connection, time.monotonic() + random.random() / 100)
        client.say(SOME_FRAME)
    lobby.until(lambda: all(client.heard for client in clients))
    assert all(client.payloads == [b"some frame"] for client in clients)


def test_a_pause_in_the_midst_of_a_frame(lobby: Lobby) -> None:
    client, other = lobby.enter(), lobby.enter()
    client.say(SOME_FRAME[:7])
    lobby.reader.pause(client.connection, float("inf"))
    client.say(SOME_FRAME[7:])
    other.say(SOME_FRAME)
    lobby.reader.resume(client.connection)
    lobby.serve()
    assert client.payloads == other.payloads == [b"some frame"]


@pytest.mark.parametrize("is_watched", [True, False])
def test_a_paused_connection_that_is_lost(lobby: Lobby, is_watched: bool) -> None:
    client = lobby.enter(is_watched=is_watched)
    lobby.reader.pause(client.connection, time.monotonic() + 0.01)
    client.connection.abort()
    lobby.until(lambda: client.lost_total == 1)
    others = [lobby.enter() for _ in range(5)]  # one of them has its descriptor
    lobby.shop.run(asyncio.sleep(0.02))
    for other in others:
        other.say(SOME_FRAME)
        assert other.payloads == [b"some frame"]
    lobby.reader.pause(client.connection, time.monotonic())
    assert not client.connection.is_paused


def test_bytes_that_came_another_way_wait_for_the_end_of_a_pause(lobby: Lobby) -> None:
    client = lobby.enter(is_watched=False)

    def pause_once() -> None:
        if len(client.heard) == 50:
            lobby.reader.pause(client.connection, time.monotonic() + 0.02)

    client.on_receive = pause_once
    payloads = [f"{number}".encode() * 300 for number in range(100)]
    data = b"".join(frame(Opcode.TEXT, payload) for payload in payloads)
    lobby.on_loop(lambda: lobby.reader.feed(client.connection, data[:-10]))
    lobby.until(lambda: len(client.heard) >= 50)
    assert len(client.heard) < 99
    lobby.on_loop(lambda: lobby.reader.feed(client.connection, data[-10:]))
    lobby.until(lambda: len(client.heard) == 100)
    assert client.payloads == payloads


def test_a_flood_after_our_close_is_read_slowly(lobby: Lobby) -> None:
    """And the CLOSE behind it is found."""
    client = lobby.enter()
    lobby.shop.hub.close(client.connection, CloseCode.TOO_MANY_FRAMES)
    client.sock.send(frame(Opcode.PONG, b"") * 5000)
    lobby.serve()
    assert client.connection.is_paused
    assert is_readable(client.sock)  # our CLOSE
    client.sock.send(frame(Opcode.CLOSE, b""))
    lobby.until(lambda: client.connection.transport is None)
    assert client.heard == []


def test_rest_between_slices_that_are_always_full(lobby: Lobby) -> None:
    client, other = lobby.enter(), lobby.enter()
    client.on_receive = lambda: _burn(0.001)
    began = time.monotonic()
    while lobby.is_ready or time.monotonic() < began + 0.05:
        client.sock.send(SOME_FRAME)
        lobby.serve_once()
        assert time.monotonic() < began + WITHIN_S
    other.sock.send(SOME_FRAME)
    lobby.until(lambda: other.heard)
    for _ in range(10):  # and none when there is less to do
        client.on_receive = lambda: None
        client.say(SOME_FRAME)
        assert not lobby.is_ready


# ---- text that is bad before its frame is whole


@pytest.mark.parametrize(("size", "piece"), [(10, 1), (10, 3), (200, 1), (200, 7), (70_000, 1), (70_000, 999)])
def test_a_bad_text_is_refused_at_its_first_bad_byte(lobby: Lobby, size: int, piece: int) -> None:
    client, other = lobby.enter(), lobby.enter()
    bad_at = size // 2 if size < 1000 else 500
    text = bytearray("é".encode() * (size // 2))
    text[bad_at // 2 * 2] = 0xFF
    sent = frame(Opcode.TEXT, bytes(text))
    head = len(sent) - len(text)
    refused_at = 0
    for start in range(0, head + bad_at + piece, piece):
        client.say(sent[start : start + piece])
        other.say(SOME_FRAME)
        other.heard.clear()
        refused_at = min(start + piece, len(sent))
        if client.codes:
            break
    assert client.codes == [CloseCode.INVALID_TEXT]
    assert refused_at - piece <= head + bad_at // 2 * 2 < refused_at
    assert client.heard == []


@pytest.mark.parametrize("opcode", [Opcode.BINARY, Opcode.TEXT])
@pytest.mark.parametrize("piece", [1, 2, 5])
def test_what_is_no_bad_text_is_heard_whole(lobby: Lobby, opcode: int, piece: int) -> None:
    client = lobby.enter()
    payload = "aé漢😀".encode() * 30 if opcode == Opcode.TEXT else bytes(range(256))
    sent = frame(opcode, payload) * 2
    for start in range(0, len(sent), piece):
        client.say(sent[start : start + piece])
    assert client.payloads == [payload] * 2
    assert client.codes == []
