"""Times and rates: a histogram of bounded size, exact quantiles, and when the next notice is due. Pure."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000


@dataclass(frozen=True)
class Spread:
    """How a time is distributed, in ms; all zero when nothing was measured."""

    count: int = 0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    max_ms: float = 0.0


def rank(count: int, quantile: float) -> int:
    """The index of a quantile among `count` sorted values (nearest rank)."""
    return max(0, math.ceil(count * quantile) - 1)


def spread_of(values_ns: Sequence[int]) -> Spread:
    """The exact spread of some times in ns."""
    if not values_ns:
        return Spread()
    ordered = sorted(values_ns)
    p50, p99 = (ordered[rank(len(ordered), quantile)] / NS_PER_MS for quantile in (0.5, 0.99))
    return Spread(len(ordered), p50, p99, ordered[-1] / NS_PER_MS)


class Histogram:
    """Any number of times in 8 MB: quantiles to `resolution_ns`, rounded up; the maximum exact."""

    def __init__(self, resolution_ns: int = 10_000, span_ns: int = 10 * NS_PER_S) -> None:
        self._resolution_ns = resolution_ns
        self._last = span_ns // resolution_ns
        self._counts = array("Q", bytes(8 * (self._last + 1)))
        self.count = 0
        self.max_ns = 0

    def add(self, value_ns: int) -> None:
        """Count one time; beyond the span it is known by the maximum only."""
        bucket = value_ns // self._resolution_ns
        self._counts[bucket if bucket < self._last else self._last] += 1
        self.count += 1
        if value_ns > self.max_ns:
            self.max_ns = value_ns

    def quantile_ns(self, quantile: float) -> int:
        """The time that this share of all stays at or below; 0 of nothing."""
        if not self.count:
            return 0
        left = rank(self.count, quantile)
        for bucket, count in enumerate(self._counts):
            if left < count:
                return min(self.max_ns, (bucket + 1) * self._resolution_ns) if bucket < self._last else self.max_ns
            left -= count
        return self.max_ns

    def spread(self) -> Spread:
        """What was counted."""
        p50, p99 = (self.quantile_ns(quantile) / NS_PER_MS for quantile in (0.5, 0.99))
        return Spread(self.count, p50, p99, self.max_ns / NS_PER_MS)


class Schedule:
    """When each of `total` notices is due: evenly at `rate` per second from `start_ns` on; all at once with rate 0."""

    def __init__(self, rate: float, total: int, start_ns: int) -> None:
        self._rate = rate
        self._total = total
        self._start_ns = start_ns

    @property
    def is_paced(self) -> bool:
        """Notices are not all due at once."""
        return self._rate > 0

    def due_at_ns(self, seq: int) -> int:
        """When notice `seq`, counted from 0, is due."""
        return self._start_ns + (int(seq * NS_PER_S / self._rate) if self._rate else 0)

    def due(self, now_ns: int) -> int:
        """How many are due by now."""
        if not self._rate:
            return self._total
        elapsed_ns = now_ns - self._start_ns
        return min(self._total, max(0, int(elapsed_ns * self._rate / NS_PER_S) + 1 if elapsed_ns >= 0 else 0))


def per_second(count: int, elapsed_ns: int) -> float:
    """A rate; 0 when no time went by."""
    return count * NS_PER_S / elapsed_ns if elapsed_ns > 0 else 0.0
