"""What lists of the embedded store do with damaged rows, keywords, and what is not on disk yet."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pushd.config.schema import Config, ServerConfig
from pushd.ledger.labels import Label
from pushd.model import Mark, Priority, PushRecord, Target, TargetKind
from pushd.ports import Stores
from pushd.records import (
    Part,
    PushFilter,
    PushSort,
    PushStats,
    ReceiptFilter,
    ReceiptSort,
    ReceiptStats,
    UserSummary,
)
from pushd.stores.sqlite import open_stores
from pushd.stores.sqlite.engine.statements import Reads
from pushd.stores.sqlite.keywords import STRETCH, Keywords
from pushd.stores.sqlite.push_rows import push_row, read_notice, statuses_of
from tests import stored
from tests.samples import DELIVERED, OFFLINE, PENDING, notice, receipt

ALL = Part(offset=0, limit=10_000)
LABEL = Label("order_paid", 9, "ops", "admin", 2, 1)
NOTHING = (0, 0, 0, 0, 0)


@pytest.fixture
async def stores(tmp_path: Path) -> AsyncIterator[Stores]:
    config = Config(server=ServerConfig(data_dir=str(tmp_path / "data")))
    async with open_stores(config) as opened:
        yield opened


async def listed(stores: Stores, where: PushFilter, part: Part = ALL) -> list[str]:
    rows = await stores.records.push_records(where, PushSort.PUSH_TIME, part)
    return [row.message_id for row in rows]


# ---- push records


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", {}),
        (b"\xff\x00", {}),
        (b"[1]", {}),
        (b"[" * 100_000, {}),
        (b'{"content": "cut o', {}),
        (b'{"message_id": "m1", "content": "caf\xff", "data": [1]}', {"content": "caf\ufffd", "extra_data": [1]}),
        (b'{"content": 7, "message_id": "m1", "expires_ms": "50"}', {"expires_ms": 50}),
        (b'{"content": "a", "target": {"kind": "nobody"}, "priority": 99}', {"content": "a", "priority": 2}),
        (b'{"content": "a", "type": "mine", "target": {"kind": "role", "roles": [3]}}',
         {"content": "a", "message_type": "mine", "target": "role", "target_roles": [3]}),
        (b'{"content": "\\ud800 half"}', {"content": "? half"}),
        (b'{"content": "big", "data": 1e999, "seq": "x"}', {"content": "big"}),
    ],
)  # fmt: skip
def test_a_damaged_body_is_shown_as_far_as_it_can_be_read(body: bytes, expected: dict[str, Any]) -> None:
    row = push_row(read_notice(5, "m5", body, LABEL), 0x41, 1000, NOTHING)
    assert {name: getattr(row, name) for name in expected} == expected
    assert (row.message_id, row.sender_id, row.sender_name, row.need_confirm) == ("m5", 9, "ops", True)
    assert (row.status, row.success, row.push_ms, row.updated_ms) == ("success", True, 1000, 1000)
    if "message_type" not in expected:
        assert row.message_type == "order_paid"
    assert read_notice(5, "m5", body, None).message_id == "m5"


@given(st.binary(max_size=200))
def test_no_body_is_too_strange_for_a_row(body: bytes) -> None:
    for damaged in (body, msgspec.json.encode(notice(1))[:-1] + body):
        for label in (None, LABEL):
            assert msgspec.json.encode(push_row(read_notice(1, "m1", damaged, label), 0, 0, NOTHING))


@pytest.mark.parametrize(
    ("where", "marks"),
    [
        (PushFilter(), None),
        (PushFilter(status="accepted"), b"\1\0\0\0"),
        (PushFilter(status="success"), b"\0\1\0\0"),
        (PushFilter(status="expired"), b"\0\0\1\0"),
        (PushFilter(status="failed", success=False), b"\0\0\0\1"),
        (PushFilter(success=True), b"\1\1\1\0"),
        (PushFilter(success=True, status="failed"), bytes(4)),
        (PushFilter(status="other"), bytes(4)),
        (PushFilter(status=""), bytes(4)),
    ],
)
def test_statuses(where: PushFilter, marks: bytes | None) -> None:
    assert statuses_of(where) == marks


async def test_rows_that_are_gone_or_damaged_do_not_end_a_list(tmp_path: Path) -> None:
    config = Config(server=ServerConfig(data_dir=str(tmp_path / "data")))
    async with open_stores(config) as stores:
        await stores.journal.append([notice(seq) for seq in range(1, 6)])
        await stores.journal.settle(range(1, 6))
    stored.change(tmp_path, "UPDATE notice SET body = x'ff' WHERE seq = 3")
    async with open_stores(config) as stores:
        stored.change(tmp_path, "DELETE FROM notice WHERE seq = 2")
        rows = await stores.records.push_records(PushFilter(), PushSort.PUSH_TIME, ALL)
        assert [(row.message_id, row.content) for row in rows] == [
            ("m5", "hello"), ("m4", "hello"), ("m3", ""), ("m1", "hello"),
        ]  # fmt: skip
        assert {row.message_type for row in rows} == {"system_notice"}
        assert await stores.records.push_record("m3") == rows[2]


async def test_notices_have_a_record_from_their_acceptance_on(stores: Stores) -> None:
    accepted = notice(1)
    kept = stores.journal.append([accepted])
    await stores.records.push_records(PushFilter(), PushSort.PUSH_TIME, ALL)  # on disk or not
    await kept
    row = await stores.records.push_record("m1")
    assert row is not None
    assert (row.status, row.success, row.total_count) == ("accepted", True, 0)
    assert await stores.records.receive_status("m1") == ReceiptStats()
    await stores.records.write([PushRecord(accepted, "expired", 0, 0)], [])
    assert await listed(stores, PushFilter(status="accepted")) == []
    assert await listed(stores, PushFilter(status="expired")) == ["m1"]
    assert await stores.records.push_record("unknown") is None
    assert await stores.records.push_record("\ud800") is None


async def test_a_filter_by_time_leaves_the_newest_out(stores: Stores) -> None:
    await stores.journal.append([notice(seq, accepted_ms=1000 + seq) for seq in range(1, 9)])
    assert await listed(stores, PushFilter(since_ms=1003, before_ms=1006)) == ["m5", "m4", "m3"]
    assert await listed(stores, PushFilter(since_ms=1 << 70)) == []
    assert len(await listed(stores, PushFilter(since_ms=-(1 << 70), before_ms=1 << 70))) == 8
    stats = await stores.records.push_stats(PushFilter(before_ms=1003))
    assert stats == PushStats(total_records=2, success_records=2)
    counted = await stores.records.receive_stats(ReceiptFilter(since_ms=1 << 70))
    assert counted == ReceiptStats()


# ---- keywords


class Searched:
    """Keywords over rows of a database in memory, and how many statements they have cost."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.connection.execute("CREATE TABLE notice (seq INTEGER PRIMARY KEY, body BLOB NOT NULL)")
        self.statements = 0
        self.keywords = Keywords(Reads(self._read, "records"))

    async def _read(self, store: str, name: str, run: Callable[[sqlite3.Connection], Any]) -> Any:
        self.statements += 1
        return run(self.connection)

    def add(self, seq: int, content: Any, **fields: Any) -> None:
        body = msgspec.json.encode({"data": "down", "content": content} | fields)
        self.connection.execute("INSERT INTO notice VALUES (?, ?)", (seq, body))

    async def found(self, keyword: str, first: int = 1, end: int = 1 << 40) -> set[int]:
        marks = await self.keywords.having(keyword, first, end)
        assert marks.end == marks.first + len(marks.marks)
        return {marks.first + place for place, mark in enumerate(marks.marks) if mark}


