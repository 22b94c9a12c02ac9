"""A mailbox outside this process as it should be: what was changed of notices holds before its copies follow."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from pushd.delivery.amendments import Amendments, as_edited
from pushd.model import MailboxItem, Notice, UserId
from pushd.ports import Amendments as KeptAmendments
from pushd.ports import Mailbox


class CurrentMailbox:
    """ports.Mailbox: that of a store, without what was revoked, and with what edited notices say now."""

    def __init__(
        self, mailbox: Mailbox, amendments: Amendments, kept: KeptAmendments, wall_ms: Callable[[], int]
    ) -> None:
        self._mailbox = mailbox
        self._amendments = amendments
        self._kept = kept
        self._wall_ms = wall_ms
        self.save = mailbox.save
        self.remove = mailbox.remove
        self.replace = mailbox.replace
        self.clear = mailbox.clear
        self.purge = mailbox.purge

    @property
    def writers(self) -> int:
        """How many calls write at the same time, at present."""
        return self._mailbox.writers

    async def read(self, user_ids: Collection[UserId]) -> dict[UserId, list[MailboxItem]]:
        """What waits for each of these users, oldest first; users with nothing are absent."""
        found = await self._mailbox.read(user_ids)
        if not self._amendments:
            return found
        older = {item.message_id for items in found.values() for item in items if self._amendments.is_older(item)}
        return self._current(found, await self._kept.notices(older) if older else {})

    def _current(
        self, found: Mapping[UserId, Sequence[MailboxItem]], newest: Mapping[str, Notice]
    ) -> dict[UserId, list[MailboxItem]]:
        is_revoked, now_ms = self._amendments.is_revoked, self._wall_ms()
        current: dict[UserId, list[MailboxItem]] = {}
        for user_id, items in found.items():
            said = [
                as_edited(item, newest[item.message_id]) if item.message_id in newest else item
                for item in items
                if not is_revoked(item.message_id)
            ]
            if here := [item for item in said if not 0 < item.expires_ms <= now_ms]:
                current[user_id] = here
        return current
