"""Users, names and roles from one table; groups from a query."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from pymysql.charset import charset_by_name  # type: ignore[import-untyped]
from pymysql.constants import FIELD_TYPE  # type: ignore[import-untyped]

from pushd.batched import batched
from pushd.config.schema import Config, DirectoryConfig
from pushd.errors import StartError, StoreError
from pushd.model import Group, User, UserId
from pushd.ports import Observe
from pushd.stores.guard import Guard
from pushd.stores.mysql.address import Address, parse_url
from pushd.stores.mysql.failures import STORE, misconfiguration, translate
from pushd.stores.mysql.groups import MysqlGroups
from pushd.stores.mysql.pool import Pool, Row
from pushd.stores.mysql.text_ids import text_ids, text_of
from pushd.user_ids import INTEGERS, STRINGS
from pushd.values import MAX_NAME_CHARS, MAX_ROLE, MAX_USER_ID, MIN_ROLE, clean_name, is_whole

# The driver decodes what has arrived without a pause, 5 to 10 us a row: 250 hold the loop up for 3 ms, 500 for 5.
# Twice as many a query would save 6 % of the time.
ROWS_AT_ONCE = 250
CANONICAL_INTEGER = "^(0|-?[1-9][0-9]*)$"
MOST_NAME_BYTES = 4 * MAX_NAME_CHARS
MOST_DIGITS = 11  # of a role, with its sign

_role = re.compile(CANONICAL_INTEGER.encode())
_ID_TYPES = {FIELD_TYPE.TINY, FIELD_TYPE.SHORT, FIELD_TYPE.INT24, FIELD_TYPE.LONG, FIELD_TYPE.LONGLONG}
_TEXT_TYPES = {FIELD_TYPE.STRING, FIELD_TYPE.VAR_STRING, FIELD_TYPE.VARCHAR, FIELD_TYPE.BLOB}


class MysqlDirectory:
    """ports.Directory and ports.Remote on one table. Needs SELECT on three columns, and on what the query for groups
    reads, and no more.

    Ids that no account can have do not exist for pushd; those that are texts are compared byte for byte, whatever the
    column's collation. A role that is NULL, no number or beyond an INT is 0, and a name that is NULL is "".
    Lists come in pages by id, so the id column needs an index; they are not of one moment.
    """

    store = STORE

    def __init__(
        self,
        pool: Pool,
        config: DirectoryConfig,
        address: Address,
        guard: Guard,
        groups: MysqlGroups,
        *,
        rows_at_once: int = ROWS_AT_ONCE,
    ) -> None:
        self._groups = groups
        self._rows_at_once = rows_at_once
        self._pool = pool
        self._config = config
        self._guard = guard
        self._encoding = charset_by_name(address.charset).encoding
        self._ids = config.ids
        self._id = _quoted(config.id_column)
        self._role = _quoted(config.role_column)
        self._columns = f"{self._id}, {_quoted(config.name_column)}, {self._role}"
        self._table = ".".join(map(_quoted, config.table.split(".", 1)))

    async def users(self, user_ids: Collection[UserId]) -> dict[UserId, User]:
        """The known ones of these users. One query for ROWS_AT_ONCE."""
        found: dict[UserId, User] = {}
        known = (user_id for user_id in user_ids if self._ids.accepted(user_id) is not None)
        for chunk in batched(known, self._rows_at_once):
            statement = self._select(self._columns, f"WHERE {self._id} IN ({_marks(chunk)})")
            rows = await self._rows("users", statement, chunk)
            wanted = set(chunk)
            for row in rows:
                user_id = self._user_id(row[0])
                if user_id in wanted:  # else one that the collation has for equal
                    found[user_id] = self._user(user_id, row)
        return found

    async def all_ids(self) -> list[UserId]:
        """Every user id, ascending. One query for ROWS_AT_ONCE."""
        return await self._pages("all_ids", "TRUE", ())

    async def ids_by_role(self, roles: Collection[int]) -> list[UserId]:
        """Ids of users that have one of these roles, ascending.

        One query for ROWS_AT_ONCE; each reads past the others, unless there is an index.
        """
        if not roles:
            return []
        # Compared as texts: 1 would be the first label of an ENUM and the beginning of "1st".
        wanted = [str(role) for role in set(roles)]
        where = f"{self._role} IN ({_marks(wanted)})"
        if "0" in wanted:
            word = f"CAST({self._role} AS CHAR)"
            where += (
                f" OR {self._role} IS NULL OR {word} NOT REGEXP '{CANONICAL_INTEGER}'"
                f" OR CAST({word} AS DECIMAL(65)) NOT BETWEEN {MIN_ROLE} AND {MAX_ROLE}"
            )
        return await self._pages("ids_by_role", f"({where})", wanted)

    async def ids_by_group(self, groups: Collection[str]) -> list[UserId]:
        """Ids of users in one of these groups, each once. One query for each group and ROWS_AT_ONCE."""
        return await self._groups.ids_by_group(groups)

    async def groups(self, limit: int) -> list[Group]:
        """The groups there are, by name; the first `limit`. MySQL reads all that the query returns."""
        return await self._groups.groups(limit)

    async def learn(self, claims: Sequence[User]) -> set[UserId]:
        """Takes over nothing of what tokens say: the table is others'."""
        return set()

    async def check(self) -> None:
        """Return when the server answers and has what is needed; raises StartError when it never can.

        Connects anew, since credentials are looked at only then.
        """
        statement = self._select(self._columns, "LIMIT 0")
        try:
            columns, _ = await self._guard.call(
                "check", partial(self._pool.query, statement, (), is_fresh=True), is_probe=True
            )
        except StoreError as error:
            misconfigured = misconfiguration(error.__cause__, self._config)
            if misconfigured is None:
                raise
            raise misconfigured from error
        if self._ids is INTEGERS and not _is_whole_number(columns[0]):
            raise StartError(
                f"directory.id_column: {self._config.id_column} is not of an integer type; "
                'expected the column with the users\' positive whole numbers, or directory.user_ids = "string"'
            )
        if self._ids is STRINGS and not (_is_whole_number(columns[0]) or columns[0][1] in _TEXT_TYPES):
            raise StartError(
                f"directory.id_column: {self._config.id_column} is of no type of texts; "
                'expected the column with the users\' ids, since directory.user_ids is "string"'
            )
        await self._groups.check()

    async def _pages(self, operation: str, where: str, parameters: Sequence[object]) -> list[UserId]:
        """The ids of all rows for which `where` holds, ascending, each once."""
        if self._ids is STRINGS:
            return await self._texts(operation, where, parameters)
        rest = f"WHERE {self._id} > %s AND {where} ORDER BY {self._id} LIMIT {self._rows_at_once}"
        statement = self._select(f"DISTINCT {self._id}", rest)
        found: list[int] = []
        last = 0
        while True:
            rows = await self._rows(operation, statement, (last, *parameters))
            page = [int(row[0] or 0) for row in rows]
            if page and page[0] <= last:
                raise StoreError(STORE, "directory.id_column does not ascend")  # else this would not end
            found += page
            if len(page) < self._rows_at_once:
                break
            last = page[-1]
        while found and found[-1] > MAX_USER_ID:
            found.pop()
        return [*found]

    async def _texts(self, operation: str, where: str, parameters: Sequence[object]) -> list[UserId]:
        async def ask(last: str, limit: int) -> Sequence[Row]:
            rest = f"WHERE {self._id} >= %s AND {where} ORDER BY {self._id} LIMIT {limit}"
            return await self._rows(operation, self._select(self._id, rest), (last, *parameters))

        return await text_ids(ask, self._rows_at_once, self._encoding)

    def _select(self, columns: str, rest: str) -> str:
        return f"SELECT {columns} FROM {self._table} {rest}"  # noqa: S608 - names are quoted, values are parameters

    async def _rows(self, operation: str, statement: str, parameters: Sequence[object]) -> Sequence[Row]:
        _, rows = await self._guard.read(operation, partial(self._pool.query, statement, parameters))
        return rows

    def _user_id(self, stored: bytes | None) -> UserId | None:
        return self._ids.accepted(text_of(stored, self._encoding))

    def _user(self, user_id: UserId, row: Row) -> User:
        _, name, role = row
        number = int(role) if role is not None and len(role) <= MOST_DIGITS and _role.fullmatch(role) else 0
        return User(
            user_id=user_id,
            username=clean_name((name or b"")[:MOST_NAME_BYTES].decode(self._encoding, "replace")),
            role=number if is_whole(number, MIN_ROLE, MAX_ROLE) else 0,
        )


