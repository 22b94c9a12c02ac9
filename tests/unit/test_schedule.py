"""What is scheduled goes out when the time of day says so, once, and not when it was cancelled before."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pushd.delivery.edits import Edit
from pushd.delivery.schedule import put_off
from pushd.delivery.submission import MOST_DELAY_S, Sender, Submission, due_ms
from pushd.errors import ErrorCode, RequestError, StoreError, StoreUnavailable
from pushd.in_flight import Attempt
from pushd.model import Notice
from pushd.ports import Due, Stores
from pushd.records import Part, PushFilter, PushSort
from pushd.stores.sqlite import open_stores
from tests.conftest import MakeConfig
from tests.daemon import until
from tests.unit.parts import START_MS, Clock, House, with_store

Build = Callable[..., House]
decode = msgspec.json.Decoder(Submission).decode
SENDER = Sender(7, "ada")
ALL = Part(offset=0, limit=100)


async def accept(house: House, message_id: str = "m", key: str = "", **fields: Any) -> Attempt:
    """To users 1, an hour from now unless something else is said."""
    if "send_at" not in fields:
        fields.setdefault("delay_s", 3600)
    if message_id:
        fields["message_id"] = message_id
    given = {"content": f"content of {message_id}", "target": "custom", "user_ids": [1]} | fields
    return await house.intake.accept(decode(msgspec.json.encode(given)), SENDER, key)


async def refused(house: House, **fields: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        await accept(house, **fields)
    return caught.value


def count(house: House, result: str, target: str = "custom") -> float:
    value = house.metrics.registry.get_sample_value(
        "pushd_notices_total", {"target": target, "priority": "normal", "result": result}
    )
    return value or 0


async def states(house: House) -> dict[str, str]:
    await house.writers.records_written()
    rows = await house.stores.records.push_records(PushFilter(), PushSort.PUSH_TIME, ALL)
    return {row.message_id: row.state for row in rows}


class SlowlyDue:
    """A schedule of which it takes until `gate` is set to hear what is due."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.gate = asyncio.Event()
        self.is_asked = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def due(self, before_ms: int, limit: int) -> Due:
        found: Due = await self._store.due(before_ms, limit)
        self.is_asked.set()
        await self.gate.wait()
        return found


# ---- in


@pytest.mark.parametrize(
    ("fields", "in_ms"),
    [
        ({"delay_s": 0.5}, 500),
        ({"delay_s": MOST_DELAY_S}, MOST_DELAY_S * 1000),
        ({"send_at": START_MS + 1}, 1),
        ({"send_at": "2023-11-14T22:13:21Z"}, 1000),
        ({"send_at": "2023-11-15T06:13:20.250+08:00"}, 250),
        ({"send_at": "2023-11-14T22:14+00:00"}, 40_000),
    ],
)
async def test_when_it_goes_out_may_be_said_in_several_ways(house: House, fields: dict[str, Any], in_ms: int) -> None:
    attempt = await accept(house, expires_in_s=2, **fields)
    assert (attempt.answer.status, attempt.answer.accepted_ms) == ("scheduled", START_MS + in_ms)
    found = await house.schedule.find("m")
    assert found is not None
    assert (found.notice.content, found.notice.sender_id, found.notice.accepted_ms) == (
        "content of m", 7, START_MS + in_ms,
    )  # fmt: skip
    assert (found.notice.seq, found.notice.submitted_ms, found.notice.send_at_ms) == (0, START_MS, START_MS + in_ms)
    assert found.notice.expires_ms == START_MS + in_ms + 2000


