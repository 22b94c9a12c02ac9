"""What strangers and broken clients do to a daemon, one kind at a time; a process of its own.

    python -m bench.loadlib.floods NAME PORT SECONDS

does it for that long and prints what it did as JSON; before that a line "prepared", if it had to fill stores first. To
127.0.0.1 only, and bounded: each flood has so many connections at the most, and ends by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from itertools import count

import uvloop

from bench.loadlib import drive_plan
from bench.loadlib.lean import text_frame
from bench.loadlib.machine import allow_descriptors

FIRST_USER = 100  # the bystander is another one
MOST_CONNECTIONS = 1_200
CONNECT_WITHIN_S = 5.0
PING = 0x9
PREPARED = "prepared"
USER_AGENTS = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.{n}.0",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_{n} like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Mobile/15E148",
    "Mozilla/5.0 (Linux; Android 14; SM-S{n}B) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/{n}.0 Mobile",
)
EVIL_PARTS = ("Linux; Android 10; ", " Build/", "(KHTML, like Gecko) ", "Version/1.", "iPhone OS ", "; ", "HbbTV/")


class Peer:
    """One connection that does as it likes."""

    def __init__(self, port: int, *, receive_buffer: int = 0) -> None:
        self._port = port
        self._loop = asyncio.get_running_loop()
        self._socket = socket.socket()
        self._socket.setblocking(False)
        if receive_buffer:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)

    async def connect(self) -> None:
        await self._loop.sock_connect(self._socket, ("127.0.0.1", self._port))

    async def send(self, data: bytes) -> None:
        await self._loop.sock_sendall(self._socket, data)

    async def receive(self) -> bytes:
        """What comes next; b"" at the end."""
        return await self._loop.sock_recv(self._socket, 65_536)

    async def upgrade(self, user_id: int, *, is_acking: bool = False, user_agent: str = "") -> None:
        """Become a WebSocket client; what comes behind the head is dropped."""
        await self.connect()
        (token,) = drive_plan.tokens([user_id])
        head = drive_plan.upgrade(self._port, token, is_acking=is_acking)
        if user_agent:
            lines = [line for line in head.split(b"\r\n") if not line.startswith(b"User-Agent")]
            head = b"\r\n".join([*lines[:1], b"User-Agent: " + user_agent.encode(), *lines[1:]])
        await self.send(head)
        answer = await self.receive()
        if not answer.startswith(b"HTTP/1.1 101 "):
            raise ConnectionError(answer[:100])

    async def answer(self) -> int:
        """Read one HTTP answer; how many bytes it had. Raises ConnectionError when it is none."""
        data = b""
        while b"\r\n\r\n" not in data:
            data += await self._more()
        head, _, rest = data.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split()[0])
        got = len(rest)
        while got < length:
            got += len(await self._more())
        return len(head) + got

    async def _more(self) -> bytes:
        data = await self.receive()
        if not data:
            raise ConnectionError("ended")
        return data

    def close(self) -> None:
        """Without a word: RST."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()


class Flood:
    """Where it goes, until when, and what it did."""

    def __init__(self, port: int, seconds: float) -> None:
        self.port = port
        self._seconds = seconds
        self.book: Counter[str] = Counter()
        self.ends = time.monotonic() + seconds

    async def begin_again(self) -> None:
        """The preparations are over and written, which whoever started us is told: time counts from here on."""
        async with self.peer() as peer:
            await peer.connect()
            for path in ("stats", f"offline-messages?user_id={FIRST_USER}"):  # each waits for what is being written
                await peer.send(drive_plan.get(self.port, f"/notification/{path}"))
                await peer.answer()
        self.ends = time.monotonic() + self._seconds
        print(PREPARED, flush=True)

    @property
    def is_over(self) -> bool:
        """Time is up."""
        return time.monotonic() >= self.ends

    async def each(self, times: int, work: Callable[[int], Awaitable[None]]) -> None:
        """So many at the same time, each again and again, whatever becomes of it."""

        async def again(number: int) -> None:
            while not self.is_over:
                try:
                    async with asyncio.timeout(max(0.0, self.ends - time.monotonic())):
                        await work(number)
                except TimeoutError:
                    return
                except OSError:
                    self.book["connections ended by the daemon"] += 1
                    await asyncio.sleep(0.05)

        async with asyncio.TaskGroup() as group:
            for number in range(times):
                group.create_task(again(number))

    @contextlib.asynccontextmanager
    async def peer(self, **options: int) -> AsyncIterator[Peer]:
        """A connection for a while."""
        peer = Peer(self.port, **options)
        self.book["connections"] += 1
        try:
            yield peer
        finally:
            peer.close()

    async def publish(self, **fields: object) -> None:
        """One notice, on a connection of its own."""
        async with self.peer() as peer:
            await peer.connect()
            body = json.dumps({"content": "flood", **fields}).encode()
            await peer.send(drive_plan.post(self.port, "/system/notice", body))
            if (await peer.receive()).startswith(b"HTTP/1.1 200"):
                self.book["notices"] += 1

    async def publish_at(self, every_s: float, **fields: object) -> None:
        """One notice after the other until time is up."""
        while not self.is_over:
            with contextlib.suppress(OSError):
                await self.publish(**fields)
            await asyncio.sleep(every_s)


