"""The statements that list and count receive records.

Four things make a page cheap, however many records there are. The index `receive_records_user` answers every filter of
one user or of the users with a certain name by itself. `receive_counts` and `receive_totals` say how many records a
notice or a user has in each state, so that counts add up a few rows of either. The rows of the former are, in their
order, stretches of the index `receive_records_state`, so that a page of a filtered list is sought, not walked to.
And where a page is walked to, it is in the order of an index, ties included: an entry is passed in tens of
nanoseconds, and sorting, be it only what is equal so far, takes ten times as long. So what is walked is ordered by the
first column of its index alone, and what is sorted instead, by all of them: both ways lead to the same page.

A name is compared as SQLite's lower() has it: ASCII letters match in either case, other letters only as they are
written. Folding them would take a function in Python, which would hold the GIL for every row.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from pushd.queries import ReceiptFilter, ReceiptSort, Slice
from pushd.stores.sqlite.members import Members
from pushd.stores.sqlite.schema import COUNTED, STATE
from pushd.stores.sqlite.statements import Parameter

# Most rows that are sorted to answer one page where an index in the order of the page exists.
SORTED_ROWS = 5_000

# An index is walked to a page's end, rather than what matches sorted, if that passes no more than so many entries for
# each record of the users with the name, as all of them are looked at to sort, and so many for each that matches.
WALKED_PER_OWNED = 1.3
WALKED_PER_SORTED = 11

# Pages further back are looked for from the other end of the list if that is nearer.
FAR_ROWS = 1_000

# Up to so many rows of receive_counts are added up to seek a page; where more match, notices are small and the
# records themselves are walked: the page will be full soon.
SOUGHT_RUNS = 5_000

_EQUAL = ("message_id", "user_id", *STATE)
_TRUTH = "iif({}, json('true'), json('false'))"
_FLAGS = ("is_online", "is_received", "is_read", "is_confirmed")

# ReceiptSort by a time that a record need not have, and the flag that says whether it has.
TIMES = {
    ReceiptSort.RECEIVED_AT: "is_received",
    ReceiptSort.READ_AT: "is_read",
    ReceiptSort.CONFIRMED_AT: "is_confirmed",
}

_PLAIN = (
    "message_id",
    "user_id",
    "username",
    "user_role",
    "device_type",
    "platform",
    "browser",
    "client_ip",
    "user_agent",
    "connection_id",
    "push_channel",
    "delivery_status",
    "retry_count",
    "error_message",
)
_FIELDS = (
    *(f"'{name}', receipt.{name}" for name in _PLAIN),
    *(f"'{name}', {_TRUTH.format('receipt.' + name)}" for name in _FLAGS),
    *(f"'{name}_ms', ifnull(receipt.{name}_at, 0)" for name in ("received", "read", "confirmed", "created", "updated")),
)
_ROWS = f"SELECT CAST(json_group_array(json_object({', '.join(_FIELDS)})) AS BLOB)"
_PAGE = _ROWS + " FROM ({}) AS page CROSS JOIN admin_user_receive_records AS receipt ON receipt.rowid = page.id"

# Nearly always one moment.
_TIMES_OF_NOTICE = """
receipt.created_at BETWEEN (SELECT min(created_at) FROM receive_counts WHERE message_id = :message_id)
                       AND (SELECT max(created_at) FROM receive_counts WHERE message_id = :message_id)
"""

_TABLE = "admin_user_receive_records AS receipt"
_BY_USER = f"{_TABLE} INDEXED BY receive_records_user"
_ALIKE = " AND ".join(f"receipt.{name} = run.{name}" for name in COUNTED)
_IN_RUN = f"{_TABLE} INDEXED BY receive_records_state ON {_ALIKE}"
_NAMED = "receipt.user_id = name.user_id AND receipt.username = name.username"
_BY_NAME = f"receive_names AS name CROSS JOIN {_BY_USER} ON {_NAMED}"
_IN_ORDER_OF_NAMES = f"receive_names AS name INDEXED BY receive_names_username CROSS JOIN {_BY_USER} ON {_NAMED}"
_TOTALS_BY_NAME = """
receive_names AS name
CROSS JOIN receive_totals AS counts ON counts.user_id = name.user_id AND counts.username = name.username
"""
_SUMS = ", ".join(("sum(total) AS total", *(f"sum(total * {flag}) AS {flag}" for flag in _FLAGS)))
# Half of what sum() costs.
_COUNTED = ("count(*)", *(f"count(*) FILTER (WHERE receipt.{flag})" for flag in _FLAGS))
_COUNTS = ", ".join(_COUNTED)
_LESS = ", ".join(f"-{count}" for count in _COUNTED)
_BY_NAME_IN_NOTICE = f"receive_names AS name CROSS JOIN {_TABLE} ON {_NAMED}"

# Correlated: each user's own index entries, and of them only so many.
NEWEST = f"""
{_ROWS}
  FROM json_each(CAST(:user_ids AS TEXT)) AS wanted
 CROSS JOIN {_TABLE} ON receipt.rowid IN (
   SELECT mine.rowid FROM admin_user_receive_records AS mine INDEXED BY receive_records_user
    WHERE mine.user_id = wanted.value
    ORDER BY mine.created_at DESC, mine.message_id DESC
    LIMIT :limit
 )
