"""The way in: what is refused and how, what makes a repeat, and that nothing is answered before it is on disk."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest

from pushd.api import answers
from pushd.delivery.dedup import dedup_keys
from pushd.delivery.repeats import REPEATS_MOST
from pushd.delivery.submission import Sender, Submission, new_message_id
from pushd.errors import ErrorCode, RequestError, StoreError
from pushd.in_flight import Attempt, InFlight
from pushd.model import Notice, Priority, Target, TargetKind
from pushd.ports import Stores
from pushd.records import PushRow
from tests.daemon import until
from tests.unit.parts import START_MS, Clock, House, notice

Build = Callable[..., House]
decode = msgspec.json.Decoder(Submission).decode
SENDER = Sender(7, "ada")


@pytest.fixture
async def intake_house(make_house: Build, frail: Any) -> House:
    """Frail stores and nobody who takes notices out of their lanes."""
    return make_house(stores=frail)


@pytest.fixture
async def unhandled() -> AsyncIterator[list[dict[str, Any]]]:
    """What the event loop was told of; otherwise the test would fail."""
    loop, contexts = asyncio.get_running_loop(), list[dict[str, Any]]()
    before = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: contexts.append(context))
    yield contexts
    loop.set_exception_handler(before)


async def accept(house: House, submission: Submission | None = None, key: str = "") -> Attempt:
    return await house.intake.accept(submission or Submission(content="x"), SENDER, key)


def made_of(attempt: Attempt) -> Notice:
    """The notice that an attempt became."""
    assert attempt.flight is not None
    return attempt.flight.notice


async def refused(house: House, submission: Submission, key: str = "") -> RequestError:
    with pytest.raises(RequestError) as caught:
        await accept(house, submission, key)
    assert house.lanes.reserve()  # its place was given back
    house.lanes.cancel()
    return caught.value


# ---- what a notice becomes


async def test_the_defaults(intake_house: House) -> None:
    accepted = await accept(intake_house)
    assert not accepted.is_duplicate
    made = made_of(accepted)
    assert made == Notice(
        seq=1,
        message_id=made.message_id,
        content="x",
        target=Target(TargetKind.ALL),
        accepted_ms=START_MS,
        sender_id=7,
        sender_name="ada",
    )
    assert await intake_house.stores.journal.unsettled() == [made]
    assert intake_house.lanes.depths()[Priority.NORMAL] == 1
    assert intake_house.intake.unsettled_total == 1


async def test_everything_a_publisher_can_say(intake_house: House) -> None:
    submission = decode(
        b'{"content":" \xe4\xbd\xa0 ","type":"order_paid","target":"custom","user_ids":[2,1,2],"exclude_ids":[5,5],'
        b'"roles":[9],"data":{"a":[1,null]},"priority":"urgent","need_confirm":true,"expires_in_s":1.5,'
        b'"message_id":"order/1","unknown":1,"title":" A title ","url":"/orders/1","tags":["b","a","b"]}'
    )
    made = made_of(await accept(intake_house, submission, "key-1"))
    assert made == Notice(
        seq=1,
        message_id="order/1",
        content=" 你 ",
        target=Target(TargetKind.CUSTOM, user_ids=(2, 1), exclude_ids=(5,)),
        accepted_ms=START_MS,
        type="order_paid",
        data=msgspec.Raw(b'{"a":[1,null]}'),
        priority=Priority.URGENT,
        need_confirm=True,
        expires_ms=START_MS + 1500,
        idempotency_key="key-1",
        sender_id=7,
        sender_name="ada",
        title=" A title ",
        url="/orders/1",
        tags=("b", "a"),
    )


async def test_null_and_empty_mean_none(intake_house: House) -> None:
    for given in (
        b'{"content":"x","title":null,"url":null,"tags":null}',
        b'{"content":"x","title":"","url":"","tags":[]}',
    ):
        made = made_of(await accept(intake_house, decode(given)))
        assert (made.title, made.url, made.tags) == ("", "", ())


async def test_groups_are_named_once_each(intake_house: House) -> None:
    body = '{"content":"x","target":"group","groups":["dept:12","销售","dept:12"],"user_ids":[1],"exclude_ids":[5]}'
    made = made_of(await accept(intake_house, decode(body)))
    assert made.target == Target(TargetKind.GROUP, groups=("dept:12", "销售"), exclude_ids=(5,))
    assert await intake_house.stores.journal.unsettled() == [made]


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ([], 'groups: required with target "group"'),
        ([f"g{number}" for number in range(101)], "groups: Expected `array` of length <= 100"),
        ([""], "groups[0]: expected 1 to 64 characters"),
        (["x" * 65], "groups[0]: expected 1 to 64 characters"),
        (["a\nb"], "groups[0]: expected 1 to 64 characters, no control characters"),
        (
            ["a", " b"],
            "groups[1]: expected 1 to 64 characters, no control characters, no space at either end; found ' b'",
        ),
        ([7], "groups[0]: Expected `str`, got `int`"),
        ("a", "groups: Expected `array`, got `str`"),
    ],
)
async def test_groups_that_are_refused(intake_house: House, groups: Any, words: str) -> None:
    body = msgspec.json.encode({"content": "x", "target": "group", "groups": groups})
    with pytest.raises(RequestError) as caught:
        await accept(intake_house, answers.decoded(decode, body))
    assert caught.value.text.startswith(words)
    assert caught.value.code is ErrorCode.INVALID_REQUEST
    assert caught.value.details is not None
    assert caught.value.details["field"].startswith("groups")


@pytest.mark.parametrize(
    ("given", "expected"), [(0, "LOW"), (1, "NORMAL"), (2, "HIGH"), (3, "URGENT"), ("low", "LOW"), ("high", "HIGH")]
)
async def test_priorities(intake_house: House, given: int | str, expected: str) -> None:
    submission = decode(msgspec.json.encode({"content": "x", "priority": given}))
    assert made_of(await accept(intake_house, submission)).priority is Priority[expected]


def test_own_ids_are_unique_and_sorted_by_time() -> None:
    ids = [new_message_id(START_MS + index // 100) for index in range(1000)]
    assert len(set(ids)) == 1000
    assert sorted(ids, key=lambda message_id: message_id[:12]) == ids
    msgspec.convert({"content": "x", "message_id": ids[0]}, Submission)  # a publisher may name it


# ---- what is refused

REFUSED = [
    ({"content": "x" * 501}, ErrorCode.CONTENT_TOO_LONG, "content"),
    ({"type": "hello"}, ErrorCode.INVALID_REQUEST, "type"),
    ({"type": "receipt"}, ErrorCode.INVALID_REQUEST, "type"),
    ({"type": "pushd.new"}, ErrorCode.INVALID_REQUEST, "type"),
    ({"url": "javascript:alert(1)"}, ErrorCode.INVALID_REQUEST, "url"),
    ({"tags": ["a", "b\n"]}, ErrorCode.INVALID_REQUEST, "tags[1]"),
    ({"target": "custom"}, ErrorCode.MISSING_USER_IDS, "user_ids"),
    ({"target": "role"}, ErrorCode.INVALID_REQUEST, "roles"),
    ({"target": "custom", "user_ids": [1, 2, 3, 4]}, ErrorCode.TOO_MANY_USER_IDS, "user_ids"),
    ({"exclude_ids": [1, 2, 3, 4]}, ErrorCode.TOO_MANY_USER_IDS, "exclude_ids"),
    ({"data": "x" * 100}, ErrorCode.BODY_TOO_LARGE, "data"),
    ({"data": 2**64}, ErrorCode.INVALID_REQUEST, "data"),
]


@pytest.mark.parametrize(("fields", "code", "field"), REFUSED, ids=range(len(REFUSED)))
async def test_every_refusal_has_its_code_and_names_the_field(
    make_house: Build, fields: dict[str, Any], code: ErrorCode, field: str
) -> None:
    house = make_house(limits={"max_user_ids": 3, "max_data_bytes": 100})
    error = await refused(house, Submission(**({"content": "x"} | fields)))
    assert error.code is code
    assert error.text.startswith(f"{field}: ")
    assert error.retry_after_s is None
    assert await house.stores.journal.last_seq() == 0
    assert len(house.lanes) == 0


async def test_data_that_is_nested_too_deeply(intake_house: House) -> None:
    deep: Any = None
    for _ in range(5000):
        deep = [deep]
    error = await refused(intake_house, Submission(content="x", data=deep))
    assert (error.code, (error.details or {})["field"]) == (ErrorCode.INVALID_REQUEST, "data")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("content", 5),
        ("type", "has space"),
        ("type", ""),
        ("type", "x" * 65),
        ("target", 1),
        ("user_ids", [0]),
        ("user_ids", [2**63]),
        ("user_ids", [""]),
        ("user_ids", ["x" * 65]),
        ("user_ids", [1.5]),
        ("user_ids", 1),
        ("roles", [2**31]),
        ("exclude_ids", [-1]),
        ("priority", 4),
        ("priority", "HIGH"),
        ("priority", True),
        ("need_confirm", "yes"),
        ("expires_in_s", 0),
        ("expires_in_s", 1e12),
        ("message_id", ""),
        ("message_id", "a b"),
        ("message_id", "x" * 129),
        ("title", 5),
        ("title", "x" * 201),
        ("url", ["/"]),
        ("url", "/" + "x" * 2048),
        ("tags", "a"),
        ("tags", [""]),
        ("tags", ["x" * 33]),
        ("tags", ["a"] * 11),
    ],
)
def test_wrong_types_and_ranges_name_the_field(field: str, value: Any) -> None:
    with pytest.raises(msgspec.ValidationError, match=rf"\$\.{field}"):
        decode(msgspec.json.encode({"content": "x", field: value}))


async def test_limits_count_characters_and_bytes_inclusively(make_house: Build) -> None:
    house = make_house(limits={"max_content_chars": 3, "max_data_bytes": 5, "max_user_ids": 2})
    submission = Submission(content="你好吗", data="abc", target="custom", user_ids=[1, 2])
    assert made_of(await accept(house, submission)).content == "你好吗"


async def test_limits_that_change_hold_from_the_next_publish(intake_house: House) -> None:
    config = intake_house.current.config
    limits = msgspec.structs.replace(config.limits, max_content_chars=2, publishes_per_s=1)
    intake_house.current.config = msgspec.structs.replace(config, limits=limits)
    intake_house.clock.move(1)
    assert (await refused(intake_house, Submission(content="abc"))).code is ErrorCode.CONTENT_TOO_LONG


async def test_rate_limit(make_house: Build, clock: Clock) -> None:
    house = make_house(limits={"publishes_per_s": 2})
    await accept(house)
    await accept(house)
    error = await refused(house, Submission(content="x"))
    assert (error.code, error.retry_after_s) == (ErrorCode.RATE_LIMITED, 1)
    clock.move(0.5)
    await accept(house)
    assert len(house.lanes) == 3


async def test_draining(intake_house: House) -> None:
    intake_house.intake.is_draining = True
    error = await refused(intake_house, Submission(content="x"))
    assert (error.code, error.retry_after_s) == (ErrorCode.DRAINING, 5)


async def test_a_full_queue_keeps_nothing(make_house: Build) -> None:
    house = make_house(delivery={"queue_size": 2})
    results = await asyncio.gather(*(accept(house) for _ in range(5)), return_exceptions=True)
    errors = [result for result in results if isinstance(result, RequestError)]
    assert [(error.code, error.retry_after_s) for error in errors] == [(ErrorCode.QUEUE_FULL, 1)] * 3
    assert len(await house.unsettled()) == len(house.lanes) == 2
    # Refused ones are not recognised as repeats later.
    house.lanes.take()
    assert not (await accept(house, Submission(content="x", message_id="m"))).is_duplicate


# ---- durability


async def test_nothing_is_answered_or_queued_before_the_journals_commit(intake_house: House, frail: Any) -> None:
    gate = frail.journal.pause("append")
    publishing = asyncio.create_task(accept(intake_house))
    await until(lambda: "append" in frail.journal.calls)
    assert not publishing.done()
    assert len(intake_house.lanes) == 0
    assert intake_house.intake.unsettled_total == 0
    gate.set()
    made = made_of(await publishing)
    assert await intake_house.unsettled() == [made.message_id]
    assert len(intake_house.lanes) == 1


async def test_notices_enter_their_lane_in_the_order_of_publishing(intake_house: House) -> None:
    accepted = await asyncio.gather(*(accept(intake_house) for _ in range(50)))
    seqs = [made_of(one).seq for one in accepted]
    assert seqs == list(range(1, 51))
    taken = [intake_house.lanes.take() for _ in range(50)]
    assert [one.notice.seq for one in taken if one is not None] == seqs


@pytest.mark.parametrize("error", [None, StoreError("journal", "never")])
async def test_a_refused_append_gives_everything_back(make_house: Build, frail: Any, error: Exception | None) -> None:
    house = make_house(stores=frail, delivery={"queue_size": 1})
    submission = Submission(content="x", message_id="m")
    frail.journal.fail("append", 2, error)
    for _ in range(2):
        failure = await refused(house, submission, "key")
        assert (failure.code, failure.retry_after_s) == (ErrorCode.STORE_UNAVAILABLE, 5)
        assert "never" not in failure.text
    assert house.intake.unsettled_total == 0
    assert not (await accept(house, submission, "key")).is_duplicate
    assert (await accept(house, submission, "key")).is_duplicate


async def test_a_publisher_who_goes_away_does_not_stop_the_notice(intake_house: House, frail: Any) -> None:
    gate = frail.journal.pause("append")
    publishing = asyncio.create_task(accept(intake_house, Submission(content="x", message_id="m")))
    await until(lambda: "append" in frail.journal.calls)
    publishing.cancel()
    finishing = asyncio.create_task(intake_house.intake.finished())
    await asyncio.sleep(0)
    assert not finishing.done()
    gate.set()
    await finishing
    assert publishing.cancelled()
    assert len(intake_house.lanes) == 1
    assert (await accept(intake_house, Submission(content="x", message_id="m"))).is_duplicate


async def test_a_publisher_who_goes_away_before_a_failure_leaves_nothing(intake_house: House, frail: Any) -> None:
    gate = frail.journal.pause("append")
    frail.journal.fail("append")
    publishing = asyncio.create_task(accept(intake_house, Submission(content="x", message_id="m")))
    await until(lambda: "append" in frail.journal.calls)
    publishing.cancel()
    gate.set()
    await intake_house.intake.finished()
    assert len(intake_house.lanes) == 0
    assert not (await accept(intake_house, Submission(content="x", message_id="m"))).is_duplicate


async def test_what_is_submitted_in_one_turn_is_one_append(intake_house: House, frail: Any) -> None:
    submitted = [intake_house.intake.submit(Submission(content=str(number)), SENDER) for number in range(50)]
    with pytest.raises(asyncio.InvalidStateError):
        submitted[0].result()
    assert len({one.decided for one in submitted}) == 1
    await submitted[0].decided
    assert frail.journal.calls == ["append"]
    assert [made_of(one) for one in submitted] == await intake_house.stores.journal.unsettled()


async def test_an_append_is_bounded(intake_house: House, frail: Any) -> None:
    intake_house.intake.group_most = 20
    submitted = [intake_house.intake.submit(Submission(content=str(number)), SENDER) for number in range(50)]
    await intake_house.intake.finished()
    assert frail.journal.calls == ["append"] * 3
    assert len({one.decided for one in submitted}) == 3
    taken = [intake_house.lanes.take() for _ in range(50)]
    assert [one and one.notice.seq for one in taken] == list(range(1, 51))


async def test_a_notice_that_cannot_be_kept_harms_no_other(make_house: Build, unhandled: list[dict[str, Any]]) -> None:
    """A lone surrogate, as a token's JSON may have one, has no bytes."""
    house = make_house(delivery={"queue_size": 3})
    submission = Submission(content="x", message_id="m")
    good, bad = house.intake.submit(submission, SENDER), house.intake.submit(submission, Sender(7, "\ud800"))
    assert bad.is_duplicate
    bad = house.intake.submit(Submission(content="y", message_id="n"), Sender(7, "\ud800"))
    other = house.intake.submit(Submission(content="z"), SENDER)
    await house.intake.finished()
    for one in (good, other):
        one.result()
    with pytest.raises(UnicodeEncodeError):
        bad.result()
    assert await house.unsettled() == ["m", made_of(other).message_id]
    assert len(house.lanes) == house.intake.unsettled_total == 2
    assert not (await accept(house, Submission(content="y", message_id="n"))).is_duplicate
    assert [type(context["exception"]) for context in unhandled] == [UnicodeEncodeError]