@pytest.fixture
def searched() -> AsyncIterator[Searched]:
    with closing(sqlite3.connect(":memory:")) as connection:
        yield Searched(connection)  # type: ignore[misc]


CONTENTS = (
    "Server DOWN",
    "100%",
    "under_score",
    "back\\slash",
    '"quoted"',
    "系统维护",
    "line\nbreak",
    "Öl",
    "\x01\x7f",
    "a/b",
)


@given(
    st.lists(st.sampled_from(CONTENTS) | st.text(max_size=5), max_size=8),
    st.sampled_from(["down", "DOWN", "%", "_", "\\", '"', "维护", "\n", "ö", "Ö", "\x01", "/", "u0001", "content"])
    | st.text(min_size=1, max_size=2),
)
async def test_a_keyword_is_a_part_of_the_content(contents: list[str], keyword: str) -> None:
    def lower(text: str) -> bytes:
        return text.encode(errors="surrogatepass").lower()

    with closing(sqlite3.connect(":memory:")) as connection:
        searched = Searched(connection)
        for seq, content in enumerate(contents, 1):
            searched.add(seq, content)
        expected = {seq for seq, content in enumerate(contents, 1) if lower(keyword) in lower(content)}
        if "\0" not in keyword and not any("\0" in content for content in contents):
            assert await searched.found(keyword) == expected


