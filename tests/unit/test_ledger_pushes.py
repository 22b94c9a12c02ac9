"""Passes over notices: what a look at every notice of a plain model says."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pushd.ledger._ledger import Ledger
from pushd.ledger._push_counts import counts_of, seq_at
from pushd.ledger._pushes import LABEL_RANK, SEQ, STATUS_RANK, STATUSES, TOTAL, PushQuery

KNOWN, HIDDEN = 0x01, 0x08
PENDING, OFFLINE, EXPIRED, DELIVERED = range(1, 5)
ONLINE = 0x40
STATUS_RANKS = (0, 3, 1, 2)  # of: none yet, success, expired, failed
USERS = 12
LABELS = 5
RANKS = array("I", [0, 3, 1, 3, 2]).tobytes()
EVERYTHING = 1 << 40


@dataclass
class Kept:
    """A notice of the model."""

    seq: int
    created_ms: int
    label: int
    status: int
    is_hidden: bool
    receipts: dict[int, tuple[int, bool, int]] = field(default_factory=dict)  # step, is_online, received_ms
    latest_ms: int = 0  # of all times that a receipt had, also those that an earlier one replaced

    def counts(self) -> tuple[int, int, int, int, int]:
        known = self.receipts.values()
        return (
            len(known),
            sum(is_online for _, is_online, _ in known),
            sum(step >= DELIVERED for step, _, _ in known),
            sum(step == EXPIRED for step, _, _ in known),
            max([self.created_ms, *(received_ms for _, _, received_ms in known)]),
        )

    def note(self, number: int, step: int, is_online: bool, received_ms: int) -> None:
        self.latest_ms = max(self.latest_ms, received_ms)
        step = max(step, DELIVERED) if received_ms else step
        known = self.receipts.get(number, (0, False, 0))
        received = [at_ms for at_ms in (known[2], received_ms) if at_ms]
        self.receipts[number] = max(step, known[0]), is_online or known[1], min(received, default=0)


notes = st.tuples(
    st.integers(0, 40),  # which notice
    st.integers(0, USERS - 1),
    st.sampled_from([PENDING, OFFLINE, EXPIRED, DELIVERED]),
    st.booleans(),
    st.sampled_from([0, 0, 5, 3_000_000_000]),
)


@st.composite
def ledgers(draw: st.DrawFn) -> tuple[Ledger, list[Kept]]:
    """A ledger, and the same as a plain list."""
    ledger, kept = Ledger(100), []
    ledger.add_users(USERS)
    seq = draw(st.sampled_from([0, 4090, 1_000_000, (1 << 32) - 3]))
    at_ms = 1_800_000_000_000
    for gap, pause, label, status, is_hidden, is_dense in draw(
        st.lists(
            st.tuples(
                st.sampled_from([1, 1, 1, 2, 5000]),
                st.sampled_from([0, 1, 10, 1000]),
                st.integers(0, LABELS + 1),
                st.integers(0, STATUSES - 1),
                st.sampled_from([False, False, False, True]),
                st.booleans(),
            ),
            max_size=30,
        )
    ):
        seq, at_ms = seq + gap, at_ms + pause
        ledger.add_notice(seq, at_ms, label, KNOWN | (HIDDEN if is_hidden else 0) | status << 6)
        if is_dense:
            ledger.begin_dense(seq)
        kept.append(Kept(seq, at_ms, label, status, is_hidden))
    if kept:
        for notice, number, step, is_online, after_ms in draw(st.lists(notes, max_size=80)):
            one = kept[notice % len(kept)]
            received_ms = one.created_ms + after_ms if after_ms else 0
            if not one.is_hidden:
                one.note(number, step, is_online, received_ms)
                ledger.note(one.seq, [number], step | (ONLINE if is_online else 0), received_ms)
    return ledger, kept


@st.composite
def questions(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "statuses": draw(st.none() | st.lists(st.booleans(), min_size=STATUSES, max_size=STATUSES).map(bytes)),
        "marks": draw(st.none() | st.lists(st.booleans(), min_size=0, max_size=LABELS).map(bytes)),
    }


@st.composite
def cases(draw: st.DrawFn) -> tuple[Ledger, list[Kept], dict[str, Any]]:
    ledger, kept = draw(ledgers())
    asked = draw(questions())
    ends = st.sampled_from([one.seq + more for one in kept for more in (0, 1)] or [0])
    if draw(st.booleans()):
        asked["since_seq"] = draw(ends)
    if draw(st.booleans()):
        asked["before_seq"] = draw(ends)
    if draw(st.booleans()):
        first = draw(ends)
        asked["having_from"] = first
        asked["having"] = bytearray(draw(st.lists(st.booleans(), max_size=50)))
    return ledger, kept, asked


def wanted(kept: list[Kept], asked: dict[str, Any]) -> list[Kept]:
    statuses, marks, having = asked["statuses"], asked["marks"], asked.get("having")
    since_seq, before_seq = asked.get("since_seq", 0), asked.get("before_seq", EVERYTHING)

    def has(one: Kept) -> bool:
        at = one.seq - asked.get("having_from", 0)
        return having is None or (0 <= at < len(having) and bool(having[at]))

    return [
        one
        for one in kept
        if not one.is_hidden
        and since_seq <= one.seq < before_seq
        and (statuses is None or statuses[one.status])
        and (marks is None or (one.label < len(marks) and marks[one.label]))
        and has(one)
    ]


def key_of(one: Kept, sort: int) -> tuple[int, int]:
    ranks = array("I", RANKS)
    rank = ranks[one.label] if one.label < LABELS else 0
    return {SEQ: 0, STATUS_RANK: STATUS_RANKS[one.status], LABEL_RANK: rank, TOTAL: len(one.receipts)}[sort], one.seq


@given(cases())
def test_totals(case: tuple[Ledger, list[Kept], dict[str, Any]]) -> None:
    ledger, kept, asked = case
    matching = wanted(kept, asked)
    counts = [one.counts() for one in matching]
    sums = [sum(count[place] for count in counts) for place in (0, 2, 3)]
    expected = (len(matching), sum(one.status == 3 for one in matching), *sums)
    assert PushQuery(ledger, **asked).totals() == expected


@given(cases(), st.sampled_from([SEQ, STATUS_RANK, LABEL_RANK, TOTAL]), st.booleans(), st.integers(1, 40))
@settings(max_examples=300)
def test_pages(case: tuple[Ledger, list[Kept], dict[str, Any]], sort: int, is_descending: bool, size: int) -> None:
    ledger, kept, asked = case
    expected = sorted(wanted(kept, asked), key=lambda one: key_of(one, sort), reverse=is_descending)
    query = PushQuery(ledger, **asked)
    ranks = RANKS if sort == LABEL_RANK else None
    for offset in range(0, len(expected) + size, size):
        page = query.page(sort, offset, size, is_descending, ranks)
        assert page == [one.seq for one in expected[offset : offset + size]]
    assert query.page(sort, 0, EVERYTHING, is_descending, ranks) == [one.seq for one in expected]


@given(ledgers(), st.lists(st.integers(0, 40)))
def test_counts_of_some(made: tuple[Ledger, list[Kept]], places: list[int]) -> None:
    ledger, kept = made
    some = [kept[place % len(kept)] for place in places] if kept else []
    found = counts_of(ledger, [one.seq for one in some])
    assert set(found) == {one.seq for one in some}
    for one in some:
        *counts, latest_ms = found[one.seq]
        *expected, exactly_ms = one.counts()
        assert counts == expected
        assert exactly_ms <= latest_ms <= max(exactly_ms, one.latest_ms)
    unknown = max((one.seq for one in kept), default=0) + 1
    assert counts_of(ledger, [unknown]) == {unknown: (0, 0, 0, 0, 0)}


@given(ledgers(), st.integers(-20, 4000))
def test_the_first_seq_of_a_time(made: tuple[Ledger, list[Kept]], after_ms: int) -> None:
    ledger, kept = made
    at_ms = (kept[0].created_ms if kept else 0) + after_ms
    first = seq_at(ledger, at_ms)
    assert first <= ledger.last_seq + 1
    for one in kept:
        assert (one.seq >= first) == (one.created_ms >= at_ms)


def test_many_notices_and_receipts_in_many_pages() -> None:
    """Receipts come in any order, some of them late: pages overlap, and some have rows of all notices."""
    random, ledger = Random(5), Ledger(100)
    ledger.add_users(300)
    kept = [Kept(seq, 1000 + seq // 7, seq % LABELS, seq % 4, seq % 11 == 0) for seq in range(1, 9001)]
    for one in kept:
        ledger.add_notice(
            one.seq, one.created_ms, one.label, KNOWN | (HIDDEN if one.is_hidden else 0) | one.status << 6
        )
    for one in random.sample(kept, 20):
        ledger.begin_dense(one.seq)
    receipts = [(one, random.randrange(300)) for one in kept if not one.is_hidden for _ in range(one.seq % 4)]
    receipts += [(kept[place], number) for place in (1, 4000, 8998) for number in range(300)]
    late = random.sample(receipts, 2000)
    for one, number in [*receipts, *late]:
        step = random.choice([PENDING, OFFLINE, EXPIRED, DELIVERED])
        received_ms = one.created_ms + random.randrange(1000) if step == DELIVERED else 0
        is_online = random.random() < 0.5
        one.note(number, step, is_online, received_ms)
        ledger.note(one.seq, [number], step | (ONLINE if is_online else 0), received_ms)
    for asked in (
        {"statuses": None, "marks": None},
        {"statuses": None, "marks": None, "since_seq": 3000, "before_seq": 7000},
        {"statuses": b"\1\0\1\1", "marks": b"\0\1\1"},
    ):
        matching = wanted(kept, asked)
        query = PushQuery(ledger, **asked)
        counts = [one.counts() for one in matching]
        sums = [sum(count[place] for count in counts) for place in (0, 2, 3)]
        assert query.totals() == (len(matching), sum(one.status == 3 for one in matching), *sums)
        for sort in (SEQ, STATUS_RANK, LABEL_RANK, TOTAL):
            ranks = RANKS if sort == LABEL_RANK else None
            expected = [one.seq for one in sorted(matching, key=lambda one: key_of(one, sort))]
            for offset in (0, 1, len(expected) // 2, len(expected) - 30, len(expected) - 1, len(expected)):
                assert query.page(sort, offset, 100, False, ranks) == expected[offset : offset + 100]
                assert query.page(sort, offset, 100, True, ranks) == expected[::-1][offset : offset + 100]
    found = counts_of(ledger, [one.seq for one in kept])
    assert {seq: counts[:4] for seq, counts in found.items()} == {one.seq: one.counts()[:4] for one in kept}


@pytest.mark.parametrize(
    ("error", "fields"),
    [
        (ValueError, {"statuses": b"\1"}),
        (TypeError, {"statuses": "1111"}),
        (TypeError, {"marks": bytearray(3)}),
        (TypeError, {"since_seq": None}),
        (OverflowError, {"before_seq": 1 << 64}),
        (TypeError, {"having": 3.5}),
    ],
)
def test_wrong_filters(error: type[Exception], fields: dict[str, Any]) -> None:
    with pytest.raises(error):
        PushQuery(Ledger(1), **fields)
    with pytest.raises(TypeError):
        PushQuery(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (ValueError, (4, 0, 1, True)),
        (ValueError, (-1, 0, 1, True)),
        (ValueError, (SEQ, -1, 1, True)),
        (ValueError, (SEQ, 0, 1, True, RANKS)),
        (ValueError, (LABEL_RANK, 0, 1, True)),
        (ValueError, (LABEL_RANK, 0, 1, True, b"\0\0\0")),
        (OverflowError, (SEQ, 1 << 64, 1, True)),
        (TypeError, (SEQ, "0", 1, True)),
    ],
)
def test_wrong_pages(error: type[Exception], asked: tuple[Any, ...]) -> None:
    ledger = Ledger(1)
    ledger.add_notice(1, 1000, 0)
    with pytest.raises(error):
        PushQuery(ledger).page(*asked)
    assert PushQuery(ledger).page(SEQ, 0, -1, True) == []
    assert PushQuery(ledger).page(SEQ, 5, 5, True) == []


def test_wrong_seqs() -> None:
    with pytest.raises(TypeError):
        counts_of(Ledger(1), ["1"])  # type: ignore[list-item]
    with pytest.raises(OverflowError):
        counts_of(Ledger(1), [1 << 70])
    assert counts_of(Ledger(1), [-5, 0]) == {-5: (0, 0, 0, 0, 0), 0: (0, 0, 0, 0, 0)}


def test_flags_of_a_state() -> None:
    """Notices whose state has some bits, and has not some others."""
    ledger = Ledger(5)
    over, revoked = 0x10, 0x20
    for seq, flags in enumerate((0, over, revoked, over | revoked), 1):
        ledger.add_notice(seq, seq, 1)
        ledger.set_notice(seq, set=flags)
    asked = {(0, 0): [1, 2, 3, 4], (over | revoked, 0): [1], (over | revoked, over): [2], (revoked, revoked): [3, 4]}
    for (flags, state), expected in asked.items():
        query = PushQuery(ledger, flags=flags, state=state)
        assert query.page(SEQ, 0, 10, False) == expected
        assert query.totals()[0] == len(expected)
