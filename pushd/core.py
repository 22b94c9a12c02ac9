"""The parts of a node that open nothing: they get their stores, and give what an edge needs. The daemon and the tests
build them the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from pushd._fastpath import Connection, Hub
from pushd.clock import Clock
from pushd.config.current import CurrentConfig
from pushd.config.schema import Config
from pushd.delivery.acknowledgements import Receipts
from pushd.delivery.dispatch import Dispatcher
from pushd.delivery.intake import Intake
from pushd.delivery.lanes import Lanes
from pushd.errors import PushdError
from pushd.in_flight import InFlight
from pushd.model import Notice
from pushd.ports import Stores
from pushd.presence.arrivals import Presence
from pushd.presence.statuses import CachedStatuses
from pushd.telemetry import faults
from pushd.telemetry.metrics import Metrics
from pushd.users.directory import CachedDirectory
from pushd.writing.mailbox import MailboxWriter
from pushd.writing.online_status import StatusWriter
from pushd.writing.records import RecordWriter
from pushd.writing.retention import Maintenance
from pushd.writing.set_aside import NOTICE, Aside
from pushd.writing.settled import SettledWriter
from pushd.writing.writers import Writers


class SpoiledNotice(PushdError):
    """An entry of the journal cannot be decoded."""


class Past(msgspec.Struct):
    """What former processes left behind."""

    last_seq: int = 0
    unsettled: list[Notice] = []
    recent: list[Notice] = []  # settled, and accepted within the dedup window
    outbox: dict[str, int] = {}  # batches by writer


async def read_past(stores: Stores, aside: Aside, since_ms: int) -> Past:
    """What is in the journal and the outbox; what cannot be decoded is set aside. Raises StoreError."""
    unsettled = await stores.journal.unsettled()
    for seq, body, why in await stores.journal.spoiled():
        if await aside.keep(NOTICE, SpoiledNotice(f"seq {seq}: {why}"), body):
            await stores.journal.settle([seq])
    seqs = {notice.seq for notice in unsettled}
    recent = [notice for notice in await stores.journal.since(since_ms) if notice.seq not in seqs]
    return Past(
        last_seq=await stores.journal.last_seq(),
        unsettled=unsettled,
        recent=recent,
        outbox=await stores.outbox.counts(),
    )


class Core:
    """A node's parts between its stores and its edge, wired together. Nothing runs before `background` does."""

    def __init__(
        self,
        config: Config,
        stores: Stores,
        aside: Aside,
        metrics: Metrics,
        clock: Clock,
        *,
        node_id: str,
        past: Past,
    ) -> None:
        self.stores = stores
        self.aside = aside
        self.metrics = metrics
        self.clock = clock
        self.current = current = CurrentConfig(config)
        self.hub = hub = Hub(config.limits.max_pending_bytes)
        self.lanes: Lanes[InFlight] = Lanes(config.delivery.queue_size)
        self.directory = directory = CachedDirectory(stores.directory, current, clock.now)
        self.statuses = CachedStatuses(stores.presence, current, clock.now)
        on_disk = past.outbox
        self.writers = writers = Writers(
            MailboxWriter(stores, metrics, aside, on_disk=on_disk.get(MailboxWriter.name, 0)),
            RecordWriter(stores, metrics, aside, hub, directory, current, on_disk=on_disk.get(RecordWriter.name, 0)),
            StatusWriter(
                stores,
                metrics,
                aside,
                directory,
                started_ms=clock.wall_ms(),
                on_disk=on_disk.get(StatusWriter.name, 0),
            ),
            SettledWriter(stores, metrics, aside),
        )
        self.receipts = receipts = Receipts(hub, writers, stores.records, current, metrics, clock)
        self.dispatcher = Dispatcher(
            hub, self.lanes, directory, receipts, writers, current, metrics, clock, aside, stores.records
        )
        self.intake = Intake(
            stores.journal,
            self.lanes,
            current,
            metrics,
            clock,
            wake=self.dispatcher.wake,
            on_settled=self.settled,
            last_seq=past.last_seq,
        )
        self.presence = Presence(hub, stores, directory, receipts, writers, current, metrics, clock, node_id=node_id)
        self.maintenance = Maintenance(stores, current, metrics, clock.wall_ms)
        writers.records.writer.gives_way = lambda: self.dispatcher.is_fanning_out or self.presence.is_crowded
        aside.takes(NOTICE, self.intake.take_back)
        hub.on_handed = self._handed
        hub.on_gone = self._gone

    def background(self) -> dict[str, Callable[[], Coroutine[Any, Any, None]]]:
        """What runs for as long as the node does, by name; stopped in reverse order. It may be run again."""
        return {
            "mailbox writer": self.writers.mailbox.writer.run,
            "record writer": self.writers.records.writer.run,
            "settled writer": self.writers.settled.writer.run,
            "status writer": self.writers.statuses.writer.run,
            "set aside": self.aside.run,
            "maintenance": self.maintenance.run,
            "dispatch": self.dispatcher.run,
            "arrivals": self.presence.serve_arrivals,
            "heartbeat": self.presence.watch,
            "alive": self.presence.stay_alive,
        }

    def restore(self, past: Past) -> None:
        """Take up what former processes left, and let go of it: it may weigh much."""
        for notices, queue in ((past.recent, False), (past.unsettled, True)):
            for notice in notices:
                try:
                    self.intake.restore([notice], queue=queue)
                except Exception as error:  # it stays in the journal
                    faults.noted(self.metrics, "restore", error, message_id=notice.message_id)
        past.recent, past.unsettled = [], []

    def settled(self, flight: InFlight) -> None:
        """A notice needs nothing more."""
        self.writers.settled.settle(flight)

    # The hub calls these in the midst of what concerns others.

    def _handed(self, connection: Connection, message_ids: list[str]) -> None:
        try:
            self.receipts.handed(connection, message_ids)
        except Exception as error:
            faults.noted(self.metrics, "receipts", error, conn_id=connection.conn_id)

    def _gone(self, connection: Connection, lost: list[str]) -> None:
        try:
            self.receipts.gone(connection, lost)
        except Exception as error:
            faults.noted(self.metrics, "receipts", error, conn_id=connection.conn_id)
        try:
            self.presence.gone(connection)
        except Exception as error:
            faults.noted(self.metrics, "presence", error, conn_id=connection.conn_id)