async def test_rows_that_are_no_notices_have_no_keyword(searched: Searched) -> None:
    for seq, body in enumerate((b"down", b'{"content": "down', b"\xff down", b'["down"]', b'{"content": ["down"]}'), 1):
        searched.connection.execute("INSERT INTO notice VALUES (?, ?)", (seq, body))
    searched.add(10, "down")
    searched.add(11, None)
    searched.add(12, 7)
    assert await searched.found("down") - {5} == {10}
    assert await searched.found("\ud800") == set()


async def test_what_was_found_is_remembered_and_the_rest_is_looked_for(searched: Searched) -> None:
    for seq in range(1, 3 * STRETCH, STRETCH // 2):
        searched.add(seq, "Down")
    every = set(range(1, 3 * STRETCH, STRETCH // 2))
    middle = {seq for seq in every if seq >= STRETCH}
    assert await searched.found("down", STRETCH, 2 * STRETCH) == {seq for seq in middle if seq < 2 * STRETCH}
    assert await searched.found("down", 2 * STRETCH + 5) == middle
    assert await searched.found("down") == every
    searched.statements = 0
    assert await searched.found("down") == every
    assert searched.statements == 1  # how far the rows go
    searched.add(3 * STRETCH, "it went down again")
    assert await searched.found("down") == every | {3 * STRETCH}
    assert searched.statements == 3
    assert await searched.found("went") == {3 * STRETCH}
    assert await searched.found("again") == {3 * STRETCH}
    searched.statements = 0
    await searched.found("down")
    assert searched.statements > 1  # it was forgotten for the others


async def test_notices_that_are_not_on_disk_yet_are_looked_at_later(searched: Searched) -> None:
    assert await searched.found("down", 1, 3) == set()
    searched.add(1, "up")
    assert await searched.found("down", 1, 3) == set()
    searched.add(2, "down")
    assert await searched.found("down", 1, 3) == {2}


async def test_a_keyword_goes_with_all_other_filters(stores: Stores) -> None:
    contents = ("it is DOWN", "up", "down again")
    await stores.journal.append(
        [
            notice(
                seq, content=contents[seq % 3], accepted_ms=1000 + seq, sender_id=seq % 2, priority=Priority(seq % 4)
            )
            for seq in range(1, 13)
        ]
    )
    assert await listed(stores, PushFilter(keyword="down")) == ["m12", "m11", "m9", "m8", "m6", "m5", "m3", "m2"]
    assert await listed(stores, PushFilter(keyword="down", sender_id=1), Part(1, 2)) == ["m9", "m5"]
    assert await listed(stores, PushFilter(keyword="Down Again", since_ms=1003, before_ms=1011)) == ["m8", "m5"]
    assert (await stores.records.push_stats(PushFilter(keyword="DOWN", before_ms=1004))).total_records == 2
    assert (await stores.records.push_stats(PushFilter(keyword="\ud800"))).total_records == 0
    by_priority = await stores.records.push_records(PushFilter(keyword="down"), PushSort.PRIORITY, ALL)
    assert [row.message_id for row in by_priority] == ["m11", "m3", "m6", "m2", "m9", "m5", "m12", "m8"]
    assert len(await listed(stores, PushFilter(keyword=""))) == 12


# ---- receive records


async def test_nobody_and_nothing_have_no_receipts(stores: Stores) -> None:
    records = stores.records
    await stores.journal.append([notice(1)])
    await records.write([], [receipt("m1", 7, DELIVERED)])
    for where in (
        ReceiptFilter(message_id="unknown"),
        ReceiptFilter(message_id="\ud800"),
        ReceiptFilter(user_id=8),
        ReceiptFilter(user_id=-1),
        ReceiptFilter(username="nobody"),
        ReceiptFilter(is_received=False, is_read=True),
    ):
        assert await records.receive_stats(where) == ReceiptStats()
        assert await records.receive_records(where, ReceiptSort.CREATED_AT, ALL) == []
    assert await records.receive_status("unknown") is None
    assert (await records.received_by("unknown"), await records.not_received_by("unknown")) == (set(), [])
    assert await records.unread_counts([8, 9]) == {}
    assert await records.unread_counts([7, 8, 7]) == {7: 1}
    assert await records.user_summary(8) == UserSummary(0, 0, 0)
    assert await records.newest_receive_records([7, 8], 0) == {}
    assert await records.newest_receive_records([8], 5) == {}


async def test_a_user_who_is_asked_for_twice_is_told_once(stores: Stores) -> None:
    await stores.journal.append([notice(1), notice(2)])
    await stores.records.write([], [receipt(name, 7, PENDING) for name in ("m1", "m2")])
    found = await stores.records.newest_receive_records([7, 7], 5)
    assert {user_id: [row.message_id for row in rows] for user_id, rows in found.items()} == {7: ["m2", "m1"]}


async def test_who_has_received_it_and_who_has_not(stores: Stores) -> None:
    await stores.journal.append([notice(1, target=Target(TargetKind.ONLINE)), notice(2)])
    for name in ("m1", "m2"):
        receipts = [receipt(name, user_id, (DELIVERED, OFFLINE, PENDING)[user_id % 3]) for user_id in range(1, 3001)]
        await stores.records.write([], receipts)
        await stores.records.mark(1, [name], Mark.READ, 5000)
        await stores.records.mark(2, [name], Mark.CONFIRMED, 5000)
        received = {*range(3, 3001, 3), 1, 2}
        assert await stores.records.received_by(name) == received
        assert set(await stores.records.not_received_by(name)) == set(range(1, 3001)) - received
        assert await stores.records.receive_status(name) == ReceiptStats(3000, 2000, 1002, 2, 1)


async def test_rows_of_clients_and_users_that_are_lost_leave_the_rest(tmp_path: Path) -> None:
    config = Config(server=ServerConfig(data_dir=str(tmp_path / "data")))
    async with open_stores(config) as stores:
        await stores.journal.append([notice(1)])
        await stores.records.write([], [receipt("m1", user_id, DELIVERED) for user_id in (7, 8)])
    stored.change(tmp_path, "DELETE FROM client")
    stored.change(tmp_path, "DELETE FROM user_number WHERE id = 7")
    async with open_stores(config) as stores:
        rows = await stores.records.receive_records(ReceiptFilter(), ReceiptSort.USER_ID, ALL)
        known = {row.user_id: (row.username, row.client_ip) for row in rows}
        assert known.pop(8) == ("user8", "")
        assert [user_id < 0 for user_id in known] == [True]
        assert await stores.records.received_by("m1") == {8}


def test_a_row_of_a_notice_with_every_field_is_its_own() -> None:
    """What a body says counts, not what its label says."""
    target = Target(TargetKind.CUSTOM, user_ids=(1, 2))
    body = msgspec.json.encode(notice(3, target=target, type="t", sender_id=1, data={"a": [None]}))
    row = push_row(read_notice(3, "m3", body, LABEL), 0x81, 1000, (4, 3, 2, 1, 1500))
    assert (row.message_type, row.target, row.target_user_ids, row.sender_id) == ("t", "custom", [1, 2], 1)
    assert (row.total_count, row.online_count, row.delivered_count, row.failed_count) == (4, 3, 2, 1)
    assert (row.status, row.push_ms, row.created_ms, row.updated_ms) == ("expired", 1000, 1000, 1500)
    assert row.extra_data == {"a": [None]}
