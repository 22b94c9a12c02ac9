"""The table of states agrees with itself."""

from __future__ import annotations

from pushd.http import states
from pushd.http.states import State


def test_each_state_is_drawn() -> None:
    assert states.__doc__ is not None
    assert [state.name for state in State if state.name not in states.__doc__] == []


def test_nothing_is_in_work_when_it_is_over() -> None:
    assert not any(state.is_over and (state.is_at_work or state.is_admitting) for state in State)
    assert all(state.is_at_work for state in State if state.is_admitting)
    assert not any(state.has_to_queue and state.is_at_work for state in State)
