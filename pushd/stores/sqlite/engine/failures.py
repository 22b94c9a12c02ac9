"""SQLite's exceptions become ours at this border, with their cause kept."""

from __future__ import annotations

import sqlite3

from pushd.errors import StoreError, StoreUnavailable

# Result codes that may pass: space is freed, a disk is mounted again, another process lets go of the file.
# https://sqlite.org/rescode.html
_PASSING = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
    }
)


def is_passing(error: BaseException) -> bool:
    """True when the same operation may succeed later: full disk, I/O error, read-only or busy file."""
    extended = getattr(error, "sqlite_errorcode", None)
    return isinstance(error, sqlite3.Error) and extended is not None and (extended & 0xFF) in _PASSING


def translated(store: str, error: BaseException) -> StoreError:
    """`error` as a StoreUnavailable or StoreError of `store`, with `error` as its cause."""
    kind = StoreUnavailable if is_passing(error) else StoreError
    result = kind(store, str(error) or type(error).__name__)
    result.__cause__ = error
    return result
