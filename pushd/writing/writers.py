"""What is written without being waited for: mailbox copies, records, online status, settled journal entries.

The journal entry of a notice is settled only after everything that belongs to it is in its store or on disk in the
outbox, so a crash loses none of this.
"""

from __future__ import annotations

from typing import Any

from pushd.writing.mailbox import MailboxWriter
from pushd.writing.online_status import StatusWriter
from pushd.writing.records import RecordWriter
from pushd.writing.settled import SettledWriter
from pushd.writing.write_behind import WriteBehind


class Writers:
    """The writers of a node."""

    def __init__(
        self, mailbox: MailboxWriter, records: RecordWriter, statuses: StatusWriter, settled: SettledWriter
    ) -> None:
        self.mailbox = mailbox
        self.records = records
        self.statuses = statuses
        self.settled = settled

    def all(self) -> list[WriteBehind[Any]]:
        """All of them, in the order in which they are asked at a stop."""
        return [self.mailbox.writer, self.records.writer, self.statuses.writer, self.settled.writer]

    async def flushed(self) -> None:
        """Everything given so far is in the stores."""
        for writer in self.all():
            await writer.flushed()

    async def secured(self) -> None:
        """Everything given so far is in the stores or on disk."""
        for writer in self.all():
            await writer.secured()
