"""The tables of `pushd.db`, version by version.

Times are INTEGER milliseconds since the epoch, NULL for "never"; flags are 0 or 1. Table and column names
of the records are those other programs know from CONTRACT section 5.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from pushd.errors import StartError
from pushd.stores.sqlite.engine import steps
from pushd.stores.sqlite.engine.connection import open_connection

DATABASE_NAME = "pushd.db"

# "push" in ASCII: tells our file from another program's database.
APPLICATION_ID = 0x70757368

_JOURNAL = (
    # AUTOINCREMENT remembers the highest seq ever used, also when its row is purged.
    """
    CREATE TABLE journal (
      seq         INTEGER PRIMARY KEY AUTOINCREMENT,
      accepted_ms INTEGER NOT NULL,
      settled     INTEGER NOT NULL DEFAULT 0,
      body        TEXT NOT NULL
    )
    """,
    "CREATE INDEX journal_unsettled ON journal (seq) WHERE settled = 0",
    "CREATE INDEX journal_settled ON journal (accepted_ms) WHERE settled = 1",
)

_MAILBOX = (
    # One body for all who wait for it. `message_key` is the message_id, or a made-up one where an item has none.
    """
    CREATE TABLE mailbox_notice (
      notice_id     INTEGER PRIMARY KEY,
      message_key   TEXT NOT NULL UNIQUE,
      last_position INTEGER NOT NULL,
      saved_at      INTEGER NOT NULL,
      expires_at    INTEGER,
      body          TEXT NOT NULL
    )
    """,
    "CREATE INDEX mailbox_notice_position ON mailbox_notice (last_position)",
    "CREATE INDEX mailbox_notice_saved ON mailbox_notice (saved_at)",
    "CREATE INDEX mailbox_notice_expires ON mailbox_notice (expires_at) WHERE expires_at IS NOT NULL",
    """
    CREATE TABLE mailbox (
      user_id   INTEGER NOT NULL,
      position  INTEGER NOT NULL,
      notice_id INTEGER NOT NULL,
      PRIMARY KEY (user_id, position)
    ) WITHOUT ROWID
    """,
    "CREATE UNIQUE INDEX mailbox_once ON mailbox (notice_id, user_id)",
    """
    CREATE TRIGGER mailbox_orphan AFTER DELETE ON mailbox BEGIN
      DELETE FROM mailbox_notice
       WHERE notice_id = OLD.notice_id
         AND NOT EXISTS (SELECT 1 FROM mailbox WHERE notice_id = OLD.notice_id);
    END
    """,
)

_RECORDS = (
    # delivered_count and failed_count of CONTRACT section 5 are counted from the receive records when asked for.
    """
    CREATE TABLE push_records (
      message_id      TEXT PRIMARY KEY,
      content         TEXT NOT NULL,
      message_type    TEXT NOT NULL,
      target          TEXT NOT NULL,
      target_user_ids TEXT,
      target_roles    TEXT,
      status          TEXT NOT NULL,
      success         INTEGER NOT NULL DEFAULT 1,
      error           TEXT,
      push_time       INTEGER NOT NULL,
      expires_at      INTEGER,
      sender_id       INTEGER NOT NULL DEFAULT 0,
      sender_name     TEXT NOT NULL DEFAULT '',
      priority        INTEGER NOT NULL DEFAULT 1,
      need_confirm    INTEGER NOT NULL DEFAULT 0,
      extra_data      TEXT,
      total_count     INTEGER NOT NULL DEFAULT 0,
      online_count    INTEGER NOT NULL DEFAULT 0,
      created_at      INTEGER NOT NULL,
      updated_at      INTEGER NOT NULL
    )
    """,
    "CREATE INDEX push_records_time ON push_records (push_time DESC)",
    "CREATE INDEX push_records_created ON push_records (created_at)",
    """
    CREATE TABLE admin_user_receive_records (
      message_id      TEXT NOT NULL,
      user_id         INTEGER NOT NULL,
      username        TEXT NOT NULL DEFAULT '',
      user_role       INTEGER NOT NULL DEFAULT 0,
      is_online       INTEGER NOT NULL DEFAULT 0,
      is_received     INTEGER NOT NULL DEFAULT 0,
      received_at     INTEGER,
      is_read         INTEGER NOT NULL DEFAULT 0,
      read_at         INTEGER,
      is_confirmed    INTEGER NOT NULL DEFAULT 0,
      confirmed_at    INTEGER,
      device_type     TEXT NOT NULL DEFAULT '',
      platform        TEXT NOT NULL DEFAULT '',
      browser         TEXT NOT NULL DEFAULT '',
      client_ip       TEXT NOT NULL DEFAULT '',
      user_agent      TEXT NOT NULL DEFAULT '',
      connection_id   TEXT NOT NULL DEFAULT '',
      push_channel    TEXT NOT NULL DEFAULT 'websocket',
      delivery_status TEXT NOT NULL DEFAULT 'pending',
      retry_count     INTEGER NOT NULL DEFAULT 0,
      error_message   TEXT,
      created_at      INTEGER NOT NULL,
      updated_at      INTEGER NOT NULL,
      UNIQUE (message_id, user_id)
    )
    """,
    "CREATE INDEX receive_records_user ON admin_user_receive_records (user_id, created_at DESC)",
    "CREATE INDEX receive_records_status ON admin_user_receive_records (is_online, delivery_status)",
    "CREATE INDEX receive_records_created ON admin_user_receive_records (created_at)",
    """
    CREATE INDEX receive_records_unread ON admin_user_receive_records (user_id)
     WHERE is_read = 0 AND delivery_status <> 'expired'
    """,
)

_USERS = (
    """
    CREATE TABLE user (
      id        INTEGER PRIMARY KEY,
      username  TEXT NOT NULL DEFAULT '',
      user_type INTEGER NOT NULL DEFAULT 0
    )
    """,
    "CREATE INDEX user_role ON user (user_type, id)",
    """
    CREATE TABLE admin_user_online_status (
      user_id            INTEGER PRIMARY KEY,
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
)

