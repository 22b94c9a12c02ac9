"""The parts of a node that open nothing: they get their stores, and give what an edge needs. The daemon and the tests
build them the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import msgspec

from pushd._fastpath import Connection, Hub
from pushd.basis import Basis
from pushd.delivery.acknowledgements import Acknowledgements
from pushd.delivery.amending import Amending
from pushd.delivery.amendments import Amendments
from pushd.delivery.announcer import Announcer
from pushd.delivery.current_mailbox import CurrentMailbox
from pushd.delivery.dispatch import GROW_AFTER_S, Dispatcher
from pushd.delivery.following import AGAIN_AFTER_S, MAILBOX, Following
from pushd.delivery.inboxes import Inboxes
from pushd.delivery.intake import Intake
from pushd.delivery.lanes import Lanes
from pushd.delivery.recipients import StoredRecipients
from pushd.delivery.schedule import LOOK_EVERY_S as SCHEDULE_LOOK_EVERY_S
from pushd.delivery.schedule import Schedule
from pushd.errors import PushdError
from pushd.in_flight import InFlight
from pushd.model import Amended, Notice
from pushd.ports import Stores
from pushd.presence.arrivals import Arrivals
from pushd.presence.failures import Failures
from pushd.presence.heartbeat import ALIVE_EVERY_S, Heartbeat, LifeSign
from pushd.presence.hello import Greeting
from pushd.presence.mailboxes import Mailboxes
from pushd.presence.register import Register
from pushd.presence.replay import Replays
from pushd.presence.statuses import CachedStatuses
from pushd.presence.unread import EVERY_S as UNREAD_EVERY_S
from pushd.presence.unread import UnreadFrames
from pushd.retry import FIRST_S
from pushd.telemetry import faults
from pushd.users.directory import CachedDirectory
from pushd.writing.mailbox import MailboxWriter
from pushd.writing.online_status import STATUS_DELAY_S, StatusWriter
from pushd.writing.receipts import LedgerWriter
from pushd.writing.records import RecordWriter
from pushd.writing.retention import Retention
from pushd.writing.set_aside import LOOK_EVERY_S, NOTICE, SetAsideData
from pushd.writing.settled import SETTLE_DELAY_S, SettledWriter
from pushd.writing.write_behind import Backing
from pushd.writing.writers import Writers


class SpoiledNotice(PushdError):
    """An entry of the journal cannot be decoded."""


class Past(msgspec.Struct):
    """What former processes left behind."""

    last_seq: int = 0
    unsettled: list[Notice] = []
    recent: list[Notice] = []  # settled, and accepted within the dedup window
    amended: list[Amended] = []
    outbox: dict[str, int] = {}  # batches by writer
    scheduled: int = 0  # still to go out
    scheduled_keys: list[str] = []  # by what repeats of these, and of those that were cancelled, are recognised


class Pauses(msgspec.Struct, frozen=True):
    """How long the parts of a node wait before they try again, look again or let more come, s."""

    retry_first_s: float = FIRST_S  # and longer from attempt to attempt
    grow_after_s: float = GROW_AFTER_S
    settle_delay_s: float = SETTLE_DELAY_S
    status_delay_s: float = STATUS_DELAY_S
    look_aside_every_s: float = LOOK_EVERY_S
    follow_again_s: float = AGAIN_AFTER_S
    alive_every_s: float = ALIVE_EVERY_S
    schedule_look_every_s: float = SCHEDULE_LOOK_EVERY_S
    unread_every_s: float = UNREAD_EVERY_S


PAUSES = Pauses()


async def read_past(stores: Stores, set_aside: SetAsideData, since_ms: int) -> Past:
    """What is in the journal and the outbox; what cannot be decoded is set aside. Raises StoreError."""
    amended = await stores.amendments.known()
    unsettled = await stores.journal.unsettled()
    for seq, body, why in await stores.journal.spoiled():
        if await set_aside.keep(NOTICE, SpoiledNotice(f"seq {seq}: {why}"), body):
            await stores.journal.settle([seq])
    edited = {one.message_id for one in amended if one.version > 1}
    newest = await stores.amendments.notices({one.message_id for one in unsettled if one.message_id in edited})
    unsettled = [
        one.saying(said) if (said := newest.get(one.message_id)) is not None and said.version > one.version else one
        for one in unsettled
    ]
    seqs = {notice.seq for notice in unsettled}
    recent = [notice for notice in await stores.journal.since(since_ms) if notice.seq not in seqs]
    return Past(
        last_seq=await stores.journal.last_seq(),
        unsettled=unsettled,
        recent=recent,
        amended=amended,
        outbox=await stores.outbox.counts(),
        scheduled=await stores.schedule.count(),
        scheduled_keys=await stores.schedule.keys(),
    )


class Core:
    """A node's parts between its stores and its edge, wired together. Nothing runs before `background` does."""

    def __init__(
        self,
        basis: Basis,
        stores: Stores,
        set_aside: SetAsideData,
        *,
        node_id: str,
        past: Past,
        pauses: Pauses = PAUSES,
    ) -> None:
        self.amendments = amendments = Amendments(past.amended)
        if MAILBOX in stores.amendments.followers:
            stores = replace(
                stores, mailbox=CurrentMailbox(stores.mailbox, amendments, stores.amendments, basis.clock.wall_ms)
            )
        self.stores = stores
        self.set_aside = set_aside
        self.metrics = metrics = basis.metrics
        self.clock = clock = basis.clock
        self.current = current = basis.current
        config = current.config
        self.hub = hub = Hub(config.limits.max_pending_bytes)
        self.lanes: Lanes[InFlight] = Lanes(config.delivery.queue_size)
        self.directory = directory = CachedDirectory(stores.directory, current, clock.now)
        retry_first_s = pauses.retry_first_s
        self.statuses = CachedStatuses(stores.presence, current, clock.now)
        backing = Backing(metrics, set_aside, stores.outbox, past.outbox, retry_first_s)
        records = (
            RecordWriter(stores.records, backing, hub, directory, current)
            if stores.ledger is None
            else LedgerWriter(stores.ledger, stores.records, backing, hub, directory, current, clock.now)
        )
        self.writers = writers = Writers(
            MailboxWriter(stores.mailbox, backing),
            records,
            StatusWriter(
                stores.presence, backing, directory, started_ms=clock.wall_ms(), delay_s=pauses.status_delay_s
            ),
            SettledWriter(stores.journal, backing, delay_s=pauses.settle_delay_s),
        )
        self.acknowledgements = acknowledgements = Acknowledgements(hub, writers, stores.records, basis, amendments)
        self.inboxes = Inboxes(stores.inbox, acknowledgements, writers, basis)
        self.dispatcher = Dispatcher(
            hub,
            self.lanes,
            StoredRecipients(directory, stores.records, writers, metrics, retry_first_s),
            acknowledgements,
            writers,
            set_aside,
            basis,
        )
        self.dispatcher.grow_after_s = pauses.grow_after_s
        self.schedule = Schedule(
            stores.schedule,
            writers,
            set_aside,
            basis,
            is_recorded=stores.ledger is not None,
            retry_first_s=retry_first_s,
            look_every_s=pauses.schedule_look_every_s,
        )
        self.intake = Intake(
            stores.journal,
            self.lanes,
            self.schedule,
            basis,
            send_at_once=self.dispatcher.send_at_once,
            wake=self.dispatcher.wake,
            on_settled=self.settled,
            last_seq=past.last_seq,
            amendments=amendments,
        )
        announcer = Announcer(hub, self.dispatcher.fan_outs, acknowledgements, stores.records, writers, metrics)
        self.following = following = Following(stores, writers, self.intake, basis, again_after_s=pauses.follow_again_s)
        self.amending = Amending(
            stores,
            amendments,
            announcer,
            following,
            self.schedule,
            self.intake,
            self.dispatcher,
            acknowledgements,
            writers,
            hub,
            basis,
        )
        self.failures = failures = Failures(hub, metrics)
        self.register = Register(hub, writers.statuses, basis)
        self.unread = UnreadFrames(hub, stores.inbox, stores.records, metrics, every_s=pauses.unread_every_s)
        self.greeting = Greeting(hub, stores.records, writers, current, self.unread, node_id=node_id)
        self.mailboxes = Mailboxes(directory, stores.mailbox, writers, metrics)
        self.replays = Replays(
            hub, self.mailboxes, acknowledgements, amendments, current, metrics, failures, retry_first_s=retry_first_s
        )
        self.arrivals = Arrivals(hub, self.register, self.greeting, self.mailboxes, self.replays, failures)
        self.heartbeat = Heartbeat(hub, acknowledgements, current, clock, failures)
        self.life_sign = LifeSign(stores.presence, writers, clock, failures, every_s=pauses.alive_every_s)
        self.retention = Retention(stores, current, metrics, clock.wall_ms, forget_amended=amendments.forget)
        writers.give_way_to(self.arrivals)
        set_aside.takes(NOTICE, self.intake.take_back)
        hub.on_handed = self._handed
        hub.on_gone = self._gone

    def background(self) -> dict[str, Callable[[], Coroutine[Any, Any, None]]]:
        """What runs for as long as the node does, by name; stopped in reverse order. It may be run again."""
        return {
            **self.stores.background,
            "mailbox writer": self.writers.mailbox.writer.run,
            "record writer": self.writers.records.writer.run,
            "settled writer": self.writers.settled.writer.run,
            "status writer": self.writers.statuses.writer.run,
            "set aside": self.set_aside.run,
            "maintenance": self.retention.run,
            "expiry": self.retention.run_expiry,
            "dispatch": self.dispatcher.run,
            "amendments": self.following.run,
            "schedule": self.schedule.run,
            "arrivals": self.arrivals.run,
            "unread": self.unread.run,
            "heartbeat": self.heartbeat.run,
            "alive": self.life_sign.run,
        }

    def restore(self, past: Past) -> None:
        """Take up what former processes left, and let go of it: it may weigh much."""
        for notices, queue in ((past.recent, False), (past.unsettled, True)):
            for notice in notices:
                try:
                    self.intake.restore([notice], queue=queue)
                except Exception as error:  # it stays in the journal
                    faults.noted(self.metrics, "restore", error, message_id=notice.message_id)
        self.schedule.take_up(past.scheduled_keys, past.scheduled)
        past.recent, past.unsettled, past.scheduled_keys = [], [], []

    def settled(self, flight: InFlight) -> None:
        """A notice needs nothing more."""
        self.writers.settled.settle(flight)

    # The hub calls these in the midst of what concerns others.

    def _handed(self, connection: Connection, message_ids: list[str]) -> None:
        try:
            self.acknowledgements.handed(connection, message_ids)
        except Exception as error:
            faults.noted(self.metrics, "receipts", error, conn_id=connection.conn_id)

    def _gone(self, connection: Connection, lost: list[str]) -> None:
        try:
            self.acknowledgements.gone(connection, lost)
        except Exception as error:
            faults.noted(self.metrics, "receipts", error, conn_id=connection.conn_id)
        self.unread.gone(connection)
        try:
            self.register.gone(connection)
        except Exception as error:
            faults.noted(self.metrics, "presence", error, conn_id=connection.conn_id)
