"""Opening the embedded database: what is refused, with which words, and which indexes the statements use."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from pushd.config.schema import Config, ServerConfig
from pushd.errors import StartError
from pushd.model import MailboxItem, User
from pushd.stores.sqlite import import_users, journal, mailbox, open_stores, presence, records, wall_ms
from pushd.stores.sqlite.engine.connection import open_connection
from pushd.stores.sqlite.engine.schema import APPLICATION_ID, LADDER, prepare


def config(data_dir: Path) -> Config:
    return Config(server=ServerConfig(data_dir=str(data_dir)))


async def refusal(data_dir: Path) -> str:
    with pytest.raises(StartError) as caught:
        async with open_stores(config(data_dir)):
            pass
    text = str(caught.value)
    assert "\n" not in text
    assert str(data_dir) in text
    return text


async def test_creates_a_directory_for_its_owner_only(tmp_path: Path) -> None:
    data_dir = tmp_path / "a" / "b"
    async with open_stores(config(data_dir)):
        assert data_dir.stat().st_mode & 0o777 == 0o700
        assert {path.stat().st_mode & 0o077 for path in data_dir.iterdir()} == {0}


@pytest.mark.parametrize(
    ("name", "mode", "is_said"),
    [
        ("pushd.db", 0o644, True),
        ("pushd.db", 0o620, True),
        ("pushd.db-shm", 0o604, True),
        ("", 0o770, True),
        ("", 0o755, False),  # names of files are no secret
        ("pushd.db", 0o400, False),
    ],
)
async def test_who_else_has_access_is_said_once_and_not_changed(
    tmp_path: Path, name: str, mode: int, is_said: bool
) -> None:
    tmp_path.chmod(0o700)
    prepare(tmp_path / "pushd.db")
    with closing(open_connection(tmp_path / "pushd.db", synchronous="NORMAL")) as other:  # keeps the WAL there
        other.execute("SELECT * FROM journal").fetchall()
        (tmp_path / name).chmod(mode)
        with capture_logs() as logs:
            async with open_stores(config(tmp_path)):
                assert (tmp_path / name).stat().st_mode & 0o777 == mode
        warnings = [line for line in logs if line["log_level"] == "warning"]
        expected = {str(tmp_path / name): f"{mode:04o}"}
        said = [line["modes"] for line in warnings]  # SQLite gives the WAL the mode of the database
        assert [{path: modes[path] for path in expected} for modes in said] == ([expected] if is_said else [])


async def test_two_daemons_do_not_share_a_directory(tmp_path: Path) -> None:
    async with open_stores(config(tmp_path)):
        assert "used by another pushd" in await refusal(tmp_path)
    async with open_stores(config(tmp_path)):
        pass


async def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "cannot use data directory" in await refusal(tmp_path / "file")
    assert "Not a directory" in await refusal(tmp_path / "file" / "data")


async def test_a_directory_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pushd.lock").mkdir()
    assert "Is a directory" in await refusal(tmp_path)
    (tmp_path / "pushd.lock").rmdir()
    (tmp_path / "pushd.db").mkdir()
    assert "unable to open" in await refusal(tmp_path)


async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pushd.db").write_bytes(b"certainly not a database" * 100)
    assert "not a database" in await refusal(tmp_path)


async def test_a_database_of_another_program_is_refused(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "pushd.db")) as connection:
        connection.execute("CREATE TABLE theirs (a)")
    assert "another program" in await refusal(tmp_path)


async def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    prepare(tmp_path / "pushd.db")
    with closing(sqlite3.connect(tmp_path / "pushd.db")) as connection:
        assert connection.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID
        connection.execute(f"PRAGMA user_version = {len(LADDER) + 1}")
    assert f"schema version {len(LADDER) + 1}" in await refusal(tmp_path)


async def test_a_damaged_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pushd.db"
    prepare(path)
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    assert "malformed" in await refusal(tmp_path)


async def test_an_old_sqlite_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))
    with pytest.raises(StartError, match="too old"):
        async with open_stores(config(tmp_path)):
            pass


async def test_mailbox_positions_go_on_after_a_restart(tmp_path: Path) -> None:
    for name in "ab":
        async with open_stores(config(tmp_path), clock=lambda: 1000) as stores:
            await stores.mailbox.save([(MailboxItem("t", name, message_id=name), [1])])
    async with open_stores(config(tmp_path), clock=lambda: 1000) as stores:
        assert [item.message_id for item in (await stores.mailbox.read([1]))[1]] == ["a", "b"]


def test_bodies_nobody_waits_for_go_away(tmp_path: Path) -> None:
    prepare(tmp_path / "pushd.db")
    with closing(open_connection(tmp_path / "pushd.db", synchronous="NORMAL")) as connection:
        payload = {"items": b'[["m1", 1, 1, 0, "{}", [1, 2]]]'}
        connection.execute(mailbox.SAVE_BODIES, payload)
        connection.execute(mailbox.SAVE_ENTRIES, payload)
        for left in (1, 0):
            connection.execute(mailbox.CLEAR, {"user_id": left + 1})
            assert connection.execute("SELECT count(*) FROM mailbox_notice").fetchone()[0] == left


def test_importing_counts_and_names_the_path(tmp_path: Path) -> None:
    assert import_users(str(tmp_path), [User(user_id, f"user{user_id}") for user_id in range(1200)]) == 1200
    (tmp_path / "file").touch()
    with pytest.raises(StartError, match="file"):
        import_users(str(tmp_path / "file"), [])


def test_names_of_version_3_are_found_in_either_case(tmp_path: Path) -> None:
    path = tmp_path / "pushd.db"
    insert = (
        "INSERT INTO admin_user_receive_records (message_id, user_id, username, created_at, updated_at)"
        " VALUES (?, ?, ?, 5, 5)"
    )
    prepare(path, LADDER[:3])
    with closing(sqlite3.connect(path)) as old:
        old.executemany(insert, [("m1", 2, "Ann"), ("m2", 2, "Ann"), ("m1", 1, "Öl")])
        old.commit()
    prepare(path)
    with closing(sqlite3.connect(path)) as new:
        new.executemany(insert, [("m3", 2, "Ann"), ("m3", 3, "BOB")])
        names = "SELECT user_id, username, folded FROM receive_names ORDER BY user_id"
        assert new.execute(names).fetchall() == [(1, "Öl", "Öl"), (2, "Ann", "ann"), (3, "BOB", "bob")]
        new.execute("UPDATE admin_user_receive_records SET username = 'Carl' WHERE user_id = 3")
        new.execute("DELETE FROM admin_user_receive_records WHERE message_id = 'm1'")
        assert new.execute(names).fetchall() == [(2, "Ann", "ann"), (3, "Carl", "carl")]
        counted = "SELECT message_id, total FROM receive_counts ORDER BY 1"
        assert new.execute(counted).fetchall() == [("m2", 1), ("m3", 2)]


def test_records_of_version_4_are_counted_by_user(tmp_path: Path) -> None:
    path = tmp_path / "pushd.db"
    insert = (
        "INSERT INTO admin_user_receive_records (message_id, user_id, username, is_read, created_at, updated_at)"
        " VALUES (?, ?, ?, ?, 5, 5)"
    )
    state = "user_id, username, is_online, is_received, is_read, is_confirmed, delivery_status, push_channel"
    by_hand = f"SELECT {state}, count(*) FROM admin_user_receive_records GROUP BY {state} ORDER BY {state}"
    names = "SELECT DISTINCT user_id, username FROM {} ORDER BY 1, 2"

    def check(connection: sqlite3.Connection, rows: int) -> None:
        kept = connection.execute(f"SELECT * FROM receive_totals ORDER BY {state}").fetchall()
        assert kept == connection.execute(by_hand).fetchall()
        known, written = (names.format(table) for table in ("receive_names", "admin_user_receive_records"))
        assert connection.execute(known).fetchall() == connection.execute(written).fetchall()
        assert len(kept) == rows

    prepare(path, LADDER[:4])
    with closing(sqlite3.connect(path)) as old:
        old.executemany(insert, [("m1", 1, "ann", 0), ("m2", 1, "ann", 0), ("m2", 2, "bob", 1)])
        old.commit()
    prepare(path)
    with closing(sqlite3.connect(path)) as new:
        check(new, 2)
        new.executemany(insert, [("m3", 1, "ann", 0), ("m3", 3, "carl", 0)])
        check(new, 3)
        change = "UPDATE admin_user_receive_records SET"
        new.execute(f"{change} is_read = 1, delivery_status = 'delivered' WHERE message_id = 'm3'")
        check(new, 4)
        new.execute(f"{change} username = 'anna' WHERE user_id = 1 AND message_id <> 'm2'")
        check(new, 5)
        new.execute(f"{change} updated_at = 9")
        new.execute("DELETE FROM admin_user_receive_records WHERE message_id = 'm2'")
        check(new, 3)


def test_the_index_of_users_of_version_5_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "pushd.db"
    columns = "SELECT name FROM pragma_index_info('receive_records_user')"
    found = []
    for ladder in (LADDER[:5], LADDER):
        prepare(path, ladder)
        with closing(sqlite3.connect(path)) as connection:
            found.append([name for (name,) in connection.execute(columns)])
    assert found[0][:3] == ["user_id", "created_at", "username"]
    assert found[1][:4] == ["user_id", "created_at", "received_at", "username"]


def test_wall_clock_is_in_milliseconds() -> None:
    assert wall_ms() > 1_700_000_000_000


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    prepare(tmp_path / "pushd.db")
    with closing(open_connection(tmp_path / "pushd.db", synchronous="NORMAL")) as opened:
        yield opened


def plan_of(connection: sqlite3.Connection, statement: str) -> list[str]:
    parameters = dict.fromkeys(re.findall(r":(\w+)", statement), b"[]")
    return [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)]


@pytest.mark.parametrize(
    "statement",
    [
        journal.SETTLE,
        journal.UNSETTLED_PAGE,
        journal.FIRST_SINCE,
        journal.SINCE_PAGE,
        journal.PURGE,
        mailbox.LAST_POSITION,
        mailbox.SAVE_ENTRIES,
        mailbox.TRIM,
        mailbox.READ,
        mailbox.REMOVE,
        mailbox.CLEAR,
        mailbox.PURGE,
        records.MARK,
        records.RECEIVE_STATUS,
        records.RECEIVED_BY,
        records.UNREAD_COUNTS,
        records.PURGE_RECEIPTS,
        records.PURGE_PUSH_RECORDS,
        presence.DISCONNECTED,
        presence.GHOSTS,
        presence.RESET,
    ],
)
def test_no_statement_scans_a_table(connection: sqlite3.Connection, statement: str) -> None:
    plan = plan_of(connection, statement)
    tables = r"(journal|mailbox|mailbox_notice|notice|push_records|admin_\w+|user)"
    scans = [step for step in plan if re.match(rf"SCAN {tables}\b(?!.*(VIRTUAL TABLE|USING .*INDEX))", step)]
    assert not scans, plan


@pytest.mark.parametrize(
    ("statement", "index"),
    [
        (journal.UNSETTLED_PAGE, "journal_unsettled"),
        (journal.FIRST_SINCE, "journal_settled"),
        (journal.PURGE, "journal_settled"),
        (mailbox.REMOVE, "mailbox_once"),
        (records.PURGE_RECEIPTS, "receive_records_created"),
    ],
)
def test_an_index_serves_what_it_is_for(connection: sqlite3.Connection, statement: str, index: str) -> None:
    assert f"INDEX {index}" in " ".join(plan_of(connection, statement))


def test_roles_of_version_6_that_are_none_are_0_and_follow_tokens(tmp_path: Path) -> None:
    path = tmp_path / "pushd.db"
    prepare(path, LADDER[:6])
    with closing(sqlite3.connect(path)) as old:
        rows = [(1, 1), (2, 2.0**63), (3, "boss"), (4, b"\xff"), (5, 2**31), (6, -(2**31)), (7, -(2**31) - 1)]
        old.executemany("INSERT INTO user (id, user_type) VALUES (?, ?)", rows)
        old.commit()
    prepare(path)
    with closing(sqlite3.connect(path)) as new:
        found = new.execute("SELECT id, user_type, is_imported, token_issued_at FROM user ORDER BY id").fetchall()
    roles = {1: 1, 6: -(2**31)}
    assert found == [(user_id, roles.get(user_id, 0), 0, None) for user_id in range(1, 8)]
