"""Groups: tables `user_group` and `user_group_member`, filled by `import-groups`."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Collection, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import orjson

from pushd.batched import batched
from pushd.config.checks import quote
from pushd.errors import ConfigError, StartError
from pushd.model import Group, Membership, UserId
from pushd.stores.sqlite.engine.connection import open_connection
from pushd.stores.sqlite.engine.schema import database_path, is_id, prepare, transaction
from pushd.stores.sqlite.engine.statements import CHUNK_ROWS, HIGHEST_OWN, Reads, decoded
from pushd.turns import sliced
from pushd.user_ids import INTEGERS, UserIds

LOCK_NAME = "import-groups.lock"

# Decoding so many ids takes the loop less than a millisecond.
PAGE_IDS = 20_000

# One statement, so that all of it is of one moment. What another program wrote as an id and is none is nobody.
IDS = """
SELECT CAST(json_group_array(user_id) AS BLOB)
  FROM (SELECT user_id, row_number() OVER (ORDER BY user_id) / :page_ids AS page
          FROM (SELECT DISTINCT user_id
                  FROM json_each(CAST(:groups AS TEXT)) AS wanted
                 CROSS JOIN user_group ON user_group.name = wanted.value
                 CROSS JOIN user_group_member USING (number)
                 WHERE {is_id}))
 GROUP BY page
 ORDER BY page
"""

LIST = """
SELECT CAST(json_group_array(json_object(
         'name', CAST(name AS TEXT), 'title', CAST(title AS TEXT), 'users', CAST(users AS INTEGER))) AS BLOB)
  FROM (SELECT name, title, users FROM user_group WHERE name IS NOT NULL ORDER BY name LIMIT :limit)
"""

HIGHEST = """
SELECT max(ifnull((SELECT max(number) FROM user_group WHERE number < :most), 0),
           ifnull((SELECT max(number) FROM user_group_member WHERE number < :most), 0))
"""

PUT = "INSERT INTO user_group_member (number, user_id) VALUES (?, ?)"

REPLACE = """
INSERT INTO user_group (name, number, title, users) VALUES (?, ?, ?, ?)
    ON CONFLICT (name) DO UPDATE SET number = excluded.number, title = excluded.title, users = excluded.users
"""

LEFT_OVER = "SELECT DISTINCT number FROM user_group_member WHERE number NOT IN (SELECT number FROM user_group)"

DROP = """
DELETE FROM user_group_member
 WHERE number = :number AND user_id IN (SELECT user_id FROM user_group_member WHERE number = :number LIMIT :limit)
"""

_groups = msgspec.json.Decoder(list[Group])


class SqliteGroups:
    """The part of ports.Directory that is about groups."""

    def __init__(self, reads: Reads, ids: UserIds) -> None:
        self._reads = reads
        self._ids_of_groups = IDS.format(is_id=is_id(ids, "user_id"))

    async def ids_by_group(self, groups: Collection[str]) -> list[UserId]:
        """Ids of users in one of these groups, ascending, each once."""
        parameters: dict[str, bytes | int] = {"groups": orjson.dumps([*groups]), "page_ids": PAGE_IDS}
        documents = await self._reads.read("ids_by_group", partial(_documents, self._ids_of_groups, parameters))
        found: list[UserId] = []
        async for document in sliced(documents):
            found += sorted(orjson.loads(document))
        return found

    async def groups(self, limit: int) -> list[Group]:
        """The groups there are, by name; the first `limit`."""
        document = await self._reads.document("groups", LIST, limit=limit)
        return decoded(_groups, document or b"[]")


def _documents(statement: str, parameters: dict[str, bytes | int], connection: sqlite3.Connection) -> list[bytes]:
    return [document for (document,) in connection.execute(statement, parameters)]


@dataclass(slots=True)
class _Given:
    """A group as the file has it so far."""

    number: int
    title: str = ""
    title_line: int = 0
    users: int = 0


def import_groups(
    data_dir: str, memberships: Iterable[Membership], *, source: str, ids: UserIds = INTEGERS
) -> tuple[int, int]:
    """Replace the groups that are named, all of them or, when the file is refused, none; how many, and their members.

    Blocks, and takes one membership after the other. Works beside a running daemon, in portions that do not hold it up:
    members are put beside those of before, and take their place in one transaction. Needs no daemon either, and
    creates the database where there is none. Raises StartError, and ConfigError for what a file may not say.
    """
    path = database_path(data_dir)
    prepare(path, ids=ids)
    try:
        with _alone(path.with_name(LOCK_NAME)), closing(open_connection(path, synchronous="NORMAL")) as connection:
            try:
                groups = _put_beside(connection, memberships, source)
                _put_in_place(connection, groups)
            finally:
                _drop_left_over(connection)
    except sqlite3.Error as error:
        raise StartError(f"cannot import groups into {path}: {error}") from error
    return len(groups), sum(group.users for group in groups.values())


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait until no other import is under way: what it has put beside would be taken for left over."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StartError(f"cannot open {path}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _put_beside(connection: sqlite3.Connection, memberships: Iterable[Membership], source: str) -> dict[str, _Given]:
    (number,) = connection.execute(HIGHEST, {"most": HIGHEST_OWN}).fetchone()
    groups: dict[str, _Given] = {}
    for chunk in batched(memberships, CHUNK_ROWS):
        with transaction(connection):
            for one in chunk:
                group = groups.get(one.group)
                if group is None:
                    number += 1
                    group = groups[one.group] = _Given(number)
                _take(connection, group, one, source)
    return groups


def _take(connection: sqlite3.Connection, group: _Given, one: Membership, source: str) -> None:
    if one.title and one.title != group.title:
        if group.title:
            expected = f"{quote(group.title)} as on line {group.title_line}"
            raise ConfigError(f"{source}: line {one.line}: title: found {quote(one.title)}, expected {expected}")
        group.title, group.title_line = one.title, one.line
    if one.user_id is None:
        return
    try:
        connection.execute(PUT, (group.number, one.user_id))
    except sqlite3.IntegrityError:
        expected = f"it only once in group {quote(one.group)}"
        raise ConfigError(
            f"{source}: line {one.line}: user_id: found {one.user_id} again, expected {expected}"
        ) from None
    group.users += 1


def _put_in_place(connection: sqlite3.Connection, groups: dict[str, _Given]) -> None:
    """From here on these are the members, across a power cut, too."""
    connection.execute("PRAGMA synchronous = FULL")
    with transaction(connection):
        for name, group in groups.items():
            if group.users:
                connection.execute(REPLACE, (name, group.number, group.title, group.users))
            else:
                connection.execute("DELETE FROM user_group WHERE name = ?", (name,))
    connection.execute("PRAGMA synchronous = NORMAL")


def _drop_left_over(connection: sqlite3.Connection) -> None:
    """Members of before, or of an import that did not come to its end."""
    for (number,) in connection.execute(LEFT_OVER).fetchall():
        while connection.execute(DROP, {"number": number, "limit": CHUNK_ROWS}).rowcount == CHUNK_ROWS:
            pass
