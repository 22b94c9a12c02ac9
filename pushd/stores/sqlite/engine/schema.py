"""The tables of `pushd.db`.

Times are INTEGER milliseconds since the epoch, NULL for "never"; flags are 0 or 1. What became of the notices is in
`block` and `change`, in the ledger's own form (pushd.ledger._changes).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import chain
from pathlib import Path

from pushd.errors import StartError
from pushd.stores.sqlite.engine.connection import open_connection
from pushd.user_ids import GUEST, ID_LETTERS, INTEGERS, MAX_ID_CHARS, STRINGS, UserIds

DATABASE_NAME = "pushd.db"

# "push" in ASCII: tells our file from another program's database.
APPLICATION_ID = 0x70757368

# Versions 1 to 8 had a row for each receipt; `conversion` reads them. Later ones are changed in place by STEPS.
VERSION = 13
OLDEST_LEDGER = 9

_NOTICES = (
    # An accepted notice: journal entry and push record. AUTOINCREMENT remembers the highest seq ever used, also when
    # its row is purged. No message_id: another notice has it. `waits_from_ms`: when it was last put into a mailbox,
    # where that is later than its acceptance; `text_seq`: which notice of that id says what waits, where it is a later
    # one.
    """
    CREATE TABLE notice (
      seq           INTEGER PRIMARY KEY AUTOINCREMENT,
      message_id    TEXT,
      accepted_ms   INTEGER NOT NULL,
      expires_ms    INTEGER,
      waits_from_ms INTEGER,
      text_seq      INTEGER,
      version       INTEGER NOT NULL DEFAULT 1,
      body          BLOB NOT NULL
    )
    """,
    "CREATE UNIQUE INDEX notice_message ON notice (message_id) WHERE message_id IS NOT NULL",
    "CREATE INDEX notice_expires ON notice (expires_ms) WHERE expires_ms IS NOT NULL",
    "CREATE INDEX notice_waits ON notice (waits_from_ms) WHERE waits_from_ms IS NOT NULL",
    # The tags of notices that have push records here.
    """
    CREATE TABLE notice_tag (
      seq   INTEGER NOT NULL,
      place INTEGER NOT NULL,
      tag   TEXT NOT NULL,
      PRIMARY KEY (seq, place)
    ) WITHOUT ROWID
    """,
    "CREATE INDEX notice_tag_seq ON notice_tag (tag, seq)",
    # Not yet due, and so without a seq; or cancelled. `is_recorded`: a store outside that has the records knows of it,
    # as it is now.
    """
    CREATE TABLE scheduled (
      message_id      TEXT PRIMARY KEY,
      due_ms          INTEGER NOT NULL,
      body            BLOB NOT NULL,
      cancelled_ms    INTEGER,
      idempotency_key TEXT,
      is_recorded     INTEGER NOT NULL DEFAULT 0
    )
    """,
    "CREATE INDEX scheduled_due ON scheduled (due_ms) WHERE cancelled_ms IS NULL",
    "CREATE INDEX scheduled_time ON scheduled (due_ms, message_id)",
    "CREATE INDEX scheduled_key ON scheduled (idempotency_key) WHERE idempotency_key IS NOT NULL",
    "CREATE INDEX scheduled_unrecorded ON scheduled (is_recorded) WHERE is_recorded = 0",
)

_AMENDED = (
    # What was changed of notices after their acceptance, the newest state of each: `body` is the whole Notice where it
    # was edited. `to_do`: what is still to be done with it (stores.sqlite.amendments).
    """
    CREATE TABLE amended (
      message_id  TEXT PRIMARY KEY,
      at_ms       INTEGER NOT NULL,
      is_revoked  INTEGER NOT NULL,
      version     INTEGER NOT NULL,
      reminders   INTEGER NOT NULL,
      reminded_ms INTEGER NOT NULL,
      to_do       INTEGER NOT NULL,
      body        BLOB
    )
    """,
    "CREATE INDEX amended_at ON amended (at_ms)",
    "CREATE INDEX amended_to_do ON amended (to_do) WHERE to_do <> 0",
    # What edited notices said before: until `at_ms`, when that editor replaced it. Ids have no type.
    """
    CREATE TABLE notice_version (
      message_id  TEXT NOT NULL,
      version     INTEGER NOT NULL,
      at_ms       INTEGER NOT NULL,
      editor_id   NOT NULL,
      editor_name TEXT NOT NULL,
      body        BLOB NOT NULL,
      PRIMARY KEY (message_id, version)
    )
    """,
)

_LEDGER = (
    # Columns of the ledger. Rows with numbers below 0 could not be read and were put out of the way at a start.
    "CREATE TABLE block (key INTEGER PRIMARY KEY, body BLOB NOT NULL)",
    "CREATE TABLE change (flush INTEGER PRIMARY KEY, body BLOB NOT NULL)",
    # Ids are of one kind or the other, as all senders' ids are.
    "CREATE TABLE user_number (number INTEGER PRIMARY KEY, id NOT NULL UNIQUE)",
    """
    CREATE TABLE identity (
      user     INTEGER NOT NULL,
      from_seq INTEGER NOT NULL,
      name     TEXT NOT NULL,
      role     INTEGER NOT NULL,
      PRIMARY KEY (user, from_seq)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE client (
      number        INTEGER PRIMARY KEY,
      connection_id TEXT NOT NULL,
      client_ip     TEXT NOT NULL,
      user_agent    TEXT NOT NULL,
      device_type   TEXT NOT NULL,
      platform      TEXT NOT NULL,
      browser       TEXT NOT NULL
    )
    """,
    """
    CREATE TABLE label (
      number       INTEGER PRIMARY KEY,
      type         TEXT NOT NULL,
      sender_id    NOT NULL,
      sender_name  TEXT NOT NULL,
      target       TEXT NOT NULL,
      priority     INTEGER NOT NULL,
      need_confirm INTEGER NOT NULL
    )
    """,
)

_USERS = (
    # Whoever is imported has the role of the import; others follow their tokens, of which the newest counts.
    # `token_issued_at` 0: the token does not say when; NULL: there was none.
    """
    CREATE TABLE user (
      id              {ID} NOT NULL PRIMARY KEY,
      username        TEXT NOT NULL DEFAULT '',
      user_type       INTEGER NOT NULL DEFAULT 0,
      is_imported     INTEGER NOT NULL DEFAULT 0,
      token_issued_at INTEGER
    )
    """,
    "CREATE INDEX user_role ON user (user_type, id)",
    """
    CREATE TABLE admin_user_online_status (
      user_id            {ID} NOT NULL PRIMARY KEY,
      username           TEXT NOT NULL DEFAULT '',
      is_online          INTEGER NOT NULL DEFAULT 0,
      last_seen          INTEGER NOT NULL,
      online_time        INTEGER,
      offline_time       INTEGER,
      online_duration    INTEGER NOT NULL DEFAULT 0,
      connection_id      TEXT NOT NULL DEFAULT '',
      client_ip          TEXT NOT NULL DEFAULT '',
      user_agent         TEXT NOT NULL DEFAULT '',
      total_online_count INTEGER NOT NULL DEFAULT 0,
      total_online_time  INTEGER NOT NULL DEFAULT 0,
      created_at         INTEGER NOT NULL,
      updated_at         INTEGER NOT NULL
    )
    """,
    "CREATE INDEX online_status_seen ON admin_user_online_status (is_online, last_seen DESC)",
    # When this node was last known to live: what it left as online was online until then.
    "CREATE TABLE alive (id INTEGER PRIMARY KEY CHECK (id = 1), at_ms INTEGER NOT NULL)",
)

_GROUPS = (
    # A group's members are those with its number, so that new ones can be put beside them, little by little, and take
    # their place at once. Whose number no group has is left over, or not in place yet.
    """
    CREATE TABLE IF NOT EXISTS user_group (
      name   TEXT PRIMARY KEY,
      number INTEGER NOT NULL UNIQUE,
      title  TEXT NOT NULL,
      users  INTEGER NOT NULL
    )
    """,
    # Ids have no type, as in user_number.
    """
    CREATE TABLE IF NOT EXISTS user_group_member (
      number  INTEGER NOT NULL,
      user_id NOT NULL,
      PRIMARY KEY (number, user_id)
    ) WITHOUT ROWID
    """,
)

_KEPT = (
    # Writes waiting for a store outside, by writer; a position is never given out twice.
    """
    CREATE TABLE outbox (
      position INTEGER PRIMARY KEY AUTOINCREMENT,
      writer   TEXT NOT NULL,
      body     BLOB NOT NULL
    )
    """,
    "CREATE INDEX outbox_writer ON outbox (writer, position)",
    # What could not be used, for the operator; an id is never given out twice.
    """
    CREATE TABLE set_aside (
      id        INTEGER PRIMARY KEY AUTOINCREMENT,
      kind      TEXT NOT NULL,
      at_ms     INTEGER NOT NULL,
      cause     TEXT NOT NULL,
      is_wanted INTEGER NOT NULL DEFAULT 0,
      size      INTEGER NOT NULL,
      body      BLOB NOT NULL
    )
    """,
    "CREATE INDEX set_aside_wanted ON set_aside (id) WHERE is_wanted = 1",
    "CREATE INDEX set_aside_kind ON set_aside (kind, size)",
)

# What makes a database of a version one of the next version.
STEPS = {
    9: tuple(statement for statement in _NOTICES if "notice_tag" in statement),
    10: _GROUPS,
    # Nobody wrote into these.
    11: ("DROP TABLE IF EXISTS notice_version", "DROP TABLE IF EXISTS amended", *_AMENDED),
    12: ("DROP TABLE IF EXISTS scheduled", *(statement for statement in _NOTICES if "scheduled" in statement)),
}

# {ID} is what a user's id is. Which kind of ids a database has is seen by that.
ID_TYPES = {INTEGERS: "INTEGER", STRINGS: "TEXT"}
ID_TYPE = "SELECT type FROM pragma_table_info('user') WHERE name = 'id'"


def tables(ids: UserIds) -> list[str]:
    """The statements that make a database with ids of that kind."""
    return [
        statement.replace("{ID}", ID_TYPES[ids])
        for statement in (*_NOTICES, *_AMENDED, *_LEDGER, *_USERS, *_GROUPS, *_KEPT)
    ]


def is_id(ids: UserIds, column: str) -> str:
    """The condition that a column has an id, for another program may have written something else."""
    if ids is INTEGERS:
        return f"typeof({column}) = 'integer' AND {column} > 0"
    return (
        f"typeof({column}) = 'text' AND length({column}) BETWEEN 1 AND {MAX_ID_CHARS}"
        f" AND length(CAST({column} AS BLOB)) = length({column})"  # U+0000 would end it
        f" AND {column} NOT GLOB '*[^{ID_LETTERS}]*' AND {column} NOT GLOB '{GUEST}*'"
    )


def database_path(data_dir: str) -> Path:
    """Where the database of `data_dir` is; creates the directory, for its owner only. Raises StartError."""
    try:
        Path(data_dir).mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StartError(f"cannot use data directory {data_dir}: {error.strerror}") from error
    return Path(data_dir) / DATABASE_NAME


# How a transaction begins, how it ends, and how it is undone; of one within another the same.
_WHOLE = ("BEGIN IMMEDIATE", "COMMIT", ("ROLLBACK",))
_PART = ("SAVEPOINT part", "RELEASE part", ("ROLLBACK TO part", "RELEASE part"))


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All or nothing: commits on leaving, rolls back when the block or the commit fails. Within another one it is a
    part of that, which can fail by itself."""
    begin, end, undo = _PART if connection.in_transaction else _WHOLE
    connection.execute(begin)
    try:
        yield
        connection.execute(end)
    except BaseException:
        # A full disk makes SQLite roll back by itself.
        for statement in undo if connection.in_transaction else ():
            connection.execute(statement)
        raise


def prepare(path: Path, convert: Callable[[Path, int], None] | None = None, ids: UserIds = INTEGERS) -> None:
    """Create `path`, or make it what it should be when it is of an older version: of one before the ledger
    `convert(path, version)` does.

    Raises StartError when it cannot be ours, has ids of another kind than `ids` or cannot be written, and for an older
    version that nobody is to convert.
    """
    try:
        path.touch(mode=0o600)
        found = _version(path)
        if found:
            _check_kind(path, ids)
        if 0 < found < OLDEST_LEDGER:
            if convert is None:
                raise StartError(f"{path} has schema version {found}: the daemon converts it when it is started")
            convert(path, found)
            found = _version(path)
        with closing(open_connection(path, synchronous="FULL")) as connection, transaction(connection):
            create(connection, found, ids)
    except OSError as error:
        raise StartError(f"cannot open {path}: {error.strerror}") from error
    except sqlite3.Error as error:
        raise StartError(f"cannot use {path}: {error}") from error


def create(connection: sqlite3.Connection, found: int = 0, ids: UserIds = INTEGERS) -> None:
    """Make the tables that the version `found` lacks, 0: all of them; the write proves that the file is writable."""
    steps = [tables(ids)] if not found else [STEPS[version] for version in range(found, VERSION)]
    for statement in chain.from_iterable(steps):
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {VERSION}")


def _check_kind(path: Path, wanted: UserIds) -> None:
    with closing(open_connection(path, synchronous="FULL")) as connection:
        row = connection.execute(ID_TYPE).fetchone()
    found = STRINGS if row is not None and row[0] == ID_TYPES[STRINGS] else INTEGERS
    if found is not wanted:
        raise StartError(
            f'{path}: found {found.kind} user ids, expected {wanted.kind} ones (directory.user_ids = "{wanted.kind}"):'
            " another server.data_dir is needed, or the former directory.user_ids"
        )


def _version(path: Path) -> int:
    """The version of the file's tables, 0 while it has none. Raises StartError for what is not ours or is newer."""
    with closing(open_connection(path, synchronous="FULL")) as connection:
        application: int = connection.execute("PRAGMA application_id").fetchone()[0]
        version: int = connection.execute("PRAGMA user_version").fetchone()[0]
        tables: int = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if application != APPLICATION_ID and (application or version or tables):
        raise StartError(f"{path} is a database of another program")
    if version > VERSION:
        raise StartError(f"{path} has schema version {version}; this pushd knows up to {VERSION}")
    return version
