"""The statements that list and count receive records.

Four things make a page cheap, however many records there are. The index `receive_records_user` answers every filter of
one user or of the users with a certain name by itself. `receive_counts` and `receive_totals` say how many records a
notice or a user has in each state, so that counts add up a few rows of either. The rows of the former are, in their
order, stretches of the index `receive_records_state`, so that a page of a filtered list is sought, not walked to.
And where a page is walked to, it is in the order of an index, ties included: an entry is passed in tens of
nanoseconds, and sorting, be it only what is equal so far, takes ten times as long. So what is walked is ordered by the
first column of its index alone, and what is sorted instead, by all of them: both ways lead to the same page.

How a page in the midst of a long list is not walked to from an end of it, is in receipt_pivots.

A name is compared as SQLite's lower() has it: ASCII letters match in either case, other letters only as they are
written. Folding them would take a function in Python, which would hold the GIL for every row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from pushd.queries import ReceiptFilter, ReceiptSort, Slice
from pushd.stores.sqlite.members import Members, Owners
from pushd.stores.sqlite.schema import COUNTED, STATE
from pushd.stores.sqlite.statements import Parameter, Query

# Most rows that are sorted to answer one page where an index in the order of the page exists.
SORTED_ROWS = 5_000

# What sorting costs in entries passed on a walk: for each record of the users with the name, as all of them are looked
# at, and for each that matches.
WALKED_PER_OWNED = 1.3
WALKED_PER_SORTED = 11

# What an entry costs on a walk that asks for the state first, which few have, beside one that asks for the user.
WALKED_ASKED_LAST = 0.6

# Pages further back are looked for from the other end of the list if that is nearer, or from a place in its midst.
FAR_ROWS = 1_000

# What it costs to add up what all times have of each user with a name, in entries counted.
TOTALS_PER_OWNER = 5

# Up to so many rows of receive_counts are added up to seek a page; where more match, notices are small and the
# records themselves are walked: the page will be full soon.
SOUGHT_RUNS = 5_000

# As a bound of an index, which costs less than asking every entry whether it is NULL.
EARLIEST_MS = -(1 << 63)

# The order of users in lists by them: what makes a row of receive_names unique, or SQLite would sort their records.
NAME_KEYS = {
    ReceiptSort.USERNAME: ("username", "user_id", "folded"),
    ReceiptSort.USER_ID: ("user_id", "username"),
}

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
NAMES_IN_ORDER = "receive_names AS name INDEXED BY receive_names_username"
_IN_ORDER_OF_NAMES = f"{NAMES_IN_ORDER} CROSS JOIN {_BY_USER} ON {_NAMED}"
# "+": or what a name is compared with would bound each user's totals instead of the users.
THEIR_TOTALS = (
    "CROSS JOIN receive_totals AS counts ON counts.user_id = +name.user_id AND counts.username = +name.username"
)
BY_OWNER = f"json_each(CAST(:{{}} AS TEXT)) AS owner CROSS JOIN {_BY_USER} ON receipt.user_id = owner.value"
_TOTALS_BY_OWNER = """
json_each(CAST(:owners AS TEXT)) AS owner CROSS JOIN receive_totals AS receipt ON receipt.user_id = owner.value
"""
_SUMS = ", ".join(("sum(total) AS total", *(f"sum(total * {flag}) AS {flag}" for flag in _FLAGS)))
# Half of what sum() costs.
_COUNTS = ", ".join(("count(*)", *(f"count(*) FILTER (WHERE receipt.{flag})" for flag in _FLAGS)))
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


class Side(NamedTuple):
    """A part of a list by users: those who compare like this with one of them."""

    comparison: str
    username: bytes
    user_id: int


class TimeSide(NamedTuple):
    """A part of a list by a time: what compares like this, ">=" or "<", with one of them."""

    comparison: str
    at_ms: int


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
    if is_narrow(where):
        source = _source(where)
        conditions = clause_of(where, users=_users(source))
        return Query(f"SELECT {_COUNTS} FROM {source} {conditions}", parameters_of(where))  # noqa: S608 - constants only
    return Query(f"SELECT {_SUMS} FROM {_counts(where)}", parameters_of(where))  # noqa: S608 - constants only


def stats_always(where: ReceiptFilter, owners: Owners) -> Query:
    """The same as `stats` selects by a name but no time. Costs the rows of receive_totals of its users."""
    conditions = clause_of(unnamed(where), first=owners.conditions)
    statement = f"SELECT {_SUMS} FROM {_TOTALS_BY_OWNER} {conditions}"  # noqa: S608 - constants only
    return Query(statement, parameters_of(unnamed(where)) | owners.parameters)


def stats_within(
    where: ReceiptFilter, owners: Owners, common: Sequence[bool], received: TimeSide | None = None
) -> Query:
    """The same by a name and a time, and how many were received on a side of a moment if that is given.

    `common` says which of the flags most records have.
    """
    conditions = clause_of(unnamed(where), first=owners.conditions)
    more = [] if received is None else [f"count(*) FILTER (WHERE {on_side(ReceiptSort.RECEIVED_AT, received)})"]
    counts = ", ".join([*_counts_of(common), *more])
    statement = f"SELECT {counts} FROM {BY_OWNER.format('owners')} {conditions}"  # noqa: S608 - constants only
    return Query(statement, parameters_of(unnamed(where)) | owners.parameters)


def stats_less(where: ReceiptFilter, owners: Owners, common: Sequence[bool]) -> Query:
    """The same from all records of the name less those of other times."""
    always = msgspec.structs.replace(unnamed(where), since_ms=None, before_ms=None)
    parts = [stats_always(always, owners).statement]
    less = ", ".join(f"-({count})" for count in _counts_of(common))
    for bound, other in (("since_ms", "<"), ("before_ms", ">=")):
        if getattr(where, bound) is not None:
            outside = clause_of(always, f"receipt.created_at {other} :{bound}", first=owners.conditions)
            parts.append(f"SELECT {less} FROM {BY_OWNER.format('owners')} {outside}")  # noqa: S608 - constants only
    sums = ", ".join(f"sum({name})" for name in ("total", *_FLAGS))
    statement = f"SELECT {sums} FROM ({' UNION ALL '.join(parts)})"  # noqa: S608 - constants only
    return Query(statement, parameters_of(unnamed(where)) | owners.parameters)


def is_less_short(wanted: int, records: int, members: Members) -> bool:
    """True when `stats_less` costs less than `stats_within`, of `records` of which `wanted` are of the time."""
    return (wanted * 2 - records) * members.share > TOTALS_PER_OWNER * len(members.owners.user_ids)


def _counts_of(common: Sequence[bool]) -> list[str]:
    """What counts records and those with each flag: of those with and those without, the fewer are counted."""
    fewer = (
        f"count(*) - count(*) FILTER (WHERE NOT receipt.{flag})" if is_common else
        f"count(*) FILTER (WHERE receipt.{flag})"
        for flag, is_common in zip(_FLAGS, common, strict=True)
    )  # fmt: skip
    return ["count(*)", *fewer]


def runs(where: ReceiptFilter) -> Query:
    """Selects how many rows of receive_counts match, SOUGHT_RUNS + 1 at most."""
    counted = f"SELECT 1 FROM {_counts(where)} LIMIT {SOUGHT_RUNS + 1}"  # noqa: S608 - constants only
    return Query(f"SELECT count(*) FROM ({counted})", parameters_of(where))  # noqa: S608 - constants only


def timed(sort: ReceiptSort) -> Query:
    """Selects how many records have the time `sort` names: entries of the index that `by_time` walks."""
    return Query(f"SELECT sum(total) FROM receive_counts WHERE {TIMES[sort]}", {})  # noqa: S608 - constants only


class Walk(NamedTuple):
    """What a walk to the end of a list by a time passes, in entries, and of how many records of anybody's that is."""

    outside: float  # before any of the times that are asked for
    inside: float
    records: int