# Version 2: what the list pages need (CONTRACT section 3).
STATE = ("is_online", "is_received", "is_read", "is_confirmed", "delivery_status", "push_channel")
_STATES = ", ".join(STATE)
_ASKED = f"created_at, {_STATES}"
COUNTED = ("created_at", "message_id", *STATE)


def _count(row: str, step: str) -> str:
    """The statement of a trigger that counts the receive record `row` (NEW or OLD) in, `step` +1, or out, -1."""
    columns, values = ", ".join(COUNTED), ", ".join(f"{row}.{column}" for column in COUNTED)
    return f"""
    INSERT INTO receive_counts ({columns}, total) VALUES ({values}, {step})
        ON CONFLICT DO UPDATE SET total = total + {step};
    """  # noqa: S608 - constants only


def _of(row: str, columns: tuple[str, ...]) -> str:
    return "(" + ", ".join(f"{row}.{column}" for column in columns) + ")"


_NAME_COMES = """
  INSERT INTO receive_names (username, user_id) VALUES (NEW.username, NEW.user_id) ON CONFLICT DO NOTHING;
"""
_NAME_GOES = """
  DELETE FROM receive_names
   WHERE username = OLD.username AND user_id = OLD.user_id
     AND NOT EXISTS (SELECT 1 FROM admin_user_receive_records
                      WHERE user_id = OLD.user_id AND username = OLD.username);
"""

