"""The composition root: opens every part in order and undoes it in reverse. The only place that knows them all."""

from __future__ import annotations

import asyncio
import gc
import math
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import msgspec
import structlog
import uvloop
from prometheus_client.core import Metric

from pushd import __version__, streams
from pushd.api import openapi
from pushd.api.answers import AnswerTurns
from pushd.api.connections import ConnectionHandlers
from pushd.api.mailboxes import MailboxHandlers
from pushd.api.node import NodeHandlers
from pushd.api.probes import Probes
from pushd.api.publishing import PublishingHandlers
from pushd.api.receipts import ReceiptHandlers
from pushd.api.receive_records import ReceiveRecordHandlers
from pushd.api.records import RecordHandlers
from pushd.api.router import Router
from pushd.api.table import Api, endpoints
from pushd.auth import authenticator as auth
from pushd.clock import Clock, wall_ms
from pushd.config.schema import Config
from pushd.core import Core, Past, read_past
from pushd.errors import ConfigError, StartError, StoreError
from pushd.http import server as front
from pushd.http import sockets
from pushd.ports import Revocations, Stores
from pushd.signals import Signals, end_within
from pushd.stores import open_revocations, open_stores
from pushd.telemetry import faults, logs, systemd
from pushd.telemetry.health import Health
from pushd.telemetry.metrics import Metrics, counter, gauge, labelled_gauge
from pushd.telemetry.process import ProcessMetrics
from pushd.telemetry.supervision import supervised
from pushd.users import devices
from pushd.writing.set_aside import Aside
from pushd.ws import client as websocket
from pushd.ws._reader import Reader
from pushd.ws.gateway import Gateway

log = structlog.get_logger("pushd")

FINISH_WITHIN_S = 3.0  # after the drain: what is left to write, and to close on the other side
END_WITHIN_S = 4.5  # after the drain: whatever hangs, the process ends
CLOSES_PER_S = 200  # few connections need not wait for the whole of drain_s


