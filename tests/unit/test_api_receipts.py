"""How far a notice came: counts with their rates."""

from __future__ import annotations

import pytest

from pushd.api.receipts import rate, status_view
from pushd.records import ReceiptStats


@pytest.mark.parametrize(
    ("part", "whole", "expected"),
    [(0, 0, 0.0), (0, 5, 0.0), (5, 5, 100.0), (1, 3, 33.33), (2, 3, 66.67), (1, 8, 12.5), (1, 100_000, 0.0)],
)
def test_rates_are_percent_with_two_decimals(part: int, whole: int, expected: float) -> None:
    assert rate(part, whole) == expected


def test_counts_with_rates() -> None:
    view = status_view(ReceiptStats(8, 6, 4, 2, 1))
    assert (view.receive_rate, view.read_rate, view.confirm_rate) == (50.0, 25.0, 12.5)
