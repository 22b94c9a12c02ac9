"""`/metrics` after a script of which everything is known; `stats`, `health` and `deploy/` agree with it."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests import raw
from tests.daemon import Probe, until
from tests.raw import Raw

ROOT = Path(__file__).parents[2]
ALERTS = ROOT / "deploy" / "alerts.yml"
DASHBOARD = ROOT / "deploy" / "grafana-dashboard.json"

COUNTERS = {
    "pushd_connects_total": (),
    "pushd_disconnects_total": ("code",),
    "pushd_handshakes_rejected_total": ("reason",),
    "pushd_notices_total": ("target", "priority", "result"),
    "pushd_frames_sent_total": (),
    "pushd_bytes_sent_total": (),
    "pushd_frames_received_total": ("type",),
    "pushd_dedup_hits_total": (),
    "pushd_mailbox_saved_total": (),
    "pushd_mailbox_delivered_total": (),
    "pushd_acks_total": (),
    "pushd_slow_consumers_total": (),
    "pushd_store_errors_total": ("store",),
    "pushd_errors_total": ("kind",),
}
GAUGES = {
    "pushd_connections": (),
    "pushd_users_online": (),
    "pushd_queue_depth": ("priority",),
    "pushd_workers": (),
    "pushd_worker_utilization": (),
    "pushd_store_up": ("store",),
    "pushd_journal_pending": (),
    "pushd_outbox_pending": ("writer",),
    "pushd_store_writers": ("store",),
}
HISTOGRAMS = {
    "pushd_delivery_latency_seconds": (),
    "pushd_fanout_seconds": (),
    "pushd_store_seconds": ("store", "op"),
    "pushd_loop_lag_seconds": (),
}
PROCESS = (
    "process_cpu_seconds_total",
    "process_max_fds",
    "process_open_fds",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "process_virtual_memory_bytes",
)


class Scrape:
    """One answer of `/metrics`, read by Prometheus' own parser."""

    def __init__(self, text: str) -> None:
        self.types: dict[str, str] = {}
        self.samples: dict[str, list[tuple[dict[str, str], float]]] = {}
        for family in text_string_to_metric_families(text):
            name = f"{family.name}_total" if family.type == "counter" else family.name
            self.types[name] = family.type
            for sample in family.samples:
                self.samples.setdefault(sample.name, []).append((sample.labels, sample.value))

    def value(self, name: str, **labels: str) -> float:
        """The sum over the samples with these labels; 0 if there are none."""
        return sum(value for have, value in self.samples.get(name, []) if labels.items() <= have.items())

    def by(self, name: str, label: str) -> dict[str, float]:
        return {labels[label]: value for labels, value in self.samples.get(name, [])}


async def scrape(probe: Probe) -> Scrape:
    response = await probe.http.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return Scrape(response.text)


async def _everything_happened(probe: Probe) -> dict[str, int]:
    """The script. Returns how many frames clients received, and what else only it knows."""
    frames = 0
    acking = await probe.client(7, ack=True)
    plain = await probe.client(8)
    guest = await probe.client()
    frames += 3
    published = [await probe.publish(target="all", priority=priority) for priority in ("normal", "urgent", "urgent")]
    for client in (acking, plain, guest):
        frames += len(await client.receive_ids(3))
    for index in range(2):
        await probe.publish(target="custom", user_ids=[9, 10], message_id=f"late-{index}")
    for index in (0, 1, 1):
        assert (await probe.publish(target="custom", user_ids=[9, 10], message_id=f"late-{index}"))["duplicate"]
    assert (await probe.post("/system/notice", {"content": ""})).status_code == 400

    await acking.ack(*[notice["message_id"] for notice in published[:2]])
    await acking.send({"type": "message_received", "message_id": published[2]["message_id"]})
    await acking.send({"type": "read", "message_ids": [published[0]["message_id"]]})
    await acking.send({"type": "ping"})
    await acking.send({"type": "nonsense"})
    frames += len([await acking.receive(), await acking.receive()])  # pong, error

    late = await probe.client(9)
    frames += 1 + len(await late.receive_ids(2))  # hello, replay

    for path in ("/ws?user_id=nobody", "/ws?user_id=0"):
        async with await Raw.connect(probe.port) as client:
            client.send(raw.upgrade(path))
            assert await client.head() == 400
    async with await Raw.websocket(probe.port, "/ws?user_id=11") as client:
        client.send(raw.frame(raw.TEXT, b"\xff"))
        assert await client.close_code() == 1007
    frames += 1
    assert (await probe.post("/websocket/disconnect", {"user_id": 8})).json()["data"] == {"closed": 1}
    assert await plain.closed() == 4403
    await guest.ws.close(1000)
    await until(lambda: probe.node.gateway.open_sockets == 2)
    await until(lambda: not probe.node.intake.unsettled_total)
    return {"frames": frames}


