"""What is in the mailboxes, read behind the daemon's back."""

from __future__ import annotations

import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol, cast

import redis

from pushd.ledger._ledger import Ledger
from pushd.ledger.clients import Clients
from pushd.ledger.labels import Labels
from pushd.ledger.users import Users
from pushd.stores.sqlite.ledger_load import Parts, load
from tests.ledger_rows import mailbox

KEYS_AT_ONCE = 1000
MOST_WAITING = 1_000_000  # more than there are: how many may wait is no reader's business


class Boxes(Protocol):
    """The mailboxes of a store that nobody else uses."""

    def lengths(self, users: int) -> list[int]:
        """How many notices wait for each of the users 1 to `users`."""

    def waiting(self) -> int:
        """0 when nothing waits for anybody. Cheap."""


class RedisBoxes:
    """The lists of a private server."""

    def __init__(self, port: int, prefix: str = "offline_msg:") -> None:
        self._client: Any = redis.Redis(port=port)
        self._prefix = prefix

    def lengths(self, users: int) -> list[int]:
        found: list[int] = []
        for start in range(1, users + 1, KEYS_AT_ONCE):
            pipeline = self._client.pipeline(transaction=False)
            for user_id in range(start, min(start + KEYS_AT_ONCE, users + 1)):
                pipeline.llen(f"{self._prefix}{user_id}")
            found += cast(list[int], pipeline.execute())
        return found

    def waiting(self) -> int:
        return int(self._client.dbsize())


class SqliteBoxes:
    """The daemon's database, read only: the receipts that wait."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / "pushd.db"

    def lengths(self, users: int) -> list[int]:
        """Counted by the tests' reader of the ledger, which shares nothing with pushd. Takes some us for a receipt."""
        found = Counter(row["user_id"] for row in mailbox(self._path))
        return [found[user_id] for user_id in range(1, users + 1)]

    def waiting(self) -> int:
        """Asked of pushd's own reader: milliseconds, for hundreds of thousands of receipts."""
        parts = Parts(Ledger(MOST_WAITING), Users(), Clients(), Labels(), True)
        with closing(sqlite3.connect(f"file:{self._path}?mode=ro", uri=True, timeout=10)) as connection:
            connection.execute("BEGIN")  # all of it at one moment
            load(connection, parts)
        return int(any(parts.ledger.waiting_count(number) for number in range(len(parts.users))))
