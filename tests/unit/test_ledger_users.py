"""Users' numbers and identities against a plain model; what is damaged; orders and parts of names."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pushd.ledger.users import ALL, MOST_EARLIER, Users
from pushd.model import User, UserId
from pushd.user_ids import INTEGERS, STRINGS

NAMES = ("Ada", "ada_b", "ADA", "100%", "王小明", "Öl", "öl", "A\x00b", "a" * 9 + "1", "a" * 9 + "0", "")
names = st.sampled_from(NAMES) | st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
ids = st.integers(1, 40)


def folded(text: str) -> bytes:
    return text.encode().lower()


class Model(RuleBasedStateMachine):
    """Users beside lists of identities; taken rows are kept as a database would."""

    of = INTEGERS
    named: Callable[[int], UserId] = int

    def __init__(self) -> None:
        super().__init__()
        self.users = Users(self.of)
        self.ids: list[int | str] = []
        self.identities: dict[int, list[tuple[int, str, int]]] = {}
        self.user_rows: dict[int, int | str] = {}
        self.identity_rows: dict[tuple[int, int], tuple[str, int]] = {}

    @rule(numbers=st.lists(ids, max_size=5))
    def add(self, numbers: list[int]) -> None:
        wanted = [*map(self.named, numbers)]
        given_out = self.users.numbers(wanted)
        for user_id in wanted:
            if user_id not in self.ids:
                self.ids.append(user_id)
        assert given_out == [self.ids.index(user_id) for user_id in wanted]

    @rule(user=st.integers(0, 20), seq=st.integers(1, 30), name=names, role=st.integers(0, 2), in_bulk=st.booleans())
    def call(self, user: int, seq: int, name: str, role: int, in_bulk: bool) -> None:
        if user >= len(self.ids):
            return
        if in_bulk:
            self.users.note_names([user], [User(1, name, role)], seq)
        else:
            self.users.note_name(user, seq, name, role)
        mine = self.identities.setdefault(user, [])
        if not mine:
            mine.append((seq, name, role))
        elif not mine[-1][1]:
            mine[-1] = (mine[-1][0], name, role)
        elif name and (name, role) != mine[-1][1:]:
            if seq > mine[-1][0]:
                mine.append((seq, name, role))
            elif seq == mine[-1][0]:
                mine[-1] = (seq, name, role)

    @rule(most=st.sampled_from([1, 2, ALL]))
    def take(self, most: int) -> None:
        self.take_all(most)

    def take_all(self, most: int = ALL) -> None:
        while self.users.untaken:
            users, identities = self.users.taken(most)
            assert users or identities
            assert max(len(users), len({user for user, *_ in identities})) <= most
            assert not {number for number, _ in users} & set(self.user_rows)
            self.user_rows.update(users)
            assert {user for user, *_ in identities} <= self.user_rows.keys()
            self.identity_rows.update({(user, seq): (name, role) for user, seq, name, role in identities})
        assert self.user_rows == dict(enumerate(self.ids))
        assert self.identity_rows == {
            (user, seq): (name, role) for user, mine in self.identities.items() for seq, name, role in mine
        }
        assert self.users.taken() == ([], [])

    @rule()
    def restart(self) -> None:
        self.take_all()
        self.users = Users(self.of)
        rows = [(*key, *value) for key, value in self.identity_rows.items()]
        assert self.users.load(reversed(list(self.user_rows.items())), rows) == 0
        assert self.users.taken() == ([], [])

    @rule(text=names | st.sampled_from(["A", "d", "%", "_", "小"]))
    def look_for(self, text: str) -> None:
        named = self.users.named(text)
        for user in range(len(self.ids)):
            for seq in (0, 1, 15, 31):
                assert named.has(user, seq) == (folded(text) in folded(self.called(user, seq)[0]))
        assert not named.has(len(self.ids), 1)

    @invariant()
    def agrees(self) -> None:
        assert (self.users.ids, len(self.users)) == (self.ids, len(self.ids))
        assert self.users.known([*self.ids, 99]) == list(zip(self.ids, range(len(self.ids)), strict=True))
        by_id = sorted(range(len(self.ids)), key=self.id_key)
        assert self.users.order().by_id() == by_id
        spelled = {(name, user) for user in range(len(self.ids)) for name, _ in self.all_of(user)}
        in_order = sorted(spelled, key=lambda spell: (spell[0].encode(), self.id_key(spell[1])))
        assert self.users.names().in_order() == in_order
        for user in range(len(self.ids)):
            for seq in (0, 1, 15, 31):
                assert self.users.name_role(user, seq) == self.called(user, seq)

    def id_key(self, user: int) -> tuple[bool, int | bytes]:
        user_id = self.ids[user]
        return (True, user_id.encode()) if isinstance(user_id, str) else (False, user_id)

    def all_of(self, user: int) -> list[tuple[str, int]]:
        return [identity[1:] for identity in self.identities.get(user, [(0, "", 0)])]

    def called(self, user: int, seq: int) -> tuple[str, int]:
        mine = self.identities.get(user, [(0, "", 0)])
        return mine[max(0, bisect_right([identity[0] for identity in mine], seq) - 1)][1:]


class TextModel(Model):
    of = STRINGS
    named = staticmethod(lambda number: f"{'aBÉ_'[number % 4]}{number}")


TestModel, TestTextModel = Model.TestCase, TextModel.TestCase
TestModel.settings = TestTextModel.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


anything: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.binary(max_size=3)
)
rows = st.lists(st.lists(anything | st.integers(0, 9), max_size=5).map(tuple), max_size=8)


def test_ids_of_the_other_kind_are_left_aside() -> None:
    """They keep their numbers, which blocks name, and an id that no account has."""
    for of, mine, other in ((INTEGERS, 7, "7"), (STRINGS, "7", 7)):
        users = Users(of)
        assert users.load([(0, mine), (1, other)], []) == 1
        assert users.ids == [mine, of.lost(1)]
        assert of.accepted(of.lost(1)) is None


@given(user_rows=rows, identity_rows=rows)
@settings(deadline=None)
def test_what_is_damaged_does_not_end_the_start(user_rows: list[Any], identity_rows: list[Any]) -> None:
    users = Users()
    users.load([(0, 7), *user_rows, (2, 9)], [(0, 1, "Ada", 1), *identity_rows])
    assert users.number(7) == 0
    assert len(users) >= 3
    assert users.taken() == ([], [])
    assert len(users.order().by_id()) == len(users.names()) == len(users)
    assert users.numbers([12345]) == [len(users) - 1]


def test_a_number_without_a_row_belongs_to_nobody() -> None:
    users = Users()
    assert users.load([(0, 5), (3, 6), (3, 8), (4, 5), (1 << 40, 9), "x", (5, 2.5)], [(7, 1, "nobody", 1)]) == 5
    assert [users.number(user_id) for user_id in (5, 6, 8, 9)] == [0, 3, None, None]
    assert len(users) == 8  # the last two are known to have been given out
    assert all(isinstance(user_id, int) and user_id < 0 for user_id in (*users.ids[1:3], *users.ids[4:]))


def test_what_was_noted_before_a_rename_is_noted_again() -> None:
    users, ann, bob = Users(), User(7, "ann", 1), User(7, "bob", 1)
    users.numbers([7])
    for seq, user in ((1, ann), (1, ann), (5, bob), (3, ann), (9, ann)):
        users.note_names([0], [user], seq)
    assert [users.name_role(0, seq)[0] for seq in (0, 1, 4, 5, 8, 9)] == ["ann", "ann", "ann", "bob", "bob", "ann"]


def test_half_a_surrogate_pair_is_a_name_like_another() -> None:
    users = Users()
    users.numbers([1, 2])
    users.note_name(0, 1, "a\ud800b", 1)
    users.note_name(1, 1, "b", 1)
    assert [name for name, _ in users.names().in_order()] == ["a?b", "b"]
    assert users.named("\ud800").has(0, 1)


def test_lists_of_different_lengths_are_a_mistake() -> None:
    users = Users()
    users.numbers([1])
    with pytest.raises(ValueError, match="zip"):
        users.note_names([0], [], 1)


def test_two_sources_that_do_not_agree_on_a_name_fill_nothing() -> None:
    users = Users()
    users.numbers([7])
    rows = {}
    for seq in range(1, 1000):
        users.note_name(0, seq, "Ada" if seq % 2 else "Bob", 1)
        rows.update({row[:2]: row for row in users.taken()[1]})
    assert len(rows) == MOST_EARLIER + 1
    assert [users.name_role(0, seq)[0] for seq in (1, 2, 3, 999)] == ["Ada", "Bob", "Ada", "Ada"]
    again = Users()
    again.load([(0, 7)], rows.values())
    assert [again.name_role(0, seq) for seq in range(1, 1000)] == [users.name_role(0, seq) for seq in range(1, 1000)]


def test_existing_numbers_are_those_given_out_and_nobody_gets_one() -> None:
    users = Users()
    assert users.numbers([70, 50]) == [0, 1]
    assert users.existing([50, 70, 50]) == [1, 0, 1]
    with pytest.raises(KeyError):
        users.existing([50, 9])
    assert len(users) == 2
