"""What every writer does with a batch: halve what failed, and tell the notices in flight that it belongs to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from pushd.in_flight import InFlight
from pushd.telemetry import faults
from pushd.telemetry.metrics import Metrics

T = TypeVar("T")


def halves(items: Sequence[T]) -> list[list[T]]:
    """Both halves of at least two items, in order."""
    half = len(items) // 2
    return [[*items[:half]], [*items[half:]]]


def tell_each(flights: Iterable[InFlight], step: Callable[[InFlight], None], metrics: Metrics) -> None:
    """Calls `step` with every flight; what one of them raises is noted, and keeps no other from being told."""
    for flight in flights:
        try:
            step(flight)
        except Exception as error:
            faults.noted(metrics, "settle", error, message_id=flight.notice.message_id)
