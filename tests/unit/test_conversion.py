"""Databases of older versions: what they held is in the new file, and what the old code answered is still true.

`tests/data` has databases with everything in them as SQL, written by the code of version 8 and carried into the tables
of 5 and 1, and what that code answered at ANSWERED_MS.
"""

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

from pushd.errors import StartError
from pushd.ledger._ledger import Ledger
from pushd.ledger.clients import Clients
from pushd.ledger.labels import Labels
from pushd.ledger.users import Users
from pushd.model import Notice, recipients_text
from pushd.stores.sqlite import conversion
from pushd.stores.sqlite.engine.schema import VERSION, prepare
from pushd.stores.sqlite.ledger_load import Parts, load

DATA = Path(__file__).parent.parent / "data"
ANSWERS: dict[str, Any] = json.loads((DATA / "answers.json").read_bytes())
ANSWERED_MS = 1_700_000_000_200
HIDDEN, OVER, STATUS = 0x08, 0x10, 0xC0
WAITING, ONLINE, BY_MAILBOX, STEPS = 0x10, 0x40, 0x80, 0x0F
STEP_NAMES = ("", "pending", "offline", "expired", "delivered", "delivered", "delivered")
CLIENT = ("connection_id", "client_ip", "user_agent", "device_type", "platform", "browser")


class Stored:
    """What the converted file says, in the shapes of the old answers."""

    def __init__(self, path: Path) -> None:
        self.db = sqlite3.connect(path)
        self.ledger, self.users, self.labels = Ledger(1000), Users(), Labels()
        assert load(self.db, Parts(self.ledger, self.users, Clients(), self.labels, has_records=True)) == 0
        self.clients = {row[0]: row[1:] for row in self.db.execute("SELECT * FROM client")}
        self.rows = {row[0]: row for row in self.db.execute("SELECT seq, message_id, accepted_ms, body FROM notice")}
        self.notices = {
            seq: msgspec.json.decode(row[3], type=Notice) for seq, row in self.rows.items() if row[3][:1] == b"{"
        }

    def close(self) -> None:
        self.db.close()

    def receipts(self) -> Iterator[dict[str, Any]]:
        """As ReceiptRow, in order of their notices, but for fields that are no longer kept."""
        for seq, message_id, accepted_ms, _ in self.rows.values():
            for number in sorted(self.ledger.receipts(seq), key=self.users.ids.__getitem__):
                found = self.ledger.receipt(seq, number)
                assert found is not None
                state, received_ms, read_ms, confirmed_ms, client = found
                name, role = self.users.name_role(number, seq)
                step = state & STEPS
                yield {
                    "message_id": message_id,
                    "user_id": self.users.ids[number],
                    "username": name,
                    "user_role": role,
                    "is_online": bool(state & ONLINE),
                    "is_received": step >= 4,
                    "is_read": step >= 5,
                    "is_confirmed": step == 6,
                    "received_ms": received_ms,
                    "read_ms": read_ms,
                    "confirmed_ms": confirmed_ms,
                    "created_ms": accepted_ms,
                    "delivery_status": STEP_NAMES[step],
                    "push_channel": "offline" if state & BY_MAILBOX else "websocket",
                    **dict(zip(CLIENT, self.clients.get(client, ("",) * 6), strict=True)),
                }

    def push_records(self) -> Iterator[dict[str, Any]]:
        """As PushRow, but for fields that are no longer kept."""
        for seq, notice in self.notices.items():
            state = self.ledger.notice_state(seq)
            if state & HIDDEN or not state & STATUS:
                continue
            counts = self.ledger.counts(seq)
            status = {0x40: "success", 0x80: "expired", 0xC0: "failed"}[state & STATUS]
            yield {
                "message_id": notice.message_id,
                "content": notice.content,
                "message_type": notice.type,
                "target": notice.target.kind,
                "target_user_ids": list(notice.target.user_ids) or None,
                "target_roles": list(notice.target.roles) or None,
                "recipients_count": recipients_text(notice.target),
                "status": status,
                "success": status != "failed",
                "push_ms": notice.accepted_ms,
                "created_ms": self.ledger.created_ms(seq),
                "expires_ms": notice.expires_ms,
                "sender_id": notice.sender_id,
                "sender_name": notice.sender_name,
                "priority": notice.priority,
                "need_confirm": notice.need_confirm,
                "extra_data": notice.data,
                "delivered_count": sum(count for state, count in counts.items() if state & STEPS >= 4),
                "failed_count": sum(count for state, count in counts.items() if state & STEPS == 3),
            }

    def mailbox(self, user_id: int) -> list[dict[str, Any]]:
        """What waits for the user, as MailboxItem; what is not kept there is put together for the frame."""
        number = self.users.number(user_id)
        seqs = [] if number is None else self.ledger.waiting(number)
        items = []
        for notice in (self.notices[seq] for seq in seqs if not 0 < self.notices[seq].expires_ms <= ANSWERED_MS):
            item = {
                "message_id": notice.message_id,
                "content": notice.content,
                "type": notice.type,
                "ts": notice.accepted_ms,
            }
            optional = {
                "data": (notice.data, None),
                "priority": (notice.priority, 1),
                "need_confirm": (notice.need_confirm, False),
                "expires_ms": (notice.expires_ms, 0),
            }
            items.append(item | {name: value for name, (value, default) in optional.items() if value != default})
        return items

    def journal(self, *, is_settled: bool) -> list[Notice]:
        """Notices by seq, those of which nothing is left to do or the others."""
        unsettled = set(self.ledger.unsettled())
        return [notice for seq, notice in self.notices.items() if (seq not in unsettled) == is_settled]


