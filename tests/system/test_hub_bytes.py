"""Invariant 2: a frame never interleaves with another, whatever mixes direct sends, buffered writes, pongs and closes.

Real TCP on 127.0.0.1, real uvloop transports taken over through the gateway, small buffers. One seeded
conductor decides who does what next; every byte that arrives is compared with what was written, in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import random
import socket
import ssl
import struct
from collections import Counter
from collections.abc import AsyncIterator, Callable
from itertools import count
from pathlib import Path
from typing import Any, cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from websockets.frames import Frame
from websockets.frames import Opcode as TheirOpcode

from pushd._fastpath import Connection, FanOut, Hub
from pushd.auth.authenticator import Authenticator, Identity
from pushd.clock import Clock
from pushd.config.current import CurrentConfig
from pushd.config.schema import Config, LimitsConfig
from pushd.delivery.acknowledgements import Acknowledgements
from pushd.delivery.inboxes import Inboxes
from pushd.http.addresses import Addresses
from pushd.http.messages import Request
from pushd.presence.arrivals import Arrivals
from pushd.protocol.frames import Dialect, Opcode, close_frame, ws_frame
from pushd.telemetry.metrics import Metrics
from pushd.users.directory import CachedDirectory
from pushd.ws._reader import Reader
from pushd.ws.gateway import Gateway
from pushd.ws.parser import longest_frames, parsing
from pushd.ws.renewals import Renewals
from pushd.ws.shared import Shared
from pushd.ws.tasks import Tasks
from pushd.ws.upgrade import Upgrade
from tests.unit.test_frames import parse

BESIDE = 192  # counted of each write that waits, beside its bytes
MAX_PENDING = 60_000
SEND_BUFFER = 8192
RECEIVE_BUFFER = 2048
TLS_RECEIVE_BUFFER = 65536  # more than a record, or TCP stalls
CLIENTS = 10
STEPS = 400
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
WITHIN_S = 20.0


class Record:
    """What one connection was given, in order."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.held: list[bytes] = []
        self.is_held = True

    @property
    def stream(self) -> bytes:
        return b"".join(self.frames)

    def close(self, frame: bytes) -> None:
        self.frames.append(frame)
        self.held.clear()


class RecordingHub(Hub):
    """The hub, with a record of every write. It calls its own `close` for slow consumers."""

    def __init__(self, max_pending_bytes: int, linger_s: float) -> None:
        super().__init__(max_pending_bytes, linger_s)
        self.records: dict[Connection, Record] = {}
        self.seen: Counter[str] = Counter()

    def add(self, connection: Connection) -> None:
        self.records[connection] = Record()
        super().add(connection)

    def release(self, connection: Connection) -> None:
        record = self.records[connection]
        if connection.is_registered and record.is_held:
            self.seen["released with notices"] += bool(record.held)
            record.is_held = False
            record.frames += record.held
            record.held.clear()
        super().release(connection)

    def send(self, connection: Connection, frame: bytes, ids: tuple[str, ...] | None = None) -> bool:
        record = self.records[connection]
        was_pending = connection.pending_bytes
        self.seen["pong behind pending bytes"] += frame[0] == 0x8A and was_pending > 0
        is_sent = super().send(connection, frame, ids)
        if is_sent:
            record.frames.append(frame)
            self.seen["buffered" if was_pending else "cut" if connection.pending_bytes else "whole"] += 1
        return is_sent

    def broadcast(self, job: FanOut, frames: tuple[bytes, bytes]) -> None:
        present = self.snapshot()
        assert self.advance(job, 60.0)
        for connection in present:
            record = self.records[connection]
            if connection.is_registered:
                (record.held if record.is_held else record.frames).append(frames[connection.dialect])

    def close(self, connection: Connection, code: int, reason: str = "") -> None:
        if connection.close_code == 0 and not connection.is_closing():
            self.seen[f"closed with {code}"] += 1
            self.records[connection].close(close_frame(code, reason))
        super().close(connection, code, reason)


