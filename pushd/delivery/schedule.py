"""Notices that are to go out later: kept on disk until they are due, and cancelled or changed before that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from math import inf
from typing import Any, TypeVar

import msgspec
import structlog

from pushd.basis import Basis
from pushd.delivery.dedup import dedup_keys, id_key
from pushd.errors import ErrorCode, PushdError, RequestError, StoreError, StoreUnavailable
from pushd.in_flight import Attempt, InFlight
from pushd.model import Notice
from pushd.ports import Due, Scheduled, ScheduleStore
from pushd.retry import FIRST_S, Backoff
from pushd.telemetry import faults
from pushd.writing.set_aside import NOTICE, SetAsideData
from pushd.writing.writers import Writers

log = structlog.get_logger("pushd.schedule")

LOOK_EVERY_S = 0.5  # at the time of day, which may be set, while something is scheduled
ROOM_LOOK_S = 0.005  # for room in the lanes, while a backlog waits for it
PAGE_ROWS = 250  # due ones that are sent together
RECORDS_AT_ONCE = 500
ASIDE_AGAIN_MS = 500  # what cannot be set aside now is tried again so much later

Result = TypeVar("Result")
# Has notices that are due journalled, and put into their lanes: what became of each of them.
Send = Callable[[Sequence[Notice]], Awaitable[Sequence[Attempt]]]


class SpoiledSchedule(PushdError):
    """A scheduled notice cannot be decoded."""


class Schedule:
    """What is scheduled, and the one timer for what is due next.

    Of each scheduled or cancelled notice it keeps in memory by what repeats are recognised, in 100 bytes; the rest is
    in the store. Times are those of the day. `is_draining`: nothing goes out any more; it stays scheduled.
    """

    def __init__(
        self,
        store: ScheduleStore,
        writers: Writers,
        set_aside: SetAsideData,
        basis: Basis,
        *,
        is_recorded: bool,
        retry_first_s: float = FIRST_S,
        look_every_s: float = LOOK_EVERY_S,
    ) -> None:
        self._store = store
        self._writers = writers
        self._set_aside = set_aside
        self._metrics = basis.metrics
        self._now = basis.clock.now
        self._wall_ms = basis.clock.wall_ms
        self._is_recorded = is_recorded  # the store of records shows what is scheduled
        self._retry_first_s = retry_first_s
        self._look_every_s = look_every_s
        self._known: set[int] = set()  # hashes of keys
        self._next_ms: float = inf  # nothing is due before
        self._changed = asyncio.Event()
        self._held: dict[str, asyncio.Future[None]] = {}  # notices of which one thing is being done
        self._changed_ids: set[str] | None = None  # of which one was, while it is asked what is due
        self._work: set[asyncio.Task[Any]] = set()
        self._written: list[Scheduled] = []  # of which the store of records knows now
        self.count = 0  # still to go out
        self.is_draining = False
        self.page_rows = PAGE_ROWS
        self.send: Send | None = None
        self.has_room: Callable[[], bool] = lambda: True  # whether a page more may go into the lanes

    def take_up(self, keys: Iterable[str], count: int) -> None:
        """Know what former processes scheduled; whatever was due meanwhile goes out at once."""
        self._known.update(map(hash, keys))
        self.count = count
        self._next_ms = -inf if count else inf
        self._changed.set()

    # ---- what is known

    def may_have(self, keys: Sequence[str]) -> bool:
        """False: under none of these keys is anything scheduled or cancelled."""
        return bool(self._known) and any(hash(key) in self._known for key in keys)

    async def known(self, notice: Notice) -> Scheduled | None:
        """What is scheduled or was cancelled under the message_id or the idempotency key of a notice."""
        return await self._store.find(notice.message_id, notice.idempotency_key)

    async def find(self, message_id: str) -> Scheduled | None:
        """What is scheduled or was cancelled under this id. Raises StoreError."""
        return await self._store.find(message_id) if self.may_have([id_key(message_id)]) else None

    # ---- in

    async def put(self, notices: Sequence[Notice]) -> None:
        """Keep these, all or nothing: they are on disk on return. Raises StoreError."""
        await self._store.put(notices)
        for notice in notices:
            self._known.update(map(hash, dedup_keys(notice, is_named=True)))
            self._record(notice, "scheduled")
        self.count += len(notices)
        self._is_due_at(min(notice.send_at_ms for notice in notices))

    def _is_due_at(self, at_ms: int) -> None:
        if at_ms < self._next_ms:
            self._next_ms = at_ms
            self._changed.set()

    # ---- changes

    async def cancel(self, message_id: str) -> bool:
        """See to it that a notice never goes out; False: it is not scheduled, nor was it cancelled.

        Raises StoreError: nothing is changed then.
        """
        return await self._finish(self._cancel(message_id)) if self.may_have([id_key(message_id)]) else False

    async def _cancel(self, message_id: str) -> bool:
        async with self._alone(message_id):
            found, was_due = await self._store.cancel(message_id, self._wall_ms())
            if found is None:
                return False
            if was_due:
                self.count -= 1
                notice = found.notice
                self._metrics.count_notices(notice.target.kind, notice.priority.name.lower(), "cancelled", 1)
                self._record(notice, "cancelled", found.cancelled_ms)
            return True

    async def change(self, message_id: str, make: Callable[[Notice], Notice]) -> Notice | None:
        """Make another notice of one that is scheduled, with the same id; None: it is not scheduled.

        It is on disk on return. Raises RequestError when it was cancelled, what `make` raises, and StoreError: nothing
        is changed then.
        """
        return await self._finish(self._change(message_id, make)) if self.may_have([id_key(message_id)]) else None

    async def _change(self, message_id: str, make: Callable[[Notice], Notice]) -> Notice | None:
        async with self._alone(message_id):
            found = await self._store.find(message_id)
            if found is None:
                return None
            if found.cancelled_ms:
                raise RequestError(ErrorCode.CONFLICT, "message_id: the notice was cancelled")
            notice = make(found.notice)
            if not await self._store.replace(notice):
                return None
            self._record(notice, "scheduled")
            self._is_due_at(notice.send_at_ms)
            return notice

    async def drop(self, message_id: str) -> bool:
        """Forget a notice: its id may be used again. False: it is not scheduled, nor was it cancelled.

        Cancel it first, so that nothing of it is left when this fails. Raises StoreError.
        """
        return await self._finish(self._drop(message_id)) if self.may_have([id_key(message_id)]) else False

    async def _drop(self, message_id: str) -> bool:
        async with self._alone(message_id):
            found = await self._store.find(message_id)
            if found is None:
                return False
            await self._store.drop([message_id])
            if not found.cancelled_ms:
                self.count -= 1
            self._forget(found.notice)
            return True

    def _forget(self, notice: Notice) -> None:
        self._known.difference_update(map(hash, dedup_keys(notice, is_named=True)))

    async def _finish(self, work: Coroutine[Any, Any, Result]) -> Result:
        """What `work` gives. It goes on whether its caller stays or leaves."""
        task = asyncio.get_running_loop().create_task(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        return await asyncio.shield(task)

    @asynccontextmanager
    async def _alone(self, message_id: str) -> AsyncIterator[None]:
        """Nothing else is done about a notice meanwhile."""
        while (other := self._held.get(message_id)) is not None:
            await asyncio.wait([other])
        release = self._hold([message_id])
        try:
            yield
        finally:
            if self._changed_ids is not None:
                self._changed_ids.add(message_id)
            release()

    def _hold(self, message_ids: Sequence[str]) -> Callable[[], None]:
        """Have others wait, until the function that is returned is called."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._held.update(dict.fromkeys(message_ids, done))

        def release() -> None:
            for message_id in message_ids:
                del self._held[message_id]
            done.set_result(None)

        return release

    # ---- out

    async def run(self) -> None:
        """Send what is due, until cancelled. It may be run again after it failed."""
        await self._record_again()
        backoff = Backoff(self._retry_first_s)
        while True:
            await self._until_due()
            try:
                await faults.unless_cancelled(self.send_due())
            except StoreError as error:
                log.warning("what is due cannot be sent now", error=str(error))
                self._metrics.errors.labels("schedule").inc()
            except Exception as error:
                faults.noted(self._metrics, "schedule", error)
            else:
                backoff = Backoff(self._retry_first_s)
                continue
            await asyncio.sleep(backoff.next_s())

    async def _until_due(self) -> None:
        """Return when something is due. The time of day may be set meanwhile."""
        while self.is_draining or self._next_ms > self._wall_ms():
            self._changed.clear()
            left_s = (self._next_ms - self._wall_ms()) / 1000
            wait_s = None if left_s == inf else self._look_every_s
            if wait_s is not None and 0 < left_s < wait_s:
                wait_s = left_s
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._changed.wait()

    async def send_due(self) -> None:
        """Send all that is due by now, at the pace of the lanes. Raises StoreError; the rest stays scheduled then."""
        while not self.is_draining and self._next_ms <= self._wall_ms():
            if not self.has_room():
                await asyncio.sleep(ROOM_LOOK_S)
                continue
            self._next_ms = inf
            try:
                await self._send_page()
            except BaseException:
                self._next_ms = -inf
                raise

    async def _send_page(self) -> None:
        self._changed_ids = changed = set[str]()
        try:
            due = await self._store.due(self._wall_ms() + 1, self.page_rows)
            if due.next_ms is not None:
                self._next_ms = min(self._next_ms, due.next_ms)
            await self._put_aside(due)
        finally:
            self._changed_ids = None
        held = [self._held[notice.message_id] for notice in due.notices if notice.message_id in self._held]
        unsure = changed.union(self._held)
        notices = [notice for notice in due.notices if notice.message_id not in unsure]
        if notices:
            await self._send(notices)
        if len(notices) < len(due.notices):  # the others may be due as before
            self._next_ms = -inf
        if held:
            await asyncio.wait(held)

    async def _put_aside(self, due: Due) -> None:
        for number, body, why in due.spoiled:
            if await self._set_aside.keep(NOTICE, SpoiledSchedule(why), body):
                await self._store.drop_spoiled(number)
                self.count -= 1
            else:
                self._is_due_at(self._wall_ms() + ASIDE_AGAIN_MS)

    async def _send(self, notices: Sequence[Notice]) -> None:
        assert self.send is not None  # noqa: S101 - for the type checker
        release = self._hold([notice.message_id for notice in notices])
        try:
            attempts = await self.send(notices)
        finally:
            release()
        failures = []
        for notice, attempt in zip(notices, attempts, strict=True):
            if attempt.failure is None:
                self.count -= 1
                self._forget(notice)
            else:
                failures.append((notice, attempt.failure))
        for notice, failure in failures:
            if isinstance(failure, StoreUnavailable):
                raise failure
            await self._put_notice_aside(notice, failure)

    async def _put_notice_aside(self, notice: Notice, error: BaseException) -> None:
        """The journal will never keep it."""
        if await self._set_aside.keep(NOTICE, error, msgspec.json.encode(notice), message_id=notice.message_id):
            await self._store.drop([notice.message_id])
            self.count -= 1
            self._forget(notice)
        else:
            self._is_due_at(self._wall_ms() + ASIDE_AGAIN_MS)

    # ---- records

    def _record(self, notice: Notice, status: str, cancelled_ms: int = 0) -> None:
        """Have the store of records know of it, if it does not by itself; and note here when it does."""
        if self._is_recorded:
            return
        known = Scheduled(notice, cancelled_ms)
        flight = InFlight(notice, self._now(), on_settled=lambda _: self._recorded(known))
        self._writers.records.conclude(flight, status)
        flight.end_work()

    def _recorded(self, known: Scheduled) -> None:
        self._written.append(known)
        if len(self._written) == 1:
            self._start(self._note_recorded())

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)

    async def _note_recorded(self) -> None:
        written, self._written = self._written, []
        try:
            await self._store.recorded(written)
        except Exception as error:  # they are recorded once more at the next start
            faults.noted(self._metrics, "schedule", error)

    async def _record_again(self) -> None:
        """What a former process did not get into the store of records."""
        after = ""
        while not self._is_recorded:
            some = await self._store.unrecorded(after, RECORDS_AT_ONCE)
            for one in some:
                if one.notice.message_id not in self._held:
                    self._record(one.notice, "cancelled" if one.cancelled_ms else "scheduled", one.cancelled_ms)
            if len(some) < RECORDS_AT_ONCE:
                return
            after = some[-1].notice.message_id
            await self._writers.records.writer.secured()

    async def finished(self) -> None:
        """Return when nothing that was begun is under way."""
        while self._work:
            await asyncio.wait(self._work)


def put_off(notice: Notice, due_ms: int) -> Notice:
    """The same notice, to go out then; the time of its expiry counts from there."""
    expires_ms = notice.expires_ms and notice.expires_ms - notice.send_at_ms + due_ms
    return msgspec.structs.replace(notice, send_at_ms=due_ms, accepted_ms=due_ms, expires_ms=expires_ms)
