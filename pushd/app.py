"""The composition root: opens every part in order and undoes it in reverse. The only place that knows them all."""

from __future__ import annotations

import asyncio
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
from prometheus_client.core import Metric

from pushd.api import openapi
from pushd.api.amending import AmendingHandlers
from pushd.api.answers import AnswerTurns
from pushd.api.connections import ConnectionHandlers
from pushd.api.inbox import InboxHandlers
from pushd.api.mailboxes import MailboxHandlers
from pushd.api.node import NodeHandlers
from pushd.api.probes import Probes
from pushd.api.publishing import PublishingHandlers
from pushd.api.receipts import ReceiptHandlers
from pushd.api.receive_records import ReceiveRecordHandlers
from pushd.api.records import RecordHandlers
from pushd.api.router import Router
from pushd.api.table import Api, endpoints
from pushd.auth.authenticator import Authenticator, check_keys
from pushd.basis import Basis
from pushd.clock import wall_ms
from pushd.config.current import CurrentConfig
from pushd.config.schema import Config
from pushd.core import PAUSES, Core, Past, Pauses, read_past
from pushd.errors import StartError, StoreError
from pushd.http import sockets
from pushd.http.addresses import Addresses
from pushd.http.server import HttpServer, listening
from pushd.ports import Revocations, Stores
from pushd.presence.drain import close_all
from pushd.stores import open_revocations, open_stores
from pushd.telemetry import logs
from pushd.telemetry.health import Health
from pushd.telemetry.metrics import Metrics, counter, gauge, labelled_gauge
from pushd.telemetry.process import ProcessMetrics
from pushd.telemetry.supervision import supervised
from pushd.users import devices
from pushd.writing.set_aside import SetAsideData
from pushd.ws._reader import Reader
from pushd.ws.gateway import Gateway
from pushd.ws.parser import longest_frames, parsing
from pushd.ws.renewals import Renewals
from pushd.ws.revocations import REVOKED_WITHIN_S, RevocationWatch
from pushd.ws.shared import Shared
from pushd.ws.tasks import Tasks

log = structlog.get_logger("pushd")

FINISH_WITHIN_S = 3.0  # after the drain: what is left to write, and to close on the other side
CLOSES_PER_S = 200  # few connections need not wait for the whole of drain_s