"""  # noqa: S608 - constants only

# With max(), SQLite takes the username from the row that has it: https://sqlite.org/lang_select.html#bareagg
USER_RECEIPTS = """
SELECT CAST(json_group_array(json_array(user_id, username, total, received, read, confirmed)) AS BLOB)
  FROM (SELECT user_id, username, max(created_at), count(*) AS total, sum(is_received) AS received,
               sum(is_read) AS read, sum(is_confirmed) AS confirmed
          FROM admin_user_receive_records {}
         WHERE created_at >= :since_ms AND created_at < :before_ms
         GROUP BY user_id
         ORDER BY total DESC, user_id
         LIMIT :limit)
"""
ALL_USER_RECEIPTS = USER_RECEIPTS.format("INDEXED BY receive_records_user")
SOME_USER_RECEIPTS = USER_RECEIPTS.format("INDEXED BY receive_records_created")

# Records in a time range, and altogether.
IN_RANGE = """
SELECT (SELECT sum(total) FROM receive_counts WHERE created_at >= :since_ms AND created_at < :before_ms),
       (SELECT sum(total) FROM receive_counts)
"""

USER_SUMMARY = """
SELECT (SELECT sum(total) FROM receive_totals
         WHERE user_id = :user_id AND is_read = 0 AND delivery_status <> 'expired'),
       count(*), max(created_at)
  FROM admin_user_receive_records INDEXED BY receive_records_user
 WHERE user_id = :user_id
"""

DROP_RECEIPTS = """
DELETE FROM admin_user_receive_records
 WHERE rowid IN (SELECT rowid FROM admin_user_receive_records WHERE message_id = :message_id LIMIT :limit)