_COUNTS = (
    # How many receive records each notice has in each state: a page over many notices need not count them again.
    # Triggers keep it, in the transaction of the change, so that no writer can forget to.
    """
    CREATE TABLE receive_counts (
      created_at      INTEGER NOT NULL,
      message_id      TEXT NOT NULL,
      is_online       INTEGER NOT NULL,
      is_received     INTEGER NOT NULL,
      is_read         INTEGER NOT NULL,
      is_confirmed    INTEGER NOT NULL,
      delivery_status TEXT NOT NULL,
      push_channel    TEXT NOT NULL,
      total           INTEGER NOT NULL,
      PRIMARY KEY (created_at, message_id, is_online, is_received, is_read, is_confirmed, delivery_status, push_channel)
    ) WITHOUT ROWID
    """,
    "CREATE INDEX receive_counts_message ON receive_counts (message_id)",
    # Under which names users have receive records, few enough to look for a part of a name in all of them.
    """
    CREATE TABLE receive_names (
      username TEXT NOT NULL,
      user_id  INTEGER NOT NULL,
      PRIMARY KEY (username, user_id)
    ) WITHOUT ROWID
    """,
    f"""
    INSERT INTO receive_counts ({", ".join(COUNTED)}, total)
    SELECT {", ".join(COUNTED)}, count(*) FROM admin_user_receive_records GROUP BY {", ".join(COUNTED)}
    """,  # noqa: S608 - constants only
    "INSERT INTO receive_names (username, user_id) SELECT DISTINCT username, user_id FROM admin_user_receive_records",
    f"""
    CREATE TRIGGER receive_records_added AFTER INSERT ON admin_user_receive_records BEGIN
      {_count("NEW", "+1")} {_NAME_COMES}
    END
    """,
    f"""
    CREATE TRIGGER receive_records_changed AFTER UPDATE OF {", ".join(COUNTED)} ON admin_user_receive_records
      WHEN {_of("OLD", COUNTED)} IS NOT {_of("NEW", COUNTED)}
    BEGIN
      {_count("OLD", "-1")} {_count("NEW", "+1")}
    END
    """,
    f"""
    CREATE TRIGGER receive_records_renamed AFTER UPDATE OF username ON admin_user_receive_records
      WHEN OLD.username <> NEW.username
    BEGIN
      {_NAME_COMES} {_NAME_GOES}
    END
    """,
    f"""
    CREATE TRIGGER receive_records_dropped AFTER DELETE ON admin_user_receive_records BEGIN
      {_count("OLD", "-1")} {_NAME_GOES}
    END
    """,
    f"""
    CREATE TRIGGER receive_counts_empty AFTER UPDATE OF total ON receive_counts WHEN NEW.total = 0 BEGIN
      DELETE FROM receive_counts WHERE {_of("receive_counts", COUNTED)} = {_of("NEW", COUNTED)};
    END
    """,  # noqa: S608 - constants only
)

_LISTS = (
    # Every filter but message_id is answered from the index alone.
    "DROP INDEX receive_records_user",
    f"CREATE INDEX receive_records_user ON admin_user_receive_records (user_id, created_at DESC, username, {_STATES})",
    # The order of the list while receipts come in.
    "DROP INDEX receive_records_created",
    "CREATE INDEX receive_records_created ON admin_user_receive_records (created_at, message_id, user_id)",
    # A row of receive_counts is a stretch of this index: the pages of filtered lists are sought, not walked to.
    f"CREATE INDEX receive_records_state ON admin_user_receive_records (created_at, message_id, {_STATES})",
    *(
        f"""
        CREATE INDEX receive_records_{name} ON admin_user_receive_records ({name}_at, user_id, {_ASKED})
         WHERE {name}_at IS NOT NULL
        """
        for name in ("received", "read", "confirmed")
    ),
    # Nothing asks for it any more.
    "DROP INDEX receive_records_status",
    "ALTER TABLE push_records ADD COLUMN recipients_count TEXT NOT NULL DEFAULT ''",
    """
    UPDATE push_records
       SET recipients_count = CASE target
             WHEN 'custom' THEN json_array_length(ifnull(target_user_ids, '[]')) || '_users'
             WHEN 'admin' THEN 'all_admins'
             ELSE target || '_users' END
    """,
    "DROP INDEX push_records_time",
    "DROP INDEX push_records_created",
    # The sums over a time range come from this index alone.
    "CREATE INDEX push_records_time ON push_records (push_time, message_id, success, total_count)",
    "CREATE INDEX push_records_created ON push_records (created_at, push_time, message_id)",
    "CREATE INDEX push_records_priority ON push_records (priority, push_time, message_id)",
    "CREATE INDEX push_records_type ON push_records (message_type, push_time, message_id)",
    "CREATE INDEX push_records_status ON push_records (status, push_time, message_id)",
    "CREATE INDEX push_records_total ON push_records (total_count, push_time, message_id)",
    "CREATE INDEX push_records_sender ON push_records (sender_id, push_time, message_id)",
    "CREATE INDEX push_records_expires ON push_records (expires_at, message_id) WHERE expires_at IS NOT NULL",
)

# When this node was last known to live: what it left as online was online until then.
_ALIVE = ("CREATE TABLE alive (id INTEGER PRIMARY KEY CHECK (id = 1), at_ms INTEGER NOT NULL)",)

