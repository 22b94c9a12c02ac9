"""The contract of ports.Inbox, against a plain model."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pushd.model import Amended, DeliveryStatus, Mark, Notice, Outcome
from pushd.ports import Inbox, Stores
from pushd.records import InboxFilter, InboxItem
from tests.samples import DELIVERED, EXPIRED, FETCHED, OFFLINE, PENDING, at, receipt

from .conftest import START_MS, Node

IMPLEMENTATIONS = ("sqlite", "cold", "mongodb")
USERS = (1, 2, 3)
TYPES = ("system_notice", "order_paid")
TAGS = ("a", "b")
OUTCOMES = (PENDING, OFFLINE, DELIVERED, FETCHED, EXPIRED)
ALL = InboxFilter()
EVER_MS = START_MS * 2
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)  # to shrink an example takes minutes with MongoDB


class Entry:
    """One notice in one user's inbox."""

    def __init__(self, notice: Notice) -> None:
        self.notice = notice
        self.is_expired = self.is_received = False
        self.read_ms = self.confirmed_ms = 0
        self.is_archived = self.is_revoked = False

    def note(self, outcome: Outcome) -> None:
        self.is_received |= outcome.received_ms > 0
        self.is_expired |= outcome.status is DeliveryStatus.EXPIRED

    def mark(self, at_ms: int) -> None:
        self.read_ms = min(self.read_ms or at_ms, at_ms)

    def is_there(self, now_ms: int) -> bool:
        is_late = self.is_expired and not self.is_received and not self.read_ms
        return not is_late and not self.is_revoked and not 0 < self.notice.expires_ms <= now_ms

    @property
    def is_unread(self) -> bool:
        return not self.read_ms and not self.is_archived

    def row(self) -> tuple[Any, ...]:
        return (self.notice.message_id, bool(self.read_ms), self.read_ms, bool(self.confirmed_ms), self.confirmed_ms,
                self.is_archived)  # fmt: skip


def row_of(item: InboxItem) -> tuple[Any, ...]:
    return (item.notice.message_id, item.is_read, item.read_ms, item.is_confirmed, item.confirmed_ms,
            item.is_archived)  # fmt: skip