class Client:
    """A raw socket: reads and writes when it is told to, as much as it is told to."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.connection: Connection | None = None
        self.received = bytearray()
        self.is_at_end = False
        self.is_reset = False
        self.has_sent_close = False
        self.is_offender = False

    def read(self, most: int) -> None:
        if self.is_at_end or self.is_reset:
            return
        with contextlib.suppress(BlockingIOError, ssl.SSLWantReadError):
            try:
                data = self.sock.recv(most)
            except (ConnectionResetError, ssl.SSLError) as error:
                if isinstance(error, ssl.SSLWantReadError):
                    raise
                data = b""
            self.is_at_end = not data
            self.received += data

    def write(self, data: bytes) -> None:
        if not self.has_sent_close and not self.is_reset:
            with contextlib.suppress(OSError):
                self.sock.send(data)

    def send(self, opcode: TheirOpcode, payload: bytes) -> None:
        self.write(Frame(opcode, payload).serialize(mask=True))

    def send_close(self, payload: bytes) -> None:
        self.send(TheirOpcode.CLOSE, payload)
        self.has_sent_close = True

    def reset(self) -> None:
        """A TCP reset, unread bytes or not."""
        self.is_reset = True
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    @property
    def frames(self) -> bytes:
        head, _, frames = bytes(self.received).partition(b"\r\n\r\n")
        assert (head + b" ").startswith(b"HTTP/1.1 101 "[: len(head)])
        return frames

    def has_close(self) -> bool:
        return any(frame.opcode is TheirOpcode.CLOSE for frame in parse(whole_frames(self.frames)))

    async def read_to_the_end(self) -> None:
        """As a client does: answer CLOSE, and leave when the server has nothing more to say.

        TLS has no half-closed connections: there a client that broke the protocol leaves by itself.
        """
        while not self.is_at_end and not self.is_reset:
            self.read(1 << 20)
            if self.has_close():
                if self.is_offender and isinstance(self.sock, ssl.SSLSocket):
                    self.read(1 << 20)
                    break
                if not self.has_sent_close:
                    self.send_close(struct.pack("!H", 1000))
            await asyncio.sleep(0)
        self.sock.close()


def whole_frames(data: bytes) -> bytes:
    """`data` without the frame at its end that is not complete yet."""
    at = 0
    while len(data) - at >= 2:
        size, head = data[at + 1] & 0x7F, 2
        if size == 126 and len(data) - at >= 4:
            size, head = int.from_bytes(data[at + 2 : at + 4], "big"), 4
        elif size > 125:
            break
        if at + head + size > len(data):
            break
        at += head + size
    return data[:at]


class Node:
    """A node without its core: the gateway takes connections over at once, as the HTTP server does after an upgrade."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.hub = RecordingHub(MAX_PENDING, linger_s=600.0)
        self.told: Counter[tuple[Connection, str]] = Counter()
        self.handed: list[tuple[Connection, list[str]]] = []
        self.gone: list[tuple[Connection, list[str]]] = []
        self.hub.on_handed = lambda connection, ids: self._tell(self.handed, connection, ids)
        self.hub.on_gone = lambda connection, ids: self._tell(self.gone, connection, ids)
        loop = asyncio.get_running_loop()
        current = CurrentConfig(Config(limits=LimitsConfig(max_frames_per_s=10**6)))
        self.reader = Reader(parsing, *longest_frames(current.config.limits))
        metrics, clock = Metrics(), Clock(now=loop.time)
        tasks, nobody = Tasks(metrics), cast(Authenticator, None)  # all are let in, and nobody is renewed
        arrivals, acknowledgements = cast(Arrivals, self), cast(Acknowledgements, self)
        shared = Shared(
            hub=self.hub,
            reader=self.reader,
            acknowledgements=acknowledgements,
            inboxes=cast(Inboxes, self),
            renewals=Renewals(self.hub, cast(CachedDirectory, self), nobody, tasks, metrics, clock),
            tasks=tasks,
            addresses=Addresses(),
            current=current,
            metrics=metrics,
            clock=clock,
        )
        self.gateway = Gateway(shared, arrivals, nobody)
        self.attached: list[Connection] = []
        self.numbers = count(1)

    def _tell(self, told: list[tuple[Connection, list[str]]], connection: Connection, ids: list[str]) -> None:
        told.append((connection, ids))
        self.told.update((connection, message_id) for message_id in ids)

    def arrive(self, connection: Connection, *, is_told_unread: bool) -> None:
        """What `Arrivals` does, but that notices stay held until the conductor says so."""
        self.attached.append(connection)
        self.hub.add(connection)
        self.hub.send(connection, self.frame(20))

    def acknowledge(self, user_id: int, message_ids: list[str]) -> None:
        """What `Acknowledgements` does, but nothing."""

    def attach(self, transport: asyncio.Transport) -> None:
        request = Request(target=b"/ws", headers={"sec-websocket-key": KEY}, is_upgrade=True)
        dialect = self.rng.choice(tuple(Dialect))
        number = next(self.numbers)
        upgrade = Upgrade(Identity(user_id=number), "127.0.0.1", "", dialect, False, is_echo=False)
        self.gateway.attach(transport, request, upgrade, b"")

    def frame(self, size: int) -> bytes:
        return ws_frame(Opcode.TEXT, f"{next(self.numbers)}.".encode().ljust(size, b"f"))

    @contextlib.asynccontextmanager
    async def serving(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        listener.setblocking(False)
        node = self
        asyncio.get_running_loop().add_reader(self.reader, self.reader.serve)

        class Door(asyncio.Protocol):
            def connection_made(self, transport: Any) -> None:
                asyncio.get_running_loop().call_soon(self.hand_over, transport)

            def hand_over(self, transport: asyncio.Transport) -> None:
                transport.pause_reading()
                node.attach(transport)

        server = await asyncio.get_running_loop().create_server(Door, sock=listener, ssl=tls)
        try:
            yield listener.getsockname()[1]
        finally:
            server.close()
            for connection in self.attached:
                connection.abort()
            async with asyncio.timeout(WITHIN_S):
                while any(connection.transport is not None for connection in self.attached):
                    await asyncio.sleep(0)
            asyncio.get_running_loop().remove_reader(self.reader)

    async def client(self, port: int, tls: ssl.SSLContext | None = None) -> Client:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER if tls is None else TLS_RECEIVE_BUFFER)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, ("127.0.0.1", port))
        if tls is not None:
            sock = tls.wrap_socket(sock, do_handshake_on_connect=False, server_hostname="localhost")
            while True:
                try:
                    sock.do_handshake()  # type: ignore[attr-defined]
                except ssl.SSLWantReadError:
                    await asyncio.sleep(0)
                else:
                    break
        client = Client(sock)
        known = len(self.attached)
        async with asyncio.timeout(WITHIN_S):
            while len(self.attached) == known:
                await asyncio.sleep(0)
        client.connection = self.attached[-1]
        return client


