"""Push records of notices that are scheduled, or were cancelled: what lists say of the table `scheduled`, and where
they stand between the records of notices that have gone out.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec

from pushd.model import Notice
from pushd.records import PushFilter, PushRow, PushSort, RecordState
from pushd.stores.sqlite.push_rows import Counts, push_row, read_notice
from pushd.values import MAX_INT64, MIN_INT64

A = TypeVar("A")
B = TypeVar("B")
Key = tuple[Any, ...]

NOBODY: Counts = (0, 0, 0, 0, 0)
STATES = (RecordState.SCHEDULED, RecordState.CANCELLED)

_STATUS = "CASE WHEN cancelled_ms IS NULL THEN 'scheduled' ELSE 'cancelled' END"
_TEXT = "CAST(body AS TEXT)"


def _field(path: str, default: str) -> str:
    """A field of the notice, which is stored without what is usual."""
    return f"ifnull(CASE WHEN json_valid({_TEXT}) THEN json_extract({_TEXT}, '$.{path}') END, {default})"


_TYPE, _PRIORITY = _field("type", "'system_notice'"), _field("priority", "1")

BY_ID = """
SELECT CAST(message_id AS BLOB), due_ms, ifnull(cancelled_ms, 0), CAST(body AS BLOB) FROM scheduled WHERE message_id = ?
"""
_TAGS = f"json_each(CASE WHEN json_valid({_TEXT}) THEN {_TEXT} ELSE '{{}}' END, '$.tags')"

# What each sort goes by before the time, and what that is for the records of other notices as well.
_FIRST = {
    PushSort.PUSH_TIME: "",
    PushSort.CREATED_AT: "",
    PushSort.PRIORITY: _PRIORITY,
    PushSort.MESSAGE_TYPE: _TYPE,
    PushSort.STATUS: _STATUS,
    PushSort.TOTAL_COUNT: "0 * due_ms",  # a constant would be the number of a column
}


class ScheduledRow(NamedTuple):
    """A row of the table: by what it is sorted, and what it says."""

    key: Key
    message_id: bytes
    due_ms: int
    cancelled_ms: int
    body: bytes


class ScheduledRecords:
    """Those that match a filter, on a connection. Costs a look at each row, unless the filter is a time."""

    def __init__(self, where: PushFilter, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._values: dict[str, Any] = {}
        self._conditions = self._conditions_of(where)

    def _conditions_of(self, where: PushFilter) -> str | None:
        """None: nothing here can match."""
        if where.success is False or (where.state is not None and where.state not in STATES):
            return None
        asked = {
            _TYPE: where.message_type,
            _field("target.kind", "''"): where.target,
            _field("sender_id", "0"): where.sender_id,
            _STATUS: where.status,
            f"{_STATUS} ": None if where.state is None else where.state.value,
        }
        conditions = [f"{field} = {self._named(value)}" for field, value in asked.items() if value is not None]
        if where.since_ms is not None:
            conditions.append(f"due_ms >= {self._named(where.since_ms)}")
        if where.before_ms is not None:
            conditions.append(f"due_ms < {self._named(where.before_ms)}")
        if where.tag is not None:
            is_tag = f"value = {self._named(where.tag)}"
            conditions.append(f"EXISTS (SELECT 1 FROM {_TAGS} WHERE {is_tag})")  # noqa: S608 - names of parameters
        if where.keyword:
            content = _field("content", "''")
            conditions.append(f"instr(lower({content}), lower({self._named(where.keyword)})) > 0")
        return None if any(map(_is_nowhere, self._values.values())) else " AND ".join(conditions) or "true"

    def _named(self, value: Any) -> str:
        name = f"v{len(self._values)}"
        self._values[name] = max(MIN_INT64, min(value, MAX_INT64)) if isinstance(value, int) else value
        return f":{name}"

    def count(self) -> int:
        """How many there are."""
        if self._conditions is None:
            return 0
        statement = f"SELECT count(*) FROM scheduled WHERE {self._conditions}"  # noqa: S608 - names of parameters only
        count: int = self._connection.execute(statement, self._values).fetchone()[0]
        return count

    def page(self, sort: PushSort, offset: int, limit: int, is_descending: bool) -> list[ScheduledRow]:
        """A part of the sorted list; ties by time and message_id."""
        if self._conditions is None:
            return []
        direction = "DESC" if is_descending else "ASC"
        first = _FIRST[sort]
        by = [f"{column} {direction}" for column in (first, "due_ms", "message_id") if column]
        statement = (
            f"SELECT {first or 0}, CAST(message_id AS BLOB), due_ms, ifnull(cancelled_ms, 0), CAST(body AS BLOB)"  # noqa: S608
            f" FROM scheduled WHERE {self._conditions} ORDER BY {', '.join(by)} LIMIT :limit OFFSET :offset"
        )
        rows = self._connection.execute(statement, self._values | {"limit": limit, "offset": offset}).fetchall()
        return [
            ScheduledRow((rank, due_ms) if first else (due_ms,), message_id, due_ms, cancelled_ms, body)
            for rank, message_id, due_ms, cancelled_ms, body in rows
        ]


def _is_nowhere(value: Any) -> bool:
    """Half of a surrogate pair: no text that is stored has it."""
    return isinstance(value, str) and any("\ud800" <= sign <= "\udfff" for sign in value)


def merged(
    ours: Callable[[int, int], Sequence[A]],
    key: Callable[[A], Key],
    theirs: Callable[[int, int], Sequence[B]],
    their_key: Callable[[B], Key],
    *,
    theirs_total: int,
    offset: int,
    limit: int,
    is_descending: bool,
) -> list[A | B]:
    """A part of two sorted lists as if they were one; of what is equal ours come first, descending last.

    `ours` and `theirs` give what they have from an offset on, as many as a limit says. A part far from the beginning
    costs as many looks at both as `theirs_total`, or the offset, has binary digits.
    """

    def is_before(their: B, our: A) -> bool:
        mine, other = key(our), their_key(their)
        return other >= mine if is_descending else other < mine

    low, high = 0, min(offset, theirs_total)  # how many of theirs are before the part
    while low < high:
        middle = (low + high + 1) // 2
        their, our = theirs(middle - 1, 1), ours(offset - middle, 1)
        if their and (not our or is_before(their[0], our[0])):
            low = middle
        else:
            high = middle - 1
    rest, others = list(ours(offset - low, limit)), list(theirs(low, limit))
    part: list[A | B] = []
    while len(part) < limit and (rest or others):
        if others and (not rest or is_before(others[0], rest[0])):
            part.append(others.pop(0))
        else:
            part.append(rest.pop(0))
    return part


def scheduled_row(row: ScheduledRow) -> PushRow:
    """The push record of a row; of a damaged one what can be read of it. Costs microseconds, a millisecond with 10,000
    user_ids."""
    notice = read_notice(0, row.message_id.decode(errors="replace"), row.body, None)
    return row_of(notice, row.due_ms, row.cancelled_ms)


def row_of(notice: Notice, due_ms: int, cancelled_ms: int) -> PushRow:
    """The push record of a notice that has not gone out."""
    state = RecordState.CANCELLED if cancelled_ms else RecordState.SCHEDULED
    return msgspec.structs.replace(
        push_row(notice, 0, due_ms, NOBODY),
        status=state.value,
        state=state.value,
        send_at_ms=due_ms,
        updated_ms=max(notice.submitted_ms, cancelled_ms),
    )


def scheduled_under(message_id: str, connection: sqlite3.Connection) -> ScheduledRow | None:
    """The row with this id."""
    try:
        found = connection.execute(BY_ID, (message_id,)).fetchone()
    except UnicodeEncodeError:  # half of a surrogate pair: no id has it
        return None
    return None if found is None else ScheduledRow((), *found)
