"""The clocks of a node."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


def wall_ms() -> int:
    """The time of day, milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True)
class Clock:
    """What the parts of a node ask for the time. Tests move it themselves."""

    now: Callable[[], float] = time.monotonic  # the loop's clock, but for its resolution of 1 ms: seconds
    wall_ms: Callable[[], int] = wall_ms
