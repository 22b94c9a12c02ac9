"""An accepted notice until it is settled: who still has to get it, and what is still to be written."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

import msgspec

from pushd.errors import ErrorCode, RequestError, StoreError
from pushd.later import Later
from pushd.model import MailboxItem, Notice, TargetKind, recipients_text
from pushd.waiters import Waiters

NOBODY: set[int] = set()  # shared, never changed


class Answer(msgspec.Struct, frozen=True, gc=False):
    """What a publisher is told of a notice, and told again when it is repeated: not its data, and not its ids."""

    message_id: str
    content: str
    accepted_ms: int
    kind: TargetKind
    type: str
    recipients: str  # as CONTRACT section 3 counts them
    is_delivered: bool
    online_count: int
    offline_count: int
    delivered_count: int


class InFlight:
    """Counts what keeps a notice from being settled.

    A hold stands for one thing to be done: the fan-out, a recipient who has not acknowledged, a write
    under way. When the last hold is released, `on_settled` is called, once. It is delivered when the fan-out
    is through and the absent recipients' copies are in their mailboxes.
    """

    __slots__ = (
        "accepted_at",
        "copy",
        "data_bytes",
        "delivered_count",
        "early_received",
        "holds",
        "is_restored",
        "left_before",
        "notice",
        "offline_count",
        "on_settled",
        "online_count",
        "saves",
        "waiters",
        "waiting",
    )

    def __init__(
        self,
        notice: Notice,
        accepted_at: float,
        *,
        is_restored: bool = False,
        on_settled: Callable[[InFlight], None] | None = None,
    ) -> None:
        self.notice = notice
        self.accepted_at = accepted_at  # loop clock, s
        self.is_restored = is_restored  # accepted by a former process, which may have delivered it in part
        self.copy: MailboxItem | None = None  # for mailboxes, shared by all in which it waits
        self.data_bytes = 0  # what they count for where notices on their way are bounded
        self.holds = 1
        self.saves = 1
        self.online_count = 0
        self.offline_count = 0
        self.delivered_count = 0
        self.waiting = 0  # recipients who have it and have not answered
        self.early_received = NOBODY  # acknowledged while the fan-out was still under way
        self.left_before = 0  # how many had left when the fan-out began, as receipts count them
        self.on_settled: Callable[[InFlight], None] = on_settled or _nothing
        self.waiters: Waiters | None = None  # who waits until it is delivered

    @property
    def total_count(self) -> int:
        """Recipients, guests left out."""
        return self.online_count + self.offline_count

    @property
    def is_delivered(self) -> bool:
        """Every recipient was sent to or is in the mailbox."""
        return self.saves == 0

    def answer(self) -> Answer:
        """What can be said of it by now."""
        notice = self.notice
        return Answer(
            notice.message_id, notice.content, notice.accepted_ms, notice.target.kind, notice.type,
            recipients_text(notice.target), self.is_delivered,
            self.online_count, self.offline_count, self.delivered_count,
        )  # fmt: skip

    async def delivered(self, within_s: float) -> None:
        """Return when it is, or when the time is over."""
        if self.saves:
            if self.waiters is None:
                self.waiters = Waiters()
            await self.waiters.wait(within_s)

    def received_before(self, count: int) -> None:
        """A former process brought the notice to so many of its recipients."""
        self.online_count += count
        self.delivered_count += count

    def hold(self, count: int = 1) -> None:
        """Something more has to be done before the notice is settled."""
        self.holds += count

    def release(self, count: int = 1) -> None:
        """It is done."""
        self.holds -= count
        if self.holds == 0:
            self.on_settled(self)

    def begin_save(self) -> None:
        """Copies are on their way into mailboxes."""
        self.saves += 1
        self.holds += 1

    def end_save(self) -> None:
        """They are there."""
        self._saved()
        self.release()

    def end_fan_out(self) -> None:
        """Every connection was written to, and every save has begun."""
        self._saved()
        self.release()

    def _saved(self) -> None:
        self.saves -= 1
        if self.saves == 0 and self.waiters is not None:
            waiters, self.waiters = self.waiters, None
            waiters.release()


class Attempt(Later["Attempt"]):
    """One publish: its result is the attempt itself once it is durable. A whole group shares the future.

    A repeat asks the `first` one. `repeats` wait for this one to be decided.
    """

    __slots__ = ("_answer", "failure", "first", "flight", "is_duplicate", "keys", "repeats")

    def __init__(
        self, flight: InFlight | None, keys: list[str], decided: asyncio.Future[None], *,
        is_duplicate: bool = False, first: Attempt | None = None
    ) -> None:  # fmt: skip
        self.decided = decided
        self.flight = flight  # until it is settled
        self.keys = keys
        self.is_duplicate = is_duplicate
        self.first = first
        self.failure: BaseException | None = None
        self.repeats: deque[Attempt] | None = None
        self._answer: Answer | None = None

    def result(self) -> Attempt:
        """This attempt. Raises RequestError when nothing was kept; InvalidStateError before that is decided."""
        self.decided.result()
        if self.failure is None:
            return self
        if isinstance(self.failure, StoreError):
            raise RequestError(ErrorCode.STORE_UNAVAILABLE, "the notice could not be stored", retry_after_s=5)
        raise self.failure

    @property
    def notice(self) -> Notice:
        """Of an attempt that is not settled."""
        assert self.flight is not None  # noqa: S101 - for the type checker
        return self.flight.notice

    @property
    def answer(self) -> Answer:
        """What the publisher is told of a notice that was kept."""
        if self.first is not None:
            return self.first.answer
        if self.flight is not None:
            return self.flight.answer()
        assert self._answer is not None  # noqa: S101 - for the type checker
        return self._answer

    async def delivered(self, within_s: float) -> None:
        """Return when every recipient was sent to or is in the mailbox, or when the time is over."""
        attempt = self.first or self
        if attempt.flight is not None:
            await attempt.flight.delivered(within_s)

    def settled(self) -> None:
        """Nothing is left to do: a notice may weigh much, and what its repeats are told does not."""
        self._answer, self.flight = self.answer, None


def _nothing(flight: InFlight) -> None:
    """Nobody wants to know."""
