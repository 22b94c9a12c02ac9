"""Whatever happens in whatever order: every notice is received or waits, is counted once and settled once."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pushd._fastpath import FanOut, Hub
from pushd.config.schema import Config
from pushd.delivery.fan_out import FanOutQueue
from pushd.in_flight import InFlight
from pushd.ports import Stores
from pushd.turns import Slice
from tests.conftest import MakeConfig
from tests.unit.parts import Clock, House

USERS = (1, 2, 3)
CROWD = 40  # in whose midst a slice ends, at the latest after 16 connections
EVENTS = st.one_of(
    st.tuples(st.just("publish"), st.sampled_from(["one", "custom", "all", "online"])),
    st.tuples(st.just("burst"), st.lists(st.sampled_from(["one", "custom", "all", "online"]), min_size=2, max_size=5)),
    st.tuples(st.just("connect"), st.sampled_from(USERS), st.booleans()),
    st.tuples(st.just("arrive"), st.sampled_from(USERS), st.booleans()),
    st.tuples(st.sampled_from(["leave", "clog", "unclog", "ack", "ack all"]), st.integers(0, 9)),
    st.tuples(st.just("move"), st.sampled_from([1, 15, 31])),
    st.tuples(st.just("fail"), st.sampled_from(["mailbox.save", "mailbox.remove", "records.note", "journal.settle"])),
    st.tuples(st.sampled_from(["turn", "quiet"])),
)


class Interrupted:
    """A hub, and how often a slice ended before its fan-out did."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self.interruptions = 0

    def advance(self, job: FanOut, budget_s: float) -> bool:
        is_finished = self._hub.advance(job, budget_s)
        self.interruptions += not is_finished
        return is_finished


class Story:
    """One sequence of events, and what must be true at its end. Slices are as short as can be."""

    def __init__(self, config: Config, stores: Stores, clock: Clock, last_seq: int) -> None:
        self.house = House(config, stores, clock, last_seq=last_seq)
        self.hub = Interrupted(self.house.hub)
        self.house.dispatcher.fan_outs = FanOutQueue(self.hub, clock.now, most_s=0.0)
        self.house.dispatcher.worker_slice = Slice(0.0, clock.now)
        self.base = 1000 * (last_seq + 1)  # users of its own: stores are shared by all stories
        self.clients: list[Any] = []
        self.flights: list[InFlight] = []
        self.acknowledged: set[tuple[int, str]] = set()

    async def play(self, event: tuple[Any, ...]) -> None:
        name, *details = event
        await getattr(self, f"_{name.replace(' ', '_')}")(*details)

    async def _publish(self, target: str) -> None:
        self.flights.append(await self.house.publish(**self._for(target)))

    def _for(self, target: str) -> dict[str, Any]:
        users = [self.base + user for user in (USERS[:1] if target == "one" else USERS)]
        return {"target": "custom" if target == "one" else target, "user_ids": users}

    async def _burst(self, targets: list[str]) -> None:
        """They enter the lanes together."""
        self.flights += await asyncio.gather(*(self.house.publish(**self._for(target)) for target in targets))

    @property
    def broadcasts(self) -> int:
        return sum(flight.notice.target.kind != "custom" for flight in self.flights)

    async def _connect(self, user: int, is_acking: bool) -> None:
        self.clients.append(self.house.connect(self.base + user, is_acking=is_acking))

    async def _arrive(self, user: int, is_acking: bool) -> None:
        self.clients.append(self.house.arrive(self.base + user, is_acking=is_acking))

    def _pick(self, index: int) -> Any:
        alive = [client for client in self.clients if client.connection.transport is not None]
        return alive[index % len(alive)] if alive else None

    async def _leave(self, index: int) -> None:
        if client := self._pick(index):
            client.leave()

    async def _clog(self, index: int) -> None:
        if (client := self._pick(index)) and not client.transport.junk_bytes:
            client.clog()

    async def _unclog(self, index: int) -> None:
        if client := self._pick(index):
            client.unclog()

    async def _ack(self, index: int) -> None:
        if (client := self._pick(index)) and client.connection.is_acking:
            self._acknowledge(client, client.ids[:1])

    async def _ack_all(self, index: int) -> None:
        if (client := self._pick(index)) and client.connection.is_acking:
            self._acknowledge(client, client.ids)

    def _acknowledge(self, client: Any, ids: list[str]) -> None:
        client.ack(*ids)
        if client.connection.is_registered:
            self.acknowledged.update((client.connection.user_id, message_id) for message_id in ids)

    async def _move(self, seconds: int) -> None:
        self.house.clock.move(seconds)
        self.house.acknowledgements.expire()

    async def _fail(self, operation: str) -> None:
        store, _, name = operation.partition(".")
        getattr(self.house.stores, store).fail(name, 2)

    async def _turn(self) -> None:
        await asyncio.sleep(0)

    async def _quiet(self) -> None:
        await self.house.quiet()

    async def end(self) -> None:
        """Everybody goes; then every notice is with every recipient or in the mailbox, and nothing is open."""
        await self.house.quiet()
        for client in self.clients:
            client.leave()
        await self.house.quiet()
        for flight in self.flights:
            await self._check(flight)
        assert Counter(self.house.ids_settled) == Counter(one.notice.message_id for one in self.flights)
        assert self.house.intake.unsettled_total == self.house.acknowledgements.waiting_total == 0
        assert await self.house.unsettled() == []

    async def _check(self, flight: InFlight) -> None:
        message_id = flight.notice.message_id
        received = await self.house.received_by(flight)
        status = await self.house.stores.records.receive_status(message_id)
        recipients = flight.notice.target.user_ids if flight.notice.target.kind == "custom" else ()
        for user_id in recipients:
            waiting = await self.house.mailbox(user_id)
            assert user_id in received or message_id in waiting, "neither received nor waiting"
        for user_id, acknowledged_id in self.acknowledged:
            if acknowledged_id == message_id:
                assert user_id in received, "acknowledged and not on record"
                assert message_id not in await self.house.mailbox(user_id), "acknowledged and still waiting"
        assert status is not None
        assert status.total_users == flight.total_count >= len(recipients)
        assert flight.delivered_count <= flight.online_count <= flight.total_count
        assert flight.is_delivered
        for client in self.clients:
            live = [one["message_id"] for one in client.messages if "content" in one and not one.get("offline")]
            assert len(set(live)) == len(live), "twice on one connection"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events=st.lists(EVENTS, min_size=3, max_size=30), crowd=st.sampled_from([0, CROWD]))
@example(events=[("publish", "all"), ("turn",), ("arrive", 1, True), ("publish", "online")], crowd=CROWD)
async def test_every_order_of_events(
    events: list[tuple[Any, ...]],
    crowd: int,
    make_config: MakeConfig,
    frail: Any,
    clock: Clock,
) -> None:
    """With a crowd of guests in front, a broadcast takes several slices, between which other things happen."""
    for store in (frail.mailbox, frail.records, frail.journal):
        store.work()
    story = Story(make_config(records={"flush_ms": 1}), frail, clock, await frail.journal.last_seq())
    story.house.start_all()
    for guest in range(crowd):
        story.house.connect(-1 - guest)
    try:
        for event in events:
            await story.play(event)
        await story.end()
        if crowd and story.broadcasts:
            assert story.hub.interruptions > 0
    finally:
        await story.house.stop()