def without(row: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names}


def old_database(directory: Path, version: int) -> Path:
    path = directory / "pushd.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript((DATA / f"pushd.db.v{version}.sql").read_text())
    return path


def empty_database(directory: Path, version: int = 8) -> Path:
    """Only the tables."""
    path = old_database(directory, version)
    with closing(sqlite3.connect(path)) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        for (table,) in tables:
            connection.execute(f"DELETE FROM {table}")
        connection.commit()
    return path


def dump(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return [*connection.iterdump()]


@pytest.fixture(params=[8, 5, 1])
def version(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def stored(tmp_path: Path, version: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stored]:
    monkeypatch.setattr(conversion, "wall_ms", lambda: ANSWERED_MS)
    prepare(old_database(tmp_path, version))
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
    prepare(path)
    kept = tmp_path / f"pushd.db.v{version}"
    assert dump(kept) == before
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (VERSION,)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    after = dump(path)
    with capture_logs() as logs:
        prepare(path)
    assert not logs
    assert dump(path) == after
    assert {item.name for item in tmp_path.iterdir()} == {"pushd.db", kept.name}
    assert path.stat().st_mode & 0o077 == 0


def test_a_file_that_was_kept_before_stays(tmp_path: Path) -> None:
    path = old_database(tmp_path, 8)
    (tmp_path / "pushd.db.v8").write_bytes(b"of another time")
    prepare(path)
    assert (tmp_path / "pushd.db.v8").read_bytes() == b"of another time"
    assert (tmp_path / "pushd.db.v8.2").exists()


def test_where_files_have_one_name_only_the_old_one_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    path = old_database(tmp_path, 8)
    before = dump(path)
    monkeypatch.setattr(os, "link", refuse)
    prepare(path)
    assert dump(tmp_path / "pushd.db.v8") == before
    assert {item.name for item in tmp_path.iterdir()} == {"pushd.db", "pushd.db.v8"}


def test_a_full_disk_ends_the_start_with_one_line(tmp_path: Path) -> None:
    path = empty_database(tmp_path)
    fill(path, random.Random(1), broadcasts=3, singles=500, users=400)
    before = dump(path)
    child = os.fork()
    if not child:  # the limit stays
        code = 1
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
            prepare(path)
        except StartError as error:
            is_told = "\n" not in str(error) and str(path) in str(error)
            code = 0 if is_told else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert dump(path) == before
    assert {item.name for item in tmp_path.iterdir()} == {"pushd.db"}
    prepare(path)


def test_a_file_that_another_program_uses_is_refused(tmp_path: Path) -> None:
    path = old_database(tmp_path, 8)
    with closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA journal_mode = WAL")
        other.execute("SELECT * FROM user").fetchall()
        with pytest.raises(StartError, match="locked"):
            conversion.converted(path, 8)
    prepare(path)


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
    prepare(path)
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


ODD: list[Any] = [
    None, "", b"", b"\xff\xfe\x00", "a\x00b", '[1,"a",null,1e400,99999999999999999999]', -1, 2**63 - 1, -(2**63), 1e308,
    float("inf"), "9" * 400, "[[[", "[" * 5000, "\U0001f600" * 300, "CAST(x'fffe61' AS TEXT)",
]  # fmt: skip
SPOILED = ("push_records", "admin_user_receive_records", "mailbox", "mailbox_notice", "journal", "user", "alive")


def columns_of_version_8() -> list[tuple[str, str]]:
    with closing(sqlite3.connect(":memory:")) as made:
        made.executescript((DATA / "pushd.db.v8.sql").read_text())
        return [(table, row[1]) for table in SPOILED for row in made.execute(f"PRAGMA table_info({table})")]


def fill_all(path: Path) -> None:
    """A notice for each odd value and one more, each with all that a notice can have."""
    with closing(sqlite3.connect(path)) as connection:
        for place in range(1, len(ODD) + 2):
            name, at_ms = f"m{place}", 1_700_000_000_000 + place
            notice = {"seq": place, "message_id": name, "content": "c", "target": {"kind": "all"}, "accepted_ms": at_ms}
            item = {"type": "t", "content": "c", "message_id": name, "ts": at_ms, "saved_at": at_ms}
            connection.execute("INSERT INTO journal VALUES (?, ?, ?, ?)", (place, at_ms, place % 2, json.dumps(notice)))
            connection.execute(
                "INSERT INTO push_records (message_id, content, message_type, target, status, push_time, created_at,"
                " updated_at) VALUES (?, 'c', 't', 'all', 'success', ?, ?, ?)",
                (name, at_ms, at_ms, at_ms),
            )
            for user_id in (1, 2):
                connection.execute(
                    "INSERT INTO admin_user_receive_records (message_id, user_id, created_at, updated_at)"
                    " VALUES (?, ?, ?, ?)",
                    (name, user_id, at_ms, at_ms),
                )
                connection.execute("INSERT INTO mailbox VALUES (?, ?, ?)", (user_id, place, place))
            box = (place, name, place, at_ms, None, json.dumps(item))
            connection.execute("INSERT INTO mailbox_notice VALUES (?, ?, ?, ?, ?, ?)", box)
            connection.execute("INSERT INTO user (id) VALUES (?)", (place,))
        connection.execute("INSERT INTO alive VALUES (1, 5)")
        connection.commit()


@pytest.mark.parametrize(("table", "column"), columns_of_version_8())
def test_what_cannot_be_read_costs_itself_only(tmp_path: Path, table: str, column: str) -> None:
    path = empty_database(tmp_path)
    fill_all(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        key = {"mailbox": "position", "journal": "seq"}.get(table, "rowid")
        keys = [row[0] for row in connection.execute(f"SELECT DISTINCT {key} FROM {table} ORDER BY {key}")]
        for place, value in zip(keys, ODD, strict=False):
            is_text = isinstance(value, str) and value.startswith("CAST")
            try:
                connection.execute(
                    f"UPDATE {table} SET {column} = {value if is_text else '?'} WHERE {key} = ?",
                    (place,) if is_text else (value, place),
                )
            except (sqlite3.IntegrityError, sqlite3.OperationalError):  # SQLite does not take it there
                continue
    with capture_logs() as logs:
        prepare(path)
    with closing(Stored(path)) as stored:
        good = f"m{len(ODD) + 1}"
        assert good in {row[1] for row in stored.rows.values()}
        assert [row["user_id"] for row in stored.receipts() if row["message_id"] == good] == [1, 2]
        for user_id in (1, 2):
            assert good in {item["message_id"] for item in stored.mailbox(user_id)}
        left_out = [line for line in logs if line["log_level"] == "error"]
        if (table, column) == ("journal", "body"):
            assert left_out
        assert len(left_out) <= 1
        assert stored.db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_what_was_left_out_is_counted(tmp_path: Path) -> None:
    path = empty_database(tmp_path)
    fill_all(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE push_records SET message_id = x'ff' WHERE rowid = 3")
        connection.execute("UPDATE admin_user_receive_records SET user_id = 'x' WHERE rowid = 9")
        connection.execute("UPDATE journal SET body = '{' WHERE seq IN (5, 6)")  # 6 is not settled
    with capture_logs() as logs:
        prepare(path)
    (said,) = (line for line in logs if line["log_level"] == "error")
    # Receipts of the spoiled record are nobody's; of journal entry 6, with its record, the operator hears later.
    assert {name: said[name] for name in ("push records", "receipts", "journal entries")} == {
        "push records": 1,
        "receipts": 3,
        "journal entries": 1,
    }