async def test_a_store_that_refuses_one_of_a_group_keeps_the_others(intake_house: House, frail: Any) -> None:
    frail.journal.fail("append", 2, StoreError("journal", "never"))
    submitted = [
        intake_house.intake.submit(Submission(content="x", message_id=f"m{number}"), SENDER) for number in range(3)
    ]
    await intake_house.intake.finished()
    assert [one.failure is None for one in submitted] == [False, True, True]
    assert await intake_house.unsettled() == ["m1", "m2"]
    assert len(intake_house.lanes) == 2


async def test_what_is_sent_at_once_enters_no_lane_and_gives_its_place_back(make_house: Build) -> None:
    house = make_house(delivery={"queue_size": 4})
    sent: list[str] = []

    def two_of_them(flights: deque[InFlight]) -> None:
        sent.extend(flights.popleft().notice.content for _ in range(2))
        raise TypeError("odd")

    house.intake._send_at_once = two_of_them
    for number in range(4):
        house.intake.submit(Submission(content=f"{number}"), SENDER)
    await house.intake.finished()
    assert sent == ["0", "1"]
    waiting = [house.lanes.take(), house.lanes.take()]
    assert [flight.notice.content for flight in waiting if flight] == ["2", "3"]
    assert [house.lanes.reserve() for _ in range(5)] == [True] * 4 + [False]
    assert house.intake.unsettled_total == 4