def walking_cost(part: Slice, total: int, walk: Walk, members: Members) -> float:
    """What a walk to the page's end costs, in entries passed, if the `total` matches are spread evenly."""
    entries = walk.outside + (part.offset + part.limit) * walk.inside / max(1, total)
    return entries * (WALKED_ASKED_LAST if members.is_asked_last else 1)


def sorting_cost(total: int, walk: Walk, members: Members) -> float:
    """What sorting all `total` costs: they are looked for among all records of the users with the name."""
    return members.share * walk.records * WALKED_PER_OWNED + total * WALKED_PER_SORTED


def spread(where: ReceiptFilter) -> Query:
    """Selects how many records of anybody's are before the range of `where`, after it, and altogether."""
    before = "created_at < :since_ms" if where.since_ms is not None else "false"
    after = "created_at >= :before_ms" if where.before_ms is not None else "false"
    sums = f"sum(total) FILTER (WHERE {before}), sum(total) FILTER (WHERE {after}), sum(total)"
    return Query(f"SELECT {sums} FROM receive_counts", parameters_of(_between(where)))  # noqa: S608 - constants only


def flags_in_range(where: ReceiptFilter) -> Query:
    """Selects how many records there are in the range of `where`, how many with each flag, and how many altogether."""
    total = "(SELECT sum(total) FROM receive_counts)"
    statement = f"SELECT {_SUMS}, {total} FROM {_counts(_between(where))}"  # noqa: S608 - constants only
    return Query(statement, parameters_of(_between(where)))