class Node(Core):
    """The parts of a running daemon, wired together."""

    def __init__(
        self,
        basis: Basis,
        stores: Stores,
        revocations: Revocations | None,
        health: Health,
        past: Past,
        set_aside: SetAsideData,
        pauses: Pauses = PAUSES,
    ) -> None:
        config, current, metrics = basis.current.config, basis.current, basis.metrics
        super().__init__(basis, stores, set_aside, node_id=node_id(config), past=past, pauses=pauses)
        writers = self.writers
        self.health = health
        self.mailbox = self.stores.mailbox
        self.remotes = stores.remotes
        self.server: HttpServer | None = None
        self.reader = Reader(parsing, *longest_frames(config.limits))
        self.authenticator = authenticator = Authenticator(current, revocations)
        self.revocation_watch = None if revocations is None else RevocationWatch(self.hub, revocations, metrics)
        tasks = Tasks(metrics)
        self.shared = Shared(
            hub=self.hub,
            reader=self.reader,
            acknowledgements=self.acknowledgements,
            inboxes=self.inboxes,
            renewals=Renewals(self.hub, self.directory, authenticator, tasks, metrics, self.clock),
            tasks=tasks,
            addresses=Addresses(config.server.trusted_proxies, now=self.clock.now),
            current=current,
            metrics=metrics,
            clock=self.clock,
        )
        self.gateway = Gateway(self.shared, self.arrivals, authenticator)
        api = endpoints(self._api())
        description = msgspec.json.encode(openapi.document(api, config))
        probes = Probes(health, metrics, description)
        self.router = Router(api, probes, self.gateway, authenticator, current, metrics)
        health.watch(
            {"mailbox: replays": self.mailboxes, **{f"{writer.name}: writes": writer for writer in writers.all()}},
            set_aside,
        )
        metrics.read_at_scrape(self._at_scrape)

    def _api(self) -> Api:
        hub, records, mailbox, writers = self.hub, self.stores.records, self.stores.mailbox, self.writers
        current, clock, turns = self.current, self.clock, AnswerTurns()
        return Api(
            publishing=PublishingHandlers(self.intake, records, writers, current),
            amending=AmendingHandlers(self.amending),
            records=RecordHandlers(records, self.schedule, writers, current, turns),
            receive_records=ReceiveRecordHandlers(records, writers, current, turns),
            receipts=ReceiptHandlers(self.acknowledgements, records, hub, writers, current),
            inbox=InboxHandlers(self.stores.inbox, self.inboxes, records, writers, current, turns),
            mailboxes=MailboxHandlers(mailbox, writers, current, clock, turns),
            connections=ConnectionHandlers(hub, self.directory, self.statuses, current, clock, turns),
            node=NodeHandlers(hub, self.lanes, self.dispatcher, writers, mailbox, self.health, self.metrics),
        )

    @property
    def port(self) -> int:
        """The port in use, also when the configuration says 0."""
        return self.server.port if self.server else 0

    def background(self) -> dict[str, Callable[[], Coroutine[Any, Any, None]]]:
        """What runs for as long as the node does, by name; stopped in reverse order. It may be run again."""
        return super().background() | {
            "loop lag": self.health.watch_loop,
            **{f"{remote.store} store": partial(self.health.watch_store, remote) for remote in self.remotes},
            **({} if self.revocation_watch is None else {"revocations": self.revocation_watch.run}),
        }

    def _at_scrape(self) -> Iterable[Metric]:
        hub, depths = self.hub, self.lanes.depths()
        yield gauge("pushd_journal_pending", "Accepted notices not settled.", self.intake.unsettled_total)
        yield gauge("pushd_scheduled", "Notices that are still to go out at a later time.", self.schedule.count)
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
            {kind: float(count) for kind, count in self.set_aside.counts.items()},
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
        check_keys(current.auth)
        self.current.config = current
        self.hub.set_max_pending_bytes(current.limits.max_pending_bytes)
        self.reader.set_max_frame_bytes(*longest_frames(current.limits))
        if self.server is not None:
            self.server.renew(current.limits, tls)
        logs.configure(current.log)
        log.info("configuration reloaded", restart_needed=current != new)

    async def drain(self) -> None:
        """Refuse what is new, empty the queue, close every connection with 1012 and see the stores written."""
        self.health.is_draining = self.gateway.is_draining = self.intake.is_draining = True
        self.schedule.is_draining = True
        drain_s = self.current.config.server.drain_s
        ends = time.monotonic() + drain_s
        await self._at_most(max(1.0, drain_s / 2), self._queue_emptied())
        left_s = max(0.0, ends - time.monotonic())
        await close_all(self.hub, self.failures, min(left_s, self.hub.connections_total / CLOSES_PER_S))
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
        await self.shared.tasks.finished()
        await self.amending.finished()
        await self.schedule.finished()
        await self.set_aside.finished()
        await self.writers.secured()


def node_id(config: Config) -> str:
    """The configured name, else host and process id."""
    return config.cluster.node_id or f"{socket.gethostname()}-{os.getpid()}"


async def _past(stores: Stores, config: Config, set_aside: SetAsideData) -> Past:
    try:
        return await read_past(stores, set_aside, wall_ms() - int(config.delivery.dedup_window_s * 1000))
    except StoreError as error:
        raise StartError(str(error)) from error


@asynccontextmanager
async def running(
    config: Config, pauses: Pauses = PAUSES, *, revoked_within_s: float = REVOKED_WITHIN_S
) -> AsyncIterator[Node]:
    """A whole daemon, serving until the end of the block; drain it first to end it gently.

    A connection is closed within `revoked_within_s` (s) of when its token was revoked.
    Raises StartError when it cannot serve, and the error of a background task that failed.
    """
    check_keys(config.auth)
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
        set_aside = SetAsideData(stores.set_aside, metrics, look_every_s=pauses.look_aside_every_s)
        past = await _past(stores, config, set_aside)
        node = Node(Basis(CurrentConfig(config), metrics), stores, revocations, health, past, set_aside, pauses)
        if node.revocation_watch is not None:
            node.revocation_watch.within_s = revoked_within_s
        async with _read(node.reader), supervised(node.background(), health):
            node.restore(past)
            async with listening(
                node.router,
                config,
                open_sockets=lambda: node.gateway.open_sockets,
                addresses=node.shared.addresses,
                on_refused=lambda reason: metrics.rejected.labels(reason).inc(),
            ) as node.server:
                yield node
            for connection in node.hub.snapshot():
                connection.abort()
            node.hub.reap(math.inf)  # those that have been closed and still linger
            await asyncio.sleep(0)
            await node.shared.tasks.close()


@asynccontextmanager
async def _read(reader: Reader) -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()
    loop.add_reader(reader, reader.serve)
    try:
        yield
    finally:
        loop.remove_reader(reader)