async def test_a_disk_that_is_full_refuses_a_whole_group(intake_house: House, frail: Any) -> None:
    frail.journal.fail("append")
    submitted = [intake_house.intake.submit(Submission(content="x"), SENDER) for _ in range(3)]
    await intake_house.intake.finished()
    assert frail.journal.calls == ["append"]
    for one in submitted:
        with pytest.raises(RequestError) as caught:
            one.result()
        assert caught.value.code is ErrorCode.STORE_UNAVAILABLE
    assert len(intake_house.lanes) == 0


async def test_a_closed_journal_refuses(make_house: Build, stores: Stores) -> None:
    """As after a drain that took too long: `append` raises at once."""
    house = make_house()
    await stores.journal._file.thread.aclose()  # type: ignore[attr-defined]
    assert (await refused(house, Submission(content="x"))).code is ErrorCode.STORE_UNAVAILABLE


# ---- repeats


@pytest.mark.parametrize(("message_id", "key"), [("m", ""), (None, "k"), ("m", "k")])
async def test_a_repeat_gets_the_first_result(
    intake_house: House, clock: Clock, message_id: str | None, key: str
) -> None:
    submission = Submission(content="first", message_id=message_id)
    first = await accept(intake_house, submission, key)
    clock.move(299)
    again = await accept(intake_house, Submission(content="second", message_id=message_id), key)
    assert again.is_duplicate
    assert again.answer == first.answer
    assert len(intake_house.lanes) == 1
    assert intake_house.metrics.dedup_hits.value == 1
    clock.move(2)
    assert not (await accept(intake_house, Submission(content="x", message_id=f"{message_id}2"), key)).is_duplicate


