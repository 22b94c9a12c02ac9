"""Databases of older versions: what they held is in the new file, and what the old code answered is still true."""

from __future__ import annotations

import json
import os
import random
import resource
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from pushd.config.schema import Config, ServerConfig
from pushd.errors import StartError
from pushd.records import Part, PushFilter, PushSort, ReceiptFilter, ReceiptSort
from pushd.stores.sqlite import conversion, open_stores
from pushd.stores.sqlite.engine.schema import VERSION
from tests.converted import (
    ANSWERED_MS,
    ANSWERS,
    ONLINE,
    STEP_NAMES,
    STEPS,
    Stored,
    dump,
    empty_database,
    old_database,
    started,
)


def without(row: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names}


@pytest.fixture(params=[8, 5, 1])
def version(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def stored(tmp_path: Path, version: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stored]:
    monkeypatch.setattr(conversion, "wall_ms", lambda: ANSWERED_MS)
    started(old_database(tmp_path, version))
    with closing(Stored(tmp_path / "pushd.db")) as found:
        yield found


def test_receipts_are_those_of_before(stored: Stored) -> None:
    gone = ("retry_count", "error_message", "updated_ms")
    expected = sorted(
        (without(row, *gone) for row in ANSWERS["receipts"]), key=lambda row: (row["created_ms"], row["user_id"])
    )
    assert list(stored.receipts()) == expected


def test_push_records_are_those_of_before(stored: Stored) -> None:
    gone = ("error", "updated_ms", "total_count", "online_count")  # these are counted from the receipts
    assert list(stored.push_records()) == [without(row, *gone) for row in ANSWERS["push_records"]]
    for row in ANSWERS["push_records"]:
        seq = next(seq for seq, found in stored.rows.items() if found[1] == row["message_id"])
        counts = stored.ledger.counts(seq)
        expected = ANSWERS["statuses"][row["message_id"]]
        assert sum(counts.values()) == expected["total_users"]
        assert sum(count for state, count in counts.items() if state & ONLINE) == expected["online_users"]
        assert sum(count for state, count in counts.items() if state & STEPS >= 5) == expected["read_users"]


def test_mailboxes_are_those_of_before(stored: Stored) -> None:
    for user_id in (*range(1, 9), -5):
        expected = [without(item, "saved_at", "time") for item in ANSWERS["mailboxes"].get(str(user_id), ())]
        for item in expected:
            if not item.get("message_id"):  # what has none gets one, so that it can be acknowledged
                item["message_id"] = "#8"
        assert stored.mailbox(user_id) == expected


def test_a_notice_that_was_saved_again_waits_from_then_on(stored: Stored) -> None:
    waits = stored.db.execute("SELECT message_id, waits_from_ms FROM notice WHERE waits_from_ms IS NOT NULL").fetchall()
    assert waits == [("m-old", 1_700_000_000_095)]


def test_what_is_unread_is_what_was(stored: Stored) -> None:
    for user_id in (*range(1, 9), -5):
        number = stored.users.number(user_id)
        summary = ANSWERS["summaries"][str(user_id)]
        assert number is not None
        unread, total, newest = stored.ledger.summary(number)
        assert (
            unread == stored.ledger.unread(number) == ANSWERS["unread"].get(str(user_id), 0) == summary["unread_count"]
        )
        assert total == summary["total_count"]
        assert (stored.ledger.created_ms(newest) if newest else 0) == summary["last_message_ms"]


def test_the_journal_goes_on(stored: Stored, version: int) -> None:
    def plain(notice: Any) -> dict[str, Any]:
        return without(json.loads(msgspec.json.encode(notice)), "seq")

    assert [plain(notice) for notice in stored.journal(is_settled=False)] == [
        without(notice, "seq") for notice in ANSWERS["unsettled"]
    ]
    found = [plain(notice) for notice in stored.notices.values()]
    for notice in ANSWERS["since"]:  # repeats are recognised by them
        assert without(notice, "seq") in found
    assert all(notice.seq == seq for seq, notice in stored.notices.items())
    last_seq = 50 if version < 8 else 16  # the highest ever given out; in the last one there are more notices now
    (highest,) = stored.db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'notice'").fetchone()
    assert highest == last_seq == stored.ledger.last_seq
    accepted = [stored.ledger.created_ms(seq) for seq in stored.rows]
    assert accepted == sorted(accepted)


async def test_the_stores_answer_as_before(tmp_path: Path, version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "wall_ms", lambda: ANSWERED_MS)
    old_database(tmp_path, version)
    users = (*range(1, 9), -5)
    async with open_stores(Config(server=ServerConfig(data_dir=str(tmp_path))), clock=lambda: ANSWERED_MS) as stores:
        found = {
            "receipts": await stores.records.receive_records(
                ReceiptFilter(), ReceiptSort.CREATED_AT, Part(0, 100, is_descending=False)
            ),
            "unread": {str(user): count for user, count in (await stores.records.unread_counts(users)).items()},
            "summaries": {str(user): await stores.records.user_summary(user) for user in users},
            "users": sorted((await stores.directory.users(users)).values(), key=lambda user: user.user_id),
            "presence": sorted((await stores.presence.statuses(users)).values(), key=lambda status: status.user_id),
        }
        statuses = {name: await stores.records.receive_status(name) for name in ANSWERS["statuses"]}
        pushes = await stores.records.push_records(PushFilter(), PushSort.PUSH_TIME, Part(0, 100))
        types = {row.message_id: row.message_type for row in pushes}
    answers = json.loads(msgspec.json.encode(found | {"statuses": statuses}))
    for row in (*answers["receipts"], *ANSWERS["receipts"]):
        if row["delivery_status"] == "expired":  # when that was noted is not kept
            row["updated_ms"] = 0
    for row in answers["receipts"]:  # what receive records did not say then
        assert (row.pop("message_type"), row.pop("tags")) == (types[row["message_id"]], [])
        del row["expires_ms"], row["confirmed_version"]
    for name, answer in answers.items():
        assert answer == ANSWERS[name]


def test_what_is_not_the_ledger_s_is_as_it_was(stored: Stored, version: int) -> None:
    db = stored.db
    users = db.execute("SELECT id, username, user_type, is_imported, token_issued_at FROM user ORDER BY id").fetchall()
    assert [row[:3] for row in users] == [(row["user_id"], row["username"], row["role"]) for row in ANSWERS["users"]]
    tokens = [(1, None)] * 6 + [(0, 1_699_999_999_000), (0, 0)]
    assert [row[3:] for row in users] == (tokens if version > 7 else [(0, None)] * 8)
    names = ("user_id", "username", "is_online", "last_seen", "total_online_count", "online_duration")
    found = db.execute(f"SELECT {', '.join(names)} FROM admin_user_online_status ORDER BY user_id").fetchall()
    keys = ("user_id", "username", "is_online", "last_seen_ms", "total_online_count", "online_duration_ms")
    assert found == [tuple(row[key] for key in keys) for row in ANSWERS["presence"]]
    outbox = {
        writer: [
            [position, body.hex()] for position, name, body in db.execute("SELECT * FROM outbox") if name == writer
        ]
        for writer in ("records", "status")
    }
    assert outbox == (ANSWERS["outbox"] if version > 2 else {"records": [], "status": []})
    wanted = [
        [row[0], row[1], row[2].hex()] for row in db.execute("SELECT id, kind, body FROM set_aside WHERE is_wanted")
    ]
    assert wanted == (ANSWERS["wanted"] if version > 6 else [])
    if version == 8:
        assert dict(db.execute("SELECT name, seq FROM sqlite_sequence"))["outbox"] == 3


def test_the_old_file_is_kept_and_a_second_start_does_nothing(tmp_path: Path, version: int) -> None:
    path = old_database(tmp_path, version)
    before = dump(path)
    started(path)
    kept = tmp_path / f"pushd.db.v{version}"
    assert dump(kept) == before
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (VERSION,)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    after = dump(path)
    with capture_logs() as logs:
        started(path)
    assert not logs
    assert dump(path) == after
    assert {item.name for item in tmp_path.iterdir()} == {"pushd.db", kept.name}
    assert path.stat().st_mode & 0o077 == 0


def test_a_file_that_was_kept_before_stays(tmp_path: Path) -> None:
    path = old_database(tmp_path, 8)
    (tmp_path / "pushd.db.v8").write_bytes(b"of another time")
    started(path)
    assert (tmp_path / "pushd.db.v8").read_bytes() == b"of another time"
    assert (tmp_path / "pushd.db.v8.2").exists()


def test_where_files_have_one_name_only_the_old_one_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    path = old_database(tmp_path, 8)
    before = dump(path)
    monkeypatch.setattr(os, "link", refuse)
    started(path)
    assert dump(tmp_path / "pushd.db.v8") == before
    assert {item.name for item in tmp_path.iterdir()} == {"pushd.db", "pushd.db.v8"}


def test_what_a_link_leads_to_is_converted_where_it_is(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    (tmp_path / "pushd.db").symlink_to(old_database(there, 8))
    started(tmp_path / "pushd.db")
    assert {item.name for item in there.iterdir()} == {"pushd.db", "pushd.db.v8"}
    with closing(Stored(tmp_path / "pushd.db")) as stored:
        assert len(list(stored.receipts())) == len(ANSWERS["receipts"])


def test_a_full_disk_ends_the_start_with_one_line(tmp_path: Path) -> None:
    path = empty_database(tmp_path)
    fill(path, random.Random(1), broadcasts=3, singles=500, users=400)
    before = dump(path)
    child = os.fork()
    if not child:  # the limit stays
        code = 1
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
            started(path)
        except StartError as error:
            is_told = "\n" not in str(error) and str(path) in str(error)
            code = 0 if is_told else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert dump(path) == before
    assert {item.name for item in tmp_path.iterdir()} == {"pushd.db"}
    started(path)


def test_a_file_that_another_program_uses_is_refused(tmp_path: Path) -> None:
    path = old_database(tmp_path, 8)
    with closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA journal_mode = WAL")
        other.execute("SELECT * FROM user").fetchall()
        with pytest.raises(StartError, match="locked"):
            conversion.converted(path, 8)
    started(path)


def test_it_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "TELL_EVERY_S", 0.0)
    monkeypatch.setattr("pushd.stores.sqlite.older.PROGRESS_STEPS", 100)
    path = old_database(tmp_path, 8)
    with capture_logs() as logs:
        started(path)
    said = [{name: line[name] for name in line if name not in ("event", "log_level")} for line in logs]
    assert said[0] == {"file": str(path), "version": 8}
    assert {"journal_entries": "12 of 13"} in said
    assert {"push_records": "9 of 9"} in said  # while they are sorted
    assert {"notices": "15 of 16", "receipts": "22 of 22"} in said


def fill(path: Path, rng: random.Random, *, broadcasts: int, singles: int, users: int) -> list[tuple[Any, ...]]:
    """Receipts of all states in the tables of version 8; what they say, in the order of `said`."""
    start_ms = 1_700_000_000_000
    records, receipts = [], []
    for place in range(broadcasts + singles):
        name, at_ms = f"n{place:06}", start_ms + place * 10
        records.append((name, at_ms, at_ms, at_ms))
        recipients = range(1, users + 1) if place < broadcasts else [rng.randint(1, users)]
        for user_id in recipients:
            step = rng.randint(1, 6)
            received = at_ms + rng.randrange(100_000) if step >= 4 else None
            read = received + 5 if received and step >= 5 else None
            confirmed = read + rng.randrange(10) if read and step == 6 else None
            receipts.append(
                (
                    name, user_id, f"user{user_id}", user_id % 3, rng.random() < 0.5, step >= 4, received, step >= 5,
                    read, step == 6, confirmed, ("websocket", "offline")[rng.randrange(2)], STEP_NAMES[step], at_ms,
                    at_ms, f"c{user_id % 50}" if step >= 4 else "",
                )
            )  # fmt: skip
    with closing(sqlite3.connect(path)) as connection:
        for (trigger,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {trigger}")
        connection.executemany(
            "INSERT INTO push_records (message_id, content, message_type, target, status, push_time, created_at,"
            " updated_at) VALUES (?, 'text', 'system_notice', 'all', 'success', ?, ?, ?)",
            records,
        )
        connection.executemany(
            "INSERT INTO admin_user_receive_records (message_id, user_id, username, user_role, is_online, is_received,"
            " received_at, is_read, read_at, is_confirmed, confirmed_at, push_channel, delivery_status, created_at,"
            " updated_at, connection_id) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            receipts,
        )
        connection.commit()
    return receipts


def test_many_receipts_in_blocks_and_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "FLUSH_RECEIPTS", 700)
    monkeypatch.setattr("pushd.stores.sqlite.older.CHUNK_ROWS", 300)
    path = empty_database(tmp_path)
    written = fill(path, random.Random(2), broadcasts=3, singles=6000, users=500)
    started(path)
    with closing(Stored(path)) as stored:
        found = [
            (
                row["message_id"], row["user_id"], row["username"], row["user_role"], row["is_online"],
                row["is_received"], row["received_ms"] or None, row["is_read"], row["read_ms"] or None,
                row["is_confirmed"], row["confirmed_ms"] or None, row["push_channel"],
                row["delivery_status"], row["created_ms"], row["created_ms"], row["connection_id"],
            )
            for row in stored.receipts()
        ]  # fmt: skip
        assert found == written
        keys = [key for (key,) in stored.db.execute("SELECT key FROM block")]
        assert {key >> 3 & 3 for key in keys} == {0, 1, 2}  # chunks, dense blocks and pages