@pytest.mark.parametrize(
    ("send_at", "delay_s", "text"),
    [
        (START_MS, None, "send_at: found a time that was 0.000 s ago, expected one to come"),
        (START_MS - 1500, None, "send_at: found a time that was 1.500 s ago, expected one to come"),
        ("2001-01-01T00:00:00Z", None, "expected one to come"),
        ("2023-11-14 22:13:21", None, "send_at: found '2023-11-14 22:13:21', expected ISO 8601 with an offset"),
        ("2023-11-15", None, "expected ISO 8601 with an offset"),
        ("2023-11-15T24:00:00Z", None, "expected ISO 8601 with an offset"),
        ("2023-02-30T00:00:00Z", None, "expected ISO 8601 with an offset"),
        ("tomorrow", None, "or milliseconds since the epoch"),
        ("\ud800", None, "send_at: found '\\ud800', expected"),
        (START_MS + MOST_DELAY_S * 1000 + 1, None, "send_at: found a time in 365 days, expected at most 365 days"),
        (2**62, None, "expected at most 365 days"),
        (START_MS + 1, 5.0, "delay_s: found together with send_at, expected one of them"),
    ],
)
def test_times_that_cannot_be_are_refused(send_at: int | str | None, delay_s: float | None, text: str) -> None:
    with pytest.raises(RequestError) as caught:
        due_ms(send_at, delay_s, START_MS)
    assert caught.value.code is ErrorCode.INVALID_REQUEST
    assert text in caught.value.text
    assert caught.value.details == {"field": caught.value.text.partition(":")[0]}


@pytest.mark.parametrize(
    "fields", [{"delay_s": 0}, {"delay_s": -1}, {"delay_s": MOST_DELAY_S + 1}, {"send_at": True}, {"send_at": 1.5}]
)
def test_what_is_no_time_is_refused_by_its_form(fields: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError, match=r"\$\.(send_at|delay_s)"):
        msgspec.json.decode(msgspec.json.encode({"content": "x"} | fields), type=Submission)


async def test_what_is_scheduled_takes_no_place_in_the_lanes_and_no_number(house: House) -> None:
    await accept(house)
    assert len(house.lanes) == 0
    assert await house.stores.journal.last_seq() == 0
    assert house.schedule.count == 1
    assert count(house, "scheduled") == 1
    assert count(house, "accepted") == 0


async def test_what_is_scheduled_in_one_turn_shares_a_put(make_house: Build, frail: Any) -> None:
    house = make_house(stores=frail)
    await asyncio.gather(*(accept(house, f"m{number}") for number in range(50)))
    assert frail.schedule.calls.count("put") == 1
    assert house.schedule.count == 50


async def test_a_full_disk_keeps_nothing_and_the_same_can_be_tried_again(make_house: Build, frail: Any) -> None:
    house = make_house(stores=frail)
    frail.schedule.fail("put")
    assert (await refused(house)).code is ErrorCode.STORE_UNAVAILABLE
    assert house.schedule.count == 0
    assert count(house, "store_unavailable") == 1
    assert not (await accept(house)).is_duplicate


async def test_one_bad_notice_harms_no_other(make_house: Build, frail: Any) -> None:
    house = make_house(stores=frail)
    frail.schedule.fail("put", times=2, error=StoreError("schedule", "never"))
    results = await asyncio.gather(*(accept(house, f"m{number}") for number in range(3)), return_exceptions=True)
    assert [isinstance(result, RequestError) for result in results] == [True, False, False]
    assert house.schedule.count == 2


async def test_data_on_its_way_into_the_schedule_is_bounded(house: House) -> None:
    house.intake.data_most_bytes = 100
    error = await refused(house, data="x" * 100)
    assert error.code is ErrorCode.QUEUE_FULL
    for number in range(10):  # what is in the schedule does not count
        await accept(house, f"m{number}", data="x" * 90)


async def test_nothing_is_scheduled_while_the_node_drains(house: House) -> None:
    house.intake.is_draining = True
    assert (await refused(house)).code is ErrorCode.DRAINING


# ---- out


async def test_it_goes_out_when_it_is_due_and_not_before(house: House, clock: Clock) -> None:
    client = house.connect(1, is_acking=True)
    await accept(house, delay_s=10, expires_in_s=60)
    clock.move(9.999)
    await house.schedule.send_due()
    assert client.notices == []
    assert await states(house) == {"m": "scheduled"}
    clock.move(0.001)
    await house.schedule.send_due()
    await until(lambda: client.ids == ["m"])
    assert client.messages[-1]["ts"] == START_MS + 10_000
    assert house.schedule.count == 0
    assert await house.stores.schedule.find("m") is None
    assert (count(house, "scheduled"), count(house, "accepted")) == (1, 1)
    row = await house.stores.records.push_record("m")
    assert row is not None
    assert (row.state, row.push_ms, row.send_at_ms, row.created_ms) == (
        "sent", START_MS + 10_000, START_MS + 10_000, START_MS,
    )  # fmt: skip
    assert row.expires_ms == START_MS + 70_000
    client.ack("m")
    await house.quiet()
    assert house.ids_settled == ["m"]


