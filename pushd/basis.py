"""What every part of a node stands on."""

from __future__ import annotations

from dataclasses import dataclass, field

from pushd.clock import Clock
from pushd.config.current import CurrentConfig
from pushd.telemetry.metrics import Metrics


@dataclass(frozen=True)
class Basis:
    """The configuration in force, the metrics and the clocks of one node."""

    current: CurrentConfig
    metrics: Metrics = field(default_factory=Metrics)
    clock: Clock = field(default_factory=Clock)
