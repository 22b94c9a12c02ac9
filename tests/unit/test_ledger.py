"""The ledger against a plain model, and what no value may do to it."""

from __future__ import annotations

import random
import resource
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pushd.ledger import _inbox
from pushd.ledger._ledger import Ledger
from tests.unit.ledger_model import (
    ARCHIVED,
    BY_MAILBOX,
    CONFIRMED,
    DELIVERED,
    DENSE,
    EVER,
    EXPIRED,
    HIDDEN,
    KNOWN,
    OFFLINE,
    ONLINE,
    OVER,
    PAGE,
    PENDING,
    READ,
    REVOKED,
    SETTLED,
    STEPS,
    WAITING,
    LedgerModel,
)

ABSENT = OFFLINE | BY_MAILBOX | WAITING
MINUTE = 60_000
ANY_STATE = bytes([1]) * 256
NOT_AWAY = bytes(not state & ARCHIVED for state in range(256))


class Both:
    """A ledger and its model, which get the same calls and have to answer alike."""

    def __init__(self, max_waiting: int = 3, users: int = 0) -> None:
        self.ledger, self.model = Ledger(max_waiting), LedgerModel(max_waiting)
        self.add_users(users)

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Any:
            found = getattr(self.ledger, name)(*arguments)
            assert found == getattr(self.model, name)(*arguments), (name, arguments)
            return found

        return call

    def archive(self, *arguments: Any) -> None:
        assert _inbox.archive(self.ledger, *arguments) == self.model.archive(*arguments)

    def unarchive(self, *arguments: Any) -> None:
        assert _inbox.unarchive(self.ledger, *arguments) == self.model.unarchive(*arguments)

    def inbox(self, number: int, *where: Any) -> None:
        found = _inbox.receipts(self.ledger, number, *where)
        assert found == self.model.inbox(number, *where)
        assert _inbox.seqs(self.ledger, number, *where) == [seq for seq, *_ in found]

    def agree(self) -> None:
        ledger, model = self.ledger, self.model
        assert (ledger.user_count, ledger.last_seq) == (model.user_count, model.last_seq)
        for seq, notice in model.notices.items():
            assert ledger.notice_state(seq) == notice.state
            assert ledger.created_ms(seq) == (notice.created_ms if notice.state else 0)
            assert ledger.label(seq) == (notice.label if notice.state else 0)
            assert sorted(ledger.receipts(seq)) == sorted(model.receipts(seq))
            assert ledger.counts(seq) == model.counts(seq)
            assert ledger.has_waiting(seq) == model.has_waiting(seq)
        assert ledger.unsettled() == model.seqs(0, model.last_seq, 0, SETTLED, EVER)
        for number in range(model.user_count):
            self.agree_on(number)

    def agree_on(self, number: int) -> None:
        self.waiting(number)
        self.waiting_count(number)
        self.summary(number)
        self.newest(number, 2)
        self.newest(number, 1000)
        for states in (ANY_STATE, NOT_AWAY):
            self.inbox(number, EVER >> 1, 1000, states, None)
            self.inbox(number, 4096, 2, states, bytes([0, 1, 0, 1]))