async def test_its_recipients_are_those_of_the_time_when_it_is_due(house: House, clock: Clock) -> None:
    await accept(house, target="online", user_ids=[])
    client = house.connect(5)
    clock.move(3600)
    await house.schedule.send_due()
    await until(lambda: client.ids == ["m"])


async def test_the_same_order_as_they_fall_due_and_of_one_moment_as_they_were_accepted(
    house: House, clock: Clock
) -> None:
    client = house.connect(1)
    for message_id, delay_s in (("c", 3), ("a", 1), ("b2", 2), ("b1", 2)):
        await accept(house, message_id, delay_s=delay_s)
    clock.move(60)
    await house.schedule.send_due()
    await until(lambda: client.ids == ["a", "b2", "b1", "c"])
    assert [row.seq for row in await house.stores.journal.since(0)] == [1, 2, 3, 4]


async def test_an_absent_recipient_finds_it_in_the_mailbox(house: House, clock: Clock) -> None:
    await accept(house)
    clock.move(3601)
    await house.schedule.send_due()
    await house.quiet()
    assert await house.mailbox(1) == ["m"]


async def test_it_expires_like_any_other_when_nobody_was_there_in_time(house: House, clock: Clock) -> None:
    await accept(house, delay_s=10, expires_in_s=5)
    clock.move(20)  # the daemon was away
    await house.schedule.send_due()
    await house.quiet()
    row = await house.stores.records.push_record("m")
    assert row is not None
    assert row.status == "expired"


async def test_one_timer_wakes_for_what_is_due_next(make_house: Build, clock: Clock, stores: Stores) -> None:
    house = make_house()
    house.start_all()
    client = house.connect(1)
    house.start(house.schedule.run())
    await accept(house, "late", delay_s=3600)
    await accept(house, "early", delay_s=10)
    clock.move(10)
    await until(lambda: client.ids == ["early"])
    clock.move(3590)
    await until(lambda: client.ids == ["early", "late"])


async def test_a_clock_that_is_put_back_delays_it_and_one_put_forward_hastens_it(
    make_house: Build, clock: Clock
) -> None:
    house = make_house()
    house.start_all()
    client = house.connect(1)
    house.start(house.schedule.run())
    await accept(house, "m", delay_s=10)
    clock.move(-3600)
    await house.schedule.send_due()
    clock.move(3609)
    await house.schedule.send_due()
    assert client.ids == []
    clock.move(86_400)  # nobody tells the timer
    await until(lambda: client.ids == ["m"])


async def test_nothing_goes_out_while_the_node_drains(house: House, clock: Clock) -> None:
    await accept(house)
    clock.move(3601)
    house.schedule.is_draining = True
    await house.schedule.send_due()
    assert await states(house) == {"m": "scheduled"}


async def test_a_backlog_leaves_publishers_their_places(make_house: Build, clock: Clock) -> None:
    house = make_house(delivery={"queue_size": 100})  # nobody takes notices out of the lanes
    for number in range(200):
        await accept(house, f"m{number}")
    clock.move(3601)
    sending = asyncio.ensure_future(house.schedule.send_due())
    await until(lambda: len(house.lanes) >= 25)
    assert len(house.lanes) < 75
    await house.publish()  # there is room
    house.start_all()
    await sending
    await house.quiet()
    assert house.schedule.count == 0
    assert len(await house.stores.journal.since(0)) == 201


