"""What other programs wrote into an old database, SQLite's columns taking anything: it costs itself only."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.converted import DATA, Stored, empty_database, started

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
        started(path)
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
        started(path)
    (said,) = (line for line in logs if line["log_level"] == "error")
    # Receipts of the spoiled record are nobody's; of journal entry 6, with its record, the operator hears later.
    assert {name: said[name] for name in ("push records", "receipts", "journal entries")} == {
        "push records": 1,
        "receipts": 3,
        "journal entries": 1,
    }