SEQS = st.sampled_from([4090, 4091, 4092, 4094, 4095, 4096, 4097, 8191, 9000, 20000])
NUMBERS = st.integers(0, 4)
TIMES = st.integers(1, 40) | st.sampled_from([(1 << 31) - 2, (1 << 31) + 700, 1 << 41])
LIMITS = st.sampled_from([0, 1, 2, EVER])
STATES = st.sampled_from([PENDING, OFFLINE, EXPIRED, DELIVERED, READ, PENDING | ONLINE, ABSENT, WAITING])
NOTICE_STATES = st.sampled_from([KNOWN, KNOWN, KNOWN, KNOWN | SETTLED, KNOWN | HIDDEN])
CALLS = st.one_of(
    st.tuples(st.just("add_notice"), SEQS, st.integers(0, 30), st.integers(0, 9), NOTICE_STATES),
    st.tuples(st.just("add_notice"), SEQS, st.integers(0, 30), st.integers(0, 9), st.just(KNOWN)),
    st.tuples(st.just("add_users"), st.integers(0, 9)),
    st.tuples(st.just("begin_dense"), SEQS),
    st.tuples(st.just("note"), SEQS, st.lists(NUMBERS, max_size=6), STATES),
    st.tuples(st.just("note"), SEQS, st.lists(NUMBERS, max_size=6), st.just(ABSENT)),
    st.tuples(st.just("note"), SEQS, st.lists(NUMBERS, min_size=2, max_size=2), STATES, TIMES, st.just([7, 5])),
    st.tuples(st.just("sent"), SEQS, NUMBERS, st.sampled_from([0, 6]), st.just(0) | TIMES),
    st.tuples(st.just("received"), SEQS, NUMBERS, TIMES),
    st.tuples(st.just("conclude"), SEQS, st.sampled_from([0, 0x40, 0x80, 0xC0])),
    st.tuples(st.just("settle"), st.lists(SEQS, max_size=4)),
    st.tuples(st.just("mark"), SEQS, NUMBERS, st.sampled_from([READ, CONFIRMED]), TIMES),
    st.tuples(st.just("archive"), SEQS, NUMBERS, TIMES),
    st.tuples(st.just("unarchive"), SEQS, NUMBERS),
    st.tuples(st.just("wait"), SEQS, st.lists(NUMBERS, max_size=6)),
    st.tuples(st.just("remove"), SEQS, NUMBERS),
    st.tuples(st.just("clear"), NUMBERS),
    st.tuples(st.just("drop_waiting"), SEQS, LIMITS),
    st.tuples(st.just("set_notice"), SEQS, st.sampled_from([SETTLED, REVOKED, OVER, 0xC0]), st.just(0)),
    st.tuples(st.just("set_notice"), SEQS, st.just(0), st.sampled_from([REVOKED, 0xC0])),
    st.tuples(st.just("expire"), SEQS, LIMITS),
    st.tuples(st.just("hide"), SEQS),
    st.tuples(st.just("drop"), SEQS, LIMITS),
    st.tuples(st.just("forget_notice"), SEQS),
    st.tuples(st.just("forget_before"), SEQS),
    st.tuples(st.just("receipt"), SEQS, NUMBERS),
    st.tuples(st.just("seqs"), SEQS, SEQS, st.sampled_from([0, SETTLED]), st.sampled_from([0, HIDDEN]), LIMITS),
)
FIRST = [("add_notice", seq, 10, 1) for seq in (4090, 4095, 4096, 9000)] + [
    ("begin_dense", 4095),
    ("begin_dense", 9000),
]


@settings(max_examples=300, deadline=None)
@given(st.lists(CALLS, max_size=60), st.integers(0, 3), st.booleans())
def test_any_calls_leave_the_ledger_as_the_model(calls: list[tuple[Any, ...]], most: int, is_begun: bool) -> None:
    both = Both(most, users=5)
    for name, *arguments in [("add_notice", 4090, 10, 1), *(FIRST if is_begun else ()), *calls]:
        if name == "add_notice" and arguments[0] < both.ledger.base_seq:
            continue
        getattr(both, name)(*arguments)
    both.agree()


@pytest.mark.parametrize("seed", range(4))
def test_pages_and_vectors_of_many_rows(seed: int) -> None:
    """Notices of 300 users and of single ones, some of which come late, over several pages, of which the oldest go."""
    chance = random.Random(seed)
    both = Both(20, users=300)
    base, seqs = 1, []
    for seq in range(1, 500):
        both.add_notice(seq, seq * 7, seq % 3)
        seqs.append(seq)
        if seq % 10 == 0:
            both.begin_dense(seq)
        of_all = chance.sample(range(300), chance.choice([1, 1, 40, 150]))
        both.note(seq, of_all, chance.choice([PENDING | ONLINE, ABSENT, DELIVERED | ONLINE]))
        late = chance.choice(seqs[base - 1 :])
        both.note(late, chance.sample(range(300), 3), ABSENT, chance.choice([0, seq * 7]), [seq, 2, 3])
        both.mark(late, chance.randrange(300), chance.choice([READ, CONFIRMED]), seq * 7 + 5)
        both.remove(late, chance.randrange(300))
        both.archive(chance.choice(seqs[base - 1 :]), chance.randrange(300), seq * 7 + 9)
        both.unarchive(late, chance.randrange(300))
        both.inbox(chance.randrange(300), chance.choice(seqs), chance.choice([1, 3, 50]), NOT_AWAY, b"\1\0\1")
        both.receipt(late, chance.randrange(300))
        if seq % 50 == 0:
            both.expire(chance.choice(seqs[base - 1 :]), 30)
            both.agree_on(chance.randrange(300))
        if seq % 150 == 0:
            base = seq - 60
            for old in range(1, base):
                both.drop(old, EVER)
                if chance.random() < 0.97:
                    both.drop_waiting(old, EVER)
            both.forget_before(base)
    both.agree()


