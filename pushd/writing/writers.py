"""The writers of a node: mailbox copies, records, online status and settled notices, written without being waited for.

The journal entry of a notice is settled only after everything that belongs to it is in its store or on disk in the
outbox, so a crash loses none of this.
"""

from __future__ import annotations

from collections.abc import Coroutine, Sized
from typing import Any

from pushd.model import UserId
from pushd.writing.mailbox import MailboxWriter
from pushd.writing.online_status import StatusWriter
from pushd.writing.receipts import LedgerWriter
from pushd.writing.records import RecordWriter
from pushd.writing.settled import SettledWriter
from pushd.writing.write_behind import WriteBehind


class Writers:
    """The writers, and what whoever reads a store asks for before, so that he reads his own writes.

    `records_written`, `mailboxes_written` and `statuses_written` return when everything noted before is in the store,
    or, with `user_ids`, everything noted about these users. They raise StoreUnavailable when the store stays away.
    """

    def __init__(
        self,
        mailbox: MailboxWriter,
        records: RecordWriter | LedgerWriter,
        statuses: StatusWriter,
        settled: SettledWriter,
    ) -> None:
        self.mailbox = mailbox
        self.records = records
        self.statuses = statuses
        self.settled = settled

    def records_written(self, user_ids: set[UserId] | None = None) -> Coroutine[Any, Any, None]:
        """What was noted before, of all or about these users, is in the records."""
        return self.records.readable(user_ids)

    def mailboxes_written(self, user_ids: set[UserId] | None = None) -> Coroutine[Any, Any, None]:
        """What was noted before, of all or about these users, is in the mailboxes."""
        return _written(self.mailbox.writer, user_ids)

    def statuses_written(self) -> Coroutine[Any, Any, None]:
        """Who came and went before is in the online statuses."""
        return self.statuses.writer.flushed()

    def give_way_to(self, queue: Sized) -> None:
        """From now on records, of which there are many, wait while something is in `queue` and nobody waits for them.

        For fan-outs and arrivals, which the loop should serve first.
        """
        self.records.writer.give_way_to(queue)

    def all(self) -> list[WriteBehind[Any]]:
        """All of them, in the order in which they are asked at a stop."""
        return [self.mailbox.writer, self.records.writer, self.statuses.writer, self.settled.writer]

    async def flushed(self) -> None:
        """Returns when everything given so far is in the stores."""
        for writer in self.all():
            await writer.flushed()

    async def secured(self) -> None:
        """Returns when everything given so far is in the stores or on disk."""
        for writer in self.all():
            await writer.secured()


def _written(writer: WriteBehind[Any], user_ids: set[UserId] | None) -> Coroutine[Any, Any, None]:
    return writer.flushed() if user_ids is None else writer.written_for(user_ids)