async def test_one_of_two_names_is_enough(intake_house: House) -> None:
    first = await accept(intake_house, Submission(content="x", message_id="m"), "k")
    for message_id, key in (("m", ""), ("other", "k"), (None, "k"), ("m", "other")):
        again = await accept(intake_house, Submission(content="x", message_id=message_id), key)
        assert again.answer == first.answer


async def test_without_a_name_nothing_is_a_repeat(intake_house: House) -> None:
    assert not (await accept(intake_house)).is_duplicate
    assert not (await accept(intake_house)).is_duplicate


async def test_concurrent_repeats_are_one_notice(intake_house: House, frail: Any) -> None:
    gate = frail.journal.pause("append")
    submission = Submission(content="x", message_id="m")
    publishing = [asyncio.create_task(accept(intake_house, submission)) for _ in range(10)]
    await until(lambda: "append" in frail.journal.calls)
    assert not any(task.done() for task in publishing)
    gate.set()
    accepted = await asyncio.gather(*publishing)
    assert [one.is_duplicate for one in accepted] == [False] + [True] * 9
    assert frail.journal.calls == ["append"]
    assert len(intake_house.lanes) == 1


async def test_when_the_first_of_concurrent_repeats_fails_the_next_is_a_new_attempt(
    intake_house: House, frail: Any
) -> None:
    gate = frail.journal.pause("append")
    frail.journal.fail("append", 2)
    submission = Submission(content="x", message_id="m")
    publishing = [asyncio.create_task(accept(intake_house, submission)) for _ in range(5)]
    await until(lambda: "append" in frail.journal.calls)
    gate.set()
    results = await asyncio.gather(*publishing, return_exceptions=True)
    assert sum(isinstance(result, RequestError) for result in results) == 2
    accepted = [result for result in results if isinstance(result, Attempt)]
    assert [one.is_duplicate for one in accepted].count(False) == 1
    assert len(intake_house.lanes) == 1
    assert len(await intake_house.unsettled()) == 1


