"""Lanes, dedup window, token bucket and backoff, each against a model; time is a number."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pushd.delivery.dedup import DedupWindow
from pushd.delivery.lanes import Lanes
from pushd.limits import TokenBucket
from pushd.model import Priority
from pushd.retry import Backoff

# ---- lanes


class LanesMachine(RuleBasedStateMachine):
    """The model: one list of (priority, arrival, since)."""

    CAPACITY = 5

    def __init__(self) -> None:
        super().__init__()
        self.lanes: Lanes[int] = Lanes(self.CAPACITY)
        self.waiting: list[tuple[Priority, int, float]] = []
        self.claims = 0
        self.arrivals = 0
        self.now = 50.0

    @rule(seconds=st.floats(0, 10))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def reserve(self) -> None:
        has_room = len(self.waiting) + self.claims < self.CAPACITY
        assert self.lanes.reserve() is has_room
        self.claims += has_room

    @precondition(lambda self: self.claims)
    @rule()
    def cancel(self) -> None:
        self.lanes.cancel()
        self.claims -= 1

    @precondition(lambda self: self.claims)
    @rule(priority=st.sampled_from(Priority))
    def put(self, priority: Priority) -> None:
        self.claims -= 1
        self._enter(self.lanes.put, priority)

    @rule(priority=st.sampled_from(Priority))
    def restore(self, priority: Priority) -> None:
        self._enter(self.lanes.restore, priority)

    def _enter(self, enter: Callable[[int, Priority, float], None], priority: Priority) -> None:
        enter(self.arrivals, priority, self.now)
        self.waiting.append((priority, self.arrivals, self.now))
        self.arrivals += 1

    @rule()
    def take(self) -> None:
        found = self.lanes.take()
        if not self.waiting:
            assert found is None
            return
        best = min(self.waiting, key=lambda entry: (-entry[0], entry[1]))
        assert found == best[1]
        self.waiting.remove(best)

    @invariant()
    def figures(self) -> None:
        assert len(self.lanes) == len(self.waiting)
        assert self.lanes.depths() == {
            priority: sum(entry[0] is priority for entry in self.waiting) for priority in Priority
        }
        oldest = max((self.now - since for _, _, since in self.waiting), default=0.0)
        assert self.lanes.oldest_age(self.now) == oldest


TestLanes = LanesMachine.TestCase
TestLanes.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(st.lists(st.sampled_from(Priority), max_size=60))
def test_order(priorities: list[Priority]) -> None:
    """The highest first, and in the order of arrival within a priority."""
    lanes: Lanes[tuple[Priority, int]] = Lanes(len(priorities))
    for number, priority in enumerate(priorities):
        assert lanes.reserve()
        lanes.put((priority, number), priority, now=0.0)
    assert not lanes.reserve()
    taken = [lanes.take() for _ in priorities]
    assert taken == sorted(taken, key=lambda item: (-item[0], item[1]))
    assert lanes.take() is None


def test_what_a_former_process_accepted_may_exceed_the_capacity() -> None:
    lanes: Lanes[str] = Lanes(1)
    lanes.restore("a", Priority.LOW, 0.0)
    lanes.restore("b", Priority.LOW, 0.0)
    assert not lanes.reserve()
    assert lanes.take() == "a"
    assert not lanes.reserve()
    assert lanes.take() == "b"
    assert lanes.reserve()


# ---- the dedup window

KEYS = st.lists(st.sampled_from("abc"), min_size=1, max_size=2, unique=True)


class Value:
    """Compared by identity."""


class DedupMachine(RuleBasedStateMachine):
    """The model: key -> (value, until). A key is kept when none is found, as `Intake` does."""

    WINDOW_S = 10.0

    def __init__(self) -> None:
        super().__init__()
        self.window: DedupWindow[Value] = DedupWindow(self.WINDOW_S)
        self.kept: dict[str, tuple[Value, float]] = {}
        self.attempts: list[tuple[list[str], Value]] = []
        self.now = 0.0

    def _find(self, keys: list[str]) -> Value | None:
        live = [self.kept[key] for key in keys if key in self.kept]
        return next((value for value, until in live if until > self.now), None)

    @rule(seconds=st.integers(0, 12))
    def pass_time(self, seconds: int) -> None:
        self.now += seconds

    @rule(keys=KEYS)
    def publish(self, keys: list[str]) -> None:
        found = self.window.find(keys, self.now)
        assert found is self._find(keys)
        if found is None:
            value = Value()
            self.window.keep(keys, value, self.now)
            self.kept |= dict.fromkeys(keys, (value, self.now + self.WINDOW_S))
            self.attempts.append((keys, value))

    @precondition(lambda self: self.attempts)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        """An attempt fails, perhaps after its keys were taken by a later one."""
        keys, value = data.draw(st.sampled_from(self.attempts))
        self.window.drop(keys, value)
        self.kept = {key: entry for key, entry in self.kept.items() if key not in keys or entry[0] is not value}

    @rule(key=st.sampled_from("abcd"))
    def look(self, key: str) -> None:
        assert self.window.find([key], self.now) is self._find([key])
        assert len(self.window) == sum(until > self.now for _, until in self.kept.values())


TestDedupWindow = DedupMachine.TestCase
TestDedupWindow.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def test_window_ends_to_the_second() -> None:
    window: DedupWindow[str] = DedupWindow(300.0)
    window.keep(["a"], "first", 1000.0)
    assert window.find(["x", "a"], 1299.999) == "first"
    assert window.find(["a"], 1300.0) is None
    assert len(window) == 0


def test_a_failed_publish_is_forgotten_and_its_end_harms_no_later_one() -> None:
    window: DedupWindow[str] = DedupWindow(10.0)
    window.keep(["a", "b"], "first", 0.0)
    window.drop(["a", "b", "never kept"], "first")
    assert window.find(["a", "b"], 1.0) is None
    window.keep(["a"], "second", 5.0)
    assert window.find(["a"], 10.0) == "second"
    assert window.find(["a"], 14.9) == "second"
    assert window.find(["a"], 15.0) is None


def test_memory_follows_the_window() -> None:
    window: DedupWindow[int] = DedupWindow(1.0)
    for number in range(1000):
        assert window.find([str(number)], number * 0.1) is None
        window.keep([str(number)], number, number * 0.1)
        assert len(window) <= 11


# ---- the token bucket


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


# ---- backoff


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