def _between(where: ReceiptFilter) -> ReceiptFilter:
    return ReceiptFilter(since_ms=where.since_ms, before_ms=where.before_ms)


def walked(where: ReceiptFilter, part: Slice, members: Members | None = None, side: TimeSide | None = None) -> Query:
    """A page by created_at, of `members` and `side` only. Costs the entries of the times up to the end of the page."""
    index = "state" if has_state(where) else "created"
    more = () if where.message_id is None else (_TIMES_OF_NOTICE,)
    source = f"{_TABLE} INDEXED BY receive_records_{index}"
    return _page(within(where, side), part, source, order_of(("created_at",), part), *more, members=members)


def within(where: ReceiptFilter, side: TimeSide | None) -> ReceiptFilter:
    """What of `where` is on this side of a moment at which something of it was created."""
    if side is None:
        return where
    return msgspec.structs.replace(where, **{"since_ms" if side.comparison == ">=" else "before_ms": side.at_ms})


def sought(where: ReceiptFilter, part: Slice) -> Query:
    """The same page as `walked` gives with a filter by state. Costs the rows of receive_counts that match."""
    order = order_of(COUNTED, part, "counts")
    inner = f"""
    WITH placed AS (
      SELECT *, sum(total) OVER (ORDER BY {order} ROWS UNBOUNDED PRECEDING) - total AS skipped
        FROM {_counts(where)}
    ),
    run AS MATERIALIZED (
      SELECT * FROM placed WHERE skipped < :offset + :limit AND skipped + total > :offset
    )
    SELECT receipt.rowid AS id
      FROM run
     CROSS JOIN {_IN_RUN}
     ORDER BY {order_of((*COUNTED, "user_id"), part)}
     LIMIT :limit OFFSET :offset - ifnull((SELECT min(skipped) FROM run), 0)
    """  # noqa: S608 - constants only
    return Query(_PAGE.format(inner), parameters_of(where) | _limits(part))


def by_user(where: ReceiptFilter, sort: ReceiptSort, part: Slice, side: Side | None = None) -> Query:
    """A page of users' records by user_id or username. Costs the entries of users, of `side`, up to its end."""
    if sort is ReceiptSort.USER_ID and where.username is None:
        source, order, users = _BY_USER, order_of(("user_id",), part), "receipt"
    else:
        source = _IN_ORDER_OF_NAMES if sort is ReceiptSort.USERNAME else _BY_NAME
        order, users = f"{order_of(NAME_KEYS[sort], part, 'name')}, {_newest(part)}", "name"
    if side is None:
        return _page(where, part, source, order)
    place = "(CAST(:pivot_name AS TEXT), :pivot_id)" if sort is ReceiptSort.USERNAME else ":pivot_id"
    query = _page(where, part, source, order, f"{user_key(sort, users)} {side.comparison} {place}")
    return query._replace(parameters=query.parameters | {"pivot_name": side.username, "pivot_id": side.user_id})


def user_key(sort: ReceiptSort, users: str) -> str:
    """What a list by users is sorted by, of the table `users`."""
    return f"({users}.username, {users}.user_id)" if sort is ReceiptSort.USERNAME else f"{users}.user_id"


def by_time(
    where: ReceiptFilter, sort: ReceiptSort, part: Slice, members: Members | None = None, side: TimeSide | None = None
) -> Query:
    """A page of the records, of `members` and `side` only, that have the time `sort` names.

    Costs the entries up to its end. `where` need not ask for the flag that says so: the index has no others.
    """
    index = f"{_TABLE} INDEXED BY receive_records_{sort.value.removesuffix('_at')}"
    has_time = on_side(sort, side or TimeSide(">=", EARLIEST_MS))
    return _page(where, part, index, order_of((sort.value,), part), has_time, members=members)


def on_side(sort: ReceiptSort, side: TimeSide) -> str:
    """The condition that the time `sort` names is on this side."""
    return f"receipt.{sort.value} {side.comparison} {int(side.at_ms)}"


def others(where: ReceiptFilter, sort: ReceiptSort) -> Query:
    """Selects for each of STATE that `where` asks for how many records with the time of `sort` are in another state."""
    sums = [f"sum(total) FILTER (WHERE counts.{name} <> :{name})" for name in _asked(where)]
    statement = f"SELECT {', '.join(sums)} FROM receive_counts AS counts WHERE counts.{TIMES[sort]}"  # noqa: S608 - constants only
    return Query(statement, {name: parameters_of(where)[name] for name in _asked(where)})