async def test_a_repeat_hears_of_one_that_is_through_before_others_of_its_group_are_kept(
    make_house: Build, frail: Any
) -> None:
    house = make_house(stores=frail)
    house.start_all()
    house.connect(1)
    frail.journal.fail("append", error=TypeError("one is to blame"))
    submissions = [Submission(f"{n}", message_id=f"m{n}", target=TargetKind.CUSTOM, user_ids=[1]) for n in range(40)]
    attempts = [house.intake.submit(submission, SENDER) for submission in submissions]
    repeat = house.intake.submit(submissions[0], SENDER)
    async with asyncio.timeout(10):
        await attempts[-1]
        assert (await repeat).answer.message_id == "m0"
    await house.quiet()
    assert sorted(house.ids_settled) == sorted(f"m{n}" for n in range(40))


async def test_ten_thousand_repeats_of_what_is_undecided_cost_no_task_and_no_more_wait(
    intake_house: House, frail: Any
) -> None:
    gate = frail.journal.pause("append")
    submission = Submission(content="x", message_id="m", data=["x"] * 1000)
    first = intake_house.intake.submit(submission, SENDER)
    tasks = len(asyncio.all_tasks())
    repeats = [intake_house.intake.submit(submission, SENDER) for _ in range(REPEATS_MOST)]
    assert len(asyncio.all_tasks()) == tasks
    with pytest.raises(RequestError) as caught:
        intake_house.intake.submit(submission, SENDER)
    assert caught.value.code is ErrorCode.QUEUE_FULL
    assert not any(repeat.decided.done() for repeat in repeats)
    gate.set()
    await asyncio.wait([repeats[-1].decided])
    assert {repeat.answer.message_id for repeat in repeats} == {first.answer.message_id}
    assert intake_house.metrics.dedup_hits.value == len(repeats)
    assert intake_house.intake.submit(submission, SENDER).answer == first.answer  # at once


