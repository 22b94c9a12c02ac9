"""An accepted notice until it is settled: who still has to get it, and what is still to be written."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

import msgspec

from pushd.errors import ErrorCode, RequestError, StoreError
from pushd.later import Later
from pushd.model import MailboxItem, Notice, TargetKind, UserId, recipients_text
from pushd.waiters import Waiters


def _nothing(flight: object) -> None:
    """Nobody wants to know."""


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
    status: str = "accepted"


class InFlight(msgspec.Struct, eq=False, gc=False):
    """A notice on its way, and what keeps it from being settled.

    It is *delivered* when the fan-out is through and the absent recipients' copies are in their mailboxes. It is
    *settled* when no work is left: the fan-out, each recipient who has not acknowledged, and each write under way count
    as one. `on_settled` is called then, once.
    """

    notice: Notice
    accepted_at: float  # loop clock, s
    data_bytes: int = 0  # what they count for where notices on their way are bounded
    is_restored: bool = False  # accepted by a former process, which may have delivered it in part
    on_settled: Callable[[InFlight], None] = _nothing
    is_revoked: bool = False  # nobody gets it any more
    copy: MailboxItem | None = None  # for mailboxes, shared by all in which it waits
    online_count: int = 0
    offline_count: int = 0
    delivered_count: int = 0
    recipients: int = 0  # how many it is for, once they are found
    waiting: int = 0  # recipients who have it and have not answered
    early_received: set[UserId] | None = None  # who acknowledges while a fan-out is under way
    left_before: int = 0  # how many had left when the fan-out began
    work: int = 1
    saves: int = 1  # 0: it is delivered
    waiters: Waiters | None = None  # who waits until it is delivered

    @property
    def total_count(self) -> int:
        """Recipients, guests left out."""
        return self.online_count + self.offline_count

    @property
    def is_delivered(self) -> bool:
        """Every recipient was sent to or is in the mailbox."""
        return self.saves == 0

    def answer(self) -> Answer:
        """What its publisher is told of it by now."""
        notice = self.notice
        return Answer(
            notice.message_id, notice.content, notice.accepted_ms, notice.target.kind, notice.type,
            recipients_text(notice.target), self.is_delivered,
            self.online_count, self.offline_count, self.delivered_count,
            "accepted" if notice.seq else "scheduled",
        )  # fmt: skip

    async def delivered(self, within_s: float) -> None:
        """Return when it is delivered, or when the time is over."""
        if self.saves:
            if self.waiters is None:
                self.waiters = Waiters()
            await self.waiters.wait(within_s)

    # ---- for whom it is, and who has it

    def note_received_before(self, count: int) -> None:
        """A former process brought the notice to so many of its recipients."""
        self.online_count += count
        self.delivered_count += count

    def note_sending(self, left_before: int, early_received: set[UserId]) -> None:
        """A fan-out begins, after so many had left; who acknowledges before its end is to be put into this set."""
        self.left_before = left_before
        self.early_received = early_received

    def note_sent(self, online: int, received: int, waiting: int) -> None:
        """The frame went to `online` recipients, of whom `received` have it, and `waiting` are to acknowledge it."""
        self.online_count += online
        self.delivered_count += received
        self.waiting += waiting
        self.work += waiting

    def note_all_sent(self) -> None:
        """That fan-out is over, and who got the frame is known."""
        self.early_received = None

    def note_absent(self, count: int) -> None:
        """So many recipients have no connection."""
        self.offline_count += count

    def note_answers(self, count: int, received: int) -> None:
        """So many recipients are not waited for any more; so many of them have received it."""
        self.waiting -= count
        self.delivered_count += received
        self.work -= count  # as end_work, which would be one more call for each acknowledgement
        if self.work == 0:
            self.on_settled(self)

    def keep_copy(self, copy: MailboxItem) -> None:
        """Keep what its recipients' mailboxes share."""
        self.copy = copy

    # ---- what is to be done

    def add_work(self, count: int = 1) -> None:
        """So much more has to be done before the notice is settled."""
        self.work += count

    def end_work(self, count: int = 1) -> None:
        """So much is done."""
        self.work -= count
        if self.work == 0:
            self.on_settled(self)

    def add_save(self) -> None:
        """Copies are on their way into mailboxes."""
        self.saves += 1
        self.work += 1

    def end_save(self) -> None:
        """The copies of one `add_save` are in the mailboxes, or safe on disk."""
        self.saves -= 1
        if self.saves == 0 and self.waiters is not None:
            waiters, self.waiters = self.waiters, None
            waiters.resolve()
        self.end_work()

    end_fan_out = end_save  # every connection was written to, and every save was added


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

    @classmethod
    def known(cls, answer: Answer, keys: list[str], decided: asyncio.Future[None]) -> Attempt:
        """The attempt of a former time that had this answer."""
        attempt = cls(None, keys, decided)
        attempt._answer = answer
        return attempt

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
        """The notice of an attempt that is not settled."""
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
