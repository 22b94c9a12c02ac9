"""The embedded mailbox: what is damaged or unknown, what reading costs, and how what is past its time is found."""

from __future__ import annotations

import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from pushd.model import Mark, Notice
from pushd.stores.sqlite import open_stores
from tests.conftest import MakeConfig
from tests.samples import OFFLINE, at, item, item_of, notice, read_mailbox, receipt

from .conftest import MAX_PER_USER, START_MS, TTL_DAYS, Node

USERS = range(1, 60)
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


def notices(*names: str, **fields: Any) -> list[Notice]:
    return [notice(seq, message_id=name, accepted_ms=START_MS, **fields) for seq, name in enumerate(names, 1)]


def now() -> int:
    return START_MS


@pytest.mark.parametrize(
    "body",
    [b"{", b'{"seq":2}', b"[]", b"1", b"[" * 5000, b'{"content":"\\ud800"}', b'{"content":"\xff"}', None],
)
async def test_a_body_that_cannot_be_read_is_left_out(make_config: MakeConfig, body: bytes | None) -> None:
    config = make_config()
    aside: list[int] = []
    async with open_stores(config, clock=now, left_aside=aside.append) as stores:
        accepted = notices("a", "b", "c")
        await stores.journal.append(accepted)
        await stores.mailbox.save([(item_of(one), USERS) for one in accepted])
        with closing(sqlite3.connect(f"{config.server.data_dir}/pushd.db")) as connection:
            if body is None:
                connection.execute("DELETE FROM notice WHERE message_id = 'b'")
            else:
                connection.execute("UPDATE notice SET body = ? WHERE message_id = 'b'", (body,))
            connection.commit()
        with capture_logs() as logs:
            for _ in range(2):
                found = await stores.mailbox.read(USERS)
        assert {tuple(kept.message_id for kept in items) for items in found.values()} == {("a", "c")}
        assert len(found) == len(USERS)
        assert sum(aside) >= 2
        assert len(logs) == 1
        await stores.mailbox.remove({1: ["a", "b", "c"]})
        assert await stores.mailbox.read([1]) == {}


async def test_an_item_of_no_notice_is_left_aside_and_the_others_are_saved(make_config: MakeConfig) -> None:
    aside: list[int] = []
    async with open_stores(make_config(), clock=now, left_aside=aside.append) as stores:
        (known,) = notices("a")
        await stores.journal.append([known])
        with capture_logs() as logs:
            for _ in range(2):
                await stores.mailbox.save([(item("unknown"), [1]), (item_of(known), [1]), (item("nobody's"), [])])
        assert (aside, len(logs)) == ([1, 1], 1)
        assert [kept.message_id for kept in (await stores.mailbox.read([1]))[1]] == ["a"]


async def test_large_bodies_come_back(make_config: MakeConfig) -> None:
    async with open_stores(make_config(), clock=now) as stores:
        accepted = notices(*(f"m{number}" for number in range(40)), data="x" * 300_000)
        for one in accepted:
            await stores.journal.append([one])
        await stores.mailbox.save([(item_of(one), [1, 2]) for one in accepted])
        found = await read_mailbox(stores.mailbox, [1, 2])
        assert found[1] == found[2] == [item_of(one) for one in accepted]


async def test_data_that_is_no_utf8_is_left_aside(make_config: MakeConfig, tmp_path: Path) -> None:
    """A client would close its connection over it, before what stands behind it."""
    async with open_stores(make_config(), clock=now) as stores:
        accepted = notices("bad", "good", data={"a": "XX"})
        await stores.journal.append(accepted)
        with closing(sqlite3.connect(tmp_path / "data" / "pushd.db")) as connection:
            spoilt = msgspec.json.encode(accepted[0]).replace(b"XX", b"\xc0\x80")
            connection.execute("UPDATE notice SET body = ? WHERE message_id = 'bad'", (spoilt,))
            connection.commit()
        await stores.mailbox.save([(item_of(one), [1]) for one in accepted])
        assert await read_mailbox(stores.mailbox, [1]) == {1: [item_of(accepted[1])]}


async def test_what_was_read_lately_and_what_is_not_there_needs_no_look_into_the_database(
    make_config: MakeConfig,
) -> None:
    asked: Counter[str] = Counter()

    def observe(store: str, name: str, seconds: float, is_ok: bool) -> None:
        asked[name] += 1

    async with open_stores(make_config(), observe, clock=now) as stores:
        accepted = notices("a", "b", "c")
        await stores.journal.append(accepted)
        await stores.mailbox.save([(item_of(one), USERS) for one in accepted])
        first = await stores.mailbox.read([1])
        asked.clear()
        found = await stores.mailbox.read([*USERS, 1000])
        assert asked == Counter()
        assert all(items[place] is first[1][place] for items in found.values() for place in range(3))


