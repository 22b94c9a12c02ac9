"""When a notice is delivered, and when it is settled: exactly once, in whatever order things get done."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pushd.errors import ErrorCode, RequestError, StoreUnavailable
from pushd.model import Target, TargetKind
from pushd.publication import NOBODY, Attempt, Publication
from pushd.waiters import Waiters
from tests.unit.parts import notice


class Told(Waiters):
    """Notes when they are released."""

    def __init__(self, events: list[str]) -> None:
        super().__init__()
        self.events = events

    def release(self, those: Iterable[asyncio.Future[None]] | None = None) -> None:
        self.events.append("delivered")
        super().release(those)


def watched() -> tuple[Publication, list[str]]:
    publication = Publication(notice(), accepted_at=5.0)
    events: list[str] = []
    publication.on_settled = lambda which: events.append("settled")
    publication.waiters = Told(events)
    return publication, events


def test_with_nothing_to_do_the_end_of_the_fan_out_settles() -> None:
    publication, events = watched()
    assert not publication.is_delivered
    publication.end_fan_out()
    assert events == ["delivered", "settled"]
    assert publication.is_delivered


def test_nobody_needs_to_listen() -> None:
    publication = Publication(notice(), accepted_at=5.0)
    publication.begin_save()
    publication.end_fan_out()
    publication.end_save()
    assert publication.is_delivered
    assert publication.holds == 0


def test_delivered_waits_for_saves_but_not_for_acknowledgements() -> None:
    publication, events = watched()
    publication.hold(2)
    publication.begin_save()
    publication.end_fan_out()
    assert events == []
    publication.end_save()
    assert events == ["delivered"]
    publication.release()
    assert events == ["delivered"]
    publication.release()
    assert events == ["delivered", "settled"]


def test_what_goes_back_to_the_mailbox_later_is_not_delivered_a_second_time() -> None:
    publication, events = watched()
    publication.hold()
    publication.end_fan_out()
    publication.begin_save()
    publication.release()
    publication.end_save()
    assert events == ["delivered", "settled"]


def test_counts() -> None:
    publication, _ = watched()
    publication.online_count, publication.offline_count = 3, 4
    assert publication.total_count == 7
    assert publication.early_received is NOBODY
    assert not NOBODY


def test_an_accepted_notice_carries_no_more_than_it_must() -> None:
    publication, _ = watched()
    with pytest.raises(AttributeError):
        publication.__dict__  # noqa: B018 - there must not be one


STEPS = st.lists(st.tuples(st.sampled_from(["hold", "save", "end"]), st.integers(0, 10)), max_size=30)


@given(STEPS, st.integers(0, 10))
def test_any_order_settles_exactly_once_and_last(steps: list[tuple[str, int]], last: int) -> None:
    publication, events = watched()
    ends = {"fan-out": publication.end_fan_out, "save": publication.end_save, "hold": publication.release}
    begun = ["fan-out"]
    for step, index in [*steps, *[("end", last)] * 31]:
        if not begun:  # new work begins only while something still holds the notice
            break
        assert "settled" not in events
        if step == "end":
            ends[begun.pop(index % len(begun))]()
        else:
            {"hold": publication.hold, "save": publication.begin_save}[step]()
            begun.append(step)
    assert sorted(events) == ["delivered", "settled"]
    assert events[-1] == "settled"
    assert publication.is_delivered


# ---- who waits, and what is said


async def test_ten_thousand_wait_for_a_delivery_and_who_gives_up_leaves_nothing_behind() -> None:
    publication = Publication(notice(), accepted_at=5.0)
    for _ in range(100):
        await publication.delivered(0)
    assert publication.waiters is not None
    assert len(publication.waiters) == 0
    waiting = [asyncio.create_task(publication.delivered(60)) for _ in range(10_000)]
    await asyncio.sleep(0)
    assert len(publication.waiters) == 10_000
    publication.end_fan_out()
    await asyncio.gather(*waiting)
    assert publication.waiters is None
    await publication.delivered(60)  # at once


async def test_an_attempt_that_is_settled_keeps_what_is_said_and_not_what_weighs() -> None:
    decided = asyncio.get_running_loop().create_future()
    target = Target(TargetKind.CUSTOM, user_ids=tuple(range(1, 10_001)))
    publication = Publication(notice(content="c", data=["x"] * 1000, target=target), accepted_at=5.0)
    attempt = Attempt(publication, ["id:m1"], decided)
    repeat = Attempt(None, [], decided, is_duplicate=True, first=attempt)
    publication.online_count, publication.offline_count = 3, 4
    publication.end_fan_out()
    before = repeat.answer
    attempt.settled()
    assert attempt.publication is None
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
    attempt = Attempt(Publication(notice(), accepted_at=5.0), [], decided)
    with pytest.raises(asyncio.InvalidStateError):
        attempt.check()
    decided.set_result(None)
    attempt.check()
    attempt.failure = StoreUnavailable("journal", "locked")
    with pytest.raises(RequestError) as caught:
        attempt.check()
    assert caught.value.code is ErrorCode.STORE_UNAVAILABLE
