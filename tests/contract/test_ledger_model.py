"""Whatever is asked of the embedded ports, and wherever they are closed and opened again: what a plain model says."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from msgspec import structs

from pushd.model import Channel, DeliveryStatus, Mark, Notice, Outcome
from pushd.records import Part, PushFilter, PushRow, PushSort, ReceiptFilter, ReceiptRow, ReceiptSort, ReceiptStats
from tests.samples import DELIVERED, EXPIRED, FETCHED, OFFLINE, PENDING, at, item_of, receipt

from .conftest import Node

IMPLEMENTATIONS = ("sqlite", "cold")
USERS = range(1, 14)
OUTCOMES = (PENDING, OFFLINE, DELIVERED, FETCHED, EXPIRED)
STATUSES = list(DeliveryStatus)
ALL = Part(0, 1000, is_descending=False)
FAR_MS = 40 * 86_400_000  # further than an offset in milliseconds says


class Fact:
    """What is known of one recipient."""

    def __init__(self, created_ms: int) -> None:
        self.created_ms = created_ms
        self.status = DeliveryStatus.PENDING
        self.is_online = False
        self.channel = Channel.WEBSOCKET
        self.received_ms = self.read_ms = self.confirmed_ms = 0

    def note(self, outcome: Outcome) -> None:
        self.status = max(self.status, outcome.status, key=STATUSES.index)
        self.is_online |= outcome.is_online
        if outcome.channel is Channel.OFFLINE:
            self.channel = Channel.OFFLINE
        if outcome.received_ms:
            self.received_ms = first(self.received_ms, outcome.received_ms)

    def mark(self, mark: Mark, at_ms: int) -> None:
        self.status = DeliveryStatus.DELIVERED
        self.received_ms, self.read_ms = first(self.received_ms, at_ms), first(self.read_ms, at_ms)
        if mark is Mark.CONFIRMED:
            self.confirmed_ms = first(self.confirmed_ms, at_ms)

    @property
    def is_unread(self) -> bool:
        return not self.read_ms and self.status is not DeliveryStatus.EXPIRED

    def row(self) -> tuple[Any, ...]:
        times = (self.created_ms, self.received_ms, self.read_ms, self.confirmed_ms)
        return (self.status, self.is_online, self.channel, *times, max(times))


def first(known_ms: int, at_ms: int) -> int:
    return min(known_ms or at_ms, at_ms)


def row_of(row: ReceiptRow) -> tuple[Any, ...]:
    return (
        row.delivery_status, row.is_online, row.push_channel,
        row.created_ms, row.received_ms, row.read_ms, row.confirmed_ms, row.updated_ms,
    )  # fmt: skip


class Model:
    """The stores, and beside them what they should say."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.journal: dict[int, Notice] = {}  # by seq
        self.settled: set[int] = set()
        self.notices: dict[str, Notice] = {}  # the first of each id
        self.statuses: dict[str, str] = {}  # of those that have a push record
        self.over: set[str] = set()
        self.facts: dict[str, dict[int, Fact]] = {}
        self.waiting: dict[int, set[str]] = {user_id: set() for user_id in USERS}

    def name(self, number: int) -> str:
        names = list(self.notices)
        return names[number % len(names)] if names else ""

    # ---- what is asked of the stores

    async def publish(self, number: int, users: Collection[int], extra: int) -> None:
        """Some expire; some only repeat the id of another one."""
        self.node.clock.now_ms += extra
        known = self.name(number) if number % 5 == 0 else ""
        name = known if known in self.statuses else f"m{len(self.journal)}"
        expires_ms = self.node.clock() + 50 * extra if number % 3 == 0 else 0
        (accepted,) = await self.node.accept(
            name, accepted_ms=self.node.clock(), expires_ms=expires_ms, is_resent=name == known
        )
        self.journal[accepted.seq] = accepted
        if name not in self.notices:
            self.notices[name], self.statuses[name], self.facts[name] = accepted, "accepted", {}

    async def note(self, number: int, users: Collection[int], extra: int) -> None:
        """What is late or expired already is noted as delivery does: as received, or as expired."""
        name = self.name(number)
        if not name:
            return
        accepted = self.notices[name]
        outcome = OUTCOMES[extra % (5 if name in self.statuses else 4)]
        if name in self.over and not outcome.received_ms:
            outcome = EXPIRED
        outcome = at(accepted.accepted_ms, outcome)
        is_late = name not in self.statuses
        if outcome.received_ms:
            far_ms = FAR_MS if extra % 7 == 6 else 1
            outcome = structs.replace(outcome, received_ms=accepted.accepted_ms + extra * far_ms)
        await self.node.stores.records.write(
            [], [receipt(name, user_id, outcome, username=f"user{user_id}", is_late=is_late) for user_id in users]
        )
        for user_id in users if not is_late else ():
            self.facts[name].setdefault(user_id, Fact(accepted.accepted_ms)).note(outcome)

    async def mark(self, number: int, users: Collection[int], extra: int) -> None:
        """And out of the mailbox, as delivery does."""
        mark = list(Mark)[extra % 2]
        names = list({self.name(number), self.name(number + 1), "unknown"})
        for user_id in users:
            known = [name for name in names if user_id in self.facts.get(name, ())]
            at_ms = self.node.clock() + extra
            assert await self.node.stores.records.mark(user_id, names, mark, at_ms) == known
            await self.node.stores.mailbox.remove({user_id: names})
            for name in known:
                self.facts[name][user_id].mark(mark, at_ms)
            self.waiting[user_id].difference_update(names)

    async def save(self, number: int, users: Collection[int], extra: int) -> None:
        if (name := self.name(number)) in self.statuses:
            await self.node.stores.mailbox.save([(item_of(self.notices[name]), users)])
            for user_id in users:
                self.waiting[user_id].add(name)

    async def remove(self, number: int, users: Collection[int], extra: int) -> None:
        names = [self.name(number), self.name(number + 1), "unknown"]
        await self.node.stores.mailbox.remove(dict.fromkeys(users, names))
        for user_id in users:
            self.waiting[user_id].difference_update(names)

    async def clear(self, number: int, users: Collection[int], extra: int) -> None:
        for user_id in list(users)[:1]:
            assert await self.node.stores.mailbox.clear(user_id) == len(self.waiting[user_id])
            self.waiting[user_id].clear()

    async def settle(self, number: int, users: Collection[int], extra: int) -> None:
        """With its push record as it is in the end."""
        if not (name := self.name(number)):
            return
        seqs = [seq for seq, accepted in self.journal.items() if accepted.message_id == name]
        if name in self.statuses:
            self.statuses[name] = ("success", "failed", "expired")[extra % 3]
            await self.node.stores.records.write([self.node.record(name, self.statuses[name])], [])
        await self.node.stores.journal.settle(seqs)
        self.settled.update(seqs)

    async def delete(self, number: int, users: Collection[int], extra: int) -> None:
        name = self.name(number)
        assert await self.node.stores.records.delete(name) is (name in self.statuses)
        if self.statuses.pop(name, None):
            self.facts[name].clear()

    async def expire(self, number: int, users: Collection[int], extra: int) -> None:
        """In steps, as retention does."""
        self.node.clock.now_ms += extra
        now_ms = self.node.clock()
        due = {name for name, accepted in self.notices.items() if accepted.is_expired(now_ms)}
        expected = 0
        for name in due - self.over:
            for fact in self.facts[name].values():
                if not fact.received_ms and fact.status is not DeliveryStatus.EXPIRED:
                    fact.status = DeliveryStatus.EXPIRED
                    expected += 1
        self.over |= due
        marked, limit = 0, 1 + number % 3
        while True:
            some = await self.node.stores.records.expire(0, now_ms, limit)
            assert some <= limit
            marked += some
            if some < limit:
                break
        assert marked == expected

    async def restart(self, number: int, users: Collection[int], extra: int) -> None:
        await self.node.restart()

    # ---- what they say

    async def check(self) -> None:
        await self.check_journal()
        await self.check_mailbox()
        await self.check_receipts()
        await self.check_pushes()

    async def check_journal(self) -> None:
        journal = self.node.stores.journal
        unsettled = [accepted for seq, accepted in sorted(self.journal.items()) if seq not in self.settled]
        assert await journal.unsettled() == unsettled
        assert await journal.spoiled() == []
        assert await journal.last_seq() == max(self.journal, default=0)

    async def check_mailbox(self) -> None:
        now_ms = self.node.clock()
        expected = {
            user_id: [
                name for name, accepted in self.notices.items() if name in names and not accepted.is_expired(now_ms)
            ]
            for user_id, names in self.waiting.items()
        }
        found = await self.node.stores.mailbox.read(USERS)
        assert {user_id: [item.message_id for item in items] for user_id, items in found.items()} == {
            user_id: names for user_id, names in expected.items() if names
        }

    async def check_receipts(self) -> None:
        records = self.node.stores.records
        expected = {
            (name, user_id): fact.row() for name, facts in self.facts.items() for user_id, fact in facts.items()
        }
        listed = await records.receive_records(ReceiptFilter(), ReceiptSort.CREATED_AT, ALL)
        assert {(row.message_id, row.user_id): row_of(row) for row in listed} == expected
        assert len(listed) == len(expected)
        unread = {
            user_id: sum(
                facts[user_id].is_unread
                for name, facts in self.facts.items()
                if user_id in facts and name not in self.over
            )
            for user_id in USERS
        }
        found = await records.unread_counts(USERS)
        assert {user_id: found.get(user_id, 0) for user_id in USERS} == unread
        newest = await records.newest_receive_records(USERS, 3)
        for user_id in USERS:
            mine = [name for name in reversed(self.notices) if user_id in self.facts[name]]
            assert [row.message_id for row in newest.get(user_id, [])] == mine[:3]
            summary = await records.user_summary(user_id)
            last_ms = self.notices[mine[0]].accepted_ms if mine else 0
            assert (summary.unread_count, summary.total_count, summary.last_message_ms) == (
                unread[user_id], len(mine), last_ms,
            )  # fmt: skip

    async def check_pushes(self) -> None:
        records = self.node.stores.records
        listed = await records.push_records(PushFilter(), PushSort.PUSH_TIME, ALL)
        assert [row.message_id for row in listed] == list(self.statuses)
        for row in listed:
            assert counts_of(row) == self.counts(row.message_id)
        for name, facts in self.facts.items():
            if name not in self.statuses:
                assert await records.receive_status(name) is None
                continue
            received = {user_id for user_id, fact in facts.items() if fact.received_ms}
            assert await records.received_by(name) == received
            assert set(await records.not_received_by(name)) == facts.keys() - received
            assert await records.receive_status(name) == ReceiptStats(
                len(facts),
                sum(fact.is_online for fact in facts.values()),
                len(received),
                sum(fact.read_ms > 0 for fact in facts.values()),
                sum(fact.confirmed_ms > 0 for fact in facts.values()),
            )

    def counts(self, name: str) -> tuple[Any, ...]:
        facts = self.facts[name].values()
        return (
            self.statuses[name],
            self.statuses[name] != "failed",
            len(facts),
            sum(fact.is_online for fact in facts),
            sum(fact.received_ms > 0 for fact in facts),
            sum(fact.status is DeliveryStatus.EXPIRED for fact in facts),
            max([self.notices[name].accepted_ms, *(fact.row()[-1] for fact in facts)]),
        )


