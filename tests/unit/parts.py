"""The parts of a node without its edge: real hub, real SQLite stores, time as the test says, no port."""

from __future__ import annotations

import asyncio
import json
import socket
from collections import deque
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import replace
from typing import Any

import msgspec

from pushd._fastpath import Connection
from pushd.basis import Basis
from pushd.config.current import CurrentConfig
from pushd.config.schema import Config
from pushd.core import Core, Past, Pauses
from pushd.delivery.submission import Sender, Submission
from pushd.errors import StoreError, StoreUnavailable
from pushd.in_flight import InFlight
from pushd.model import Client as ClientDetails
from pushd.model import MailboxItem, Notice, Outcome, Receipt, Target, TargetKind
from pushd.ports import Stores
from pushd.protocol import frames
from pushd.stores.sqlite import set_aside
from pushd.telemetry.metrics import Metrics
from pushd.writing.set_aside import SetAsideData
from tests.daemon import until

START_MS = 1_700_000_000_000
NODE_ID = "node-1"
SHORT_PAUSES = Pauses(retry_first_s=0.0, grow_after_s=0.001, settle_delay_s=0.0, status_delay_s=0.0, alive_every_s=0.0)


class Clock:
    """The loop's clock (s) and the time of day (ms); tests move both."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds

    now = __call__

    def wall_ms(self) -> int:
        return START_MS + int((self.seconds - 1000.0) * 1000)

    def move(self, seconds: float) -> None:
        self.seconds += seconds


AT_ONCE = (  # of ports.ReceiptLedger
    "client",
    "note",
    "user_number",
    "sent",
    "received",
    "conclude",
    "name",
    "undescribed",
    "describe",
    "unread_changed",  # of ports.Inbox
)


class Faulty:
    """A store whose operations fail or wait when the test says so, and otherwise are the store's own."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self._errors: dict[str, deque[Exception]] = {}
        self._gates: dict[str, asyncio.Event] = {}
        self._answers: dict[str, deque[Any]] = {}
        self.calls: list[str] = []

    def fail(self, operation: str, times: int = 1, error: Exception | None = None) -> None:
        """The next calls raise; StoreUnavailable when nothing else is said."""
        errors = self._errors.setdefault(operation, deque())
        errors.extend([error or StoreUnavailable("store", f"{operation} refused")] * times)

    def answer(self, operation: str, value: Any) -> None:
        """The next call does nothing, and returns that."""
        self._answers.setdefault(operation, deque()).append(value)

    def work(self) -> None:
        """No further call fails."""
        self._errors.clear()

    def pause(self, operation: str) -> asyncio.Event:
        """Calls wait for the event before they do anything."""
        gate = self._gates[operation] = asyncio.Event()
        return gate

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self._store, name)
        if not callable(operation):
            return operation

        def call_at_once(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(name)
            if self._answers.get(name):
                return self._answers[name].popleft()
            if self._errors.get(name):
                raise self._errors[name].popleft()
            return operation(*args, **kwargs)

        if name in AT_ONCE:
            return call_at_once

        async def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(name)
            if name in self._gates:
                await self._gates[name].wait()
            if self._errors.get(name):
                raise self._errors[name].popleft()
            return await operation(*args, **kwargs)

        return call


def faulty(stores: Stores) -> Stores:
    """The same stores, each behind a `Faulty`."""
    names = [name for name in Stores.__dataclass_fields__ if name not in ("remotes", "background")]
    kept = {name: getattr(stores, name) for name in names}
    return Stores(**{name: None if store is None else Faulty(store) for name, store in kept.items()})  # type: ignore[arg-type]


REFUSED_USER = 999_777
PICKED = ("save", "remove", "write", "connected", "disconnected", "settle")
REFUSALS = [StoreError("store", "never"), TypeError("odd")]


class Picky:
    """A store that never takes a write about `REFUSED_USER`, or of the notice with that `seq`."""

    def __init__(self, store: Any, error: Exception) -> None:
        self._store = store
        self._error = error

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self._store, name)

        async def call(*given: Any, **options: Any) -> Any:
            if str(REFUSED_USER) in repr(given):
                raise self._error
            return await operation(*given, **options)

        return call if name in PICKED else operation


