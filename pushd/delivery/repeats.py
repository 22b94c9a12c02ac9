"""Repeats of notices: what their publishers are told, at once or when the first of them is decided."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable

import msgspec

from pushd.basis import Basis
from pushd.delivery.dedup import DedupWindow
from pushd.delivery.schedule import Schedule
from pushd.errors import ErrorCode, RequestError
from pushd.in_flight import Answer, Attempt, InFlight
from pushd.model import Notice
from pushd.ports import Scheduled
from pushd.telemetry import faults

REPEATS_MOST = 10_000  # of one notice that is not durable yet, waiting for that
TOLD_AT_ONCE = 64  # repeats in a turn of the loop


class Repeats:
    """Answers publishers of repeats. `begin` makes an attempt of a notice; what is given to `own` is waited for at a
    stop."""

    def __init__(
        self,
        window: DedupWindow[Attempt],
        schedule: Schedule,
        basis: Basis,
        *,
        begin: Callable[[Notice, list[str], float], Attempt],
        own: Callable[[asyncio.Future[None]], asyncio.Future[None]],
    ) -> None:
        self._window = window
        self._schedule = schedule
        self._metrics = basis.metrics
        self._now = basis.clock.now
        self._loop = asyncio.get_running_loop()
        self._begin = begin
        self._own = own

    def of(self, earlier: Attempt, notice: Notice, keys: list[str]) -> Attempt:
        """What the publisher of a notice gets that repeats an earlier one. Raises RequestError when too many wait."""
        if earlier.decided.done():
            self._count_repeats(notice, 1)
            return Attempt(None, keys, earlier.decided, is_duplicate=True, first=earlier)
        if earlier.repeats is not None and len(earlier.repeats) >= REPEATS_MOST:
            raise RequestError(ErrorCode.QUEUE_FULL, "too many repeats of this notice wait", retry_after_s=1)
        repeat = Attempt(None, keys, self._loop.create_future(), is_duplicate=True)
        self._expect(earlier, [repeat])
        return repeat

    def _expect(self, attempt: Attempt, repeats: Iterable[Attempt]) -> None:
        """Have these wait until `attempt` is decided."""
        if attempt.repeats is None:
            attempt.repeats = deque()
            self._own(attempt.decided).add_done_callback(lambda _: self._decide_repeats(attempt))
        attempt.repeats.extend(repeats)

    def _decide_repeats(self, first: Attempt) -> None:
        """What was kept answers all of its repeats. When it was not, the next of them is an attempt of its own."""
        repeats, first.repeats = first.repeats, None
        assert repeats is not None  # noqa: S101 - for the type checker
        notice = first.notice
        if first.failure is None:
            self._count_repeats(notice, sum(repeat.is_duplicate for repeat in repeats))
            self._tell(repeats, first, None)
            return
        if not repeats[0].is_duplicate:  # this was its attempt
            self._tell(deque([repeats.popleft()]), first, first.failure)
        if is_due(notice):  # and is in the schedule as before
            self._tell(repeats, first, first.failure)
            return
        other = self._window.find(first.keys, self._now())
        if repeats and other is None:
            try:
                other = self._begin(notice, first.keys, self._now())
            except RequestError as error:
                self._tell(repeats, first, error)
                return
            repeats[0].is_duplicate = False
        if other is not None:
            self._expect(other, repeats)

    def _tell(self, repeats: deque[Attempt], first: Attempt, failure: BaseException | None) -> None:
        """Decide these repeats, a share of them in each turn of the loop."""
        for _ in range(min(TOLD_AT_ONCE, len(repeats))):
            self._decide_repeat(repeats.popleft(), first, failure)
        if repeats:
            self._loop.call_soon(self._tell, repeats, first, failure)

    def _decide_repeat(self, repeat: Attempt, first: Attempt | None, failure: BaseException | None) -> None:
        repeat.first, repeat.failure = first, failure
        repeat.decided.set_result(None)

    def ask(self, notice: Notice, keys: list[str]) -> Attempt:
        """Look whether a notice repeats one that is scheduled, or that was cancelled, long ago perhaps."""
        repeat = Attempt(None, keys, self._loop.create_future(), is_duplicate=True)
        self._own(self._loop.create_task(self._find_scheduled(repeat, notice)))
        return repeat

    async def _find_scheduled(self, repeat: Attempt, notice: Notice) -> None:
        try:
            known = await faults.unless_cancelled(self._schedule.known(notice))
            if known is not None:
                self._count_repeats(notice, 1)
                self._decide_repeat(repeat, Attempt.known(_answer_of(known), repeat.keys, repeat.decided), None)
                return
            now = self._now()
            other = self._window.find(repeat.keys, now)
            if other is None:
                other = self._begin(notice, repeat.keys, now)
                repeat.is_duplicate = False
        except Exception as error:
            self._decide_repeat(repeat, None, error)
            return
        if not other.decided.done():
            self._expect(other, [repeat])
        else:
            self._count_repeats(notice, 1)
            self._decide_repeat(repeat, other, None)

    def _count_repeats(self, notice: Notice, count: int) -> None:
        self._metrics.dedup_hits.inc(count)
        self._metrics.count_notices(notice.target.kind.value, notice.priority.name.lower(), "duplicate", count)


def is_due(notice: Notice) -> bool:
    """Whether it comes from the schedule."""
    return notice.send_at_ms > 0 and notice.seq > 0


def _answer_of(known: Scheduled) -> Answer:
    answer = InFlight(known.notice, 0.0).answer()
    return msgspec.structs.replace(answer, status="cancelled") if known.cancelled_ms else answer