def test_vectors_lose_what_is_gone_and_chunks_follow() -> None:
    users, end = 50, 2 * PAGE + 10
    both = Both(5, users)
    seqs = range(1, 3 * PAGE, 50)
    for seq in seqs:
        both.add_notice(seq, seq, 0)
        both.note(seq, list(range(users)), ABSENT)
    for seq in range(1, end, 50):
        both.drop(seq, EVER)
        both.drop_waiting(seq, EVER)
    before = both.ledger.memory
    both.forget_before(end)
    assert both.ledger.base_seq == 2 * PAGE
    assert before - both.ledger.memory > end // 50 * users * 12
    for seq in (3 * PAGE, 3 * PAGE + 1):
        both.add_notice(seq, seq, 0)
        both.note(seq, [0, 1], ABSENT)
    both.mark(seqs[-1], 7, READ, MINUTE)
    both.mark(seqs[-60], 0, READ, MINUTE)
    both.agree()
    both.forget_before(EVER >> 2)
    both.agree()


def test_vectors_of_many_users_are_cut_a_part_at_a_time() -> None:
    ledger, users = Ledger(10), [*range(20_000)]
    ledger.add_users(len(users))
    for seq in (1, 2, 3, 5000):
        ledger.add_notice(seq, 1000, 0)
        ledger.note(seq, users, DELIVERED)
    for seq in (1, 2, 3):
        ledger.hide(seq)
    sizes = []
    for _ in range(12):
        ledger.forget_before(5000)
        sizes.append(ledger.memory)
    assert sizes[0] > sizes[1] > sizes[2]
    assert sizes[-1] == sizes[-2]
    assert [ledger.summary(user) for user in users] == [(1, 1, 5000)] * len(users)


def test_a_chunk_stays_while_one_of_its_notices_waits() -> None:
    both = Both(5, users=2)
    both.add_notice(1, 1, 0)
    both.note(1, [1], ABSENT)
    both.hide(1)
    both.add_notice(PAGE * 3, 5, 0)
    both.forget_before(PAGE * 3)
    assert both.waiting(1) == [1]
    assert both.ledger.base_seq == 0
    both.drop_waiting(1, 1)
    both.forget_before(PAGE * 3)
    assert both.ledger.base_seq == PAGE * 3


def test_all_of_it_may_go_and_another_beginning_follows() -> None:
    both = Both(5, users=2)
    both.add_notice(5, 100, 0)
    both.note(5, [0, 1], PENDING)
    both.drop(5, EVER)
    both.forget_before(PAGE)
    assert both.ledger.notice_state(5) == 0
    both.add_notice(1 << 60, 50, 0)
    both.note(1 << 60, [1], PENDING)
    assert both.newest(1, 9) == [(1 << 60, PENDING, 0, 0, 0, 0)]
    both.agree()


def test_a_dense_block_grows_with_the_users_and_goes_with_the_last_who_waits() -> None:
    both = Both(5, users=3)
    both.add_notice(1, 1, 0)
    both.begin_dense(1)
    both.note(1, [0, 2], PENDING, 9, [4, 5])
    both.add_users(2000)
    both.note(1, [1999, 1], ABSENT, 0, [6, 7])
    both.mark(1, 1999, CONFIRMED, 50)
    both.add_users(2001)
    both.note(1, [2000], PENDING)
    both.agree()
    before = both.ledger.memory
    both.hide(1)
    assert both.waiting(1) == [1]
    both.remove(1, 1)
    both.forget_before(0)
    assert both.ledger.notice_state(1) == KNOWN | HIDDEN
    assert both.ledger.memory < before - 2000 * 13


