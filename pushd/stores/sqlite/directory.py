"""The directory: table `user`, filled by `import-users` and by users who connect."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Sequence
from contextlib import closing

import msgspec
import orjson

from pushd.errors import StartError
from pushd.model import User
from pushd.stores.sqlite.connection import open_connection
from pushd.stores.sqlite.schema import database_path, prepare
from pushd.stores.sqlite.statements import Statements, chunks
from pushd.stores.sqlite.thread import SqliteThread

USERS = """
SELECT CAST(json_group_array(json_object('user_id', user.id, 'username', username, 'role', user_type)) AS BLOB)
  FROM json_each(CAST(:user_ids AS TEXT)) AS wanted
 CROSS JOIN user ON user.id = wanted.value
"""

ALL_PAGE = """
SELECT CAST(json_group_array(id) AS BLOB)
  FROM (SELECT id FROM user WHERE id > :after_id ORDER BY id LIMIT :limit)
"""

ROLE_PAGE = """
SELECT CAST(json_group_array(id) AS BLOB)
  FROM (SELECT id FROM user WHERE user_type = :role AND id > :after_id ORDER BY id LIMIT :limit)
"""

# :rows are users as arrays in the order of model.User.
_INSERT = """
INSERT INTO user (id, username, user_type)
SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]')
  FROM json_each(CAST(:rows AS TEXT))
 WHERE true
    ON CONFLICT (id) DO """

LEARN = _INSERT + "NOTHING"
IMPORT = _INSERT + "UPDATE SET username = excluded.username, user_type = excluded.user_type"

# Decoding so many ids takes the loop less than a millisecond.
PAGE_IDS = 20_000

_LOWEST_ID = -(2**63)

_users = msgspec.json.Decoder(list[User])


def import_users(data_dir: str, users: list[User]) -> int:
    """Add `users` and change known ones to what is given; how many were written.

    Blocks. Works beside a running daemon, in portions that do not hold it up; needs no daemon either and creates
    the database where there is none. Raises StartError.
    """
    path = database_path(data_dir)
    prepare(path)
    try:
        with closing(open_connection(path, synchronous="NORMAL")) as connection:
            for chunk in chunks(users):
                connection.execute(IMPORT, {"rows": _rows(chunk)})
    except sqlite3.Error as error:
        raise StartError(f"cannot import users into {path}: {error}") from error
    return len(users)


class SqliteDirectory:
    """ports.Directory on table `user` of the embedded database."""

    follows_tokens = False

    def __init__(self, thread: SqliteThread) -> None:
        self._statements = Statements(thread, "directory")

    async def users(self, user_ids: Collection[int]) -> dict[int, User]:
        """See ports.Directory."""
        found: dict[int, User] = {}
        for chunk in chunks(user_ids):
            document = await self._statements.document("users", USERS, user_ids=orjson.dumps(chunk))
            if document:
                found.update((user.user_id, user) for user in _users.decode(document))
        return found

    async def all_ids(self) -> list[int]:
        """See ports.Directory."""
        return await self._ids("all_ids", ALL_PAGE)

    async def ids_by_role(self, roles: Collection[int]) -> list[int]:
        """See ports.Directory."""
        found: list[int] = []
        for role in set(roles):
            found += await self._ids("ids_by_role", ROLE_PAGE, role=role)
        found.sort()
        return found

    async def learn(self, users: Sequence[User]) -> None:
        """See ports.Directory."""
        for chunk in chunks(users):
            await self._statements.change("learn", LEARN, rows=_rows(chunk))

    async def _ids(self, name: str, statement: str, **parameters: int) -> list[int]:
        """All ids that `statement` yields, ascending, page by page."""
        found: list[int] = []
        after_id = _LOWEST_ID
        while True:
            document = await self._statements.document(name, statement, after_id=after_id, limit=PAGE_IDS, **parameters)
            page: list[int] = sorted(orjson.loads(document or b"[]"))
            found += page
            if len(page) < PAGE_IDS:
                return found
            after_id = page[-1]


def _rows(users: Sequence[User]) -> bytes:
    return orjson.dumps([msgspec.structs.astuple(user) for user in users])