def telling(where: ReceiptFilter, counted: Sequence[int]) -> ReceiptFilter:
    """`where` without the states of which no record is in another, as counted by `others`."""
    vain = {name: None for name, others in zip(_asked(where), counted, strict=True) if not others}
    return msgspec.structs.replace(where, **vain)


def _asked(where: ReceiptFilter) -> list[str]:
    return [name for name in STATE if getattr(where, name) is not None]


def sorted_all(where: ReceiptFilter, sort: ReceiptSort, part: Slice) -> Query:
    """A page found by sorting all that match, in the order of `walked`, `by_user` and `by_time`."""
    source = _source(where)
    if not is_narrow(where) and (where.message_id is None or has_state(where)):
        source = f"(SELECT * FROM {_counts(where)}) AS run CROSS JOIN {_IN_RUN}"  # noqa: S608 - constants only
    return _page(where, part, source, _keys(where, sort, part))


def _keys(where: ReceiptFilter, sort: ReceiptSort, part: Slice) -> str:
    """All columns of the index that is walked for this sort; each user's newest come first when ascending."""
    if sort is ReceiptSort.CREATED_AT:
        return order_of((*COUNTED, "user_id") if has_state(where) else ("created_at", "message_id", "user_id"), part)
    if sort in TIMES:
        return order_of((sort.value, "user_id", "created_at", *STATE, "rowid"), part)
    by, then = (("username", "user_id"), ()) if sort is ReceiptSort.USERNAME else (("user_id",), ("username",))
    return f"{order_of(by, part)}, {_newest(part)}, {order_of(('received_at', *then, *STATE, 'rowid'), part)}"


def _newest(part: Slice) -> str:
    return f"receipt.created_at {direction_of(part, is_reversed=True)}"


def _page(
    where: ReceiptFilter, part: Slice, source: str, order: str, *more: str, members: Members | None = None
) -> Query:
    if members is not None:  # instead of the name
        where = unnamed(where)
    whose, known = (members.conditions, members.parameters) if members else ((), {})
    is_last = members is not None and members.is_asked_last
    first, last = ((), whose) if is_last else (whose, ())
    conditions = clause_of(where, *more, *last, users=_users(source), first=first)
    inner = f"""
    SELECT receipt.rowid AS id FROM {source} {conditions} ORDER BY {order} LIMIT :limit OFFSET :offset
    """  # noqa: S608 - constants only
    return Query(_PAGE.format(inner), parameters_of(where) | known | _limits(part))


def _source(where: ReceiptFilter) -> str:
    """Where to look for the records of a filter that names a notice, a user or a part of a name."""
    if where.username is not None and where.user_id is None:
        return _BY_NAME if where.message_id is None else _BY_NAME_IN_NOTICE
    return _TABLE if where.message_id is not None else _BY_USER


def _counts(where: ReceiptFilter) -> str:
    """The rows of receive_counts that match, as a FROM with its WHERE."""
    return f"receive_counts AS counts {clause_of(where, table='counts')}"


def _users(source: str) -> str:
    """The table that names the users in `source`."""
    return "name" if source.startswith("receive_names") else "receipt"


def unnamed(where: ReceiptFilter) -> ReceiptFilter:
    """`where` for a statement that knows the users with the name."""
    return msgspec.structs.replace(where, username=None)


def clause_of(
    where: ReceiptFilter, *more: str, table: str = "receipt", users: str = "receipt", first: tuple[str, ...] = ()
) -> str:
    """The WHERE of a statement over `table`, with `more` conditions and, before all, `first`; `users` has the names."""
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


def parameters_of(where: ReceiptFilter) -> dict[str, Parameter]:
    """The parameters of the conditions that `where` is."""
    given: dict[str, Parameter] = msgspec.structs.asdict(where)
    return {name: value for name, value in given.items() if value is not None}


def _limits(part: Slice) -> dict[str, Parameter]:
    return {"limit": part.limit, "offset": part.offset}


def order_of(keys: tuple[str, ...], part: Slice, table: str = "receipt") -> str:
    """The terms of an ORDER BY in the direction of `part`."""
    return ", ".join(f"{table}.{key} {direction_of(part)}" for key in keys)


def direction_of(part: Slice, *, is_reversed: bool = False) -> str:
    """The direction of `part`, or the other one."""
    return "DESC" if part.is_descending is not is_reversed else "ASC"
