"""What is counted is exposed as the client library exposes the same of its own metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, disable_created_metrics, enable_created_metrics, generate_latest
from prometheus_client import Counter as TheirCounter
from prometheus_client import Histogram as TheirHistogram

from pushd.telemetry.counters import SECONDS, Counter, Counters, Histogram, Histograms

Made = tuple[Any, Any, Any, Any]  # a counter without and with labels, a histogram without and with labels

OBSERVED = (0.0, 0.0001, 0.00011, 0.3, 10.0, 99.0)


def ours(registry: CollectorRegistry) -> Made:
    made = (
        Counter("plain", "About."),
        Counters("labelled", "About.", ("one", "other")),
        Histogram("took", "About."),
        Histograms("each", "About.", ("op",)),
    )
    for collector in made:
        registry.register(collector)
    return made


def theirs(registry: CollectorRegistry) -> Made:
    return (
        TheirCounter("plain", "About.", registry=registry),
        TheirCounter("labelled", "About.", ("one", "other"), registry=registry),
        TheirHistogram("took", "About.", registry=registry, buckets=SECONDS),
        TheirHistogram("each", "About.", ("op",), registry=registry, buckets=SECONDS),
    )


def used(make: Callable[[CollectorRegistry], Made]) -> bytes:
    registry = CollectorRegistry()
    plain, labelled, took, each = make(registry)
    plain.inc()
    plain.inc(2)
    labelled.labels("a", "b").inc()
    labelled.labels("a", '"c"').inc(5)
    labelled.labels("a", "b").inc()
    each.labels("write")
    for seconds in OBSERVED:
        took.observe(seconds)
        each.labels("read").observe(seconds)
    return generate_latest(registry)


def test_the_exposition_is_that_of_the_client_library() -> None:
    disable_created_metrics()  # type: ignore[no-untyped-call]
    try:
        assert used(ours) == used(theirs)
    finally:
        enable_created_metrics()  # type: ignore[no-untyped-call]


def test_many_at_once_are_as_many_one_by_one() -> None:
    one_by_one, at_once = Histogram("a", "About."), Histogram("b", "About.")
    for seconds in (*OBSERVED, 0.2, 0.2, 0.2):
        one_by_one.observe(seconds)
    at_once.observe_each(OBSERVED)
    at_once.observe(0.2, 3)
    assert at_once.buckets == one_by_one.buckets
    assert at_once.sum_s == pytest.approx(one_by_one.sum_s)


def test_the_sum_over_labels() -> None:
    counters = Counters("many", "About.", ("kind",))
    assert counters.value == 0
    counters.labels("a").inc()
    counters.labels("b").inc(2)
    assert counters.value == 3