# Writes waiting for a store outside, by writer; a position is never given out twice.
_OUTBOX = (
    """
    CREATE TABLE outbox (
      position INTEGER PRIMARY KEY AUTOINCREMENT,
      writer TEXT NOT NULL,
      body BLOB NOT NULL
    )
    """,
    "CREATE INDEX outbox_writer ON outbox (writer, position)",
)

# Version 4. Parts of names are looked for in either case: lower() of every name would be most of that work. Who is
# found comes in the order of one of the two lists that are sorted by users.
_NAMES = (
    "DROP TABLE receive_names",
    """
    CREATE TABLE receive_names (
      username TEXT NOT NULL,
      user_id  INTEGER NOT NULL,
      folded   TEXT NOT NULL GENERATED ALWAYS AS (lower(username)) STORED,
      PRIMARY KEY (user_id, username)
    ) WITHOUT ROWID
    """,
    "CREATE INDEX receive_names_username ON receive_names (username, user_id, folded)",
    "INSERT INTO receive_names (username, user_id) SELECT DISTINCT username, user_id FROM admin_user_receive_records",
)

# Version 5. How many records each user has in each state, so that the records of the users with a certain name, and
# what somebody has not read, need not be counted again. It also knows whose names come and go.
_OWNED = ("user_id", "username", *STATE)


_OWN_COMES = f"""
  INSERT INTO receive_totals ({", ".join(_OWNED)}, total) VALUES ({", ".join(f"NEW.{name}" for name in _OWNED)}, 1)
      ON CONFLICT DO UPDATE SET total = total + 1;
"""  # noqa: S608 - constants only
_OWN_GOES = f"""
  UPDATE receive_totals SET total = total - 1 WHERE {" AND ".join(f"{name} = OLD.{name}" for name in _OWNED)};
"""  # noqa: S608 - constants only
# Cheaper than what _count() has for it where a statement changes records of several notices; dearer where of one.
_COUNT_GOES = f"""
  UPDATE receive_counts SET total = total - 1 WHERE {" AND ".join(f"{name} = OLD.{name}" for name in COUNTED)};
"""  # noqa: S608 - constants only

_TOTALS = (
    """
    CREATE TABLE receive_totals (
      user_id         INTEGER NOT NULL,
      username        TEXT NOT NULL,
      is_online       INTEGER NOT NULL,
      is_received     INTEGER NOT NULL,
      is_read         INTEGER NOT NULL,
      is_confirmed    INTEGER NOT NULL,
      delivery_status TEXT NOT NULL,
      push_channel    TEXT NOT NULL,
      total           INTEGER NOT NULL,
      PRIMARY KEY (user_id, username, is_online, is_received, is_read, is_confirmed, delivery_status, push_channel)
    ) WITHOUT ROWID
    """,
    f"""
    INSERT INTO receive_totals ({", ".join(_OWNED)}, total)
    SELECT {", ".join(_OWNED)}, count(*) FROM admin_user_receive_records GROUP BY {", ".join(_OWNED)}
    """,  # noqa: S608 - constants only
    "DROP TRIGGER receive_records_added",
    "DROP TRIGGER receive_records_changed",
    "DROP TRIGGER receive_records_renamed",
    "DROP TRIGGER receive_records_dropped",
    f"""
    CREATE TRIGGER receive_records_added AFTER INSERT ON admin_user_receive_records BEGIN
      {_count("NEW", "+1")} {_OWN_COMES}
    END
    """,
    # Comes before goes: a user's only record must not make its name go and come.
    f"""
    CREATE TRIGGER receive_records_changed AFTER UPDATE OF {", ".join(COUNTED)} ON admin_user_receive_records
      WHEN {_of("OLD", COUNTED)} IS NOT {_of("NEW", COUNTED)}
    BEGIN
      {_COUNT_GOES} {_count("NEW", "+1")} {_OWN_COMES} {_OWN_GOES}
    END
    """,
    f"""
    CREATE TRIGGER receive_records_renamed AFTER UPDATE OF username ON admin_user_receive_records
      WHEN OLD.username <> NEW.username AND {_of("OLD", COUNTED)} IS {_of("NEW", COUNTED)}
    BEGIN
      {_OWN_COMES} {_OWN_GOES}
    END
    """,
    f"""
    CREATE TRIGGER receive_records_dropped AFTER DELETE ON admin_user_receive_records BEGIN
      {_count("OLD", "-1")} {_OWN_GOES}
    END
    """,
    f"CREATE TRIGGER receive_totals_added AFTER INSERT ON receive_totals BEGIN {_NAME_COMES} END",
    f"""
    CREATE TRIGGER receive_totals_empty AFTER UPDATE OF total ON receive_totals WHEN NEW.total = 0 BEGIN
      DELETE FROM receive_totals WHERE {_of("receive_totals", _OWNED)} = {_of("NEW", _OWNED)};
      DELETE FROM receive_names
       WHERE username = OLD.username AND user_id = OLD.user_id
         AND NOT EXISTS (SELECT 1 FROM receive_totals WHERE user_id = OLD.user_id AND username = OLD.username);
    END
    """,  # noqa: S608 - constants only
    # Unread records are counted from the totals.
    "DROP INDEX receive_records_unread",
    # Whose record it is, is asked of every entry that is passed on the way to a page.
    "DROP INDEX receive_records_state",
    f"CREATE INDEX receive_records_state ON admin_user_receive_records (created_at, message_id, {_STATES}, user_id)",
    # Unique, so that the records of one name after the other need not be sorted.
    "DROP INDEX receive_names_username",
    "CREATE UNIQUE INDEX receive_names_username ON receive_names (username, user_id, folded)",
)

