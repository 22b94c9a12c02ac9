"""Writing to a store without being waited for: in order, in batches, and over an outage on disk.

One task per kind of write. What its store cannot take goes into the outbox, on disk, and everything after it behind it,
until the store takes them from there in that order. So memory does not grow with an outage, and a notice is
settled when its writes are in the store or safe on disk.

What a store refuses for good, and what fails in a way that nobody foresaw, is narrowed down: of a batch only the part
that is to blame is set aside for the operator, and the rest is written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import structlog

from pushd.errors import StoreError, StoreUnavailable
from pushd.model import UserId
from pushd.ports import OutboxLog
from pushd.retry import FIRST_S, Backoff
from pushd.telemetry import faults
from pushd.telemetry.metrics import Metrics
from pushd.waiters import Waiters
from pushd.writing.set_aside import SetAsideData

log = structlog.get_logger("pushd.outbox")
B = TypeVar("B")
T = TypeVar("T")
RETRY_MOST_S = 1.0
PATIENCE_S = 2.0  # how long a flush waits for a store that fails
ROWS_AT_ONCE = 20  # batches read back from the disk at a time
GIVE_WAY_MOST_S = 0.5  # how long writes wait for what is more urgent, in all
GIVE_WAY_STEP_S = 0.01  # how often that is looked at meanwhile
COLLECT_ATTEMPTS = 5
CATCH_UP_S = 0.25  # so long writes from the disk go before new ones; then these go behind them, out of memory


class Writes(Protocol[B]):
    """What is particular to one kind of write."""

    name: str

    def collect(self) -> Iterable[B]:
        """Hands over everything given since the last time, in batches, in order."""

    async def write(self, batch: B) -> None:
        """Writes the batch into the store; doing it twice is harmless. Raises StoreError."""

    def written(self, batch: B) -> None:
        """Is called when the batch is in the store or safe on disk."""

    def gave_up(self, batch: B) -> None:
        """Is called when the batch is set aside: it is on disk, but not on its way to the store."""

    def parts(self, batch: B) -> Sequence[B]:
        """Cuts a batch that failed into two that do the same one after the other, about half each.

        The batch alone comes back where it cannot be cut, and nothing where it need not be kept. Each part is
        written or given up by itself.
        """

    async def encode(self, batch: B) -> bytes:
        """Makes of the batch what is kept on disk."""

    def decode(self, body: bytes) -> B:
        """Makes a batch of what `encode` made."""


@dataclass(frozen=True, slots=True)
class Backing:
    """What the writers of a node share: where a batch goes that its store does not take, and how long they wait."""

    metrics: Metrics
    set_aside: SetAsideData
    outbox: OutboxLog | None = None
    left: Mapping[str, int] = field(default_factory=dict)  # batches a former process left in the outbox, by writer
    retry_first_s: float = FIRST_S
    patience_s: float = PATIENCE_S
    give_way_most_s: float = GIVE_WAY_MOST_S


class _Unwritten:
    """Users about whom something is not in the store yet."""

    def __init__(self) -> None:
        self._collected: set[UserId] = set()
        self._taken: set[UserId] = set()
        self._on_disk: set[UserId] = set()
        self._is_anybody = False  # on disk since before the start: who, was not read

    def add(self, user_ids: Collection[UserId]) -> None:
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

    def has_any(self, user_ids: set[UserId]) -> bool:
        waiting = (self._collected, self._taken, self._on_disk)
        return self._is_anybody or not all(users.isdisjoint(user_ids) for users in waiting)


class WriteBehind(Generic[B]):
    """One task: waits for `wake`, lets more come for `delay_s`, then writes what `writes` collects.

    Without an outbox, what the store cannot take is repeated from memory.
    """

    def __init__(
        self, writes: Writes[B], backing: Backing, delay_s: Callable[[], float], *, has_outbox: bool = True
    ) -> None:
        self.name = writes.name
        self.failure = ""  # why the last attempt failed; "" while it works
        self.on_disk = backing.left.get(self.name, 0) if has_outbox else 0  # batches in the outbox
        self._writes = writes
        self._metrics = backing.metrics
        self._delay_s = delay_s
        self._set_aside = backing.set_aside
        self._set_aside.takes(self.name, self._take_back)
        self._outbox = backing.outbox if has_outbox else None
        self._patience_s = backing.patience_s
        self._give_way_most_s = backing.give_way_most_s
        self._preferred: list[Sized] = []  # queues of work that comes first
        self._unwritten = _Unwritten()
        if self.on_disk:
            self._unwritten.to_disk(is_old=True)
        self._is_dirty = asyncio.Event()
        self._is_urgent = asyncio.Event()
        self._is_idle = not self.on_disk
        self._is_ended = False
        self._collect_failures = 0  # in a row
        self._failing_since = 0.0
        self._retry_at = 0.0
        self._backoff = Backoff(backing.retry_first_s, RETRY_MOST_S)
        self._flushes = Waiters()  # who waits until all is in the store
        self._securings = Waiters()  # who waits until all is there or on disk

    def wake(self, user_ids: Collection[UserId] = ()) -> None:
        """Says that there is something to collect, about these users."""
        self._unwritten.add(user_ids)
        self._is_dirty.set()

    def give_way_to(self, queue: Sized) -> None:
        """From now on, writes that nobody waits for wait while something is in `queue`: `give_way_most_s` at most.

        The queue itself is looked at before every batch, so that putting something into it costs nothing more.
        """
        self._preferred.append(queue)

    @property
    def gives_way(self) -> bool:
        """Whether something is under way that these writes would slow down."""
        return any(map(len, self._preferred))

    async def flushed(self) -> None:
        """Returns when everything given before this call is in the store.

        Raises StoreUnavailable when the store has failed for `Backing.patience_s`, or the writer ends before.
        """
        if self._is_idle and not self._is_dirty.is_set():
            return
        if self.failure and self._now() - self._failing_since >= self._patience_s:
            raise StoreUnavailable(self.name, self.failure)
        barrier = self._ask(self._flushes)
        try:
            while not barrier.done():
                await asyncio.wait([barrier], timeout=self._patience_s)
                if not barrier.done() and self.failure:
                    raise StoreUnavailable(self.name, self.failure)
            barrier.result()
        finally:
            self._flushes.leave(barrier)

    async def secured(self) -> None:
        """Returns when everything given before this call is in the store or on disk.

        Raises StoreUnavailable when the writer ends before.
        """
        barrier = self._ask(self._securings)
        try:
            await barrier
        finally:
            self._securings.leave(barrier)

    async def written_for(self, user_ids: set[UserId]) -> None:
        """Returns when what was given about these users is in the store; what concerns others alone may be left.

        Raises StoreUnavailable as `flushed` does.
        """
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
        """Writes until it is cancelled. It may be run again after it failed."""
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
        """Returns when something was given, or when it is time to try what is on disk again."""
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
        # Whoever asks later waits for what is given from here on.
        flushes, securings = self._flushes.present(), self._securings.present()
        try:
            batches = self._writes.collect()
        except Exception as error:
            await self._collect_later(error)
            return
        self._collect_failures = 0
        self._unwritten.take()
        give_way_until = self._now() + (0.0 if flushes or securings else self._give_way_most_s)
        for batch in batches:
            await self._give_way(give_way_until)
            try:
                await self._persist(batch)
            except Exception as error:  # of this batch the journal keeps what can be kept
                self._note(error)
        self._unwritten.written()
        self._securings.resolve(securings)
        if self.on_disk and self._now() >= self._retry_at:
            await self._catch_up()
        if not self.on_disk:
            self._flushes.resolve(flushes)
            self._is_idle = True

    async def _collect_later(self, error: Exception) -> None:
        """Waits after a failed collection. Raises `error` when each one fails: that is no one batch's fault."""
        self._is_dirty.set()
        self._collect_failures += 1
        if self._collect_failures == COLLECT_ATTEMPTS:
            self._collect_failures = 0
            raise error
        self._note(error)
        await asyncio.sleep(self._backoff.next_s())

    async def _give_way(self, until: float) -> None:
        """Leaves the processor to what is more urgent, unless somebody waits for these writes."""
        while self.gives_way and self._now() < until and not self._is_urgent.is_set():
            await asyncio.sleep(GIVE_WAY_STEP_S)

    async def _persist(self, batch: B) -> None:
        """Brings the batch into the store, or to the end of what waits for it on disk; waits while neither works."""
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
        """Writes the batch, or narrows down what is to blame; False when it has to be tried again."""
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
        """Repeats `step` when it fails in a way that nobody foresaw: that may pass. Raises what the repetition does."""
        try:
            return await faults.unless_cancelled(step())
        except StoreError:
            raise
        except Exception as error:
            result = await faults.unless_cancelled(step())
            self._note(error)
            return result

    async def _apart(self, batch: B, error: Exception, take: Callable[[B], Awaitable[None]]) -> bool:
        """Has `take` write the parts of a batch that failed, or sets aside what has none; False when that failed."""
        parts = self._writes.parts(batch)
        if len(parts) > 1:
            for part in parts:
                await take(part)
            return True
        if not parts:
            self._note(error)
        elif not await self._set_aside.keep(self.name, error, await self._body(batch)):
            return False
        try:
            self._writes.gave_up(batch)
        except Exception as failure:
            self._note(failure)
        return True

    async def _body(self, batch: B) -> bytes:
        """The batch as `decode` takes it or, when encoding is what fails, as people can read it."""
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
        """Brings what is on disk to the store, oldest first, until that fails or new writes have waited long enough."""
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
        """Writes some of what is on disk. Raises StoreError; what was written until then is not on disk any more."""
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
        """Writes a batch from the disk, or sets it aside. Raises StoreUnavailable when it has to stay where it is."""
        try:
            batch = await self._twice(lambda: self._decoded(body))
        except Exception as error:
            if not await self._set_aside.keep(self.name, error, body):
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
        """Takes back what was set aside: behind everything that waits on disk or, without an outbox, at once."""
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
