"""Groups from the lines of a CSV file with the header group,user_id[,title]. Pure, and read as it is asked for.

Other columns are ignored. The first bad line is a ConfigError that names the file, the line, the field, what was found
and what was expected.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence

from pushd.config.checks import quote
from pushd.errors import ConfigError
from pushd.model import Membership, UserId
from pushd.user_ids import INTEGERS, UserIds
from pushd.values import GROUP_NAME_IN_WORDS, MAX_NAME_CHARS, is_group_name, is_plain

FIELDS = ("group", "user_id")
TITLE = "title"


def parse_groups(lines: Iterable[str], *, source: str, ids: UserIds = INTEGERS) -> Iterator[Membership]:
    """What the lines of the file `source` say, in their order."""
    reader = csv.reader(lines, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        group, user_id, title = _columns(header, source)
        for cells in reader:
            if cells:
                where = f"{source}: line {reader.line_num}"
                _check_width(cells, header, where)
                yield Membership(
                    reader.line_num,
                    _name(cells[group], where),
                    _user_id(cells[user_id], where, ids),
                    "" if title is None else _title(cells[title], where),
                )
    except csv.Error as error:
        raise ConfigError(f"{source}: line {reader.line_num}: not valid CSV: {error}") from None


def _columns(header: Sequence[str], source: str) -> tuple[int, int, int | None]:
    for field in (*FIELDS, TITLE):
        if header.count(field) != 1 and (field != TITLE or TITLE in header):
            found = quote(",".join(header))
            raise ConfigError(f"{source}: line 1: {field}: found the header {found}, expected group,user_id[,title]")
    group, user_id = map(header.index, FIELDS)
    return group, user_id, header.index(TITLE) if TITLE in header else None


def _check_width(cells: Sequence[str], header: Sequence[str], where: str) -> None:
    if len(cells) != len(header):
        field = header[len(cells)] if len(cells) < len(header) else header[-1]
        raise ConfigError(f"{where}: {field}: found {len(cells)} fields, expected {len(header)}")


def _name(cell: str, where: str) -> str:
    if not is_group_name(cell):
        raise ConfigError(f"{where}: group: found {quote(cell)}, expected {GROUP_NAME_IN_WORDS}")
    return cell


def _user_id(cell: str, where: str, ids: UserIds) -> UserId | None:
    if not cell or cell.isspace():
        return None
    user_id = ids.accepted(cell.strip())
    if user_id is None:
        expected = f"{ids.expected}, or nothing for a group without users"
        raise ConfigError(f"{where}: user_id: found {quote(cell)}, expected {expected}")
    return user_id


def _title(cell: str, where: str) -> str:
    if len(cell) > MAX_NAME_CHARS or not is_plain(cell):
        expected = f"a text of at most {MAX_NAME_CHARS} characters, without control characters"
        raise ConfigError(f"{where}: title: found {quote(cell)}, expected {expected}")
    return cell
