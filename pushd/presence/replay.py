"""Brings users what waited for them: at once when it is little, at the client's pace, or when the store is back."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine, Iterator, Sequence
from typing import Any, TypeAlias

import structlog

from pushd._fastpath import Connection, Hub
from pushd.config.current import CurrentConfig
from pushd.delivery.acknowledgements import Acknowledgements
from pushd.delivery.amendments import Amendments
from pushd.errors import CloseCode, StoreError
from pushd.model import MailboxItem
from pushd.presence.failures import Failures
from pushd.presence.mailboxes import Mailboxes
from pushd.protocol import frames
from pushd.retry import FIRST_S, Backoff
from pushd.telemetry.metrics import Metrics

log = structlog.get_logger("pushd.presence")

REPLAY_CHUNK_BYTES = 32 * 1024

Chunk: TypeAlias = tuple[bytes, tuple[str, ...]]  # frames joined to one write, and the ids of the notices in them


class Replays:
    """Sends mailboxes to connections that have been greeted, and releases these for live notices afterwards.

    What takes longer than a moment runs in a task of its own, until `stop`.
    """

    def __init__(
        self,
        hub: Hub,
        mailboxes: Mailboxes,
        acknowledgements: Acknowledgements,
        amendments: Amendments,
        current: CurrentConfig,
        metrics: Metrics,
        failures: Failures,
        *,
        retry_first_s: float = FIRST_S,
    ) -> None:
        self._hub = hub
        self._mailboxes = mailboxes
        self._acknowledgements = acknowledgements
        self._amendments = amendments
        self._current = current
        self._metrics = metrics
        self._failures = failures
        self._retry_first_s = retry_first_s
        self._tasks: set[asyncio.Task[None]] = set()

    def replay(self, connection: Connection, items: Sequence[MailboxItem]) -> None:
        """Send what was read: at once as much as half of the pending bytes takes, the rest at the client's pace."""
        if not items or not connection.is_registered:
            self._hub.release(connection)
            return
        self._acknowledgements.replaying(connection.user_id, items)
        room = self._hub.max_pending_bytes // 2
        chunks = self._chunks(items, connection.dialect)
        for chunk in chunks:
            size = len(chunk[0])
            if size > room:
                self._start(connection, self._replay_slowly(connection, itertools.chain((chunk,), chunks)))
                return
            room -= size
            if not self._send(connection, chunk):
                return
        self._hub.release(connection)

    def replay_later(self, connection: Connection) -> None:
        """The store was down when the user came: send the mailbox when it is back, behind what is live by then."""
        self._start(connection, self._replay_when_read(connection))

    def stop(self) -> None:
        """Give up what is still being brought; it stays in the mailboxes."""
        for task in self._tasks:
            task.cancel()

    def _send(self, connection: Connection, chunk: Chunk) -> bool:
        joined, ids = chunk
        self._metrics.mailbox_delivered.inc(len(ids))
        return self._hub.send(connection, joined, ids)

    # ---- what takes longer

    async def _replay_slowly(self, connection: Connection, chunks: Iterator[Chunk]) -> None:
        """A chunk is encoded only when the kernel has all before it."""
        for chunk in chunks:
            if not await self._is_drained(connection) or not self._send(connection, chunk):
                return
        if await self._is_drained(connection):
            self._hub.release(connection)

    async def _is_drained(self, connection: Connection) -> bool:
        """Wait until the kernel has all that was sent; False when the connection is gone.

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

    async def _replay_when_read(self, connection: Connection) -> None:
        backoff = Backoff(self._retry_first_s)
        while connection.is_registered:
            await asyncio.sleep(backoff.next_s())
            try:
                waiting = await self._mailboxes.read([connection])
            except StoreError:  # it is noted there
                continue
            self.replay(connection, waiting.get(connection.user_id, ()))
            return

    def _start(self, connection: Connection, replay: Coroutine[Any, Any, None]) -> None:
        async def run() -> None:
            with self._failures.at_cost_of(connection):
                await replay

        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not self._tasks:
            self._mailboxes.nobody_waits()

    # ---- encoding

    def _chunks(self, items: Sequence[MailboxItem], dialect: int) -> Iterator[Chunk]:
        """Writes of about REPLAY_CHUNK_BYTES, each encoded when it is asked for.

        What cannot be encoded, or be sent to anybody, is left in the mailbox. What was revoked is not sent.
        """
        most_bytes = min(REPLAY_CHUNK_BYTES, self._hub.max_pending_bytes // 4)
        encoded: list[bytes] = []
        ids: list[str] = []
        size = 0
        for item in items:
            current = self._amendments.current(item)
            if current is None:
                continue
            frame = self._encode(current, dialect)
            if frame is None:
                continue
            if encoded and size + len(frame) > most_bytes:
                yield b"".join(encoded), tuple(ids)
                encoded, ids, size = [], [], 0
            encoded.append(frame)
            ids.append(item.message_id)
            size += len(frame)
        if encoded:
            yield b"".join(encoded), tuple(ids)

    def _encode(self, item: MailboxItem, dialect: int) -> bytes | None:
        try:
            frame = frames.frame(frames.replayed_frame(item), dialect)
            if len(frame) > self._hub.max_frame_bytes:
                raise ValueError("more bytes than limits.max_pending_bytes lets a connection have")
        except Exception as error:
            self._metrics.errors.labels("mailbox_element").inc()
            if self._metrics.is_new_cause((cause := f"{type(error).__name__}: {error}",)):
                log.error("a notice in the mailbox cannot be sent", message_id=item.message_id, cause=cause)
            return None
        return frame