def test_a_hidden_notice_only_waits() -> None:
    both = Both(5, users=2)
    both.add_notice(1, 1, 0, KNOWN | HIDDEN)
    both.note(1, [0], PENDING, 5, [9])
    both.note(1, [1], ABSENT, 5, [9])
    assert both.receipt(1, 1) is None
    assert both.waiting(1) == [1]
    assert not both.mark(1, 1, READ, 9)
    assert both.waiting(1) == []


def test_what_expires_does_not_count_as_unread() -> None:
    both = Both(5, users=4)
    both.add_notice(1, 1, 0)
    both.note(1, [0, 1], PENDING)
    both.note(1, [2, 3], DELIVERED)
    both.expire(1, 1)
    assert [both.unread(number) for number in range(4)] == [0, 1, 1, 1]
    both.expire(1, 1)
    assert [both.unread(number) for number in range(4)] == [0, 0, 0, 0]
    assert both.counts(1) == {EXPIRED: 2, DELIVERED: 2}


def test_times_are_offsets_from_acceptance() -> None:
    ledger = Ledger(1)
    ledger.add_users(3)
    ledger.add_notice(1, 1_000_000, 0)
    month = 31 * 24 * 3600 * 1000
    ledger.note(1, [0], PENDING, 999_999)
    ledger.note(1, [1], PENDING, 1_000_000 + month + 999)
    ledger.note(1, [2], PENDING, 1_000_000 + (1 << 31) - 2)
    assert [ledger.newest(number, 1)[0][2] for number in range(3)] == [1_000_000, 1_000_000 + month, 2_148_483_646]


def test_times_of_notices_do_not_fall() -> None:
    ledger = Ledger(1)
    for seq, created_ms in ((5, 100), (9, 90), (7, 120), (6, 95), (PAGE + 3, 80), (12, 200), (PAGE * 2, 1 << 50)):
        ledger.add_notice(seq, created_ms, 0)
    seqs = (5, 6, 7, 9, 12, PAGE + 3, PAGE * 2)
    assert [ledger.created_ms(seq) for seq in seqs] == [100, 100, 100, 100, 100, 100, 1 << 50]


WRONG = [-1, 1 << 70, -(1 << 70), "1", None, b"", [], {}, float("nan"), object()]


@pytest.mark.parametrize("wrong", WRONG, ids=repr)
def test_nothing_happens_on_wrong_arguments(wrong: Any) -> None:
    ledger = Ledger(3)
    ledger.add_users(3)
    ledger.add_notice(1, 1, 0)
    ledger.note(1, [0, 1], ABSENT, 5, [1, 2])
    before = [ledger.newest(number, 9) for number in range(3)], ledger.counts(1), ledger.memory, ledger.waiting(0)
    calls: list[tuple[str, tuple[Any, ...]]] = [
        ("add_users", (wrong,)),
        ("add_notice", (wrong, 1, 0)),
        ("add_notice", (1, wrong, 0)),
        ("add_notice", (1, 1, wrong)),
        ("add_notice", (1, 1, 0, wrong)),
        ("set_notice", (1, wrong)),
        ("set_notice", (1, 0, wrong)),
        ("seqs", (1, 2, wrong, 0, 1)),
        ("seqs", (1, 2, 0, 0, wrong)),
        ("note", (1, wrong, PENDING)),
        ("note", (1, [0, wrong], PENDING)),
        ("note", (1, [0, 2], PENDING, 5, [1, wrong])),
        ("note", (1, [0], wrong)),
        ("sent", (1, wrong, 0, 5)),
        ("sent", (1, 0, wrong, 5)),
        ("sent", (1, 0, 0, wrong)),
        ("received", (1, wrong, 5)),
        ("received", (1, 0, wrong)),
        ("conclude", (1, wrong)),
        ("settle", (wrong,)),
        ("settle", ([1, wrong],)),
        ("mark", (1, wrong, READ, 1)),
        ("mark", (1, 0, wrong, 1)),
        ("mark", (1, 0, READ, wrong)),
        ("wait", (1, wrong)),
        ("wait", (1, [2, wrong])),
        ("remove", (1, wrong)),
        ("clear", (wrong,)),
        ("waiting", (wrong,)),
        ("waiting_count", (wrong,)),
        ("drop_waiting", (1, wrong)),
        ("unread", (wrong,)),
        ("receipt", (1, wrong)),
        ("receipts", (1, wrong)),
        ("receipts", (1, 0, wrong)),
        ("newest", (wrong, 5)),
        ("newest", (1, wrong)),
        ("summary", (wrong,)),
        ("expire", (1, wrong)),
        ("drop", (1, wrong)),
    ]
    for name, arguments in calls:
        if wrong == [] and name == "settle":
            continue
        if wrong in ([], None) and name in ("wait", "note") and (arguments[1] is wrong or arguments[-1] is None):
            continue
        with pytest.raises((OverflowError, ValueError, IndexError, TypeError)):
            getattr(ledger, name)(*arguments)
    for name in (
        "notice_state",
        "created_ms",
        "label",
        "forget_notice",
        "begin_dense",
        "hide",
        "forget_before",
        "counts",
    ):
        if not isinstance(wrong, int) or abs(wrong) > 1 << 63:
            with pytest.raises((OverflowError, TypeError, ValueError)):
                getattr(ledger, name)(wrong)
        else:
            assert not getattr(ledger, name)(wrong)
    now = [ledger.newest(number, 9) for number in range(3)], ledger.counts(1), ledger.memory, ledger.waiting(0)
    assert now == before


