"""Fan-outs that take longer than a slice: their order, how much of one in a turn of the loop, and which go together."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

from pushd._fastpath import FanOut
from pushd.model import Priority
from pushd.turns import Repeated

SLICE_S = 0.002  # FACTS, "Fan-out": the loop runs between slices
SHORT_SLICE_S = 0.0003
# Upper bound of a slice and what the loop does until the next one: acknowledgements that come in take longer than the
# sends, and an urgent notice needs four turns of the loop from its POST to its socket.
ROUND_S = 0.0015
QUIET_S = 0.0002  # while the rest of a turn takes less, slices are whole: a fan-out needs fewer of them
SHARE = 0.25  # of what the others take, at least: in a storm of connects short slices would help nobody

_Queued = tuple[FanOut, list[asyncio.Future[None]]]  # and who waits for its end


class Advances(Protocol):
    """What a fan-out queue needs of the hub."""

    def advance(self, job: FanOut, budget_s: float, /) -> bool:
        """Write `job` to further connections for about `budget_s`; True when it has reached all of them."""


def next_slice_s(slice_s: float, others_s: float) -> float:
    """How long the slice after one of `slice_s` may be, if everything else took the loop `others_s` in between."""
    fair_s = min(SLICE_S, SHARE * others_s)
    wanted_s = SLICE_S if others_s < QUIET_S else max(SHORT_SLICE_S, fair_s, ROUND_S - others_s)
    return (slice_s + wanted_s) / 2  # what the others take depends on the slice: half the way does not swing


class FanOutQueue:
    """Runs fan-outs: the highest priority first, equal ones one after the other, so that each
    connection sees notices of a priority in the order in which their fan-outs were added.

    No slice is longer than `most_s`, which may change at any time.
    """

    def __init__(self, hub: Advances, now: Callable[[], float] = time.monotonic, *, most_s: float = SLICE_S) -> None:
        self._hub = hub
        self._now = now
        self.most_s = most_s
        self._slice_s = most_s
        self._yielded_at = 0.0  # when the former slice ended
        self._queues: dict[Priority, deque[_Queued]] = {one: deque() for one in sorted(Priority, reverse=True)}
        self._queued = 0
        self._first: _Queued | None = None  # the fan-out whose turn it is, while nothing has come since it was chosen
        self._serving: asyncio.Future[None] | None = None
        self._slices = Repeated(self._take_slice)

    def __len__(self) -> int:
        """How many fan-outs are under way."""
        return self._queued

    def is_blocked(self, priority: Priority) -> bool:
        """Whether fan-outs that come before one of this priority are under way."""
        return self._queued > 0 and any(queue and other >= priority for other, queue in self._queues.items())

    def add(self, job: FanOut, priority: Priority) -> asyncio.Future[None] | None:
        """Send `job` on its way: None when it has reached everyone already, else a future that is done when it has.

        One slice is taken at once, unless another fan-out comes before it.
        """
        if not self.is_blocked(priority) and self._hub.advance(job, self.most_s):
            return None
        return self._put(job, priority)

    def add_all(self, jobs: Iterable[FanOut], priority: Priority) -> list[asyncio.Future[None]]:
        """Send what has come together on its way, in one write as far as can be; the futures are those of `add`."""
        is_blocked = self.is_blocked(priority)
        ends = [self._put(job, priority) for job in jobs]
        if not is_blocked:
            self._advance(self.most_s)
        return ends

    def _put(self, job: FanOut, priority: Priority) -> asyncio.Future[None]:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queues[priority].append((job, [done]))
        self._queued += 1
        self._first = None
        if self._queued == 1:
            self._yielded_at = self._now()
        self._slices.wake()
        return done

    async def serve(self) -> None:
        """Take slices until cancelled, or until something fails that concerns more than one fan-out."""
        self._serving = asyncio.get_running_loop().create_future()
        self._yielded_at = self._now()
        self._slices.wake()
        await self._serving

    def _take_slice(self) -> bool:
        """Advance the first fan-out; whether another slice is wanted.

        This is a callback and no task: behind a slice of sends nothing of a task is in the core's caches any more.
        """
        serving = self._serving
        if serving is None or serving.done() or not self._queued:
            return False
        try:
            self._slice_s = min(self.most_s, next_slice_s(self._slice_s, self._now() - self._yielded_at))
            self._advance(self._slice_s)
        except BaseException as error:
            serving.set_exception(error)
            return False
        self._yielded_at = self._now()
        return self._queued > 0

    def _advance(self, slice_s: float) -> None:
        first, failure = self._first or self._choose(), None
        try:
            is_finished = self._hub.advance(first[0], slice_s)
        except Exception as error:  # it cannot go on, which concerns nobody but its workers
            is_finished, failure = True, error
        if is_finished:
            self._end(first, failure)

    def _choose(self) -> _Queued:
        queue = next(queue for queue in self._queues.values() if queue)
        self._join(queue)
        self._first = queue[0]
        return queue[0]

    def _join(self, queue: deque[_Queued]) -> None:
        """Let fan-outs that wait behind one to the same connections go with it: one write for all of them."""
        job, waiters = queue[0]
        while len(queue) > 1 and _is_joined(job, queue[1][0]):
            waiters.extend(queue[1][1])
            del queue[1]
            self._queued -= 1

    def _end(self, first: _Queued, failure: Exception | None) -> None:
        queue = next(queue for queue in self._queues.values() if queue and queue[0] is first)
        _, waiters = queue.popleft()
        self._first = None
        self._queued -= 1
        for done in waiters:
            if done.done():
                continue
            if failure is None:
                done.set_result(None)
            else:
                done.set_exception(failure)


def _is_joined(job: FanOut, other: FanOut) -> bool:
    try:
        return job.absorb(other)
    except Exception:  # a frame that cannot be encoded: its own turn will tell
        return False
