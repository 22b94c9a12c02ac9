"""What users do with their inboxes: everything read at once, notices put away and put back."""

from __future__ import annotations

from collections.abc import Sequence

from pushd.basis import Basis
from pushd.delivery.acknowledgements import Acknowledgements
from pushd.model import Mark, UserId
from pushd.ports import Inbox
from pushd.records import InboxFilter
from pushd.writing.writers import Writers

EVERYTHING = InboxFilter()


class Inboxes:
    """Changes users' inboxes. What is read there waits in no mailbox any more, and needs no acknowledgement."""

    def __init__(self, inbox: Inbox, acknowledgements: Acknowledgements, writers: Writers, basis: Basis) -> None:
        self._inbox = inbox
        self._acknowledgements = acknowledgements
        self._writers = writers
        self._wall_ms = basis.clock.wall_ms

    async def read_all(self, user_id: UserId, where: InboxFilter = EVERYTHING, until_ms: int | None = None) -> int:
        """The user has read all that matches and was accepted up to `until_ms`, by default until now: how many of them
        were unread. What is being sent at this moment is included, what comes later is not."""
        at_ms = self._wall_ms()
        until_ms = at_ms if until_ms is None else until_ms
        await self._acknowledgements.fanned_out(self._acknowledgements.under_way(until_ms))
        await self._writers.records_written({user_id})
        message_ids = await self._inbox.read_all(user_id, where, until_ms, at_ms)
        if message_ids:
            self._acknowledgements.acknowledge(user_id, message_ids)
            self._writers.mailbox.remove(user_id, message_ids)
        return len(message_ids)

    async def archive(self, user_id: UserId, message_ids: Sequence[str]) -> list[str]:
        """The user puts these away, and has read them: the ids for which that is now on record, in order.

        The user's connections are told that they are read.
        """
        self._acknowledgements.acknowledge(user_id, message_ids)
        await self._noted(user_id, message_ids)
        found = await self._inbox.archive(user_id, message_ids, self._wall_ms())
        if found:
            self._writers.mailbox.remove(user_id, found)
            await self._acknowledgements.tell_others(user_id, found, Mark.READ, None)
        return found

    async def unarchive(self, user_id: UserId, message_ids: Sequence[str]) -> list[str]:
        """The user puts these back: the ids for which there is a record, in order."""
        await self._noted(user_id, message_ids)
        return await self._inbox.unarchive(user_id, message_ids, self._wall_ms())

    async def _noted(self, user_id: UserId, message_ids: Sequence[str]) -> None:
        """Who is quick may name a notice before its receipt is noted."""
        await self._acknowledgements.fanned_out(message_ids)
        await self._writers.records_written({user_id})
