"""Backoff: its pauses stay within their bounds and differ."""

from __future__ import annotations

import random
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from pushd.retry import Backoff


@given(
    first_s=st.floats(0.001, 1),
    most_s=st.floats(0.001, 60),
    attempts=st.integers(1, 200),
    seed=st.integers(0, 2**32),
)
def test_backoff_bounds(first_s: float, most_s: float, attempts: int, seed: int) -> None:
    backoff = Backoff(first_s, most_s, random.Random(seed))
    for attempt in range(attempts):
        ceiling = min(most_s, first_s * 2.0**attempt)
        assert ceiling / 2 <= backoff.next_s() <= ceiling
    backoff.reset()
    assert min(most_s, first_s) / 2 <= backoff.next_s() <= min(most_s, first_s)


def test_backoff_has_jitter_and_never_grows_beyond_its_most() -> None:
    backoff = Backoff(0.05, 5.0, random.Random(1))
    pauses = [backoff.next_s() for _ in range(10_000)]
    assert max(pauses) <= 5.0
    late = pauses[10:]
    assert len(set(late)) > len(late) * 0.99
    assert not all(a <= b for a, b in pairwise(late))


def test_backoffs_of_their_own_differ() -> None:
    assert Backoff().next_s() != Backoff().next_s()