async def test_a_backlog_waits_for_what_weighs_much(make_house: Build, clock: Clock) -> None:
    house = make_house()
    house.intake.data_most_bytes = 1000
    await accept(house, "heavy", data={"text": "x" * 600})
    await accept(house, "next", delay_s=3601)
    clock.move(3600)
    await house.schedule.send_due()
    assert len(house.lanes) == 1
    clock.move(1)
    looks: list[bool] = []
    has_room = house.schedule.has_room
    house.schedule.has_room = lambda: looks.append(has_room()) or looks[-1]  # type: ignore[func-returns-value]
    sending = asyncio.ensure_future(house.schedule.send_due())
    await until(lambda: len(looks) > 2)
    assert len(house.lanes) == 1
    house.start_all()
    await sending
    await house.quiet()
    assert sorted(await house.mailbox(1)) == ["heavy", "next"]
    assert house.intake._data_bytes == 0


async def test_what_the_journal_cannot_keep_now_stays_scheduled(make_house: Build, frail: Any, clock: Clock) -> None:
    house = make_house(stores=frail)
    house.start_all()
    await accept(house)
    clock.move(3601)
    frail.journal.fail("append")
    with pytest.raises(StoreUnavailable):
        await house.schedule.send_due()
    assert (house.schedule.count, len(house.lanes)) == (1, 0)
    assert (await accept(house)).is_duplicate
    house.start(house.schedule.run())
    await until(lambda: house.schedule.count == 0)
    await house.quiet()
    assert await house.mailbox(1) == ["m"]


async def test_who_repeats_it_while_it_cannot_be_journalled_is_told_so(
    make_house: Build, frail: Any, clock: Clock
) -> None:
    house = make_house(stores=frail)
    await accept(house)
    clock.move(3601)
    gate = frail.journal.pause("append")
    frail.journal.fail("append")
    sending = asyncio.ensure_future(house.schedule.send_due())
    await until(lambda: "append" in frail.journal.calls)
    repeat = asyncio.ensure_future(accept(house))
    await asyncio.sleep(0)
    gate.set()
    with pytest.raises(RequestError) as caught:
        await repeat
    assert caught.value.code is ErrorCode.STORE_UNAVAILABLE
    with pytest.raises(StoreUnavailable):
        await sending
    assert house.schedule.count == 1


async def test_what_the_journal_never_keeps_is_set_aside(make_house: Build, frail: Any, clock: Clock) -> None:
    house = make_house(stores=frail)
    house.start_all()
    await accept(house, "bad")
    await accept(house, "good")
    clock.move(3601)
    frail.journal.fail("append", times=2, error=StoreError("journal", "never"))
    await house.schedule.send_due()
    await house.quiet()
    assert await house.mailbox(1) == ["good"]
    assert (house.schedule.count, house.set_aside.total) == (0, 1)
    assert await house.schedule.find("bad") is None


async def test_a_row_that_cannot_be_decoded_is_set_aside_and_the_others_go_out(house: House, clock: Clock) -> None:
    for message_id in ("bad", "other", "good"):
        await accept(house, message_id)
    thread = house.stores.schedule._thread  # type: ignore[attr-defined]
    for change in ("body = '{' WHERE message_id = 'bad'", "message_id = x'ff00' WHERE message_id = 'other'"):
        statement = f"UPDATE scheduled SET {change}"
        await thread.submit("test", "spoil", lambda db, statement=statement: db.execute(statement))
    clock.move(3601)
    await house.schedule.send_due()
    await house.quiet()
    assert await house.mailbox(1) == ["good"]
    assert (house.schedule.count, house.set_aside.total) == (0, 2)
    assert await house.stores.schedule.count() == 0


async def test_what_cannot_be_set_aside_is_tried_again(make_house: Build, frail: Any, clock: Clock) -> None:
    house = make_house(stores=frail)
    house.start_all()
    await accept(house)
    thread = house.stores.schedule._thread  # type: ignore[attr-defined]
    await thread.submit("test", "spoil", lambda db: db.execute("UPDATE scheduled SET body = '{'"))
    frail.set_aside.fail("keep", error=ValueError("odd"))
    clock.move(3601)
    await house.schedule.send_due()
    assert house.schedule.count == 1
    clock.move(1)
    await house.schedule.send_due()
    assert (house.schedule.count, house.set_aside.total) == (0, 1)


