"""The Prometheus registry (CONTRACT section 7), and the few figures `/websocket/stats` reads from it.

What the hub and the lanes count anyway is read at the scrape, not counted a second time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from cachetools import TTLCache
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pushd.errors import CloseCode
from pushd.telemetry.counters import Count, Counter, Counters, Histogram, Histograms

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
RECENT_NOTICES = 2048
CAUSES_REMEMBERED, REMEMBERED_S = 256, 3600.0
KNOWN_CLOSE_CODES = frozenset({*CloseCode, *range(1000, 1015)})  # RFC 6455 section 7.4.1, and its registry

C = TypeVar("C", bound=Collector)


class Metrics:
    """Every metric of the node; one instance per daemon, with a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._recent_latency_s: deque[float] = deque(maxlen=RECENT_NOTICES)
        self._is_up: dict[str, bool] = {}
        self._causes: TTLCache[tuple[str, ...], None] = TTLCache(CAUSES_REMEMBERED, REMEMBERED_S)
        self._connections()
        self._notices()
        self._stores()

    def _counter(self, name: str, about: str) -> Counter:
        return self._registered(Counter(name, about))

    def _counters(self, name: str, about: str, *labels: str) -> Counters:
        return self._registered(Counters(name, about, labels))

    def _histogram(self, name: str, about: str) -> Histogram:
        return self._registered(Histogram(name, about))

    def _registered(self, collector: C) -> C:
        self.registry.register(collector)
        return collector

    def _connections(self) -> None:
        self.connects = self._counter("pushd_connects", "WebSocket connections accepted.")
        self.disconnects = self._counters("pushd_disconnects", "WebSocket connections ended.", "code")
        self.rejected = self._counters(
            "pushd_handshakes_rejected", "Connections, upgrades and bodies refused.", "reason"
        )
        self.frames_received = self._counters("pushd_frames_received", "Messages from clients.", "type")
        self._frames_of: dict[str, Count] = {}

    def _notices(self) -> None:
        self.notices = self._counters("pushd_notices", "Notices published.", "target", "priority", "result")
        self.latency = self._histogram("pushd_delivery_latency_seconds", "Accepted to last socket written.")
        self.fanout = self._histogram("pushd_fanout_seconds", "First to last socket written.")
        self.dedup_hits = self._counter("pushd_dedup_hits", "Repeated publishes recognised.")
        self.mailbox_saved = self._counter("pushd_mailbox_saved", "Notices put into mailboxes, per recipient.")
        self.mailbox_delivered = self._counter("pushd_mailbox_delivered", "Notices replayed from mailboxes.")
        self.acks = self._counter("pushd_acks", "Notices acknowledged by clients.")

    def _stores(self) -> None:
        self.store_up = Gauge(
            "pushd_store_up", "1 while the store's last operation worked.", ("store",), registry=self.registry
        )
        self.store_seconds = self._registered(Histograms("pushd_store_seconds", "Store operations.", ("store", "op")))
        self.store_errors = self._counters("pushd_store_errors", "Store operations that failed.", "store")
        self.loop_lag = self._histogram("pushd_loop_lag_seconds", "How late the event loop ran a timer.")
        self.errors = self._counters("pushd_errors", "Things that should not happen.", "kind")
        self.set_aside = self._counters("pushd_set_aside", "What could not be used and was set aside.", "kind")

    def is_new_cause(self, cause: tuple[str, ...]) -> bool:
        """True the first time within an hour, of a bounded number of causes: what goes into the log once."""
        if cause in self._causes:
            return False
        self._causes[cause] = None
        return True

    def observe_store(self, store: str, op: str, seconds: float, ok: bool) -> None:
        """A store operation ended."""
        self.store_seconds.labels(store, op).observe(seconds)
        if self._is_up.get(store) is not ok:
            self._is_up[store] = ok
            self.store_up.labels(store).set(ok)
        if not ok:
            self.store_errors.labels(store).inc()

    def count_notices(self, target: str, priority: str, result: str, count: int) -> None:
        """So many publishes were answered."""
        self.notices.labels(target, priority, result).inc(count)

    def count_disconnect(self, code: int) -> None:
        """A connection ended. Clients may close with thousands of codes: those that mean nothing here are "other"."""
        self.disconnects.labels(str(code) if code in KNOWN_CLOSE_CODES else "other").inc()

    def count_frame(self, kind: str) -> None:
        """A message of a client was understood."""
        count = self._frames_of.get(kind)
        if count is None:
            count = self._frames_of[kind] = self.frames_received.labels(kind)
        count.value += 1

    def observe_delivery(self, latency_s: float, fanout_s: float) -> None:
        """The last socket of a notice was written."""
        self.latency.observe(latency_s)
        self.fanout.observe(fanout_s)
        self._recent_latency_s.append(latency_s)

    def observe_deliveries(self, latencies_s: Sequence[float], fanout_s: float) -> None:
        """Of each of some notices the last socket was written; writing took about `fanout_s` each."""
        self.latency.observe_each(latencies_s)
        self.fanout.observe(fanout_s, len(latencies_s))
        self._recent_latency_s.extend(latencies_s)

    def latency_ms(self, quantile: float) -> float:
        """Delivery latency over the last notices, in ms; 0 before the first."""
        recent = sorted(self._recent_latency_s)
        return round(recent[int((len(recent) - 1) * quantile)] * 1000, 3) if recent else 0.0

    def read_at_scrape(self, read: Callable[[], Iterable[Metric]]) -> None:
        """Add metrics that are read from their owner at each scrape."""
        self.registry.register(_AtScrape(read))

    def text(self) -> bytes:
        """The exposition, Prometheus text format 0.0.4."""
        return generate_latest(self.registry)


class _AtScrape(Collector):
    def __init__(self, read: Callable[[], Iterable[Metric]]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        return self._read()


def gauge(name: str, about: str, value: float) -> Metric:
    """A gauge read at the scrape."""
    return GaugeMetricFamily(name, about, value=value)


def counter(name: str, about: str, value: float) -> Metric:
    """A counter read at the scrape; `name` without `_total`."""
    return CounterMetricFamily(name, about, value=value)


def labelled_gauge(name: str, about: str, label: str, values: dict[str, float]) -> Metric:
    """A gauge with one label, read at the scrape."""
    family = GaugeMetricFamily(name, about, labels=[label])
    for label_value, value in values.items():
        family.add_metric([label_value], value)
    return family