class Transport:
    """What the hub needs of uvloop's transport, on one end of a socketpair."""

    def __init__(self, kind: int = socket.SOCK_STREAM) -> None:
        self.ours, self.peer = socket.socketpair(type=kind)
        self.ours.setblocking(False)
        self.peer.setblocking(False)
        self.buffer = b""
        self.junk_bytes = 0
        self.closed = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.ours if name == "socket" else default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Nothing is announced here: the test says when the buffer runs empty."""

    def get_write_buffer_size(self) -> int:
        return len(self.buffer)

    def is_closing(self) -> bool:
        return self.closed

    def write(self, data: bytes) -> None:
        if not self.closed:
            self.buffer += data
            self.flush()

    def flush(self) -> None:
        with suppress(BlockingIOError, BrokenPipeError):
            while self.buffer:
                self.buffer = self.buffer[self.ours.send(self.buffer) :]

    def close(self) -> None:
        self.closed = True

    abort = close

    def clog(self) -> None:
        """The kernel takes nothing any more."""
        with suppress(BlockingIOError):
            while True:
                self.junk_bytes += self.ours.send(b"\0" * 65536)
        with suppress(BlockingIOError):
            while True:
                self.junk_bytes += self.ours.send(b"\0")

    def received(self) -> bytes:
        """What the peer has got since it last looked."""
        data = b""
        if self.peer.fileno() < 0:  # closed
            return data
        with suppress(BlockingIOError):
            while chunk := self.peer.recv(1 << 20):
                data += chunk
        junk = min(self.junk_bytes, len(data))
        self.junk_bytes -= junk
        return data[junk:]

    def writes(self) -> list[bytes]:
        """What each send(2) brought since the peer last looked, where the socket keeps them apart: SOCK_SEQPACKET."""
        found = []
        with suppress(BlockingIOError):
            while chunk := self.peer.recv(1 << 20):
                found.append(chunk)
        return found

    def close_both(self) -> None:
        self.ours.close()
        self.peer.close()


class Client:
    """One connection as the edge would have made it, and what its peer sees."""

    def __init__(self, house: House, connection: Connection, transport: Transport) -> None:
        self.house = house
        self.connection = connection
        self.transport = transport
        self.close_code = 0
        self._bytes = b""
        self.messages: list[dict[str, Any]] = []

    def receive(self) -> list[dict[str, Any]]:
        """The messages that came since the last look."""
        known = len(self.messages)
        self._bytes += self.transport.received()
        while (frame := self._next_frame()) is not None:
            opcode, payload = frame
            if opcode == frames.Opcode.CLOSE:
                self.close_code = int.from_bytes(payload[:2], "big")
            elif opcode == frames.Opcode.TEXT:
                self.messages.append(json.loads(payload))
            elif opcode == frames.Opcode.BINARY:
                self.messages.append(msgspec.msgpack.decode(payload))
        return self.messages[known:]

    def _next_frame(self) -> tuple[int, bytes] | None:
        data = self._bytes
        if len(data) < 2:
            return None
        size, start = data[1], 2
        if size >= 126:
            start = 4 if size == 126 else 10
            size = int.from_bytes(data[2:start], "big")
        if len(data) < start + size:
            return None
        self._bytes = data[start + size :]
        return data[0] & 0x0F, data[start : start + size]

    @property
    def notices(self) -> list[str]:
        """Contents of all notices so far, in order."""
        self.receive()
        return [message["content"] for message in self.messages if "content" in message]

    @property
    def ids(self) -> list[str]:
        """Ids of all notices so far, in order."""
        self.receive()
        return [message["message_id"] for message in self.messages if "content" in message]

    @property
    def is_greeted(self) -> bool:
        self.receive()
        return bool(self.messages)

    def ack(self, *message_ids: str) -> None:
        self.house.acknowledgements.acknowledge(self.connection.user_id, message_ids)

    def clog(self) -> None:
        self.transport.clog()

    def unclog(self) -> None:
        """The peer reads again until nothing is left."""
        while self.transport.buffer or self.transport.junk_bytes:
            self.receive()
            self.transport.flush()
        self.receive()
        self.connection.resume_writing()

    def leave(self) -> None:
        """The socket goes, as uvloop tells."""
        if self.connection.transport is not None:
            self.receive()
            self.transport.close()
            self.connection.connection_lost(None)
        self.transport.close_both()


class House(Core):
    """A node's core by the test's clock, with pauses as short as can be; nothing runs before `start`."""

    def __init__(
        self, config: Config, stores: Stores, clock: Clock, *, last_seq: int = 0, past: Past | None = None
    ) -> None:
        metrics = Metrics()
        super().__init__(
            Basis(CurrentConfig(config), metrics, clock),
            stores,
            SetAsideData(stores.set_aside, metrics),
            node_id=NODE_ID,
            past=past or Past(last_seq=last_seq),
            pauses=SHORT_PAUSES,
        )
        self.ids_settled: list[str] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._clients: list[Client] = []

    def item_of(self, notice: Notice) -> MailboxItem:
        return frames.mailbox_item(notice, self.current.timezone, self.clock.wall_ms())

    def settled(self, flight: InFlight) -> None:
        self.ids_settled.append(flight.notice.message_id)
        super().settled(flight)

    # ---- running

    def start(self, *coroutines: Coroutine[Any, Any, None]) -> None:
        self._tasks += [asyncio.create_task(coroutine) for coroutine in coroutines]

    def start_writers(self) -> None:
        self.start(*(writer.run() for writer in self.writers.all()))

    def start_all(self) -> None:
        self.start_writers()
        self.start(self.dispatcher.run(), self.arrivals.run())

    async def stop(self) -> None:
        for client in self._clients:
            client.leave()
        for task in reversed(self._tasks):
            task.cancel()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        assert [error for error in results if not isinstance(error, asyncio.CancelledError)] == []

    async def quiet(self) -> None:
        """Every notice is through, and everything noted so far is in the stores."""
        await until(lambda: self.dispatcher.is_idle)
        for _ in range(2):  # what the first round settles is written by the second
            await self.writers.flushed()

    # ---- acting

    async def publish(self, content: str = "x", **fields: Any) -> InFlight:
        submission = Submission(content=content, **fields)
        flight = (await self.intake.accept(submission, Sender())).flight
        assert flight is not None
        return flight

    async def accept(self, *message_ids: str, size: int = 1, **fields: Any) -> list[Notice]:
        """Notices with these ids are in the journal, with nothing left to do; their contents are at least so long."""
        notices = [
            notice(next(self.intake._seqs), message_id=message_id, content=message_id.ljust(size, "."), **fields)
            for message_id in message_ids
        ]
        await self.stores.journal.append(notices)
        await self.stores.journal.settle([one.seq for one in notices])
        return notices

    async def counted(self, *message_ids: str) -> list[Counted]:
        """Such notices in flight."""
        return [Counted(accepted) for accepted in await self.accept(*message_ids)]

    def open(
        self,
        user_id: int,
        *,
        is_acking: bool = False,
        dialect: int = 0,
        ip: str = "127.0.0.1",
        kind: int = socket.SOCK_STREAM,
        is_told_changes: bool = False,
    ) -> Client:
        """A connection that nobody knows of yet."""
        transport = Transport(kind)
        connection = Connection(
            self.hub,
            transport,  # type: ignore[arg-type]
            user_id=user_id,
            conn_id=f"c{len(self._clients)}",
            dialect=dialect,
            is_acking=is_acking,
            is_told_changes=is_told_changes,
            now=self.clock.now(),
            details=ClientDetails(username=f"user {user_id}", role=0, client_ip=ip, user_agent="test"),
            is_guest=user_id < 0,
        )
        client = Client(self, connection, transport)
        self._clients.append(client)
        return client

    def connect(self, user_id: int, **how: Any) -> Client:
        """A connection that is registered and live at once: no hello, no replay."""
        client = self.open(user_id, **how)
        self.hub.add(client.connection)
        self.hub.release(client.connection)
        return client

    def arrive(self, user_id: int, *, is_told_unread: bool = False, **how: Any) -> Client:
        """A connection that presence is told of."""
        client = self.open(user_id, **how)
        self.arrivals.arrive(client.connection, is_told_unread=is_told_unread)
        return client

    # ---- what is stored

    async def mailbox(self, user_id: int) -> list[str]:
        """Ids of what waits for a user, oldest first."""
        return [item.message_id for item in (await self.stores.mailbox.read([user_id])).get(user_id, [])]

    async def received_by(self, flight: InFlight) -> set[int]:
        return await self.stores.records.received_by(flight.notice.message_id)

    async def unsettled(self) -> list[str]:
        return [notice.message_id for notice in await self.stores.journal.unsettled()]


def with_store(stores: Stores, **replaced: Any) -> Stores:
    """`stores` with some of them replaced."""
    return replace(stores, **replaced)


async def want_all(stores: Stores) -> None:
    """As `pushd-server set-aside retry --all` does, from this process."""
    await stores.set_aside._thread.submit("test", "want", lambda db: db.execute(set_aside.WANT_ALL))  # type: ignore[attr-defined]


def notice(seq: int = 1, *, user_ids: tuple[int, ...] = (1,), **fields: Any) -> Notice:
    """A notice to `user_ids`."""
    fields.setdefault("target", Target(TargetKind.CUSTOM, user_ids=user_ids))
    fields.setdefault("message_id", f"m{seq}")
    fields.setdefault("content", f"content {seq}")
    return Notice(seq=seq, accepted_ms=START_MS, **fields)


def item(message_id: str, size: int = 1) -> MailboxItem:
    """What waits in a mailbox; its content is the id, at least `size` characters long."""
    return MailboxItem(type="t", content=message_id.ljust(size, "."), message_id=message_id, ts=START_MS)


def receipt(message_id: str, user_id: int, **outcome: Any) -> Receipt:
    """What is on record for a recipient of whom nothing else is known."""
    return Receipt(message_id, user_id, "", 0, "", "", "", Outcome(created_ms=START_MS, **outcome))


class Counted:
    """A notice in flight, and how often it was settled."""

    def __init__(self, accepted: Notice | int = 1) -> None:
        notice_ = notice(accepted) if isinstance(accepted, int) else accepted
        self.flight = InFlight(notice_, accepted_at=0.0, on_settled=self._count)
        self.settled = 0

    def _count(self, flight: InFlight) -> None:
        self.settled += 1