class TestScript:
    async def test_the_counters_say_exactly_that(self, probe: Probe) -> None:
        known = await _everything_happened(probe)
        seen = await scrape(probe)

        assert seen.value("pushd_connects_total") == 5
        assert seen.by("pushd_disconnects_total", "code") == {"1000": 1, "1007": 1, "4403": 1}
        assert seen.by("pushd_handshakes_rejected_total", "reason") == {"invalid_request": 2}
        assert (seen.value("pushd_connections"), seen.value("pushd_users_online")) == (2, 2)

        notices = {tuple(labels.values()): value for labels, value in seen.samples["pushd_notices_total"]}
        assert {tuple(sorted(labels)): value for labels, value in notices.items()} == {
            tuple(sorted(("all", "normal", "accepted"))): 1,
            tuple(sorted(("all", "urgent", "accepted"))): 2,
            tuple(sorted(("custom", "normal", "accepted"))): 2,
            tuple(sorted(("custom", "normal", "duplicate"))): 3,
        }
        assert seen.value("pushd_dedup_hits_total") == 3
        assert seen.value("pushd_delivery_latency_seconds_count") == seen.value("pushd_fanout_seconds_count") == 5
        assert seen.value("pushd_mailbox_saved_total") == 4
        assert seen.value("pushd_mailbox_delivered_total") == 2
        assert seen.value("pushd_acks_total") == 3
        received = seen.by("pushd_frames_received_total", "type")
        assert {name: received[name] for name in ("ack", "message_received", "read", "ping", "invalid")} == {
            "ack": 1,
            "message_received": 1,
            "read": 1,
            "ping": 1,
            "invalid": 1,
        }
        assert seen.value("pushd_frames_sent_total") == known["frames"]
        assert seen.value("pushd_bytes_sent_total") > 50 * known["frames"]

        assert seen.by("pushd_queue_depth", "priority") == {"urgent": 0, "high": 0, "normal": 0, "low": 0}
        assert set(seen.by("pushd_store_up", "store").values()) == {1}
        for name in ("slow_consumers_total", "store_errors_total", "errors_total", "journal_pending"):
            assert seen.value(f"pushd_{name}") == 0, name
        assert seen.value("pushd_workers") >= 2
        assert 0 <= seen.value("pushd_worker_utilization") <= 1

    async def test_what_is_not_settled_is_said_at_once(self, probe: Probe) -> None:
        client = await probe.client(7, ack=True)
        published = await probe.publish(target="custom", user_ids=[7], wait_ms=0)
        await client.receive_ids(1)
        assert (await scrape(probe)).value("pushd_journal_pending") == 1
        await client.ack(published["message_id"])
        await until(lambda: not probe.node.intake.unsettled_total)
        assert (await scrape(probe)).value("pushd_journal_pending") == 0

    async def test_stats_and_health_agree(self, probe: Probe) -> None:
        await _everything_happened(probe)
        seen, stats = await scrape(probe), await probe.get("/websocket/stats")
        assert {
            name: stats[name] for name in stats if not name.startswith(("message_", "queue", "worker_u", "up"))
        } == {
            "active_connections": seen.value("pushd_connections"),
            "unique_users": seen.value("pushd_users_online"),
            "total_connections": seen.value("pushd_connects_total"),
            "total_messages": seen.value("pushd_frames_sent_total"),
            "worker_count": seen.value("pushd_workers"),
            "error_rate": 0.0,
            "dedup_hits": seen.value("pushd_dedup_hits_total"),
            "offline_saved": seen.value("pushd_mailbox_saved_total"),
            "offline_delivered": seen.value("pushd_mailbox_delivered_total"),
            "store_writers": seen.by("pushd_store_writers", "store"),
            "outbox_pending": seen.by("pushd_outbox_pending", "writer"),
        }
        assert stats["queue_size"] == seen.by("pushd_queue_depth", "priority")
        latency = stats["message_latency_ms"]
        total_ms = 1000 * seen.value("pushd_delivery_latency_seconds_sum")
        assert 0 < latency["p50"] <= latency["p99"] <= total_ms
        assert await probe.get("/ws/stats") | {"uptime_s": 0, "worker_utilization": 0} == stats | {
            "uptime_s": 0,
            "worker_utilization": 0,
        }
        health = await probe.get("/websocket/health")
        assert (health["status"], health["active_connections"], health["queue_size"]) == ("healthy", 2, 0)
        assert health["worker_count"] == stats["worker_count"]
        assert set(health["stores"].values()) == {"up"}

    async def test_a_slow_consumer(self, start: Any) -> None:
        probe = await start(limits={"max_pending_bytes": 65536})
        async with await Raw.websocket(probe.port, "/ws?user_id=7", receive_buffer=4096):
            for _ in range(400):
                await probe.publish("x", target="all", data="x" * 60_000, wait_ms=0)
                if probe.node.hub.slow_consumers:
                    break
            await until(lambda: not probe.node.gateway.open_sockets)
        seen = await scrape(probe)
        assert seen.value("pushd_slow_consumers_total") == 1
        assert seen.by("pushd_disconnects_total", "code") == {"4008": 1}

    async def test_what_is_refused(self, start: Any) -> None:
        limits = {"max_connections_per_ip": 2, "publishes_per_s": 1}
        probe = await start(limits=limits, server={"trusted_proxies": ["127.0.0.2/32"]})
        await probe.client(7)
        assert (await scrape(probe)).by("pushd_handshakes_rejected_total", "reason") == {}  # over the second connection
        async with await Raw.connect(probe.port) as client:
            client.send(raw.upgrade("/ws?user_id=8"))
            assert await client.head() == 429
        assert (await scrape(probe)).by("pushd_handshakes_rejected_total", "reason") == {"rate_limited": 1}


