"""When a notice is delivered, and when it is settled: exactly once, in whatever order things get done."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pushd.errors import ErrorCode, RequestError, StoreUnavailable
from pushd.in_flight import Attempt, InFlight
from pushd.model import Target, TargetKind
from pushd.waiters import Waiters
from tests.unit.parts import notice


class Told(Waiters):
    """Notes when they are resolved."""

    def __init__(self, events: list[str]) -> None:
        super().__init__()
        self.events = events

    def resolve(self, those: Iterable[asyncio.Future[None]] | None = None) -> None:
        self.events.append("delivered")
        super().resolve(those)


def watched() -> tuple[InFlight, list[str]]:
    events: list[str] = []
    flight = InFlight(notice(), accepted_at=5.0, on_settled=lambda which: events.append("settled"))
    flight.waiters = Told(events)
    return flight, events


def test_with_nothing_to_do_the_end_of_the_fan_out_settles() -> None:
    flight, events = watched()
    assert not flight.is_delivered
    flight.end_fan_out()
    assert events == ["delivered", "settled"]
    assert flight.is_delivered


def test_nobody_needs_to_listen() -> None:
    flight = InFlight(notice(), accepted_at=5.0)
    flight.add_save()
    flight.end_fan_out()
    flight.end_save()
    assert flight.is_delivered


def test_delivered_waits_for_saves_but_not_for_acknowledgements() -> None:
    flight, events = watched()
    flight.add_work(2)
    flight.add_save()
    flight.end_fan_out()
    assert events == []
    flight.end_save()
    assert events == ["delivered"]
    flight.end_work()
    assert events == ["delivered"]
    flight.end_work()
    assert events == ["delivered", "settled"]


def test_what_goes_back_to_the_mailbox_later_is_not_delivered_a_second_time() -> None:
    flight, events = watched()
    flight.add_work()
    flight.end_fan_out()
    flight.add_save()
    flight.end_work()
    flight.end_save()
    assert events == ["delivered", "settled"]


def test_counts() -> None:
    flight, events = watched()
    early: set[int] = set()
    flight.note_sending(5, early)
    assert (flight.left_before, flight.early_received) == (5, early)
    flight.note_received_before(1)
    flight.note_sent(online=7, received=4, waiting=2)  # and one who has left
    flight.note_all_sent()
    flight.note_absent(3)
    assert (flight.total_count, flight.online_count, flight.offline_count, flight.delivered_count) == (11, 8, 3, 5)
    assert flight.early_received is None
    flight.end_fan_out()
    flight.note_answers(1, received=1)
    assert (flight.waiting, events) == (1, ["delivered"])
    flight.note_answers(1, received=0)
    assert (flight.waiting, flight.delivered_count, events) == (0, 6, ["delivered", "settled"])


async def test_what_was_delivered_before_is_not_waited_for() -> None:
    flight = InFlight(notice(), accepted_at=5.0, is_restored=True, saves=0)
    assert flight.is_delivered
    await flight.delivered(60)  # at once


def test_an_accepted_notice_carries_no_more_than_it_must() -> None:
    flight, _ = watched()
    with pytest.raises(AttributeError):
        flight.__dict__  # noqa: B018 - there must not be one


STEPS = st.lists(st.tuples(st.sampled_from(["work", "save", "end"]), st.integers(0, 10)), max_size=30)


@given(STEPS, st.integers(0, 10))
def test_any_order_settles_exactly_once_and_last(steps: list[tuple[str, int]], last: int) -> None:
    flight, events = watched()
    ends = {"fan-out": flight.end_fan_out, "save": flight.end_save, "work": flight.end_work}
    begun = ["fan-out"]
    for step, index in [*steps, *[("end", last)] * 31]:
        if not begun:  # work is added only while some is left
            break
        assert "settled" not in events
        if step == "end":
            ends[begun.pop(index % len(begun))]()
        else:
            {"work": flight.add_work, "save": flight.add_save}[step]()
            begun.append(step)
    assert sorted(events) == ["delivered", "settled"]
    assert events[-1] == "settled"
    assert flight.is_delivered


# ---- who waits, and what is said


async def test_ten_thousand_wait_for_a_delivery_and_who_gives_up_leaves_nothing_behind() -> None:
    flight = InFlight(notice(), accepted_at=5.0)
    for _ in range(100):
        await flight.delivered(0)
    assert flight.waiters is not None
    assert len(flight.waiters) == 0
    waiting = [asyncio.create_task(flight.delivered(60)) for _ in range(10_000)]
    await asyncio.sleep(0)
    assert len(flight.waiters) == 10_000
    flight.end_fan_out()
    await asyncio.gather(*waiting)
    assert flight.waiters is None
    await flight.delivered(60)  # at once


async def test_an_attempt_that_is_settled_keeps_what_is_said_and_not_what_weighs() -> None:
    decided = asyncio.get_running_loop().create_future()
    target = Target(TargetKind.CUSTOM, user_ids=tuple(range(1, 10_001)))
    flight = InFlight(notice(content="c", data=["x"] * 1000, target=target), accepted_at=5.0)
    attempt = Attempt(flight, ["id:m1"], decided)
    repeat = Attempt(None, [], decided, is_duplicate=True, first=attempt)
    flight.note_sent(3, 3, 0)
    flight.note_absent(4)
    flight.end_fan_out()
    before = repeat.answer
    attempt.settled()
    assert attempt.flight is None
    assert repeat.answer == attempt.answer == before
    assert (before.content, before.recipients, before.is_delivered, before.offline_count) == (
        "c",
        "10000_users",
        True,
        4,
    )
    await repeat.delivered(60)  # at once


async def test_an_attempt_that_was_not_kept_says_so() -> None:
    decided = asyncio.get_running_loop().create_future()
    attempt = Attempt(InFlight(notice(), accepted_at=5.0), [], decided)
    with pytest.raises(asyncio.InvalidStateError):
        attempt.result()
    decided.set_result(None)
    assert attempt.result() is await attempt is attempt
    attempt.failure = StoreUnavailable("journal", "locked")
    with pytest.raises(RequestError) as caught:
        attempt.result()
    assert caught.value.code is ErrorCode.STORE_UNAVAILABLE
