"""Users from a file's text: CSV with the header id,username,user_type, or a JSON list of objects of these keys.

Pure. Other columns and keys are ignored. The first bad row is a ConfigError that names the file, the
line (CSV) or item (JSON, counted from 1), the field, what was found and what was expected.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pushd.config.checks import quote
from pushd.errors import ConfigError
from pushd.model import User, UserId
from pushd.user_ids import INTEGERS, UserIds
from pushd.values import MAX_NAME_CHARS, MAX_ROLE, MIN_ROLE, is_plain, is_whole

FIELDS = ("id", "username", "user_type")


def parse_users(text: str, *, source: str, ids: UserIds = INTEGERS) -> list[User]:
    """The users in `text`, in its order; `source` is the file's name and its ending says which format it has."""
    ending = source.lower().rpartition(".")[2]
    if ending not in ("csv", "json"):
        raise ConfigError(f"{source}: found a name that ends in neither, expected FILE.csv or FILE.json")
    rows = _csv_rows(text, source) if ending == "csv" else _json_rows(text, source)
    users: dict[UserId, User] = {}
    places: dict[UserId, str] = {}
    for place, row in rows:
        user = _user(row, f"{source}: {place}", ids)
        if user.user_id in users:
            first = places[user.user_id]
            raise ConfigError(f"{source}: {place}: id: found {user.user_id} again, expected it only once ({first})")
        users[user.user_id], places[user.user_id] = user, place
    return list(users.values())


def _csv_rows(text: str, source: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        _check_header(header, source)
        for cells in reader:
            if cells:
                place = f"line {reader.line_num}"
                _check_width(cells, header, f"{source}: {place}")
                yield place, _typed(dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise ConfigError(f"{source}: line {reader.line_num}: not valid CSV: {error}") from None


def _check_header(header: list[str], source: str) -> None:
    for field in FIELDS:
        if header.count(field) != 1:
            found = quote(",".join(header))
            raise ConfigError(f"{source}: line 1: {field}: found the header {found}, expected {','.join(FIELDS)}")


def _check_width(cells: list[str], header: list[str], where: str) -> None:
    if len(cells) != len(header):
        field = header[len(cells)] if len(cells) < len(header) else header[-1]
        raise ConfigError(f"{where}: {field}: found {len(cells)} fields, expected {len(header)}")


def _typed(row: dict[str, Any]) -> dict[str, Any]:
    """The row with its role as a whole number; what is none stays text, and is refused later."""
    if re.fullmatch(r"\s*-?[0-9]{1,20}\s*", row["user_type"], re.ASCII):
        row["user_type"] = int(row["user_type"])
    return row | {"id": row["id"].strip()}


def _json_rows(text: str, source: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    items = _json_list(text, source)
    for number, item in enumerate(items, start=1):
        if not isinstance(item, dict):
            raise ConfigError(f"{source}: item {number}: found {_json(item)}, expected an object with {_listed()}")
        yield f"item {number}", item


def _json_list(text: str, source: str) -> list[Any]:
    try:
        items = json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}: column {error.colno}"
        raise ConfigError(f"{source}: {where}: not valid JSON: {error.msg}") from None
    except (ValueError, RecursionError):
        raise ConfigError(f"{source}: not valid JSON: a number is too long or lists are nested too deep") from None
    if not isinstance(items, list):
        raise ConfigError(f"{source}: line 1: found {_json(items)}, expected a list of objects with {_listed()}")
    return items


def _user(row: Mapping[str, Any], where: str, ids: UserIds) -> User:
    return User(
        user_id=_user_id(row, where, ids),
        username=_name(row, where),
        role=_whole(row, "user_type", MIN_ROLE, MAX_ROLE, where),
    )


def _user_id(row: Mapping[str, Any], where: str, ids: UserIds) -> UserId:
    user_id = ids.accepted(row.get("id"))
    if user_id is None:
        raise ConfigError(f"{where}: id: {_found(row, 'id')}, expected {ids.expected}")
    return user_id


def _whole(row: Mapping[str, Any], field: str, least: int, most: int, where: str) -> int:
    value = row.get(field)
    if not is_whole(value, least, most):
        raise ConfigError(f"{where}: {field}: {_found(row, field)}, expected a whole number from {least} to {most}")
    return value


def _name(row: Mapping[str, Any], where: str) -> str:
    value = row.get("username")
    if not isinstance(value, str) or len(value) > MAX_NAME_CHARS or not is_plain(value):
        expected = f"a text of at most {MAX_NAME_CHARS} characters, without control characters"
        raise ConfigError(f"{where}: username: {_found(row, 'username')}, expected {expected}")
    return value


def _found(row: Mapping[str, Any], field: str) -> str:
    return f"found {_json(row[field])}" if field in row else "found none"


def _json(value: Any) -> str:
    """A value in one short line; nested ones by their kind only."""
    match value:
        case dict():
            return "an object"
        case list():
            return "a list"
        case None:
            return "null"
        case _:
            return quote(value)


def _listed() -> str:
    return ", ".join(FIELDS)
