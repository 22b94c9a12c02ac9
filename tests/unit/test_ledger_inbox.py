"""Walks over one user's receipts, newest first; test_ledger.py compares them with the model."""

from __future__ import annotations

from typing import Any

import pytest

from pushd.ledger import _inbox
from pushd.ledger._ledger import Ledger
from tests.unit.ledger_model import AGAIN, CONFIRMED, DELIVERED, PENDING, READ, REVOKED

ANY = bytes([1]) * 256
END = (1 << 63) - 1


@pytest.fixture
def ledger() -> Ledger:
    """Twelve notices to user 0, every third in a dense block; the first of them comes last."""
    made = Ledger(100)
    made.add_users(3)
    for seq in range(1, 13):
        made.add_notice(seq, seq * 10, seq % 2)
        if seq % 3 == 0:
            made.begin_dense(seq)
    for seq in [*range(2, 13), 1]:
        made.note(seq, [0], DELIVERED)
    return made


def test_pages_follow_one_another_wherever_receipts_lie(ledger: Ledger) -> None:
    found: list[int] = []
    before = END
    while page := _inbox.seqs(ledger, 0, before, 5, ANY, None):
        assert len(page) <= 5
        found += page
        before = page[-1]
    assert found == [*range(12, 0, -1)]


def test_a_page_is_not_moved_by_what_comes_and_goes(ledger: Ledger) -> None:
    first = _inbox.seqs(ledger, 0, END, 5, ANY, None)
    ledger.add_notice(13, 130, 0)
    ledger.note(13, [0], PENDING)
    ledger.hide(7)
    ledger.set_notice(6, set=REVOKED)
    ledger.expire(4, 100)
    assert _inbox.seqs(ledger, 0, first[-1], 5, ANY, None) == [5, 3, 2, 1]
    assert _inbox.seqs(ledger, 1, END, 5, ANY, None) == []


def test_labels_without_a_mark_are_left_out(ledger: Ledger) -> None:
    assert _inbox.seqs(ledger, 0, END, 3, ANY, b"\0\1") == [11, 9, 7]
    assert _inbox.seqs(ledger, 0, END, 3, ANY, b"\1") == [12, 10, 8]
    assert _inbox.seqs(ledger, 0, END, 3, ANY, b"") == []


def test_what_is_put_away_is_read_and_does_not_count(ledger: Ledger) -> None:
    _inbox.unread_changed(ledger)
    assert _inbox.archive(ledger, 3, 0, 99)
    assert ledger.unread(0) == 11
    assert _inbox.receipts(ledger, 0, 4, 1, ANY, None) == [(3, READ | 0x20, 99, 0)]
    assert _inbox.unread_changed(ledger) == [0]
    assert _inbox.unarchive(ledger, 3, 0)
    assert _inbox.receipts(ledger, 0, 4, 1, ANY, None) == [(3, READ, 99, 0)]
    assert (ledger.unread(0), _inbox.unread_changed(ledger)) == (11, [])
    assert not _inbox.archive(ledger, 3, 1, 99)
    assert not _inbox.unarchive(ledger, 99, 0)


def test_what_is_unread_again_counts_once_it_is_put_back(ledger: Ledger) -> None:
    _inbox.archive(ledger, 2, 1, 99)
    ledger.note(2, [1], AGAIN | 0x10)
    _inbox.archive(ledger, 2, 1, 99)
    assert ledger.unread(1) == 0


def test_whose_count_has_changed(ledger: Ledger) -> None:
    _inbox.unread_changed(ledger)
    ledger.mark(5, 0, READ, 99)
    ledger.note(3, [1, 2], PENDING)
    assert _inbox.unread_changed(ledger) == [0, 1, 2]
    ledger.note(3, [1, 2], DELIVERED)
    ledger.set_notice(5, set=0x40)
    ledger.mark(5, 0, CONFIRMED, 100)
    assert _inbox.unread_changed(ledger) == []
    ledger.set_notice(3, set=REVOKED)
    assert sorted(_inbox.unread_changed(ledger) or ()) == [0, 1, 2]
    ledger.expire(4, 100)
    ledger.hide(6)
    assert _inbox.unread_changed(ledger) == [0, 0]


def test_more_changes_than_are_named_are_anybodys(ledger: Ledger) -> None:
    ledger.add_users(2000)
    _inbox.unread_changed(ledger)
    ledger.note(3, [*range(1, 1024)], PENDING)
    assert len(_inbox.unread_changed(ledger) or ()) == 1023
    ledger.note(6, [*range(1, 1025)], PENDING)
    assert _inbox.unread_changed(ledger) is None
    assert _inbox.unread_changed(ledger) == []


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((3, END, 1, ANY, None), IndexError),
        ((-1, END, 1, ANY, None), OverflowError),
        ((0, END + 1, 1, ANY, None), OverflowError),
        ((0, END, -1, ANY, None), OverflowError),
        ((0, END, 1, ANY[1:], None), ValueError),
        ((0, END, 1, None, None), TypeError),
        ((0, END, 1, ANY, "x"), TypeError),
    ],
)
def test_what_no_argument_may_be_is_refused(ledger: Ledger, arguments: Any, error: type[Exception]) -> None:
    for ask in (_inbox.seqs, _inbox.receipts):
        with pytest.raises(error):
            ask(ledger, *arguments)
    for change, at in ((_inbox.archive, (9,)), (_inbox.unarchive, ())):
        with pytest.raises(IndexError):
            change(ledger, 1, 3, *at)
