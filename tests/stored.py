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
KNOWN, SETTLED = 0x01, 0x02  # of a notice's state


def rows(directory: Path, table: str) -> list[dict[str, Any]]:
    """Every row of a table of the daemon whose data directory is in `directory`, with the names of CONTRACT section 5.

    What became of notices has no rows: it is decoded.
    """
    match table:
        case "push_records":
            return ledger_rows.push_records(_path(directory))
        case "admin_user_receive_records":
            return ledger_rows.receive_records(_path(directory))
    with closing(sqlite3.connect(_path(directory), timeout=5)) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(f"SELECT * FROM {table}")]


def unsettled(directory: Path) -> list[int]:
    """The seqs of the notices with which something is left to do."""
    notices = ledger_rows.LedgerRows(_path(directory)).notices
    return [seq for seq, notice in notices.items() if notice.state & (KNOWN | SETTLED) == KNOWN]


def _path(directory: Path) -> Path:
    return directory / "data" / "pushd.db"


def change(directory: Path, statement: str, *parameters: Any) -> None:
    """Bring about what would take time, or another program, to come about."""
    with closing(sqlite3.connect(_path(directory), timeout=5)) as connection, connection:
        connection.execute(statement, parameters)


async def left_behind(directory: Path, notices: Sequence[Notice], receipts: Sequence[Receipt]) -> None:
    """What a daemon of former times left: these notices, settled, with their receipts; in the order of their times."""
    config = Config(server=ServerConfig(data_dir=str(directory / "data")))
    async with open_stores(config, clock=lambda: notices[-1].accepted_ms) as stores:
        await stores.journal.append(notices)
        await stores.records.write([PushRecord(notice, "success", 0, 0) for notice in notices], receipts)
        await stores.journal.settle([notice.seq for notice in notices])