"""


# Whether some name has not this part: mostly the first one that is looked at.
IS_SELECTIVE = "SELECT EXISTS (SELECT 1 FROM receive_names WHERE instr(folded, lower(:username)) = 0)"


class Query(NamedTuple):
    """A statement with its parameters."""

    statement: str
    parameters: dict[str, Parameter]


def is_narrow(where: ReceiptFilter) -> bool:
    """True when what matches belongs to one user, or to the users with a certain name."""
    return where.user_id is not None or where.username is not None


def has_state(where: ReceiptFilter) -> bool:
    """True when the filter asks for more than whose records of which notices and times."""
    return any(getattr(where, name) is not None for name in STATE)


def is_by_name(where: ReceiptFilter) -> bool:
    """True when only a name says whose records of which notices are wanted."""
    return where.username is not None and where.user_id is None and where.message_id is None


def has_range(where: ReceiptFilter) -> bool:
    """True when the filter asks for a time."""
    return where.since_ms is not None or where.before_ms is not None


def stats(where: ReceiptFilter) -> Query:
    """Selects the numbers of a ReceiptStats."""
    if is_by_name(where) and not has_range(where):
        conditions = _conditions(where, table="counts", users="name")
        return Query(f"SELECT {_SUMS} FROM {_TOTALS_BY_NAME} {conditions}", _parameters(where))  # noqa: S608 - constants only
    if is_narrow(where):
        source = _source(where)
        conditions = _conditions(where, users=_users(source))
        return Query(f"SELECT {_COUNTS} FROM {source} {conditions}", _parameters(where))  # noqa: S608 - constants only
    return Query(f"SELECT {_SUMS} FROM {_counts(where)}", _parameters(where))  # noqa: S608 - constants only


def stats_less(where: ReceiptFilter) -> Query:
    """The same as `stats` selects by a name and a time, from all records of the name less those of other times."""
    always = msgspec.structs.replace(where, since_ms=None, before_ms=None)
    conditions = _conditions(always, table="counts", users="name")
    parts = [f"SELECT {_SUMS} FROM {_TOTALS_BY_NAME} {conditions}"]  # noqa: S608 - constants only
    for bound, other in (("since_ms", "<"), ("before_ms", ">=")):
        if getattr(where, bound) is not None:
            outside = _conditions(always, f"receipt.created_at {other} :{bound}", users="name")
            parts.append(f"SELECT {_LESS} FROM {_BY_NAME} {outside}")  # noqa: S608 - constants only
    sums = ", ".join(f"sum({name})" for name in ("total", *_FLAGS))
    return Query(f"SELECT {sums} FROM ({' UNION ALL '.join(parts)})", _parameters(where))  # noqa: S608 - constants only


def runs(where: ReceiptFilter) -> Query:
    """Selects how many rows of receive_counts match, SOUGHT_RUNS + 1 at most."""
    counted = f"SELECT 1 FROM {_counts(where)} LIMIT {SOUGHT_RUNS + 1}"  # noqa: S608 - constants only
    return Query(f"SELECT count(*) FROM ({counted})", _parameters(where))  # noqa: S608 - constants only


def passed(where: ReceiptFilter, sort: ReceiptSort) -> Query:
    """Selects how many entries the index has that `walked` or `by_time` walks."""
    if sort in TIMES:
        return Query(f"SELECT sum(total) FROM receive_counts WHERE {TIMES[sort]}", {})  # noqa: S608 - constants only
    return in_range(where)


def in_range(where: ReceiptFilter) -> Query:
    """Selects how many records there are in the range of `where`, and how many altogether."""
    between = ReceiptFilter(since_ms=where.since_ms, before_ms=where.before_ms)
    inside = f"SELECT sum(total) FROM {_counts(between)}"  # noqa: S608 - constants only
    statement = f"SELECT ({inside}), (SELECT sum(total) FROM receive_counts)"  # noqa: S608 - constants only
    return Query(statement, _parameters(between))


def walked(where: ReceiptFilter, part: Slice, members: Members | None = None) -> Query:
    """A page by created_at, of `members` only. Costs the entries of the time range up to the end of the page."""
    index = "state" if has_state(where) else "created"
    more = () if where.message_id is None else (_TIMES_OF_NOTICE,)
    source = f"{_TABLE} INDEXED BY receive_records_{index}"
    return _page(where, part, source, _order(("created_at",), part), *more, members=members)


def sought(where: ReceiptFilter, part: Slice) -> Query:
    """The same page as `walked` gives with a filter by state. Costs the rows of receive_counts that match."""
    inner = f"""
    WITH placed AS (
      SELECT *, sum(total) OVER (ORDER BY {_order(COUNTED, part, "counts")} ROWS UNBOUNDED PRECEDING) - total AS skipped
        FROM {_counts(where)}
    ),
    run AS MATERIALIZED (
      SELECT * FROM placed WHERE skipped < :offset + :limit AND skipped + total > :offset
    )
    SELECT receipt.rowid AS id
      FROM run
     CROSS JOIN {_IN_RUN}
     ORDER BY {_order((*COUNTED, "user_id"), part)}
     LIMIT :limit OFFSET :offset - ifnull((SELECT min(skipped) FROM run), 0)
    """  # noqa: S608 - constants only
    return Query(_PAGE.format(inner), _parameters(where) | _limits(part))


def by_user(where: ReceiptFilter, sort: ReceiptSort, part: Slice) -> Query:
    """A page of all users' records by user_id or username. Costs the entries of the users up to the page's end."""
    if sort is ReceiptSort.USER_ID and where.username is None:
        return _page(where, part, _BY_USER, _order(("user_id",), part))
    # What makes a row of receive_names unique, or SQLite would sort the records of each.
    names = ("username", "user_id", "folded") if sort is ReceiptSort.USERNAME else ("user_id", "username")
    source = _IN_ORDER_OF_NAMES if sort is ReceiptSort.USERNAME else _BY_NAME
    return _page(where, part, source, f"{_order(names, part, 'name')}, {_newest(part)}")


def by_time(where: ReceiptFilter, sort: ReceiptSort, part: Slice, members: Members | None = None) -> Query:
    """A page of the records, of `members` only, that have the time `sort` names. Costs the entries up to its end."""
    index = f"{_TABLE} INDEXED BY receive_records_{sort.value.removesuffix('_at')}"
    timed = f"receipt.{sort.value} IS NOT NULL"
    return _page(where, part, index, _order((sort.value,), part), timed, members=members)


def untimed(where: ReceiptFilter, part: Slice) -> Query:
    """A page of the records, of users with a certain name, without a time, which `where` says by its flag."""
    return by_user(where, ReceiptSort.USER_ID, part)


def sorted_all(where: ReceiptFilter, sort: ReceiptSort, part: Slice) -> Query:
    """A page found by sorting all that match, in the order of `walked`, `by_user` and `by_time`."""
    source = _source(where)
    if where.message_id is None and not is_narrow(where):
        source = f"(SELECT * FROM {_counts(where)}) AS run CROSS JOIN {_IN_RUN}"  # noqa: S608 - constants only
    return _page(where, part, source, _keys(where, sort, part))


def _keys(where: ReceiptFilter, sort: ReceiptSort, part: Slice) -> str:
    """All columns of the index that is walked for this sort; each user's newest come first when ascending."""
    if sort is ReceiptSort.CREATED_AT:
        return _order((*COUNTED, "user_id") if has_state(where) else ("created_at", "message_id", "user_id"), part)
    if sort in TIMES:
        return _order((sort.value, "user_id", "created_at", *STATE, "rowid"), part)
    by, then = (("username", "user_id"), ()) if sort is ReceiptSort.USERNAME else (("user_id",), ("username",))
    return f"{_order(by, part)}, {_newest(part)}, {_order((*then, *STATE, 'rowid'), part)}"


