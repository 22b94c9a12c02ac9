"""Places in the midst of a list of receive records, for a page that is far from both ends of it.

Where what is before some place can be counted for less than passing it on a walk takes, the page is walked to from
there. The place is a guess and only decides how far that is; the count is exact, and so is the page.
"""

from __future__ import annotations

from math import inf
from random import Random

import orjson

from pushd.queries import ReceiptFilter, ReceiptSort, Slice
from pushd.stores.sqlite import receipt_queries
from pushd.stores.sqlite.members import Members, Owners
from pushd.stores.sqlite.receipt_queries import (
    BY_OWNER,
    NAME_KEYS,
    NAMES_IN_ORDER,
    THEIR_TOTALS,
    Side,
    TimeSide,
    Walk,
    clause_of,
    direction_of,
    has_range,
    has_state,
    on_side,
    order_of,
    parameters_of,
    unnamed,
    user_key,
    within,
)
from pushd.stores.sqlite.statements import Parameter, Query

# What it costs to count what the users with a name have before a moment, in entries passed on a walk: each user's
# entries have to be found first, and then each entry is half of what it is on a walk.
COUNTED_PER_OWNER = 15
COUNTED_PER_OWNED = 0.5
COUNTED_ALWAYS = 10_000

# So many of their records are looked at to guess that moment, which makes it one or two in a hundred off, of at least
# so many of the users, or up to so many where few have any.
SAMPLED_RECORDS, SAMPLED_USERS, MOST_SAMPLED_USERS = 1_000, 32, 500


# A moment that was counted for another page is near this one if only one in so many records is between them.
NEAR = 20

# Users with fewer records than so many each are passed as soon as counted.
RECORDS_PER_OWNER = 8


def pivoting_cost(sort: ReceiptSort, part: Slice, total: int, walk: Walk, members: Members) -> float:
    """What a page by way of `moment` costs, in entries passed on a walk.

    What was created before a moment are a user's first entries; to see what was received, all are looked at. No other
    time is in their index.
    """
    if sort not in (ReceiptSort.CREATED_AT, ReceiptSort.RECEIVED_AT):
        return inf
    owners = members.owners
    share = members.share * (part.offset / max(1, total) if sort is ReceiptSort.CREATED_AT else 1)
    counting = COUNTED_PER_OWNER * len(owners.user_ids) + COUNTED_PER_OWNED * share * walk.records
    return COUNTED_ALWAYS + counting / len(owners.parts)


def moment(where: ReceiptFilter, sort: ReceiptSort, part: Slice, owners: Owners, total: int) -> Query:
    """Selects a moment near the time of the record that `part` begins with, of `total`.

    It is what some of the users' records suggest, 0 when those have none.
    """
    records = unnamed(where)
    statement = f"""
    WITH sampled AS MATERIALIZED (
      SELECT receipt.{sort.value} AS at_ms FROM {BY_OWNER.format("sample")}
      {clause_of(records, "receipt.rowid % :every = 0", f"receipt.{sort.value} IS NOT NULL")}
    )
    SELECT (SELECT at_ms FROM sampled ORDER BY at_ms {direction_of(part)}
             LIMIT 1 OFFSET (SELECT count(*) * :offset / :total FROM sampled))
    """  # noqa: S608 - constants only
    wanted = max(SAMPLED_USERS, SAMPLED_RECORDS * len(owners.user_ids) // max(1, 2 * total))
    wanted = min(wanted, MOST_SAMPLED_USERS, len(owners.user_ids))
    # By chance, as who is absent or has read may come at regular intervals; the same for the same page.
    sample = sorted(Random(total).sample(owners.user_ids, wanted))  # noqa: S311 - no secret
    every = 1 + total * len(sample) // max(1, len(owners.user_ids)) // SAMPLED_RECORDS
    guess: dict[str, Parameter] = {"sample": orjson.dumps(sample), "every": every}
    return Query(statement, parameters_of(records) | owners.parameters | guess | _rank(part, total))


def time_sides(part: Slice, at_ms: int) -> tuple[TimeSide, TimeSide]:
    """What is before this moment in the list, and what is not."""
    later, earlier = TimeSide(">=", at_ms), TimeSide("<", at_ms)
    return (later, earlier) if part.is_descending else (earlier, later)


def count_beside(where: ReceiptFilter, sort: ReceiptSort, side: TimeSide, owners: Owners) -> Query:
    """Selects how many records of `owners` are on this side of a moment."""
    records = unnamed(where)
    conditions: tuple[str, ...] = ()
    if sort is ReceiptSort.CREATED_AT:
        records = within(records, side)
    else:
        conditions = (on_side(sort, side),)
    clause = clause_of(records, *conditions, first=owners.conditions)
    statement = f"SELECT count(*) FROM {BY_OWNER.format('owners')} {clause}"  # noqa: S608 - constants only
    return Query(statement, parameters_of(records) | owners.parameters)


def has_user_pivot(where: ReceiptFilter, sort: ReceiptSort, part: Slice) -> bool:
    """True when `user_pivot` can count, and for less than a walk costs, which is little where every entry matches."""
    if part.offset < receipt_queries.FAR_ROWS or has_range(where):
        return False
    return sort is ReceiptSort.USERNAME or where.username is not None or has_state(where)


def is_user_pivot_short(total: int, owners: Owners) -> bool:
    """True when users with a name, whose are `total` records, have so many that counting them is less than a walk."""
    return total >= RECORDS_PER_OWNER * len(owners.user_ids)


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
