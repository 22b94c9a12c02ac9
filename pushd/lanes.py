"""Four priority lanes, the dedup window, rate limits and backoff. Pure: the clock is passed in."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable
from math import inf
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

    def cancel(self) -> None:
        """Give a claimed place back."""
        self._reserved -= 1

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
        """What `take` would give."""
        return next((lane[0][1] for lane in self._lanes.values() if lane), None)

    def take(self) -> T | None:
        """The oldest of the highest non-empty lane."""
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


class DedupWindow(Generic[T]):
    """What was published under a key within the last `window_s`: the first value stays until then.

    Of more than `most_bytes` altogether, the oldest are forgotten before.
    """

    def __init__(self, window_s: float, most_bytes: float = inf) -> None:
        self.window_s = window_s
        self._most_bytes = most_bytes
        self._bytes = 0
        self._values: dict[str, T] = {}
        self._ends: deque[tuple[float, int, str, T]] = deque()

    def __len__(self) -> int:
        return len(self._values)

    def find(self, keys: Iterable[str], now: float) -> T | None:
        """The value first kept under one of `keys`."""
        self._forget(now)
        for key in keys:
            value = self._values.get(key)
            if value is not None:
                return value
        return None

    def keep(self, keys: Iterable[str], value: T, now: float, size: int = 0) -> int:
        """Remember `value`, which takes `size` bytes, under `keys` from now on; how many were forgotten for it."""
        for key in keys:
            self._values[key] = value
            self._ends.append((now + self.window_s, size, key, value))
            self._bytes += size
        forgotten = 0
        while self._bytes > self._most_bytes and len(self._ends) > 1:
            forgotten += self._forget_first()
        return forgotten

    def drop(self, keys: Iterable[str], value: T) -> None:
        """Forget `value` at once: the publish failed, a repeat is a new attempt."""
        for key in keys:
            if self._values.get(key) is value:
                del self._values[key]

    def _forget(self, now: float) -> None:
        while self._ends and self._ends[0][0] <= now:
            self._forget_first()

    def _forget_first(self) -> bool:
        """Whether it was still remembered."""
        _, size, key, value = self._ends.popleft()
        self._bytes -= size
        if self._values.get(key) is not value:
            return False
        del self._values[key]
        return True


class TokenBucket:
    """`rate` tokens a second on average, `burst` at once; a rate of 0 lets everything through."""

    __slots__ = ("_at", "_tokens", "burst", "rate")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self.rate = rate
        self.burst = burst
        self._tokens = burst
        self._at = now

    def take(self, now: float) -> bool:
        """Use a token; False when there is none."""
        if self.rate <= 0:
            return True
        self._tokens = min(self.burst, self._tokens + (now - self._at) * self.rate)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class Backoff:
    """Growing pauses with full jitter: between half of and the whole of first_s, 2 first_s, … up to most_s."""

    def __init__(self, first_s: float = 0.05, most_s: float = 5.0, rng: random.Random | None = None) -> None:
        self._first_s = first_s
        self._most_s = most_s
        self._attempt = 0
        self._rng = rng or random.Random()  # noqa: S311 - jitter, not secrets

    def next_s(self) -> float:
        """How long to wait before the next attempt."""
        ceiling: float = min(self._most_s, self._first_s * 2.0**self._attempt)
        self._attempt = min(self._attempt + 1, 32)
        return ceiling * self._rng.uniform(0.5, 1.0)

    def reset(self) -> None:
        """It worked: start small again."""
        self._attempt = 0


class Circuit:
    """Open, so that nobody waits for a store, from `most` lost calls in a row until one is answered."""

    def __init__(self, most: int = 3) -> None:
        self._most = most
        self._lost = 0

    @property
    def is_open(self) -> bool:
        """Whether calls need not be tried."""
        return self._lost >= self._most

    def lost(self) -> None:
        """A call was not answered."""
        self._lost += 1

    def answered(self) -> None:
        """A call was answered, be it with an error."""
        self._lost = 0
