"""What was changed of notices after their acceptance, as delivery asks for it at every step: in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable

import msgspec

from pushd.model import Amended, MailboxItem, Notice

TEXTS_KEPT = 256  # of edited notices: what is read out of a mailbox is older for moments only


class Amendments:
    """What is known of changed notices; of all others there is nothing. A look costs one into a dict."""

    def __init__(self, known: Iterable[Amended] = ()) -> None:
        self._known = {amended.message_id: amended for amended in known}
        self._texts: OrderedDict[str, Notice] = OrderedDict()
        # Since when a version is in force of which not all were told yet: confirmations are of the former one.
        self.editing: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._known)

    def of(self, message_id: str) -> Amended:
        """What was changed of a notice, as far as that is known."""
        return self._known.get(message_id) or Amended(message_id)

    def is_revoked(self, message_id: str) -> bool:
        """Whether nobody is to get it any more."""
        known = self._known.get(message_id)
        return known is not None and known.is_revoked

    def note(self, amended: Amended, newest: Notice | None = None) -> None:
        """This is what was changed by now, and is on disk; `newest` says what the notice says where it was edited."""
        self._known[amended.message_id] = amended
        if newest is not None:
            self._texts[amended.message_id] = newest
            self._texts.move_to_end(amended.message_id)
            if len(self._texts) > TEXTS_KEPT:
                self._texts.popitem(last=False)

    def forget(self, message_ids: Iterable[str]) -> None:
        """These are not on disk any more."""
        for message_id in message_ids:
            self._known.pop(message_id, None)
            self._texts.pop(message_id, None)

    def text(self, message_id: str) -> Notice | None:
        """What a notice says that was edited lately."""
        return self._texts.get(message_id)

    def is_older(self, item: MailboxItem) -> bool:
        """Whether an item says what its notice said before it was edited."""
        known = self._known.get(item.message_id)
        return known is not None and known.version > item.version

    def current(self, item: MailboxItem) -> MailboxItem | None:
        """What is to be sent of an item that was read a moment ago; None: it was revoked."""
        if not self._known or item.message_id not in self._known:
            return item
        if self.is_revoked(item.message_id):
            return None
        newest = self._texts.get(item.message_id) if self.is_older(item) else None
        return item if newest is None else as_edited(item, newest)

    def versions(self, message_ids: Collection[str]) -> dict[str, int]:
        """The versions that users have seen of these, where that is not the first one."""
        found: dict[str, int] = {}
        for message_id in message_ids if self._known else ():
            known = self._known.get(message_id)
            version = 1 if known is None else known.version - (message_id in self.editing)
            if version > 1:
                found[message_id] = version
        return found


def as_edited(item: MailboxItem, newest: Notice) -> MailboxItem:
    """The item with what its notice says now."""
    return msgspec.structs.replace(item, **newest.said())
