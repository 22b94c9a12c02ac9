"""What `pushd.db` holds, read past the daemon: the witness its answers are compared with."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from pushd.config.schema import Config, ServerConfig
from pushd.model import Notice, PushRecord, Receipt
from pushd.stores.sqlite import open_stores
from tests import ledger_rows

PUSHES = "push_records"
RECEIPTS = "admin_user_receive_records"
STATUSES = "admin_user_online_status"


def rows(directory: Path, table: str) -> list[dict[str, Any]]:
    """Every row of a table of the daemon whose data directory is in `directory`, with the names of CONTRACT section 5.

    What became of notices has no rows: it is decoded.
    """
    with closing(sqlite3.connect(directory / "data" / "pushd.db", timeout=5)) as connection:
        return rows_of(connection, table)


def rows_of(connection: sqlite3.Connection, table: str) -> list[dict[str, Any]]:
    """The same of an open database."""
    match table:
        case "push_records":
            return ledger_rows.push_records(connection)
        case "admin_user_receive_records":
            return ledger_rows.receive_records(connection)
        case _:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute(f"SELECT * FROM {table}")]


def unsettled(directory: Path) -> list[int]:
    """The seqs of the notices with which something is left to do."""
    with closing(sqlite3.connect(directory / "data" / "pushd.db", timeout=5)) as connection:
        return ledger_rows.unsettled(connection)


def change(directory: Path, statement: str, *parameters: Any) -> None:
    """Bring about what would take time, or another program, to come about."""
    with closing(sqlite3.connect(directory / "data" / "pushd.db", timeout=5)) as connection, connection:
        connection.execute(statement, parameters)


async def left_behind(directory: Path, notices: Sequence[Notice], receipts: Sequence[Receipt]) -> None:
    """What a daemon of former times left: these notices, settled, with their receipts; in the order of their times."""
    config = Config(server=ServerConfig(data_dir=str(directory / "data")))
    async with open_stores(config, clock=lambda: notices[-1].accepted_ms) as stores:
        await stores.journal.append(notices)
        await stores.records.write([PushRecord(notice, "success", 0, 0) for notice in notices], receipts)
        await stores.journal.settle([notice.seq for notice in notices])