# Version 6. What a user received before a moment is counted from the index that has all else of the user.
_MOMENTS = (
    "DROP INDEX receive_records_user",
    f"""
    CREATE INDEX receive_records_user
        ON admin_user_receive_records (user_id, created_at DESC, received_at, username, {_STATES})
    """,
)

# Version 7. Whoever is imported has the role of the import; others follow their tokens, of which the newest counts. Who
# was imported before cannot be told. Roles that are none, which a token could leave here, are 0.
_TOKENS = (
    "ALTER TABLE user ADD COLUMN is_imported INTEGER NOT NULL DEFAULT 0",
    # 0: the token does not say when; NULL: there was none.
    "ALTER TABLE user ADD COLUMN token_issued_at INTEGER",
    """
    UPDATE user SET user_type = 0
     WHERE typeof(user_type) <> 'integer' OR user_type NOT BETWEEN -2147483648 AND 2147483647
    """,
)

# One entry per schema version: the statements that lead to it from the version before.
Ladder = tuple[tuple[str, ...], ...]
LADDER: Ladder = (
    (*_JOURNAL, *_MAILBOX, *_RECORDS, *_USERS),
    (*_COUNTS, *_LISTS, *_ALIVE),
    _OUTBOX,
    _NAMES,
    _TOTALS,
    _MOMENTS,
    steps.SET_ASIDE,
    _TOKENS,
)


def database_path(data_dir: str) -> Path:
    """Where the database of `data_dir` is; creates the directory, for its owner only. Raises StartError."""
    try:
        Path(data_dir).mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StartError(f"cannot use data directory {data_dir}: {error.strerror}") from error
    return Path(data_dir) / DATABASE_NAME


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All or nothing: commits on leaving, rolls back when the block or the commit fails."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # A full disk makes SQLite roll back by itself.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def prepare(path: Path, ladder: Ladder = LADDER) -> None:
    """Create `path` or bring it to the top of `ladder`. Raises StartError when it cannot be ours or be written."""
    try:
        path.touch(mode=0o600)
        with closing(open_connection(path, synchronous="FULL")) as connection, transaction(connection):
            _climb(connection, path, ladder)
    except OSError as error:
        raise StartError(f"cannot open {path}: {error.strerror}") from error
    except sqlite3.Error as error:
        raise StartError(f"cannot use {path}: {error}") from error


def _climb(connection: sqlite3.Connection, path: Path, ladder: Ladder) -> None:
    """Run the steps of the ladder that the file has not seen; the write proves that the file is writable."""
    version = _version(connection, path, len(ladder))
    for step in ladder[version:]:
        for statement in step:
            connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {len(ladder)}")


def _version(connection: sqlite3.Connection, path: Path, newest: int) -> int:
    application: int = connection.execute("PRAGMA application_id").fetchone()[0]
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    tables: int = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if application != APPLICATION_ID and (application or version or tables):
        raise StartError(f"{path} is a database of another program")
    if version > newest:
        raise StartError(f"{path} has schema version {version}; this pushd knows up to {newest}")
    return version
