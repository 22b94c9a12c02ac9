"""Opening the embedded database: what is refused, with which words, and which indexes the statements use."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from pushd.clock import wall_ms
from pushd.config.schema import Config, ServerConfig
from pushd.errors import StartError
from pushd.model import User
from pushd.stores.sqlite import (
    commits,
    directory,
    groups,
    import_users,
    journal,
    ledger_file,
    notices,
    open_stores,
    presence,
    schedule,
)
from pushd.stores.sqlite.engine.connection import open_connection
from pushd.stores.sqlite.engine.schema import APPLICATION_ID, OLDEST_LEDGER, VERSION, is_id, prepare
from pushd.user_ids import INTEGERS, KINDS, STRINGS, UserIds


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
        other.execute("SELECT * FROM notice").fetchall()
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
        connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    assert f"schema version {VERSION + 1}" in await refusal(tmp_path)


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


def test_importing_counts_and_names_the_path(tmp_path: Path) -> None:
    assert import_users(str(tmp_path), [User(user_id, f"user{user_id}") for user_id in range(1200)]) == 1200
    (tmp_path / "file").touch()
    with pytest.raises(StartError, match="file"):
        import_users(str(tmp_path / "file"), [])


@pytest.mark.parametrize("version", range(1, OLDEST_LEDGER))
def test_an_older_version_is_converted_before_it_is_opened(tmp_path: Path, version: int) -> None:
    path = tmp_path / "pushd.db"
    seen: list[int] = []

    def convert(old: Path, found: int) -> None:
        seen.append(found)
        old.unlink()
        prepare(old)

    with closing(sqlite3.connect(path)) as old:
        old.execute("CREATE TABLE journal (seq)")
        old.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        old.execute(f"PRAGMA user_version = {version}")
    with pytest.raises(StartError, match="the daemon converts it"):
        prepare(path)
    for _ in range(2):
        prepare(path, convert)
        with closing(sqlite3.connect(path)) as new:
            assert new.execute("PRAGMA user_version").fetchone() == (VERSION,)
            assert new.execute("SELECT count(*) FROM notice").fetchone() == (0,)
    assert seen == [version]


NINE = """
CREATE TABLE notice (seq INTEGER PRIMARY KEY AUTOINCREMENT, message_id TEXT, accepted_ms INTEGER NOT NULL,
  expires_ms INTEGER, waits_from_ms INTEGER, text_seq INTEGER, version INTEGER NOT NULL DEFAULT 1, body BLOB NOT NULL);
CREATE TABLE user (id INTEGER PRIMARY KEY, username TEXT NOT NULL DEFAULT '', user_type INTEGER NOT NULL DEFAULT 0,
  is_imported INTEGER NOT NULL DEFAULT 0, token_issued_at INTEGER);