class Conductor:
    """One random act after the other, on the server's side and on the clients'."""

    def __init__(self, node: Node, clients: list[Client]) -> None:
        self.node = node
        self.clients = clients
        self.rng = node.rng
        self.asleep: set[Client] = set()  # those who do not read at present
        self.acts: dict[Callable[[], None], int] = {
            self.send: 30,
            self.broadcast: 14,
            self.release: 5,
            self.read: 40,
            self.fall_asleep_or_wake: 5,
            self.ping: 20,
            self.say: 10,
            self.offend: 2,
            self.close: 1,
            self.say_goodbye: 1,
            self.reset: 1,
        }

    def act(self) -> None:
        (act,) = self.rng.choices(list(self.acts), list(self.acts.values()))
        act()

    def _client(self) -> Client:
        return self.rng.choice(self.clients)

    def _connection(self) -> Connection:
        return self.rng.choice(self.node.attached)

    def send(self) -> None:
        connection = self._connection()
        for _ in range(self.rng.randrange(1, 6)):
            number = next(self.node.numbers)
            ids = (f"s{number}",) if self.rng.random() < 0.5 else None
            self.node.hub.send(connection, self.node.frame(self.rng.choice((5, 125, 126, 900, 7000))), ids)

    def broadcast(self) -> None:
        number = next(self.node.numbers)
        payload = f"b{number}.".encode().ljust(self.rng.choice((10, 200, 3000)), b"b")
        frames = (ws_frame(Opcode.TEXT, payload), ws_frame(Opcode.BINARY, payload))
        users = self.rng.choice((None, [connection.user_id for connection in self.node.attached]))
        self.node.hub.broadcast(FanOut(f"b{number}", lambda dialect: frames[dialect], users), frames)

    def release(self) -> None:
        self.node.hub.release(self._connection())

    def read(self) -> None:
        for client in self.clients:
            if client not in self.asleep:
                client.read(self.rng.choice((1, 100, 3000, 65536)))

    def fall_asleep_or_wake(self) -> None:
        self.asleep ^= {self._client()}

    def ping(self) -> None:
        client = self._client()
        for _ in range(self.rng.randrange(1, 8)):
            client.send(TheirOpcode.PING, self.rng.randbytes(self.rng.randrange(126)))

    def say(self) -> None:
        client = self._client()
        assert client.connection is not None
        if client.connection.dialect == Dialect.JSON:
            payload = self.rng.choice((b'{"type":"ping"}', b"nonsense", '{"type":"é"}'.encode()))
            client.send(TheirOpcode.TEXT, payload)
        else:
            client.send(TheirOpcode.BINARY, self.rng.choice((b"\x81\xa4type\xa4ping", b"\xc1", b"\x91\x01")))

    def offend(self) -> None:
        """What picows answers by itself: unmasked, unknown opcode, too big, fragmented control; and what we answer."""
        client = self._client()
        client.is_offender = True
        client.write(
            self.rng.choice(
                (
                    b"\x81\x01x",
                    b"\x83\x80\x00\x00\x00\x00",
                    b"\x81\xff" + (1 << 40).to_bytes(8, "big") + b"\x00" * 4,
                    b"\x09\x80\x00\x00\x00\x00",
                    b"\xc1\x80\x00\x00\x00\x00",
                    Frame(TheirOpcode.CONT, b"x").serialize(mask=True),
                    Frame(TheirOpcode.CLOSE, struct.pack("!H", 1005)).serialize(mask=True),
                )
            )
            + Frame(TheirOpcode.PING, b"behind an offence").serialize(mask=True) * 3
        )

    def close(self) -> None:
        self.node.hub.close(self._connection(), self.rng.choice((1012, 4001, 4403)), "because")

    def say_goodbye(self) -> None:
        self._client().send_close(self.rng.choice((b"", struct.pack("!H", 1000), struct.pack("!H", 3999) + b"bye")))

    def reset(self) -> None:
        client = self._client()
        if not client.is_reset and sum(client.is_reset for client in self.clients) < 2:
            client.reset()


