"""What was changed of notices after their acceptance, as delivery asks for it at every step: in memory."""

from __future__ import annotations

from collections.abc import Iterable

from pushd.model import Amended


class Amendments:
    """What is known of changed notices; of all others there is nothing. A look costs one into a dict."""

    def __init__(self, known: Iterable[Amended] = ()) -> None:
        self._known = {amended.message_id: amended for amended in known}

    def __len__(self) -> int:
        return len(self._known)

    def of(self, message_id: str) -> Amended:
        """What was changed of a notice, as far as that is known."""
        return self._known.get(message_id) or Amended(message_id)

    def is_revoked(self, message_id: str) -> bool:
        """Whether nobody is to get it any more."""
        known = self._known.get(message_id)
        return known is not None and known.is_revoked

    def note(self, amended: Amended) -> None:
        """This is what was changed by now, and is on disk."""
        self._known[amended.message_id] = amended

    def forget(self, message_ids: Iterable[str]) -> None:
        """These are not on disk any more."""
        for message_id in message_ids:
            self._known.pop(message_id, None)
