"""A mailbox outside this process as it should be: what was changed of notices holds before its copies follow."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from pushd.delivery.amendments import Amendments
from pushd.model import MailboxItem, UserId
from pushd.ports import Mailbox


class CurrentMailbox:
    """ports.Mailbox: that of a store, without what was revoked."""

    def __init__(self, mailbox: Mailbox, amendments: Amendments) -> None:
        self._mailbox = mailbox
        self._amendments = amendments
        self.save = mailbox.save
        self.remove = mailbox.remove
        self.clear = mailbox.clear
        self.purge = mailbox.purge

    @property
    def writers(self) -> int:
        """How many calls write at the same time, at present."""
        return self._mailbox.writers

    async def read(self, user_ids: Collection[UserId]) -> dict[UserId, list[MailboxItem]]:
        """What waits for each of these users, oldest first; users with nothing are absent."""
        found = await self._mailbox.read(user_ids)
        return self._current(found) if self._amendments else found

    def _current(self, found: Mapping[UserId, Sequence[MailboxItem]]) -> dict[UserId, list[MailboxItem]]:
        is_revoked = self._amendments.is_revoked
        current = {
            user_id: [item for item in items if not is_revoked(item.message_id)] for user_id, items in found.items()
        }
        return {user_id: items for user_id, items in current.items() if items}