@pytest.mark.parametrize(
    ("name", "arguments", "error"),
    [
        ("note", (1, [3], PENDING), IndexError),
        ("note", (1, [0, 1], PENDING, 0, [1]), ValueError),
        ("note", (1, [0], 0), ValueError),
        ("note", (1, [0], ONLINE), ValueError),
        ("note", (1, [0], 9), ValueError),
        ("note", (1, (0,), PENDING), TypeError),
        ("note", (1, [1.0], PENDING), TypeError),
        ("mark", (1, 3, READ, 1), IndexError),
        ("mark", (1, 0, DELIVERED, 1), ValueError),
        ("mark", (1, 0, READ, 0), ValueError),
        ("waiting", (3,), IndexError),
        ("newest", (3, 1), IndexError),
        ("add_users", ((1 << 31) + 1,), OverflowError),
        ("add_notice", (1, 1, 0, DENSE), ValueError),
        ("set_notice", (1, HIDDEN), ValueError),
        ("set_notice", (1, 0, KNOWN), ValueError),
        ("add_notice", (PAGE + (1 << 20) + PAGE, 1, 0), ValueError),
        ("add_notice", ((1 << 63) - 1, 1, 0), ValueError),
    ],
)
def test_wrong_calls(name: str, arguments: tuple[Any, ...], error: type[Exception]) -> None:
    ledger = Ledger(3)
    ledger.add_users(3)
    ledger.add_notice(1, 1, 0)
    with pytest.raises(error):
        getattr(ledger, name)(*arguments)


def test_a_seq_below_the_first_chunk_and_unknown_ones() -> None:
    ledger = Ledger(3)
    ledger.add_users(1)
    ledger.add_notice(PAGE, 1, 0)
    with pytest.raises(ValueError, match="too far"):
        ledger.add_notice(PAGE - 1, 1, 0)
    for seq in (PAGE - 1, PAGE + 1, 3 * PAGE, -(1 << 63), (1 << 63) - 1):
        ledger.note(seq, [0], ABSENT)
        ledger.set_notice(seq, SETTLED)
        ledger.begin_dense(seq)
        assert not ledger.mark(seq, 0, READ, 1)
        assert not ledger.remove(seq, 0)
        assert (ledger.expire(seq, 9), ledger.drop(seq, 9), ledger.drop_waiting(seq, 9)) == (0, 0, 0)
        assert ledger.notice_state(seq) == 0
    assert ledger.summary(0) == (0, 0, 0)


def test_without_memory_for_users_nothing_changes() -> None:
    ledger = Ledger(3)
    ledger.add_users(2)
    before = ledger.memory
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), limits[1]))
    try:
        with pytest.raises(MemoryError):
            ledger.add_users(1 << 31)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert (ledger.user_count, ledger.memory) == (2, before)
    ledger.add_notice(1, 1, 0)
    ledger.note(1, [1], ABSENT)
    assert ledger.waiting(1) == [1]
    assert ledger.receipts(1, STEPS | WAITING, OFFLINE | WAITING) == [1]
    assert not ledger.notice_state(1) & OVER