class Node(Core):
    """The parts of a running daemon, wired together."""

    def __init__(
        self,
        config: Config,
        stores: Stores,
        revocations: Revocations | None,
        health: Health,
        metrics: Metrics,
        past: Past,
        aside: Aside,
    ) -> None:
        super().__init__(config, stores, aside, metrics, Clock(), node_id=node_id(config), past=past)
        current, writers, presence = self.current, self.writers, self.presence
        self.health = health
        self.mailbox = stores.mailbox
        self.remotes = stores.remotes
        self.front: front.Front | None = None
        self.reader = Reader(websocket.parsing, *websocket.longest_frames(config.limits))
        authenticator = auth.Authenticator(current, revocations)
        self.has_revocations = revocations is not None
        self.gateway = Gateway(
            self.hub, self.reader, presence, self.receipts, authenticator, current, metrics, self.clock
        )
        health.set_aside = lambda: aside.total
        api = endpoints(self._api())
        description = msgspec.json.encode(openapi.document(api, config))
        probes = Probes(health, metrics, description)
        self.router = Router(api, probes, self.gateway, authenticator, current, metrics)
        health.watch_failures(
            [
                lambda: "mailbox: replays wait for the store" if presence.failure else "",
                *(_failure_of(writer) for writer in writers.all()),
            ]
        )
        metrics.read_at_scrape(self._at_scrape)

    def _api(self) -> Api:
        hub, records, mailbox, writers = self.hub, self.stores.records, self.stores.mailbox, self.writers
        current, clock, turns = self.current, self.clock, AnswerTurns()
        return Api(
            publishing=PublishingHandlers(self.intake, records, writers, current),
            records=RecordHandlers(records, writers, current, turns),
            receive_records=ReceiveRecordHandlers(records, writers, current, turns),
            receipts=ReceiptHandlers(self.receipts, records, hub, writers, current),
            mailboxes=MailboxHandlers(mailbox, writers, current, clock, turns),
            connections=ConnectionHandlers(hub, self.directory, self.statuses, current, clock, turns),
            node=NodeHandlers(hub, self.lanes, self.dispatcher, writers, mailbox, self.health, self.metrics),
        )

    @property
    def port(self) -> int:
        """The port in use, also when the configuration says 0."""
        return self.front.port if self.front else 0

    def background(self) -> dict[str, Callable[[], Coroutine[Any, Any, None]]]:
        """What runs for as long as the node does, by name; stopped in reverse order. It may be run again."""
        return super().background() | {
            "loop lag": self.health.watch_loop,
            **{f"{remote.store} store": partial(self.health.watch_store, remote) for remote in self.remotes},
            **({"revocations": self.gateway.watch_revocations} if self.has_revocations else {}),
        }

    def _at_scrape(self) -> Iterable[Metric]:
        hub, depths = self.hub, self.lanes.depths()
        yield gauge("pushd_journal_pending", "Accepted notices not settled.", self.intake.unsettled_total)
        yield gauge("pushd_connections", "Live WebSocket connections.", hub.connections_total)
        yield gauge("pushd_users_online", "Users with a connection.", hub.users_total)
        yield counter("pushd_frames_sent", "Frames written to connections.", hub.frames_sent)
        yield counter("pushd_bytes_sent", "Bytes of these frames.", hub.bytes_sent)
        yield counter("pushd_slow_consumers", "Connections closed with 4008.", hub.slow_consumers)
        yield labelled_gauge(
            "pushd_queue_depth",
            "Notices waiting for a worker.",
            "priority",
            {priority.name.lower(): float(depth) for priority, depth in depths.items()},
        )
        yield labelled_gauge(
            "pushd_outbox_pending",
            "Batches of writes on disk, waiting for their store.",
            "writer",
            {writer.name: float(writer.on_disk) for writer in self.writers.all()},
        )
        yield labelled_gauge(
            "pushd_set_aside_waiting",
            "What is set aside at present.",
            "kind",
            {kind: float(count) for kind, count in self.aside.counts.items()},
        )
        yield labelled_gauge(
            "pushd_store_writers",
            "Calls that may write to a store at the same time.",
            "store",
            {"mailbox": float(self.mailbox.writers)},
        )
        yield gauge("pushd_workers", "Dispatch workers.", self.dispatcher.worker_count)
        yield gauge("pushd_worker_utilization", "Busy time over wall time.", self.dispatcher.utilization)

    # ---- changing and ending

    def reload(self, new: Config) -> None:
        """Take over what may change while running: log level, limits, API keys, JWT keys, TLS certificate.

        Raises StartError for files that cannot be used; nothing is changed then.
        """
        old = self.current.config
        keys = {
            name: getattr(new.auth, name)
            for name in ("api_keys", *(field for field in new.auth.__struct_fields__ if field.startswith("jwt_")))
        }
        server = old.server
        if server.tls_cert and new.server.tls_cert:  # between TLS and none, only a restart changes
            server = msgspec.structs.replace(server, tls_cert=new.server.tls_cert, tls_key=new.server.tls_key)
        current = msgspec.structs.replace(
            old, server=server, log=new.log, limits=new.limits, auth=msgspec.structs.replace(old.auth, **keys)
        )
        tls = sockets.tls_context(server.tls_cert, server.tls_key)
        auth.check_keys(current.auth)
        self.current.config = current
        self.hub.set_max_pending_bytes(current.limits.max_pending_bytes)
        self.reader.set_max_frame_bytes(*websocket.longest_frames(current.limits))
        if self.front is not None:
            self.front.limits = current.limits
            if tls is not None:
                self.front.renew_tls(tls)
        logs.configure(current.log)
        log.info("configuration reloaded", restart_needed=current != new)

    async def drain(self) -> None:
        """Refuse what is new, empty the queue, close every connection with 1012 and see the stores written."""
        self.health.is_draining = self.gateway.is_draining = self.intake.is_draining = True
        drain_s = self.current.config.server.drain_s
        ends = time.monotonic() + drain_s
        await self._at_most(max(1.0, drain_s / 2), self._queue_emptied())
        left_s = max(0.0, ends - time.monotonic())
        await self.presence.drain(min(left_s, self.hub.connections_total / CLOSES_PER_S))
        await self._at_most(FINISH_WITHIN_S, self._finished())

    async def _at_most(self, seconds: float, work: Coroutine[Any, Any, None]) -> None:
        try:
            async with asyncio.timeout(seconds):
                await work
        except TimeoutError:
            log.warning("drain took too long; the journal keeps the rest", unsettled=self.intake.unsettled_total)
        except StoreError as error:
            log.warning("not all is written; the journal keeps the rest", error=str(error))

    async def _queue_emptied(self) -> None:
        await self.intake.finished()
        while not self.dispatcher.is_idle:
            await asyncio.sleep(0.01)

    async def _finished(self) -> None:
        while self.gateway.open_sockets:
            await asyncio.sleep(0.01)
        await self.gateway.finished()
        await self.aside.finished()
        await self.writers.secured()


