"""When to try again what has failed: backoff with jitter, and a circuit breaker. Pure."""

from __future__ import annotations

import random

FIRST_S = 0.05


class Backoff:
    """Growing pauses with full jitter: between half of and the whole of first_s, 2 first_s, … up to most_s."""

    def __init__(self, first_s: float = FIRST_S, most_s: float = 5.0, rng: random.Random | None = None) -> None:
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
        """It worked: the next pause is the first one again."""
        self._attempt = 0


class Circuit:
    """Is open, so that nobody waits for a store, from `most` lost calls in a row until one is answered."""

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
