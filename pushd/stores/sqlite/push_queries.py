"""The statements that list and count push records.

How many received a notice comes from `receive_counts`, a few rows per notice. A keyword is compared as SQLite's
lower() has it: ASCII letters match in either case, other letters only as they are written. Folding them would take
a function in Python, which would hold the GIL for every row.
"""

from __future__ import annotations

import msgspec

from pushd.records import Part, PushFilter, PushSort
from pushd.stores.sqlite.engine.statements import JSON_VALUE, SUM, Parameter, Query

# A record may name 10,000 users and carry 64 KB of data: decoding so many takes the loop a few milliseconds at most.
DECODED_ROWS = 4

_INDEXES = {
    PushSort.PUSH_TIME: "time",
    PushSort.CREATED_AT: "created",
    PushSort.PRIORITY: "priority",
    PushSort.MESSAGE_TYPE: "type",
    PushSort.STATUS: "status",
    PushSort.TOTAL_COUNT: "total",
}
_EQUAL = ("message_type", "target", "status", "success", "sender_id")
_PLAIN = (
    "message_id",
    "content",
    "message_type",
    "target",
    "recipients_count",
    "status",
    "error",
    "sender_id",
    "sender_name",
    "priority",
    "total_count",
    "online_count",
)
_TIMES = {"push_ms": "push_time", "created_ms": "created_at", "updated_ms": "updated_at", "expires_ms": "expires_at"}
_FIELDS = (
    *(f"'{name}', {JSON_VALUE.format(name)}" for name in _PLAIN),
    *(f"'{name}', iif({name}, json('true'), json('false'))" for name in ("success", "need_confirm")),
    *(
        f"'{name}', iif(typeof({name}) = 'text' AND json_valid({name}), json({name}), {JSON_VALUE.format(name)})"
        for name in ("target_user_ids", "target_roles", "extra_data")
    ),
    *(f"'{name}', ifnull({JSON_VALUE.format(column)}, 0)" for name, column in _TIMES.items()),
    "'delivered_count', {delivered}, 'failed_count', {failed}",
)
_RECEIVED = "is_received = 1"
_FAILED = "is_received = 0 AND delivery_status = 'expired'"
_TOTAL = SUM.format("total")
_COUNT = f"(SELECT {_TOTAL} FROM receive_counts AS counted WHERE counted.message_id = {{}} AND {{}})"  # noqa: S608
_OBJECT = ", ".join(_FIELDS).format(
    delivered=_COUNT.format("push_records.message_id", _RECEIVED),
    failed=_COUNT.format("push_records.message_id", _FAILED),
)

_ROWS = f"SELECT CAST(json_group_array(json_object({_OBJECT})) AS BLOB)"
# :rowids in the order of the page. By what SQLite gives: not every message_id of others can be asked for.
ROWS = f"""
{_ROWS}
  FROM json_each(CAST(:rowids AS TEXT)) AS wanted
 CROSS JOIN push_records ON push_records.rowid = wanted.value
"""
ROW = f"{_ROWS} FROM push_records WHERE message_id = :message_id"

DROP_PUSH_RECORD = "DELETE FROM push_records WHERE message_id = :message_id"


def page(where: PushFilter, sort: PushSort, part: Part) -> Query:
    """Selects the rowids of a page as a JSON array."""
    direction = "DESC" if part.is_descending else "ASC"
    keys = dict.fromkeys((sort.value, "push_time", "message_id"))
    inner = f"""
    SELECT rowid FROM push_records {_index(where, sort)} {_conditions(where)}
     ORDER BY {", ".join(f"{key} {direction}" for key in keys)} LIMIT :limit OFFSET :offset
    """  # noqa: S608 - constants only
    statement = f"SELECT CAST(json_group_array(rowid) AS BLOB) FROM ({inner})"  # noqa: S608
    return Query(statement, _parameters(where) | {"limit": part.limit, "offset": part.offset})


def stats(where: PushFilter) -> Query:
    """Selects the numbers of a PushStats."""
    matching = f"""
    SELECT message_id, success, total_count FROM push_records {_index(where, PushSort.PUSH_TIME)} {_conditions(where)}
    """  # noqa: S608 - constants only
    statement = f"""
    SELECT count(*), count(*) FILTER (WHERE success), count(*) FILTER (WHERE NOT success), {SUM.format("total_count")},
           {SUM.format(_COUNT.format("matching.message_id", _RECEIVED))},
           {SUM.format(_COUNT.format("matching.message_id", _FAILED))}
      FROM ({matching}) AS matching
    """  # noqa: S608 - constants only
    return Query(statement, _parameters(where))


def _index(where: PushFilter, sort: PushSort) -> str:
    """The index in the order of the list, which may also be one that a filter's equality leads to."""
    if sort is PushSort.PUSH_TIME:
        for name, index in (("sender_id", "sender"), ("status", "status"), ("message_type", "type")):
            if getattr(where, name) is not None:
                return f"INDEXED BY push_records_{index}"
    return f"INDEXED BY push_records_{_INDEXES[sort]}"


def _conditions(where: PushFilter) -> str:
    conditions = [f"{name} = :{name}" for name in _EQUAL if getattr(where, name) is not None]
    if where.since_ms is not None:
        conditions.append("push_time >= :since_ms")
    if where.before_ms is not None:
        conditions.append("push_time < :before_ms")
    if where.keyword is not None:
        conditions.append("instr(lower(content), lower(:keyword)) > 0")
    return " AND ".join(["WHERE true", *conditions])


def _parameters(where: PushFilter) -> dict[str, Parameter]:
    given: dict[str, Parameter] = msgspec.structs.asdict(where)
    return {name: value for name, value in given.items() if value is not None}
