"""The queues of notices that wait for a worker, one for each priority. Pure: the clock is passed in."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

from pushd.model import Priority

T = TypeVar("T")


class Lanes(Generic[T]):
    """Waiting notices, first in first out within a priority, the highest priority first.

    `capacity` bounds all lanes together. Places are reserved before a notice is made durable, so that
    an accepted notice always finds room: `reserve`, then `put` or `cancel`.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._lanes: dict[Priority, deque[tuple[float, T]]] = {
            priority: deque() for priority in sorted(Priority, reverse=True)
        }
        self._reserved = 0
        self._waiting = 0

    def __len__(self) -> int:
        return self._waiting

    def reserve(self) -> bool:
        """Claim a place; False when all are taken."""
        if self._waiting + self._reserved >= self.capacity:
            return False
        self._reserved += 1
        return True

    def claim(self) -> None:
        """Claim a place whatever the capacity."""
        self._reserved += 1

    def cancel(self, count: int = 1) -> None:
        """Give claimed places back."""
        self._reserved -= count

    def put(self, item: T, priority: Priority, now: float) -> None:
        """Fill a claimed place."""
        self._reserved -= 1
        self._waiting += 1
        self._lanes[priority].append((now, item))

    def restore(self, item: T, priority: Priority, now: float) -> None:
        """Put without a claim: what a former process accepted is taken whatever the capacity."""
        self._waiting += 1
        self._lanes[priority].append((now, item))

    def first(self) -> T | None:
        """The notice that `take` would give."""
        for lane in self._lanes.values():
            if lane:
                return lane[0][1]
        return None

    def take(self) -> T | None:
        """Take the oldest notice of the highest lane that is not empty."""
        for lane in self._lanes.values():
            if lane:
                self._waiting -= 1
                return lane.popleft()[1]
        return None

    def oldest_age(self, now: float) -> float:
        """How long the notice that waits longest has been waiting; 0 when none does."""
        return max((now - lane[0][0] for lane in self._lanes.values() if lane), default=0.0)

    def depths(self) -> dict[Priority, int]:
        """How many wait in each lane."""
        return {priority: len(lane) for priority, lane in self._lanes.items()}