def counts_of(row: PushRow) -> tuple[Any, ...]:
    counts = (row.total_count, row.online_count, row.delivered_count, row.failed_count)
    return (row.status, row.success, *counts, row.updated_ms)


Step = tuple[str, int, Sequence[int], int]
ACTIONS = (
    "publish",
    "note",
    "note",
    "note",
    "mark",
    "save",
    "save",
    "remove",
    "clear",
    "settle",
    "delete",
    "expire",
    "restart",
)
steps = st.tuples(
    st.sampled_from(ACTIONS),
    st.integers(0, 30),
    st.lists(st.sampled_from(USERS), min_size=1, max_size=len(USERS), unique=True),
    st.integers(0, 20),
)
PUBLISHED: list[Step] = [("publish", number, [1], 1) for number in (1, 3, 2)]


async def played(node: Node, played_steps: Sequence[Step]) -> None:
    """In a data directory of its own; with a look at everything after each step, and once more after a restart."""
    await node.stop()
    node.renew()
    node.max_per_user = 1000
    await node.start()
    model = Model(node)
    for name, number, users, extra in played_steps:
        action: Callable[[int, Collection[int], int], Awaitable[None]] = getattr(model, name)
        await action(number, users, extra)
        await model.check()
    await node.restart()
    await model.check()


relaxed = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(later=st.lists(steps, max_size=25))
@example(later=[("note", 0, list(USERS), 1), ("expire", 2, [1], 20), ("restart", 0, [1], 0), ("note", 0, [1], 2)])
@relaxed
async def test_the_ports_say_what_a_model_says(node: Node, later: list[Step]) -> None:
    await played(node, PUBLISHED + later)