class Model:
    """The stores, and beside them what every user should find in his inbox."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.notices: list[Notice] = []
        self.entries: dict[int, dict[str, Entry]] = {user_id: {} for user_id in USERS}
        self.gone: set[str] = set()  # deleted or revoked: nothing more becomes of them
        self.expired_ms = 0

    @property
    def stores(self) -> Stores:
        return self.node.stores

    @property
    def inbox(self) -> Inbox:
        return self.node.stores.inbox

    async def publish(
        self, kind: str, tags: tuple[str, ...], lives_ms: int, outcomes: dict[int, Outcome], is_older: bool
    ) -> None:
        """A notice comes, to some users. `is_older`: its receipts are as version 1 wrote them."""
        self.node.clock.now_ms += 7
        now_ms = self.node.clock.now_ms
        fields: dict[str, Any] = {"type": kind, "tags": tags, "accepted_ms": now_ms, "title": f"title {now_ms}"}
        fields["expires_ms"] = now_ms + lives_ms if lives_ms else 0
        (notice,) = await self.node.accept(f"m{len(self.notices)}", **fields)
        self.notices.append(notice)
        await self.note(len(self.notices) - 1, outcomes, is_older)

    async def note(self, place: int, outcomes: dict[int, Outcome], is_older: bool) -> None:
        """What became of it, then or later, for these users."""
        if not self.notices:
            return
        notice = self.notices[place % len(self.notices)]
        if notice.message_id in self.gone:
            return
        said: dict[str, Any] = {"message_type": notice.type, "tags": notice.tags, "expires_ms": notice.expires_ms}
        receipts = [
            receipt(notice.message_id, user_id, at(notice.accepted_ms, outcome), **({} if is_older else said))
            for user_id, outcome in outcomes.items()
        ]
        await self.stores.records.write([self.node.record(notice.message_id, "success")], receipts)
        for user_id, outcome in outcomes.items():
            entry = self.entries[user_id].setdefault(notice.message_id, Entry(notice))
            entry.note(outcome)

    async def mark(self, user_id: int, names: list[str], mark: Mark) -> None:
        self.node.clock.now_ms += 3
        now_ms = self.node.clock.now_ms
        await self.stores.records.mark(user_id, names, mark, now_ms)
        for name in names:
            if (entry := self.entries[user_id].get(name)) is not None:
                entry.mark(now_ms)
                if mark is Mark.CONFIRMED:
                    entry.confirmed_ms = min(entry.confirmed_ms or now_ms, now_ms)

    async def archive(self, user_id: int, names: list[str], is_archived: bool) -> None:
        self.node.clock.now_ms += 3
        now_ms = self.node.clock.now_ms
        change = self.inbox.archive if is_archived else self.inbox.unarchive
        known = [name for name in names if name in self.entries[user_id]]
        assert await change(user_id, names, now_ms) == known
        for name in known:
            entry = self.entries[user_id][name]
            entry.is_archived = is_archived
            if is_archived:
                entry.mark(now_ms)

    async def read_all(self, user_id: int, where: InboxFilter, before_ms: int) -> None:
        self.node.clock.now_ms += 3
        now_ms = self.node.clock.now_ms
        until_ms = now_ms - before_ms
        await self.expire()
        wanted = [
            entry for entry in self.sorted(user_id, where) if entry.is_unread and entry.notice.accepted_ms <= until_ms
        ]
        found = await self.inbox.read_all(user_id, where, until_ms, now_ms)
        assert sorted(found) == sorted(entry.notice.message_id for entry in wanted)
        for entry in wanted:
            entry.mark(now_ms)

    async def expire(self) -> None:
        """What retention does all the time."""
        await self.stores.records.expire(self.expired_ms, self.node.clock.now_ms, 1000)
        self.expired_ms = self.node.clock.now_ms

    async def revoke(self, name: str) -> None:
        if name in self.node.accepted and name not in self.gone:
            self.gone.add(name)
            await revoke(self.node, name)
            for entries in self.entries.values():
                if (entry := entries.get(name)) is not None:
                    entry.is_revoked = True

    async def wait(self, seconds: int) -> None:
        self.node.clock.now_ms += seconds * 1000

    async def restart(self) -> None:
        await self.node.restart()

    async def delete(self, name: str) -> None:
        if name in self.node.accepted:
            self.gone.add(name)
        await self.stores.records.delete(name)
        for entries in self.entries.values():
            entries.pop(name, None)

    def sorted(self, user_id: int, where: InboxFilter) -> list[Entry]:
        """What should be there, newest first."""
        now_ms = self.node.clock.now_ms
        found = [
            entry
            for entry in self.entries[user_id].values()
            if entry.is_there(now_ms)
            and where.is_read in (None, bool(entry.read_ms))
            and where.is_archived in (None, entry.is_archived)
            and where.message_type in (None, entry.notice.type)
            and (where.tag is None or where.tag in entry.notice.tags)
        ]
        return sorted(found, key=lambda entry: entry.notice.seq, reverse=True)

    async def check(self, user_id: int, where: InboxFilter, limit: int) -> None:
        await self.expire()
        items = await walked(self.inbox, user_id, where, limit)
        expected = self.sorted(user_id, where)
        assert [row_of(item) for item in items] == [entry.row() for entry in expected]
        for item, entry in zip(items, expected, strict=True):
            notice, shown = entry.notice, item.notice
            assert (shown.content, shown.type, shown.title, shown.tags, shown.accepted_ms, shown.expires_ms) == (
                notice.content, notice.type, notice.title, notice.tags, notice.accepted_ms, notice.expires_ms
            )  # fmt: skip
        unread = (await self.stores.records.unread_counts([user_id])).get(user_id, 0)
        assert unread == sum(entry.is_unread for entry in self.sorted(user_id, ALL))


async def walked(inbox: Inbox, user_id: int, where: InboxFilter, limit: int) -> list[InboxItem]:
    """A whole inbox, page by page."""
    items: list[InboxItem] = []
    before: str | None = None
    while True:
        page = await inbox.page(user_id, where, limit, before)
        assert len(page.items) <= limit
        assert len(page.items) == limit or page.next is None
        items += page.items
        before = page.next
        if before is None:
            return items


users = st.sampled_from(USERS)
names = st.lists(st.integers(0, 9).map(lambda number: f"m{number}"), min_size=1, max_size=4, unique=True)
outcomes = st.dictionaries(users, st.sampled_from(OUTCOMES), min_size=1)
tags = st.lists(st.sampled_from(TAGS), unique=True, max_size=2).map(tuple)
optional = st.sampled_from((None, True, False))
filters = st.builds(InboxFilter, optional, optional, st.sampled_from((None, *TYPES)), st.sampled_from((None, *TAGS)))


kinds = st.sampled_from(TYPES)
some_names = st.integers(0, 9).map(lambda number: f"m{number}")
read_all_filters = st.builds(
    InboxFilter, message_type=st.sampled_from((None, *TYPES)), tag=st.sampled_from((None, *TAGS))
)
steps = st.one_of(
    st.tuples(st.just("publish"), kinds, tags, st.sampled_from((0, 0, 0, 5000, 60_000)), outcomes, st.booleans()),
    st.tuples(st.just("publish"), kinds, tags, st.just(0), outcomes, st.booleans()),
    st.tuples(st.just("note"), st.integers(0, 9), outcomes, st.booleans()),
    st.tuples(st.just("mark"), users, names, st.sampled_from(list(Mark))),
    st.tuples(st.just("archive"), users, names, st.booleans()),
    st.tuples(st.just("read_all"), users, read_all_filters, st.sampled_from((0, 20, 5000))),
    st.tuples(st.just("delete"), some_names),
    st.tuples(st.just("revoke"), some_names),
    st.tuples(st.just("wait"), st.integers(1, 10)),
    st.tuples(st.just("restart")),
    st.tuples(st.just("check"), users, filters, st.integers(1, 4)),
)


@given(work=st.lists(steps, min_size=4, max_size=30))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], phases=PHASES)
async def test_an_inbox_is_what_the_model_says(node: Node, work: list[tuple[Any, ...]]) -> None:
    node.renew()
    await node.restart()
    model = Model(node)
    for name, *arguments in work:
        await getattr(model, name)(*arguments)
    for user_id in USERS:
        await model.check(user_id, ALL, 3)
        await model.check(user_id, InboxFilter(is_read=False, is_archived=False), 2)


async def filled(node: Node, count: int, *, at_once: int = 1) -> list[str]:
    """So many notices for user 1, `at_once` of each moment; newest first."""
    names = []
    for number in range(count):
        node.clock.now_ms += number % at_once == 0
        await node.accept(f"m{number:03}", accepted_ms=node.clock.now_ms)
        names.append(f"m{number:03}")
    said = {"message_type": "system_notice"}
    receipts = [receipt(name, 1, at(node.accepted[name].accepted_ms, DELIVERED), **said) for name in names]
    await node.stores.records.write([node.record(name, "success") for name in names], receipts)
    return names[::-1]


async def revoke(node: Node, message_id: str) -> None:
    """As delivery does it: on this disk, and where the records are."""
    await node.stores.amendments.revoke(Amended(message_id, is_revoked=True), node.clock.now_ms)
    await node.stores.records.revoke(message_id, node.clock.now_ms)


def ids(items: list[InboxItem]) -> list[str]:
    return [item.notice.message_id for item in items]


@pytest.mark.parametrize("at_once", [1, 3, 40])
@pytest.mark.parametrize("limit", [1, 2, 7, 100])
async def test_pages_fit_together_however_many_are_of_a_moment(node: Node, at_once: int, limit: int) -> None:
    names = await filled(node, 40, at_once=at_once)
    assert ids(await walked(node.stores.inbox, 1, ALL, limit)) == names
    assert await walked(node.stores.inbox, 2, ALL, limit) == []


async def test_a_walk_is_not_disturbed_by_what_happens_meanwhile(node: Node) -> None:
    """Nothing comes twice, and what was there all the time comes."""
    names = await filled(node, 20)
    inbox, found = node.stores.inbox, list[str]()
    before: str | None = None
    for step in range(10):
        page = await inbox.page(1, ALL, 3, before)
        found += ids(page.items)
        before = page.next
        if before is None:
            break
        node.clock.now_ms += 5
        (late,) = await node.accept(f"late{step}", accepted_ms=node.clock.now_ms)
        await node.stores.records.write(
            [node.record(late.message_id)], [receipt(late.message_id, 1, at(late.accepted_ms, OFFLINE))]
        )
        await inbox.read_all(1, ALL, node.clock.now_ms - 10, node.clock.now_ms)
        await inbox.archive(1, [names[19 - step]], node.clock.now_ms)
        await node.stores.records.delete(names[step * 2 + 1])
        if step == 3:
            await node.restart()
            inbox = node.stores.inbox
    assert len(found) == len(set(found))
    gone = {names[step * 2 + 1] for step in range(10)}
    assert [name for name in names if name not in gone] == [name for name in found if name not in gone]


@pytest.mark.parametrize("cursor", ["", "x", "s", "t", "sx", "t!", "s-1", "s" + "f" * 17, "tWzFd", "tbnVsbA", "\u00e9"])
async def test_what_is_no_cursor_is_refused(node: Node, cursor: str) -> None:
    await filled(node, 3)
    page = await node.stores.inbox.page(1, ALL, 1, None)
    assert page.next is not None
    for wrong in (cursor, page.next[1:], page.next.upper()):
        with pytest.raises(ValueError, match="next"):
            await node.stores.inbox.page(1, ALL, 1, wrong)


async def test_whose_count_has_changed(node: Node) -> None:
    await filled(node, 3)
    inbox, records = node.stores.inbox, node.stores.records
    for change in (
        lambda: records.write([], [receipt("m000", 2, OFFLINE, message_type="t")]),
        lambda: records.mark(2, ["m000"], Mark.READ, START_MS),
        lambda: inbox.archive(1, ["m001"], START_MS),
        lambda: inbox.read_all(1, ALL, EVER_MS, START_MS),
    ):
        inbox.unread_changed()
        await change()
        changed = inbox.unread_changed()
        assert changed is not None
        assert len(set(changed)) == 1
        assert not inbox.unread_changed()
    await records.delete("m002")
    assert not inbox.unread_changed() or node.keeps_records is False


async def test_revoked_notices_are_not_there(node: Node) -> None:
    await filled(node, 3)
    await revoke(node, "m001")
    assert ids(await walked(node.stores.inbox, 1, ALL, 1)) == ["m002", "m000"]
    assert await node.stores.records.unread_counts([1]) == {1: 2}
    assert sorted(await node.stores.inbox.read_all(1, ALL, EVER_MS, START_MS)) == ["m000", "m002"]
