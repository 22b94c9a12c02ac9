"""A cause is new once, and a bounded number of causes is remembered."""

from __future__ import annotations

from pushd.stores.causes import Causes


def test_a_cause_is_new_once() -> None:
    causes = Causes()
    assert [causes.is_new(cause) for cause in ("a", b"a", "a", "b", b"a")] == [True, True, False, True, False]


def test_too_many_causes_are_forgotten() -> None:
    causes = Causes(most=3)
    assert all(causes.is_new(cause) for cause in range(3))
    assert not causes.is_new(0)
    assert causes.is_new(3)
    assert causes.is_new(0)