async def test_when_nothing_is_ever_kept_every_repeat_is_refused_one_after_the_other(
    intake_house: House, frail: Any
) -> None:
    frail.journal.fail("append", 50)
    submission = Submission(content="x", message_id="m")
    results = await asyncio.gather(*(accept(intake_house, submission) for _ in range(50)), return_exceptions=True)
    assert {getattr(result, "code", None) for result in results} == {ErrorCode.STORE_UNAVAILABLE}
    assert frail.journal.calls == ["append"] * 50
    assert len(intake_house.lanes) == 0
    assert not (await accept(intake_house, submission)).is_duplicate


async def test_a_repeat_for_which_there_is_no_room_is_refused(make_house: Build, frail: Any) -> None:
    house = make_house(stores=frail, delivery={"queue_size": 1})
    gate = frail.journal.pause("append")
    frail.journal.fail("append")
    submission = Submission(content="x", message_id="m")
    attempts = [house.intake.submit(submission, SENDER)]
    attempts[0].decided.add_done_callback(lambda _: house.lanes.reserve())  # somebody else was quicker
    attempts += [house.intake.submit(submission, SENDER) for _ in range(2)]
    gate.set()
    await asyncio.wait([attempt.decided for attempt in attempts])
    assert isinstance(attempts[0].failure, StoreError)
    for attempt in attempts[1:]:
        with pytest.raises(RequestError) as caught:
            attempt.result()
        assert caught.value.code is ErrorCode.QUEUE_FULL


async def test_what_is_settled_is_recognised_and_weighs_nothing(intake_house: House) -> None:
    submission = Submission(content="x", message_id="m", data=["x"] * 1000)
    first = await accept(intake_house, submission, "k")
    flight = first.flight
    assert flight is not None
    flight.end_fan_out()
    assert first.flight is None
    again = await accept(intake_house, Submission(content="y"), "k")
    assert again.is_duplicate
    assert (again.answer.content, again.answer.is_delivered) == ("x", True)


async def test_more_than_can_be_remembered_is_forgotten_and_counted(intake_house: House) -> None:
    intake_house.intake.window.most_bytes = 10_000
    for number in range(20):
        await accept(intake_house, Submission(content="x", message_id=f"m{number}"))
    forgotten = int(intake_house.metrics.errors.labels("dedup_forgotten").value)
    assert 0 < forgotten < 20
    assert (await accept(intake_house, Submission(content="x", message_id="m19"))).is_duplicate
    assert not (await accept(intake_house, Submission(content="x", message_id="m0"))).is_duplicate


