"""The token bucket against a model; time is a number."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pushd.limits import TokenBucket


def test_a_burst_then_the_rate() -> None:
    bucket = TokenBucket(rate=2, burst=3, now=100.0)
    assert [bucket.take(100.0) for _ in range(4)] == [True, True, True, False]
    assert not bucket.take(100.4)
    assert bucket.take(100.5)
    assert not bucket.take(100.5)
    assert [bucket.take(200.0) for _ in range(4)] == [True, True, True, False]


@pytest.mark.parametrize("rate", [0, -1])
def test_no_rate_lets_everything_through(rate: float) -> None:
    bucket = TokenBucket(rate=rate, burst=0, now=0.0)
    assert all(bucket.take(0.0) for _ in range(1000))


def test_a_changed_burst_holds_at_once() -> None:
    bucket = TokenBucket(rate=10, burst=10, now=0.0)
    bucket.rate = bucket.burst = 2
    assert [bucket.take(0.0) for _ in range(3)] == [True, True, False]
    bucket.rate = bucket.burst = 4
    assert [bucket.take(1.0) for _ in range(5)] == [True] * 4 + [False]


@given(
    steps=st.lists(st.integers(0, 40), max_size=80),
    rate=st.sampled_from([1, 2, 4, 8]),
    burst=st.integers(1, 5),
)
def test_bucket_against_a_model(steps: list[int], rate: int, burst: int) -> None:
    """In sixteenths of a second and of a token, so that the arithmetic is exact."""
    bucket = TokenBucket(rate, burst, now=0.0)
    at = passed = 0
    sixteenths = burst * 16
    for step in steps:
        at += step
        sixteenths = min(burst * 16, sixteenths + step * rate)
        has_token = sixteenths >= 16
        assert bucket.take(at / 16) is has_token
        sixteenths -= 16 * has_token
        passed += has_token
    assert passed <= burst + at * rate / 16
