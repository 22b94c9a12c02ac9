"""What stands for an id of either kind, and what does not."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pushd.errors import RequestError
from pushd.user_ids import INTEGERS, KINDS, MANY, STRINGS, UserIds
from pushd.values import MAX_USER_ID

anything = st.one_of(st.integers(), st.text(), st.floats(), st.booleans(), st.none(), st.binary(), st.just("guest:1"))
texts = st.from_regex(r"[A-Za-z0-9_.:@-]{1,66}", fullmatch=True) | st.sampled_from(
    ["guest:", "guest:1", "guest", "a\n"]
)


@pytest.mark.parametrize(
    ("ids", "value", "user_id"),
    [
        (INTEGERS, 1, 1),
        (INTEGERS, "1", 1),
        (INTEGERS, MAX_USER_ID, MAX_USER_ID),
        (INTEGERS, "9007199254740993", 9007199254740993),
        (INTEGERS, str(MAX_USER_ID), MAX_USER_ID),
        (STRINGS, "a", "a"),
        (STRINGS, "007", "007"),
        (STRINGS, 9007199254740993, "9007199254740993"),
        (STRINGS, "Guest:1", "Guest:1"),
        (STRINGS, "guest", "guest"),
        (STRINGS, "-", "-"),
        (STRINGS, "x" * 64, "x" * 64),
    ],
)
def test_accepted(ids: UserIds, value: Any, user_id: Any) -> None:
    found = ids.given(value, "user_id")
    assert (found, type(found)) == (user_id, type(user_id))


@pytest.mark.parametrize(
    ("ids", "value", "found"),
    [
        (INTEGERS, 0, "0"),
        (INTEGERS, -1, "-1"),
        (INTEGERS, 2**63, str(2**63)),
        (INTEGERS, "0", '"0"'),
        (INTEGERS, "07", '"07"'),
        (INTEGERS, "+7", '"+7"'),
        (INTEGERS, "7\n", '"7\\n"'),
        (INTEGERS, "٧", '"\\u0667"'),
        (INTEGERS, str(2**63), f'"{2**63}"'),
        (INTEGERS, True, "true"),
        (INTEGERS, 7.0, "7.0"),
        (STRINGS, "", '""'),
        (STRINGS, "a\n", '"a\\n"'),
        (STRINGS, "a b", '"a b"'),
        (STRINGS, "guest:", '"guest:"'),
        (STRINGS, "x" * 65, f'"{"x" * 64}"…'),
        (STRINGS, 0, "0"),
        (STRINGS, True, "true"),
        (STRINGS, ["a"], "a list"),
    ],
)
def test_refused(ids: UserIds, value: Any, found: str) -> None:
    with pytest.raises(RequestError) as refused:
        ids.given(value, "user_id")
    assert refused.value.text == f"user_id: found {found}, expected {ids.expected}"
    assert refused.value.details == {"field": "user_id"}


@pytest.mark.parametrize("ids", KINDS.values(), ids=KINDS)
@given(value=anything)
def test_what_is_accepted_stays_what_it_is(ids: UserIds, value: Any) -> None:
    user_id = ids.accepted(value)
    if user_id is not None:
        assert type(user_id) is ids.type
        assert ids.accepted(user_id) == user_id
        assert ids.accepted(str(user_id)) == user_id
        assert str(user_id) == str(value)


@given(values=st.lists(texts, max_size=5) | st.lists(texts, min_size=MANY, max_size=MANY + 2))
def test_many_texts_are_judged_as_one_by_one(values: list[Any]) -> None:
    """The quick look at all of them together sees no more and no less than a look at each."""
    assert STRINGS.are_exact(values) == all(STRINGS.accepted(value) == value for value in values)


@given(values=st.lists(st.integers(1, MAX_USER_ID) | st.integers(1, 99).map(str), max_size=5))
def test_many_are_all_what_they_are_meant_to_be(values: list[Any]) -> None:
    assert INTEGERS.all_given(values, "user_ids") == [int(value) for value in values]
    assert STRINGS.all_given(values, "user_ids") == [str(value) for value in values]


@pytest.mark.parametrize("odd", ["", "a b", "guest:1", "x" * 65, "a\nb", "é", 7, None])
def test_one_among_many_is_found(odd: Any) -> None:
    good = [f"u{number}" for number in range(2 * MANY)]
    assert STRINGS.are_exact(good)
    for place in (0, MANY, len(good)):
        assert not STRINGS.are_exact([*good[:place], odd, *good[place:]])


def test_the_first_that_is_none_is_named() -> None:
    for ids, values in ((INTEGERS, [1, "2", "x", "y"]), (STRINGS, ["a", 2, "x y", "z "])):
        with pytest.raises(RequestError) as refused:
            ids.all_given(values, "user_ids")
        assert refused.value.details == {"field": "user_ids[2]"}


@pytest.mark.parametrize("ids", KINDS.values(), ids=KINDS)
def test_guests_and_lost_ids_are_no_accounts(ids: UserIds) -> None:
    made = [ids.guest(1), ids.guest(2), ids.lost(0), ids.lost(1), ids.nobody]
    assert {type(one) for one in made} == {ids.type}
    assert [one for one in made if ids.accepted(one) is not None] == []
    assert ids.guest(1) != ids.guest(2)
    assert ids.lost(0) != ids.lost(1)


@given(value=st.integers(1, MAX_USER_ID).map(str) | texts)
def test_the_schema_says_what_is_accepted(value: str) -> None:
    (_, digits), text = INTEGERS.given_schema(1)["anyOf"], STRINGS.given_schema(1)
    if re.search(digits["pattern"], value, re.ASCII) and "\n" not in value:
        assert INTEGERS.accepted(value) is not None
    assert ("\n" not in value and bool(re.search(text["pattern"], value))) == (STRINGS.accepted(value) is not None)