async def test_a_failure_that_nobody_foresaw_does_not_end_the_timer(
    make_house: Build, frail: Any, clock: Clock
) -> None:
    house = make_house(stores=frail)
    house.start_all()
    house.start(house.schedule.run())
    await accept(house)
    frail.schedule.fail("due", error=ValueError("odd"))
    clock.move(3601)
    await until(lambda: house.schedule.count == 0)


# ---- repeats


async def test_a_repeat_is_answered_with_the_first_and_sends_nothing(house: House, clock: Clock) -> None:
    first = await accept(house, key="key-1")
    clock.move(400)  # longer than the window
    for repeat in (
        await accept(house, content="another"),
        await accept(house, "other", key="key-1"),
        await accept(house, content="now", delay_s=None),
    ):
        assert repeat.is_duplicate
        assert repeat.answer == first.answer
    assert house.schedule.count == 1
    assert house.metrics.registry.get_sample_value("pushd_dedup_hits_total") == 3
    assert await house.schedule.find("other") is None


async def test_repeats_that_come_before_it_is_on_disk_wait_for_it(make_house: Build, frail: Any) -> None:
    house = make_house(stores=frail)
    gate = frail.schedule.pause("put")
    attempts = [asyncio.ensure_future(accept(house)) for _ in range(3)]
    await until(lambda: "put" in frail.schedule.calls)
    assert not any(attempt.done() for attempt in attempts)
    gate.set()
    assert [(await attempt).is_duplicate for attempt in attempts] == [False, True, True]
    assert house.schedule.count == 1


async def test_when_the_first_fails_a_repeat_is_an_attempt_of_its_own(make_house: Build, frail: Any) -> None:
    house = make_house(stores=frail)
    frail.schedule.fail("put")
    first, second = await asyncio.gather(accept(house), accept(house), return_exceptions=True)
    assert isinstance(first, RequestError)
    assert isinstance(second, Attempt)
    assert not second.is_duplicate
    assert house.schedule.count == 1


async def test_who_asks_again_after_it_went_out_is_not_told_that_its_time_is_past(house: House, clock: Clock) -> None:
    at = {"send_at": START_MS + 10_000, "delay_s": None}
    await accept(house, **at)
    for _ in range(2):
        clock.move(10)
        await house.schedule.send_due()
        repeat = await accept(house, **at)
        assert (repeat.is_duplicate, repeat.answer.status) == (True, "accepted")
    await accept(house, "n", send_at=START_MS + 30_000)
    await house.schedule.cancel("n")
    clock.move(60)
    assert (await accept(house, "n", send_at=START_MS + 30_000)).answer.status == "cancelled"
    assert "expected one to come" in (await refused(house, message_id="o", send_at=START_MS + 30_000)).text


async def test_its_id_is_taken_until_the_window_has_passed_after_it_went_out(house: House, clock: Clock) -> None:
    await accept(house, key="key-1")
    clock.move(3600)
    await house.schedule.send_due()
    clock.move(299)
    assert (await accept(house, delay_s=None)).answer.status == "accepted"
    assert (await accept(house, "other", "key-1")).is_duplicate
    clock.move(2)
    assert not (await accept(house, delay_s=5)).is_duplicate


async def test_the_schedule_is_asked_for_a_repeat_and_the_store_fails(make_house: Build, frail: Any) -> None:
    house = make_house(stores=frail)
    await accept(house)
    frail.schedule.fail("find")
    assert (await refused(house)).code is ErrorCode.STORE_UNAVAILABLE
    assert (await accept(house)).is_duplicate


async def test_repeats_that_ask_while_it_is_deleted_become_one_notice(make_house: Build, frail: Any) -> None:
    house = make_house(stores=frail)
    await accept(house)
    gate = frail.schedule.pause("find")
    repeats = [asyncio.ensure_future(accept(house)) for _ in range(3)]
    await asyncio.sleep(0)
    await frail.schedule.drop(["m"])
    gate.set()
    assert sorted([(await repeat).is_duplicate for repeat in repeats]) == [False, True, True]


# ---- cancelled and changed