async def test_when_it_was_saved_again_is_kept_and_forgotten_in_time(node: Node) -> None:
    (old, new) = await node.accept("old", "new", accepted_ms=START_MS)
    await node.stores.mailbox.save([(item_of(old, START_MS + 2 * DAY_MS), [1]), (item_of(new, START_MS + 1000), [1])])
    await node.restart()
    waits = {one["message_id"]: one["waits_from_ms"] for one in stored(node.directory)}
    assert waits == {"old": START_MS + 2 * DAY_MS, "new": None}
    node.clock.now_ms = START_MS + TTL_DAYS * DAY_MS
    (kept,) = (await node.stores.mailbox.read([1]))[1]
    assert (kept.message_id, kept.ts, kept.saved_at) == ("old", START_MS, START_MS + 2 * DAY_MS)
    assert await node.stores.mailbox.purge(node.clock.now_ms, 10) == 1
    assert await node.stores.mailbox.purge(node.clock.now_ms + 2 * DAY_MS, 10) == 1
    assert [one["waits_from_ms"] for one in stored(node.directory)] == [None, None]
    assert await node.stores.mailbox.clear(1) == 0


async def test_an_id_that_is_used_again_expires_when_that_says(node: Node) -> None:
    (first,) = await node.accept("a", expires_ms=START_MS + 1000)
    await node.stores.mailbox.save([(item_of(first), [1])])
    node.clock.now_ms += HOUR_MS
    assert await node.stores.mailbox.purge(node.clock(), 10) == 1
    (again,) = await node.accept("a", accepted_ms=node.clock(), expires_ms=node.clock() + 1000)
    await node.stores.mailbox.save([(item_of(again), [1])])
    for _ in range(2):
        assert [one.message_id for one in (await node.stores.mailbox.read([1]))[1]] == ["a"]
        assert await node.stores.mailbox.purge(node.clock(), 10) == 0
        await node.restart()
    node.clock.now_ms += 1000
    assert await node.stores.mailbox.read([1]) == {}
    assert await node.stores.mailbox.purge(node.clock(), 10) == 1


async def test_what_has_expired_is_not_put_there(node: Node) -> None:
    accepted = await node.accept("a", "b", accepted_ms=START_MS, expires_ms=START_MS + 1000)
    node.clock.now_ms += 999
    await node.stores.mailbox.save([(item_of(accepted[0]), [1, 2])])
    node.clock.now_ms += 1
    await node.stores.mailbox.save([(item_of(accepted[1]), [1, 2])])
    assert waiting(node) == [1, 1]


def stored(directory: Path) -> list[dict[str, Any]]:
    with closing(sqlite3.connect(directory / "data" / "pushd.db")) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute("SELECT * FROM notice ORDER BY seq")]


class Model:
    """What should wait, of at most MAX_PER_USER notices. Of what is past its time, purging may have left some."""

    def __init__(self) -> None:
        self.now_ms = START_MS
        self.accepted: list[Notice] = []
        self._since: list[int] = []  # when a notice was last saved, or accepted
        self._kept: set[tuple[int, int]] = set()  # user, place of the notice
        self._perhaps: set[tuple[int, int]] = set()

    def accept(self, accepted: Notice) -> None:
        self.accepted.append(accepted)
        self._since.append(accepted.accepted_ms)

    def save(self, place: int, users: set[int]) -> None:
        if not self.accepted[place].is_expired(self.now_ms):
            self._since[place] = self.now_ms
            self._kept |= {(user, place) for user in users}

    def purge(self, *, is_all: bool) -> None:
        past = {(user, place) for user, place in self._kept if self._is_past(place)}
        self._kept -= past
        self._perhaps |= past
        if is_all:
            self._perhaps = {(user, place) for user, place in self._perhaps if not self._is_past(place)}

    def _is_past(self, place: int) -> bool:
        return self._since[place] + TTL_DAYS * DAY_MS <= self.now_ms or self.accepted[place].is_expired(self.now_ms)

    def check(self, shown: set[tuple[int, int]]) -> None:
        live = {(user, place) for user, place in self._kept if not self._is_past(place)}
        perhaps = {(user, place) for user, place in self._perhaps if not self._is_past(place)}
        assert live <= shown <= live | perhaps


steps = st.one_of(
    st.tuples(st.just("save"), st.integers(0, MAX_PER_USER - 1), st.sets(st.integers(1, 4), min_size=1)),
    st.tuples(st.just("wait"), st.sampled_from([1, 31, 100]), st.none()),
    st.sampled_from([("purge", 1, None), ("purge", 1000, None), ("restart", 0, None), ("new", 0, None)]),
)


