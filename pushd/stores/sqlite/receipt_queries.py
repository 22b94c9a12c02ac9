"""The statements that list and count receive records, where that costs a few rows: see receipt_lists.

Three things make a page cheap, however many records there are. The index `receive_records_user` answers every filter of
one user by itself. `receive_counts` says how many records a notice has in each state, so that counts add up a few rows
of it. These rows are, in their order, stretches of the index `receive_records_state`, so that a page of a filtered list
is sought, not walked to. And where a page is walked to, it is in the order of an index, ties included: an entry is
passed in tens of nanoseconds, and sorting, be it only what is equal so far, takes ten times as long. So what is walked
is ordered by the first column of its index alone, and what is sorted instead, by all of them: both ways lead to the
same page, and so do the columns that receipt_columns keeps.

A name is compared as SQLite's lower() has it: ASCII letters match in either case, other letters only as they are
written. Folding them would take a function in Python, which would hold the GIL for every row.
"""

from __future__ import annotations

import msgspec

from pushd.records import Part, ReceiptFilter, ReceiptSort
from pushd.stores.sqlite.engine.schema import COUNTED, STATE
from pushd.stores.sqlite.engine.statements import JSON_VALUE, SUM, Parameter, Query

# Most rows that are sorted to answer one page where an index in the order of the page exists.
SORTED_ROWS = 5_000

# Pages further from both ends of a list are not walked to where there is another way.
FAR_ROWS = 1_000

# Up to so many rows of receive_counts are added up to seek a page; where more match, notices are small and the
# records themselves are walked: the page will be full soon.
SOUGHT_RUNS = 5_000

# As a bound of an index, which costs less than asking every entry whether it is NULL.
EARLIEST_MS = -(1 << 63)

_EQUAL = ("message_id", "user_id", *STATE)
_TRUTH = "iif({}, json('true'), json('false'))"
FLAGS = ("is_online", "is_received", "is_read", "is_confirmed")

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
    *(f"'{name}', {JSON_VALUE.format('receipt.' + name)}" for name in _PLAIN),
    *(f"'{name}', {_TRUTH.format('receipt.' + name)}" for name in FLAGS),
    *(
        f"'{name}_ms', ifnull({JSON_VALUE.format(f'receipt.{name}_at')}, 0)"
        for name in ("received", "read", "confirmed", "created", "updated")
    ),
)
_ROWS = f"SELECT CAST(json_group_array(json_object({', '.join(_FIELDS)})) AS BLOB)"
PAGE = _ROWS + " FROM ({}) AS page CROSS JOIN admin_user_receive_records AS receipt ON receipt.rowid = page.id"

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
_SUMS = ", ".join(
    (f"{SUM.format('total')} AS total", *(f"{SUM.format(f'iif({flag}, total, 0)')} AS {flag}" for flag in FLAGS))
)
# Half of what sum() costs.
_COUNTS = ", ".join(("count(*)", *(f"count(*) FILTER (WHERE receipt.{flag})" for flag in FLAGS)))
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
SELECT CAST(json_group_array(json_array(user_id, CAST(username AS TEXT), total, received, read, confirmed)) AS BLOB)
  FROM (SELECT user_id, username, max(created_at), count(*) AS total, count(*) FILTER (WHERE is_received) AS received,
               count(*) FILTER (WHERE is_read) AS read, count(*) FILTER (WHERE is_confirmed) AS confirmed
          FROM admin_user_receive_records {}
         WHERE created_at >= :since_ms AND created_at < :before_ms
         GROUP BY user_id
        HAVING typeof(user_id) = 'integer'
         ORDER BY total DESC, user_id
         LIMIT :limit)
"""
ALL_USER_RECEIPTS = USER_RECEIPTS.format("INDEXED BY receive_records_user")
SOME_USER_RECEIPTS = USER_RECEIPTS.format("INDEXED BY receive_records_created")

# Records in a time range, and altogether.
IN_RANGE = f"""
SELECT (SELECT {SUM.format("total")} FROM receive_counts WHERE created_at >= :since_ms AND created_at < :before_ms),
       (SELECT {SUM.format("total")} FROM receive_counts)
"""  # noqa: S608 - constants only

USER_SUMMARY = f"""
SELECT (SELECT {SUM.format("total")} FROM receive_totals
         WHERE user_id = :user_id AND is_read = 0 AND delivery_status <> 'expired'),
       count(*), max(CAST(created_at AS INTEGER))
  FROM admin_user_receive_records INDEXED BY receive_records_user
 WHERE user_id = :user_id
"""  # noqa: S608 - constants only

DROP_RECEIPTS = """
DELETE FROM admin_user_receive_records
 WHERE rowid IN (SELECT rowid FROM admin_user_receive_records WHERE message_id = :message_id LIMIT :limit)