async def test_what_is_cancelled_never_goes_out(house: House, clock: Clock) -> None:
    client = house.connect(1)
    await accept(house)
    assert await house.schedule.cancel("m")
    assert await house.schedule.cancel("m")  # as often as one likes
    assert (house.schedule.count, count(house, "cancelled")) == (0, 1)
    clock.move(3601)
    await house.schedule.send_due()
    await house.quiet()
    assert client.ids == []
    assert await states(house) == {"m": "cancelled"}


async def test_two_who_cancel_at_once_both_hear_of_it(house: House) -> None:
    await accept(house)
    assert await asyncio.gather(*(house.schedule.cancel("m") for _ in range(5))) == [True] * 5
    assert count(house, "cancelled") == 1


async def test_what_was_never_scheduled_cannot_be_cancelled(house: House, clock: Clock) -> None:
    assert not await house.schedule.cancel("m")
    await accept(house)
    assert not await house.schedule.cancel("n")
    clock.move(3601)
    await house.schedule.send_due()
    assert not await house.schedule.cancel("m")


async def test_publishing_the_id_of_a_cancelled_one_sends_nothing(house: House, clock: Clock) -> None:
    await accept(house, key="key-1")
    await house.schedule.cancel("m")
    clock.move(10_000)
    for repeat in (await accept(house, delay_s=None), await accept(house, "other", key="key-1")):
        assert repeat.is_duplicate
        assert repeat.answer.status == "cancelled"
    assert len(house.lanes) == 0
    await house.schedule.drop("m")
    assert not (await accept(house, delay_s=None)).is_duplicate


async def test_a_cancellation_that_cannot_be_written_changes_nothing(
    make_house: Build, frail: Any, clock: Clock
) -> None:
    house = make_house(stores=frail)
    house.start_all()
    await accept(house)
    frail.schedule.fail("cancel")
    with pytest.raises(StoreUnavailable):
        await house.schedule.cancel("m")
    assert house.schedule.count == 1
    clock.move(3601)
    await house.schedule.send_due()
    await house.quiet()
    assert await house.mailbox(1) == ["m"]


async def test_a_cancellation_that_came_first_wins_over_the_due_second(
    make_house: Build, frail: Any, clock: Clock
) -> None:
    house = make_house(stores=frail)
    house.start_all()
    await accept(house, "m")
    await accept(house, "n")
    clock.move(3601)
    gate = frail.schedule.pause("cancel")
    cancelling = asyncio.ensure_future(house.schedule.cancel("m"))
    await until(lambda: "cancel" in frail.schedule.calls)
    sending = asyncio.ensure_future(house.schedule.send_due())
    await until(lambda: house.schedule.count == 1)  # the other one does not wait for it
    gate.set()
    assert await cancelling
    await sending
    await house.quiet()
    assert await house.mailbox(1) == ["n"]


async def test_a_cancellation_that_came_second_finds_it_gone(make_house: Build, frail: Any, clock: Clock) -> None:
    house = make_house(stores=frail)
    house.start_all()
    await accept(house)
    clock.move(3601)
    gate = frail.journal.pause("append")
    sending = asyncio.ensure_future(house.schedule.send_due())
    await until(lambda: "append" in frail.journal.calls)
    cancelling = asyncio.ensure_future(house.schedule.cancel("m"))
    await asyncio.sleep(0)
    gate.set()
    assert not await cancelling
    await sending
    assert count(house, "cancelled") == 0


async def test_it_is_cancelled_if_the_journal_could_not_keep_it_meanwhile(
    make_house: Build, frail: Any, clock: Clock
) -> None:
    house = make_house(stores=frail)
    await accept(house)
    clock.move(3601)
    gate = frail.journal.pause("append")
    frail.journal.fail("append")
    sending = asyncio.ensure_future(house.schedule.send_due())
    await until(lambda: "append" in frail.journal.calls)
    cancelling = asyncio.ensure_future(house.schedule.cancel("m"))
    gate.set()
    assert await cancelling
    with pytest.raises(StoreUnavailable):
        await sending
    await house.schedule.send_due()
    assert len(house.lanes) == 0


