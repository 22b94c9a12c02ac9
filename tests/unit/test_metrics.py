"""The exposition has every name of CONTRACT section 7, and the figures of /websocket/stats are right."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pushd.telemetry.metrics import CONTENT_TYPE, RECENT_NOTICES, Metrics, counter, gauge, labelled_gauge

# By the owner of the figure: these are counted in Metrics, those of the hub and the lanes are read at the scrape.
COUNTED = [
    "pushd_connects_total",
    "pushd_disconnects_total{code}",
    "pushd_handshakes_rejected_total{reason}",
    "pushd_notices_total{target,priority,result}",
    "pushd_frames_received_total{type}",
    "pushd_delivery_latency_seconds",
    "pushd_fanout_seconds",
    "pushd_dedup_hits_total",
    "pushd_mailbox_saved_total",
    "pushd_mailbox_delivered_total",
    "pushd_acks_total",
    "pushd_store_up{store}",
    "pushd_store_seconds{store,op}",
    "pushd_store_errors_total{store}",
    "pushd_loop_lag_seconds",
    "pushd_errors_total{kind}",
]


def samples(metrics: Metrics) -> dict[str, list[tuple[dict[str, str], float]]]:
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(metrics.text().decode()):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def touched() -> Metrics:
    """Every labelled metric has a sample."""
    metrics = Metrics()
    metrics.count_disconnect(1000)
    metrics.rejected.labels("forbidden").inc()
    metrics.notices.labels("all", "normal", "accepted").inc(3)
    metrics.frames_received.labels("ping").inc()
    metrics.errors.labels("loop").inc()
    metrics.observe_store("mailbox", "save", 0.002, ok=False)
    metrics.observe_delivery(0.003, 0.001)
    return metrics


@pytest.mark.parametrize("expected", COUNTED)
def test_names_and_labels(expected: str) -> None:
    name, _, labels = expected.rstrip("}").partition("{")
    found = samples(touched())
    (given, _value), *_ = found.get(name) or found[f"{name}_count"]
    assert sorted(given) == sorted(filter(None, labels.split(",")))


def test_format() -> None:
    found = samples(Metrics())
    assert not [name for name in found if name.endswith("_created")]
    assert CONTENT_TYPE.startswith("text/plain; version=0.0.4")


def test_two_daemons_in_one_process_do_not_share_figures() -> None:
    one, other = Metrics(), Metrics()
    one.connects.inc()
    assert (one.connects.value, other.connects.value) == (1, 0)


def test_a_store_is_up_when_its_last_operation_worked() -> None:
    metrics = Metrics()
    for ok in (True, False, False, True):
        metrics.observe_store("records", "write", 0.001, ok)
    found = samples(metrics)
    assert found["pushd_store_up"] == [({"store": "records"}, 1.0)]
    assert found["pushd_store_errors_total"] == [({"store": "records"}, 2.0)]
    assert found["pushd_store_seconds_count"] == [({"store": "records", "op": "write"}, 4.0)]


def test_latency_of_the_last_notices() -> None:
    metrics = Metrics()
    assert metrics.latency_ms(0.5) == 0.0
    metrics.observe_delivery(0.25, 0.1)
    assert metrics.latency_ms(0.5) == metrics.latency_ms(0.99) == 250.0
    for milliseconds in range(RECENT_NOTICES):
        metrics.observe_delivery(milliseconds / 1000, 0.0)
    assert metrics.latency_ms(0.5) == RECENT_NOTICES // 2 - 1
    assert metrics.latency_ms(1.0) == RECENT_NOTICES - 1
    assert samples(metrics)["pushd_delivery_latency_seconds_count"] == [({}, RECENT_NOTICES + 1.0)]


def test_what_others_count_is_read_at_each_scrape() -> None:
    metrics = Metrics()
    figures = {"connections": 1.0}
    metrics.read_at_scrape(
        lambda: [
            gauge("pushd_connections", "About.", figures["connections"]),
            counter("pushd_frames_sent", "About.", 7),
            labelled_gauge("pushd_queue_depth", "About.", "priority", {"low": 1.0, "urgent": 2.0}),
        ]
    )
    assert samples(metrics)["pushd_connections"] == [({}, 1.0)]
    figures["connections"] = 5.0
    found = samples(metrics)
    assert found["pushd_connections"] == [({}, 5.0)]
    assert found["pushd_frames_sent_total"] == [({}, 7.0)]
    assert found["pushd_queue_depth"] == [({"priority": "low"}, 1.0), ({"priority": "urgent"}, 2.0)]


def test_totals_over_labels() -> None:
    metrics = touched()
    metrics.notices.labels("role", "low", "accepted").inc(4)
    assert metrics.notices.value == 7
    assert metrics.acks.value == 0


def test_clients_cannot_make_series_of_close_codes() -> None:
    metrics = Metrics()
    for code in range(1000, 5000):
        metrics.count_disconnect(code)
    samples = [line for line in metrics.text().decode().splitlines() if line.startswith("pushd_disconnects_total{")]
    assert 'pushd_disconnects_total{code="other"} ' in "".join(samples)
    assert 'pushd_disconnects_total{code="4408"}' not in "".join(samples)
    assert len(samples) < 40
    assert metrics.disconnects.value == 4000