class TestNames:
    async def test_every_metric_of_the_contract_is_there_from_the_start(self, probe: Probe) -> None:
        """Type and name; a labelled one has no samples before it is first used."""
        seen = await scrape(probe)
        for kind, names in (("counter", COUNTERS), ("gauge", GAUGES), ("histogram", HISTOGRAMS)):
            for name in names:
                assert seen.types.get(name) == kind, name
        assert set(PROCESS) <= set(seen.samples)
        assert abs(seen.value("process_open_fds") - len(os.listdir("/proc/self/fd"))) <= 2
        assert 0 < time.time() - seen.value("process_start_time_seconds") < 86_400
        assert 10**7 < seen.value("process_resident_memory_bytes") < seen.value("process_virtual_memory_bytes")

    async def test_their_labels(self, probe: Probe) -> None:
        await _everything_happened(probe)
        seen = await scrape(probe)
        for name, labels in (COUNTERS | GAUGES).items():
            for have, _ in seen.samples.get(name, []):
                assert set(have) == set(labels), name
        for name, labels in HISTOGRAMS.items():
            for have, _ in seen.samples[f"{name}_bucket"]:
                assert set(have) == {*labels, "le"}, name

    async def test_buckets_span_what_can_happen(self, probe: Probe) -> None:
        await _everything_happened(probe)
        seen = await scrape(probe)
        for name in HISTOGRAMS:
            bounds = {labels["le"] for labels, _ in seen.samples[f"{name}_bucket"]}
            assert "+Inf" in bounds
            finite = sorted(float(bound) for bound in bounds - {"+Inf"})
            assert (finite[0], finite[-1]) == (0.0001, 10.0), name
            assert all(after / before <= 2.6 for before, after in itertools.pairwise(finite)), name


def _metrics_of(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:pushd|process)_\w+", re.sub(r'"[^"]*"|\{[^}]*\}', "", expression)))


def _expressions(value: Any) -> list[str]:
    """Every `expr` of the dashboard, and the queries of its variables."""
    if isinstance(value, list):
        return [found for item in value for found in _expressions(item)]
    if not isinstance(value, dict):
        return []
    own = [value[name] for name in ("expr", "query", "definition") if isinstance(value.get(name), str)]
    return own + [found for item in value.values() for found in _expressions(item)]


def _panels(panels: list[Any]) -> list[Any]:
    return [found for panel in panels for found in [panel, *_panels(panel.get("panels", []))]]


class TestDeploy:
    async def test_what_is_watched_exists(self, probe: Probe) -> None:
        seen = await scrape(probe)
        exposed = set(seen.samples) | set(seen.types)
        exposed |= {f"{name}{part}" for name in HISTOGRAMS for part in ("_bucket", "_sum", "_count")}
        dashboard = [found for text in _expressions(json.loads(DASHBOARD.read_text())) for found in _metrics_of(text)]
        lines = [line for line in ALERTS.read_text().splitlines() if not line.lstrip().startswith("#")]
        rules = [found for line in lines for found in _metrics_of(line)]
        assert len(set(dashboard)) > 20
        assert len(set(rules)) > 5
        assert set(dashboard) | set(rules) <= exposed

    def test_panels_have_ids_of_their_own(self) -> None:
        document = json.loads(DASHBOARD.read_text())
        ids = [panel["id"] for panel in _panels(document["panels"])]
        assert len(ids) == len(set(ids)) > 10
        assert document["uid"]
        assert document["title"]

    @pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
    async def test_the_rules_are_rules(self) -> None:
        process = await asyncio.create_subprocess_exec(
            "promtool", "check", "rules", str(ALERTS),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        output, _ = await process.communicate()
        assert process.returncode == 0, output.decode()

    @pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
    async def test_the_exposition_is_one(self, probe: Probe) -> None:
        await _everything_happened(probe)
        text = (await probe.http.get("/metrics")).content
        process = await asyncio.create_subprocess_exec(
            "promtool", "check", "metrics",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        output, _ = await process.communicate(text)
        assert (process.returncode, output.decode()) == (0, "")