# ---- frames


def masked(opcode: int, payload: bytes) -> bytes:
    """A client's short frame, its mask zero."""
    return bytes((0x80 | opcode, 0x80 | len(payload))) + b"\0\0\0\0" + payload


def ids_frames(kind: str, ids: int) -> Iterator[bytes]:
    """Frames of so many ids that nobody knows."""
    for number in count():
        yield text_frame(json.dumps({"type": kind, "message_ids": [f"x{number}-{one}" for one in range(ids)]}).encode())


async def say(flood: Flood, frames: Callable[[int], Iterable[bytes]], *, connections: int = 20, user: int = 0) -> None:
    """Connections of one user (or, with `user` 0, of one each) that send as fast as the daemon reads."""

    async def work(number: int) -> None:
        async with flood.peer() as peer:
            await peer.upgrade(user or FIRST_USER + number)
            reading = asyncio.create_task(drop(peer))
            try:
                for frame in frames(number):
                    await peer.send(frame)
                    flood.book["frames"] += 1
                    await asyncio.sleep(0)
            finally:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)

    await flood.each(connections, work)


async def drop(peer: Peer) -> None:
    while await peer.receive():
        pass


async def reads(flood: Flood) -> None:
    """20 connections of one user mark notices as read that nobody knows, 250 a frame."""
    await say(flood, lambda _: ids_frames("read", 250), user=FIRST_USER)


async def acks(flood: Flood) -> None:
    """20 connections of one user acknowledge notices that nobody knows, 250 a frame."""
    await say(flood, lambda _: ids_frames("ack", 250), user=FIRST_USER)


async def confirms(flood: Flood) -> None:
    """20 users confirm one unknown notice per frame."""
    await say(flood, lambda _: ids_frames("confirm", 1))


async def frames(flood: Flood) -> None:
    """20 connections send pings, JSON pings, nonsense and auth frames, and come back when closed for it."""
    (token,) = drive_plan.tokens([FIRST_USER])
    kinds = [
        masked(PING, b"x" * 125),
        text_frame(b'{"type":"ping"}'),
        text_frame(b"nonsense"),
        text_frame(json.dumps({"type": "auth", "token": token}).encode()),
    ]
    await say(flood, lambda number: (kinds[number % len(kinds)] for _ in count()))


async def unread_pongs(flood: Flood) -> None:
    """200 clients ping 40 times a second and never read."""

    async def work(number: int) -> None:
        async with flood.peer(receive_buffer=2048) as peer:
            await peer.upgrade(FIRST_USER + number)
            while True:
                await peer.send(masked(PING, b"x" * 125))
                flood.book["frames"] += 1
                await asyncio.sleep(0.025)

    await flood.each(200, work)


# ---- who they say they are


