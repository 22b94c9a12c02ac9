"""The directory: table `user`, filled by `import-users` and by users who connect, and groups."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Sequence
from contextlib import closing
from functools import partial

import msgspec
import orjson

from pushd.batched import batched
from pushd.errors import StartError
from pushd.model import User, UserId
from pushd.stores.sqlite.engine.connection import open_connection
from pushd.stores.sqlite.engine.schema import database_path, is_id, prepare
from pushd.stores.sqlite.engine.statements import CHUNK_ROWS, Reads, Statements, decoded
from pushd.stores.sqlite.engine.thread import SqliteThread
from pushd.stores.sqlite.groups import PAGE_IDS, SqliteGroups
from pushd.stores.sqlite.ledger_file import Read
from pushd.user_ids import INTEGERS, UserIds
from pushd.values import MAX_NAME_CHARS, MAX_ROLE, MIN_ROLE

# Another program may have written what is no name or no role: that counts as a text, and as 0.
_NAME = f"substr(CAST(username AS TEXT), 1, {MAX_NAME_CHARS})"
_ROLE = f"iif(typeof(user_type) = 'integer' AND user_type BETWEEN {MIN_ROLE} AND {MAX_ROLE}, user_type, 0)"

USERS = f"""
SELECT CAST(json_group_array(json_object('user_id', user.id, 'username', {_NAME}, 'role', {_ROLE})) AS BLOB)
  FROM json_each(CAST(:user_ids AS TEXT)) AS wanted
 CROSS JOIN user ON user.id = wanted.value
"""  # noqa: S608 - constants only

# Who is to be learned and known already; imported ones as null.
KNOWN = f"""
SELECT CAST(json_group_array(json_array(user.id, iif(is_imported, null, json_object(
         'user_id', user.id, 'username', {_NAME}, 'role', {_ROLE}, 'issued_ms', token_issued_at)))) AS BLOB)
  FROM json_each(CAST(:user_ids AS TEXT)) AS wanted
 CROSS JOIN user ON user.id = wanted.value
"""  # noqa: S608 - constants only

# With a condition that `id` is one.
ALL_PAGE = """
SELECT CAST(json_group_array(id) AS BLOB)
  FROM (SELECT id FROM user WHERE id > :after_id AND {is_id} ORDER BY id LIMIT :limit)
"""

ROLE_PAGE = """
SELECT CAST(json_group_array(id) AS BLOB)
  FROM (SELECT id FROM user WHERE user_type = :role AND id > :after_id AND {is_id} ORDER BY id LIMIT :limit)
"""

# :rows are arrays in the order of model.User.
_INSERT = """
INSERT INTO user (id, username, user_type, token_issued_at, is_imported)
SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
       json_extract(value, '$[3]'), :is_imported
  FROM json_each(CAST(:rows AS TEXT))
 WHERE true
    ON CONFLICT (id) DO UPDATE
   SET username = excluded.username, user_type = excluded.user_type, token_issued_at = excluded.token_issued_at,
       is_imported = excluded.is_imported
"""

LEARN = _INSERT + " WHERE NOT is_imported"  # the import may have been this moment
IMPORT = _INSERT

_users = msgspec.json.Decoder(list[User])
_known = msgspec.json.Decoder(list[tuple[UserId, User | None]])


def import_users(data_dir: str, users: list[User], ids: UserIds = INTEGERS) -> int:
    """Add `users` and change known ones to what is given; how many were written.

    Blocks. Works beside a running daemon, in portions that do not hold it up; needs no daemon either and creates
    the database where there is none. Raises StartError.
    """
    path = database_path(data_dir)
    prepare(path, ids=ids)
    try:
        with closing(open_connection(path, synchronous="NORMAL")) as connection:
            for chunk in batched(users, CHUNK_ROWS):
                connection.execute(IMPORT, {"rows": _rows(chunk), "is_imported": 1})
    except sqlite3.Error as error:
        raise StartError(f"cannot import users into {path}: {error}") from error
    return len(users)


class SqliteDirectory(SqliteGroups):
    """ports.Directory on table `user` of the embedded database, and those of groups.

    Ids that no account can have do not exist; who has a role that is none is in the list of all alone.
    """

    def __init__(self, thread: SqliteThread, read: Read, ids: UserIds = INTEGERS) -> None:
        super().__init__(Reads(read, "directory"), ids)
        self._nobody = ids.nobody
        self._all_page, self._role_page = (page.format(is_id=is_id(ids, "id")) for page in (ALL_PAGE, ROLE_PAGE))
        self._statements = Statements(thread, "directory")

    async def users(self, user_ids: Collection[UserId]) -> dict[UserId, User]:
        """The known ones of these users."""
        found: dict[UserId, User] = {}
        for chunk in batched(user_ids, CHUNK_ROWS):
            document = await self._statements.document("users", USERS, user_ids=orjson.dumps(chunk))
            if document:
                found.update((user.user_id, user) for user in decoded(_users, document))
        return found

    async def all_ids(self) -> list[UserId]:
        """Every user id, ascending."""
        return await self._ids("all_ids", self._all_page)

    async def ids_by_role(self, roles: Collection[int]) -> list[UserId]:
        """Ids of users that have one of these roles, ascending."""
        found: list[UserId] = []
        for role in set(roles):
            found += await self._ids("ids_by_role", self._role_page, role=role)
        found.sort()
        return found

    async def learn(self, claims: Sequence[User]) -> set[UserId]:
        """Take over what tokens say of their users; ids of those who are new or changed."""
        changed: set[UserId] = set()
        for chunk in batched(claims, CHUNK_ROWS):
            changed |= await self._statements.run("learn", partial(_learn, chunk))
        return changed

    async def _ids(self, name: str, statement: str, **parameters: int) -> list[UserId]:
        """All ids that `statement` yields, ascending, page by page."""
        found: list[UserId] = []
        after_id = self._nobody  # before all others
        while True:
            document = await self._statements.document(name, statement, after_id=after_id, limit=PAGE_IDS, **parameters)
            page: list[UserId] = sorted(orjson.loads(document or b"[]"))
            found += page
            if len(page) < PAGE_IDS:
                return found
            after_id = page[-1]


def _learn(claims: Sequence[User], connection: sqlite3.Connection) -> set[UserId]:
    """On the thread: write what is new, if anything is; whose name or role that is."""
    user_ids = orjson.dumps([said.user_id for said in claims])
    (document,) = connection.execute(KNOWN, {"user_ids": user_ids}).fetchone()
    rows = decoded(_known, document)
    known = dict(rows)
    changed: set[UserId] = set()
    written: dict[UserId, User] = {}
    for said in claims:
        before = known.get(said.user_id)
        if before is None and said.user_id in known:
            continue  # imported
        told = said.after(before)
        if told is not None:
            known[said.user_id] = written[said.user_id] = told
            if not told.is_as(before):
                changed.add(said.user_id)
    if written:
        connection.execute(LEARN, {"rows": _rows([*written.values()]), "is_imported": 0})
    return changed


def _rows(users: Sequence[User]) -> bytes:
    return orjson.dumps([msgspec.structs.astuple(user) for user in users])
