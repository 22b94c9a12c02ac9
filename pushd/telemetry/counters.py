"""Counters and histograms of one thread: those of the client library take a lock, and microseconds, for every step."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import Generic, TypeVar

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_BOUNDS = [*map(floatToGoString, SECONDS), "+Inf"]


class Count:
    """How often something happened."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1) -> None:
        """It happened, `amount` times."""
        self.value += amount


class Durations:
    """How long something took, by the buckets SECONDS: up to its bound, and above the one before."""

    __slots__ = ("buckets", "sum_s")

    def __init__(self) -> None:
        self.buckets = [0] * len(_BOUNDS)
        self.sum_s = 0.0

    def observe(self, seconds: float, times: int = 1) -> None:
        """It took that long, `times` times."""
        self.buckets[bisect_left(SECONDS, seconds)] += times
        self.sum_s += seconds * times

    def observe_each(self, durations_s: Iterable[float]) -> None:
        """It took so long each time."""
        buckets = self.buckets
        for seconds in durations_s:
            buckets[bisect_left(SECONDS, seconds)] += 1
            self.sum_s += seconds


T = TypeVar("T", Count, Durations)


class _Labelled(Collector, Generic[T]):
    """One of what `make` makes for each combination of labels."""

    def __init__(self, make: Callable[[], T], name: str, about: str, labels: tuple[str, ...]) -> None:
        self._make: Callable[[], T] = make
        self._name, self._about, self._labels = name, about, labels
        self._children: dict[tuple[str, ...], T] = {}

    def labels(self, *values: str) -> T:
        """What belongs to these values."""
        child = self._children.get(values)
        if child is None:
            child = self._children[values] = self._make()
        return child


class Counter(Count, Collector):
    """A counter without labels; `name` without `_total`."""

    def __init__(self, name: str, about: str) -> None:
        super().__init__()
        self._name, self._about = name, about

    def collect(self) -> list[Metric]:
        """What the exposition says of it."""
        return [CounterMetricFamily(self._name, self._about, value=self.value)]


class Counters(_Labelled[Count]):
    """A counter with labels."""

    def __init__(self, name: str, about: str, labels: tuple[str, ...]) -> None:
        super().__init__(Count, name, about, labels)

    @property
    def value(self) -> float:
        """The sum over all labels."""
        return sum(count.value for count in self._children.values())

    def collect(self) -> list[Metric]:
        """What the exposition says of it."""
        family = CounterMetricFamily(self._name, self._about, labels=self._labels)
        for values, count in self._children.items():
            family.add_metric(values, count.value)
        return [family]


class Histogram(Durations, Collector):
    """A histogram without labels."""

    def __init__(self, name: str, about: str) -> None:
        super().__init__()
        self._name, self._about = name, about

    def collect(self) -> list[Metric]:
        """What the exposition says of it."""
        return [_histogram(self._name, self._about, (), [((), self)])]


class Histograms(_Labelled[Durations]):
    """A histogram with labels."""

    def __init__(self, name: str, about: str, labels: tuple[str, ...]) -> None:
        super().__init__(Durations, name, about, labels)

    def collect(self) -> list[Metric]:
        """What the exposition says of it."""
        return [_histogram(self._name, self._about, self._labels, self._children.items())]


def _histogram(
    name: str, about: str, labels: tuple[str, ...], children: Iterable[tuple[tuple[str, ...], Durations]]
) -> Metric:
    family = HistogramMetricFamily(name, about, labels=labels)
    for values, durations in children:
        counts = accumulate(map(float, durations.buckets))
        family.add_metric(values, list(zip(_BOUNDS, counts, strict=True)), durations.sum_s)
    return family
