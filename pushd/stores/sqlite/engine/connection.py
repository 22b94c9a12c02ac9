"""How every connection to the file is opened."""

from __future__ import annotations

import sqlite3
from pathlib import Path

# Another process writes only for moments (`import-users`, a backup); the daemon waits that long for it.
BUSY_TIMEOUT_S = 5.0

# Kept compiled: more than there are, with those over many rows once for each size (statements.Rows).
STATEMENTS = 256

# A broadcast's receipts stand on as many pages as it has recipients: with SQLite's own 2 MB each was read and written
# anew, 22 to 29 us of CPU per receipt; so it is 15 to 20. Taken as it is needed.
CACHE_KIB = 16_384


def open_connection(path: Path, *, synchronous: str, checkpoint_pages: int = 1000) -> sqlite3.Connection:
    """A connection in autocommit and WAL mode; `synchronous` is FULL (fsync at every commit) or NORMAL.

    `checkpoint_pages`: how long a commit may find the WAL before it moves it into the database; 0: that is another's.

    May be handed to another thread, but used by one at a time only. Raises sqlite3.Error.
    """
    connection = sqlite3.connect(
        path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False, cached_statements=STATEMENTS
    )
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        connection.execute(f"PRAGMA wal_autocheckpoint = {checkpoint_pages}")
        connection.execute("PRAGMA journal_size_limit = 67108864")
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    except BaseException:
        connection.close()
        raise
    return connection