INSERT INTO user (id, username) VALUES (7, 'ann');
"""


def test_a_database_of_the_ledgers_first_version_lives_on(tmp_path: Path) -> None:
    """It gets what it lacks, where it is."""
    path = tmp_path / "pushd.db"
    with closing(sqlite3.connect(path)) as nine:
        nine.executescript(NINE)
        nine.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        nine.execute("PRAGMA user_version = 9")
    for _ in range(2):
        prepare(path, lambda *_: pytest.fail("it is not converted"))
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("PRAGMA user_version").fetchone() == (VERSION,)
            assert connection.execute("SELECT id, username FROM user").fetchall() == [(7, "ann")]
            assert connection.execute("SELECT * FROM user_group, user_group_member").fetchall() == []
    assert [item.name for item in tmp_path.iterdir() if "-" not in item.name] == ["pushd.db"]


def test_a_version_with_a_ledger_is_changed_in_place(tmp_path: Path) -> None:
    path, fresh = tmp_path / "pushd.db", tmp_path / "fresh.db"
    prepare(fresh)
    prepare(path)
    with closing(sqlite3.connect(path)) as old:  # as version 9 had it
        for added in ("amended", "notice_version", "notice_tag", "user_group_member", "user_group"):
            old.execute(f"DROP TABLE {added}")
        old.execute("CREATE TABLE notice_version (seq INTEGER, version INTEGER, body BLOB, PRIMARY KEY (seq, version))")
        old.execute("INSERT INTO notice (seq, accepted_ms, body) VALUES (7, 1, x'7b7d')")
        old.execute("PRAGMA user_version = 9")
        old.commit()
    for _ in range(2):
        prepare(path)
    with closing(sqlite3.connect(path)) as new, closing(sqlite3.connect(fresh)) as other:
        assert new.execute("PRAGMA user_version").fetchone() == (VERSION,)
        assert new.execute("SELECT seq FROM notice").fetchall() == [(7,)]
        made = "SELECT name, sql FROM sqlite_master ORDER BY name"
        assert new.execute(made).fetchall() == other.execute(made).fetchall()


def test_wall_clock_is_in_milliseconds() -> None:
    assert wall_ms() > 1_700_000_000_000


@pytest.mark.parametrize(("ids", "other"), [(INTEGERS, STRINGS), (STRINGS, INTEGERS)], ids=KINDS)
def test_a_database_keeps_its_kind_of_ids(tmp_path: Path, ids: UserIds, other: UserIds) -> None:
    """Whoever wants another one learns in one line which it has and which he wants."""
    path = tmp_path / "pushd.db"
    for _ in range(2):
        prepare(path, ids=ids)
        with pytest.raises(StartError) as refused:
            prepare(path, ids=other)
        said = f'pushd.db: found {ids.kind} user ids, expected {other.kind} ones (directory.user_ids = "{other.kind}")'
        assert said in str(refused.value)
        assert "\n" not in str(refused.value)


def test_databases_of_older_versions_have_numbers(tmp_path: Path) -> None:
    """Also one that would have to be converted is refused, and stays what it is."""
    for version, tables in ((8, "CREATE TABLE user (id INTEGER PRIMARY KEY)"), (9, NINE)):
        path = tmp_path / f"{version}.db"
        with closing(sqlite3.connect(path)) as older:
            older.executescript(tables)
            older.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            older.execute(f"PRAGMA user_version = {version}")
        with pytest.raises(StartError, match="found integer user ids, expected string ones"):
            prepare(path, lambda *_: pytest.fail("it is converted"), STRINGS)
        with closing(sqlite3.connect(path)) as older:
            assert older.execute("PRAGMA user_version").fetchone() == (version,)


@pytest.fixture(params=KINDS)
def ids(request: pytest.FixtureRequest) -> UserIds:
    return KINDS[request.param]


@pytest.fixture
def connection(tmp_path: Path, ids: UserIds) -> Iterator[sqlite3.Connection]:
    prepare(tmp_path / "pushd.db", ids=ids)
    with closing(open_connection(tmp_path / "pushd.db", synchronous="NORMAL")) as opened:
        yield opened


def plan_of(connection: sqlite3.Connection, statement: str) -> list[str]:
    parameters = dict.fromkeys(re.findall(r":(\w+)", statement), b"[]") or ("1",) * statement.count("?")
    return [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)]


@pytest.mark.parametrize(
    "statement",
    [
        journal.FIRST_OF,
        journal.SOME,
        journal.SINCE,
        journal.REPEATS_BEHIND,
        journal.PURGE,
        ledger_file.SEQS_OF.format("?, ?"),
        ledger_file.BODIES.format("?, ?"),
        ledger_file.MESSAGE_IDS.format("?, ?"),
        ledger_file.CLIENT_ROWS.format("?, ?"),
        ledger_file.DROP_CHANGES,
        directory.USERS,
        directory.KNOWN,
        directory.ALL_PAGE,
        directory.ROLE_PAGE,
        groups.IDS,
        groups.DROP,
        notices.EXPIRED,
        presence.DISCONNECTED,
        presence.GHOSTS,
        presence.RESET,
        schedule.DUE,
        schedule.NEXT,
        schedule.BY_ID,
        schedule.BY_KEY,
        schedule.UNRECORDED,
        schedule.COUNT,
        schedule.PURGE,
        commits.LEAVE,
    ],
)
def test_no_statement_scans_a_table(connection: sqlite3.Connection, ids: UserIds, statement: str) -> None:
    plan = plan_of(connection, statement.replace("{is_id}", is_id(ids, "user_id" if "user_id" in statement else "id")))
    tables = r"(notice|scheduled|block|change|client|user_number|user_group\w*|admin_\w+|user)"
    scans = [step for step in plan if re.match(rf"SCAN {tables}\b(?!.*(VIRTUAL TABLE|USING .*INDEX))", step)]
    assert not scans, plan


@pytest.mark.parametrize(
    ("statement", "index"),
    [
        (journal.FIRST_OF, "notice_message"),
        (ledger_file.SEQS_OF.format("?, ?"), "notice_message"),
        (notices.EXPIRED, "notice_expires"),
        (schedule.DUE, "scheduled_due"),
        (schedule.NEXT, "scheduled_due"),
        (schedule.BY_KEY, "scheduled_key"),
        (schedule.PURGE, "scheduled_time"),
    ],
)
def test_an_index_serves_what_it_is_for(connection: sqlite3.Connection, statement: str, index: str) -> None:
    assert f"INDEX {index}" in " ".join(plan_of(connection, statement))