async def test_a_caller_who_leaves_does_not_stop_what_he_asked_for(make_house: Build, frail: Any) -> None:
    house = make_house(stores=frail)
    await accept(house)
    gate = frail.schedule.pause("cancel")
    caller = asyncio.ensure_future(house.schedule.cancel("m"))
    await until(lambda: "cancel" in frail.schedule.calls)
    caller.cancel()
    gate.set()
    await house.schedule.finished()
    assert house.schedule.count == 0
    assert count(house, "cancelled") == 1


async def test_it_is_put_off_and_says_something_else(house: House, clock: Clock) -> None:
    client = house.connect(1)
    await accept(house, delay_s=10, expires_in_s=60)

    def change(old: Notice) -> Notice:
        return msgspec.structs.replace(put_off(old, START_MS + 20_000), content="newer", version=2)

    changed = await house.schedule.change("m", change)
    assert changed is not None
    assert changed.expires_ms == START_MS + 80_000
    clock.move(10)
    await house.schedule.send_due()
    assert client.ids == []
    clock.move(10)
    await house.schedule.send_due()
    await until(lambda: client.notices == ["newer"])


async def test_it_is_brought_forward(make_house: Build, clock: Clock) -> None:
    house = make_house()
    house.start_all()
    house.start(house.schedule.run())
    client = house.connect(1)
    await accept(house, "a", delay_s=10)
    await accept(house, "b", delay_s=3600)
    assert await house.schedule.change("b", lambda old: put_off(old, START_MS + 1000)) is not None
    clock.move(1)
    await until(lambda: client.ids == ["b"])


async def test_only_what_is_still_scheduled_can_be_changed(house: House, clock: Clock) -> None:
    assert await house.schedule.change("m", lambda old: old) is None
    await accept(house, "m")
    await accept(house, "n")
    await house.schedule.cancel("n")
    with pytest.raises(RequestError) as caught:
        await house.schedule.change("n", lambda old: old)
    assert caught.value.code is ErrorCode.CONFLICT
    clock.move(3601)
    await house.schedule.send_due()
    assert await house.schedule.change("m", lambda old: old) is None


async def test_two_changes_come_one_after_the_other(house: House) -> None:
    await accept(house)

    def add(old: Notice) -> Notice:
        return msgspec.structs.replace(old, version=old.version + 1)

    await asyncio.gather(*(house.schedule.change("m", add) for _ in range(10)))
    found = await house.schedule.find("m")
    assert found is not None
    assert found.notice.version == 11


async def test_what_is_dropped_frees_its_id(house: House) -> None:
    await accept(house, key="key-1")
    await house.schedule.cancel("m")
    assert await house.schedule.drop("m")
    assert not await house.schedule.drop("m")
    assert not house.schedule.may_have(["id:m", "key:key-1"])
    assert house.schedule.count == 0


# ---- after a restart


async def restarted(make_house: Build) -> House:
    """Another process over the same stores: as `core.read_past` and `Core.restore` do it."""
    house = make_house()
    last_seq = await house.stores.journal.last_seq()
    house = make_house(last_seq=last_seq)
    house.schedule.take_up(await house.stores.schedule.keys(), await house.stores.schedule.count())
    house.start_all()
    return house


async def test_a_restart_knows_what_is_scheduled_and_what_was_cancelled(make_house: Build, clock: Clock) -> None:
    house = make_house()
    await accept(house, "m", key="key-1")
    await accept(house, "n")
    await house.schedule.cancel("n")
    house = await restarted(make_house)
    assert house.schedule.count == 1
    assert (await accept(house, "m")).answer.status == "scheduled"
    assert (await accept(house, "x", key="key-1")).answer.message_id == "m"
    assert (await accept(house, "n")).answer.status == "cancelled"
    clock.move(3601)
    await house.schedule.send_due()
    await house.quiet()
    assert await house.mailbox(1) == ["m"]


