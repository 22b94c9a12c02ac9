"""The dedup window against a model: by which keys a repeat is recognised, and for how long."""

from __future__ import annotations

import weakref

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from pushd.delivery.dedup import DedupWindow

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


def test_what_is_dropped_is_let_go_of() -> None:
    """It may weigh much, and many may be dropped within a window."""
    window: DedupWindow[set[str]] = DedupWindow(10)
    value = {"heavy"}
    let_go_of = weakref.ref(value)
    window.keep(["a", "b"], value, 0.0)
    window.drop(["a", "b"], value)
    del value
    assert let_go_of() is None
    assert window.find(["a"], 10.0) is None


def test_memory_follows_the_window() -> None:
    window: DedupWindow[int] = DedupWindow(1.0)
    for number in range(1000):
        assert window.find([str(number)], number * 0.1) is None
        window.keep([str(number)], number, number * 0.1)
        assert len(window) <= 11
