"""Halves lose nothing and keep the order; who fails to hear of a batch keeps nobody else from hearing of it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pushd.in_flight import InFlight
from pushd.telemetry.metrics import Metrics
from pushd.writing.batches import halves, tell_each
from tests.unit.parts import Counted


@given(st.lists(st.integers(), min_size=2))
def test_halves_are_both_shorter_and_together_the_whole(items: list[int]) -> None:
    first, second = halves(items)
    assert first + second == items
    assert 0 <= len(second) - len(first) <= 1
    assert first


def test_who_fails_to_be_told_is_noted_and_the_others_are_told() -> None:
    metrics, told = Metrics(), []

    def step(flight: InFlight) -> None:
        if flight.notice.seq == 2:
            raise ValueError("odd")
        told.append(flight.notice.seq)

    tell_each([Counted(seq).flight for seq in (1, 2, 3)], step, metrics)
    assert told == [1, 3]
    assert metrics.errors.labels("settle").value == 1