def evil_user_agents() -> Iterator[str]:
    """Texts that make expressions go back and forth."""
    for number in count():
        part = EVIL_PARTS[number % len(EVIL_PARTS)]
        yield f"Mozilla/5.0 (X{number}; " + part * (7000 // len(part))


def usual_user_agents() -> Iterator[str]:
    """Browsers' texts, no two alike."""
    for number in count():
        yield USER_AGENTS[number % len(USER_AGENTS)].replace("{n}", str(number))


async def user_agents(flood: Flood) -> None:
    """Clients come and go, each with another User-Agent, half of them ill-meant; a notice to all every half second."""
    usual, evil = usual_user_agents(), evil_user_agents()

    async def work(number: int) -> None:
        async with flood.peer() as peer:
            await peer.upgrade(FIRST_USER + number, user_agent=next(evil if number % 2 else usual))
            await asyncio.sleep(1)

    await asyncio.gather(flood.each(400, work), flood.publish_at(0.5, target="online"))


# ---- HTTP


def upload(flood: Flood, headers: str, size: int) -> bytes:
    head = f"POST {drive_plan.PREFIX}/system/notice HTTP/1.1\r\nHost: 127.0.0.1:{flood.port}\r\n{headers}"
    return f"{head}Content-Type: application/json\r\nContent-Length: {size}\r\n\r\n".encode()


async def bodies(flood: Flood, headers: str = "") -> None:
    """1,000 connections each send a body of 1 MiB but for its last byte, without credentials."""
    size = 2**20
    piece = b"x" * 65_536

    async def work(_: int) -> None:
        async with flood.peer() as peer:
            await peer.connect()
            await peer.send(upload(flood, headers, size))
            for _ in range(size // len(piece) - 1):
                await peer.send(piece)
                flood.book["kB"] += len(piece) // 1000
            await peer.send(piece[1:])
            while await peer.receive():
                flood.book["refused"] += 1

    await flood.each(1000, work)


async def bodies_with_key(flood: Flood) -> None:
    """The same with a publisher's key."""
    await bodies(flood, f"X-API-Key: {drive_plan.API_KEY}\r\n")


async def unread_answers(flood: Flood) -> None:
    """100 connections ask for /openapi.json over and over and read nothing."""
    request = f"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1:{flood.port}\r\n\r\n".encode() * 40

    async def work(_: int) -> None:
        async with flood.peer(receive_buffer=2048) as peer:
            await peer.connect()
            while True:
                await peer.send(request)
                flood.book["requests"] += 40
                await asyncio.sleep(0.05)

    await flood.each(100, work)


async def metrics(flood: Flood) -> None:
    """20 connections ask for /metrics, pipelined, and read all of it."""
    request = f"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1:{flood.port}\r\n\r\n".encode() * 16

    async def work(_: int) -> None:
        async with flood.peer() as peer:
            await peer.connect()
            await peer.send(request)
            while data := await peer.receive():
                for _ in range(data.count(b"HTTP/1.1 200")):
                    flood.book["answers"] += 1
                if b"HTTP/1.1 200" in data:
                    await peer.send(request[: len(request) // 16])

    await flood.each(20, work)


async def chunks(flood: Flood) -> None:
    """20 connections send chunked bodies of empty lines and of one-byte chunks."""
    head = (
        f"POST {drive_plan.PREFIX}/system/notice HTTP/1.1\r\nHost: 127.0.0.1:{flood.port}\r\n"
        f"X-API-Key: {drive_plan.API_KEY}\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    ).encode()
    lines = b"8000\r\n" + b"\r\n" * 0x4000 + b"\r\n"
    single = b"1\r\nx\r\n" * 5_000

    async def work(number: int) -> None:
        async with flood.peer() as peer:
            await peer.connect()
            await peer.send(head)
            for _ in range(30):
                await peer.send(single if number % 2 else lines)
                flood.book["kB"] += 32
            await peer.receive()

    await flood.each(20, work)


async def connects(flood: Flood) -> None:
    """500 at a time connect, send half a head, and go."""

    async def work(_: int) -> None:
        async with flood.peer() as peer:
            await peer.connect()
            await peer.send(b"GET /ws HTTP/1.1\r\nHost: localho")
            await asyncio.sleep(0.2)

    await flood.each(500, work)


async def large_answers(flood: Flood) -> None:
    """Four users read mailboxes of 4 MB, two administrators 100 receive records of each of 1,000 users."""
    users = range(FIRST_USER, FIRST_USER + 1000)
    for _ in range(100):
        await flood.publish(target="custom", user_ids=[*users])
    for _ in range(100):
        await flood.publish(target="custom", user_ids=[FIRST_USER], data={"text": "x" * 40_000})
    body = json.dumps({"user_ids": [*users], "limit": 100}).encode()
    (token,) = drive_plan.tokens([FIRST_USER])
    mailbox = (
        f"GET {drive_plan.PREFIX}/notification/offline-messages HTTP/1.1\r\nHost: 127.0.0.1:{flood.port}\r\n"
        f"Authorization: Bearer {token}\r\n\r\n"
    ).encode()
    records = drive_plan.post(flood.port, "/notification/receive-records/batch", body)

    async def work(number: int) -> None:
        async with flood.peer() as peer:
            await peer.connect()
            await peer.send(mailbox if number < 4 else records)
            flood.book["kB"] += await peer.answer() // 1000
            flood.book["answers"] += 1

    await flood.begin_again()
    await flood.each(6, work)


async def repeats(flood: Flood) -> None:
    """300 publishers repeat one notice and wait for its delivery, over and over."""
    body = json.dumps(
        {"content": "again", "message_id": "again", "target": "custom", "user_ids": [FIRST_USER]}
    ).encode()

    async def work(_: int) -> None:
        async with flood.peer() as peer:
            await peer.connect()
            while True:
                await peer.send(drive_plan.post(flood.port, "/system/notice?wait_ms=5000", body))
                if not await peer.receive():
                    raise ConnectionError
                flood.book["answers"] += 1

    await flood.each(300, work)


# ---- who does not read, and who does not answer


async def slow_readers(flood: Flood, *, is_cut: bool = False) -> None:
    """300 clients stop reading while notices of 60 KB go to everybody; the daemon closes them, and they come back."""

    async def work(number: int) -> None:
        async with flood.peer(receive_buffer=2048) as peer:
            await peer.upgrade(FIRST_USER + number, is_acking=True)
            if is_cut:
                await asyncio.sleep(max(0.0, cut_at - time.monotonic()))
            await asyncio.sleep(3600)

    cut_at = time.monotonic() + 4
    publishing = flood.publish_at(0.2 if is_cut else 0.1, target="online", data={"text": "x" * 60_000})
    await asyncio.gather(flood.each(300, work), publishing)


async def network_cut(flood: Flood) -> None:
    """300 clients each with up to a megabyte unsent are gone in the same moment."""
    peers = [Peer(flood.port, receive_buffer=2048) for _ in range(300)]
    for number, peer in enumerate(peers):
        await peer.upgrade(FIRST_USER + number, is_acking=True)
    flood.book["connections"] += len(peers)
    for _ in range(15):
        await flood.publish(target="online", data={"text": "x" * 60_000})
        await asyncio.sleep(0.1)
    for peer in peers:
        peer.close()
    await asyncio.sleep(max(0.0, flood.ends - time.monotonic()))


async def never_acknowledged(flood: Flood) -> None:
    """300 clients promise to acknowledge and never do, while 50 notices a second go to everybody."""

    async def work(number: int) -> None:
        async with flood.peer() as peer:
            await peer.upgrade(FIRST_USER + number, is_acking=True)
            await drop(peer)

    await asyncio.gather(flood.each(300, work), flood.publish_at(0.02, target="online"))


async def replays(flood: Flood) -> None:
    """50 users with mailboxes of 4 MB each come and do not read."""
    users = [*range(FIRST_USER, FIRST_USER + 50)]
    for _ in range(100):
        await flood.publish(target="custom", user_ids=users, data={"text": "x" * 40_000})

    async def work(number: int) -> None:
        async with flood.peer(receive_buffer=2048) as peer:
            await peer.upgrade(FIRST_USER + number, is_acking=True)
            await asyncio.sleep(3600)

    await flood.begin_again()
    await flood.each(50, work)


FLOODS: dict[str, Callable[[Flood], Awaitable[None]]] = {
    work.__name__: work
    for work in (
        user_agents, reads, acks, confirms, frames, unread_pongs, bodies, bodies_with_key, unread_answers, metrics,
        chunks, connects, large_answers, repeats, slow_readers, network_cut, never_acknowledged, replays,
    )
}  # fmt: skip


async def run(name: str, port: int, seconds: float) -> Counter[str]:
    """One of FLOODS."""
    flood = Flood(port, seconds)
    await FLOODS[name](flood)
    return flood.book


def main() -> int:
    """Prints PREPARED, where there was something to prepare, and the book."""
    name, port, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    allow_descriptors(MOST_CONNECTIONS)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        book = runner.run(run(name, port, seconds))
    print(json.dumps(book))
    return 0


if __name__ == "__main__":
    sys.exit(main())