def check(client: Client, record: Record) -> None:
    written, arrived = record.stream, client.frames
    if client.is_reset:
        assert written.startswith(arrived)
        return
    frames = parse(arrived)
    assert [frame.opcode for frame in frames].count(TheirOpcode.CLOSE) == 1
    assert frames[-1].opcode is TheirOpcode.CLOSE
    assert len(frames) == len(record.frames)
    assert arrived == written


async def perform(seed: int, tls: tuple[ssl.SSLContext, ssl.SSLContext] | tuple[None, None]) -> Counter[str]:
    rng = random.Random(seed)
    node = Node(rng)
    async with node.serving(tls[0]) as port:
        clients = [await node.client(port, tls[1]) for _ in range(CLIENTS)]
        conductor = Conductor(node, clients)
        for _ in range(STEPS):
            conductor.act()
            for _ in range(rng.randrange(3)):
                await asyncio.sleep(0)
        for connection in node.attached:
            if rng.random() < 0.7:
                node.hub.release(connection)
            node.hub.close(connection, 1012, "restarting")
        async with asyncio.timeout(WITHIN_S):
            await asyncio.gather(*(client.read_to_the_end() for client in clients))
            while any(connection.transport is not None for connection in node.attached):
                await asyncio.sleep(0)
    for client in clients:
        assert client.connection is not None
        check(client, node.hub.records[client.connection])
    assert max(node.told.values(), default=1) == 1, "an id was reported twice"
    assert node.hub.connections_total == 0
    assert node.gateway.open_sockets == 0
    return node.hub.seen


