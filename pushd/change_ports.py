"""What the core needs of the outside for notices that are still to go out, and for those that are changed afterwards.

All that `ports` says of ports holds here; they are named there, too.
"""

from __future__ import annotations

from collections.abc import Awaitable, Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from pushd.model import Amended, Notice, Version


@dataclass(frozen=True, slots=True)
class Scheduled:
    """A notice of the schedule. `cancelled_ms` 0: it is still to go out."""

    notice: Notice
    cancelled_ms: int = 0


@dataclass(frozen=True, slots=True)
class Due:
    """Notices that are due. `next_ms`: when the first one behind them is, None: there is none.

    `spoiled`: what cannot be decoded, by a number for `ScheduleStore.drop_spoiled`, and why.
    """

    notices: list[Notice]
    next_ms: int | None
    spoiled: list[tuple[int, bytes, str]]


class ScheduleStore(Protocol):
    """Notices that are still to go out, and those that were cancelled before they did, by their `message_id`.

    A notice leaves it when the journal appends it: in the same transaction. What is awaited here survives what a
    journal entry survives.
    """

    async def keys(self) -> list[str]:
        """By what repeats of all of them are recognised: "id:" with the message_id, "key:" with the idempotency key."""

    async def count(self) -> int:
        """How many are still to go out."""

    def put(self, notices: Sequence[Notice]) -> Awaitable[None]:
        """Keep these until they are due. All or nothing; puts and appends of the same moment share a commit.

        Raises StoreError, and StoreUnavailable when the disk is full.
        """

    async def due(self, before_ms: int, limit: int) -> Due:
        """At most `limit` of those that are due before that time, those first that were due first, within bounds of
        memory; and when the next one is due."""

    async def find(self, message_id: str, idempotency_key: str = "") -> Scheduled | None:
        """What is scheduled or cancelled under one of these."""

    async def cancel(self, message_id: str, at_ms: int) -> tuple[Scheduled | None, bool]:
        """It is not due any more; None: there is none. And whether it was still to go out."""

    async def replace(self, notice: Notice) -> bool:
        """The notice of that id says this now; False: there is none that is still to go out."""

    async def drop(self, message_ids: Sequence[str]) -> None:
        """Forget these."""

    async def drop_spoiled(self, number: int) -> None:
        """Forget what cannot be decoded."""

    async def unrecorded(self, after: str, limit: int) -> list[Scheduled]:
        """Those of which a store outside does not know, as they are now, by message_id behind `after`."""

    async def recorded(self, known: Sequence[Scheduled]) -> None:
        """A store outside knows of them as they are said to be here."""

    async def purge(self, before_ms: int, limit: int) -> int:
        """Drop at most `limit` cancelled ones that would have been due before that time; how many were dropped."""


class Unfollowed(NamedTuple):
    """A change that a store outside does not have yet. `is_reset`: the notice has to be unread again there."""

    amended: Amended
    store: str
    is_reset: bool


class Amendments(Protocol):
    """What was changed of notices after they were accepted, on disk beside the journal.

    It is kept for as long as a copy of the notice may wait anywhere, or its record says it. What is awaited here
    survives what a journal entry survives, and is done in the stores of this process; `followers` are those outside:
    "mailbox" and "records" have to follow.
    """

    @property
    def followers(self) -> frozenset[str]:
        """The stores outside this process that have to follow."""

    async def known(self) -> list[Amended]:
        """What was changed so far."""

    async def revoke(self, amended: Amended, at_ms: int) -> int:
        """Nobody gets this notice any more: it waits in no mailbox of this process, is unread for nobody, and is not
        kept for anybody again. How many copies waited here."""

    async def edit(self, amended: Amended, newest: Notice, former: Version, *, is_reset: bool) -> None:
        """The notice says this from now on, and said the other before. With `is_reset` it is unread again for whoever
        has read it."""

    async def remind(self, amended: Amended) -> None:
        """Its recipients were reminded once more."""

    async def notices(self, message_ids: Collection[str]) -> dict[str, Notice]:
        """What those of these that were edited say now; the others are absent."""

    async def versions(self, message_id: str) -> list[Version]:
        """What the notice said before, the first version first."""

    async def unfollowed(self) -> list[Unfollowed]:
        """What is not in a store outside yet, and in which; oldest first."""

    async def followed(self, amended: Amended, store: str) -> None:
        """That store has it; unless more was changed of the notice since."""

    async def purge(self, before_ms: int, limit: int) -> list[str]:
        """Forget at most `limit` that were changed last before that time, and that every store has; which these are."""
