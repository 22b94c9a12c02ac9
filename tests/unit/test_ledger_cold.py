"""A ledger whose old blocks are cold says and does what one does that has all in memory."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pushd.ledger._changes import take_changes
from pushd.ledger._cold import PatchedPart, cool, forget_patches
from pushd.ledger._ledger import Ledger
from pushd.ledger._lists import ReceiptQuery
from pushd.ledger._push_counts import counts_of
from pushd.ledger.users import Users
from pushd.records import ReceiptSort
from tests.unit.ledger_file import (
    CONFIRMED,
    DAYS_MS,
    DELIVERED,
    DENSE_KIND,
    EXPIRED,
    HIDDEN,
    KNOWN,
    MAX_WAITING,
    OFFLINE,
    PAGE,
    PAGE_KIND,
    READ,
    START_MS,
    WAITING,
    File,
    facts,
    receipt,
)
from tests.unit.test_ledger_changes import Act, World, acts

EVER = (1 << 64) - 1
BEGINNING: list[Act] = [  # a dense block that is cold
    ("add", 1, 0, True),
    ("note", 0, "all", OFFLINE, WAITING, 0, 0),
    ("mark", 0, "few", READ, 5),
    ("note", 0, "some", DELIVERED, 0, 700, 2),
    ("take", {}),
]
SORTS = (ReceiptSort.RECEIVED_AT, ReceiptSort.READ_AT, ReceiptSort.CONFIRMED_AT, ReceiptSort.USER_ID)


def users_of(ledger: Ledger) -> Users:
    users = Users()
    users.numbers(range(ledger.user_count))
    return users


class Twins:
    """Two ledgers to which the same happens: one is written, cold and loaded again, the other only is."""

    def __init__(self) -> None:
        self.cold, self.plain = World(), World()

    def act(self, act: Act) -> None:
        if act[0] == "take":
            self.cold.take({**act[1], "memory": 0})
        elif act[0] in ("lose", "reload"):
            self.cold.reload(0)
        elif act[0] == "repeat":
            self.cold.repeat()
        else:
            self.cold.act(act)
            self.plain.act(act)

    def check(self) -> None:
        ledger, file, seqs = self.cold.ledger, self.cold.file, self.cold.seqs
        assert facts(ledger, seqs, file) == facts(self.plain.ledger, seqs)
        users = users_of(ledger)
        for sort in SORTS:
            for is_descending in (False, True):
                for few in (0, 10_000):
                    for user in (None, 1):
                        expected = ReceiptQuery(self.plain.ledger, users, user=user)
                        asked = ReceiptQuery(ledger, users, user=user, few=few, read=file.parts.get)
                        for offset, limit in ((0, 30), (17, 50)):
                            assert asked.page(sort, offset, limit, is_descending) == expected.page(
                                sort, offset, limit, is_descending
                            )
        # In a dense block a time may be known as the latest although an earlier one has taken its place.
        in_pages = [seq for seq in seqs if not ledger.notice_state(seq) & 4]
        assert counts_of(ledger, in_pages, file.parts.get) == counts_of(self.plain.ledger, in_pages)


@settings(max_examples=100, deadline=None)
@given(st.lists(acts, min_size=10, max_size=50))
@example(
    [
        ("users", 40),
        ("mark", 0, "some", CONFIRMED, 1),
        ("note", 0, "all", DELIVERED, 0, 700, 2),
        ("reload", 0),
        ("mark", 0, "some", READ, 0),
        ("take", {"log_bytes": 0}),
        ("mark", 0, "all", READ, 0),
        ("expire", 0),
        ("drop", 0),
        ("reload", 0),
    ]
)
@example(
    [
        *[("users", 300)] * 6,
        *[
            ("add", 1, 700, False),
            ("note", 0, "all", DELIVERED, WAITING, 90_000, 3),
            ("mark", 0, "some", READ, 700),
            ("take", {}),
        ]
        * 5,
        ("mark", 4, "few", CONFIRMED, 1),
        ("mark", 3, "some", READ, 0),
        ("note", 4, "all", DELIVERED, 0, 1, 9),
        ("take", {}),
        ("expire", 3),
        ("mark", 4, "all", READ, 0),
        ("reload", 0),
        ("mark", 4, "few", READ, 0),
        ("drop", 4),
        ("forget_before", 2),
        ("reload", 0),
    ]
)
def test_what_is_cold_says_and_does_the_same(acts: list[Act]) -> None:
    twins = Twins()
    for act in BEGINNING:
        twins.act(act)
    for act in acts:
        twins.act(act)
        if act[0] in ("mark", "note", "drop", "lose", "reload"):
            twins.check()
    twins.cold.reload(0)
    twins.check()


# ---- one by one


def filled(is_dense: bool, *, users: int = PAGE) -> tuple[Ledger, File]:
    """A notice that all have received, the third have read; it is cold."""
    ledger, file = Ledger(MAX_WAITING), File()
    ledger.add_users(users)
    ledger.add_notice(1, START_MS, 1)
    file.notices[1] = START_MS, 1
    if is_dense:
        ledger.begin_dense(1)
    numbers = list(range(users))
    ledger.note(1, numbers, DELIVERED, START_MS + 5, [number % 7 for number in numbers])
    for number in range(0, users, 3):
        ledger.mark(1, number, READ, START_MS + 100 + number)
    file.take_all(ledger, memory=0)
    return ledger, file


def key_of(is_dense: bool, part: int) -> int:
    return 1 << 5 | DENSE_KIND << 3 | part if is_dense else PAGE_KIND << 3 | part


both = pytest.mark.parametrize("is_dense", [True, False])


@both
def test_columns_leave_memory_and_are_read_when_asked_for(is_dense: bool) -> None:
    ledger, file = filled(is_dense)
    before = ledger.memory
    with pytest.raises(LookupError):
        ledger.receipt(1, 3)
    assert ledger.newest(3, 1) is None
    assert receipt(ledger, 1, 3, file) == (READ, START_MS + 5, START_MS + 103, 0, 3)
    assert ledger.memory == before
    assert file.load().memory - file.load(memory=0).memory >= 11 * PAGE


@both
def test_a_change_of_a_cold_block_is_a_few_bytes(is_dense: bool) -> None:
    ledger, file = filled(is_dense)
    before = ledger.memory
    assert ledger.mark(1, 4, READ, START_MS + 50)
    assert ledger.mark(1, 3, CONFIRMED, START_MS + 60)
    _, row, parts, _ = file.take(ledger, memory=0)
    assert (parts, len(row) < 80) == ([], True)
    assert ledger.memory - before < 400
    for one in (ledger, file.load(), file.load(memory=0)):
        assert receipt(one, 1, 4, file) == (READ, START_MS + 5, START_MS + 50, 0, 4)
        assert receipt(one, 1, 3, file) == (CONFIRMED, START_MS + 5, START_MS + 60, START_MS + 60, 3)


@both
def test_a_cold_block_is_stored_again_from_what_is_stored(is_dense: bool) -> None:
    """Between the taking and the writing, and when what was written is written again, it says the same."""
    ledger, file = filled(is_dense)
    for number in range(0, PAGE, 2):
        ledger.mark(1, number, READ, START_MS + 50)
    taken = take_changes(ledger)
    assert [key for key, _ in taken[2]] == [key_of(is_dense, part) for part in (1, 2, 0)]
    assert [type(part) for _, part in taken[2]] == [PatchedPart, PatchedPart, bytes]
    ledger.mark(1, 8, CONFIRMED, START_MS + 40)
    expected = {
        3: (READ, START_MS + 5, START_MS + 103, 0, 3),
        4: (READ, START_MS + 5, START_MS + 50, 0, 4),
        6: (READ, START_MS + 5, START_MS + 50, 0, 6),
        8: (CONFIRMED, START_MS + 5, START_MS + 40, START_MS + 40, 1),
    }
    for _ in range(3):
        assert {number: receipt(ledger, 1, number, file) for number in expected} == expected
        file.write(taken)
    before = ledger.memory
    forget_patches(ledger)
    assert ledger.memory < before - 2000 * 24
    assert {number: receipt(ledger, 1, number, file) for number in expected} == expected
    file.take(ledger)
    again = file.load(memory=0)
    assert {number: receipt(again, 1, number, file) for number in expected} == expected


@both
def test_what_is_written_while_a_column_is_read_is_not_lost(is_dense: bool) -> None:
    ledger, file = filled(is_dense)
    for number in range(0, PAGE, 2):
        ledger.mark(1, number, READ, START_MS + 50)
    taken = take_changes(ledger)

    def read(key: int) -> bytes | None:
        found = file.parts.get(key)
        file.write(taken)
        forget_patches(ledger)
        return found

    query = ReceiptQuery(ledger, Users(), seq=1, user=4, read=read)
    assert query.page(ReceiptSort.READ_AT, 0, 9, is_descending=True) == [
        (1, 4, READ, START_MS + 5, START_MS + 50, 0, 4)
    ]


@both
def test_blocks_that_no_row_of_a_page_is_in_are_not_read(is_dense: bool) -> None:
    ledger, file = Ledger(MAX_WAITING), File()
    ledger.add_users(PAGE)
    for seq in range(1, 9):
        ledger.add_notice(seq, START_MS + seq * 1000, 1)
        if is_dense:
            ledger.begin_dense(seq)
        ledger.note(seq, list(range(PAGE)), OFFLINE)
        for number in range(0, PAGE, 4):
            ledger.note(seq, [number], DELIVERED, START_MS + seq * 1000 + number % 900)
        file.take_all(ledger, memory=0)
    asked: list[int] = []

    def read(key: int) -> bytes | None:
        asked.append(key)
        return file.parts[key]

    query = ReceiptQuery(ledger, Users(), read=read, few=100)
    rows = query.page(ReceiptSort.RECEIVED_AT, 0, 10, is_descending=True)
    assert {row[0] for row in rows} == {8}
    assert len(set(asked)) == 1
    asked.clear()
    assert query.counts() == (8 * PAGE, 0, 2 * PAGE, 0, 0)
    assert len(query.page(ReceiptSort.READ_AT, 5, 10, is_descending=False)) == 10
    assert len(set(asked)) <= 1


def test_what_reading_raises_goes_through() -> None:
    ledger, _ = filled(is_dense=False)

    def fail(_: int) -> bytes | None:
        raise OSError("no disk")

    query = ReceiptQuery(ledger, users_of(ledger), read=fail)
    for sort in SORTS:
        with pytest.raises(OSError, match="no disk"):
            query.page(sort, 0, 10, is_descending=True)
    with pytest.raises(OSError, match="no disk"):
        counts_of(ledger, [1], fail)


@both
def test_a_column_that_is_damaged_meanwhile_costs_itself_only(is_dense: bool) -> None:
    ledger, file = filled(is_dense)
    file.parts[key_of(is_dense, 2)] = b"damaged"
    ledger.mark(1, 4, READ, START_MS + 50)
    assert receipt(ledger, 1, 3, file) == (READ, START_MS + 5, 0, 0, 3)
    assert receipt(ledger, 1, 4, file) == (READ, START_MS + 5, START_MS + 50, 0, 4)


def test_the_oldest_become_cold_first_and_those_that_change_do_not() -> None:
    ledger, file = Ledger(MAX_WAITING), File()
    ledger.add_users(PAGE)
    for seq in range(1, 11):
        ledger.add_notice(seq, START_MS, 1)
        if seq % 2:
            ledger.begin_dense(seq)
        ledger.note(seq, list(range(PAGE)), DELIVERED, START_MS + 5)
    file.take_all(ledger)
    ledger.mark(2, 0, READ, START_MS + 50)
    column = 4 * PAGE
    left = cool(ledger, ledger.memory - 4 * column)
    assert left == ledger.memory
    is_cold = [ledger.newest(0, 11 - seq) is None for seq in range(1, 11)]
    assert is_cold == [True] * 5 + [False] * 5
    assert ledger.receipt(2, 0) == (READ, START_MS + 5, START_MS + 50, 0, 0)
    file.take_all(ledger, memory=0)
    assert ledger.newest(0, 1) is None


def test_a_start_does_not_need_more_memory_than_it_may() -> None:
    _, file = filled(is_dense=True)
    most = file.load(memory=0).memory
    assert most + 11 * PAGE <= file.load().memory
    for expired in range(3):
        ledger = file.load(memory=0)
        ledger.expire(1, expired)
        assert ledger.drop(1, 10) == 10
        assert ledger.counts(1).get(EXPIRED, 0) == 0


def test_a_receipt_of_a_cold_block_that_is_forgotten_and_comes_again_has_nothing_of_before() -> None:
    ledger, file = filled(is_dense=True)
    assert ledger.drop(1, 10) == 10
    assert ledger.notice_state(1) & (KNOWN | HIDDEN) == KNOWN
    ledger.note(1, [3], OFFLINE)
    assert receipt(ledger, 1, 3, file) == (OFFLINE, 0, 0, 0, 0)
    for log_bytes in (1_000_000, 0):
        ledger.mark(1, 4000, READ, START_MS + 200)
        file.take_all(ledger, memory=0, log_bytes=log_bytes)
        for one in (ledger, file.load(), file.load(memory=0)):
            assert receipt(one, 1, 3, file) == (OFFLINE, 0, 0, 0, 0)
    ledger.note(1, [3], DELIVERED, START_MS + 30 * DAYS_MS)
    rows: list[tuple[Any, ...]] = ReceiptQuery(ledger, Users(), seq=1, user=3, read=file.parts.get).page(
        ReceiptSort.RECEIVED_AT, 0, 9, is_descending=True
    )
    assert rows == [(1, 3, DELIVERED, START_MS + 30 * DAYS_MS, 0, 0, 0)]