def _quoted(name: str) -> str:
    """As an identifier, in a statement with parameters."""
    return "`" + name.replace("`", "``").replace("%", "%%") + "`"


def _marks(values: Sequence[object]) -> str:
    return ", ".join(["%s"] * len(values))


def _is_whole_number(column: Any) -> bool:
    _, kind, _, _, _, scale, _ = column
    return kind in _ID_TYPES or (kind == FIELD_TYPE.NEWDECIMAL and scale == 0)


@asynccontextmanager
async def open_directory(
    config: Config, observe: Observe, *, rows_at_once: int = ROWS_AT_ONCE
) -> AsyncIterator[MysqlDirectory]:
    """Connects when first asked, and asks for `rows_at_once`. Raises StartError for a URL that cannot be used."""
    address = parse_url(config.directory.url)
    query = config.directory.groups_query.strip()
    pool = Pool(address, is_read_only=bool(query))
    # A guard of their own: a query that takes too long is no reason not to ask for users.
    groups = MysqlGroups(query, pool, address, Guard(STORE, observe, translate), rows_at_once, config.directory.ids)
    guard = Guard(STORE, observe, translate)
    try:
        yield MysqlDirectory(pool, config.directory, address, guard, groups, rows_at_once=rows_at_once)
    finally:
        await pool.close()