def test_own_ids_are_no_dedup_keys() -> None:
    assert dedup_keys(notice(), is_named=False) == []
    assert dedup_keys(notice(idempotency_key="k"), is_named=False) == ["key:k"]
    assert dedup_keys(notice(idempotency_key="k"), is_named=True) == ["id:m1", "key:k"]


# ---- after a crash


async def test_restored_notices_are_queued_and_recognised(make_house: Build, stores: Stores) -> None:
    entries = [notice(1, idempotency_key="k"), notice(2, priority=Priority.URGENT), notice(3)]
    await stores.journal.append(entries)
    house = make_house(last_seq=3, delivery={"queue_size": 1})
    house.intake.restore(entries[2:], queue=False)
    house.intake.restore(entries[:2], queue=True)
    assert house.intake.unsettled_total == 2
    taken = [house.lanes.take(), house.lanes.take(), house.lanes.take()]
    assert [one and one.notice.message_id for one in taken] == ["m2", "m1", None]
    assert all(one.is_restored for one in taken if one)
    for message_id in ("m1", "m2", "m3"):
        assert (await accept(house, Submission(content="x", message_id=message_id))).is_duplicate
    again = await accept(house, Submission(content="x"), "k")
    assert again.first is not None
    assert again.first.flight is taken[1]
    new = await accept(house, Submission(content="x"))
    assert made_of(new).seq > 3
    assert new.flight is not None
    assert not new.flight.is_restored


async def test_a_restored_notice_whose_type_belongs_to_the_protocol_by_now_goes_out_under_another(
    make_house: Build, stores: Stores
) -> None:
    old = [notice(1, type="update"), notice(2, type="pushd.x"), notice(3, type="updated")]
    await stores.journal.append(old)
    house = make_house(last_seq=3)
    house.intake.restore(await stores.journal.unsettled(), queue=True)
    assert [house.lanes.take().notice.type for _ in old] == ["system_notice", "system_notice", "updated"]


async def test_restored_notices_are_recognised_for_the_rest_of_their_window(make_house: Build, clock: Clock) -> None:
    entry = notice(1)
    clock.move(200)
    house = make_house(last_seq=1)
    house.intake.restore([entry], queue=False)
    clock.move(99)
    assert (await accept(house, Submission(content="x", message_id="m1"))).is_duplicate
    clock.move(2)
    assert not (await accept(house, Submission(content="x", message_id="m1"))).is_duplicate


async def test_a_settled_notice_is_no_longer_counted(house: House) -> None:
    flight = await house.publish(target="custom", user_ids=[1])
    await house.quiet()
    assert house.intake.unsettled_total == 0
    assert house.ids_settled == [flight.notice.message_id]
    assert await house.unsettled() == []


async def test_what_becomes_of_publishes_is_counted(make_house: Build, frail: Any) -> None:
    house = make_house(stores=frail, delivery={"queue_size": 2})
    submission = Submission(content="x", target="role", roles=[1], priority="high", message_id="m")
    frail.journal.fail("append")
    await refused(house, submission)
    await accept(house, submission)
    await accept(house, submission)
    await accept(house, Submission(content="x"))
    with pytest.raises(RequestError):
        await accept(house, Submission(content="x"))
    text = house.metrics.text().decode()
    for target, priority, result in (
        ("role", "high", "store_unavailable"),
        ("role", "high", "accepted"),
        ("role", "high", "duplicate"),
        ("all", "normal", "accepted"),
        ("all", "normal", "queue_full"),
    ):
        assert f'pushd_notices_total{{priority="{priority}",result="{result}",target="{target}"}} 1.0' in text


# ---- records that are sent again

ROW = PushRow(
    message_id="m1",
    content="x",
    message_type="order",
    target="custom",
    target_user_ids=[7],
    target_roles=None,
    recipients_count="1_users",
    status="success",
    success=True,
    error=None,
    push_ms=1,
    expires_ms=0,
    sender_id=1,
    sender_name="",
    priority=2,
    need_confirm=True,
    extra_data={"a": 1},
    total_count=1,
    online_count=1,
    delivered_count=0,
    failed_count=0,
    created_ms=1,
    updated_ms=1,
    title="Order 1",
    url="https://shop.test/1",
    tags=("a", "b"),
)


