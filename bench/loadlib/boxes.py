"""What is in the mailboxes, read behind the daemon's back."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol, cast

import redis

KEYS_AT_ONCE = 1000


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
    """The daemon's database, read only."""

    def __init__(self, data_dir: Path) -> None:
        self._uri = f"file:{data_dir}/pushd.db?mode=ro"

    def lengths(self, users: int) -> list[int]:
        rows = dict(self._rows("SELECT user_id, count(*) FROM mailbox GROUP BY user_id"))
        return [rows.get(user_id, 0) for user_id in range(1, users + 1)]

    def waiting(self) -> int:
        return int(self._rows("SELECT EXISTS (SELECT 1 FROM mailbox)")[0][0])

    def _rows(self, sql: str) -> list[Any]:
        with closing(sqlite3.connect(self._uri, uri=True, timeout=10)) as connection:
            return connection.execute(sql).fetchall()