async def test_what_fell_due_meanwhile_goes_out_at_the_start(make_house: Build, clock: Clock) -> None:
    house = make_house()
    await accept(house)
    clock.move(86_400)
    house = await restarted(make_house)
    house.start(house.schedule.run())
    await until(lambda: house.schedule.count == 0)
    await house.quiet()
    assert await house.mailbox(1) == ["m"]
    row = await house.stores.records.push_record("m")
    assert row is not None
    assert (row.push_ms, row.send_at_ms) == (START_MS + 86_400_000, START_MS + 3_600_000)


# ---- a store outside that has the records


class Outside:
    """The half of ports.RecordStore that is needed here: what was written, last."""

    def __init__(self) -> None:
        self.written: dict[str, tuple[str, str]] = {}

    async def write(self, records: Any, receipts: Any) -> None:
        self.written.update((one.notice.message_id, (one.status, one.notice.content)) for one in records)


async def unrecorded(stores: Stores) -> list[str]:
    return [one.notice.message_id for one in await stores.schedule.unrecorded("", 100)]


@pytest.fixture
async def outside(make_config: MakeConfig, tmp_path: Path, clock: Clock) -> AsyncIterator[Stores]:
    """Stores whose records are elsewhere."""
    config = make_config(server={"data_dir": str(tmp_path / "outside")}, records={"url": "mongodb://127.0.0.1:1"})
    async with open_stores(config, clock=clock.wall_ms) as opened:
        yield opened


async def test_a_store_outside_hears_of_it_at_once_and_of_each_change(
    make_house: Build, outside: Stores, clock: Clock
) -> None:
    records = Outside()
    house = make_house(stores=with_store(outside, records=records, ledger=None))
    house.start_all()
    await accept(house)
    await accept(house, "n")
    await house.writers.flushed()
    assert records.written["m"] == ("scheduled", "content of m")
    await until(lambda: _is_empty(outside))
    await house.schedule.change("m", lambda old: msgspec.structs.replace(old, content="newer"))
    assert "m" in await unrecorded(outside)
    await house.writers.flushed()
    assert records.written["m"] == ("scheduled", "newer")
    await house.schedule.cancel("m")
    await house.writers.flushed()
    assert records.written["m"] == ("cancelled", "newer")
    await until(lambda: _is_empty(outside))


async def _is_empty(stores: Stores) -> bool:
    return not await unrecorded(stores)


async def test_what_a_former_process_did_not_record_is_recorded_at_the_start(
    make_house: Build, outside: Stores
) -> None:
    house = make_house(stores=with_store(outside, records=Outside(), ledger=None))  # nothing is written
    for number in range(3):
        await accept(house, f"m{number}")
    await house.schedule.cancel("m1")
    records = Outside()
    house = make_house(stores=with_store(outside, records=records, ledger=None))
    house.schedule.take_up(await outside.schedule.keys(), await outside.schedule.count())
    house.start_all()
    house.start(house.schedule.run())
    await until(lambda: len(records.written) == 3)
    assert {name: status for name, (status, _) in records.written.items()} == {
        "m0": "scheduled", "m1": "cancelled", "m2": "scheduled",
    }  # fmt: skip
    await until(lambda: _is_empty(outside))


async def test_what_changes_while_it_is_asked_what_is_due(make_house: Build, stores: Stores, clock: Clock) -> None:
    """Who was told that it is cancelled, or says something else, or comes later, can rely on it."""
    slowly = SlowlyDue(stores.schedule)
    house = make_house(stores=with_store(stores, schedule=slowly))
    house.start_all()
    client = house.connect(1)
    for message_id in ("cancelled", "edited", "later", "plain"):
        await accept(house, message_id, delay_s=1)
    clock.move(2)
    sending = asyncio.create_task(house.schedule.send_due())
    await slowly.is_asked.wait()
    assert await house.schedule.cancel("cancelled")
    await house.amending.edit("edited", Edit(content="anew"), SENDER)
    await house.amending.edit("later", Edit(send_at=clock.wall_ms() + 1000), SENDER)
    slowly.gate.set()
    await sending
    await house.quiet()
    assert sorted(client.notices) == ["anew", "content of plain"]
    clock.move(1)
    await house.schedule.send_due()
    await until(lambda: client.notices[-1] == "content of later")
    assert house.schedule.count == 0
