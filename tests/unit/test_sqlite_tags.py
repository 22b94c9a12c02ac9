"""Rows of tags: which notices have one, and that they go with their notices."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pushd.config.schema import Config, RecordsConfig, ServerConfig
from pushd.model import PushRecord
from pushd.ports import Stores
from pushd.records import Part, PushFilter, PushSort
from pushd.stores.sqlite import open_stores, tags
from pushd.stores.sqlite.engine.schema import prepare
from pushd.stores.sqlite.engine.statements import Reads, Run
from pushd.stores.sqlite.keywords import Marks, both
from tests.samples import notice

ALL = Part(0, 1000)


def stored(directory: Path) -> list[tuple[int, int, str]]:
    with closing(sqlite3.connect(directory / "pushd.db")) as connection:
        return connection.execute("SELECT seq, place, tag FROM notice_tag ORDER BY seq, place").fetchall()


async def listed(stores: Stores, tag: str, **where: int | str) -> list[str]:
    rows = await stores.records.push_records(PushFilter(tag=tag, **where), PushSort.PUSH_TIME, ALL)  # type: ignore[arg-type]
    return [row.message_id for row in rows]


async def test_they_are_written_with_the_notice_and_go_with_it(tmp_path: Path) -> None:
    async with open_stores(Config(server=ServerConfig(data_dir=str(tmp_path)))) as stores:
        given = [notice(1, tags=("b", "a")), notice(2), notice(3, tags=("a",))]
        await stores.journal.append(given)
        await stores.journal.append(given[:1])  # again, which is harmless
        assert stored(tmp_path) == [(1, 0, "b"), (1, 1, "a"), (3, 0, "a")]
        await stores.records.write([PushRecord(given[2], "success", 0, 0)], [])
        await stores.journal.settle([1, 2, 3])
        await stores.records.delete("m1")
        assert await listed(stores, "a") == ["m3"]
        await stores.journal.purge(5000, 10)
        assert stored(tmp_path) == [(3, 0, "a")]


async def test_a_repeated_id_has_the_first_notices(tmp_path: Path) -> None:
    async with open_stores(Config(server=ServerConfig(data_dir=str(tmp_path)))) as stores:
        await stores.journal.append([notice(1, message_id="m", tags=("a",))])
        await stores.journal.append([notice(2, message_id="m", tags=("b",))])
        assert (await listed(stores, "a"), await listed(stores, "b")) == (["m"], [])


async def test_there_are_none_where_others_have_the_records(tmp_path: Path) -> None:
    config = Config(server=ServerConfig(data_dir=str(tmp_path)), records=RecordsConfig(url="mongodb://127.0.0.1:1"))
    async with open_stores(config) as stores:
        await stores.journal.append([notice(1, tags=("a",))])
    assert stored(tmp_path) == []


async def test_many_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tags, "AT_ONCE", 3)
    async with open_stores(Config(server=ServerConfig(data_dir=str(tmp_path)))) as stores:
        for start in range(1, 41, 10):
            seqs = range(start, start + 10)
            await stores.journal.append(
                [notice(seq, accepted_ms=1000 + seq, tags=("even", f"t{seq}") if seq % 2 == 0 else ()) for seq in seqs]
            )
        assert await listed(stores, "even") == [f"m{seq}" for seq in range(40, 0, -2)]
        assert await listed(stores, "even", since_ms=1010, before_ms=1016) == ["m14", "m12", "m10"]
        assert await listed(stores, "t8") == ["m8"]
        assert await listed(stores, "even", keyword="hel", since_ms=1038) == ["m40", "m38"]
        assert await listed(stores, "even", keyword="nothing") == []
        assert await listed(stores, "\ud800") == []


async def test_marks_are_for_notices_of_the_range() -> None:
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("CREATE TABLE notice_tag (seq, place, tag)")
        connection.executemany("INSERT INTO notice_tag VALUES (?, 0, 'a')", [(seq,) for seq in (1, 5, 9)])

        async def read(store: str, name: str, run: Run) -> object:
            return run(connection)

        assert await tags.having(Reads(read, "records"), "a", 4, 9) == b"\0\1\0\0\0"
        assert await tags.having(Reads(read, "records"), "a", 9, 4) == b""


@given(st.integers(0, 5), st.binary(max_size=9), st.integers(0, 5), st.binary(max_size=9))
@settings(deadline=None)
def test_both(first: int, one: bytes, other_first: int, other: bytes) -> None:
    one, other = bytes(byte & 1 for byte in one), bytes(byte & 1 for byte in other)
    made = both(Marks(first, one), Marks(other_first, other))
    marked = {first + at for at, mark in enumerate(one) if mark}
    expected = marked & {other_first + at for at, mark in enumerate(other) if mark}
    assert {made.first + at for at, mark in enumerate(made.marks) if mark} == expected


def test_a_database_of_the_version_before_gets_the_table(tmp_path: Path) -> None:
    path = tmp_path / "pushd.db"
    prepare(path)
    with closing(sqlite3.connect(path)) as connection:
        new = connection.execute("SELECT type, name, sql FROM sqlite_master ORDER BY name").fetchall()
        for later in ("notice_tag", "amended", "notice_version", "user_group_member", "user_group"):
            connection.execute(f"DROP TABLE {later}")
        connection.execute("PRAGMA user_version = 9")
        connection.execute("INSERT INTO notice (message_id, accepted_ms, body) VALUES ('m', 1, '{}')")
        connection.commit()
    for _ in range(2):
        prepare(path)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT type, name, sql FROM sqlite_master ORDER BY name").fetchall() == new
        assert connection.execute("SELECT count(*) FROM notice").fetchone() == (1,)
