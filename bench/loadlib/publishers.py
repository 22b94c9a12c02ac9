"""The publishing side: notices through the admin API, on kept-alive and pipelined connections of bare asyncio."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Sequence
from typing import cast

from bench.loadlib.figures import NS_PER_S, Schedule
from bench.loadlib.http import Answer, AnswerParser, advice, request
from bench.loadlib.ledger import Ledger
from bench.loadlib.options import LoadError, Options

OFFLINE_WAIT_MS = 10_000
PACE_S = 0.001  # the resolution of the loop's timers


class Publisher(asyncio.Protocol):
    """One HTTP connection: notices in order, `batch` to a request, at most `depth` requests unanswered.

    What is refused with 503 QUEUE_FULL is tried again after Retry-After.
    """

    def __init__(self, pool: Publishers, depth: int, batch: int) -> None:
        self._pool = pool
        self._depth = depth
        self._batch = batch
        self._answers = AnswerParser()
        self._waiting: deque[int] = deque()
        self._in_flight: deque[list[int]] = deque()
        self._paused_until = 0.0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._in_flight or self._waiting:
            self._pool.fail(LoadError("the daemon closed a connection on which it was to answer publishes"))

    def data_received(self, data: bytes) -> None:
        try:
            for answer in self._answers.feed(data):
                if not self._in_flight:
                    raise LoadError("the daemon answered what was not asked")
                self._answered(self._in_flight.popleft(), answer)
        except LoadError as error:
            self._pool.fail(error)
        self.pump()

    def close(self) -> None:
        """Unanswered notices are given up."""
        self._waiting.clear()
        self._in_flight.clear()
        if self._transport is not None:
            self._transport.abort()

    def submit(self, seq: int) -> None:
        """Send notice `seq` when its turn comes."""
        self._waiting.append(seq)
        self.pump()

    def pump(self) -> None:
        """Send what may be sent: full batches, and the rest when no more comes."""
        if self._transport is None or self._paused_until > time.monotonic():
            return
        while self._waiting and len(self._in_flight) < self._depth:
            if len(self._waiting) < self._batch and not self._pool.is_all_submitted:
                return
            seqs = [self._waiting.popleft() for _ in range(min(self._batch, len(self._waiting)))]
            self._in_flight.append(seqs)
            self._transport.write(self._pool.request(seqs))

    def _answered(self, seqs: list[int], answer: Answer) -> None:
        if answer.status == 200:
            refused = _refused(seqs, answer) if self._batch > 1 else []
            self._pool.accepted(len(seqs) - len(refused))
            retry_after_s = 1.0
        elif answer.status == 503 and answer.error[0] == "QUEUE_FULL":
            refused, retry_after_s = seqs, answer.retry_after_s
        else:
            raise advice(answer, "publish refused")
        if refused:
            self._waiting.extendleft(reversed(refused))
            self._paused_until = time.monotonic() + retry_after_s
            asyncio.get_running_loop().call_later(retry_after_s + PACE_S, self.pump)
            self._pool.retried(len(refused))


def _refused(seqs: list[int], answer: Answer) -> list[int]:
    """Which notices of a batch found the queue full. Raises LoadError when one was refused for another reason."""
    try:
        items = json.loads(answer.body)["data"]["items"]
        failed = [(seq, item) for seq, item in zip(seqs, items, strict=True) if not item["success"]]
        for _, item in failed:
            if item["error"] != "QUEUE_FULL":
                raise LoadError(f"publish refused: {item['code']} {item['error']}: {item['message']}")
    except (ValueError, KeyError, TypeError):
        raise LoadError("the daemon's answer to a batch is not what CONTRACT promises") from None
    return [seq for seq, _ in failed]


class Publishers:
    """All publishers of one phase. `failure` is what makes going on pointless, if anything does."""

    def __init__(
        self, options: Options, ledger: Ledger, credentials: str, schedule: Schedule, *, wait_ms: int = 0
    ) -> None:
        self._options = options
        self._ledger = ledger
        self._schedule = schedule
        self._bodies = _Bodies(options, ledger, is_offline=bool(wait_ms))
        query = f"?wait_ms={wait_ms}" if wait_ms else ""
        self._is_batched = options.batch > 1 and not wait_ms
        self._batch = options.batch if self._is_batched else 1
        resource = "/system/notices" if self._is_batched else f"/system/notice{query}"
        head = request(options, "POST", options.api_prefix + resource, credentials, 0)
        self._head = head.removesuffix(b"0\r\n\r\n")
        self._members: list[Publisher] = []
        self._submitted = 0
        self._room = asyncio.Event()
        self.failure: LoadError | None = None
        self.retries = 0
        self.late_max_ns = 0
        self.last_answer_ns = 0

    async def connect(self, address: str) -> None:
        """Open the connections. Raises LoadError."""
        loop = asyncio.get_running_loop()
        try:
            for _ in range(self._ledger.publishers):
                _, publisher = await loop.create_connection(
                    lambda: Publisher(self, self._options.pipeline, self._batch), address, self._options.port
                )
                self._members.append(publisher)
        except OSError as error:
            raise LoadError(f"{self._options.authority}: {error.strerror or error}") from None

    async def send_all(self) -> None:
        """Hand every notice to its publisher when it is due; the answers are counted as they come."""
        while self._submitted < self._ledger.notices and self.failure is None:
            if self._is_full:
                self._room.clear()
                await self._room.wait()
            due = self._schedule.due(time.monotonic_ns())
            while self._submitted < due and not self._is_full:
                seq = self._submitted
                self._submitted += 1
                self._members[self._ledger.publisher_of(seq)].submit(seq)
            if not self._is_full:
                wait_ns = self._schedule.due_at_ns(self._submitted) - time.monotonic_ns()
                await asyncio.sleep(max(PACE_S, wait_ns / NS_PER_S))
        for publisher in self._members:
            publisher.pump()

    @property
    def is_all_submitted(self) -> bool:
        """No publisher gets any more."""
        return self._submitted == self._ledger.notices

    @property
    def _is_full(self) -> bool:
        """As many wait as are under way: no use in handing over more."""
        return self._submitted - self._ledger.published >= 2 * len(self._members) * self._options.pipeline * self._batch

    def request(self, seqs: Sequence[int]) -> bytes:
        """The request of notices that are written now."""
        now_ns = time.monotonic_ns()
        late_ns = now_ns - self._schedule.due_at_ns(seqs[-1])
        if late_ns > self.late_max_ns and self._schedule.is_paced:
            self.late_max_ns = late_ns
        body = ",".join([self._bodies.body(seq, now_ns) for seq in seqs])
        data = (f'{{"notices":[{body}]}}' if self._is_batched else body).encode()
        return b"%s%d\r\n\r\n%s" % (self._head, len(data), data)

    def accepted(self, count: int) -> None:
        """Publishes were answered 200."""
        self._ledger.published += count
        self.last_answer_ns = time.monotonic_ns()
        self._room.set()

    def retried(self, count: int) -> None:
        """Publishes were answered 503 QUEUE_FULL."""
        self.retries += count

    def fail(self, error: LoadError) -> None:
        """Make the phase end with this error, unless it has one."""
        self.failure = self.failure or error
        self._room.set()

    def close(self) -> None:
        """Drop the connections."""
        for publisher in self._members:
            publisher.close()


class _Bodies:
    """The bodies of a phase's notices."""

    def __init__(self, options: Options, ledger: Ledger, *, is_offline: bool) -> None:
        self._ledger = ledger
        self._user_id = options.user_id
        self._rest = ""
        if is_offline:
            users = [options.user_id(connection) for connection in range(ledger.connections)]
            self._rest = f',"target":"custom","user_ids":{json.dumps(users)}}}'
        elif options.is_broadcast:
            self._rest = f',"target":"{options.target}"}}'

    def body(self, seq: int, now_ns: int) -> str:
        content = self._ledger.content(seq, now_ns)
        user_id = self._user_id(seq % self._ledger.connections)
        rest = self._rest or f',"target":"custom","user_ids":[{json.dumps(user_id)}]}}'
        return f'{{"content":"{content}","type":"load"{rest}'