def _failure_of(writer: Any) -> Callable[[], str]:
    return lambda: f"{writer.name}: writes wait for the store" if writer.failure else ""


def node_id(config: Config) -> str:
    """The configured name, else host and process id."""
    return config.cluster.node_id or f"{socket.gethostname()}-{os.getpid()}"


async def _past(stores: Stores, config: Config, aside: Aside) -> Past:
    try:
        return await read_past(stores, aside, wall_ms() - int(config.delivery.dedup_window_s * 1000))
    except StoreError as error:
        raise StartError(str(error)) from error


@asynccontextmanager
async def running(config: Config) -> AsyncIterator[Node]:
    """A whole daemon, serving until the end of the block; drain it first to end it gently.

    Raises StartError when it cannot serve, and the error of a background task that failed.
    """
    auth.check_keys(config.auth)
    devices.prepare()
    metrics = Metrics()
    metrics.registry.register(ProcessMetrics())
    health = Health(metrics, time.monotonic)
    async with (
        open_stores(
            config, health.observe_store, left_aside=lambda count: metrics.errors.labels("mailbox_element").inc(count)
        ) as stores,
        open_revocations(config, health.observe_store) as revocations,
    ):
        aside = Aside(stores.set_aside, metrics)
        past = await _past(stores, config, aside)
        node = Node(config, stores, revocations, health, metrics, past, aside)
        async with _read(node.reader), supervised(node.background(), health, metrics):
            node.restore(past)
            async with front.listening(
                node.router,
                config,
                open_sockets=lambda: node.gateway.open_sockets,
                addresses=node.gateway.addresses,
                on_refused=lambda reason: metrics.rejected.labels(reason).inc(),
            ) as node.front:
                yield node
            for connection in node.hub.snapshot():
                connection.abort()
            node.hub.reap(math.inf)  # those that have been closed and still linger
            await asyncio.sleep(0)
            await node.gateway.close()


@asynccontextmanager
async def _read(reader: Reader) -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()
    loop.add_reader(reader, reader.serve)
    try:
        yield
    finally:
        loop.remove_reader(reader)


def run(config: Config, reload: Callable[[], Config], signals: Signals) -> None:
    """Serve until SIGTERM or SIGINT. `reload` gives the configuration anew on SIGHUP. Raises StartError."""
    signals.listen()
    streams.stop_waiting_for_stderr()
    logs.configure(config.log)
    uvloop.run(_serve(config, reload, signals))


async def _serve(config: Config, reload: Callable[[], Config], signals: Signals) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    async with running(config) as node:
        loop.set_exception_handler(lambda _, context: _loop_failed(node, context))
        _settle_garbage()
        signals.obey(
            stop=partial(loop.call_soon_threadsafe, stop.set),
            reload=partial(loop.call_soon_threadsafe, _reload, node, reload),
            stops_within_s=config.server.drain_s + END_WITHIN_S,
            cut_off=_cut_off,
        )
        log.info("serving", version=__version__, host=config.server.host, port=node.port, auth=config.auth.mode)
        systemd.notify(os.environ.get("NOTIFY_SOCKET"), "READY=1")
        try:
            await stop.wait()
        except asyncio.CancelledError:  # a part of it has failed
            end_within(END_WITHIN_S, 1, _cut_off)
            raise
        log.info("draining", connections=node.hub.connections_total, within_s=config.server.drain_s)
        systemd.notify(os.environ.get("NOTIFY_SOCKET"), "STOPPING=1")
        await node.drain()
    log.info("stopped")


def _cut_off() -> None:
    log.warning("the stop took too long and is cut off; the journal keeps the rest")


def _reload(node: Node, reload: Callable[[], Config]) -> None:
    try:
        node.reload(reload())
    except (ConfigError, StartError) as error:
        log.error("configuration not reloaded, nothing is changed", error=str(error))


def _loop_failed(node: Node, context: dict[str, Any]) -> None:
    error = context.get("exception")
    if isinstance(error, BaseException):
        faults.noted(node.metrics, "loop", error, message=context.get("message"))
    else:
        node.metrics.errors.labels("loop").inc()
        log.error("unhandled error in the event loop", message=context.get("message"))


def _settle_garbage() -> None:
    """Look at young objects only: a full collection over 5,000 connections held the loop up for 350 ms.

    Connections and notices leave no cycles behind, so there is nothing old to collect (tests/system/test_garbage.py).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(2_000, 3, 1_000_000)
