"""How long a connection is waited for: for a message, an answer, the peer's end, and what it does not take."""

from __future__ import annotations

from math import inf

import pytest

from pushd.http.deadlines import MIN_BODY_BYTES_PER_S, Deadline, Times
from pushd.http.parser import Phase

TIMES = Times(idle_s=70.0, body_s=10.0, answer_s=8.0, linger_s=1.0)
HEAD_S = 5.0


@pytest.fixture
def deadline() -> Deadline:
    """Of a connection that has until 5.0 for its first head."""
    return Deadline(TIMES, 5.0)


def strikes_at(deadline: Deadline, at: float) -> bool:
    return deadline.is_over(at) and not deadline.is_over(at - 0.001)


def test_silence_before_the_first_request_has_the_time_of_a_head(deadline: Deadline) -> None:
    deadline.await_message(Phase.IDLE, 0, HEAD_S, now=1.0)
    assert strikes_at(deadline, 5.0)
    deadline.answered()
    deadline.await_message(Phase.IDLE, 0, HEAD_S, now=1.0)
    assert strikes_at(deadline, 71.0)


def test_a_head_has_its_time_once(deadline: Deadline) -> None:
    for now in (2.0, 3.0, 4.0):
        deadline.await_message(Phase.HEAD, 0, HEAD_S, now)
        assert strikes_at(deadline, 7.0)


def test_a_body_has_more_time_the_more_of_it_has_come(deadline: Deadline) -> None:
    deadline.await_message(Phase.BODY, 0, HEAD_S, now=2.0)
    assert strikes_at(deadline, 12.0)
    deadline.await_message(Phase.BODY, 3 * MIN_BODY_BYTES_PER_S, HEAD_S, now=4.0)
    assert strikes_at(deadline, 15.0)
    deadline.answered()
    deadline.await_message(Phase.BODY, 0, HEAD_S, now=5.0)
    assert strikes_at(deadline, 15.0), "the next one has time of its own"


def test_an_answer_has_the_time_it_is_given(deadline: Deadline) -> None:
    deadline.await_answer(30.0)
    assert strikes_at(deadline, 30.0)
    deadline.await_answer(inf)
    assert not deadline.is_over(1e9)
    deadline.await_message(Phase.HEAD, 0, HEAD_S, now=40.0)
    assert strikes_at(deadline, 45.0)


def test_a_peer_may_send_on_for_the_time_of_a_body(deadline: Deadline) -> None:
    deadline.linger(20.0)
    assert strikes_at(deadline, 21.0)
    deadline.linger_on(20.5)
    assert strikes_at(deadline, 21.5)
    deadline.linger_on(29.5)
    assert strikes_at(deadline, 30.0)


def test_what_the_peer_does_not_take_has_its_time_from_when_it_is_noticed(deadline: Deadline) -> None:
    assert not deadline.is_unsent_too_long(0, now=1.0)
    assert not deadline.has_unsent
    assert not deadline.is_unsent_too_long(9, now=2.0)
    assert deadline.has_unsent
    assert not deadline.is_unsent_too_long(9, now=9.9)
    assert deadline.is_unsent_too_long(9, now=10.0)
    assert not deadline.is_unsent_too_long(0, now=11.0)
    assert not deadline.is_unsent_too_long(9, now=12.0)
    deadline.taken()
    assert not deadline.has_unsent
