"""Labels: one number for what notices have in common, marks for filters, ranks for sorts."""

from __future__ import annotations

from array import array
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pushd.ledger.labels import MOST, UNKNOWN, Labels
from pushd.model import Notice, Priority, Target, TargetKind
from pushd.records import PushFilter, PushSort
from tests.samples import notice

TYPES = ("system_notice", "order_paid", "Zebra", "Öl", "")
ROW = (1, "order_paid", 7, "ops", "all", 2, 1)

notices = st.builds(
    lambda **fields: notice(1, **fields),
    type=st.sampled_from(TYPES),
    target=st.sampled_from(TargetKind).map(Target),
    priority=st.sampled_from(Priority),
    need_confirm=st.booleans(),
    sender_id=st.integers(0, 2),
    sender_name=st.sampled_from(["", "ops"]),
)
filters = st.builds(
    PushFilter,
    message_type=st.none() | st.sampled_from([*TYPES, "unknown"]),
    target=st.none() | st.sampled_from(TargetKind),
    sender_id=st.none() | st.integers(0, 3),
)


def facts(of: Notice) -> tuple[Any, ...]:
    return of.type, of.sender_id, of.sender_name, of.target.kind.value, int(of.priority), int(of.need_confirm)


def ranks_of(labels: Labels, sort: PushSort) -> list[int]:
    return list(array("I", labels.ranks(sort)))


def test_equal_facts_share_a_number_and_others_do_not() -> None:
    labels = Labels()
    first = labels.number(notice(1, content="a"))
    assert first == labels.number(notice(2, content="b", accepted_ms=9)) == 1
    others = [
        notice(3, type="other"),
        notice(3, sender_id=1),
        notice(3, sender_name="ops"),
        notice(3, target=Target(TargetKind.ADMIN)),
        notice(3, priority=Priority.HIGH),
        notice(3, need_confirm=True),
    ]
    assert [labels.number(other) for other in others] == list(range(2, 8))
    assert len(labels) == 8
    assert labels.label(first) == facts(notice(1))
    assert labels.label(UNKNOWN) is labels.label(8) is labels.label(-1) is None


@given(st.lists(notices), st.lists(notices))
def test_what_is_taken_comes_back_with_the_same_numbers(before: list[Notice], after: list[Notice]) -> None:
    labels, loaded = Labels(), Labels()
    numbers = [labels.number(one) for one in before]
    rows = labels.taken()
    assert len(rows) == len(set(map(facts, before)))
    assert labels.taken() == []
    assert loaded.load(rows) == 0
    assert loaded.taken() == []
    assert [loaded.number(one) for one in before] == numbers
    assert [loaded.number(one) for one in after] == [labels.number(one) for one in after]
    assert loaded.taken() == labels.taken()
    for sort in (PushSort.PRIORITY, PushSort.MESSAGE_TYPE):
        assert loaded.ranks(sort) == labels.ranks(sort)


@given(st.lists(notices), filters)
def test_marks_are_what_a_look_at_each_notice_says(known: list[Notice], where: PushFilter) -> None:
    labels = Labels()
    numbers = {facts(one): labels.number(one) for one in known}
    marks = labels.marks(where)
    if where == PushFilter():
        assert marks is None
        return
    assert marks is not None
    assert len(marks) == len(labels)
    assert marks[UNKNOWN] == 0
    for (kind, sender_id, _, target, _, _), number in numbers.items():
        asked = ((where.message_type, kind), (where.sender_id, sender_id), (where.target, target))
        assert marks[number] == all(value is None or value == fact for value, fact in asked)


@given(st.lists(notices), st.lists(notices))
def test_ranks_follow_the_order_of_priorities_and_types(known: list[Notice], later: list[Notice]) -> None:
    labels = Labels()
    for some in (known, later):
        numbers = [labels.number(one) for one in some]
        by_priority, by_type = (ranks_of(labels, sort) for sort in (PushSort.PRIORITY, PushSort.MESSAGE_TYPE))
        assert len(by_priority) == len(by_type) == len(labels)
        assert by_priority[UNKNOWN] == by_type[UNKNOWN] == 0
        for one, number in zip(some, numbers, strict=True):
            for other, another in zip(some, numbers, strict=True):
                assert (by_priority[number] < by_priority[another]) == (one.priority < other.priority)
                assert (by_type[number] < by_type[another]) == (one.type < other.type)
            assert min(by_priority[number], by_type[number]) > 0


@pytest.mark.parametrize(
    "row",
    [
        (),
        (1,),
        (0, *ROW[1:]),
        (-1, *ROW[1:]),
        (MOST, *ROW[1:]),
        (1 << 62, *ROW[1:]),
        ("1", *ROW[1:]),
        (None, *ROW[1:]),
        ROW[:6],
        (*ROW, 1),
        *((*ROW[:place], value, *ROW[place + 1 :]) for place in range(1, 7) for value in (None, b"\xff", 1.5)),
        (*ROW[:5], -1, 0),
        (*ROW[:5], 1 << 40, 0),
        (*ROW[:6], 2),
    ],
)
def test_damaged_rows_are_left_out(row: tuple[Any, ...]) -> None:
    labels = Labels()
    other = (2, "system_notice", 0, "", "all", 1, 0)
    assert labels.load([row, other]) == 1
    assert labels.label(1) is None
    assert labels.number(notice(1)) == 2
    assert labels.marks(PushFilter(sender_id=0)) == b"\0\0\1"
    assert ranks_of(labels, PushSort.PRIORITY)[1] == 0
    assert labels.number(notice(1, type="new")) == 3
    assert labels.taken() == [(3, "new", 0, "", "all", 1, 0)]


def test_the_number_of_a_damaged_row_is_not_given_out_again() -> None:
    labels = Labels()
    assert labels.load([(5, None, 0, "", "all", 1, 0)]) == 1
    assert labels.number(notice(1)) == 6


def test_of_two_rows_that_say_the_same_the_first_counts() -> None:
    labels = Labels()
    assert labels.load([(1, *ROW[1:]), (2, *ROW[1:])]) == 0
    assert labels.label(1) == labels.label(2)
    of_both = notice(1, type="order_paid", sender_id=7, sender_name="ops", priority=Priority.HIGH, need_confirm=True)
    assert labels.number(of_both) == 1
    assert labels.marks(PushFilter(message_type="order_paid")) == b"\0\1\1"
