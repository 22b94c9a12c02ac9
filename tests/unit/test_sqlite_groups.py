"""Importing groups: all or nothing, however it ends; and what is read of what others wrote."""

from __future__ import annotations

import fcntl
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pushd.errors import ConfigError, StartError
from pushd.model import Group, Membership
from pushd.stores.sqlite import import_groups
from pushd.stores.sqlite.engine.schema import prepare
from pushd.stores.sqlite.groups import LOCK_NAME


def rows(group: str, user_ids: Iterable[int | None], title: str = "") -> list[Membership]:
    return [Membership(line, group, user_id, title) for line, user_id in enumerate(user_ids, start=2)]


def put(data_dir: Path, memberships: Iterable[Membership]) -> tuple[int, int]:
    return import_groups(str(data_dir), memberships, source="g.csv")


def stored(data_dir: Path) -> dict[str, list[int]]:
    """Who is in place; and nothing must be left over."""
    with closing(sqlite3.connect(data_dir / "pushd.db")) as connection:
        found: dict[str, list[int]] = {}
        for name, user_id in connection.execute(
            "SELECT name, user_id FROM user_group JOIN user_group_member USING (number) ORDER BY name, user_id"
        ):
            found.setdefault(name, []).append(user_id)
        (members,) = connection.execute("SELECT count(*) FROM user_group_member").fetchone()
        assert members == sum(map(len, found.values()))
        assert connection.execute("SELECT name, users FROM user_group ORDER BY name").fetchall() == [
            (name, len(user_ids)) for name, user_ids in found.items()
        ]
    return found


def test_it_counts_and_creates_the_database(tmp_path: Path) -> None:
    assert put(tmp_path, [*rows("a", range(1, 1201), "A"), *rows("b", [3])]) == (2, 1201)
    assert stored(tmp_path) == {"a": [*range(1, 1201)], "b": [3]}
    assert (tmp_path / LOCK_NAME).stat().st_mode & 0o077 == 0
    (tmp_path / "file").touch()
    with pytest.raises(StartError, match="file"):
        put(tmp_path / "file", [])


def test_only_the_groups_that_are_named_change(tmp_path: Path) -> None:
    put(tmp_path, [*rows("a", [1, 2]), *rows("b", [2, 3]), *rows("c", [4])])
    assert put(tmp_path, [*rows("b", [9, 8]), *rows("c", [None])]) == (2, 2)
    assert stored(tmp_path) == {"a": [1, 2], "b": [8, 9]}
    assert put(tmp_path, []) == (0, 0)
    assert put(tmp_path, rows("unknown", [None, None])) == (1, 0)
    assert stored(tmp_path) == {"a": [1, 2], "b": [8, 9]}


def bad_rows() -> Iterator[Membership]:
    yield from rows("a", range(100, 2000))
    raise ConfigError("g.csv: line 1902: user_id: ...")


TWICE = [*rows("a", range(100, 1500)), Membership(1402, "a", 1499, "")]
TWO_TITLES = [Membership(2, "a", 5, "A"), Membership(3, "a", 6, ""), Membership(4, "a", 7, "B")]


@pytest.mark.parametrize(
    ("memberships", "words"),
    [
        (bad_rows(), "line 1902"),
        (TWICE, 'g.csv: line 1402: user_id: found 1499 again, expected it only once in group "a"'),
        (TWO_TITLES, 'g.csv: line 4: title: found "B", expected "A" as on line 2'),
    ],
)
def test_a_file_that_is_refused_changes_nothing(tmp_path: Path, memberships: Iterable[Membership], words: str) -> None:
    put(tmp_path, rows("a", [1, 2], "Old"))
    with pytest.raises(ConfigError) as caught:
        put(tmp_path, memberships)
    assert words in str(caught.value)
    assert stored(tmp_path) == {"a": [1, 2]}


def test_what_a_killed_import_left_is_dropped_by_the_next(tmp_path: Path) -> None:
    put(tmp_path, rows("a", [1, 2]))
    with closing(sqlite3.connect(tmp_path / "pushd.db", isolation_level=None)) as connection:
        connection.executemany("INSERT INTO user_group_member VALUES (?, ?)", [(2, user_id) for user_id in range(3000)])
    put(tmp_path, rows("b", [7]))
    assert stored(tmp_path) == {"a": [1, 2], "b": [7]}


def test_until_all_are_there_the_former_members_are(tmp_path: Path) -> None:
    put(tmp_path, rows("a", [1, 2]))
    seen: list[Any] = []

    def growing() -> Iterator[Membership]:
        for row in rows("a", range(10, 3010)):
            if row.line % 700 == 0:
                with closing(sqlite3.connect(tmp_path / "pushd.db")) as connection:
                    seen.append(
                        connection.execute(
                            "SELECT user_id FROM user_group JOIN user_group_member USING (number) WHERE name = 'a'"
                        ).fetchall()
                    )
            yield row

    put(tmp_path, growing())
    assert seen == [[(1,), (2,)]] * 4
    assert stored(tmp_path) == {"a": [*range(10, 3010)]}


def test_one_import_waits_for_the_other(tmp_path: Path) -> None:
    put(tmp_path, rows("a", [1]))
    with (tmp_path / LOCK_NAME).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        other = threading.Thread(target=put, args=(tmp_path, rows("a", [2])))
        other.start()
        other.join(0.2)
        assert other.is_alive()
        assert stored(tmp_path) == {"a": [1]}
    other.join()
    assert stored(tmp_path) == {"a": [2]}


def test_a_full_disk_or_a_broken_table_is_one_line(tmp_path: Path) -> None:
    prepare(tmp_path / "pushd.db")
    with closing(sqlite3.connect(tmp_path / "pushd.db")) as connection:
        connection.execute("DROP TABLE user_group_member")
    with pytest.raises(StartError, match=r"cannot import groups into .*pushd\.db: no such table"):
        put(tmp_path, rows("a", [1]))


async def test_what_others_wrote_as_a_user_is_nobody(stores: Any, tmp_path: Path) -> None:
    path = next(tmp_path.rglob("pushd.db"))
    import_groups(str(path.parent), rows("a", [1, 2], "A"), source="g.csv")
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        odd = [0, -5, "x", "7", b"\xff", 1.5, 2**63 - 1]
        connection.executemany("INSERT INTO user_group_member VALUES (1, ?)", [(value,) for value in odd])
        connection.execute("INSERT INTO user_group VALUES (x'ff', 1000, 'blob', 'many')")
    assert await stores.directory.ids_by_group(["a", "\ufffd"]) == [1, 2, 2**63 - 1]
    assert await stores.directory.groups(1) == [Group("a", "A", 2)]
    assert [group.users for group in await stores.directory.groups(10)] == [2, 0]
