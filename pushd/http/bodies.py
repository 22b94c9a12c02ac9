"""Room for the bodies of requests under way, of all connections together. Pure."""

from __future__ import annotations

from typing import Protocol

PATIENCE_S = 5.0  # a body that has been arriving for longer makes room for others when there is none
WHOLE_SHARE = 1.25  # of `max_bytes`: up to where requests that have come whole are served


class Holder(Protocol):
    """A connection that holds bytes of a body."""

    def give_way(self) -> None:
        """Hold nothing any more: others need the room."""


class Bodies:
    """Counts the bytes that connections hold of requests: what arrives, what waits behind it, and what is worked on.

    A request that has come in one piece finds room even while slow ones fill the rest; and slow ones cannot fill it for
    long: where there is no room for a body, those that began `patience_s` ago and more give way, the oldest first.
    """

    def __init__(self, *, patience_s: float = PATIENCE_S) -> None:
        self.patience_s = patience_s
        self.held_bytes = 0
        self._arriving: dict[Holder, float] = {}  # since when, oldest first

    def has_room(self, more_bytes: int, max_bytes: int) -> bool:
        """Whether a request that is here whole may be worked on, of which so many bytes are not counted yet."""
        return self.held_bytes + more_bytes <= max_bytes * WHOLE_SHARE

    def arrives(self, holder: Holder, max_bytes: int, now: float) -> bool:
        """Whether the body of `holder` may go on arriving. What there is of it has been counted."""
        self._arriving.setdefault(holder, now)
        while self.held_bytes > max_bytes:
            oldest, since = next(iter(self._arriving.items()))
            if oldest is holder or since + self.patience_s > now:
                return False
            self.ends(oldest)
            oldest.give_way()
        return True

    def ends(self, holder: Holder) -> None:
        """Wait no more for the body of `holder`: it has come, or is given up. Harmless when there is none."""
        self._arriving.pop(holder, None)
