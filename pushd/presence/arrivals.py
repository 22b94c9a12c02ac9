"""Who is connected: arrivals with their mailbox replay, departures, heartbeats, expiry, drain."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Coroutine, Iterator, Sequence
from typing import Any

import structlog

from pushd._fastpath import Connection, Hub
from pushd.clock import Clock
from pushd.config.current import CurrentConfig
from pushd.delivery.acknowledgements import Acknowledgements
from pushd.errors import CloseCode, StoreError, StoreUnavailable
from pushd.model import Arrival, Client, MailboxItem, User
from pushd.ports import Stores
from pushd.protocol import frames as wire
from pushd.retry import FIRST_S, Backoff
from pushd.telemetry.metrics import Metrics
from pushd.turns import Slice
from pushd.users.directory import CachedDirectory
from pushd.writing.writers import Writers

log = structlog.get_logger("pushd.presence")

ARRIVALS_PER_BATCH = 64
WELCOMES_AT_ONCE = 2  # fewer, but larger batches
REPLAY_CHUNK_BYTES = 32 * 1024
SLICE_S = 0.0005  # the loop runs between slices of a welcome
STORES_WITHIN_S = 2.0  # after that a user is greeted without them
RECORDS_WITHIN_S = 0.5
COUNT_WITHIN_S = 0.5
STORES_WITHIN_S_AGAIN = 0.2  # while they have not answered before
SWEEP_EVERY_S = 0.25
ALIVE_EVERY_S = 2.0
SWEEPS_PER_ROUND = 4  # every connection is looked at once a second


class Presence:
    """Brings connections in and out. One task serves arrivals in batches: one store round trip for many users."""

    def __init__(
        self,
        hub: Hub,
        stores: Stores,
        directory: CachedDirectory,
        acknowledgements: Acknowledgements,
        writers: Writers,
        current: CurrentConfig,
        metrics: Metrics,
        clock: Clock,
        *,
        node_id: str,
        retry_first_s: float = FIRST_S,
    ) -> None:
        self._hub = hub
        self._mailbox = stores.mailbox
        self._records = stores.records
        self._statuses = stores.presence
        self._directory = directory
        self._acknowledgements = acknowledgements
        self._writers = writers
        self._current = current
        self._metrics = metrics
        self._now = clock.now
        self._wall_ms = clock.wall_ms
        self._node_id = node_id
        self._retry_first_s = retry_first_s
        self._arrivals: list[Connection] = []
        writers.give_way_to(self._arrivals)  # while some wait for others to be welcomed
        self._arrived = asyncio.Event()
        self._greeting = asyncio.Lock()
        self._replays: set[asyncio.Task[None]] = set()
        self.failure = ""  # why the last replay failed; "" while it works

    # ---- arriving

    def arrive(self, connection: Connection) -> None:
        """A connection is open: register it; hello and mailbox follow, live notices wait behind them."""
        user_id = connection.user_id
        present = self._hub.connections_of(user_id)
        limit = self._current.config.limits.max_connections_per_user
        for oldest in present[: max(0, len(present) + 1 - limit)]:
            self._hub.close(oldest, CloseCode.REPLACED, "another connection of this user took its place")
        is_first = not self._hub.has_user(user_id)
        self._hub.add(connection)
        self._metrics.connects.inc()
        try:
            if connection.is_guest:
                self._greet(connection, 0)
                self._hub.release(connection)
                return
            if is_first:
                self._writers.statuses.arrived(self._arrival(connection))
            self._arrivals.append(connection)
            self._arrived.set()
        except Exception as error:
            self._arrival_failed(connection, error)

    def _arrival(self, connection: Connection) -> Arrival:
        client: Client = connection.details
        return Arrival(
            user_id=connection.user_id,
            username=client.username,
            connection_id=connection.conn_id,
            client_ip=client.client_ip,
            user_agent=client.user_agent,
            at_ms=self._wall_ms(),
        )

    async def serve_arrivals(self) -> None:
        """Until cancelled. While one batch waits for the stores, others may be asked for."""
        free = asyncio.Semaphore(WELCOMES_AT_ONCE)
        try:
            async with asyncio.TaskGroup() as welcomes:
                while True:
                    await free.acquire()
                    await self._arrived.wait()
                    batch = self._arrivals[:ARRIVALS_PER_BATCH]
                    del self._arrivals[:ARRIVALS_PER_BATCH]
                    if not self._arrivals:
                        self._arrived.clear()
                    welcome = welcomes.create_task(self._welcome(batch))
                    welcome.add_done_callback(lambda _: free.release())
        finally:
            for task in self._replays:
                task.cancel()

    async def _welcome(self, connections: list[Connection]) -> None:
        """Whatever fails unexpectedly costs the connection that it is about; which one, is found one by one."""
        connections = [connection for connection in connections if connection.is_registered]
        try:
            waiting = await self._read_mailboxes(connections)
            unread = await self._count_unread({connection.user_id for connection in connections})
        except StoreError as error:
            self._store_failed(error)
            for connection in connections:
                with self._at_cost_of(connection):
                    self._greet(connection, 0)
                    self._hub.release(connection)
                    self._start(connection, self._replay_later(connection))
            return
        except Exception as error:
            if len(connections) == 1:
                self._arrival_failed(connections[0], error)
                return
            for connection in connections:
                await self._welcome([connection])
            return
        self.failure = ""
        async with self._greeting:  # one slice in each turn of the loop
            part = Slice(SLICE_S, self._now)
            for connection in connections:
                await part.rest()
                try:
                    self._greet(connection, unread.get(connection.user_id, 0))
                    self._replay(connection, waiting.get(connection.user_id, ()))
                except Exception as error:
                    self._arrival_failed(connection, error)

    @contextlib.contextmanager
    def _at_cost_of(self, connection: Connection) -> Iterator[None]:
        """What fails in the block costs this connection, and nobody else."""
        try:
            yield
        except Exception as error:
            self._arrival_failed(connection, error)

    def _arrival_failed(self, connection: Connection, error: Exception) -> None:
        self._metrics.errors.labels("arrival").inc()
        self._report("arrival failed", error, user_id=connection.user_id, conn_id=connection.conn_id)
        self._close(connection, CloseCode.INTERNAL_ERROR, "")

    @contextlib.contextmanager
    def _carrying_on(self, step: str) -> Iterator[None]:
        """What fails in the block is noted, and what comes behind it goes on."""
        try:
            yield
        except Exception as error:
            self._metrics.errors.labels(step).inc()
            self._report(f"{step} failed", error)

    def _report(self, event: str, error: Exception, **details: object) -> None:
        if self._metrics.is_new_cause((event, repr(error))):
            log.error(event, exc_info=error, **details)

    async def _learn(self, connections: list[Connection]) -> None:
        clients: list[Client] = [connection.details for connection in connections]
        await self.learn(
            [
                User(connection.user_id, client.username, client.role, client.issued_ms)
                for connection, client in zip(connections, clients, strict=True)
            ]
        )
        for client in clients:
            client.issued_ms = None  # it takes 32 bytes for as long as the connection lives

    async def learn(self, claims: list[User]) -> None:
        """The directory takes note of what tokens say of their users. Raises StoreError."""
        await self._directory.learn(claims)

    async def _read_mailboxes(self, connections: list[Connection]) -> dict[int, list[MailboxItem]]:
        """With everything in them that was on its way when this was called; the users are known from then on."""
        within_s = STORES_WITHIN_S_AGAIN if self.failure else STORES_WITHIN_S
        try:
            async with asyncio.timeout(within_s):
                await self._learn(connections)
                user_ids = {connection.user_id for connection in connections}
                await self._writers.mailboxes_written(user_ids)
                return await self._mailbox.read(user_ids)
        except TimeoutError:
            raise StoreUnavailable("mailbox", f"no answer within {within_s} s") from None

    async def _count_unread(self, user_ids: set[int]) -> dict[int, int]:
        """For hello, which waits neither long for records under way nor for a store that cannot be had."""
        with contextlib.suppress(StoreError, TimeoutError):
            async with asyncio.timeout(RECORDS_WITHIN_S):
                await self._writers.records_written(user_ids)
        try:
            async with asyncio.timeout(COUNT_WITHIN_S):
                return await self._records.unread_counts(user_ids)
        except (StoreError, TimeoutError):
            return {}

    def _store_failed(self, error: StoreError) -> None:
        if not self.failure:
            log.warning("mailbox replay waits for the store", error=str(error), cause=repr(error.__cause__))
        self.failure = str(error)
        self._metrics.errors.labels("replay").inc()

    def _greet(self, connection: Connection, unread_count: int) -> None:
        data = wire.HelloData(
            user_id=connection.user_id,
            conn_id=connection.conn_id,
            heartbeat_s=self._current.config.delivery.heartbeat_s,
            unread_count=unread_count,
            node_id=self._node_id,
        )
        self._hub.send(connection, wire.frame(wire.Hello(data), connection.dialect))

    # ---- replaying the mailbox

    def _replay(self, connection: Connection, items: Sequence[MailboxItem]) -> None:
        """What fits into half the pending bytes at once, the rest at the client's pace."""
        if not items or not connection.is_registered:
            self._hub.release(connection)
            return
        self._acknowledgements.replaying(connection.user_id, items)
        room = self._hub.max_pending_bytes // 2
        chunks = self._chunks(items, connection.dialect)
        for frames, ids in chunks:
            if len(frames) > room:
                self._start(connection, self._replay_slowly(connection, (frames, ids), chunks))
                return
            room -= len(frames)
            if not self._send(connection, frames, ids):
                return
        self._hub.release(connection)

    def _send(self, connection: Connection, frames: bytes, ids: tuple[str, ...]) -> bool:
        self._metrics.mailbox_delivered.inc(len(ids))
        return self._hub.send(connection, frames, ids)

    async def _replay_slowly(
        self,
        connection: Connection,
        next_one: tuple[bytes, tuple[str, ...]],
        others: Iterator[tuple[bytes, tuple[str, ...]]],
    ) -> None:
        """A chunk is encoded when all before it are in the kernel."""
        for frames, ids in itertools.chain((next_one,), others):
            if not await self._is_drained(connection) or not self._send(connection, frames, ids):
                return
        if await self._is_drained(connection):
            self._hub.release(connection)

    async def _is_drained(self, connection: Connection) -> bool:
        """Once the kernel has all that was sent; False when the connection is gone.

        A client that takes less than a chunk in `delivery.ack_timeout_s` is a slow consumer.
        """
        loop = asyncio.get_running_loop()
        while connection.is_registered:
            unsent = connection.unsent_bytes
            drained = connection.drained(loop)
            if (await asyncio.wait([drained], timeout=self._current.config.delivery.ack_timeout_s))[0]:
                break
            if unsent - connection.unsent_bytes < REPLAY_CHUNK_BYTES:
                self._hub.close(connection, CloseCode.SLOW_CONSUMER, "slow consumer")
        return connection.is_registered

    def _chunks(self, items: Sequence[MailboxItem], dialect: int) -> Iterator[tuple[bytes, tuple[str, ...]]]:
        """Frames joined to writes of about REPLAY_CHUNK_BYTES, each with the ids it carries; encoded when asked for.

        What cannot be encoded, or be sent to anybody, is left in the mailbox.
        """
        most_bytes = min(REPLAY_CHUNK_BYTES, self._hub.max_pending_bytes // 4)
        frames: list[bytes] = []
        ids: list[str] = []
        size = 0
        for item in items:
            frame = self._replayed(item, dialect)
            if frame is None:
                continue
            if frames and size + len(frame) > most_bytes:
                yield b"".join(frames), tuple(ids)
                frames, ids, size = [], [], 0
            frames.append(frame)
            ids.append(item.message_id)
            size += len(frame)
        if frames:
            yield b"".join(frames), tuple(ids)

    def _replayed(self, item: MailboxItem, dialect: int) -> bytes | None:
        try:
            frame = wire.frame(wire.replayed_frame(item), dialect)
            if len(frame) > self._hub.max_frame_bytes:
                raise ValueError("more bytes than limits.max_pending_bytes lets a connection have")
        except Exception as error:
            self._metrics.errors.labels("mailbox_element").inc()
            if self._metrics.is_new_cause((cause := f"{type(error).__name__}: {error}",)):
                log.error("a notice in the mailbox cannot be sent", message_id=item.message_id, cause=cause)
            return None
        return frame

    async def _replay_later(self, connection: Connection) -> None:
        """The store was down when the user came: replay when it is back, behind what is live by then."""
        backoff = Backoff(self._retry_first_s)
        while connection.is_registered:
            await asyncio.sleep(backoff.next_s())
            try:
                waiting = await self._read_mailboxes([connection])
            except StoreError as error:
                self._store_failed(error)
                continue
            self.failure = ""
            self._replay(connection, waiting.get(connection.user_id, ()))
            return

    def _start(self, connection: Connection, replay: Coroutine[Any, Any, None]) -> None:
        async def run() -> None:
            with self._at_cost_of(connection):
                await replay

        task = asyncio.create_task(run())
        self._replays.add(task)
        task.add_done_callback(self._replay_ended)

    def _replay_ended(self, task: asyncio.Task[None]) -> None:
        self._replays.discard(task)
        if not self._replays:
            self.failure = ""  # nobody waits for the store any more

    # ---- leaving

    def gone(self, connection: Connection) -> None:
        """The hub stopped delivering to a connection."""
        if not connection.is_guest and not self._hub.has_user(connection.user_id):
            self._writers.statuses.left(connection.user_id, self._wall_ms())

    # ---- watching

    async def watch(self) -> None:
        """Until cancelled: heartbeats, expired tokens, unanswered frames, lingering closes."""
        while True:
            await asyncio.sleep(SWEEP_EVERY_S)
            self._sweep(self._now())

    async def stay_alive(self) -> None:
        """Until cancelled: leave a trace of being alive, by which durations are right after a crash."""
        while True:
            with contextlib.suppress(StoreError), self._carrying_on("alive"):  # health has seen a StoreError
                await self._writers.statuses_written()  # whom a former process left is looked at before
                await self._statuses.alive(self._wall_ms())
            await asyncio.sleep(ALIVE_EVERY_S)

    def _sweep(self, now: float) -> None:
        delivery = self._current.config.delivery
        limit = self._hub.connections_total // SWEEPS_PER_ROUND + 16
        silent: list[Connection] = []
        expired: list[Connection] = []
        with self._carrying_on("sweep"):
            silent, expired = self._hub.sweep(now, delivery.heartbeat_s, delivery.heartbeat_timeout_s, limit)
        for connection in silent:
            self._close(connection, CloseCode.NO_PONG, "no pong")
        for connection in expired:
            self._close(connection, CloseCode.TOKEN_INVALID, "token expired")
        with self._carrying_on("sweep"):
            self._acknowledgements.expire()
        with self._carrying_on("sweep"):
            self._hub.reap(now)

    def _close(self, connection: Connection, code: CloseCode, reason: str) -> None:
        with self._carrying_on("close"):
            self._hub.close(connection, code, reason)

    async def drain(self, within_s: float) -> None:
        """Close every connection with 1012, spread over `within_s`, so that they do not all reconnect at once."""
        connections = self._hub.snapshot()
        if not connections:
            return
        ticks = max(1, int(within_s / 0.05))
        share = -(-len(connections) // ticks)
        for start in range(0, len(connections), share):
            for connection in connections[start : start + share]:
                self._close(connection, CloseCode.SERVICE_RESTART, "restarting")
            if start + share < len(connections):
                await asyncio.sleep(within_s / ticks)
