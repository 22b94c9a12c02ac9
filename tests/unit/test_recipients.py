"""Who is to get a notice, asked of stores that come and go."""

from __future__ import annotations

from typing import Any

import pytest

from pushd.delivery.recipients import UNEXPECTED_MOST, StoredRecipients, is_partly_delivered
from pushd.errors import StoreUnavailable
from pushd.in_flight import InFlight
from pushd.telemetry.metrics import Metrics
from tests.unit.parts import notice


class Directory:
    """Fails as it is told, then knows three users."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)

    async def ids(self, target: Any) -> list[int]:
        if self.failures:
            raise self.failures.pop(0)
        return [1, 2, 3]


def stored(directory: Any) -> StoredRecipients:
    nothing: Any = None
    return StoredRecipients(directory, nothing, nothing, Metrics(), 0.0)


async def test_stores_that_are_down_are_asked_again() -> None:
    directory = Directory(*[StoreUnavailable("directory", "down")] * 10)
    assert await stored(directory).recipients(InFlight(notice(), 0.0)) == [1, 2, 3]


async def test_what_nobody_foresaw_is_raised_in_the_end() -> None:
    assert await stored(Directory(*[ValueError()] * (UNEXPECTED_MOST - 1))).recipients(InFlight(notice(), 0.0))
    with pytest.raises(ValueError, match="odd"):
        await stored(Directory(*[ValueError("odd")] * UNEXPECTED_MOST)).recipients(InFlight(notice(), 0.0))


def test_what_a_former_process_accepted_may_have_been_delivered_in_part() -> None:
    assert is_partly_delivered(InFlight(notice(), 0.0, is_restored=True))
    assert not is_partly_delivered(InFlight(notice(), 0.0))
