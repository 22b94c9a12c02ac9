"""An accepted notice until it is settled: who still has to get it, and what is still to be written. Pure."""

from __future__ import annotations

from collections.abc import Callable

from pushd.model import MailboxItem, Notice

NOBODY: set[int] = set()  # shared, never changed


class Publication:
    """Counts what keeps a notice from being settled.

    A hold stands for one thing to be done: the fan-out, a recipient who has not acknowledged, a write
    under way. When the last hold is released, `on_settled` is called, once. `on_delivered` is called
    when the fan-out is through and the absent recipients' copies are in their mailboxes.
    """

    __slots__ = (
        "accepted_at",
        "copy",
        "delivered_count",
        "early_gone",
        "early_received",
        "holds",
        "is_restored",
        "notice",
        "offline_count",
        "on_delivered",
        "on_settled",
        "online_count",
        "saves",
        "waiting",
    )

    def __init__(
        self,
        notice: Notice,
        accepted_at: float,
        *,
        is_restored: bool = False,
        on_settled: Callable[[Publication], None] | None = None,
    ) -> None:
        self.notice = notice
        self.accepted_at = accepted_at  # loop clock, s
        self.is_restored = is_restored  # accepted by a former process, which may have delivered it in part
        self.copy: MailboxItem | None = None  # for mailboxes, shared by all in which it waits
        self.holds = 1
        self.saves = 1
        self.online_count = 0
        self.offline_count = 0
        self.delivered_count = 0
        self.waiting = 0  # recipients who have it and have not answered
        self.early_received = NOBODY  # acknowledged while the fan-out was still under way
        self.early_gone = NOBODY  # disconnected meanwhile
        self.on_settled: Callable[[Publication], None] = on_settled or _nothing
        self.on_delivered: Callable[[Publication], None] = _nothing

    @property
    def total_count(self) -> int:
        """Recipients, guests left out."""
        return self.online_count + self.offline_count

    @property
    def is_delivered(self) -> bool:
        """Every recipient was sent to or is in the mailbox."""
        return self.saves == 0

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
        if self.saves == 0:
            self.on_delivered(self)
            self.on_delivered = _nothing


def _nothing(publication: Publication) -> None:
    """Nobody waits."""
