"""Groups from a query of the operator's own."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

from pymysql.charset import charset_by_name  # type: ignore[import-untyped]
from pymysql.constants import FIELD_TYPE  # type: ignore[import-untyped]

from pushd.errors import StartError, StoreError
from pushd.model import Group, UserId
from pushd.stores.guard import Guard
from pushd.stores.mysql.address import Address
from pushd.stores.mysql.failures import STORE, groups_misconfiguration, is_of_another_charset
from pushd.stores.mysql.pool import Pool, Row
from pushd.stores.mysql.text_ids import text_ids
from pushd.user_ids import GUEST, ID_LETTERS, INTEGERS, MAX_ID_CHARS, STRINGS, UserIds
from pushd.values import MAX_USER_ID, clean_name

_WHOLE = {FIELD_TYPE.TINY, FIELD_TYPE.SHORT, FIELD_TYPE.INT24, FIELD_TYPE.LONG, FIELD_TYPE.LONGLONG}
_TEXT = {
    FIELD_TYPE.VARCHAR, FIELD_TYPE.VAR_STRING, FIELD_TYPE.STRING, FIELD_TYPE.ENUM, FIELD_TYPE.SET,
    FIELD_TYPE.TINY_BLOB, FIELD_TYPE.MEDIUM_BLOB, FIELD_TYPE.LONG_BLOB, FIELD_TYPE.BLOB,
}  # fmt: skip

# Equal byte for byte, whatever the collation says.
_BYTES = "CAST(CONVERT({} USING utf8mb4) AS BINARY)"
_NAME = _BYTES.format("pushd_group.`group`")
_IS_GROUP = f"{_NAME} = {_BYTES.format('%s')}"
# The same where an index can find it: the column's character set has the name.
_IS_INDEXED_GROUP = f"pushd_group.`group` = %s AND {_IS_GROUP}"

_TEXT_ID = "CONVERT(pushd_group.`user_id` USING utf8mb4) COLLATE utf8mb4_bin"
_IS_TEXT_ID = f"{_TEXT_ID} REGEXP '^[{ID_LETTERS}]{{1,{MAX_ID_CHARS}}}$' AND {_TEXT_ID} NOT LIKE '{GUEST}%%'"


class MysqlGroups:
    """The part of ports.Directory that is about groups, on `directory.groups_query`; without one there are none.

    The query is a derived table of what is asked, so it can only be one that reads. Lists come in pages by id, group by
    group, and are not of one moment: with an index by group and user each page costs what it has rows.
    """

    def __init__(
        self, query: str, pool: Pool, address: Address, guard: Guard, rows_at_once: int, ids: UserIds = INTEGERS
    ) -> None:
        # A "%" is one of a pattern: there are no placeholders. A comment at the end ends with the line.
        self._table = f"(\n{query.replace('%', '%%')}\n) AS pushd_group"
        self._is_there = bool(query)
        self._ids = ids
        self._pool = pool
        self._guard = guard
        self._encoding = charset_by_name(address.charset).encoding
        self._rows_at_once = rows_at_once

    async def ids_by_group(self, groups: Collection[str]) -> list[UserId]:
        """Ids of users in one of these groups, each once. One query for each group and ROWS_AT_ONCE."""
        found: dict[UserId, None] = {}
        for group in groups if self._is_there else ():
            if self._is_known_there(group):
                try:
                    await self._add_ids(_IS_INDEXED_GROUP, (group, group), found)
                except StoreError as error:
                    if not is_of_another_charset(error.__cause__):
                        raise
                    await self._add_ids(_IS_GROUP, (group,), found)
        return list(found)

    async def groups(self, limit: int) -> list[Group]:
        """The groups there are, by name; the first `limit`. MySQL reads all the query has."""
        if not self._is_there:
            return []
        has_title = "title" in await self._columns("groups")
        title = _BYTES.format("MAX(pushd_group.`title`)") if has_title else "''"
        user_id, condition = "pushd_group.`user_id`", f"pushd_group.`user_id` BETWEEN 1 AND {MAX_USER_ID}"
        if self._ids is STRINGS:
            user_id, condition = _BYTES.format(user_id), _IS_TEXT_ID
        statement = (
            f"SELECT {_NAME} AS name, {title}, COUNT(DISTINCT {user_id}) FROM {self._table} "  # noqa: S608
            f"WHERE pushd_group.`group` IS NOT NULL AND {condition} "
            "GROUP BY name ORDER BY name LIMIT %s"
        )
        _, rows = await self._query("groups", statement, (limit,))
        return [
            Group(
                name=(name or b"").decode(errors="replace"),
                title=clean_name((title or b"").decode(errors="replace")),
                users=int(users or 0),
            )
            for name, title, users in rows
        ]

    async def check(self) -> None:
        """Return when the query can be used; raises StartError when it never can."""
        if not self._is_there:
            return
        try:
            columns = await self._columns("check", is_probe=True)
        except StoreError as error:
            misconfigured = groups_misconfiguration(error.__cause__)
            if misconfigured is None:
                raise
            raise misconfigured from error
        kinds = ("group", _TEXT | _WHOLE, "a text or whole numbers"), ("user_id", *self._id_types())
        for name, kind, expected in kinds:
            if name not in columns:
                found = ", ".join(columns)
                raise StartError(f"directory.groups_query: found the columns {found}, expected group, user_id[, title]")
            if columns[name] not in kind:
                raise StartError(f"directory.groups_query: {name} is not of a type for {expected}")

    def _id_types(self) -> tuple[set[int], str]:
        return (_TEXT | _WHOLE, "texts") if self._ids is STRINGS else (_WHOLE, "whole numbers")

    def _is_known_there(self, group: str) -> bool:
        """Whether the connection's character set has it: MySQL cannot be asked for what it has not."""
        try:
            return bool(group.encode(self._encoding))
        except UnicodeEncodeError:
            return False

    async def _add_ids(self, condition: str, names: Sequence[str], found: dict[UserId, None]) -> None:
        if self._ids is STRINGS:
            found.update(dict.fromkeys(await self._texts(condition, names)))
        else:
            await self._add_numbers(condition, names, found)

    async def _texts(self, condition: str, names: Sequence[str]) -> list[UserId]:
        async def ask(last: str, limit: int) -> Sequence[Row]:
            statement = (
                f"SELECT pushd_group.`user_id` FROM {self._table} "  # noqa: S608 - values are parameters
                f"WHERE {condition} AND pushd_group.`user_id` >= %s ORDER BY pushd_group.`user_id` LIMIT {limit}"
            )
            return (await self._query("ids_by_group", statement, (*names, last)))[1]

        return await text_ids(ask, self._rows_at_once, self._encoding)

    async def _add_numbers(self, condition: str, names: Sequence[str], found: dict[UserId, None]) -> None:
        statement = (
            f"SELECT DISTINCT pushd_group.`user_id` FROM {self._table} "  # noqa: S608 - values are parameters
            f"WHERE {condition} AND pushd_group.`user_id` > %s "
            f"ORDER BY pushd_group.`user_id` LIMIT {self._rows_at_once}"
        )
        last = 0
        while last < MAX_USER_ID:
            columns, rows = await self._query("ids_by_group", statement, (*names, last))
            if columns[0][1] not in _WHOLE:
                raise StoreError(STORE, "directory.groups_query: user_id is not of a type for whole numbers")
            page = [int(row[0] or 0) for row in rows]
            if page and page[0] <= last:
                raise StoreError(STORE, "directory.groups_query: user_id does not ascend")  # else this would not end
            found.update(dict.fromkeys(user_id for user_id in page if user_id <= MAX_USER_ID))
            if len(page) < self._rows_at_once:
                return
            last = page[-1]

    async def _columns(self, operation: str, *, is_probe: bool = False) -> Mapping[str, int]:
        """The types of the query's columns, by name."""
        statement = f"SELECT * FROM {self._table} LIMIT 0"  # noqa: S608 - the operator's own
        work = partial(self._pool.query, statement, ())
        columns, _ = await self._guard.call(operation, work, is_probe=is_probe)
        return {column[0].lower(): column[1] for column in columns}

    async def _query(
        self, operation: str, statement: str, parameters: Sequence[object]
    ) -> tuple[Sequence[Any], Sequence[Row]]:
        return await self._guard.read(operation, partial(self._pool.query, statement, parameters))
