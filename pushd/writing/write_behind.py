"""Writing to a store without being waited for: in order, in batches, and over an outage on disk.

One task per kind of write. What its store cannot take goes into the outbox, on disk, and everything after it behind it,
until the store takes them from there in that order. So memory does not grow with an outage, and a notice is
settled when its writes are in the store or safe on disk.

What a store refuses for good, and what fails in a way that nobody foresaw, is narrowed down: of a batch only the part
that is to blame is set aside for the operator, and the rest is written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from typing import Generic, Protocol, TypeVar

import structlog

from pushd.errors import StoreError, StoreUnavailable
from pushd.in_flight import InFlight
from pushd.ports import OutboxLog
from pushd.retry import Backoff
from pushd.telemetry import faults
from pushd.telemetry.metrics import Metrics
from pushd.waiters import Waiters
from pushd.writing.set_aside import Aside

log = structlog.get_logger("pushd.outbox")
B = TypeVar("B")
T = TypeVar("T")
RETRY_MOST_S = 1.0
PATIENCE_S = 2.0  # how long a flush waits for a store that fails
ROWS_AT_ONCE = 20  # batches read back from the disk at a time
HELD_MOST_S = 0.5  # writes are held back for what is more urgent, in all
HELD_FOR_S = 0.01  # until that is looked at again
COLLECT_ATTEMPTS = 5
CATCH_UP_S = 0.25  # then new writes go behind them, out of memory


class Writes(Protocol[B]):
    """What one kind of write is made of."""

    name: str

    def collect(self) -> Iterable[B]:
        """Everything given since the last time, in batches, in order."""

    async def write(self, batch: B) -> None:
        """Into the store; doing it twice is harmless. Raises StoreError."""

    def written(self, batch: B) -> None:
        """The batch is in the store or safe on disk."""

    def gave_up(self, batch: B) -> None:
        """The batch is set aside: on disk, but not on its way to the store."""

    def parts(self, batch: B) -> Sequence[B]:
        """Two that do the same one after the other, about half each; the batch alone where that cannot be; nothing
        of one that need not be kept when it fails. Each part is written or given up by itself."""

    async def encode(self, batch: B) -> bytes:
        """The batch for the disk."""

    def decode(self, body: bytes) -> B:
        """What `encode` made."""


class _Unwritten:
    """Users about whom something is not in the store yet."""

    def __init__(self) -> None:
        self._collected: set[int] = set()
        self._taken: set[int] = set()
        self._on_disk: set[int] = set()
        self._is_anybody = False  # on disk since before the start: who, was not read

    def add(self, user_ids: Collection[int]) -> None:
        self._collected.update(user_ids)

    def take(self) -> None:
        """What was collected is being written."""
        self._taken, self._collected = self._collected, set()

    def written(self) -> None:
        """It is in the store, or on disk."""
        self._taken = set()

    def to_disk(self, *, is_old: bool = False) -> None:
        """What was being written is on disk; with `is_old`, something was there at the start."""
        self._on_disk |= self._taken
        self._is_anybody |= is_old

    def from_disk(self) -> None:
        """Nothing is on disk any more."""
        self._on_disk = set()
        self._is_anybody = False

    def has_any(self, user_ids: set[int]) -> bool:
        waiting = (self._collected, self._taken, self._on_disk)
        return self._is_anybody or not all(users.isdisjoint(user_ids) for users in waiting)


class WriteBehind(Generic[B]):
    """One task: waits for `wake`, lets more come for `delay_s`, then writes what `writes` collects.

    Without `outbox`, what the store cannot take is repeated from memory. `on_disk`: how many batches a former
    process left in the outbox.
    """

    def __init__(
        self,
        writes: Writes[B],
        metrics: Metrics,
        delay_s: Callable[[], float],
        aside: Aside,
        outbox: OutboxLog | None = None,
        on_disk: int = 0,
    ) -> None:
        self.name = writes.name
        self.failure = ""  # why the last attempt failed; "" while it works
        self.on_disk = on_disk  # batches in the outbox
        self.gives_way: Callable[[], bool] = lambda: False  # something is under way that these writes would slow down
        self._writes = writes
        self._metrics = metrics
        self._delay_s = delay_s
        self._aside = aside
        aside.takes(self.name, self._take_back)
        self._outbox = outbox
        self._unwritten = _Unwritten()
        if on_disk:
            self._unwritten.to_disk(is_old=True)
        self._is_dirty = asyncio.Event()
        self._is_urgent = asyncio.Event()
        self._is_idle = not on_disk
        self._is_ended = False
        self._collect_failures = 0  # in a row
        self._failing_since = 0.0
        self._retry_at = 0.0
        self._backoff = Backoff(most_s=RETRY_MOST_S)
        self._flushes = Waiters()  # who waits until all is in the store
        self._securings = Waiters()  # who waits until all is there or on disk

    def wake(self, user_ids: Collection[int] = ()) -> None:
        """There is something to collect, about these users."""
        self._unwritten.add(user_ids)
        self._is_dirty.set()

    async def flushed(self) -> None:
        """Everything given before this call is in the store.

        Raises StoreUnavailable when the store has failed for PATIENCE_S, or the writer ends before.
        """
        if self._is_idle and not self._is_dirty.is_set():
            return
        if self.failure and self._now() - self._failing_since >= PATIENCE_S:
            raise StoreUnavailable(self.name, self.failure)
        barrier = self._ask(self._flushes)
        try:
            while not barrier.done():
                await asyncio.wait([barrier], timeout=PATIENCE_S)
                if not barrier.done() and self.failure:
                    raise StoreUnavailable(self.name, self.failure)
            barrier.result()
        finally:
            self._flushes.leave(barrier)

    async def secured(self) -> None:
        """Everything given before this call is in the store or on disk. Raises StoreUnavailable as `flushed`."""
        barrier = self._ask(self._securings)
        try:
            await barrier
        finally:
            self._securings.leave(barrier)

    async def written_for(self, user_ids: set[int]) -> None:
        """What was given about these users is in the store; does not wait for what concerns others alone."""
        if self._unwritten.has_any(user_ids):
            await self.flushed()

    def _ask(self, askers: Waiters) -> asyncio.Future[None]:
        if self._is_ended:
            raise self._ended()
        barrier = askers.join()
        self._is_dirty.set()
        self._is_urgent.set()
        return barrier

    async def run(self) -> None:
        """Until cancelled. May be run again after it failed."""
        self._is_ended = False
        try:
            while True:
                await self._due()
                await self._let_more_come()
                await self._write_all()
        finally:
            self._is_ended = True
            self._flushes.fail(self._ended())
            self._securings.fail(self._ended())

    async def _due(self) -> None:
        """Something was given, or it is time to try what is on disk again."""
        timeout_s = max(0.0, self._retry_at - self._now()) if self.on_disk else None
        try:
            async with asyncio.timeout(timeout_s):
                await self._is_dirty.wait()
        except TimeoutError:
            pass

    async def _let_more_come(self) -> None:
        delay_s = self._delay_s()
        if delay_s > 0 and self._is_dirty.is_set() and not self._is_urgent.is_set():
            try:
                async with asyncio.timeout(delay_s):
                    await self._is_urgent.wait()
            except TimeoutError:
                pass

    async def _write_all(self) -> None:
        self._is_idle = False
        self._is_dirty.clear()
        self._is_urgent.clear()
        # Later ones wait for what is given from here on.
        flushes, securings = self._flushes.present(), self._securings.present()
        try:
            batches = self._writes.collect()
        except Exception as error:
            await self._collect_later(error)
            return
        self._collect_failures = 0
        self._unwritten.take()
        held_until = self._now() + (0.0 if flushes or securings else HELD_MOST_S)
        for batch in batches:
            await self._give_way(held_until)
            try:
                await self._persist(batch)
            except Exception as error:  # of this batch the journal keeps what can be kept
                self._note(error)
        self._unwritten.written()
        self._securings.release(securings)
        if self.on_disk and self._now() >= self._retry_at:
            await self._catch_up()
        if not self.on_disk:
            self._flushes.release(flushes)
            self._is_idle = True

    async def _collect_later(self, error: Exception) -> None:
        """Nothing was collected. Raises `error` when it never is: that is no one batch's fault."""
        self._is_dirty.set()
        self._collect_failures += 1
        if self._collect_failures == COLLECT_ATTEMPTS:
            self._collect_failures = 0
            raise error
        self._note(error)
        await asyncio.sleep(self._backoff.next_s())

    async def _give_way(self, until: float) -> None:
        """Leave the processor to what is more urgent, unless somebody waits for these writes."""
        while self.gives_way() and self._now() < until and not self._is_urgent.is_set():
            await asyncio.sleep(HELD_FOR_S)

    async def _persist(self, batch: B) -> None:
        """Into the store, or to the end of what waits for it on disk; while neither works, wait."""
        while True:
            if self.on_disk:
                if await self._to_disk(batch):
                    return
                await self._catch_up()
            elif await self._to_store(batch):
                return
            elif await self._to_disk(batch):
                self._pause()
                return
            await asyncio.sleep(self._backoff.next_s())

    async def _to_store(self, batch: B) -> bool:
        """False when it has to be tried again."""
        try:
            await self._twice(lambda: self._writes.write(batch))
        except StoreUnavailable as error:
            self._failed(error)
            return False
        except Exception as error:
            await self._apart(batch, error, self._persist)
            return True
        self._works()
        self._written(batch)
        return True

    async def _to_disk(self, batch: B) -> bool:
        if self._outbox is None:
            return False
        try:
            body = await self._twice(lambda: self._writes.encode(batch))
        except Exception as error:
            await self._apart(batch, error, self._persist)
            return True
        try:
            await faults.unless_cancelled(self._outbox.append(self.name, [body]))
        except Exception as error:
            self._failed(error)
            return False
        self.on_disk += 1
        self._unwritten.to_disk()
        self._written(batch)
        return True

    async def _twice(self, step: Callable[[], Awaitable[T]]) -> T:
        """Once more when it fails in a way that nobody foresaw: that may pass. Raises what the second time does."""
        try:
            return await faults.unless_cancelled(step())
        except StoreError:
            raise
        except Exception as error:
            result = await faults.unless_cancelled(step())
            self._note(error)
            return result

    async def _apart(self, batch: B, error: Exception, take: Callable[[B], Awaitable[None]]) -> bool:
        """Have `take` write the parts of a batch that failed; what has no parts is set aside. False when it is not."""
        parts = self._writes.parts(batch)
        if len(parts) > 1:
            for part in parts:
                await take(part)
            return True
        if not parts:
            self._note(error)
        elif not await self._aside.keep(self.name, error, await self._body(batch)):
            return False
        try:
            self._writes.gave_up(batch)
        except Exception as failure:
            self._note(failure)
        return True

    async def _body(self, batch: B) -> bytes:
        """The batch as `decode` takes it or, when that is what fails, as people can read it."""
        try:
            return await faults.unless_cancelled(self._writes.encode(batch))
        except Exception:
            try:
                return repr(batch).encode(errors="backslashreplace")
            except Exception as error:
                return f"{type(batch).__name__}: {type(error).__name__}".encode()

    def _written(self, batch: B) -> None:
        try:
            self._writes.written(batch)
        except Exception as error:
            self._note(error)

    async def _catch_up(self) -> None:
        """Bring what is on disk to the store, oldest first, until it fails or new writes have waited long enough."""
        until = self._now() + CATCH_UP_S
        try:
            while self.on_disk and not (self._is_dirty.is_set() and self._now() >= until):
                await self._write_oldest()
                self._works()
        except Exception as error:
            self._failed(error)
            self._pause()
            return
        if not self.on_disk:
            self._unwritten.from_disk()
            log.info("the outbox is empty", writer=self.name)

    async def _write_oldest(self) -> None:
        """Raises StoreError; what was written until then is not on disk any more."""
        assert self._outbox is not None  # noqa: S101 - for the type checker
        rows = await self._outbox.oldest(self.name, ROWS_AT_ONCE)
        written = 0
        try:
            for _, body in rows:
                await self._from_disk(body)
                written += 1
        finally:
            if written:
                await self._outbox.drop(self.name, rows[written - 1][0])
            self.on_disk = max(0, self.on_disk - written) if rows else 0

    async def _from_disk(self, body: bytes) -> None:
        """Into the store, or aside. Raises StoreUnavailable when it has to stay where it is."""
        try:
            batch = await self._twice(lambda: self._decoded(body))
        except Exception as error:
            if not await self._aside.keep(self.name, error, body):
                raise self._not_aside() from error
            return
        await self._write_through(batch)

    async def _decoded(self, body: bytes) -> B:
        return self._writes.decode(body)

    async def _write_through(self, batch: B) -> None:
        try:
            await self._twice(lambda: self._writes.write(batch))
        except StoreUnavailable:
            raise
        except Exception as error:
            if not await self._apart(batch, error, self._write_through):
                raise self._not_aside() from error
        else:
            self._written(batch)

    async def _take_back(self, body: bytes, done: Callable[[], None]) -> None:
        """See aside.Take: behind everything that waits on disk or, without an outbox, at once."""
        if self._outbox is None:
            await self._write_through(self._writes.decode(body))
        else:
            self._writes.decode(body)  # what still cannot be decoded need not go round
            await self._outbox.append(self.name, [body])
            self.on_disk += 1
            self._unwritten.to_disk(is_old=True)
            self._retry_at = self._now()
            self._is_dirty.set()
        done()

    def _pause(self) -> None:
        self._retry_at = self._now() + self._backoff.next_s()

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _note(self, error: BaseException) -> None:
        faults.noted(self._metrics, "store_write", error, writer=self.name)

    def _ended(self) -> StoreUnavailable:
        return StoreUnavailable(self.name, "the writer has ended")

    def _not_aside(self) -> StoreUnavailable:
        return StoreUnavailable(self.name, "what cannot be written cannot be set aside")

    def _works(self) -> None:
        self.failure = ""
        self._backoff.reset()

    def _failed(self, error: Exception) -> None:
        if not isinstance(error, StoreError):
            self._note(error)
        if not self.failure:
            self._failing_since = self._now()
            log.warning("store write failed", writer=self.name, error=str(error), cause=repr(error.__cause__))
        self.failure = str(error) if isinstance(error, StoreError) else f"{self.name}: failed unexpectedly, see the log"


def for_each(flights: Iterable[InFlight], step: Callable[[InFlight], None], metrics: Metrics) -> None:
    """Tell every flight, whatever telling another one leads to."""
    for flight in flights:
        try:
            step(flight)
        except Exception as error:
            faults.noted(metrics, "settle", error, message_id=flight.notice.message_id)
