"""The ledger in its file with little memory for it."""

from __future__ import annotations

import sqlite3
from functools import partial
from pathlib import Path

import pytest

from pushd.errors import StoreUnavailable
from pushd.ledger._cold import newest
from pushd.stores.sqlite.ledger_file import LedgerFile, part_of
from pushd.stores.sqlite.ledger_load import UNBOUNDED
from tests.ledger_files import opened_file
from tests.unit.test_ledger_file import append, limit, numbers

DELIVERED, READ, CONFIRMED = 4, 5, 6


async def test_what_is_old_leaves_memory_and_what_changes_of_it_comes_back(tmp_path: Path) -> None:
    """Also when the disk was full in between; memory stays near the bound, while written and from the start on."""
    path = tmp_path / "pushd.db"
    bound, users, notices = 600_000, 4096, 40
    async with opened_file(path, memory_bytes=bound) as file:
        await append(file, *range(1, notices + 1))
        some = numbers(file, *range(users))
        for seq in range(1, notices + 1):
            file.ledger.begin_dense(seq)
            file.ledger.note(seq, some, DELIVERED, 1500 + seq)
            await file.commit()
        assert file.ledger.memory < bound + 10 * users
        assert file.ledger.newest(3, 1) == [(notices, DELIVERED, 1500 + notices, 0, 0, 0)]
        for step in (READ, CONFIRMED):
            for number in some[: users // 2]:
                file.ledger.mark(2, number, step, 2000 * step)
            if step == READ:
                await limit(file, 0)
                with pytest.raises(StoreUnavailable):
                    await file.commit()
                await limit(file, None)
            await file.commit()
    for memory_bytes in (bound, UNBOUNDED):
        async with opened_file(path, memory_bytes=memory_bytes) as file:
            assert (file.ledger.memory < bound + 10 * users) == (memory_bytes == bound)

            def rows(connection: sqlite3.Connection, file: LedgerFile = file) -> list[tuple[int, ...]]:
                return newest(file.ledger, 3, notices, partial(part_of, connection))

            found = {seq: rest for seq, *rest in await file._read("test", "newest", rows)}
            assert found[2] == [CONFIRMED, 1502, 2000 * READ, 2000 * CONFIRMED, 0]
            assert {seq: rest for seq, rest in found.items() if seq != 2} == {
                seq: [DELIVERED, 1500 + seq, 0, 0, 0] for seq in range(1, notices + 1) if seq != 2
            }
