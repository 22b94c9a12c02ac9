"""What `pushd.db` holds, read past the daemon: the witness its answers are compared with."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

PUSHES = "push_records"
RECEIPTS = "admin_user_receive_records"
STATUSES = "admin_user_online_status"


def rows(directory: Path, table: str) -> list[dict[str, Any]]:
    """Every row of a table of the daemon whose data directory is in `directory`."""
    with closing(sqlite3.connect(directory / "data" / "pushd.db", timeout=5)) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(f"SELECT * FROM {table}")]


def change(directory: Path, statement: str, *parameters: Any) -> None:
    """Bring about what would take time, or another program, to come about."""
    with closing(sqlite3.connect(directory / "data" / "pushd.db", timeout=5)) as connection, connection:
        connection.execute(statement, parameters)
