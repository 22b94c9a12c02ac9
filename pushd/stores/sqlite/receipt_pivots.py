"""Places in the midst of a list of receive records, for a page that is far from both ends of it.

Where what is before some place can be counted for less than passing it on a walk takes, the page is walked to from
there. The place is a guess and only decides how far that is; the count is exact, and so is the page.
"""

from __future__ import annotations

import msgspec

from pushd.queries import ReceiptFilter, ReceiptSort, Slice
from pushd.stores.sqlite import receipt_queries
from pushd.stores.sqlite.members import Members, Owners
from pushd.stores.sqlite.receipt_queries import (
    BY_OWNER,
    NAME_KEYS,
    NAMES_IN_ORDER,
    THEIR_TOTALS,
    Query,
    Side,
    clause_of,
    direction_of,
    has_range,
    has_state,
    order_of,
    parameters_of,
    unnamed,
    user_key,
)
from pushd.stores.sqlite.statements import Parameter

# What it costs to count what the users with a name have before a moment, in entries passed on a walk: each user's
# entries have to be found first, and then each entry is half of what it is on a walk.
COUNTED_PER_OWNER = 15
COUNTED_PER_OWNED = 0.5
COUNTED_ALWAYS = 10_000

# So many of their records are looked at to guess that moment: it is one or two in a hundred off.
SAMPLED_RECORDS = 1_000


# Users with fewer records than so many each are passed as soon as counted.
RECORDS_PER_OWNER = 8


def has_time_pivot(part: Slice, total: int, passed: int, members: Members) -> bool:
    """True when `time_pivot` costs less than a walk from the list's end, which passes `passed` entries to the other.

    A walk that asks most entries for their state only costs half: less than any count.
    """
    if part.offset < receipt_queries.FAR_ROWS or members.is_asked_last:
        return False
    walk = part.offset * passed / max(1, total)
    counting = COUNTED_PER_OWNER * members.owners.number + COUNTED_PER_OWNED * members.share * walk
    return COUNTED_ALWAYS + counting < walk


def time_pivot(where: ReceiptFilter, part: Slice, owners: Owners, total: int) -> Query:
    """Selects a moment near the record that `part` begins with, and how many of `total` are before it in the list.

    The moment is what some of the users' records suggest, 0 when those have none.
    """
    comparison = ">=" if part.is_descending else "<"  # as time_sides() has it
    records, moment = unnamed(where), "(SELECT at_ms FROM pivot)"
    before = clause_of(records, f"receipt.created_at {comparison} {moment}", first=owners.conditions)
    statement = f"""
    WITH sampled AS MATERIALIZED (
      SELECT receipt.created_at AS at_ms FROM {BY_OWNER.format("sample")}
      {clause_of(records, "receipt.rowid % :every = 0")}
    ),
    pivot AS MATERIALIZED (
      SELECT at_ms FROM sampled ORDER BY at_ms {direction_of(part)}
       LIMIT 1 OFFSET (SELECT count(*) * :offset / :total FROM sampled)
    )
    SELECT {moment}, (SELECT count(*) FROM {BY_OWNER.format("owners")} {before})
    """  # noqa: S608 - constants only
    every = 1 + total * owners.sampled // max(1, owners.number) // SAMPLED_RECORDS
    guess: dict[str, Parameter] = {"sample": owners.sample, "every": every}
    return Query(statement, parameters_of(records) | owners.parameters | guess | _rank(part, total))


def time_sides(where: ReceiptFilter, part: Slice, at_ms: int) -> tuple[ReceiptFilter, ReceiptFilter]:
    """What is before the moment of `time_pivot` in the list, and what is not."""
    earlier = msgspec.structs.replace(where, before_ms=at_ms)
    later = msgspec.structs.replace(where, since_ms=at_ms)
    return (later, earlier) if part.is_descending else (earlier, later)


def has_user_pivot(where: ReceiptFilter, sort: ReceiptSort, part: Slice) -> bool:
    """True when `user_pivot` can count, and for less than a walk costs, which is little where every entry matches."""
    if part.offset < receipt_queries.FAR_ROWS or has_range(where):
        return False
    return sort is ReceiptSort.USERNAME or where.username is not None or has_state(where)


def is_user_pivot_short(total: int, owners: Owners) -> bool:
    """True when users with a name, whose are `total` records, have so many that counting them is less than a walk."""
    return total >= RECORDS_PER_OWNER * owners.number


def user_pivot(where: ReceiptFilter, sort: ReceiptSort, part: Slice, total: int) -> Query:
    """Selects a user near the record that `part` begins with: name, id, how many of `total` are before; in bytes.

    The user is where it would be if all had as many. Costs the rows of receive_totals of the users before.
    """
    is_by_name = sort is ReceiptSort.USERNAME
    table = NAMES_IN_ORDER if is_by_name else "receive_names AS name"
    names = clause_of(ReceiptFilter(username=where.username), users="name")
    is_joined = is_by_name or where.username is not None
    source, users = (f"{table} {THEIR_TOTALS}", "name") if is_joined else ("receive_totals AS counts", "counts")
    user = "(SELECT username, user_id FROM pivot)" if is_by_name else "(SELECT user_id FROM pivot)"
    is_before = f"{user_key(sort, users)} {_comparisons(part)[0]} {user}"
    statement = f"""
    WITH pivot AS MATERIALIZED (
      SELECT username, user_id FROM {table} {names} ORDER BY {order_of(NAME_KEYS[sort], part, "name")}
       LIMIT 1 OFFSET (SELECT count(*) * :offset / :total FROM receive_names AS name {names})
    )
    SELECT (SELECT CAST(username AS BLOB) FROM pivot), (SELECT CAST(user_id AS BLOB) FROM pivot),
           (SELECT CAST(ifnull(sum(total), 0) AS BLOB) FROM {source}
             {clause_of(where, is_before, table="counts", users=users)})
    """  # noqa: S608 - constants only
    return Query(statement, parameters_of(where) | _rank(part, total))


def user_sides(part: Slice, username: bytes, user_id: int) -> tuple[Side, Side]:
    """What is before the user of `user_pivot` in the list, and what is not."""
    before, rest = _comparisons(part)
    return Side(before, username, user_id), Side(rest, username, user_id)


def _rank(part: Slice, total: int) -> dict[str, Parameter]:
    return {"offset": part.offset, "total": max(1, total)}


def _comparisons(part: Slice) -> tuple[str, str]:
    return (">", "<=") if part.is_descending else ("<", ">=")
