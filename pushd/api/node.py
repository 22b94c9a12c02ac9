"""What the node does, and how it is. Nothing of this asks a store: it is told while stores hang."""

from __future__ import annotations

import msgspec

from pushd._fastpath import Hub
from pushd.api.endpoint import Call
from pushd.api.forms import Nothing
from pushd.delivery.dispatch import Dispatcher
from pushd.delivery.lanes import Lanes
from pushd.in_flight import InFlight
from pushd.model import Priority
from pushd.ports import Mailbox
from pushd.telemetry.health import Health
from pushd.telemetry.metrics import Metrics
from pushd.writing.writers import Writers


class Latency(msgspec.Struct):
    """Accepted to last socket written, over the last notices; milliseconds."""

    p50: float
    p99: float


class QueueSize(msgspec.Struct):
    """Waiting notices."""

    urgent: int
    high: int
    normal: int
    low: int


class Stats(msgspec.Struct):
    """What the node does. `error_rate`: errors per notice.

    `store_writers`: calls that may write to a store at the same time; `outbox_pending`: batches of writes on disk
    that wait for their store.
    """

    active_connections: int
    unique_users: int
    total_connections: int
    total_messages: int
    message_latency_ms: Latency
    queue_size: QueueSize
    worker_count: int
    worker_utilization: float
    error_rate: float
    dedup_hits: int
    offline_saved: int
    offline_delivered: int
    store_writers: dict[str, int]
    outbox_pending: dict[str, int]
    uptime_s: float


class NodeHealth(msgspec.Struct):
    """How the node is: healthy, degraded or unhealthy."""

    status: str
    active_connections: int
    queue_size: int
    worker_count: int
    last_error: str
    uptime: float
    stores: dict[str, str]
    set_aside: int


class NodeHandlers:
    """Tells what the node's parts say of themselves."""

    def __init__(
        self,
        hub: Hub,
        lanes: Lanes[InFlight],
        dispatcher: Dispatcher,
        writers: Writers,
        mailbox: Mailbox,
        health: Health,
        metrics: Metrics,
    ) -> None:
        self._hub = hub
        self._lanes = lanes
        self._dispatcher = dispatcher
        self._writers = writers
        self._mailbox = mailbox
        self._health = health
        self._metrics = metrics

    def stats(self, call: Call[Nothing, None]) -> Stats:
        """GET /websocket/stats."""
        metrics, depths = self._metrics, self._lanes.depths()
        errors = metrics.errors.value + metrics.store_errors.value
        return Stats(
            active_connections=self._hub.connections_total,
            unique_users=self._hub.users_total,
            total_connections=int(metrics.connects.value),
            total_messages=self._hub.frames_sent,
            message_latency_ms=Latency(p50=metrics.latency_ms(0.5), p99=metrics.latency_ms(0.99)),
            queue_size=QueueSize(
                urgent=depths[Priority.URGENT],
                high=depths[Priority.HIGH],
                normal=depths[Priority.NORMAL],
                low=depths[Priority.LOW],
            ),
            worker_count=self._dispatcher.worker_count,
            worker_utilization=round(self._dispatcher.utilization, 4),
            error_rate=round(errors / max(1.0, metrics.notices.value), 4),
            dedup_hits=int(metrics.dedup_hits.value),
            offline_saved=int(metrics.mailbox_saved.value),
            offline_delivered=int(metrics.mailbox_delivered.value),
            store_writers={"mailbox": self._mailbox.writers},
            outbox_pending={writer.name: writer.on_disk for writer in self._writers.all()},
            uptime_s=round(self._health.uptime_s, 3),
        )

    def health(self, call: Call[Nothing, None]) -> NodeHealth:
        """GET /websocket/health."""
        health = self._health
        return NodeHealth(
            status=health.status,
            active_connections=self._hub.connections_total,
            queue_size=len(self._lanes),
            worker_count=self._dispatcher.worker_count,
            last_error=health.error,
            uptime=round(health.uptime_s, 3),
            stores=health.store_states(),
            set_aside=health.set_aside_total,
        )
