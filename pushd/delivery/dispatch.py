"""Takes notices from their lanes to the sockets: workers find the recipients, and who got a notice is noted."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import msgspec
import structlog

from pushd._fastpath import FanOut, Hub
from pushd.basis import Basis
from pushd.delivery.acknowledgements import Acknowledgements
from pushd.delivery.fan_out import SLICE_S, FanOutQueue
from pushd.delivery.lanes import Lanes
from pushd.delivery.recipients import StoredRecipients, is_partly_delivered
from pushd.delivery.to_one import ToOne
from pushd.in_flight import InFlight
from pushd.model import TargetKind, UserId
from pushd.protocol import frames
from pushd.telemetry import faults
from pushd.turns import Share, Slice
from pushd.writing.set_aside import NOTICE, SetAsideData
from pushd.writing.writers import Writers

log = structlog.get_logger("pushd.dispatch")

SETTLE_CHUNK = 250  # recipients that are noted in one turn of the loop
GROW_AFTER_S = 0.05  # a notice that waits longer gets another worker
SHRINK_AFTER_S = 5.0
LATE_ROUNDS = 3
WORKERS_S = 0.001  # for notices that workers send without waiting, in each turn of the loop
TURN_S = 0.001  # for notices that go out as they come, in each turn of the loop
NOTING_S = 0.001  # for noting to whom broadcasts went, in each turn of the loop
BURST_MOST = 128  # broadcasts that begin together
AT_ONCE_MOST = 64  # recipients of a notice that is not worth a slice of its own: a millisecond of sends
ASIDE_MOST = 1000  # notices that wait for stores without keeping a worker from others

_Begun = tuple[float, FanOut, asyncio.Future[None] | None]  # a fan-out: since when, and who waits for its end


class Dispatcher:
    """Between `min_workers` and `max_workers` workers: they wait for stores, they do not compute in parallel.

    `fan_outs`, `worker_slice`, `aside_most` and `grow_after_s` may be others before `run`.
    """

    def __init__(
        self,
        hub: Hub,
        lanes: Lanes[InFlight],
        stored: StoredRecipients,
        acknowledgements: Acknowledgements,
        writers: Writers,
        set_aside: SetAsideData,
        basis: Basis,
    ) -> None:
        clock = basis.clock
        self._hub = hub
        self._lanes = lanes
        self._stored = stored
        self._acknowledgements = acknowledgements
        self._writers = writers
        self._current = basis.current
        self._metrics = basis.metrics
        self._set_aside = set_aside
        self._now = clock.now
        self._wall_ms = clock.wall_ms
        self.fan_outs = FanOutQueue(hub, clock.now)
        self._to_one = ToOne(hub, acknowledgements, writers, basis)
        writers.give_way_to(self.fan_outs)
        self.aside_most = ASIDE_MOST
        self.grow_after_s = GROW_AFTER_S
        self.worker_slice = Slice(WORKERS_S, clock.now)  # of all: one that never waits would keep the loop to itself
        self._turn = Share(TURN_S, clock.now)  # for notices that go out as they come
        self._noting = Share(NOTING_S, clock.now)
        self._resting: deque[asyncio.Future[None]] = deque()  # workers with nothing to do
        self._is_served = False  # a worker is on its way to the lanes, or takes from them until they are empty
        self._group: asyncio.TaskGroup | None = None
        self._workers: set[asyncio.Task[None]] = set()
        self._busy = 0
        self._busy_s = 0.0
        self._busy_until = clock.now()  # up to when `_busy_s` counts
        self._aside = 0
        self._jobs: dict[InFlight, FanOut] = {}  # fan-outs of which it is not all noted to whom they went
        self._measured_at = self._idle_since = clock.now()
        self.utilization = 0.0

    @property
    def worker_count(self) -> int:
        """How many workers there are at present."""
        return len(self._workers)

    @property
    def is_idle(self) -> bool:
        """Whether no notice waits and none is on its way."""
        return not len(self._lanes) and self._busy == self._aside == 0

    def send_at_once(self, flights: deque[InFlight]) -> None:
        """Notices are about to enter the lanes together: send and remove those, from the first on, that need no worker
        and need not wait for others."""
        if self._is_served or self._group is None or len(self._lanes):
            return
        while flights and self._turn.has_time() and self._is_done(flights[0]):
            flights.popleft()

    def stop(self, flight: InFlight) -> list[UserId]:
        """Send it to nobody else; to whom it was sent by a fan-out that is under way."""
        job = self._jobs.get(flight)
        if job is None:
            return []
        job.stop()
        return [*job.handed, *job.waiting]

    def _all_sent(self, flight: InFlight) -> None:
        self._jobs.pop(flight, None)
        self._acknowledgements.all_sent(flight)

    def wake(self) -> None:
        """A notice has entered a lane: send it at once if nothing has to be waited for, else call a worker for it."""
        if self._is_served or self._group is None:
            return
        if self._turn.has_time():
            flight = self._lanes.first()
            if flight is not None and self._is_done(flight):
                self._lanes.take()
                return
        self._call_worker()

    def _call_worker(self) -> None:
        """Have one worker take all notices that wait."""
        while self._resting and not self._is_served:
            worker = self._resting.popleft()
            if not worker.done():
                self._is_served = True
                worker.set_result(None)

    async def run(self) -> None:
        """Keep workers until cancelled; they end with it. It may be run again after it failed."""
        self._is_served = False
        async with asyncio.TaskGroup() as self._group:
            self._group.create_task(self.fan_outs.serve())
            while True:
                self._scale()
                await asyncio.sleep(self.grow_after_s)

    def _scale(self) -> None:
        now = self._now()
        self._measure(now)
        config = self._current.config.delivery
        if len(self._workers) < config.min_workers:
            for _ in range(config.min_workers - len(self._workers)):
                self._grow()
        elif self._lanes.oldest_age(now) > self.grow_after_s and len(self._workers) < config.max_workers:
            self._grow()
        elif self._busy or self._is_served:
            self._idle_since = now
        elif now - self._idle_since > SHRINK_AFTER_S and len(self._workers) > config.min_workers:
            self._workers.pop().cancel()

    def _grow(self) -> None:
        assert self._group is not None  # noqa: S101 - for the type checker
        worker = self._group.create_task(self._work())
        self._workers.add(worker)
        worker.add_done_callback(self._workers.discard)

    def _count_busy(self, change: int) -> None:
        now = self._now()
        self._busy_s += self._busy * (now - self._busy_until)
        self._busy_until = now
        self._busy += change

    def _measure(self, now: float) -> None:
        self._count_busy(0)
        self._busy_s += self._to_one.take_seconds()
        wall_s = (now - self._measured_at) * max(1, len(self._workers))
        if wall_s >= 1.0:
            self.utilization = min(1.0, self._busy_s / wall_s)
            self._busy_s = 0.0
            self._measured_at = now

    async def _work(self) -> None:
        while len(self._workers) <= self._current.config.delivery.max_workers:
            flight = self._lanes.take()
            if flight is None:
                await self._rest()
                continue
            if not self._is_done(flight):
                begun = self._begin_burst(flight) if len(self._lanes) else None
                self._leave_lanes()
                await self._at_length(flight, begun)
            if self.worker_slice.is_over:
                await self.worker_slice.rest()
        self._leave_lanes()

    async def _rest(self) -> None:
        """Wait until a notice comes."""
        self._is_served = False
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._resting.append(woken)
        try:
            await woken
        except asyncio.CancelledError:
            if not woken.cancelled():
                self._leave_lanes()
            raise

    def _leave_lanes(self) -> None:
        """This worker will be busy with one notice: what else waits is another's."""
        self._is_served = False
        if len(self._lanes):
            self._call_worker()

    def _is_done(self, flight: InFlight) -> bool:
        """Whether the notice could be delivered at once, or never can be; else it is untouched."""
        notice = flight.notice
        target = notice.target
        if (
            target.kind is not TargetKind.CUSTOM
            or len(target.user_ids) > AT_ONCE_MOST
            or target.exclude_ids
            or notice.expires_ms
            or flight.is_revoked
            or notice.is_resent
            or flight.is_restored
            or self.fan_outs.is_blocked(notice.priority)
        ):
            return False
        try:
            if len(target.user_ids) == 1 and self._to_one.send(flight):
                self._end(flight)
            else:
                self._at_once(flight)
        except Exception as error:
            self._failed(flight, error)
        return True

    def _failed(self, flight: InFlight, error: Exception) -> None:
        """Set the notice aside and settle it; where that fails, the journal keeps it and the next start delivers it.

        Whoever waits for its delivery is not told that it is delivered.
        """
        message_id = flight.notice.message_id
        self._all_sent(flight)
        try:
            body = msgspec.json.encode(flight.notice)
        except Exception as failure:
            faults.noted(self._metrics, "dispatch", failure, message_id=message_id)
        else:
            self._set_aside.put(NOTICE, error, body, flight.end_work, message_id=message_id)

    def _at_once(self, flight: InFlight) -> None:
        """Send a notice to a few users who are named, and note who has it."""
        target = flight.notice.target
        began = self._now()
        job = self._job(flight, list(target.user_ids))
        flight.recipients = len(target.user_ids)
        self._acknowledgements.sending(flight)
        while not self._hub.advance(job, SLICE_S):
            pass
        self._observe(flight, began)
        self._acknowledgements.sent(flight, *_answerable(job))
        self._acknowledgements.all_sent(flight)
        if job.absent:
            self._acknowledgements.absent(flight, job.absent)
        self._conclude(flight, "success")
        self._busy_s += self._now() - began

    def _begin_burst(self, flight: InFlight) -> _Begun | None:
        """Begin a broadcast with those of its priority that wait behind it, each of which then goes on by itself."""
        burst = [flight]
        while (other := self._next_of_burst(flight, len(burst))) is not None:
            burst.append(other)
        if len(burst) == 1:
            return None
        began = self._now()
        jobs: dict[InFlight, FanOut] = {}
        for one in burst:
            try:
                jobs[one] = self._job(one, None)
            except Exception as error:
                if one is not flight:  # which fails by itself
                    self._failed(one, error)
        self._jobs.update(jobs)
        for one in jobs:
            self._acknowledgements.sending(one)
        ends = self.fan_outs.add_all(jobs.values(), flight.notice.priority)
        begun = {one: (began, job, end) for (one, job), end in zip(jobs.items(), ends, strict=True)}
        for one in burst[1:]:
            if one in begun:
                self._go_on(one, begun[one])
        return begun.get(flight)

    def _next_of_burst(self, flight: InFlight, count: int) -> InFlight | None:
        other = self._lanes.first()
        if (
            other is None
            or count >= BURST_MOST
            or self._aside + count >= self.aside_most
            or other.notice.priority is not flight.notice.priority
            or not self._is_whole_walk(flight)
            or not self._is_whole_walk(other)
        ):
            return None
        return self._lanes.take()

    def _is_whole_walk(self, flight: InFlight) -> bool:
        notice = flight.notice
        is_whole = notice.target.kind in (TargetKind.ALL, TargetKind.ONLINE) and not is_partly_delivered(flight)
        return is_whole and not flight.is_revoked and not notice.is_expired(self._wall_ms())

    def _go_on(self, flight: InFlight, begun: _Begun) -> None:
        """Let a broadcast that was begun go on without a worker."""
        assert self._group is not None  # noqa: S101 - for the type checker
        self._aside += 1
        self._group.create_task(self._follow(flight, begun)).add_done_callback(partial(self._ended, flight))

    async def _follow(self, flight: InFlight, begun: _Begun) -> None:
        try:
            await faults.unless_cancelled(self._process(flight, begun))
        except Exception as error:
            self._failed(flight, error)

    def _ended(self, flight: InFlight, task: asyncio.Task[None]) -> None:
        self._aside -= 1
        if task.cancelled():  # perhaps before it began
            self._all_sent(flight)

    async def _at_length(self, flight: InFlight, begun: _Begun | None) -> None:
        self._count_busy(1)
        try:
            await faults.unless_cancelled(self._process(flight, begun))
        except Exception as error:
            self._failed(flight, error)
        except asyncio.CancelledError:  # the journal keeps the notice; this may not be the end of the others
            self._all_sent(flight)
            raise
        finally:
            self._count_busy(-1)

    async def _process(self, flight: InFlight, begun: _Begun | None) -> None:
        notice = flight.notice
        if begun is None and flight.is_revoked:
            self._conclude(flight, "success")
            return
        if begun is not None or self._is_whole_walk(flight):
            await self._broadcast(flight, begun)
            self._conclude(flight, "success")
            return
        recipients = await self._recipients(flight)
        if notice.is_expired(self._wall_ms()) and not flight.is_revoked:  # by now: the stores may have been away
            await self._expire(flight, recipients)
            self._conclude(flight, "expired")
        else:
            await self._deliver(flight, recipients)
            self._conclude(flight, "success")

    async def _expire(self, flight: InFlight, recipients: list[UserId]) -> None:
        """Note for each recipient that it came too late, a share in each turn of the loop."""
        flight.recipients = len(recipients)
        for start in range(0, len(recipients), SETTLE_CHUNK):
            if start:
                await asyncio.sleep(0)
            self._acknowledgements.expired(flight, recipients[start : start + SETTLE_CHUNK])

    async def _recipients(self, flight: InFlight) -> list[UserId]:
        """Find the recipients in the cache, else in the stores, however long these are down: others overtake then."""
        recipients = self._stored.cached(flight)
        if recipients is None or is_partly_delivered(flight):
            with self._standing_aside():
                recipients = await self._stored.recipients(flight)
        excluded = flight.notice.target.exclude_ids
        return list(set(recipients).difference(excluded)) if excluded else recipients

    @contextmanager
    def _standing_aside(self) -> Iterator[None]:
        """Let another worker take the place of this one while it waits for a store or for other fan-outs."""
        worker = asyncio.current_task()
        if worker not in self._workers or self._aside >= self.aside_most:
            yield
            return
        self._workers.discard(worker)
        if not self._resting:
            self._grow()
        self._count_busy(-1)
        self._aside += 1
        try:
            yield
        finally:
            self._aside -= 1
            self._count_busy(1)
            self._workers.add(worker)

    async def _broadcast(self, flight: InFlight, begun: _Begun | None) -> None:
        """Send to every connection first, whoever that is; who else should have it is asked afterwards."""
        job = await self._fan_out(flight, begun or self._begin(flight, None))
        if flight.is_revoked:
            return
        recipients = await self._recipients(flight)
        absent: list[UserId] = []
        if recipients:
            await self._noting.turn()
            sent = {*job.handed, *job.waiting}
            absent = [user_id for user_id in recipients if user_id not in sent]
        await self._settle_absent(flight, absent, LATE_ROUNDS)

    async def _deliver(self, flight: InFlight, recipients: list[UserId]) -> None:
        if flight.is_revoked:
            return
        job = await self._fan_out(flight, self._begin(flight, recipients))
        await self._settle_absent(flight, job.absent, LATE_ROUNDS)

    def _begin(self, flight: InFlight, users: list[UserId] | None) -> _Begun:
        began = self._now()
        job = self._job(flight, users)
        self._jobs[flight] = job
        flight.recipients = max(flight.recipients, len(users or ()))
        self._acknowledgements.sending(flight)
        return began, job, self.fan_outs.add(job, flight.notice.priority)

    async def _reached(self, under_way: asyncio.Future[None] | None) -> None:
        if under_way is not None and under_way.done():
            under_way.result()
        elif under_way is not None:
            with self._standing_aside():
                await under_way

    async def _fan_out(self, flight: InFlight, begun: _Begun) -> FanOut:
        began, job, under_way = begun
        await self._reached(under_way)
        self._observe(flight, began)
        await self._note_sent(flight, job)
        return job

    def _observe(self, flight: InFlight, began: float) -> None:
        ended = self._now()
        self._metrics.observe_delivery(ended - flight.accepted_at, ended - began)

    async def _note_sent(self, flight: InFlight, job: FanOut) -> None:
        """Note to whom it went, a share in each turn of the loop."""
        handed, waiting = _answerable(job)
        for start in range(0, max(len(handed), len(waiting)), SETTLE_CHUNK):
            if start:
                await asyncio.sleep(0)
            if not self._noting.has_time():
                await self._noting.turn()
            share = slice(start, start + SETTLE_CHUNK)
            self._acknowledgements.sent(flight, handed[share], waiting[share])
        self._all_sent(flight)

    def _job(self, flight: InFlight, users: list[UserId] | None) -> FanOut:
        notice = flight.notice
        if notice.reminder is not None:
            encode = partial(frames.reminder_frame, notice, self._current.timezone)
            return FanOut(notice.message_id, encode, users, tells_apart=True)
        message = frames.notice_frame(notice, self._current.timezone)
        exclude = frozenset(notice.target.exclude_ids) if users is None and notice.target.exclude_ids else None
        return FanOut(notice.message_id, partial(frames.shared_frame, message), users, exclude)

    async def _settle_absent(self, flight: InFlight, absent: list[UserId], rounds: int) -> None:
        """Save it for the absent, but send it to those who have connected since they were found absent."""
        late: list[UserId] = []
        has_user = self._hub.has_user
        for start in range(0, len(absent), SETTLE_CHUNK):
            if flight.is_revoked:
                return
            chunk = absent[start : start + SETTLE_CHUNK]
            here = [user_id for user_id in chunk if has_user(user_id)] if rounds else []
            if here:
                late.extend(here)
                came = set(here)
                chunk = [user_id for user_id in chunk if user_id not in came]
            self._acknowledgements.absent(flight, chunk)
            if start + SETTLE_CHUNK < len(absent):
                await asyncio.sleep(0)
        if late and not flight.is_revoked:
            _, job, under_way = self._begin(flight, late)
            await self._reached(under_way)
            await self._note_sent(flight, job)
            await self._settle_absent(flight, job.absent, rounds - 1)

    def _conclude(self, flight: InFlight, status: str) -> None:
        if not flight.notice.is_resent:
            self._writers.records.conclude(flight, status)
        self._end(flight)

    def _end(self, flight: InFlight) -> None:
        try:
            flight.end_fan_out()
        except Exception as error:  # of whoever hears of it: the notice itself has gone out
            faults.noted(self._metrics, "settle", error, message_id=flight.notice.message_id)


def _answerable(job: FanOut) -> tuple[list[UserId], list[UserId]]:
    """Who has the frame, and who must answer: of two connections, the one that acknowledges decides."""
    handed, waiting = job.handed, job.waiting
    return (list(set(handed).difference(waiting)) if handed and waiting else handed), waiting
