"""Whose count this node may have changed: some users, or anybody."""

from __future__ import annotations

from pushd.stores.mongo.unread import UnreadChanges


def test_it_is_asked_once() -> None:
    changes = UnreadChanges()
    changes.note([1, 2])
    changes.note([2])
    assert changes.take() == {1, 2}
    assert changes.take() == set()


def test_many_are_anybody() -> None:
    changes = UnreadChanges(most=2)
    changes.note([1, 2])
    changes.note([3])
    changes.note([4])
    assert changes.take() is None
    changes.note_anybody()
    assert changes.take() is None
    assert changes.take() == set()
