"""A conversion that is killed, or cut off from its power: the next start goes on as if there had been none before."""

from __future__ import annotations

import random
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests import native
from tests.converted import started
from tests.fault.test_power_cut import lose

DATA = Path(__file__).parent.parent / "data"


@pytest.mark.timeout(120)
def test_a_kill_at_any_write_leaves_a_start_that_goes_on(tmp_path: Path) -> None:
    told = native.run(tmp_path, "tests.fault.test_conversion_kill:killed_at_each", tmp_path, timeout_s=100)
    kills = int(told.split()[-1])
    assert kills > 30


@pytest.mark.timeout(120)
def test_a_power_cut_leaves_a_start_that_goes_on(tmp_path: Path) -> None:
    told = native.run(tmp_path, "tests.fault.test_conversion_kill:cut_at_some", tmp_path, timeout_s=100)
    assert int(told.split()[-1]) > 30


def cut_at_some(directory: str) -> None:
    """Cuts the power at some writes, among them the last ones; what was not synced may be there or not."""
    rng = random.Random(20261130)
    old = old_database(Path(directory) / "old", 8)
    before = dump(old)
    place, twins = Path(directory) / "data", Path(directory) / "twins"
    at = copied(old, place)

    def start() -> None:
        started(at)

    changes = native.changes_of(place, start)
    expected = dump(at)
    cuts = sorted({*range(3, changes - 20, 9), *range(changes - 20, changes + 1)})
    for cut in cuts:
        copied(old, place)
        copied(old, twins)
        assert native.ends_at(cut, place, start, twins), cut
        lose(place, twins, rng)
        assert dump(at) in (before, expected), cut
        assert not native.ends_at(0, place, start), cut
        assert dump(at) == expected, cut
        assert dump(place / "pushd.db.v8") == before, cut
    print(len(cuts))


def killed_at_each(directory: str) -> None:
    """Converts once without a kill, then with one at a write and after that once more; prints how often.

    Among the first and last writes all are tried, of those between, which make the new file, some.
    """
    old = old_database(Path(directory) / "old", 8)
    before = dump(old)
    place = Path(directory) / "data"
    at = copied(old, place)

    def start() -> None:
        started(at)

    changes = native.changes_of(place, start)
    expected = dump(at)
    assert dump(place / "pushd.db.v8") == before
    kills = sorted({*range(1, 15), *range(15, changes - 25, 9), *range(changes - 25, changes + 1)})
    for kill in kills:
        copied(old, place)
        assert native.ends_at(kill, place, start), kill
        assert dump(at) in (before, expected), kill
        assert not native.ends_at(0, place, start), kill
        assert dump(at) == expected, kill
        assert {path.name for path in place.iterdir()} == {"pushd.db", "pushd.db.v8"}, kill
        assert dump(place / "pushd.db.v8") == before, kill
    print(len(kills))


def old_database(directory: Path, version: int) -> Path:
    """A database of that version with everything in it, most of it in its WAL."""
    directory.mkdir()
    path = directory / "made.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript((DATA / f"pushd.db.v{version}.sql").read_text())
        kept = directory / "pushd.db"
        for suffix in ("", "-wal"):
            shutil.copyfile(f"{path}{suffix}", f"{kept}{suffix}")
    return kept


def copied(old: Path, place: Path) -> Path:
    """The same in a directory of its own."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    for suffix in ("", "-wal"):
        shutil.copyfile(f"{old}{suffix}", f"{place / 'pushd.db'}{suffix}")
    return place / "pushd.db"


def dump(path: Path) -> list[str]:
    """All that is in the database, seen without touching it."""
    copy = path.parent.parent / "dumped"
    for suffix in ("", "-wal"):
        Path(f"{copy}{suffix}").unlink(missing_ok=True)
        if Path(f"{path}{suffix}").exists():
            shutil.copyfile(f"{path}{suffix}", f"{copy}{suffix}")
    with closing(sqlite3.connect(copy)) as connection:
        version = connection.execute("PRAGMA user_version").fetchone()
        return [*connection.iterdump(), str(version)]