def resent(house: House, **fields: Any) -> Notice:
    return house.intake.resend(msgspec.structs.replace(ROW, **fields), SENDER).flight.notice


async def test_a_record_becomes_a_notice_again(intake_house: House) -> None:
    assert resent(intake_house) == Notice(
        seq=1,
        message_id="m1",
        content="x",
        target=Target(TargetKind.CUSTOM, user_ids=(7,)),
        accepted_ms=START_MS,
        type="order",
        data=msgspec.Raw(b'{"a":1}'),
        priority=Priority.HIGH,
        need_confirm=True,
        sender_id=7,
        sender_name="ada",
        title="Order 1",
        url="https://shop.test/1",
        tags=("a", "b"),
        is_resent=True,
    )


@pytest.mark.parametrize(
    ("fields", "name", "value"),
    [
        ({"target": "everyone"}, "target", Target(TargetKind.CUSTOM, user_ids=(7,))),
        ({"target": "", "target_user_ids": None}, "target", Target(TargetKind.CUSTOM)),
        ({"target": "all", "target_user_ids": None}, "target", Target(TargetKind.ALL)),
        (
            {"target": "group", "target_user_ids": None, "target_groups": ["a", "b"]},
            "target",
            Target(TargetKind.GROUP, groups=("a", "b")),
        ),
        ({"priority": 4}, "priority", Priority.NORMAL),
        ({"priority": -(2**63)}, "priority", Priority.NORMAL),
        ({"message_type": ""}, "type", "system_notice"),
        ({"extra_data": None}, "data", None),
        ({"title": "x" * 300}, "title", "x" * 200),
        ({"url": "javascript:alert(1)"}, "url", ""),
        ({"tags": ("", "a", "b\0", "a")}, "tags", ("a",)),
    ],
)
async def test_another_programs_record_is_read_as_well_as_it_can_be(
    intake_house: House, fields: dict[str, Any], name: str, value: Any
) -> None:
    assert getattr(resent(intake_house, **fields), name) == value


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"content": ""}, "content: it has none"),
        ({"content": " \n"}, "content: it has none"),
        ({"content": "x" * 501}, "content: 501 characters, at most 500"),
        ({"message_type": "a b"}, "type: expected"),
        ({"message_type": "订单"}, "type: expected"),
        ({"message_type": "x" * 65}, "type: expected"),
        ({"message_type": "hello"}, "type: 'hello' is a type of the protocol"),
        ({"message_type": "pushd.x"}, "type: 'pushd.x' is a type of the protocol"),
        ({"extra_data": 10**30}, "data: integers beyond 64 bits"),
        ({"extra_data": "x" * 70_000}, "data: 70002 bytes"),
        ({"target_user_ids": list(range(1, 10_002))}, "user_ids: 10001 ids, at most 10000"),
        ({"expires_ms": START_MS}, "the notice has expired"),
    ],
)
async def test_what_no_publisher_may_say_is_not_sent_again(
    intake_house: House, fields: dict[str, Any], part: str
) -> None:
    with pytest.raises(RequestError, match=re.escape(part)) as caught:
        resent(intake_house, **fields)
    assert (caught.value.code, caught.value.details) == (ErrorCode.INVALID_REQUEST, {"field": "message_id"})
    assert caught.value.text.startswith("message_id: ")
    assert intake_house.lanes.reserve()  # its place was given back
    intake_house.lanes.cancel()


async def test_the_data_of_notices_on_their_way_is_bounded(house: House) -> None:
    """By its size, since the queue counts notices only; what is settled or lost makes room again."""
    house.intake.data_most_bytes = 100
    first = house.intake.submit(Submission(content="x", data="d" * 60), SENDER)
    with pytest.raises(RequestError) as refused:
        house.intake.submit(Submission(content="x", data="d" * 60), SENDER)
    assert refused.value.code is ErrorCode.QUEUE_FULL
    without = house.intake.submit(Submission(content="x"), SENDER)
    await house.intake.finished()
    for attempt in (first, without):
        assert attempt.flight is not None
        attempt.flight.end_fan_out()
    assert house.intake._data_bytes == 0
    again = house.intake.submit(Submission(content="x", data="d" * 60), SENDER)
    await again
