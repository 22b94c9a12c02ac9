"""Long sequences a piece at a time."""

from __future__ import annotations

import pytest

from pushd.batched import batched


@pytest.mark.parametrize(
    ("count", "size", "expected"),
    [(0, 3, []), (1, 3, [[0]]), (3, 3, [[0, 1, 2]]), (7, 3, [[0, 1, 2], [3, 4, 5], [6]])],
)
def test_batches_have_the_size_but_for_the_last(count: int, size: int, expected: list[list[int]]) -> None:
    assert list(batched(range(count), size)) == expected


def test_no_more_is_taken_than_is_asked_for() -> None:
    taken: list[int] = []
    batches = batched((taken.append(number) or number for number in range(10)), 2)  # type: ignore[func-returns-value]
    assert next(batches) == [0, 1]
    assert taken == [0, 1]
