"""What the benchmarks store, and how they look at it: databases with many receipts, mailboxes, the embedded stores."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from bench import growth
from bench.loadlib import filled, ways
from bench.loadlib.boxes import SqliteBoxes
from bench.loadlib.options import LoadError
from pushd.config.schema import Config, ServerConfig
from pushd.stores import open_stores
from tests import ledger_rows

USERS = 20


@pytest.mark.parametrize(
    ("kind", "notices"),
    [("broadcasts", 25), ("singles", 25 * USERS)],
)
async def test_so_many_receipts_are_stored_half_of_them_received(tmp_path: Path, kind: filled.Kind, notices: int):
    await filled.fill(tmp_path, kind, USERS, 25 * USERS)
    records = ledger_rows.LedgerRows(tmp_path / "pushd.db")
    pushed, received = records.push_records(), records.receive_records()
    assert {row["status"] for row in pushed} == {"success"}
    assert len(pushed) == notices
    assert len({(row["message_id"], row["user_id"]) for row in received}) == len(received) == 25 * USERS
    assert Counter(row["is_received"] for row in received) == {0: 250, 1: 250}
    assert {row["platform"] for row in received if row["is_received"]} == {"Linux"}
    assert len({row["created_at"] for row in pushed}) == notices
    assert ledger_rows.unsettled(tmp_path / "pushd.db") == []


async def test_mailboxes_read_behind_the_daemons_back(tmp_path: Path):
    await filled.fill(tmp_path, "broadcasts", USERS, 25 * USERS)
    boxes = SqliteBoxes(tmp_path)
    lengths = boxes.lengths(USERS + 1)
    assert sum(lengths) == 250
    assert lengths[-1] == 0
    assert boxes.waiting() == 1
    async with open_stores(Config(server=ServerConfig(data_dir=str(tmp_path))), lambda *_: None) as stores:
        for user_id, length in enumerate(lengths[:-1], 1):
            assert await stores.mailbox.clear(user_id) == length
        assert boxes.lengths(USERS) == [0] * USERS
        assert boxes.waiting() == 0


async def test_the_embedded_stores_do_what_they_are_timed_at(tmp_path: Path):
    async with ways.embedded(tmp_path, USERS) as tasks:
        for task in tasks:
            for number in range(3):
                await task.prepare(number)
                await task.ours(number)
    rows = ledger_rows.LedgerRows(tmp_path / "embedded" / "pushd.db")
    assert Counter(row["message_id"][0] for row in rows.receive_records()) == {"n": 3 * USERS}
    assert Counter(row["message_id"][0] for row in rows.mailbox()) == {"m": 3 * USERS, "r": ways.WAITING * USERS}


async def test_what_was_not_saved_is_found_out(tmp_path: Path):
    with pytest.raises(LoadError, match="not all waits"):
        async with ways.embedded(tmp_path, USERS) as (save, *_):
            await save.prepare(0)


@pytest.mark.parametrize(
    ("receipts", "sizes"),
    [
        (None, [200_000, 500_000]),
        (300_000, [200_000, 300_000]),
        (10_000_000, [200_000, 500_000, 10_000_000]),
        (1000, [1000]),
    ],
)
def test_sizes_up_to_the_largest_wanted(receipts: int | None, sizes: list[int]):
    assert growth.sizes_up_to(receipts, quick=True) == sizes


def test_a_database_is_all_of_its_files(tmp_path: Path):
    for name, size in {"pushd.db": 100, "pushd.db-wal": 10, "pushd.lock": 1}.items():
        (tmp_path / name).write_bytes(bytes(size))
    assert growth.disk_of(tmp_path) == 110
