"""What the log has said already of what others wrote into a store."""

from __future__ import annotations

from collections.abc import Hashable

REMEMBERED = 1000


class Causes:
    """Remembers at most `most` of what it is asked for, so that a flood of bad data is not a flood in the log."""

    def __init__(self, most: int = REMEMBERED) -> None:
        self._most = most
        self._known: set[Hashable] = set()

    def is_new(self, cause: Hashable) -> bool:
        """True the first time for a cause; again only after so many others that none of them is remembered."""
        if cause in self._known:
            return False
        if len(self._known) >= self._most:
            self._known.clear()
        self._known.add(cause)
        return True