RETURNING message_id, user_id
"""


def is_narrow(where: ReceiptFilter) -> bool:
    """True when what matches belongs to one user, or to the users with a certain name."""
    return where.user_id is not None or where.username is not None


def has_state(where: ReceiptFilter) -> bool:
    """True when the filter asks for more than whose records of which notices and times."""
    return any(getattr(where, name) is not None for name in STATE)


def stats(where: ReceiptFilter) -> Query:
    """Selects the numbers of a ReceiptStats."""
    if is_narrow(where):
        source = _source(where)
        conditions = clause_of(where, users=_users(source))
        return Query(f"SELECT {_COUNTS} FROM {source} {conditions}", parameters_of(where))  # noqa: S608 - constants only
    return Query(f"SELECT {_SUMS} FROM {_counts(where)}", parameters_of(where))  # noqa: S608 - constants only


def runs(where: ReceiptFilter) -> Query:
    """Selects how many rows of receive_counts match, SOUGHT_RUNS + 1 at most."""
    counted = f"SELECT 1 FROM {_counts(where)} LIMIT {SOUGHT_RUNS + 1}"  # noqa: S608 - constants only
    return Query(f"SELECT count(*) FROM ({counted})", parameters_of(where))  # noqa: S608 - constants only


def walked(where: ReceiptFilter, part: Part) -> Query:
    """A page by created_at. Costs the entries of the times up to the end of the page."""
    index = "state" if has_state(where) else "created"
    more = () if where.message_id is None else (_TIMES_OF_NOTICE,)
    return _page(where, part, f"{_TABLE} INDEXED BY receive_records_{index}", order_of(("created_at",), part), *more)


def sought(where: ReceiptFilter, part: Part) -> Query:
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
    return Query(PAGE.format(inner), parameters_of(where) | _limits(part))


def by_user(where: ReceiptFilter, sort: ReceiptSort, part: Part) -> Query:
    """A page of everybody's records by user_id or username. Costs the entries up to its end."""
    if sort is ReceiptSort.USER_ID:
        return _page(where, part, _BY_USER, order_of(("user_id",), part))
    # What makes a row of receive_names unique, or SQLite would sort their records.
    order = f"{order_of(('username', 'user_id', 'folded'), part, 'name')}, {_newest(part)}"
    return _page(where, part, _IN_ORDER_OF_NAMES, order)


def by_time(where: ReceiptFilter, sort: ReceiptSort, part: Part) -> Query:
    """A page of the records that have the time `sort` names. Costs the entries up to its end.

    `where` need not ask for the flag that says so: the index has no others.
    """
    index = f"{_TABLE} INDEXED BY receive_records_{sort.value.removesuffix('_at')}"
    has_time = f"receipt.{sort.value} >= {EARLIEST_MS}"
    return _page(where, part, index, order_of((sort.value,), part), has_time)


def sorted_all(where: ReceiptFilter, sort: ReceiptSort, part: Part) -> Query:
    """A page found by sorting all that match, in the order of `walked`, `by_user` and `by_time`."""
    source = _source(where)
    if not is_narrow(where) and (where.message_id is None or has_state(where)):
        source = f"(SELECT * FROM {_counts(where)}) AS run CROSS JOIN {_IN_RUN}"  # noqa: S608 - constants only
    return _page(where, part, source, _keys(where, sort, part))


def _keys(where: ReceiptFilter, sort: ReceiptSort, part: Part) -> str:
    """All columns of the index that is walked for this sort; each user's newest come first when ascending."""
    if sort is ReceiptSort.CREATED_AT:
        return order_of((*COUNTED, "user_id") if has_state(where) else ("created_at", "message_id", "user_id"), part)
    if sort in TIMES:
        return order_of((sort.value, "user_id", "created_at", *STATE, "rowid"), part)
    by, then = (("username", "user_id"), ()) if sort is ReceiptSort.USERNAME else (("user_id",), ("username",))
    return f"{order_of(by, part)}, {_newest(part)}, {order_of(('received_at', *then, *STATE, 'rowid'), part)}"


def _newest(part: Part) -> str:
    return f"receipt.created_at {'ASC' if part.is_descending else 'DESC'}"


def _page(where: ReceiptFilter, part: Part, source: str, order: str, *more: str) -> Query:
    conditions = clause_of(where, *more, users=_users(source))
    inner = f"""
    SELECT receipt.rowid AS id FROM {source} {conditions} ORDER BY {order} LIMIT :limit OFFSET :offset
    """  # noqa: S608 - constants only
    return Query(PAGE.format(inner), parameters_of(where) | _limits(part))


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


def clause_of(where: ReceiptFilter, *more: str, table: str = "receipt", users: str = "receipt") -> str:
    """The WHERE of a statement over `table`, with `more` conditions; `users` is the table that has the names."""
    conditions = [f"{table}.{name} = :{name}" for name in _EQUAL if getattr(where, name) is not None]
    if where.username is not None:
        folded = "name.folded" if users == "name" else "lower(receipt.username)"
        conditions.append(f"instr({folded}, lower(:username)) > 0")
    if where.since_ms is not None:
        conditions.append(f"{table}.created_at >= :since_ms")
    if where.before_ms is not None:
        conditions.append(f"{table}.created_at < :before_ms")
    return " AND ".join(["WHERE true", *conditions, *more])


def parameters_of(where: ReceiptFilter) -> dict[str, Parameter]:
    """The parameters of the conditions that `where` is."""
    given: dict[str, Parameter] = msgspec.structs.asdict(where)
    return {name: value for name, value in given.items() if value is not None}


def _limits(part: Part) -> dict[str, Parameter]:
    return {"limit": part.limit, "offset": part.offset}


def order_of(keys: tuple[str, ...], part: Part, table: str = "receipt") -> str:
    """The terms of an ORDER BY in the direction of `part`."""
    direction = "DESC" if part.is_descending else "ASC"
    return ", ".join(f"{table}.{key} {direction}" for key in keys)