@given(st.lists(steps, max_size=25))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_whatever_is_past_its_time_is_found(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, Any]]
) -> None:
    """Nothing of it is shown, purging drops all of it in steps of any size, and nothing else."""
    node, model = Node(tmp_path_factory.mktemp("mailbox")), Model()
    await node.start()
    try:
        for what, number, users in [("new", 0, None), *steps]:
            if what == "new" and len(model.accepted) < MAX_PER_USER:
                expires_ms = model.now_ms + 30 * HOUR_MS if len(model.accepted) % 2 else 0
                name = f"m{len(model.accepted)}"
                model.accept(*await node.accept(name, accepted_ms=model.now_ms, expires_ms=expires_ms))
            elif what == "wait":
                node.clock.now_ms = model.now_ms = model.now_ms + number * HOUR_MS
            elif what == "save":
                place = number % len(model.accepted)
                await node.stores.mailbox.save([(item_of(model.accepted[place], model.now_ms), users)])
                model.save(place, users)
            elif what == "purge":
                dropped = await node.stores.mailbox.purge(model.now_ms, number)
                model.purge(is_all=dropped < number)
            elif what == "restart":
                await node.restart()
            model.check(await shown(node))
        for _ in range(2):
            while await node.stores.mailbox.purge(model.now_ms, 2):
                pass
            model.purge(is_all=True)
            left = await shown(node)
            model.check(left)
            assert len(waiting(node)) == len(left)
            node.clock.now_ms = model.now_ms = model.now_ms + TTL_DAYS * DAY_MS
        assert left == set()
    finally:
        await node.stop()


def waiting(node: Node) -> list[int]:
    """Whatever the ledger has for anybody, shown or not."""
    ledger = node.stores.mailbox._ledger  # type: ignore[attr-defined]
    return [seq for number in range(ledger.user_count) for seq in ledger.waiting(number)]


async def shown(node: Node) -> set[tuple[int, int]]:
    found = await node.stores.mailbox.read(range(1, 5))
    return {(user, int(one.message_id[1:])) for user, items in found.items() for one in items}


async def test_an_id_that_is_used_again_waits_with_what_the_newest_notice_says(node: Node) -> None:
    """Also after a restart, and for those for whom the first one waits still; the record keeps what it said first."""
    (first,) = await node.accept("a", content="first")
    await node.stores.mailbox.save([(item_of(first), [1, 2])])
    await node.stores.mailbox.remove({1: ["a"]})
    await node.stores.journal.settle([first.seq])
    node.clock.now_ms += 10 * 60_000
    (second,) = await node.accept("a", content="second", accepted_ms=node.clock.now_ms)
    await node.stores.mailbox.save([(item_of(second), [1])])
    await node.stores.journal.settle([second.seq])
    for _ in range(2):
        waiting = await node.stores.mailbox.read([1, 2])
        assert {user_id: [item.content for item in items] for user_id, items in waiting.items()} == {
            1: ["second"],
            2: ["second"],
        }
        row = await node.stores.records.push_record("a")
        assert row is not None
        assert row.content == "first"
        assert await node.stores.journal.purge(node.clock.now_ms + 1, 100) == 0
        await node.restart()
    await node.stores.mailbox.remove({1: ["a"], 2: ["a"]})
    assert await node.stores.mailbox.read([1, 2]) == {}


async def test_the_id_of_a_deleted_record_is_free(node: Node) -> None:
    """For a corrected notice: it has a record and receipts of its own, and the former text reaches nobody any more."""
    (first,) = await node.accept("a", content="wrong")
    await node.stores.mailbox.save([(item_of(first), [1, 2])])
    assert await node.stores.records.delete("a")
    await node.stores.journal.settle([first.seq])
    node.clock.now_ms += 10 * 60_000
    (second,) = await node.accept("a", content="right", accepted_ms=node.clock.now_ms)
    await node.stores.mailbox.save([(item_of(second), [1])])
    await node.stores.records.write([], [receipt("a", 1, at(second.accepted_ms, OFFLINE))])
    for _ in range(2):
        waiting = await node.stores.mailbox.read([1, 2])
        assert [(user_id, item.content) for user_id, items in waiting.items() for item in items] == [(1, "right")]
        row = await node.stores.records.push_record("a")
        assert row is not None
        assert row.content == "right"
        assert await node.stores.records.unread_counts([1, 2]) == {1: 1}
        await node.restart()
    assert await node.stores.records.mark(1, ["a"], Mark.READ, node.clock.now_ms) == ["a"]