@pytest.mark.parametrize("seed", range(10))
async def test_every_byte(seed: int) -> None:
    seen = await perform(seed, (None, None))
    assert seen["whole"]
    assert seen["buffered"]


@pytest.mark.parametrize("seed", range(100, 103))
async def test_every_byte_over_tls(seed: int, tls: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    seen = await perform(seed, tls)
    assert seen["whole"]
    assert seen["buffered"]


async def test_the_seeds_cover_what_they_are_for() -> None:
    seen: Counter[str] = Counter()
    for seed in range(200, 210):
        seen += await perform(seed, (None, None))
    for what in (
        "cut",
        "pong behind pending bytes",
        "released with notices",
        *(f"closed with {code}" for code in (1002, 1009, 1012, 4008)),
    ):
        assert seen[what], (what, seen)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's context and a client's that trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    today = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(today - datetime.timedelta(days=1))
        .not_valid_after(today + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path: Path = tmp_path_factory.mktemp("tls") / "both.pem"
    pem = serialization.Encoding.PEM
    path.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(pem)
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(path)
    return server, ssl.create_default_context(cafile=str(path))


# ---- one thing at a time


async def test_a_reader_that_stops_gets_4008_behind_what_was_queued() -> None:
    node = Node(random.Random(1))
    async with node.serving() as port:
        client = await node.client(port)
        connection = client.connection
        assert connection is not None
        node.hub.release(connection)
        ids = []
        while connection.is_registered:
            ids.append(f"m{len(ids)}")
            node.hub.send(connection, node.frame(3000), (ids[-1],))
            await asyncio.sleep(0)
        assert connection.close_code == 4008
        handed = [message_id for _, told in node.handed for message_id in told]
        ((_, lost),) = node.gone
        assert handed + lost == ids
        assert len(lost) >= MAX_PENDING // (3004 + BESIDE)
        assert connection.pending_bytes + len(lost) * BESIDE > MAX_PENDING - 3004 - BESIDE
        async with asyncio.timeout(WITHIN_S):
            await client.read_to_the_end()
        check(client, node.hub.records[connection])
        frames = parse(client.frames)
        assert len(frames) == 1 + len(ids) - 1 + 1  # the greeting, all but the refused one, CLOSE
        assert bytes(frames[-1].data) == struct.pack("!H", 4008) + b"slow consumer"
        assert node.gone == [(connection, lost)]


@pytest.mark.parametrize(
    ("offence", "code"),
    [
        (b"\x81\x01x", 1002),
        (b"\x83\x80\x00\x00\x00\x00", 1002),
        (b"\x82\xfe\x40\x01\x00\x00\x00\x00", 1009),
    ],
)
async def test_picows_own_close_waits_its_turn(offence: bytes, code: int) -> None:
    """A protocol error while bytes are pending: CLOSE comes behind them and is the last; what follows is dropped."""
    node = Node(random.Random(1))
    async with node.serving() as port:
        client = await node.client(port)
        connection = client.connection
        assert connection is not None
        node.hub.release(connection)
        while connection.pending_bytes < 20_000:
            node.hub.send(connection, node.frame(3000))
            await asyncio.sleep(0)
        client.write(offence)
        async with asyncio.timeout(WITHIN_S):
            while connection.close_code == 0:
                await asyncio.sleep(0)
        assert connection.close_code == code
        for _ in range(50):
            client.send(TheirOpcode.PING, b"x" * 100)
            assert not node.hub.send(connection, node.frame(10))
            await asyncio.sleep(0)
        async with asyncio.timeout(WITHIN_S):
            await client.read_to_the_end()
        check(client, node.hub.records[connection])
        assert node.hub.records[connection].frames[-1] == close_frame(code)
