"""The way in: a submission is checked, recognised if it is a repeat, made durable, and put into its lane."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from sys import getsizeof

import msgspec

from pushd.basis import Basis
from pushd.delivery.amendments import Amendments
from pushd.delivery.dedup import DedupWindow, dedup_keys
from pushd.delivery.lanes import Lanes
from pushd.delivery.repeats import Repeats, is_due
from pushd.delivery.schedule import PAGE_ROWS, Schedule
from pushd.delivery.submission import Sender, Submission, data_bytes_of, notice_of, stored_notice, to_come
from pushd.errors import ErrorCode, RequestError, StoreError, StoreUnavailable
from pushd.in_flight import Attempt, InFlight
from pushd.limits import TokenBucket
from pushd.model import Notice, Priority, Reminder, TargetKind, is_reserved, public_type
from pushd.ports import Journal
from pushd.records import PushRow
from pushd.telemetry import faults
from pushd.writing.batches import end_work

GROUP_MOST = 1000  # notices of one append
UNSETTLED_DATA_BYTES = 256 * 1024 * 1024  # of the `data` of notices on their way, as JSON
REMEMBERED_BYTES = 256 * 1024 * 1024  # of what publishers of repeats are told
REMEMBERED_ENTRY_BYTES = 700  # beside the content


class Intake:
    """Accepts notices: makes them durable and puts them into their lanes, or into the schedule until they are due.

    `group_most` notices go to the journal in one append, and `data_most_bytes` of `data` are on their way at a time.
    """

    def __init__(
        self,
        journal: Journal,
        lanes: Lanes[InFlight],
        schedule: Schedule,
        basis: Basis,
        *,
        send_at_once: Callable[[deque[InFlight]], None],
        wake: Callable[[], None],
        on_settled: Callable[[InFlight], None],
        last_seq: int,
        amendments: Amendments,
    ) -> None:
        current, clock = basis.current, basis.clock
        self._journal = journal
        self._lanes = lanes
        self._schedule = schedule
        self._current = current
        self._metrics = basis.metrics
        self._now = clock.now
        self._wall_ms = clock.wall_ms
        self._send_at_once = send_at_once
        self._wake = wake
        self._on_settled = on_settled
        self._amendments = amendments
        self._seqs = itertools.count(last_seq + 1)
        self.window: DedupWindow[Attempt] = DedupWindow(current.config.delivery.dedup_window_s, REMEMBERED_BYTES)
        per_s = current.config.limits.publishes_per_s
        self._bucket = TokenBucket(per_s, per_s, clock.now())
        self._loop = asyncio.get_running_loop()
        self._group: list[Attempt] = []  # submitted in this turn of the loop: they go to the journal together
        self._decided: asyncio.Future[None] = self._loop.create_future()  # theirs
        self._later: list[Attempt] = []  # the same of those that are to go out later
        self._later_decided: asyncio.Future[None] = self._loop.create_future()
        self._commits: set[asyncio.Future[None]] = set()
        self.is_draining = False
        self.unsettled_total = 0
        self._under_way: dict[str, InFlight] = {}  # durable and not settled
        self._repeated: dict[str, list[InFlight]] = {}  # and others of the same ids
        self.group_most = GROUP_MOST
        self.data_most_bytes = UNSETTLED_DATA_BYTES
        self._data_bytes = 0  # of notices on their way
        self._repeats = Repeats(self.window, schedule, basis, begin=self._begin, own=self._own)
        schedule.send, schedule.has_room = self.send_due, self._has_room
        schedule.page_rows = self._backlog_most = max(1, min(PAGE_ROWS, lanes.capacity // 4))

    async def accept(self, submission: Submission, sender: Sender, idempotency_key: str = "") -> Attempt:
        """Submit a notice and wait until it is durable. Raises RequestError; nothing is kept then."""
        return await self.submit(submission, sender, idempotency_key)

    def submit(self, submission: Submission, sender: Sender, idempotency_key: str = "") -> Attempt:
        """Send a notice on its way into the journal, which goes on whether its publisher stays or leaves.

        It costs no task: all that is submitted in one turn of the loop shares one append and one future. Raises
        RequestError for what is refused at once.
        """
        now = self._now()
        self._admit(now)
        limits, ids = self._current.config.limits, self._current.config.directory.ids
        seq = 0 if submission.is_for_later else next(self._seqs)
        notice = notice_of(submission, sender, idempotency_key, seq, self._wall_ms(), limits, ids)
        keys = dedup_keys(notice, is_named=submission.message_id is not None)
        earlier = self.window.find(keys, now)
        if earlier is not None:
            return self._repeats.of(earlier, notice, keys)
        if self._amendments:
            notice = self._later_version(notice)
        return self._repeats.ask(notice, keys) if self._schedule.may_have(keys) else self._begin(notice, keys, now)

    def _later_version(self, notice: Notice) -> Notice:
        """What is published under the id of an edited notice replaces that. Raises RequestError for a revoked one's."""
        known = self._amendments.of(notice.message_id)
        if known.is_revoked:
            raise _revoked()
        return notice if known.version == 1 else msgspec.structs.replace(notice, version=known.version + 1)

    def _admit(self, now: float) -> None:
        if self.is_draining:
            raise RequestError(ErrorCode.DRAINING, "the server is shutting down", retry_after_s=5)
        self._bucket.rate = self._bucket.burst = self._current.config.limits.publishes_per_s
        if not self._bucket.take(now):
            raise RequestError(ErrorCode.RATE_LIMITED, "too many publishes per second", retry_after_s=1)

    # ---- into the schedule

    def _begin(self, notice: Notice, keys: list[str], now: float) -> Attempt:
        return self._keep(notice, keys, now) if notice.seq else self._keep_later(notice, keys, now)

    def _keep_later(self, notice: Notice, keys: list[str], now: float) -> Attempt:
        to_come(notice.send_at_ms, notice.submitted_ms)
        data_bytes = self._room_for(notice)
        if not self._later:
            self._later_decided = self._loop.create_future()
            self._loop.call_soon(self._flush_later)
        self._data_bytes += data_bytes
        attempt = Attempt(InFlight(notice, now, data_bytes=data_bytes), keys, self._later_decided)
        self._remember(attempt, notice, now)
        self._later.append(attempt)
        if len(self._later) >= self.group_most:
            self._flush_later()
        return attempt

    def _flush_later(self) -> None:
        """Have the schedule keep what was submitted since the last time."""
        group, self._later = self._later, []
        if group:
            self._own(self._loop.create_task(self._schedule_all(group)))

    async def _schedule_all(self, group: list[Attempt]) -> None:
        """Together; if one of them is to blame for a failure, each by itself."""
        try:
            await faults.unless_cancelled(self._schedule.put([attempt.notice for attempt in group]))
        except Exception as error:
            for attempt in group:
                if len(group) == 1 or isinstance(error, StoreUnavailable):
                    self._lose(attempt, error)
                else:
                    await self._schedule_alone(attempt)
        else:
            for attempt in group:
                self._scheduled(attempt)
        self._decide(group)

    async def _schedule_alone(self, attempt: Attempt) -> None:
        try:
            await faults.unless_cancelled(self._schedule.put([attempt.notice]))
        except Exception as error:
            self._lose(attempt, error)
        else:
            self._scheduled(attempt)

    def _scheduled(self, attempt: Attempt) -> None:
        """The schedule knows it by now, and for longer than the window."""
        assert attempt.flight is not None  # noqa: S101 - for the type checker
        self._data_bytes -= attempt.flight.data_bytes
        self._count([attempt.notice], "scheduled")
        self.window.drop(attempt.keys, attempt)

    def _has_room(self) -> bool:
        """Whether more of what is due may come: publishers must not find the lanes full because of it."""
        return len(self._lanes) < self._backlog_most and self._data_bytes <= self.data_most_bytes // 2

    async def send_due(self, notices: Sequence[Notice]) -> list[Attempt]:
        """Journal these and put them into their lanes: what became of each of them. They have left the schedule then,
        and their ids stay taken for the dedup window."""
        now, wall_ms = self._now(), self._wall_ms()
        decided: asyncio.Future[None] = self._loop.create_future()
        group: list[Attempt] = []
        for scheduled in notices:
            data = None if scheduled.data is None else msgspec.Raw(msgspec.json.encode(scheduled.data))
            notice = msgspec.structs.replace(scheduled, seq=next(self._seqs), accepted_ms=wall_ms, data=data)
            data_bytes = data_bytes_of(notice)
            self._lanes.claim()
            self._data_bytes += data_bytes
            flight = InFlight(notice, now, data_bytes=data_bytes, on_settled=self._settled_named)
            group.append(Attempt(flight, dedup_keys(notice, is_named=True), decided))
            self._remember(group[-1], notice, now)
        self._append(group)
        await asyncio.shield(decided)
        return group

    # ---- into the journal

    def _room_for(self, notice: Notice) -> int:
        """How many bytes of `data` it has. Raises RequestError when these are too many beside those on their way."""
        data_bytes = data_bytes_of(notice)
        if data_bytes and self._data_bytes + data_bytes > self.data_most_bytes:
            raise self._full(notice)
        return data_bytes

    def _full(self, notice: Notice) -> RequestError:
        self._count([notice], "queue_full")
        return RequestError(ErrorCode.QUEUE_FULL, "the queue is full", retry_after_s=1)

    def _keep(self, notice: Notice, keys: list[str], now: float) -> Attempt:
        data_bytes = self._room_for(notice)
        if not self._lanes.reserve():
            raise self._full(notice)
        if not self._group:
            self._decided = self._loop.create_future()
            self._loop.call_soon(self._flush)
        on_settled = self._settled_named if keys else self._settled
        flight = InFlight(notice, now, data_bytes=data_bytes, on_settled=on_settled)
        self._data_bytes += data_bytes
        attempt = Attempt(flight, keys, self._decided)
        if keys:
            self._remember(attempt, notice, now)
        self._group.append(attempt)
        if len(self._group) >= self.group_most:
            self._flush()
        return attempt

    def _flush(self) -> None:
        """Have the journal keep what was submitted since the last time."""
        group, self._group = self._group, []
        if group:
            self._append(group)

    def _append(self, group: list[Attempt]) -> None:
        try:
            commit = asyncio.ensure_future(self._journal.append([one.notice for one in group]))
        except Exception as error:
            self._refused(group, error)
        else:
            self._own(commit).add_done_callback(partial(self._committed, group))

    def _own(self, work: asyncio.Future[None]) -> asyncio.Future[None]:
        self._commits.add(work)
        work.add_done_callback(self._commits.discard)
        return work

    def _committed(self, group: list[Attempt], commit: asyncio.Future[None]) -> None:
        error = StoreUnavailable("journal", "cancelled") if commit.cancelled() else commit.exception()
        if error is None:
            try:
                self._enter(group)
            finally:
                self._decide(group)
        else:
            self._refused(group, error)

    def _refused(self, group: list[Attempt], error: BaseException) -> None:
        """The journal did not keep a group. One notice may be to blame for that: then it must not harm the others."""
        if len(group) > 1 and not isinstance(error, StoreUnavailable):
            self._own(self._loop.create_task(self._commit_singly(group)))
            return
        for attempt in group:
            self._lose(attempt, error)
        self._decide(group)

    async def _commit_singly(self, group: list[Attempt]) -> None:
        entered: list[InFlight] = []
        for attempt in group:
            try:
                await self._journal.append([attempt.notice])
            except Exception as error:
                self._lose(attempt, error)
            else:
                if attempt.flight is not None:
                    attempt.flight.add_work()  # who repeats it hears of it behind the last one, and asks for it then
                    entered.append(attempt.flight)
                self._enter([attempt])
        self._decide(group)
        self._loop.call_soon(end_work, entered, self._metrics)

    def _decide(self, group: list[Attempt]) -> None:
        group[0].decided.set_result(None)

    def _enter(self, group: list[Attempt]) -> None:
        """Send durable notices, or put them into their lanes."""
        flights = deque(attempt.flight for attempt in group if attempt.flight is not None)
        self.unsettled_total += len(flights)
        self._count([flight.notice for flight in flights], "accepted")
        for flight in flights:
            if self._under_way.setdefault(flight.notice.message_id, flight) is not flight or self._amendments:
                self._enter_again(flight)
        try:
            self._send_at_once(flights)
        except Exception as error:  # what is left goes into its lane all the same
            faults.noted(self._metrics, "wake", error)
        self._lanes.cancel(len(group) - len(flights))
        now = self._now()
        for flight in flights:
            self._lanes.put(flight, flight.notice.priority, now)
            self._call_worker()

    def _enter_again(self, flight: InFlight) -> None:
        """An id that is under way, or may be that of a notice that was changed."""
        message_id = flight.notice.message_id
        if self._under_way[message_id] is not flight:
            self._repeated.setdefault(message_id, []).append(flight)
        flight.is_revoked = self._amendments.is_revoked(message_id)
        newest = self._amendments.text(message_id)
        if newest is not None and newest.version > flight.notice.version:  # edited since its record was read
            flight.notice = flight.notice.saying(newest)

    def under_way(self, message_id: str) -> list[InFlight]:
        """The notices with this id that are durable and not settled, the first one first."""
        first = self._under_way.get(message_id)
        return [] if first is None else [first, *self._repeated.get(message_id, ())]

    def _leave(self, flight: InFlight) -> None:
        """It is settled."""
        message_id = flight.notice.message_id
        if message_id not in self._repeated:
            self._under_way.pop(message_id, None)
            return
        left = [one for one in self.under_way(message_id) if one is not flight]
        self._under_way[message_id] = left[0]
        self._repeated[message_id] = left[1:]
        if not left[1:]:
            del self._repeated[message_id]

    def _call_worker(self) -> None:
        try:
            self._wake()
        except Exception as error:  # the notice is in its lane all the same
            faults.noted(self._metrics, "wake", error)

    def _lose(self, attempt: Attempt, error: BaseException) -> None:
        """Give back what the attempt took.

        What is no store's failure is a fault of ours, and is reported even if nobody waits for the attempt.
        """
        self.window.drop(attempt.keys, attempt)
        notice = attempt.notice
        if notice.seq:
            self._lanes.cancel()
        if attempt.flight is not None:
            self._data_bytes -= attempt.flight.data_bytes
        if not is_due(notice):  # nobody waits for an answer
            self._count([notice], "store_unavailable")
        attempt.failure = error
        if not isinstance(error, StoreError):
            self._loop.call_exception_handler({"message": "a notice could not be journaled", "exception": error})

    def resend(self, row: PushRow, sender: Sender) -> Attempt:
        """Publish a stored notice again, for those who have not received it. Raises RequestError."""
        now = self._now()
        self._admit(now)
        try:
            notice = stored_notice(row, sender, next(self._seqs), self._wall_ms(), self._current.config.limits)
        except RequestError as error:
            text = f"message_id: its record cannot be sent again as it is: {error.text}"
            raise RequestError(ErrorCode.INVALID_REQUEST, text, details={"field": "message_id"}) from None
        if self._amendments.is_revoked(notice.message_id):
            raise _revoked()
        if notice.is_expired(self._wall_ms()):
            text = "message_id: the notice has expired"
            raise RequestError(ErrorCode.INVALID_REQUEST, text, details={"field": "message_id"})
        return self._keep(notice, [], now)

    def remind(self, notice: Notice, reminder: Reminder) -> Attempt:
        """Bring a notice to those again who have not got to the reminder's step. Raises RequestError."""
        now = self._now()
        self._admit(now)
        again = msgspec.structs.replace(
            notice, seq=next(self._seqs), accepted_ms=self._wall_ms(), is_resent=True, reminder=reminder
        )
        return self._keep(again, [], now)

    def restore(self, notices: list[Notice], *, queue: bool) -> None:
        """Recognise repeats of these notices of a former process and, with `queue`, deliver them."""
        now, wall_ms = self._now(), self._wall_ms()
        done: asyncio.Future[None] = self._loop.create_future()
        done.set_result(None)
        for notice in map(_presentable, notices):
            # The others were delivered: who repeats one need not wait.
            flight = InFlight(notice, now, is_restored=True, saves=int(queue), on_settled=self._settled_named)
            age_s = max(0.0, (wall_ms - notice.accepted_ms) / 1000)
            keys = dedup_keys(notice, is_named=True)
            attempt = Attempt(flight, keys, done)
            self._remember(attempt, notice, now - age_s)
            if queue:
                self._restore(flight)
            else:
                attempt.settled()

    def _remember(self, attempt: Attempt, notice: Notice, now: float) -> None:
        """Recognise repeats from now on; those of the oldest are not any more where all take over REMEMBERED_BYTES."""
        if attempt.keys:
            size = REMEMBERED_ENTRY_BYTES + getsizeof(notice.content)
            forgotten = self.window.keep(attempt.keys, attempt, now, size)
            if forgotten:
                self._metrics.errors.labels("dedup_forgotten").inc(forgotten)

    async def take_back(self, body: bytes, done: Callable[[], None]) -> None:
        """Put a notice that was set aside into its lane once more; `done` is called when it is settled.

        Who has received it already does not get it again. Raises what is wrong with `body`.
        """
        notice = _presentable(msgspec.json.decode(body, type=Notice))

        def settled(flight: InFlight) -> None:
            done()
            self._settled(flight)

        # Of a notice to whoever was connected it is not known who that was: it goes to whoever is.
        is_restored = notice.target.kind is not TargetKind.ONLINE
        flight = InFlight(notice, self._now(), is_restored=is_restored, on_settled=settled)
        self._restore(flight)

    def _restore(self, flight: InFlight) -> None:
        """Put what was accepted before into its lane."""
        self.unsettled_total += 1
        self._under_way.setdefault(flight.notice.message_id, flight)
        self._enter_again(flight)
        self._lanes.restore(flight, flight.notice.priority, self._now())
        self._call_worker()

    async def finished(self) -> None:
        """Return when every notice that was submitted is durable or refused."""
        while True:
            self._flush()
            self._flush_later()
            if not self._commits:
                return
            await asyncio.wait(self._commits)

    def _settled(self, flight: InFlight) -> None:
        self.unsettled_total -= 1
        self._leave(flight)
        self._data_bytes -= flight.data_bytes
        self._on_settled(flight)

    def _settled_named(self, flight: InFlight) -> None:
        self._settled(flight)
        attempt = self.window.find(dedup_keys(flight.notice, is_named=True), self._now())
        if attempt is not None and attempt.flight is flight:
            attempt.settled()

    def _count(self, notices: list[Notice], result: str) -> None:
        for (kind, priority), some in groupby(notices, _kind_and_priority):
            self._metrics.count_notices(kind.value, priority.name.lower(), result, len([*some]))


def _kind_and_priority(notice: Notice) -> tuple[TargetKind, Priority]:
    return notice.target.kind, notice.priority


def _presentable(notice: Notice) -> Notice:
    """A notice that was accepted before its type belonged to the protocol goes out under another one."""
    return msgspec.structs.replace(notice, type=public_type(notice.type)) if is_reserved(notice.type) else notice


def _revoked() -> RequestError:
    text = "message_id: the notice was revoked"
    return RequestError(ErrorCode.CONFLICT, text, details={"field": "message_id"})
