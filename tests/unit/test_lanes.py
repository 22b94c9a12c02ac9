"""Lanes against a model: the highest priority first, and in order of arrival within one."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pushd.delivery.lanes import Lanes
from pushd.model import Priority


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
    @rule(share=st.floats(0, 1))
    def cancel(self, share: float) -> None:
        count = round(share * self.claims)
        self.lanes.cancel(count)
        self.claims -= count

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


def test_a_place_may_be_claimed_beyond_the_capacity() -> None:
    lanes: Lanes[str] = Lanes(1)
    assert lanes.reserve()
    lanes.claim()
    assert not lanes.reserve()
    lanes.put("a", Priority.NORMAL, 0.0)
    lanes.put("b", Priority.NORMAL, 0.0)
    assert [lanes.take(), lanes.take(), lanes.take()] == ["a", "b", None]
    assert lanes.reserve()