def _newest(part: Slice) -> str:
    return f"receipt.created_at {_direction(part, is_reversed=True)}"


def _page(
    where: ReceiptFilter, part: Slice, source: str, order: str, *more: str, members: Members | None = None
) -> Query:
    if members is not None:  # instead of the name
        where = msgspec.structs.replace(where, username=None)
    whose, known = (members.conditions, members.parameters) if members else ((), {})
    is_last = members is not None and members.is_asked_last
    first, last = ((), whose) if is_last else (whose, ())
    conditions = _conditions(where, *more, *last, users=_users(source), first=first)
    inner = f"""
    SELECT receipt.rowid AS id FROM {source} {conditions} ORDER BY {order} LIMIT :limit OFFSET :offset
    """  # noqa: S608 - constants only
    return Query(_PAGE.format(inner), _parameters(where) | known | _limits(part))


def _source(where: ReceiptFilter) -> str:
    """Where to look for the records of a filter that names a notice, a user or a part of a name."""
    if where.username is not None and where.user_id is None:
        return _BY_NAME if where.message_id is None else _BY_NAME_IN_NOTICE
    return _TABLE if where.message_id is not None else _BY_USER


def _counts(where: ReceiptFilter) -> str:
    """The rows of receive_counts that match, as a FROM with its WHERE."""
    return f"receive_counts AS counts {_conditions(where, table='counts')}"


def _users(source: str) -> str:
    """The table that names the users in `source`."""
    return "name" if source.startswith("receive_names") else "receipt"


def _conditions(
    where: ReceiptFilter, *more: str, table: str = "receipt", users: str = "receipt", first: tuple[str, ...] = ()
) -> str:
    conditions = [f"{table}.{name} = :{name}" for name in _EQUAL if getattr(where, name) is not None]
    if where.username is not None:
        conditions += _name_conditions(users)
    if where.since_ms is not None:
        conditions.append(f"{table}.created_at >= :since_ms")
    if where.before_ms is not None:
        conditions.append(f"{table}.created_at < :before_ms")
    return " AND ".join(["WHERE true", *first, *conditions, *more])


def _name_conditions(users: str) -> list[str]:
    folded = "name.folded" if users == "name" else "lower(receipt.username)"
    return [f"instr({folded}, lower(:username)) > 0"]


def _parameters(where: ReceiptFilter) -> dict[str, Parameter]:
    given: dict[str, Parameter] = msgspec.structs.asdict(where)
    return {name: value for name, value in given.items() if value is not None}


def _limits(part: Slice) -> dict[str, Parameter]:
    return {"limit": part.limit, "offset": part.offset}


def _order(keys: tuple[str, ...], part: Slice, table: str = "receipt") -> str:
    return ", ".join(f"{table}.{key} {_direction(part)}" for key in keys)


def _direction(part: Slice, *, is_reversed: bool = False) -> str:
    return "DESC" if part.is_descending is not is_reversed else "ASC"
